// `influence` on the CPU.
#include "../influence.h"
#include "dispatch.h"
#include "influence_kernel.h"

namespace drocc::cpu {
namespace {

struct InfluenceBackend {
  static void forward(const InfluenceRowsArgs& args, const Tensor& grad) {
    run_rows(DROCC_SELECT_KERNELS(influence_kernels).forward[dtype_index(grad)], args, grad.size(0), args.length);
  }
  static void backward(const InfluenceRowsArgs& args, const Tensor& grad) {
    run_rows(DROCC_SELECT_KERNELS(influence_kernels).backward[dtype_index(grad)], args, grad.size(0), args.length);
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  using Ops = drocc::InfluenceOps<drocc::cpu::InfluenceBackend>;
  DROCC_IMPL_INFLUENCE(m, Ops)
}
