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
  // In Compute either way: a radius outside its range is as bad as a row's radius of 0 or infinity.
  const Compute<T> radius = args.radius_rows != nullptr ? static_cast<const Compute<T>*>(args.radius_rows)[row]
                                                        : static_cast<Compute<T>>(args.radius);
  return math::make_shell(radius, args.gamma);
}

// Adds the sums over one block. Two halves at a time: twice as many independent chains of additions as one reduction
// variable would give, since an addition's latency, not its throughput, bounds the loop.
template <typename C, bool kAscent>
void add_block(const C* h, const C* grad, int64_t count, math::StepSums* total) {
  const int64_t half = count / 2;
  C hh0 = 0, hh1 = 0, hg0 = 0, hg1 = 0, gg0 = 0, gg1 = 0;
  DROCC_SIMD(reduction(+ : hh0, hh1, hg0, hg1, gg0, gg1))
  for (int64_t i = 0; i < half; ++i) {
    hh0 += h[i] * h[i];
    hh1 += h[half + i] * h[half + i];
    if constexpr (kAscent) {
      hg0 += h[i] * grad[i];
      hg1 += h[half + i] * grad[half + i];
      gg0 += grad[i] * grad[i];
      gg1 += grad[half + i] * grad[half + i];
    }
  }
  if (count % 2 != 0) {
    const int64_t last = count - 1;
    hh0 += h[last] * h[last];
    if constexpr (kAscent) {
      hg0 += h[last] * grad[last];
      gg0 += grad[last] * grad[last];
    }
  }
  total->h_h += static_cast<double>(hh0) + hh1;
  total->h_grad += static_cast<double>(hg0) + hg1;
  total->grad_grad += static_cast<double>(gg0) + gg1;
}

// Rows up to this length are handled in plain order: the set-up of vector loops costs more than they gain.
constexpr int64_t kShortRow = 32;

template <typename T, bool kAscent>
math::StepSums sum_short_row(const T* h, const T* grad, int64_t length) {
  Compute<T> hh = 0, hg = 0, gg = 0;
  for (int64_t i = 0; i < length; ++i) {
    const Compute<T> x = to_compute(h[i]);
    hh += x * x;
    if constexpr (kAscent) {
      const Compute<T> g = to_compute(grad[i]);
      hg += x * g;
      gg += g * g;
    }
  }
  return {gg, hg, hh};
}

template <typename T, bool kAscent>
math::StepSums sum_row(const T* h, const T* grad, int64_t length) {
  if (length <= kShortRow) return sum_short_row<T, kAscent>(h, grad, length);
  math::StepSums total{0.0, 0.0, 0.0};
  Compute<T> h_buffer[kBlock];
  Compute<T> grad_buffer[kBlock];
  for (int64_t start = 0; start < length; start += kBlock) {
    const int64_t count = length - start < kBlock ? length - start : kBlock;
    const Compute<T>* hb = load_block(h + start, count, h_buffer);
    const Compute<T>* gb = kAscent ? load_block(grad + start, count, grad_buffer) : nullptr;
    add_block<Compute<T>, kAscent>(hb, gb, count, &total);
  }
  return total;
}

// While a row is written from cache the memory bus is idle: ask for the next row. That pays from the size on where the
// whole task does not fit the second-level cache, and as long as the next row leaves this one in its place.
constexpr int64_t kPrefetchTask = 524288;
constexpr int64_t kPrefetchRow = 16384;

DROCC_HD void prefetch_block(const void* block, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += 64)
    __builtin_prefetch(static_cast<const char*>(block) + offset, 0, 2);
}

