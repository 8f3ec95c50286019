// The Mahalanobis shell operators on the CPU.
#include <atomic>

#include "../mahalanobis_shell.h"
#include "dispatch.h"
#include "mahalanobis_shell_kernel.h"

namespace drocc::cpu {
namespace {

// A row takes some ten passes with divisions, so fewer elements make a task than the one-pass operators need.
constexpr int64_t kWorkPerElement = 8;

template <typename Fn, typename Args>
void run(const char* op, Fn fn, const Args& args, const Tensor& h, int64_t length) {
  std::atomic<bool> ok{true};
  const auto rows = [&](const Args& a, int64_t begin, int64_t end) {
    if (!fn(a, begin, end)) ok = false;
  };
  run_rows(rows, args, h.size(0), length * kWorkPerElement);
  if (!ok) fail(op, "no memory for scratch rows of ", length, " elements");
}

struct MahalanobisShellBackend {
  template <bool kAscent>
  static void forward(const char* op, const MahalanobisRowsArgs& args, const Tensor& h) {
    const MahalanobisShellRows& rows = DROCC_SELECT_KERNELS(mahalanobis_shell_kernels);
    run(op, (kAscent ? rows.step : rows.project)[dtype_index(h)], args, h, args.length);
  }
  template <bool kAscent>
  static void backward(const char* op, const MahalanobisBackwardArgs& args, const Tensor& h) {
    const MahalanobisShellRows& rows = DROCC_SELECT_KERNELS(mahalanobis_shell_kernels);
    run(op, (kAscent ? rows.step_backward : rows.project_backward)[dtype_index(h)], args, h, args.forward.length);
  }
  static void norm(const char* op, const MahalanobisRowsArgs& args, const Tensor& h) {
    run(op, DROCC_SELECT_KERNELS(mahalanobis_shell_kernels).norm[dtype_index(h)], args, h, args.length);
  }
  static void norm_backward(const char* op, const MahalanobisBackwardArgs& args, const Tensor& h) {
    run(op, DROCC_SELECT_KERNELS(mahalanobis_shell_kernels).norm_backward[dtype_index(h)], args, h,
        args.forward.length);
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  using Ops = drocc::MahalanobisShellOps<drocc::cpu::MahalanobisShellBackend>;
  DROCC_IMPL_MAHALANOBIS_SHELL(m, Ops)
}
