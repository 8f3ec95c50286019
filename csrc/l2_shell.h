// Input checks of the l2 shell operators, shared by every device's entry points.
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

}  // namespace drocc