// next: how many elements on the next row to prefetch begins, or 0.
template <typename T, bool kAscent>
void write_row(const T* h, const T* grad, T* out, int64_t length, const math::StepPlan& plan, int64_t next) {
  const auto ascent = static_cast<Compute<T>>(plan.ascent);
  const auto scale = static_cast<Compute<T>>(plan.scale);
  if (length <= kShortRow) {
    for (int64_t i = 0; i < length; ++i) {
      const Compute<T> x = to_compute(h[i]);
      from_compute(scale * (kAscent ? x + ascent * to_compute(grad[i]) : x), out + i);
    }
    return;
  }
  Compute<T> h_buffer[kBlock];
  Compute<T> grad_buffer[kBlock];
  // Backwards: of a row longer than a cache, what was summed last is still there.
  for (int64_t start = (length - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t count = length - start < kBlock ? length - start : kBlock;
    if (next != 0) {
      const int64_t ahead = next + length - start - count;
      prefetch_block(h + ahead, count * static_cast<int64_t>(sizeof(T)));
      if (kAscent) prefetch_block(grad + ahead, count * static_cast<int64_t>(sizeof(T)));
    }
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
void exact_row(const L2ShellRowsArgs& args, int64_t row, const math::Shell& shell) {
  const int64_t offset = row * args.length;
  const ExactRow<T> view{static_cast<const T*>(args.h) + offset,
                         kAscent ? static_cast<const T*>(args.grad) + offset : nullptr,
                         static_cast<T*>(args.out) + offset};
  math::step_row_exact<kAscent, kShell>(math::SerialTeam{}, args.length, view, args.step_size, shell);
}

// Several rows at a time, as many as stay in the first-level cache: the roots and divisions of their plans run in
// vectors over rows and their latency is paid once.
constexpr int64_t kRowsAtOnce = 32;
constexpr int64_t kElementsAtOnce = 4096;

template <typename T, bool kAscent, bool kShell>
void forward_rows(const L2ShellRowsArgs& args, int64_t begin, int64_t end) {
  const int64_t length = args.length;
  const int64_t fitting = kElementsAtOnce / length;
  const int64_t at_once = fitting < 1 ? 1 : fitting > kRowsAtOnce ? kRowsAtOnce : fitting;
  const bool prefetch = length <= kPrefetchRow && (end - begin) * length > kPrefetchTask;
  double h_h[kRowsAtOnce], h_grad[kRowsAtOnce], grad_grad[kRowsAtOnce];
  double inner[kRowsAtOnce], outer[kRowsAtOnce];
  double ascent[kRowsAtOnce], scale[kRowsAtOnce], usable[kRowsAtOnce];
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t rows = end - first < at_once ? end - first : at_once;
    const T* h = static_cast<const T*>(args.h) + first * length;
    const T* grad = kAscent ? static_cast<const T*>(args.grad) + first * length : nullptr;
    T* out = static_cast<T*>(args.out) + first * length;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t offset = row * length;
      const math::StepSums sums = sum_row<T, kAscent>(h + offset, kAscent ? grad + offset : nullptr, length);
      h_h[row] = sums.h_h, h_grad[row] = sums.h_grad, grad_grad[row] = sums.grad_grad;
      const math::Shell shell = kShell ? shell_of<T>(args, first + row) : math::Shell{1.0, 1.0};
      inner[row] = shell.inner, outer[row] = shell.outer;
    }
    DROCC_SIMD()
    for (int64_t row = 0; row < rows; ++row) {
      const math::StepPlan plan = math::plan_step<Compute<T>, kAscent, kShell>(
          {grad_grad[row], h_grad[row], h_h[row]}, args.step_size, {inner[row], outer[row]});
      ascent[row] = plan.ascent;
      scale[row] = plan.scale;
      usable[row] = plan.usable ? 1.0 : 0.0;
    }
    const int64_t next = prefetch && first + rows < end ? rows * length : 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t offset = row * length;
      if (usable[row] != 0.0) {
        const math::StepPlan plan{true, ascent[row], scale[row]};
        write_row<T, kAscent>(h + offset, kAscent ? grad + offset : nullptr, out + offset, length, plan, next);
      } else {
        exact_row<T, kAscent, kShell>(args, first + row, {inner[row], outer[row]});
      }
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
        at(static_cast<const T*>(args.forward.h), offset), at(static_cast<const T*>(args.forward.grad), offset),
        at(static_cast<const T*>(args.upstream), offset),  at(static_cast<T*>(args.grad_h), offset),
        at(static_cast<T*>(args.grad_grad), offset),
    };
    const math::Shell shell = kShell ? shell_of<T>(args.forward, row) : math::Shell{1.0, 1.0};
    const double grad_radius = math::step_row_backward<kAscent, kShell>(
        math::SerialTeam{}, args.forward.length, view, args.forward.step_size, shell, args.forward.gamma);
    if (args.grad_radius != nullptr) from_compute(grad_radius, static_cast<Compute<T>*>(args.grad_radius) + row);
  }
}

}  // namespace

#define DROCC_FOR_DTYPES(function, ...)                                                      \
  {function<float, __VA_ARGS__>, function<double, __VA_ARGS__>, function<Half, __VA_ARGS__>, \
   function<BFloat16, __VA_ARGS__>}

extern const L2ShellRows l2_shell_rows = {
    DROCC_FOR_DTYPES(forward_rows, true, false),  DROCC_FOR_DTYPES(forward_rows, false, true),
    DROCC_FOR_DTYPES(forward_rows, true, true),   DROCC_FOR_DTYPES(backward_rows, true, false),
    DROCC_FOR_DTYPES(backward_rows, false, true), DROCC_FOR_DTYPES(backward_rows, true, true),
};

}  // namespace drocc::cpu::DROCC_ISA
