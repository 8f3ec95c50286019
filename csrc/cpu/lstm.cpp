// An LSTM layer on the CPU, and its gradient with respect to the input.
#include <optional>
#include <tuple>

#include "../checks.h"
#include "dispatch.h"
#include "lstm_kernel.h"

namespace drocc::cpu {
namespace {

using OptionalTensor = std::optional<Tensor>;

// `t` without gaps, of the given sizes, in x's dtype.
Tensor checked(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> sizes,
               const Tensor& like) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  int64_t d = 0;
  for (const int64_t size : sizes) fits = fits && t.size(d++) == size;
  if (!fits) fail(op, name, " must have the sizes of the other arguments, got ", describe_shape(t));
  check_like_h_in_kind(op, name, t, like);
  return torch::stable::contiguous(t);
}

// All sizes of a call, the tensors that it reads without gaps, and room for packed weights.
struct Call {
  LstmArgs args{};
  Tensor w_ih, w_hh, packed_ih, packed_hh;
  const LstmKernels* kernels = nullptr;

  Call(const char* op, const Tensor& states, const Tensor& ih, const Tensor& hh, bool backward) {
    const ScalarType type = states.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double) fail(op, "x must be float32 or float64");
    if (states.dim() != 3 || ih.dim() != 2 || hh.dim() != 2) {
      fail(op, "x, w_ih and w_hh must have shapes [T, B, I], [4 H, I] and [4 H, H], got ", describe_shape(states), ", ",
           describe_shape(ih), " and ", describe_shape(hh));
    }
    args.steps = states.size(0), args.batch = states.size(1), args.inputs = ih.size(1), args.units = hh.size(1);
    w_ih = checked(op, "w_ih", ih, {4 * args.units, args.inputs}, states);
    w_hh = checked(op, "w_hh", hh, {4 * args.units, args.units}, states);
    kernels = &DROCC_SELECT_KERNELS(lstm_kernels).of[type == ScalarType::Double ? 1 : 0];
    packed_ih = torch::stable::new_empty(states, {kernels->packed_ih(args, backward)});
    packed_hh = torch::stable::new_empty(states, {kernels->packed_hh(args, backward)});
    args.w_ih = w_ih.const_data_ptr(), args.w_hh = w_hh.const_data_ptr();
    args.packed_ih = packed_ih.mutable_data_ptr(), args.packed_hh = packed_hh.mutable_data_ptr();
    kernels->pack(args, backward);
  }

  // Blocks of rows that fill the tiles of a product; their size changes no result.
  void run(void (*fn)(const LstmArgs&, int64_t, int64_t)) const {
    constexpr int64_t kLeastRows = 12;
    if (args.batch <= kLeastRows) {
      fn(args, 0, args.batch);
      return;
    }
    torch::stable::parallel_for(0, args.batch, kLeastRows, [&](int64_t begin, int64_t end) { fn(args, begin, end); });
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& h_0, const Tensor& c_0, const Tensor& w_ih,
                                           const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  constexpr const char* kOp = "_lstm";
  Call call(kOp, x, w_ih, w_hh, false);
  LstmArgs& args = call.args;
  const Tensor rows = checked(kOp, "x", x, {args.steps, args.batch, args.inputs}, x);
  const Tensor h = checked(kOp, "h_0", h_0, {args.batch, args.units}, x);
  const Tensor c = checked(kOp, "c_0", c_0, {args.batch, args.units}, x);
  OptionalTensor one, other;
  if (b_ih.has_value()) one = checked(kOp, "b_ih", *b_ih, {4 * args.units}, x);
  if (b_hh.has_value()) other = checked(kOp, "b_hh", *b_hh, {4 * args.units}, x);
  Tensor hidden = torch::stable::new_empty(x, {args.steps, args.batch, args.units});
  Tensor cells = torch::stable::new_empty(x, {args.steps, args.batch, args.units});
  Tensor gates = torch::stable::new_empty(x, {args.steps, args.batch, 4 * args.units});
  args.x = rows.const_data_ptr(), args.h_0 = h.const_data_ptr(), args.c_0 = c.const_data_ptr();
  args.b_ih = one.has_value() ? one->const_data_ptr() : nullptr;
  args.b_hh = other.has_value() ? other->const_data_ptr() : nullptr;
  args.hidden = hidden.mutable_data_ptr(), args.cells = cells.mutable_data_ptr();
  args.gates = gates.mutable_data_ptr();
  call.run(call.kernels->forward);
  return {hidden, cells, gates};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_hidden, const OptionalTensor& grad_cell,
                                            const Tensor& c_0, const Tensor& cells, const Tensor& gates,
                                            const Tensor& w_ih, const Tensor& w_hh) {
  constexpr const char* kOp = "_lstm_backward";
  Call call(kOp, grad_hidden, w_ih, w_hh, true);
  LstmArgs& args = call.args;
  const Tensor grad = checked(kOp, "grad_hidden", grad_hidden, {args.steps, args.batch, args.units}, grad_hidden);
  const Tensor c = checked(kOp, "c_0", c_0, {args.batch, args.units}, grad);
  const Tensor all = checked(kOp, "cells", cells, {args.steps, args.batch, args.units}, grad);
  if (!gates.is_contiguous()) fail(kOp, "gates must be contiguous");
  Tensor room = checked(kOp, "gates", gates, {args.steps, args.batch, 4 * args.units}, grad);
  OptionalTensor last;
  if (grad_cell.has_value()) last = checked(kOp, "grad_cell", *grad_cell, {args.batch, args.units}, grad);
  Tensor grad_x = torch::stable::new_empty(grad, {args.steps, args.batch, args.inputs});
  Tensor grad_h_0 = torch::stable::new_empty(grad, {args.batch, args.units});
  Tensor grad_c_0 = torch::stable::new_empty(grad, {args.batch, args.units});
  args.grad_hidden = grad.const_data_ptr(), args.c_0 = c.const_data_ptr();
  args.grad_cell = last.has_value() ? last->const_data_ptr() : nullptr;
  args.cells = const_cast<void*>(all.const_data_ptr());  // read only
  args.gates = room.mutable_data_ptr();
  args.grad_x = grad_x.mutable_data_ptr(), args.grad_h_0 = grad_h_0.mutable_data_ptr();
  args.grad_c_0 = grad_c_0.mutable_data_ptr();
  call.run(call.kernels->backward);
  return {grad_x, grad_h_0, grad_c_0};
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_lstm", TORCH_BOX(&drocc::cpu::forward));
  m.impl("_lstm_backward", TORCH_BOX(&drocc::cpu::backward));
}
