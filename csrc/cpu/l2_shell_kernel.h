// Row kernels of the l2 shell operators, per element type and instruction set.
#pragma once

#include <cstdint>

#include "../row_args.h"
#include "isa.h"

namespace drocc::cpu {

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

DROCC_DECLARE_KERNELS(L2ShellRows, l2_shell_kernels)

}  // namespace drocc::cpu
