// Ops point of the search in hidden space: checks and outputs, the same for every device. A Backend has
//   search(op, args, h), over all rows of h.
#pragma once

#include <optional>
#include <tuple>

#include "checks.h"
#include "row_args.h"

namespace drocc {

template <typename Backend>
struct HiddenSearchOps {
  static constexpr const char* kOp = "_hidden_search";

  static void check_matrix(const char* name, const Tensor& t, const Tensor& h, int64_t rows, int64_t columns) {
    if (t.dim() != 2 || t.size(0) != rows || t.size(1) != columns || !t.is_contiguous()) {
      fail(kOp, name, " must be contiguous of shape [", rows, ", ", columns, "], got ", describe_shape(t));
    }
    check_like_h_in_kind(kOp, name, t, h);
  }

  static std::tuple<Tensor, Tensor> search(const Tensor& h, const Tensor& u, const Tensor& clean, const Tensor& weight,
                                           const Tensor& gram, const Tensor& output, double step_size,
                                           int64_t num_steps, int64_t project_every, double radius,
                                           const std::optional<Tensor>& radius_rows, double gamma, bool project_last) {
    const L2ShellInputs inputs{
        .h = h, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma};
    check_l2_shell_inputs(kOp, inputs);
    if (h.scalar_type() != ScalarType::Float && h.scalar_type() != ScalarType::Double) {
      fail(kOp, "h must be float32 or float64");
    }
    if (num_steps < 0) fail(kOp, "num_steps must be >= 0, got ", num_steps);
    if (project_every < 1) fail(kOp, "project_every must be >= 1, got ", project_every);
    const int64_t hidden = output.numel();
    check_matrix("h", h, h, h.size(0), h.size(1));
    check_matrix("u", u, h, h.size(0), hidden);
    check_matrix("clean", clean, h, h.size(0), hidden);
    check_matrix("weight", weight, h, hidden, h.size(1));
    check_matrix("gram", gram, h, hidden, hidden);
    check_like_h_in_kind(kOp, "output", output, h);
    const std::optional<Tensor> radii = contiguous_radius_rows(inputs);
    const Tensor output_weights = torch::stable::contiguous(output);
    Tensor coefficients = torch::stable::empty_like(clean);
    Tensor scale = new_row_values(h);
    Tensor start = h, images = u;
    const HiddenSearchArgs args{start.mutable_data_ptr(),
                                images.mutable_data_ptr(),
                                clean.const_data_ptr(),
                                weight.const_data_ptr(),
                                gram.const_data_ptr(),
                                output_weights.const_data_ptr(),
                                coefficients.mutable_data_ptr(),
                                scale.mutable_data_ptr(),
                                h.size(0),
                                h.size(1),
                                hidden,
                                step_size,
                                num_steps,
                                project_every,
                                project_last,
                                radius,
                                radii.has_value() ? radii->const_data_ptr() : nullptr,
                                gamma};
    Backend::search(kOp, args, h);
    return {scale, coefficients};
  }
};

}  // namespace drocc
