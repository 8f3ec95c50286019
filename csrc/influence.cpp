// Schemas of the influence operator.
#include <torch/csrc/stable/library.h>

#if !defined(DROCC_NO_SCHEMAS)

STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def("influence(Tensor grad) -> Tensor");
  m.def("_influence_backward(Tensor grad_out, Tensor grad) -> Tensor");
}
#endif
