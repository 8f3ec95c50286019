// Row kernels of the l2 shell operators, per element type and instruction set. Rows are dense: D elements, no gaps.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

struct L2ShellRowsArgs {
  const void* h;     // [B, D]
  const void* grad;  // [B, D] or null
  void* out;         // [B, D], may be h
  int64_t length;    // D
  double step_size;
  double radius;
  const void* radius_rows;  // [B] in the compute type, or null: radius for every row
  double gamma;
};

struct L2ShellBackwardArgs {
  L2ShellRowsArgs forward;  // out is not used
  const void* upstream;     // [B, D]
  void* grad_h;             // [B, D] or null where it is the upstream gradient itself
  void* grad_grad;          // [B, D] or null
  void* grad_radius;        // [B] in the compute type, or null
};

using L2ShellRowsFn = void (*)(const L2ShellRowsArgs&, int64_t begin, int64_t end);
using L2ShellBackwardFn = void (*)(const L2ShellBackwardArgs&, int64_t begin, int64_t end);

// Indexed by Dtype.
struct L2ShellRows {
  L2ShellRowsFn normalized_ascent[4];
  L2ShellRowsFn project_l2_shell[4];
  L2ShellRowsFn l2_shell_step[4];
  L2ShellBackwardFn normalized_ascent_backward[4];
  L2ShellBackwardFn project_l2_shell_backward[4];
  L2ShellBackwardFn l2_shell_step_backward[4];
};

DROCC_DECLARE_ROWS(L2ShellRows, l2_shell_rows)

}  // namespace drocc::cpu
