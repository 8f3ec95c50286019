// How the search in networks of several layers is shared out: one choice, made on the host. No CUDA include, like
// launch.h.
//
// A block takes a few rows through all steps. Where all weights fit into its shared memory beside what the rows need,
// they are copied there once. Else they are read from the caches, each once for all rows of a block, forward from a
// transposed copy in device memory. Rows that do not fit either lie in device memory, for so many blocks at a time as
// fill the device.
#pragma once

#include "../mlp.h"
#include "launch.h"

namespace drocc::cuda {

// Columns of a product that a thread sums, for all rows of its block at once.
constexpr int kMlpColumns = 2;
// Rows of a block: few, or as many as registers allow.
constexpr int kFewMlpRows = 2, kMostMlpRows = 8;
constexpr int many_mlp_rows(int compute, bool with_sigma) {
  return compute == 4 ? kMostMlpRows : with_sigma ? kFewMlpRows : 4;
}
// Scales of the layers' weights and what else a block must remember, ahead of everything else.
constexpr int kMlpControlBytes = 128;

struct MlpLaunch {
  Launch launch;       // rows_per_block is the number of rows that a block takes
  bool weights_held;   // in shared memory
  int stride;          // elements from one row's vector to the next
  int mask_words;      // of a row and layer: a bit for each unit
  int partial_bytes;   // of the products' sums
  int64_t rows_bytes;  // of all rows of a block
};

// Elements of a held matrix from one of its rows to the next: odd, so that neither reading along nor across conflicts.
constexpr int64_t held_stride(int64_t columns) {
  return columns | 1;
}

inline int64_t held_weights(int layers, const int64_t* widths) {
  int64_t total = 0;
  for (int l = 0; l < layers; ++l) total += widths[l + 1] * held_stride(widths[l]);
  return total;
}

// Tiles of 32 x 32 weights that are transposed by a block each.
constexpr int kTransposeThreads = 256;
constexpr int64_t transposed_tiles(int64_t units, int64_t inputs) {
  return ceil_div(units, 32) * ceil_div(inputs, 32);
}
constexpr int transpose_bytes(int compute) {
  return 32 * 33 * compute;
}

inline MlpLaunch choose_mlp_launch(const Device& device, int64_t batch, int layers, const int64_t* widths, int compute,
                                   bool with_sigma) {
  int64_t longest = 0, most_units = 0;
  for (int l = 0; l <= layers; ++l) {
    longest = widths[l] > longest ? widths[l] : longest;
    if (l > 0 && widths[l] > most_units) most_units = widths[l];
  }
  const int64_t weights = held_weights(layers, widths) * compute;
  MlpLaunch chosen{};
  const auto fits = [&](int rows, bool hold_weights, bool hold_rows) {
    chosen.weights_held = hold_weights;
    chosen.stride = static_cast<int>(round_up(longest, 4));
    chosen.mask_words = static_cast<int>(ceil_div(most_units, 32));
    chosen.rows_bytes =
        round_up(int64_t{rows} * (3 * int64_t{chosen.stride} * compute + 4 * int64_t{layers} * chosen.mask_words), 16);
    Launch& launch = chosen.launch;
    launch = {Regime::kMedium, 0, rows, 1, static_cast<int>(longest), false, hold_rows, 4, 0};
    // Threads enough for the widest layer, and so many that 512 are resident.
    for (int threads = at_least(128, at_most(power_of_two(2 * longest), kMostSharedThreads));; threads *= 2) {
      chosen.partial_bytes = rows * threads * kMlpColumns * compute;
      const int64_t bytes = kMlpControlBytes + chosen.partial_bytes + (hold_rows ? chosen.rows_bytes : 0) +
                            (hold_weights ? round_up(weights, 16) : 0);
      if (bytes > device.shared_per_block - 2048) return false;
      launch.threads_per_row = threads / rows;
      launch.shared = static_cast<int>(bytes);
      const int64_t resident = device.shared_per_processor / (bytes + 3072);
      if (threads >= kMostSharedThreads || threads * resident >= kMostSharedThreads) return true;
    }
  };
  // Held weights serve few rows as fast as many, until there are more blocks than processors; from the caches they
  // come so slowly that more rows cost nothing.
  const int64_t processors = device.processors;
  const int many = many_mlp_rows(compute, with_sigma);
  if (batch > 6 * processors && fits(many, true, true)) return chosen;
  if (fits(kFewMlpRows, true, true)) return chosen;
  if (batch > 64 && fits(many, false, true)) return chosen;
  if (fits(kFewMlpRows, false, true)) return chosen;
  (void)fits(kFewMlpRows, false, false);
  return chosen;
}

}  // namespace drocc::cuda
