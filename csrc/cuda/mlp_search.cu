// The search in networks of several layers on CUDA: all steps of Algorithm 1 or 2 in one launch.
#include "../mlp_search.h"
#include "mlp_search_kernel.cuh"
#include "run.cuh"

namespace drocc::cuda {
namespace {

template <typename C, int kRows, bool kSigma>
__global__ void __launch_bounds__(kMostSharedThreads, 1)
    mlp_search(const __grid_constant__ MlpCall call, const __grid_constant__ TeamShape shape) {
  DROCC_DYNAMIC_SHARED(shared);
  MlpTile<C, kRows, kSigma> tile(call, shape.first_row + static_cast<int64_t>(blockIdx.x) * kRows, shared);
  tile.run();
}

template <typename C>
__global__ void __launch_bounds__(kTransposeThreads, 2)
    mlp_transpose(const __grid_constant__ MlpCall call, const __grid_constant__ TeamShape shape) {
  DROCC_DYNAMIC_SHARED(shared);
  const BlockTeam team(shape);
  transpose_tile(team, call, static_cast<int>(team.row()), reinterpret_cast<C*>(shared));
}

struct MlpSearchBackend {
  template <typename C, bool kSigma>
  static void run(const char* op, const MlpSearchArgs& args, const Tensor& h) {
    const Device& device = current_device();
    const MlpView& network = args.network;
    const MlpLaunch chosen =
        choose_mlp_launch(device, args.batch, network.num_layers, network.widths, sizeof(C), kSigma);
    MlpCall call{};
    call.rows = args;
    call.rows_bytes = chosen.launch.on_chip ? static_cast<int>(chosen.rows_bytes) : 0;
    call.partial_bytes = chosen.partial_bytes;
    call.stride = chosen.stride;
    call.mask_words = chosen.mask_words;
    std::optional<Tensor> transposed, largest, workspace;
    if (chosen.weights_held) {
      for (int l = 0; l < network.num_layers; ++l) {
        call.weights.held_begin[l] = static_cast<int>(held_weights(l, network.widths));
      }
    } else {
      int64_t tiles = 0;
      for (int l = 0; l < network.num_layers; ++l) {
        tiles += transposed_tiles(network.widths[l + 1], network.widths[l]);
        call.weights.tile_begin[l + 1] = static_cast<int>(tiles);
      }
      transposed = torch::stable::new_empty(h, {tiles, 1024}, h.scalar_type());
      largest = torch::stable::new_empty(h, {tiles}, h.scalar_type());
      call.weights.transposed = transposed->const_data_ptr();
      call.weights.tile_largest = largest->const_data_ptr();
      const Launch each{Regime::kMedium, kTransposeThreads, 1, 1, 1024, false, true, 4, transpose_bytes(sizeof(C))};
      run_rows(op, mlp_transpose<C>, call, each, *transposed);
    }
    int64_t at_once = std::numeric_limits<int32_t>::max();
    if (!chosen.launch.on_chip) {
      const int64_t blocks = ceil_div(args.batch, chosen.launch.rows_per_block);
      at_once = at_most(blocks, 2 * static_cast<int64_t>(device.processors));
      workspace = torch::stable::new_empty(h, {at_once * chosen.rows_bytes}, ScalarType::Byte);
      call.workspace = static_cast<unsigned char*>(workspace->mutable_data_ptr());
      call.workspace_bytes = chosen.rows_bytes;
    }
    constexpr int kMany = many_mlp_rows(sizeof(C), kSigma);
    const auto kernel =
        chosen.launch.rows_per_block == kMany ? mlp_search<C, kMany, kSigma> : mlp_search<C, kFewMlpRows, kSigma>;
    run_rows(op, kernel, call, chosen.launch, h, at_once);
  }

  static void search(const char* op, const MlpSearchArgs& args, const Tensor& h) {
    constexpr int64_t kMostWeights = (int64_t{1} << 31) - (int64_t{1} << 20);
    for (int l = 0; l < args.network.num_layers; ++l) {
      const int64_t units = args.network.widths[l + 1], inputs = args.network.widths[l];
      check_row_length(op, units);
      check_row_length(op, inputs);
      if (units > kMostWeights / inputs) {
        fail(op, "weights[", l, "] of ", units, " x ", inputs, " elements is too large for CUDA");
      }
    }
    const DeviceGuard guard(h);
    if (h.scalar_type() == ScalarType::Double) {
      args.sigma != nullptr ? run<double, true>(op, args, h) : run<double, false>(op, args, h);
    } else {
      args.sigma != nullptr ? run<float, true>(op, args, h) : run<float, false>(op, args, h);
    }
  }
};

}  // namespace
}  // namespace drocc::cuda

STABLE_TORCH_LIBRARY_IMPL(drocc, CUDA, m) {
  m.impl("_mlp_search", TORCH_BOX(&drocc::MlpSearchOps<drocc::cuda::MlpSearchBackend>::search));
}
