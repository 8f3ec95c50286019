// Row and column kernels of a deep network's losses and gradients, per element type and instruction set.
#pragma once

#include <cstdint>

#include "../mlp.h"
#include "isa.h"

namespace drocc::cpu {

// Clean rows [B, D] and adversarial ones [M, D] go through the network together: where an array has B + M rows, the
// clean ones come first. Layer l stands at index l - 1.
struct MlpLossArgs {
  MlpView net;
  const void* rows[2];   // [B, D] and [M, D]
  int64_t count[2];      // B and M
  const void* units[2];  // the first layer's units W_1 x + b_1, [B, H_1] and [M, H_1], where known, or null
  void* forward_weight[kMostMlpLayers];   // W_l^T, packed
  void* back_weight[kMostMlpLayers];      // W_l, packed; not for the first layer
  void* active[kMostMlpLayers];           // [B + M, H_l]: what the activation leaves of the units
  void* gradient[kMostMlpLayers];         // [B + M, H_l]: of the units
  void* logits;                           // [B + M], without the output's bias
  const void* slopes;                     // [B + M]: derivatives of the loss
  void* weight_gradient[kMostMlpLayers];  // [H_l, H_(l-1)], or null where it is not wanted
  void* bias_gradient[kMostMlpLayers];    // [H_l], or null
  void* output_gradient;                  // [H_L], or null
};

// Weight gradients are shared out by blocks of so many rows and columns, those of units by so many units.
constexpr int64_t kGradientRows = 96;
constexpr int64_t kGradientColumns = 128;
constexpr int64_t kGradientUnits = 32;

inline int64_t count_blocks(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// For float and double.
struct MlpLossRows {
  int64_t (*packed_size[2])(int64_t depth, int64_t columns);
  // B [depth, columns], and out [rows, columns] = A B with A [rows, depth].
  void (*pack_matrix[2])(const void* b, int64_t depth, int64_t columns, void* packed);
  void (*multiply_matrix[2])(const void* a, int64_t rows, int64_t depth, const void* packed, int64_t columns,
                             void* out);
  // Packs W_l^T and W_l, where there is room for them.
  void (*pack[2])(const MlpLossArgs&, int layer);
  void (*forward[2])(const MlpLossArgs&, int64_t begin, int64_t end);   // rows of B + M
  void (*backward[2])(const MlpLossArgs&, int64_t begin, int64_t end);  // rows of B + M; down to layer `lowest`
  // Blocks of W_l, column by column of blocks; `scratch` holds scratch_size(B + M) elements.
  void (*weight_gradient[2])(const MlpLossArgs&, int layer, int64_t begin, int64_t end, void* scratch);
  int64_t (*scratch_size[2])(int64_t rows);
  // Blocks of kGradientUnits units of layer l: its bias and, for the last layer, the output.
  void (*unit_gradient[2])(const MlpLossArgs&, int layer, int64_t begin, int64_t end);
};

DROCC_DECLARE_KERNELS(MlpLossRows, mlp_loss_kernels)

}  // namespace drocc::cpu
