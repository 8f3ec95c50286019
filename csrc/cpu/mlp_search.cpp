// The search in deep networks on the CPU.
#include "../mlp_search.h"

#include <atomic>
#include <memory>

#include "dispatch.h"
#include "mlp_search_kernel.h"

namespace drocc::cpu {
namespace {

struct MlpSearchBackend {
  static void search(const char* op, const MlpSearchArgs& args, const Tensor& h) {
    const MlpSearchKernels& rows = DROCC_SELECT_KERNELS(mlp_search_kernels);
    const int dtype = dtype_index(h);
    const MlpView& network = args.network;
    const math::MlpWay way = math::choose_way(network.num_layers, network.widths, args.sigma != nullptr, args.batch,
                                              args.num_steps);
    const std::unique_ptr<void, void (*)(void*)> packed(rows.pack[dtype](network, way), rows.release[dtype]);
    std::atomic<bool> ok{packed != nullptr};
    if (ok) {
      int64_t work = 0;
      for (int l = 0; l < network.num_layers; ++l) work += network.widths[l] + network.widths[l + 1];
      const auto search = [&](const MlpSearchArgs& a, int64_t begin, int64_t end) {
        if (!rows.search[dtype](packed.get(), a, begin, end)) ok = false;
      };
      run_rows(search, args, args.batch, work * (1 + args.num_steps));
    }
    if (!ok) fail(op, "no memory for scratch rows");
  }
};

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_mlp_search", TORCH_BOX(&drocc::MlpSearchOps<drocc::cpu::MlpSearchBackend>::search));
}
