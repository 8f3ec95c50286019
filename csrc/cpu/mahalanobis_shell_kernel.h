// Row kernels of the Mahalanobis shell operators, per element type and instruction set.
#pragma once

#include <cstdint>

#include "../row_args.h"
#include "isa.h"

namespace drocc::cpu {

// These return false, with nothing written beyond complete rows, when memory for the scratch rows runs out.
using MahalanobisRowsFn = bool (*)(const MahalanobisRowsArgs&, int64_t begin, int64_t end);
using MahalanobisBackwardFn = bool (*)(const MahalanobisBackwardArgs&, int64_t begin, int64_t end);

// Indexed by Dtype.
struct MahalanobisShellRows {
  MahalanobisRowsFn project[4];
  MahalanobisRowsFn step[4];
  MahalanobisRowsFn norm[4];
  MahalanobisBackwardFn project_backward[4];
  MahalanobisBackwardFn step_backward[4];
  MahalanobisBackwardFn norm_backward[4];
};

DROCC_DECLARE_KERNELS(MahalanobisShellRows, mahalanobis_shell_kernels)

}  // namespace drocc::cpu
