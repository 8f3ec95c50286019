// Compiled once per instruction set (see isa.h); plain loops that the compiler vectorises.
#include "l2_shell_kernel.h"

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

// Rows up to this length are handled in plain order: the set-up of vector loops costs more than they gain.
constexpr int64_t kShortRow = 32;

// 64 bytes of Compute. The compiler splits them where registers are narrower, so sums are the same size on every
// instruction set.
template <typename C>
struct Lanes {
  static constexpr int64_t kCount = 64 / sizeof(C);
  typedef C Vector __attribute__((vector_size(64)));
  typedef double Wide __attribute__((vector_size(64 / sizeof(C) * sizeof(double))));
};

template <typename C>
DROCC_HD typename Lanes<C>::Vector load_lanes(const C* from) {
  typename Lanes<C>::Vector lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// Asks for the cache line of an element, `ahead` elements on. While one row is summed and written, the next one is
// fetched: without that the memory bus idles during the second pass.
template <bool kPrefetch, typename T>
DROCC_HD void prefetch(const T* element, int64_t ahead) {
  if constexpr (kPrefetch) __builtin_prefetch(element + ahead, 0, 2);
}

// The sums of a row, lane by lane: in Compute within a block, in double across blocks.
template <typename C, bool kAscent>
struct LaneSums {
  using Vector = typename Lanes<C>::Vector;
  using Wide = typename Lanes<C>::Wide;
  static constexpr int64_t kStep = Lanes<C>::kCount;
  // From position n on, kStep - n zeros and n ones.
  static constexpr auto kKeepLastTable = [] {
    struct {
      C value[2 * kStep];
    } table{};
    for (int64_t i = kStep; i < 2 * kStep; ++i) table.value[i] = 1;
    return table;
  }();
  static constexpr const C* kKeepLast = kKeepLastTable.value;

  Wide h_h{};
  Wide h_grad{};
  Wide grad_grad{};

  template <bool kPrefetch>
  DROCC_HD_MEMBER void add_block(const C* h, const C* grad, int64_t count, int64_t ahead) {
    // Two of each: an addition's latency, not its throughput, would bound a single chain.
    Vector hh[2] = {}, hg[2] = {}, gg[2] = {};
    const auto add = [&](int chain, Vector x, Vector g) {
      hh[chain] += x * x;
      if constexpr (kAscent) {
        hg[chain] += x * g;
        gg[chain] += g * g;
      }
    };
    const auto at = [](const C* from) {
      if constexpr (kAscent) return load_lanes(from);
      return Vector{};
    };
    int64_t i = 0;
    for (; i + 2 * kStep <= count; i += 2 * kStep) {
      prefetch<kPrefetch>(h + i, ahead);
      prefetch<kPrefetch>(h + i + kStep, ahead);
      prefetch<kPrefetch && kAscent>(grad + i, ahead);
      prefetch<kPrefetch && kAscent>(grad + i + kStep, ahead);
      add(0, load_lanes(h + i), at(grad + i));
      add(1, load_lanes(h + i + kStep), at(grad + i + kStep));
    }
    if (i + kStep <= count) {
      add(0, load_lanes(h + i), at(grad + i));
      i += kStep;
    }
    const int64_t rest = count - i;
    if (rest > 0 && count >= kStep) {
      // The last full vector, without the lanes that are counted already. (A NaN among those is in the sum anyway.)
      const Vector kept = load_lanes(kKeepLast + rest);
      add(1, kept * load_lanes(h + count - kStep), kept * at(grad + count - kStep));
    } else if (rest > 0) {
      C h_rest[kStep] = {}, grad_rest[kStep] = {};
      for (int64_t j = 0; j < rest; ++j) {
        h_rest[j] = h[i + j];
        if constexpr (kAscent) grad_rest[j] = grad[i + j];
      }
      add(1, load_lanes(h_rest), load_lanes(grad_rest));
    }
    h_h += __builtin_convertvector(hh[0] + hh[1], Wide);
    if constexpr (kAscent) {
      h_grad += __builtin_convertvector(hg[0] + hg[1], Wide);
      grad_grad += __builtin_convertvector(gg[0] + gg[1], Wide);
    }
  }

  static DROCC_HD_MEMBER double total(const Wide& lanes) {
    double parts[kStep];
    std::memcpy(parts, &lanes, sizeof(parts));
    for (int64_t half = kStep / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    return parts[0];
  }
};

template <typename T, bool kAscent>
math::StepSums<> sum_short_row(const T* h, const T* grad, int64_t length) {
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

// ahead: how many elements on the row to prefetch lies, with kPrefetch.
template <typename T, bool kAscent, bool kPrefetch>
math::StepSums<> sum_row(const T* h, const T* grad, int64_t length, int64_t ahead) {
  if (length <= kShortRow) return sum_short_row<T, kAscent>(h, grad, length);
  constexpr bool kDirect = sizeof(T) == sizeof(Compute<T>);
  LaneSums<Compute<T>, kAscent> sums;
  Compute<T> h_buffer[kBlock];
  Compute<T> grad_buffer[kBlock];
  for (int64_t start = 0; start < length; start += kBlock) {
    const int64_t count = length - start < kBlock ? length - start : kBlock;
    const Compute<T>* hb = load_block(h + start, count, h_buffer);
    const Compute<T>* gb = kAscent ? load_block(grad + start, count, grad_buffer) : hb;
    sums.template add_block<kPrefetch && kDirect>(hb, gb, count, ahead);
  }
  using Sums = LaneSums<Compute<T>, kAscent>;
  return {Sums::total(sums.grad_grad), Sums::total(sums.h_grad), Sums::total(sums.h_h)};
}

template <typename T, bool kAscent, bool kPrefetch>
void write_row(const T* h, const T* grad, T* out, int64_t length, const math::StepPlan<>& plan, int64_t ahead) {
  const auto ascent = static_cast<Compute<T>>(plan.ascent);
  const auto scale = static_cast<Compute<T>>(plan.scale);
  if (length <= kShortRow) {
    for (int64_t i = 0; i < length; ++i) {
      const Compute<T> x = to_compute(h[i]);
      const Compute<T> g = kAscent ? to_compute(grad[i]) : Compute<T>{};
      from_compute(math::apply_step<kAscent>(x, g, ascent, scale), out + i);
    }
    return;
  }
  Compute<T> h_buffer[kBlock];
  Compute<T> grad_buffer[kBlock];
  // Backwards: of a row longer than a cache, what was summed last is still there.
  for (int64_t start = (length - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t count = length - start < kBlock ? length - start : kBlock;
    const Compute<T>* hb = load_block(h + start, count, h_buffer);
    // Without an ascent the gradient is not used; h stands in for it.
    const Compute<T>* gb = kAscent ? load_block(grad + start, count, grad_buffer) : hb;
    if constexpr (sizeof(T) == sizeof(Compute<T>)) {
      constexpr int64_t kStep = Lanes<T>::kCount;
      T* ob = out + start;
      int64_t i = 0;
      for (; i + kStep <= count; i += kStep) {
        prefetch<kPrefetch>(hb + i, ahead);
        prefetch<kPrefetch && kAscent>(gb + i, ahead);
        const auto moved = math::apply_step<kAscent>(load_lanes(hb + i), load_lanes(gb + i), ascent, scale);
        std::memcpy(ob + i, &moved, sizeof(moved));
      }
      for (; i < count; ++i) ob[i] = math::apply_step<kAscent>(hb[i], gb[i], ascent, scale);
    } else {
      DROCC_SIMD()
      for (int64_t i = 0; i < count; ++i) h_buffer[i] = math::apply_step<kAscent>(hb[i], gb[i], ascent, scale);
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

template <typename T, bool kAscent, bool kShell, bool kPrefetch>
void forward_in_groups(const L2ShellRowsArgs& args, int64_t begin, int64_t end) {
  const int64_t length = args.length;
  const int64_t fitting = kElementsAtOnce / length;
  const int64_t at_once = fitting < 1 ? 1 : fitting > kRowsAtOnce ? kRowsAtOnce : fitting;
  double h_h[kRowsAtOnce], h_grad[kRowsAtOnce], grad_grad[kRowsAtOnce];
  double inner[kRowsAtOnce], outer[kRowsAtOnce];
  double ascent[kRowsAtOnce], scale[kRowsAtOnce], usable[kRowsAtOnce];
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t rows = end - first < at_once ? end - first : at_once;
    const T* h = static_cast<const T*>(args.h) + first * length;
    const T* grad = kAscent ? static_cast<const T*>(args.grad) + first * length : nullptr;
    T* out = static_cast<T*>(args.out) + first * length;
    const int64_t ahead = first + rows < end ? rows * length : 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t offset = row * length;
      const math::StepSums<> sums =
          sum_row<T, kAscent, kPrefetch>(h + offset, kAscent ? grad + offset : nullptr, length, ahead);
      h_h[row] = sums.h_h, h_grad[row] = sums.h_grad, grad_grad[row] = sums.grad_grad;
      const math::Shell shell = kShell ? shell_of<T>(args, first + row) : math::Shell{1.0, 1.0};
      inner[row] = shell.inner, outer[row] = shell.outer;
    }
    DROCC_SIMD()
    for (int64_t row = 0; row < rows; ++row) {
      const math::StepPlan<> plan = math::plan_step<Compute<T>, kAscent, kShell>(
          math::StepSums<>{grad_grad[row], h_grad[row], h_h[row]}, args.step_size, {inner[row], outer[row]});
      ascent[row] = plan.ascent;
      scale[row] = plan.scale;
      usable[row] = plan.usable ? 1.0 : 0.0;
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t offset = row * length;
      if (usable[row] != 0.0) {
        const math::StepPlan<> plan{true, ascent[row], scale[row]};
        write_row<T, kAscent, kPrefetch>(h + offset, kAscent ? grad + offset : nullptr, out + offset, length, plan,
                                         ahead);
      } else {
        exact_row<T, kAscent, kShell>(args, first + row, {inner[row], outer[row]});
      }
    }
  }
}

// Prefetching pays from the size on where a task does not fit the second-level cache, and as long as the next rows
// leave these in the first one.
constexpr int64_t kPrefetchTask = 524288;
constexpr int64_t kPrefetchRow = 16384;

template <typename T, bool kAscent, bool kShell>
void forward_rows(const L2ShellRowsArgs& args, int64_t begin, int64_t end) {
  if (args.length > kShortRow && args.length <= kPrefetchRow && (end - begin) * args.length > kPrefetchTask) {
    forward_in_groups<T, kAscent, kShell, true>(args, begin, end);
  } else {
    forward_in_groups<T, kAscent, kShell, false>(args, begin, end);
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

extern const L2ShellRows l2_shell_kernels = {
    DROCC_FOR_DTYPES(forward_rows, true, false),  DROCC_FOR_DTYPES(forward_rows, false, true),
    DROCC_FOR_DTYPES(forward_rows, true, true),   DROCC_FOR_DTYPES(backward_rows, true, false),
    DROCC_FOR_DTYPES(backward_rows, false, true), DROCC_FOR_DTYPES(backward_rows, true, true),
};

}  // namespace drocc::cpu::DROCC_ISA
