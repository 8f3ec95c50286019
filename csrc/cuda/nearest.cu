// The search for nearest rows on CUDA: a team for each point.
#include "../nearest.h"
#include "nearest_kernel.cuh"
#include "run.cuh"

namespace drocc::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kMostReadingThreads, 2)
    nearest(const __grid_constant__ NearestArgs args, const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.batch) nearest_row<T>(team, args, team.row());
  team.leave();
}

struct NearestBackend {
  static void nearest(const char* op, const NearestArgs& args, const Tensor& points) {
    check_row_length(op, args.length);
    const DeviceGuard guard(points);
    with_element(points, [&](auto element) {
      using T = decltype(element);
      const Launch launch =
          choose_launch(current_device(), Residency::kNothing, args.batch, args.length, sizeof(T), sizeof(Compute<T>));
      run_rows(op, cuda::nearest<T>, args, launch, points);
    });
  }
};

}  // namespace
}  // namespace drocc::cuda

STABLE_TORCH_LIBRARY_IMPL(drocc, CUDA, m) {
  m.impl("_nearest", TORCH_BOX(&drocc::NearestOps<drocc::cuda::NearestBackend>::nearest));
}
