// CPU entry points of the l2 shell operators.
#include "../l2_shell.h"

#include <tuple>

#include "dispatch.h"
#include "l2_shell_rows.h"

namespace drocc::cpu {
namespace {

using OptionalRows = std::optional<Tensor>;

// Arguments of one call with the tensors' memory filled in; keeps the contiguous copy of radius_rows alive.
struct Call {
  L2ShellRowsArgs args{};
  OptionalRows rows;

  explicit Call(const L2ShellInputs& inputs) {
    args.length = row_length(inputs.h);
    args.step_size = inputs.step_size;
    args.radius = inputs.radius;
    args.gamma = inputs.gamma;
    rows = contiguous_radius_rows(inputs);
    if (rows.has_value()) args.radius_rows = rows->const_data_ptr();
  }
};

void forward_into(L2ShellRowsFn fn, const L2ShellInputs& inputs, Tensor& out) {
  Call call(inputs);
  with_row_dense(out, [&](Tensor& rows) {
    const Tensor h = in_layout_of(inputs.h, rows);
    const Tensor grad = inputs.grad != nullptr ? in_layout_of(*inputs.grad, rows) : h;
    call.args.h = h.const_data_ptr();
    call.args.grad = inputs.grad != nullptr ? grad.const_data_ptr() : nullptr;
    call.args.out = rows.mutable_data_ptr();
    run_rows(fn, call.args, h.size(0), call.args.length);
  });
}

Tensor forward(const char* op, const L2ShellRowsFn (&fns)[4], const L2ShellInputs& inputs) {
  check_l2_shell_inputs(op, inputs);
  Tensor out = torch::stable::empty_like(inputs.h);
  forward_into(fns[dtype_index(inputs.h)], inputs, out);
  return out;
}

void forward_in_place(const char* op, const L2ShellRowsFn (&fns)[4], const L2ShellInputs& inputs) {
  check_l2_shell_inputs(op, inputs);
  check_in_place(op, inputs.h, inputs.grad);
  Call call(inputs);
  Tensor target = inputs.h;
  const L2ShellRowsFn fn = fns[dtype_index(target)];
  with_row_dense(target, [&](Tensor& rows) {
    const Tensor grad = inputs.grad != nullptr ? in_layout_of(*inputs.grad, rows) : rows;
    call.args.h = rows.const_data_ptr();
    call.args.grad = inputs.grad != nullptr ? grad.const_data_ptr() : nullptr;
    call.args.out = rows.mutable_data_ptr();
    run_rows(fn, call.args, rows.size(0), call.args.length);
  });
}

// Gradients come out contiguous: incoming gradients are often expanded, and nothing is gained by imitating them.
struct Gradients {
  Tensor grad_h;
  Tensor grad_grad;
  Tensor grad_radius;
};

enum class Wanted { kGradOnly, kShellOnly, kAll };

Gradients backward(const char* op, const L2ShellBackwardFn (&fns)[4], const L2ShellInputs& inputs,
                   const Tensor& upstream, Wanted wanted) {
  check_l2_shell_inputs(op, inputs);
  check_like_h(op, "grad_out", upstream, inputs.h);
  Call call(inputs);
  const Tensor g = torch::stable::contiguous(upstream);
  const Tensor h = torch::stable::contiguous(inputs.h);
  L2ShellBackwardArgs args{};
  args.upstream = g.const_data_ptr();
  call.args.h = h.const_data_ptr();
  Tensor grad = h;
  Gradients result{g, g, g};
  if (inputs.grad != nullptr) {
    grad = torch::stable::contiguous(*inputs.grad);
    call.args.grad = grad.const_data_ptr();
    result.grad_grad = torch::stable::empty_like(h);
    args.grad_grad = result.grad_grad.mutable_data_ptr();
  }
  if (wanted != Wanted::kGradOnly) {
    result.grad_h = torch::stable::empty_like(h);
    result.grad_radius = new_row_values(h);
    args.grad_h = result.grad_h.mutable_data_ptr();
    args.grad_radius = result.grad_radius.mutable_data_ptr();
  }
  args.forward = call.args;
  run_rows(fns[dtype_index(h)], args, h.size(0), call.args.length);
  return result;
}

Tensor normalized_ascent_cpu(const Tensor& h, const Tensor& grad, double step_size) {
  return forward("normalized_ascent", DROCC_SELECT_ROWS(l2_shell_rows).normalized_ascent,
                 {.h = h, .grad = &grad, .step_size = step_size});
}

void normalized_ascent_inplace_cpu(const Tensor& h, const Tensor& grad, double step_size) {
  forward_in_place("normalized_ascent_", DROCC_SELECT_ROWS(l2_shell_rows).normalized_ascent,
                   {.h = h, .grad = &grad, .step_size = step_size});
}

Tensor normalized_ascent_backward_cpu(const Tensor& grad_out, const Tensor& grad, double step_size) {
  return backward("_normalized_ascent_backward", DROCC_SELECT_ROWS(l2_shell_rows).normalized_ascent_backward,
                  {.h = grad, .grad = &grad, .step_size = step_size}, grad_out, Wanted::kGradOnly)
      .grad_grad;
}

Tensor project_l2_shell_cpu(const Tensor& h, double radius, const OptionalRows& radius_rows, double gamma) {
  return forward("project_l2_shell", DROCC_SELECT_ROWS(l2_shell_rows).project_l2_shell,
                 {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
}

void project_l2_shell_inplace_cpu(const Tensor& h, double radius, const OptionalRows& radius_rows, double gamma) {
  forward_in_place("project_l2_shell_", DROCC_SELECT_ROWS(l2_shell_rows).project_l2_shell,
                   {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
}

std::tuple<Tensor, Tensor> project_l2_shell_backward_cpu(const Tensor& grad_out, const Tensor& h, double radius,
                                                         const OptionalRows& radius_rows, double gamma) {
  const Gradients result =
      backward("_project_l2_shell_backward", DROCC_SELECT_ROWS(l2_shell_rows).project_l2_shell_backward,
               {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma}, grad_out, Wanted::kShellOnly);
  return {result.grad_h, result.grad_radius};
}

Tensor l2_shell_step_cpu(const Tensor& h, const Tensor& grad, double step_size, double radius,
                         const OptionalRows& radius_rows, double gamma) {
  return forward(
      "l2_shell_step", DROCC_SELECT_ROWS(l2_shell_rows).l2_shell_step,
      {.h = h, .grad = &grad, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
}

void l2_shell_step_inplace_cpu(const Tensor& h, const Tensor& grad, double step_size, double radius,
                               const OptionalRows& radius_rows, double gamma) {
  forward_in_place(
      "l2_shell_step_", DROCC_SELECT_ROWS(l2_shell_rows).l2_shell_step,
      {.h = h, .grad = &grad, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
}

std::tuple<Tensor, Tensor, Tensor> l2_shell_step_backward_cpu(const Tensor& grad_out, const Tensor& h,
                                                              const Tensor& grad, double step_size, double radius,
                                                              const OptionalRows& radius_rows, double gamma) {
  const Gradients result = backward(
      "_l2_shell_step_backward", DROCC_SELECT_ROWS(l2_shell_rows).l2_shell_step_backward,
      {.h = h, .grad = &grad, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
      grad_out, Wanted::kAll);
  return {result.grad_h, result.grad_grad, result.grad_radius};
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("normalized_ascent", TORCH_BOX(&drocc::cpu::normalized_ascent_cpu));
  m.impl("normalized_ascent_", TORCH_BOX(&drocc::cpu::normalized_ascent_inplace_cpu));
  m.impl("_normalized_ascent_backward", TORCH_BOX(&drocc::cpu::normalized_ascent_backward_cpu));
  m.impl("project_l2_shell", TORCH_BOX(&drocc::cpu::project_l2_shell_cpu));
  m.impl("project_l2_shell_", TORCH_BOX(&drocc::cpu::project_l2_shell_inplace_cpu));
  m.impl("_project_l2_shell_backward", TORCH_BOX(&drocc::cpu::project_l2_shell_backward_cpu));
  m.impl("l2_shell_step", TORCH_BOX(&drocc::cpu::l2_shell_step_cpu));
  m.impl("l2_shell_step_", TORCH_BOX(&drocc::cpu::l2_shell_step_inplace_cpu));
  m.impl("_l2_shell_step_backward", TORCH_BOX(&drocc::cpu::l2_shell_step_backward_cpu));
}
