// CPU entry points of the Mahalanobis shell operators.
#include "../mahalanobis_shell.h"

#include <atomic>
#include <tuple>

#include "dispatch.h"
#include "mahalanobis_shell_rows.h"

namespace drocc::cpu {
namespace {

using OptionalRows = std::optional<Tensor>;

// A row takes some ten passes with divisions, so fewer elements make a task than the one-pass operators need.
constexpr int64_t kWorkPerElement = 8;

template <typename Fn, typename Args>
void run(const char* op, Fn fn, const Args& args, int64_t batch, int64_t length) {
  std::atomic<bool> ok{true};
  const auto rows = [&](const Args& a, int64_t begin, int64_t end) {
    if (!fn(a, begin, end)) ok = false;
  };
  run_rows(rows, args, batch, length * kWorkPerElement);
  if (!ok) fail(op, "no memory for scratch rows of ", length, " elements");
}

// Arguments of one call with the tensors' memory filled in; keeps copies alive.
struct Call {
  MahalanobisRowsArgs args{};
  OptionalRows radius_rows;
  Tensor h, grad, sigma;

  // `rows`: h, dense, in the layout of the output.
  Call(const MahalanobisShellInputs& inputs, const Tensor& rows, bool in_place) : h(rows), grad(rows), sigma(rows) {
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

Tensor forward(const char* op, const MahalanobisRowsFn (&fns)[4], const MahalanobisShellInputs& inputs) {
  check_mahalanobis_shell_inputs(op, inputs);
  const Tensor& h = inputs.shell.h;
  Tensor out = torch::stable::empty_like(h);
  with_row_dense(out, [&](Tensor& rows) {
    Call call(inputs, in_layout_of(h, rows), false);
    call.args.out = rows.mutable_data_ptr();
    run(op, fns[dtype_index(h)], call.args, h.size(0), call.args.length);
  });
  return out;
}

void forward_in_place(const char* op, const MahalanobisRowsFn (&fns)[4], const MahalanobisShellInputs& inputs) {
  check_mahalanobis_shell_inputs(op, inputs);
  check_in_place(op, inputs.shell.h, inputs.shell.grad);
  Tensor target = inputs.shell.h;
  with_row_dense(target, [&](Tensor& rows) {
    Call call(inputs, rows, true);
    call.args.out = rows.mutable_data_ptr();
    run(op, fns[dtype_index(rows)], call.args, rows.size(0), call.args.length);
  });
}

// Of the shape of contiguous rows, in the compute type: gradients of sigma are still to be summed where it is shared.
Tensor new_wide(const Tensor& rows) {
  return torch::stable::new_empty(rows, {rows.size(0), row_length(rows)}, compute_type(rows));
}

struct Gradients {
  Tensor h, grad, sigma, radius;
};

Gradients backward(const char* op, const MahalanobisBackwardFn (&fns)[4], const MahalanobisShellInputs& inputs,
                   const Tensor& upstream) {
  check_mahalanobis_shell_inputs(op, inputs);
  check_like_h(op, "grad_out", upstream, inputs.shell.h);
  const Tensor h = torch::stable::contiguous(inputs.shell.h);
  const Tensor g = torch::stable::contiguous(upstream);
  Call call(inputs, h, false);
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
  run(op, fns[dtype_index(h)], args, h.size(0), call.args.length);
  return result;
}

MahalanobisShellInputs norm_inputs(const Tensor& h, const Tensor& sigma) {
  return {.shell = {.h = h}, .sigma = sigma};
}

Tensor norm_cpu(const Tensor& h, const Tensor& sigma) {
  const char* op = "mahalanobis_norm";
  const MahalanobisShellInputs inputs = norm_inputs(h, sigma);
  check_mahalanobis_shell_inputs(op, inputs);
  Tensor out = new_row_values(h);
  Call call(inputs, is_row_dense(h) ? h : torch::stable::contiguous(h), false);
  call.args.out = out.mutable_data_ptr();
  run(op, DROCC_SELECT_ROWS(mahalanobis_shell_rows).norm[dtype_index(h)], call.args, h.size(0), call.args.length);
  return out;
}

std::tuple<Tensor, Tensor> norm_backward_cpu(const Tensor& grad_out, const Tensor& h, const Tensor& sigma) {
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
  Call call(inputs, rows, false);
  const MahalanobisBackwardArgs args{
      call.args, g.const_data_ptr(), grad_h.mutable_data_ptr(), nullptr, grad_sigma.mutable_data_ptr(), nullptr};
  run(op, DROCC_SELECT_ROWS(mahalanobis_shell_rows).norm_backward[dtype_index(h)], args, h.size(0), call.args.length);
  return {grad_h, grad_sigma};
}

Tensor project_cpu(const Tensor& h, const Tensor& sigma, double radius, const OptionalRows& radius_rows, double gamma,
                   int64_t grid_points) {
  return forward("project_mahalanobis_shell", DROCC_SELECT_ROWS(mahalanobis_shell_rows).project,
                 {.shell = {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
                  .sigma = sigma,
                  .grid_points = grid_points});
}

void project_inplace_cpu(const Tensor& h, const Tensor& sigma, double radius, const OptionalRows& radius_rows,
                         double gamma, int64_t grid_points) {
  forward_in_place("project_mahalanobis_shell_", DROCC_SELECT_ROWS(mahalanobis_shell_rows).project,
                   {.shell = {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
                    .sigma = sigma,
                    .grid_points = grid_points});
}

std::tuple<Tensor, Tensor, Tensor> project_backward_cpu(const Tensor& grad_out, const Tensor& h, const Tensor& sigma,
                                                        double radius, const OptionalRows& radius_rows, double gamma,
                                                        int64_t grid_points) {
  const Gradients result =
      backward("_project_mahalanobis_shell_backward", DROCC_SELECT_ROWS(mahalanobis_shell_rows).project_backward,
               {.shell = {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
                .sigma = sigma,
                .grid_points = grid_points},
               grad_out);
  return {result.h, result.sigma, result.radius};
}

MahalanobisShellInputs step_inputs(const Tensor& h, const Tensor& grad, const Tensor& sigma, double step_size,
                                   double radius, const OptionalRows& radius_rows, double gamma, int64_t grid_points) {
  return {.shell = {.h = h,
                    .grad = &grad,
                    .step_size = step_size,
                    .radius = radius,
                    .radius_rows = &radius_rows,
                    .gamma = gamma},
          .sigma = sigma,
          .grid_points = grid_points};
}

Tensor step_cpu(const Tensor& h, const Tensor& grad, const Tensor& sigma, double step_size, double radius,
                const OptionalRows& radius_rows, double gamma, int64_t grid_points) {
  return forward("mahalanobis_shell_step", DROCC_SELECT_ROWS(mahalanobis_shell_rows).step,
                 step_inputs(h, grad, sigma, step_size, radius, radius_rows, gamma, grid_points));
}

void step_inplace_cpu(const Tensor& h, const Tensor& grad, const Tensor& sigma, double step_size, double radius,
                      const OptionalRows& radius_rows, double gamma, int64_t grid_points) {
  forward_in_place("mahalanobis_shell_step_", DROCC_SELECT_ROWS(mahalanobis_shell_rows).step,
                   step_inputs(h, grad, sigma, step_size, radius, radius_rows, gamma, grid_points));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> step_backward_cpu(const Tensor& grad_out, const Tensor& h,
                                                             const Tensor& grad, const Tensor& sigma, double step_size,
                                                             double radius, const OptionalRows& radius_rows,
                                                             double gamma, int64_t grid_points) {
  const Gradients result =
      backward("_mahalanobis_shell_step_backward", DROCC_SELECT_ROWS(mahalanobis_shell_rows).step_backward,
               step_inputs(h, grad, sigma, step_size, radius, radius_rows, gamma, grid_points), grad_out);
  return {result.h, result.grad, result.sigma, result.radius};
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("mahalanobis_norm", TORCH_BOX(&drocc::cpu::norm_cpu));
  m.impl("_mahalanobis_norm_backward", TORCH_BOX(&drocc::cpu::norm_backward_cpu));
  m.impl("project_mahalanobis_shell", TORCH_BOX(&drocc::cpu::project_cpu));
  m.impl("project_mahalanobis_shell_", TORCH_BOX(&drocc::cpu::project_inplace_cpu));
  m.impl("_project_mahalanobis_shell_backward", TORCH_BOX(&drocc::cpu::project_backward_cpu));
  m.impl("mahalanobis_shell_step", TORCH_BOX(&drocc::cpu::step_cpu));
  m.impl("mahalanobis_shell_step_", TORCH_BOX(&drocc::cpu::step_inplace_cpu));
  m.impl("_mahalanobis_shell_step_backward", TORCH_BOX(&drocc::cpu::step_backward_cpu));
}
