// What row kernels are given, on every device. Rows are dense: D elements, no gaps. Torch-free.
#pragma once

#include <cstdint>

namespace drocc {

struct L2ShellRowsArgs {
  const void* h;     // [B, D]
  const void* grad;  // [B, D] or null
  void* out;         // [B, D], may be h
  int64_t batch;     // B
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

struct MahalanobisRowsArgs {
  const void* h;         // [B, D]
  const void* grad;      // [B, D] or null
  const void* sigma;     // [B, D], or [D] with sigma_stride 0
  int64_t sigma_stride;  // elements from one row's sigma to the next
  void* out;             // [B, D], may be h; [B] in the compute type for the norm
  int64_t batch;         // B
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

struct InfluenceRowsArgs {
  const void* grad;      // [B, D]
  const void* upstream;  // [B, D], backward only
  void* out;             // [B, D]
  int64_t batch;         // B
  int64_t length;        // D
};

struct HiddenSearchArgs {
  void* h;             // [B, D]: where the search starts; rows that need it are brought up to date
  void* u;             // [B, H]: W h; then W C (h + W^T p), where the search ends
  const void* clean;   // [B, H]: W x + b
  const void* weight;  // [H, D]
  const void* gram;    // [H, H]: W W^T
  const void* output;  // [H]: weights of the logit
  void* coefficients;  // [B, H]: p
  void* scale;         // [B]: C, so that C (h + W^T p) is where the search ends
  int64_t batch;       // B
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

struct NearestArgs {
  const void* points;  // [B, D]
  const void* rows;    // [N, D]
  void* distance;      // [B] in the compute type
  int64_t* index;      // [B]
  int64_t batch;       // B
  int64_t rows_count;  // N
  int64_t length;      // D
};

}  // namespace drocc
