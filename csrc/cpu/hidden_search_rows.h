// Row kernels of the search in hidden space, per element type and instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

struct HiddenSearchArgs {
  void* h;             // [B, D]: where the search starts; rows that need it are brought up to date
  void* u;             // [B, H]: W h; then W C (h + W^T p), where the search ends
  const void* clean;   // [B, H]: W x + b
  const void* weight;  // [H, D]
  const void* gram;    // [H, H]: W W^T
  const void* output;  // [H]: weights of the logit
  void* coefficients;  // [B, H]: p
  void* scale;         // [B]: C, so that C (h + W^T p) is where the search ends
  int64_t length;      // D
  int64_t hidden;      // H
  double step_size;
  int64_t num_steps;
  int64_t project_every;
  bool project_last;
  double radius;
  const void* radius_rows;  // [B] in the compute type, or null: radius for every row
  double gamma;
};

// False when memory for scratch runs out.
using HiddenSearchFn = bool (*)(const HiddenSearchArgs&, int64_t begin, int64_t end);

// For float and double.
struct HiddenSearchRows {
  HiddenSearchFn search[2];
};

DROCC_DECLARE_ROWS(HiddenSearchRows, hidden_search_rows)

}  // namespace drocc::cpu
