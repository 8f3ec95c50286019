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

struct MlpSearchArgs {
  MlpView network;
  void* h;               // [B, D]: where the search starts, then where it ends
  const void* x;         // [B, D]
  const void* sigma;     // [B, D], or [D] with sigma_stride 0; null: the l2 shell
  int64_t sigma_stride;  // elements from one row's sigma to the next
  void* clean;           // [B, H_1]: W_1 x + b_1
  void* adv;             // [B, H_1]: W_1 (x + h) + b_1 at the end
  int64_t batch;         // B
  double step_size;
  int64_t num_steps;
  int64_t project_every;
  bool project_last;
  double radius;
  const void* radius_rows;  // [B] in the compute type, or null: radius for every row
  double gamma;
  int64_t grid_points;  // 0: the exact solver; with sigma
};

}  // namespace drocc
