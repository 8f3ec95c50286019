// Row and column kernels of the loss behind a hidden layer, per element type and instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

struct HiddenLogitsArgs {
  void* units;         // [B, H], then relu(units)
  const void* output;  // [H]
  void* logits;        // [B]
  double bias;
  int64_t hidden;  // H
};

struct HiddenGradientsArgs {
  const void* active[2];  // [B, H] and [M, H]
  void* units[2];         // likewise
  const void* slopes[2];  // [B] and [M]
  double weights[2];
  int64_t rows[2];         // B and M
  const void* output;      // [H]
  void* units_bias;        // [H]
  void* output_gradients;  // [H]
  int64_t hidden;          // H
};

// For float and double.
struct HiddenLossRows {
  void (*logits[2])(const HiddenLogitsArgs&, int64_t begin, int64_t end);        // rows
  void (*gradients[2])(const HiddenGradientsArgs&, int64_t begin, int64_t end);  // blocks of columns
};

// Columns per block: what their sums take stays in registers and in the first-level cache.
constexpr int64_t kColumns = 64;

DROCC_DECLARE_KERNELS(HiddenLossRows, hidden_loss_kernels)

}  // namespace drocc::cpu
