// Ops points of the Mahalanobis shell operators: checks, layouts, outputs; the same for every device. A Backend has
//   forward<kAscent>, backward<kAscent>, norm and norm_backward, (op, args, h) each, over all rows of h.
#pragma once

#include <tuple>

#include "checks.h"
#include "row_args.h"

namespace drocc {

using OptionalRows = std::optional<Tensor>;

// Arguments of one call with the tensors' memory filled in; keeps copies alive.
struct MahalanobisCall {
  MahalanobisRowsArgs args{};
  OptionalRows radius_rows;
  Tensor h, grad, sigma;

  // `rows`: h, dense, in the layout of the output.
  MahalanobisCall(const MahalanobisShellInputs& inputs, const Tensor& rows, bool in_place)
      : h(rows), grad(rows), sigma(rows) {
    args.batch = rows.size(0);
    args.length = row_length(rows);
    args.step_size = inputs.shell.step_size;
    args.radius = inputs.shell.radius;
    args.gamma = inputs.shell.gamma;
    args.grid_points = inputs.grid_points;
    radius_rows = contiguous_radius_rows(inputs.shell);
    if (radius_rows.has_value()) args.radius_rows = radius_rows->const_data_ptr();
    args.h = h.const_data_ptr();
    if (inputs.shell.grad != nullptr) {
      grad = in_layout_of(*inputs.shell.grad, rows);
      args.grad = grad.const_data_ptr();
    }
    const SigmaRows laid_out = sigma_rows(inputs.sigma, rows, in_place);
    sigma = laid_out.sigma;
    args.sigma = sigma.const_data_ptr();
    args.sigma_stride = laid_out.stride;
  }
};

// Of the shape of contiguous rows, in the compute type: gradients of sigma are still to be summed where it is shared.
inline Tensor new_wide(const Tensor& rows) {
  return torch::stable::new_empty(rows, {rows.size(0), row_length(rows)}, compute_type(rows));
}

template <typename Backend>
struct MahalanobisShellOps {
  template <bool kAscent>
  static Tensor forward(const char* op, const MahalanobisShellInputs& inputs) {
    check_mahalanobis_shell_inputs(op, inputs);
    const Tensor& h = inputs.shell.h;
    Tensor out = torch::stable::empty_like(h);
    with_row_dense(out, [&](Tensor& rows) {
      MahalanobisCall call(inputs, in_layout_of(h, rows), false);
      call.args.out = rows.mutable_data_ptr();
      Backend::template forward<kAscent>(op, call.args, rows);
    });
    return out;
  }

  template <bool kAscent>
  static void forward_in_place(const char* op, const MahalanobisShellInputs& inputs) {
    check_mahalanobis_shell_inputs(op, inputs);
    check_in_place(op, inputs.shell.h, inputs.shell.grad);
    Tensor target = inputs.shell.h;
    with_row_dense(target, [&](Tensor& rows) {
      MahalanobisCall call(inputs, rows, true);
      call.args.out = rows.mutable_data_ptr();
      Backend::template forward<kAscent>(op, call.args, rows);
    });
  }

  struct Gradients {
    Tensor h, grad, sigma, radius;
  };

  template <bool kAscent>
  static Gradients backward(const char* op, const MahalanobisShellInputs& inputs, const Tensor& upstream) {
    check_mahalanobis_shell_inputs(op, inputs);
    check_like_h(op, "grad_out", upstream, inputs.shell.h);
    const Tensor h = torch::stable::contiguous(inputs.shell.h);
    const Tensor g = torch::stable::contiguous(upstream);
    MahalanobisCall call(inputs, h, false);
    Gradients result{torch::stable::empty_like(h), h, new_wide(h), new_row_values(h)};
    MahalanobisBackwardArgs args{call.args,
                                 g.const_data_ptr(),
                                 result.h.mutable_data_ptr(),
                                 nullptr,
                                 result.sigma.mutable_data_ptr(),
                                 result.radius.mutable_data_ptr()};
    if (inputs.shell.grad != nullptr) {
      result.grad = torch::stable::empty_like(h);
      args.grad_grad = result.grad.mutable_data_ptr();
    }
    Backend::template backward<kAscent>(op, args, h);
    return result;
  }

  static MahalanobisShellInputs norm_inputs(const Tensor& h, const Tensor& sigma) {
    return {.shell = {.h = h}, .sigma = sigma};
  }

  static Tensor norm(const Tensor& h, const Tensor& sigma) {
    const char* op = "mahalanobis_norm";
    const MahalanobisShellInputs inputs = norm_inputs(h, sigma);
    check_mahalanobis_shell_inputs(op, inputs);
    Tensor out = new_row_values(h);
    MahalanobisCall call(inputs, is_row_dense(h) ? h : torch::stable::contiguous(h), false);
    call.args.out = out.mutable_data_ptr();
    Backend::norm(op, call.args, h);
    return out;
  }

