// The search in hidden space on CUDA: all steps of Algorithm 1 in one launch.
#include "../hidden_search.h"
#include "hidden_search_kernel.cuh"
#include "run.cuh"

namespace drocc::cuda {
namespace {

struct HiddenCall {
  HiddenSearchArgs rows;
  unsigned char* workspace;  // null: shared memory
  int64_t row_bytes;
};

template <typename C>
__global__ void __launch_bounds__(kMostSharedThreads, 1)
    hidden_search(const __grid_constant__ HiddenCall call, const __grid_constant__ TeamShape shape) {
  DROCC_DYNAMIC_SHARED(shared);
  const BlockTeam team(shape);
  if (team.row() >= call.rows.batch) return;
  unsigned char* memory = call.workspace != nullptr
                              ? call.workspace + (team.row() - shape.first_row) * call.row_bytes
                              : shared + static_cast<int>(threadIdx.x) / shape.threads_per_row * call.row_bytes;
  hidden_search_row<C>(team, call.rows, team.row(), memory);
}

struct HiddenSearchBackend {
  template <typename C>
  static void run(const char* op, const HiddenSearchArgs& args, const Tensor& h) {
    const Device& device = current_device();
    const Launch launch = choose_hidden_launch(device, args.batch, args.length, args.hidden, sizeof(C));
    HiddenCall call{args, nullptr, hidden_bytes(args.hidden, sizeof(C))};
    std::optional<Tensor> workspace;
    int64_t at_once = args.batch;
    if (!launch.on_chip) {
      at_once = at_most(args.batch, 2 * static_cast<int64_t>(device.processors));
      workspace = torch::stable::new_empty(h, {at_once * call.row_bytes}, ScalarType::Byte);
      call.workspace = static_cast<unsigned char*>(workspace->mutable_data_ptr());
    }
    run_rows(op, hidden_search<C>, call, launch, h, at_once);
  }

  static void search(const char* op, const HiddenSearchArgs& args, const Tensor& h) {
    if (args.batch == 0) return;
    check_row_length(op, args.length);
    check_row_length(op, args.hidden);
    const DeviceGuard guard(h);
    if (h.scalar_type() == ScalarType::Double) {
      run<double>(op, args, h);
    } else {
      run<float>(op, args, h);
    }
  }
};

}  // namespace
}  // namespace drocc::cuda

STABLE_TORCH_LIBRARY_IMPL(drocc, CUDA, m) {
  m.impl("_hidden_search", TORCH_BOX(&drocc::HiddenSearchOps<drocc::cuda::HiddenSearchBackend>::search));
}
