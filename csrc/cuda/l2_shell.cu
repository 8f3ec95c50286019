// The l2 shell operators on CUDA.
#include "../l2_shell.h"
#include "l2_shell_kernel.cuh"
#include "run.cuh"

namespace drocc::cuda {
namespace {

struct AlignedArgs {
  L2ShellRowsArgs rows;
  bool aligned;
};

template <typename T, int kSlots, bool kAscent, bool kShell>
__global__ void __launch_bounds__(most_tile_threads(kSlots, sizeof(T)), 1)
    l2_shell(const __grid_constant__ AlignedArgs args, const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.rows.batch) {
    l2_shell_row<T, kSlots, kAscent, kShell>(team, args.rows, args.aligned, team.row());
  }
  team.leave();
}

template <typename T, bool kAscent, bool kShell>
__global__ void __launch_bounds__(kMostReadingThreads, 2)
    l2_shell_backward(const __grid_constant__ L2ShellBackwardArgs args, const __grid_constant__ TeamShape shape) {
  const RowTeam team(shape);
  if (team.row() < args.forward.batch) l2_shell_backward_row<T, kAscent, kShell>(team, args, team.row());
  team.leave();
}

struct L2ShellBackend {
  template <bool kAscent, bool kShell>
  static void forward(const char* op, const L2ShellRowsArgs& args, const Tensor& h) {
    if (h.size(0) == 0) return;
    check_row_length(op, args.length);
    const DeviceGuard guard(h);
    with_element(h, [&](auto element) {
      using T = decltype(element);
      const Launch launch = choose_launch(current_device(), Residency::kRegisters, args.batch, args.length, sizeof(T),
                                          sizeof(Compute<T>));
      const bool aligned = args.length % Pack<T>::kCount == 0 && is_aligned(args.h) && is_aligned(args.out) &&
                           (!kAscent || is_aligned(args.grad));
      const auto kernel = launch.slots == 4 ? l2_shell<T, 4, kAscent, kShell> : l2_shell<T, 8, kAscent, kShell>;
      run_rows(op, kernel, AlignedArgs{args, aligned}, launch, h);
    });
  }

  template <bool kAscent, bool kShell>
  static void backward(const char* op, const L2ShellBackwardArgs& args, const Tensor& h) {
    if (h.size(0) == 0) return;
    check_row_length(op, args.forward.length);
    const DeviceGuard guard(h);
    with_element(h, [&](auto element) {
      using T = decltype(element);
      const Launch launch = choose_launch(current_device(), Residency::kNothing, args.forward.batch,
                                          args.forward.length, sizeof(T), sizeof(Compute<T>));
      run_rows(op, l2_shell_backward<T, kAscent, kShell>, args, launch, h);
    });
  }
};

}  // namespace
}  // namespace drocc::cuda

STABLE_TORCH_LIBRARY_IMPL(drocc, CUDA, m) {
  using Ops = drocc::L2ShellOps<drocc::cuda::L2ShellBackend>;
  DROCC_IMPL_L2_SHELL(m, Ops)
}
