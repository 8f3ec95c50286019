// Row kernels of the Mahalanobis shell operators, per element type and instruction set. Rows are dense.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

struct MahalanobisRowsArgs {
  const void* h;         // [B, D]
  const void* grad;      // [B, D] or null
  const void* sigma;     // [B, D], or [D] with sigma_stride 0
  int64_t sigma_stride;  // elements from one row's sigma to the next
  void* out;             // [B, D], may be h; [B] in the compute type for the norm
  int64_t length;        // D
  double step_size;
  double radius;
  const void* radius_rows;  // [B] in the compute type, or null: radius for every row
  double gamma;
  int64_t grid_points;  // 0: the exact solver
};

struct MahalanobisBackwardArgs {
  MahalanobisRowsArgs forward;  // out is not used
  const void* upstream;         // [B, D]; [B] in the compute type for the norm
  void* grad_h;                 // [B, D]
  void* grad_grad;              // [B, D] or null
  void* grad_sigma;             // [B, D] in the compute type, also where sigma is shared
  void* grad_radius;            // [B] in the compute type; null for the norm
};

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

DROCC_DECLARE_ROWS(MahalanobisShellRows, mahalanobis_shell_rows)

}  // namespace drocc::cpu
