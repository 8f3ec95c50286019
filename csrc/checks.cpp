#include "checks.h"

#include <cmath>

namespace drocc {
namespace {

bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

}  // namespace

void check_like_h(const char* op, const char* argument, const Tensor& other, const Tensor& h) {
  if (!same_shape(other, h)) {
    fail(op, argument, " must have the shape of h, ", describe_shape(h), ", got ", describe_shape(other));
  }
  check_like_h_in_kind(op, argument, other, h);
}

void check_like_h_in_kind(const char* op, const char* argument, const Tensor& other, const Tensor& h) {
  if (other.scalar_type() != h.scalar_type()) fail(op, argument, " must have the dtype of h");
  if (!same_device(other, h)) fail(op, argument, " must be on the device of h");
}

void check_l2_shell_inputs(const char* op, const L2ShellInputs& inputs) {
  const Tensor& h = inputs.h;
  if (h.dim() < 2) fail(op, "h must have a batch and at least one feature dimension, got shape ", describe_shape(h));
  if (h.size(0) > 0 && row_length(h) == 0) fail(op, "h must have at least one feature, got ", describe_shape(h));
  if (!is_floating(h.scalar_type())) fail(op, "h must be float32, float64, float16 or bfloat16");
  if (inputs.grad != nullptr) check_like_h(op, "grad", *inputs.grad, h);
  if (!std::isfinite(inputs.step_size)) fail(op, "step_size must be finite, got ", inputs.step_size);
  if (!(inputs.gamma >= 1.0)) fail(op, "gamma must be >= 1, got ", inputs.gamma);
  if (inputs.radius_rows != nullptr && inputs.radius_rows->has_value()) {
    const Tensor& rows = inputs.radius_rows->value();
    if (rows.dim() != 1 || rows.size(0) != h.size(0)) {
      fail(op, "radius must be a number or have shape [", h.size(0), "], got ", describe_shape(rows));
    }
    if (rows.scalar_type() != compute_type(h)) fail(op, "radius rows must be float32 (float64 for a float64 h)");
    if (!same_device(rows, h)) fail(op, "radius must be on the device of h");
  } else if (!(inputs.radius > 0.0) || !std::isfinite(inputs.radius)) {
    fail(op, "radius must be > 0 and finite, got ", inputs.radius);
  }
}

bool share_memory(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto begin = [](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return begin(t) + (last + 1) * static_cast<int64_t>(t.element_size());
  };
  return begin(a) < end(b) && begin(b) < end(a);
}

std::optional<Tensor> contiguous_radius_rows(const L2ShellInputs& inputs) {
  if (inputs.radius_rows == nullptr || !inputs.radius_rows->has_value()) return std::nullopt;
  const Tensor& given = inputs.radius_rows->value();
  return torch::stable::contiguous(share_memory(given, inputs.h) ? torch::stable::clone(given) : given);
}

void check_in_place(const char* op, const Tensor& h, const Tensor* grad) {
  if (is_expanded(h)) fail(op, "h must not be an expanded tensor: several of its elements share memory");
  if (grad == nullptr || h.numel() == 0 || h.const_data_ptr() == grad->const_data_ptr()) return;
  // Rows with gaps, and a gradient in another layout, are copied before h is written.
  if (share_memory(h, *grad) && is_row_dense(h) && same_strides(h, *grad)) {
    fail(op, "h and grad must not partly share memory");
  }
}

void check_influence_inputs(const char* op, const Tensor& grad) {
  if (grad.dim() < 2) {
    fail(op, "grad must have a batch and at least one feature dimension, got shape ", describe_shape(grad));
  }
  if (grad.size(0) > 0 && row_length(grad) == 0) {
    fail(op, "grad must have at least one feature, got ", describe_shape(grad));
  }
  if (!is_floating(grad.scalar_type())) fail(op, "grad must be float32, float64, float16 or bfloat16");
}

bool is_shared_sigma(const Tensor& sigma, const Tensor& h) {
  if (sigma.dim() != h.dim() - 1) return false;
  for (int64_t d = 0; d < sigma.dim(); ++d) {
    if (sigma.size(d) != h.size(d + 1)) return false;
  }
  return true;
}

void check_mahalanobis_shell_inputs(const char* op, const MahalanobisShellInputs& inputs) {
  check_l2_shell_inputs(op, inputs.shell);
  const Tensor& h = inputs.shell.h;
  const Tensor& sigma = inputs.sigma;
  if (!same_shape(sigma, h) && !is_shared_sigma(sigma, h)) {
    fail(op, "sigma must have the shape of h, ", describe_shape(h), ", or of one row of it, got ",
         describe_shape(sigma));
  }
  check_like_h_in_kind(op, "sigma", sigma, h);
  if (inputs.grid_points != 0 && inputs.grid_points < 2) {
    fail(op, "grid_points must be >= 2, or 0 for the exact solver, got ", inputs.grid_points);
  }
}

SigmaRows sigma_rows(const Tensor& sigma, const Tensor& rows, bool overwritten) {
  const bool shared = is_shared_sigma(sigma, rows);
  if (shared && rows.is_contiguous()) {
    const Tensor one = torch::stable::contiguous(sigma);
    return {overwritten && share_memory(one, rows) ? torch::stable::clone(one) : one, 0};
  }
  if (!shared && same_strides(sigma, rows) && !(overwritten && share_memory(sigma, rows))) {
    return {sigma, row_length(rows)};
  }
  Tensor copy = torch::stable::empty_like(rows);
  torch::stable::copy_(copy, sigma);  // repeats a shared one
  return {copy, row_length(rows)};
}

}  // namespace drocc
