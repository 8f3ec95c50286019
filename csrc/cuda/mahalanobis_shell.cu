// The Mahalanobis shell operators on CUDA.
#include "../mahalanobis_shell.h"
#include "mahalanobis_shell_kernel.cuh"
#include "run.cuh"

namespace drocc::cuda {
namespace {

// What a kernel is given besides its operands.
template <typename Args>
struct Aligned {
  Args rows;
  bool aligned;  // all rows of the operands that are read by packs
};

// This team's piece of the block's dynamic shared memory.
template <typename C>
__device__ C* team_memory(const TeamShape& shape) {
  DROCC_DYNAMIC_SHARED(shared);
  const int bytes = (2 * shape.part_length * static_cast<int>(sizeof(C)) + 15) / 16 * 16;
  return reinterpret_cast<C*>(shared + static_cast<int>(threadIdx.x) / shape.threads_per_row * bytes);
}

template <typename T, bool kAscent, bool kHeld>
__global__ void __launch_bounds__(kMostSharedThreads, 1)
    mahalanobis_shell(const __grid_constant__ Aligned<MahalanobisRowsArgs> args,
                      const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.rows.batch) {
    mahalanobis_shell_row<T, kAscent, kHeld>(team, args.rows, args.aligned, team.row(), team_memory<Compute<T>>(shape));
  }
  team.leave();
}

template <typename T, bool kAscent, bool kHeld>
__global__ void __launch_bounds__(kMostSharedThreads, 1)
    mahalanobis_shell_backward(const __grid_constant__ Aligned<MahalanobisBackwardArgs> args,
                               const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.rows.forward.batch) {
    mahalanobis_shell_backward_row<T, kAscent, kHeld>(team, args.rows, args.aligned, team.row(),
                                                      team_memory<Compute<T>>(shape));
  }
  team.leave();
}

template <typename T>
__global__ void __launch_bounds__(kMostReadingThreads, 2)
    mahalanobis_norm(const __grid_constant__ MahalanobisRowsArgs args, const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.batch) mahalanobis_norm_row<T>(team, args, team.row());
  team.leave();
}

template <typename T>
__global__ void __launch_bounds__(kMostReadingThreads, 2)
    mahalanobis_norm_backward(const __grid_constant__ MahalanobisBackwardArgs args,
                              const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.forward.batch) mahalanobis_norm_backward_row<T>(team, args, team.row());
  team.leave();
}

template <typename T>
Launch launch_for(Residency keep, const MahalanobisRowsArgs& args) {
  return choose_launch(current_device(), keep, args.batch, args.length, sizeof(T), sizeof(Compute<T>));
}

template <typename T>
bool is_aligned_row(const MahalanobisRowsArgs& args) {
  return args.length % Pack<T>::kCount == 0 && is_aligned(args.h) && is_aligned(args.sigma) &&
         (args.grad == nullptr || is_aligned(args.grad));
}

struct MahalanobisShellBackend {
  template <bool kAscent>
  static void forward(const char* op, const MahalanobisRowsArgs& args, const Tensor& h) {
    if (args.batch == 0) return;
    check_row_length(op, args.length);
    const DeviceGuard guard(h);
    with_element(h, [&](auto element) {
      using T = decltype(element);
      const Launch launch = launch_for<T>(Residency::kShared, args);
      const auto kernel = launch.on_chip ? mahalanobis_shell<T, kAscent, true> : mahalanobis_shell<T, kAscent, false>;
      run_rows(op, kernel, Aligned<MahalanobisRowsArgs>{args, is_aligned_row<T>(args)}, launch, h);
    });
  }

  template <bool kAscent>
  static void backward(const char* op, const MahalanobisBackwardArgs& args, const Tensor& h) {
    if (args.forward.batch == 0) return;
    check_row_length(op, args.forward.length);
    const DeviceGuard guard(h);
    with_element(h, [&](auto element) {
      using T = decltype(element);
      const Launch launch = launch_for<T>(Residency::kShared, args.forward);
      const auto kernel =
          launch.on_chip ? mahalanobis_shell_backward<T, kAscent, true> : mahalanobis_shell_backward<T, kAscent, false>;
      run_rows(op, kernel, Aligned<MahalanobisBackwardArgs>{args, is_aligned_row<T>(args.forward)}, launch, h);
    });
  }

  static void norm(const char* op, const MahalanobisRowsArgs& args, const Tensor& h) {
    if (args.batch == 0) return;
    check_row_length(op, args.length);
    const DeviceGuard guard(h);
    with_element(h, [&](auto element) {
      using T = decltype(element);
      run_rows(op, mahalanobis_norm<T>, args, launch_for<T>(Residency::kNothing, args), h);
    });
  }

  static void norm_backward(const char* op, const MahalanobisBackwardArgs& args, const Tensor& h) {
    if (args.forward.batch == 0) return;
    check_row_length(op, args.forward.length);
    const DeviceGuard guard(h);
    with_element(h, [&](auto element) {
      using T = decltype(element);
      run_rows(op, mahalanobis_norm_backward<T>, args, launch_for<T>(Residency::kNothing, args.forward), h);
    });
  }
};

}  // namespace
}  // namespace drocc::cuda

STABLE_TORCH_LIBRARY_IMPL(drocc, CUDA, m) {
  using Ops = drocc::MahalanobisShellOps<drocc::cuda::MahalanobisShellBackend>;
  DROCC_IMPL_MAHALANOBIS_SHELL(m, Ops)
}
