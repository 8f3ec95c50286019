// Ops points of the l2 shell operators: checks, layouts, outputs; the same for every device. A Backend has
//   forward<kAscent, kShell>(op, args, h) and backward<kAscent, kShell>(op, args, h), over all rows of h.
#pragma once

#include <tuple>

#include "checks.h"
#include "row_args.h"

namespace drocc {

using OptionalRows = std::optional<Tensor>;

// Arguments of one call with the tensors' memory filled in; keeps the contiguous copy of radius_rows alive.
struct L2ShellCall {
  L2ShellRowsArgs args{};
  OptionalRows rows;

  explicit L2ShellCall(const L2ShellInputs& inputs) {
    args.batch = inputs.h.size(0);
    args.length = row_length(inputs.h);
    args.step_size = inputs.step_size;
    args.radius = inputs.radius;
    args.gamma = inputs.gamma;
    rows = contiguous_radius_rows(inputs);
    if (rows.has_value()) args.radius_rows = rows->const_data_ptr();
  }
};

template <typename Backend>
struct L2ShellOps {
  template <bool kAscent, bool kShell>
  static Tensor forward(const char* op, const L2ShellInputs& inputs) {
    check_l2_shell_inputs(op, inputs);
    Tensor out = torch::stable::empty_like(inputs.h);
    L2ShellCall call(inputs);
    with_row_dense(out, [&](Tensor& rows) {
      const Tensor h = in_layout_of(inputs.h, rows);
      const Tensor grad = inputs.grad != nullptr ? in_layout_of(*inputs.grad, rows) : h;
      call.args.h = h.const_data_ptr();
      call.args.grad = inputs.grad != nullptr ? grad.const_data_ptr() : nullptr;
      call.args.out = rows.mutable_data_ptr();
      Backend::template forward<kAscent, kShell>(op, call.args, h);
    });
    return out;
  }

  template <bool kAscent, bool kShell>
  static void forward_in_place(const char* op, const L2ShellInputs& inputs) {
    check_l2_shell_inputs(op, inputs);
    check_in_place(op, inputs.h, inputs.grad);
    L2ShellCall call(inputs);
    Tensor target = inputs.h;
    with_row_dense(target, [&](Tensor& rows) {
      const Tensor grad = inputs.grad != nullptr ? in_layout_of(*inputs.grad, rows) : rows;
      call.args.h = rows.const_data_ptr();
      call.args.grad = inputs.grad != nullptr ? grad.const_data_ptr() : nullptr;
      call.args.out = rows.mutable_data_ptr();
      Backend::template forward<kAscent, kShell>(op, call.args, rows);
    });
  }

  // Gradients come out contiguous: incoming gradients are often expanded, and nothing is gained by imitating them.
  struct Gradients {
    Tensor grad_h;
    Tensor grad_grad;
    Tensor grad_radius;
  };

  template <bool kAscent, bool kShell>
  static Gradients backward(const char* op, const L2ShellInputs& inputs, const Tensor& upstream) {
    check_l2_shell_inputs(op, inputs);
    check_like_h(op, "grad_out", upstream, inputs.h);
    L2ShellCall call(inputs);
    const Tensor g = torch::stable::contiguous(upstream);
    const Tensor h = torch::stable::contiguous(inputs.h);
    L2ShellBackwardArgs args{};
    args.upstream = g.const_data_ptr();
    call.args.h = h.const_data_ptr();
    Tensor grad = h;
    Gradients result{g, g, g};
    if constexpr (kAscent) {
      grad = torch::stable::contiguous(*inputs.grad);
      call.args.grad = grad.const_data_ptr();
      result.grad_grad = torch::stable::empty_like(h);
      args.grad_grad = result.grad_grad.mutable_data_ptr();
    }
    if constexpr (kShell) {
      result.grad_h = torch::stable::empty_like(h);
      result.grad_radius = new_row_values(h);
      args.grad_h = result.grad_h.mutable_data_ptr();
      args.grad_radius = result.grad_radius.mutable_data_ptr();
    }
    args.forward = call.args;
    Backend::template backward<kAscent, kShell>(op, args, h);
    return result;
  }

