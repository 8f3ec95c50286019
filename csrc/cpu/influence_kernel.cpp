// `influence` on the CPU.
#include "../influence_entry.h"
#include "dispatch.h"
#include "influence_rows.h"

namespace drocc::cpu {
namespace {

struct InfluenceDevice {
  static void forward(const InfluenceRowsArgs& args, const Tensor& grad) {
    run_rows(DROCC_SELECT_ROWS(influence_rows).forward[dtype_index(grad)], args, grad.size(0), args.length);
  }
  static void backward(const InfluenceRowsArgs& args, const Tensor& grad) {
    run_rows(DROCC_SELECT_ROWS(influence_rows).backward[dtype_index(grad)], args, grad.size(0), args.length);
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  using Entry = drocc::InfluenceEntry<drocc::cpu::InfluenceDevice>;
  DROCC_IMPL_INFLUENCE(m, Entry)
}
