// Compiled once per instruction set (see isa.h); plain loops that the compiler vectorises.
#include "l2_shell_rows.h"

#include "../math/l2_shell.h"
#include "element.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename T>
using Compute = typename ComputeOf<T>::type;

template <typename T>
math::Shell shell_of(const L2ShellRowsArgs& args, int64_t row) {
  const double radius =
      args.radius_rows != nullptr ? static_cast<const Compute<T>*>(args.radius_rows)[row] : args.radius;
  return math::make_shell(radius, args.gamma);
}

template <typename T, bool kAscent>
math::StepSums sum_row(const T* h, const T* grad, int64_t length) {
  math::StepSums total{0.0, 0.0, 0.0};
  Compute<T> h_buffer[kBlock];
  Compute<T> grad_buffer[kBlock];
  for (int64_t start = 0; start < length; start += kBlock) {
    const int64_t count = length - start < kBlock ? length - start : kBlock;
    const Compute<T>* hb = load_block(h + start, count, h_buffer);
    Compute<T> h_h = 0;
    if constexpr (kAscent) {
      const Compute<T>* gb = load_block(grad + start, count, grad_buffer);
      Compute<T> grad_grad = 0;
      Compute<T> h_grad = 0;
      DROCC_SIMD(reduction(+ : h_h, h_grad, grad_grad))
      for (int64_t i = 0; i < count; ++i) {
        h_h += hb[i] * hb[i];
        h_grad += hb[i] * gb[i];
        grad_grad += gb[i] * gb[i];
      }
      total.grad_grad += grad_grad;
      total.h_grad += h_grad;
    } else {
      DROCC_SIMD(reduction(+ : h_h))
      for (int64_t i = 0; i < count; ++i) h_h += hb[i] * hb[i];
    }
    total.h_h += h_h;
  }
  return total;
}

template <typename T, bool kAscent>
void write_row(const T* h, const T* grad, T* out, int64_t length, const math::StepPlan& plan) {
  const auto ascent = static_cast<Compute<T>>(plan.ascent);
  const auto scale = static_cast<Compute<T>>(plan.scale);
  Compute<T> h_buffer[kBlock];
  Compute<T> grad_buffer[kBlock];
  for (int64_t start = 0; start < length; start += kBlock) {
    const int64_t count = length - start < kBlock ? length - start : kBlock;
    const Compute<T>* hb = load_block(h + start, count, h_buffer);
    const Compute<T>* gb = kAscent ? load_block(grad + start, count, grad_buffer) : nullptr;
    if constexpr (sizeof(T) == sizeof(Compute<T>)) {
      Compute<T>* ob = out + start;
      DROCC_SIMD()
      for (int64_t i = 0; i < count; ++i) ob[i] = scale * (kAscent ? hb[i] + ascent * gb[i] : hb[i]);
    } else {
      DROCC_SIMD()
      for (int64_t i = 0; i < count; ++i) h_buffer[i] = scale * (kAscent ? hb[i] + ascent * gb[i] : hb[i]);
      store_block(h_buffer, count, out + start);
    }
  }
}

template <typename T>
struct ExactRow {
  const T* h_row;
  const T* grad_row;
  T* out_row;
  double h(int64_t i) const { return to_compute(h_row[i]); }
  double grad(int64_t i) const { return to_compute(grad_row[i]); }
  void store(int64_t i, double value) const { from_compute(value, out_row + i); }
};

template <typename T, bool kAscent, bool kShell>
void forward_rows(const L2ShellRowsArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * args.length;
    const T* h = static_cast<const T*>(args.h) + offset;
    const T* grad = kAscent ? static_cast<const T*>(args.grad) + offset : nullptr;
    T* out = static_cast<T*>(args.out) + offset;
    const math::Shell shell = kShell ? shell_of<T>(args, row) : math::Shell{1.0, 1.0};
    const math::StepSums sums = sum_row<T, kAscent>(h, grad, args.length);
    const math::StepPlan plan = math::plan_step<Compute<T>, kAscent, kShell>(sums, args.step_size, shell);
    if (plan.usable) {
      write_row<T, kAscent>(h, grad, out, args.length, plan);
    } else {
      const ExactRow<T> exact{h, grad, out};
      math::step_row_exact<kAscent, kShell>(math::SerialTeam{}, args.length, exact, args.step_size, shell);
    }
  }
}

template <typename T>
struct BackwardRow {
  const T* h_row;
  const T* grad_row;
  const T* upstream_row;
  T* grad_h_row;
  T* grad_grad_row;
  double h(int64_t i) const { return to_compute(h_row[i]); }
  double grad(int64_t i) const { return to_compute(grad_row[i]); }
  double upstream(int64_t i) const { return to_compute(upstream_row[i]); }
  void store_h(int64_t i, double value) const {
    if (grad_h_row != nullptr) from_compute(value, grad_h_row + i);
  }
  void store_grad(int64_t i, double value) const { from_compute(value, grad_grad_row + i); }
};

template <typename T, bool kAscent, bool kShell>
void backward_rows(const L2ShellBackwardArgs& args, int64_t begin, int64_t end) {
  const auto at = [](auto* base, int64_t offset) { return base != nullptr ? base + offset : nullptr; };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * args.forward.length;
    const BackwardRow<T> view{
        at(static_cast<const T*>(args.forward.h), offset),  at(static_cast<const T*>(args.forward.grad), offset),
        at(static_cast<const T*>(args.upstream), offset),   at(static_cast<T*>(args.grad_h), offset),
        at(static_cast<T*>(args.grad_grad), offset),
    };
    const math::Shell shell = kShell ? shell_of<T>(args.forward, row) : math::Shell{1.0, 1.0};
    const double grad_radius = math::step_row_backward<kAscent, kShell>(
        math::SerialTeam{}, args.forward.length, view, args.forward.step_size, shell, args.forward.gamma);
    if (args.grad_radius != nullptr) from_compute(grad_radius, static_cast<Compute<T>*>(args.grad_radius) + row);
  }
}

}  // namespace

#define DROCC_FOR_DTYPES(function, ...)                                                  \
  {                                                                                      \
    function<float, __VA_ARGS__>, function<double, __VA_ARGS__>, function<Half, __VA_ARGS__>, \
        function<BFloat16, __VA_ARGS__>                                                  \
  }

extern const L2ShellRows l2_shell_rows = {
    DROCC_FOR_DTYPES(forward_rows, true, false),  DROCC_FOR_DTYPES(forward_rows, false, true),
    DROCC_FOR_DTYPES(forward_rows, true, true),   DROCC_FOR_DTYPES(backward_rows, true, false),
    DROCC_FOR_DTYPES(backward_rows, false, true), DROCC_FOR_DTYPES(backward_rows, true, true),
};

}  // namespace drocc::cpu::DROCC_ISA
