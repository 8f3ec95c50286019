// The l2 shell operators on the CPU.
#include "../l2_shell.h"
#include "dispatch.h"
#include "l2_shell_kernel.h"

namespace drocc::cpu {
namespace {

struct L2ShellBackend {
  template <bool kAscent, bool kShell>
  static void forward(const char*, const L2ShellRowsArgs& args, const Tensor& h) {
    const L2ShellRows& rows = DROCC_SELECT_KERNELS(l2_shell_kernels);
    const auto& fns = !kShell ? rows.normalized_ascent : kAscent ? rows.l2_shell_step : rows.project_l2_shell;
    run_rows(fns[dtype_index(h)], args, h.size(0), args.length);
  }
  template <bool kAscent, bool kShell>
  static void backward(const char*, const L2ShellBackwardArgs& args, const Tensor& h) {
    const L2ShellRows& rows = DROCC_SELECT_KERNELS(l2_shell_kernels);
    const auto& fns = !kShell   ? rows.normalized_ascent_backward
                      : kAscent ? rows.l2_shell_step_backward
                                : rows.project_l2_shell_backward;
    run_rows(fns[dtype_index(h)], args, h.size(0), args.forward.length);
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  using Ops = drocc::L2ShellOps<drocc::cpu::L2ShellBackend>;
  DROCC_IMPL_L2_SHELL(m, Ops)
}
