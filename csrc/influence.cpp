#include "influence.h"

namespace drocc {

void check_influence_inputs(const char* op, const Tensor& grad) {
  if (grad.dim() < 2) {
    fail(op, "grad must have a batch and at least one feature dimension, got shape ", describe_shape(grad));
  }
  if (grad.size(0) > 0 && row_length(grad) == 0) {
    fail(op, "grad must have at least one feature, got ", describe_shape(grad));
  }
  if (!is_floating(grad.scalar_type())) fail(op, "grad must be float32, float64, float16 or bfloat16");
}

}  // namespace drocc

// The CUDA library has the checks of this file too; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def("influence(Tensor grad) -> Tensor");
  m.def("_influence_backward(Tensor grad_out, Tensor grad) -> Tensor");
}
#endif
