// The search for nearest rows on the CPU.
#include "../nearest.h"

#include <atomic>

#include "dispatch.h"
#include "nearest_kernel.h"

namespace drocc::cpu {
namespace {

struct NearestBackend {
  static void nearest(const char* op, const NearestArgs& args, const Tensor& points) {
    std::atomic<bool> ok{true};
    const NearestFn fn = DROCC_SELECT_KERNELS(nearest_kernels).nearest[dtype_index(points)];
    const auto run = [&](const NearestArgs& a, int64_t begin, int64_t end) {
      if (!fn(a, begin, end)) ok = false;
    };
    run_rows(run, args, args.batch, args.rows_count * args.length);
    if (!ok) fail(op, "no memory for scratch rows");
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_nearest", TORCH_BOX(&drocc::NearestOps<drocc::cpu::NearestBackend>::nearest));
}