  static Tensor normalized_ascent(const Tensor& h, const Tensor& grad, double step_size) {
    return forward<true, false>("normalized_ascent", {.h = h, .grad = &grad, .step_size = step_size});
  }

  static void normalized_ascent_inplace(const Tensor& h, const Tensor& grad, double step_size) {
    forward_in_place<true, false>("normalized_ascent_", {.h = h, .grad = &grad, .step_size = step_size});
  }

  static Tensor normalized_ascent_backward(const Tensor& grad_out, const Tensor& grad, double step_size) {
    return backward<true, false>("_normalized_ascent_backward", {.h = grad, .grad = &grad, .step_size = step_size},
                                 grad_out)
        .grad_grad;
  }

  static Tensor project_l2_shell(const Tensor& h, double radius, const OptionalRows& radius_rows, double gamma) {
    return forward<false, true>("project_l2_shell",
                                {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
  }

  static void project_l2_shell_inplace(const Tensor& h, double radius, const OptionalRows& radius_rows, double gamma) {
    forward_in_place<false, true>("project_l2_shell_",
                                  {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
  }

  static std::tuple<Tensor, Tensor> project_l2_shell_backward(const Tensor& grad_out, const Tensor& h, double radius,
                                                              const OptionalRows& radius_rows, double gamma) {
    const Gradients result =
        backward<false, true>("_project_l2_shell_backward",
                              {.h = h, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma}, grad_out);
    return {result.grad_h, result.grad_radius};
  }

  static Tensor l2_shell_step(const Tensor& h, const Tensor& grad, double step_size, double radius,
                              const OptionalRows& radius_rows, double gamma) {
    return forward<true, true>(
        "l2_shell_step",
        {.h = h, .grad = &grad, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
  }

  static void l2_shell_step_inplace(const Tensor& h, const Tensor& grad, double step_size, double radius,
                                    const OptionalRows& radius_rows, double gamma) {
    forward_in_place<true, true>(
        "l2_shell_step_",
        {.h = h, .grad = &grad, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma});
  }

  static std::tuple<Tensor, Tensor, Tensor> l2_shell_step_backward(const Tensor& grad_out, const Tensor& h,
                                                                   const Tensor& grad, double step_size, double radius,
                                                                   const OptionalRows& radius_rows, double gamma) {
    const Gradients result = backward<true, true>(
        "_l2_shell_step_backward",
        {.h = h, .grad = &grad, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma},
        grad_out);
    return {result.grad_h, result.grad_grad, result.grad_radius};
  }
};

}  // namespace drocc

// Inside STABLE_TORCH_LIBRARY_IMPL(drocc, ..., m).
#define DROCC_IMPL_L2_SHELL(m, Ops)                                                   \
  m.impl("normalized_ascent", TORCH_BOX(&Ops::normalized_ascent));                    \
  m.impl("normalized_ascent_", TORCH_BOX(&Ops::normalized_ascent_inplace));           \
  m.impl("_normalized_ascent_backward", TORCH_BOX(&Ops::normalized_ascent_backward)); \
  m.impl("project_l2_shell", TORCH_BOX(&Ops::project_l2_shell));                      \
  m.impl("project_l2_shell_", TORCH_BOX(&Ops::project_l2_shell_inplace));             \
  m.impl("_project_l2_shell_backward", TORCH_BOX(&Ops::project_l2_shell_backward));   \
  m.impl("l2_shell_step", TORCH_BOX(&Ops::l2_shell_step));                            \
  m.impl("l2_shell_step_", TORCH_BOX(&Ops::l2_shell_step_inplace));                   \
  m.impl("_l2_shell_step_backward", TORCH_BOX(&Ops::l2_shell_step_backward));
