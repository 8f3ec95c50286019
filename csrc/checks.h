// Input checks that the operators' entry points share, whatever the device.
#pragma once

#include <optional>

#include "row_layout.h"

namespace drocc {

// What an operator of this family takes; the members an operator lacks keep their defaults, which pass every check.
struct L2ShellInputs {
  const Tensor& h;
  const Tensor* grad = nullptr;
  double step_size = 0.0;
  double radius = 1.0;
  const std::optional<Tensor>* radius_rows = nullptr;
  double gamma = 1.0;
};

void check_l2_shell_inputs(const char* op, const L2ShellInputs& inputs);

// `other` must match h in shape, dtype and device.
void check_like_h(const char* op, const char* argument, const Tensor& other, const Tensor& h);

// ... or only in dtype and device.
void check_like_h_in_kind(const char* op, const char* argument, const Tensor& other, const Tensor& h);

// Whether the memory two tensors span overlaps.
bool share_memory(const Tensor& a, const Tensor& b);

// The radii of rows, if there are any, without gaps; copied where they are a view of h, which an in-place call changes.
std::optional<Tensor> contiguous_radius_rows(const L2ShellInputs& inputs);

// h must be writable in place: no two positions in one place, no partial overlap with the gradient.
void check_in_place(const char* op, const Tensor& h, const Tensor* grad);

void check_influence_inputs(const char* op, const Tensor& grad);

// What an operator of this family takes: l2's, a sigma, and the grid.
struct MahalanobisShellInputs {
  L2ShellInputs shell;
  const Tensor& sigma;
  int64_t grid_points = 0;
};

void check_mahalanobis_shell_inputs(const char* op, const MahalanobisShellInputs& inputs);

// Whether all rows of h share one sigma, of the shape of a row.
bool is_shared_sigma(const Tensor& sigma, const Tensor& h);

// sigma as rows: laid out like `rows` (which has the shape of h); one row where it is shared and `rows` is contiguous.
// A sigma in memory that is about to be overwritten is copied.
struct SigmaRows {
  Tensor sigma;
  int64_t stride;  // elements from one row to the next
};
SigmaRows sigma_rows(const Tensor& sigma, const Tensor& rows, bool overwritten);

}  // namespace drocc
