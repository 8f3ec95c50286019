// `influence` on CUDA: the shortest example of an operator.
#include "../influence.h"
#include "influence_kernel.cuh"
#include "run.cuh"

namespace drocc::cuda {
namespace {

template <typename T, bool kBackward>
__global__ void __launch_bounds__(kMostReadingThreads, 2)
    influence(const __grid_constant__ InfluenceRowsArgs args, const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.batch) influence_row<T, kBackward>(team, args, team.row());
  team.leave();
}

struct InfluenceBackend {
  template <bool kBackward>
  static void run(const char* op, const InfluenceRowsArgs& args, const Tensor& grad) {
    if (args.batch == 0) return;
    check_row_length(op, args.length);
    const DeviceGuard guard(grad);
    with_element(grad, [&](auto element) {
      using T = decltype(element);
      const Launch launch =
          choose_launch(current_device(), Residency::kNothing, args.batch, args.length, sizeof(T), sizeof(Compute<T>));
      run_rows(op, influence<T, kBackward>, args, launch, grad);
    });
  }
  static void forward(const InfluenceRowsArgs& args, const Tensor& grad) { run<false>("influence", args, grad); }
  static void backward(const InfluenceRowsArgs& args, const Tensor& grad) {
    run<true>("_influence_backward", args, grad);
  }
};

}  // namespace
}  // namespace drocc::cuda

STABLE_TORCH_LIBRARY_IMPL(drocc, CUDA, m) {
  using Ops = drocc::InfluenceOps<drocc::cuda::InfluenceBackend>;
  DROCC_IMPL_INFLUENCE(m, Ops)
}
