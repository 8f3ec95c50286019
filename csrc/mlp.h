// A network f(x) = <output, act_L(W_L ... act_1(W_1 x + b_1) ... + b_L)> + const, as kernels see it. Torch-free.
#pragma once

#include <cstdint>

namespace drocc {

constexpr int kMostMlpLayers = 4;

struct MlpView {
  int num_layers;                      // L, 1 to kMostMlpLayers hidden layers
  int64_t widths[kMostMlpLayers + 1];  // D, H_1, ..., H_L
  // Layer l stands at index l - 1.
  const void* weight[kMostMlpLayers];     // W_l: row-major [H_l, H_(l-1)]
  const void* bias[kMostMlpLayers];       // [H_l], or null
  double negative_slope[kMostMlpLayers];  // of LeakyReLU; 0 for ReLU
  const void* output;                     // [H_L]
};

}  // namespace drocc
