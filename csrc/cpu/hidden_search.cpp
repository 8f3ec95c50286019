// The search in hidden space on the CPU.
#include <atomic>

#include "../hidden_search.h"
#include "dispatch.h"
#include "hidden_search_kernel.h"

namespace drocc::cpu {
namespace {

struct HiddenSearchBackend {
  static void search(const char* op, const HiddenSearchArgs& args, const Tensor& h) {
    std::atomic<bool> ok{true};
    const HiddenSearchFn fn = DROCC_SELECT_KERNELS(hidden_search_kernels).search[dtype_index(h)];
    const auto rows = [&](const HiddenSearchArgs& a, int64_t begin, int64_t end) {
      if (!fn(a, begin, end)) ok = false;
    };
    run_rows(rows, args, args.batch, args.hidden * (1 + args.num_steps));
    if (!ok) fail(op, "no memory for scratch rows");
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_hidden_search", TORCH_BOX(&drocc::HiddenSearchOps<drocc::cpu::HiddenSearchBackend>::search));
}