  static std::tuple<Tensor, Tensor> norm_backward(const Tensor& grad_out, const Tensor& h, const Tensor& sigma) {
    const char* op = "_mahalanobis_norm_backward";
    const MahalanobisShellInputs inputs = norm_inputs(h, sigma);
    check_mahalanobis_shell_inputs(op, inputs);
    if (grad_out.dim() != 1 || grad_out.size(0) != h.size(0) || grad_out.scalar_type() != compute_type(h)) {
      fail(op, "grad_out must have shape [", h.size(0), "] and the dtype of the norm");
    }
    const Tensor rows = torch::stable::contiguous(h);
    const Tensor g = torch::stable::contiguous(grad_out);
    Tensor grad_h = torch::stable::empty_like(rows);
    Tensor grad_sigma = new_wide(rows);
    MahalanobisCall call(inputs, rows, false);
    const MahalanobisBackwardArgs args{
        call.args, g.const_data_ptr(), grad_h.mutable_data_ptr(), nullptr, grad_sigma.mutable_data_ptr(), nullptr};
    Backend::norm_backward(op, args, h);
    return {grad_h, grad_sigma};
  }

  static Tensor project(const Tensor& h, const Tensor& sigma, double radius, const OptionalRows& radius_rows,
                        double gamma, int64_t grid_points) {
    return forward<false>("project_mahalanobis_shell",
                          {.shell = {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
                           .sigma = sigma,
                           .grid_points = grid_points});
  }

  static void project_inplace(const Tensor& h, const Tensor& sigma, double radius, const OptionalRows& radius_rows,
                              double gamma, int64_t grid_points) {
    forward_in_place<false>("project_mahalanobis_shell_",
                            {.shell = {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
                             .sigma = sigma,
                             .grid_points = grid_points});
  }

  static std::tuple<Tensor, Tensor, Tensor> project_backward(const Tensor& grad_out, const Tensor& h,
                                                             const Tensor& sigma, double radius,
                                                             const OptionalRows& radius_rows, double gamma,
                                                             int64_t grid_points) {
    const Gradients result =
        backward<false>("_project_mahalanobis_shell_backward",
                        {.shell = {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
                         .sigma = sigma,
                         .grid_points = grid_points},
                        grad_out);
    return {result.h, result.sigma, result.radius};
  }

  static MahalanobisShellInputs step_inputs(const Tensor& h, const Tensor& grad, const Tensor& sigma, double step_size,
                                            double radius, const OptionalRows& radius_rows, double gamma,
                                            int64_t grid_points) {
    return {.shell = {.h = h,
                      .grad = &grad,
                      .step_size = step_size,
                      .radius = radius,
                      .radius_rows = &radius_rows,
                      .gamma = gamma},
            .sigma = sigma,
            .grid_points = grid_points};
  }

  static Tensor step(const Tensor& h, const Tensor& grad, const Tensor& sigma, double step_size, double radius,
                     const OptionalRows& radius_rows, double gamma, int64_t grid_points) {
    return forward<true>("mahalanobis_shell_step",
                         step_inputs(h, grad, sigma, step_size, radius, radius_rows, gamma, grid_points));
  }

  static void step_inplace(const Tensor& h, const Tensor& grad, const Tensor& sigma, double step_size, double radius,
                           const OptionalRows& radius_rows, double gamma, int64_t grid_points) {
    forward_in_place<true>("mahalanobis_shell_step_",
                           step_inputs(h, grad, sigma, step_size, radius, radius_rows, gamma, grid_points));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> step_backward(const Tensor& grad_out, const Tensor& h,
                                                                  const Tensor& grad, const Tensor& sigma,
                                                                  double step_size, double radius,
                                                                  const OptionalRows& radius_rows, double gamma,
                                                                  int64_t grid_points) {
    const Gradients result =
        backward<true>("_mahalanobis_shell_step_backward",
                       step_inputs(h, grad, sigma, step_size, radius, radius_rows, gamma, grid_points), grad_out);
    return {result.h, result.grad, result.sigma, result.radius};
  }
};

}  // namespace drocc

// Inside STABLE_TORCH_LIBRARY_IMPL(drocc, ..., m).
#define DROCC_IMPL_MAHALANOBIS_SHELL(m, Ops)                                        \
  m.impl("mahalanobis_norm", TORCH_BOX(&Ops::norm));                                \
  m.impl("_mahalanobis_norm_backward", TORCH_BOX(&Ops::norm_backward));             \
  m.impl("project_mahalanobis_shell", TORCH_BOX(&Ops::project));                    \
  m.impl("project_mahalanobis_shell_", TORCH_BOX(&Ops::project_inplace));           \
  m.impl("_project_mahalanobis_shell_backward", TORCH_BOX(&Ops::project_backward)); \
  m.impl("mahalanobis_shell_step", TORCH_BOX(&Ops::step));                          \
  m.impl("mahalanobis_shell_step_", TORCH_BOX(&Ops::step_inplace));                 \
  m.impl("_mahalanobis_shell_step_backward", TORCH_BOX(&Ops::step_backward));
