// One row of the Mahalanobis shell operators, by a team of threads. Host and device. Arithmetic is in Compute, float
// for float and the half types, in scaled units; double only for exceptional gradients (those whose squares leave the
// range of float), for rows some 1e15 times longer or shorter than the radius (NaN in gradients and
// in rows too long for the chip), for the
// direction of rows of the hard kind, and for the ascent's backward.
#pragma once

#include <type_traits>

#include "../math/mahalanobis_shell.h"
#include "../row_args.h"
#include "element.h"
#include "l2_shell_kernel.cuh"

namespace drocc::cuda {

// From this relative accuracy on one more step of Newton's method leaves an error below the type's rounding.
template <typename C>
constexpr C kEnough = sizeof(C) == 4 ? C(1e-5) : C(1e-9);

// h + step * grad / ||grad||, coordinate by coordinate.
template <typename C>
struct RowAscent {
  bool plain;  // by the factor, else in double; in double both are the same formula, and need no branch
  C factor;
  math::Ascent exact;
  math::ScaledNorm grad_norm;
  DROCC_HD_MEMBER C operator()(C h, C grad) const {
    if constexpr (sizeof(C) == 8) return exact(h, grad);
    return plain ? math::apply_step<true>(h, grad, factor, C(1)) : static_cast<C>(exact(h, grad));
  }
};

// grad(i) -> C.
template <typename C, typename Team, typename Grad>
DROCC_HD RowAscent<C> make_row_ascent(const Team& team, int64_t n, double step_size, const Grad& grad) {
  const C sum = math::sum_of<C>(team, n, [&](int64_t i) { return grad(i) * grad(i); });
  const C norm = sqrt(sum);
  const C factor = static_cast<C>(step_size) / norm;
  if (math::sum_is_safe<C>(sum) && math::factor_is_safe<C>(factor)) {
    return {true, factor, {1.0, static_cast<double>(factor)}, {1.0, static_cast<double>(norm)}};
  }
  const math::ScaledNorm exact = math::scaled_norm(team, n, [&](int64_t i) -> double { return grad(i); });
  return {false, 0, math::make_ascent(exact, step_size), exact};
}

// The operands of a row where they lie.
template <typename T, bool kAscent>
struct MahalanobisOperands {
  const T* h;
  const T* grad;
  const T* sigma;
  T* out;
  MahalanobisOperands(const MahalanobisOperands&) = default;
  DROCC_HD_MEMBER MahalanobisOperands(const MahalanobisRowsArgs& args, int64_t row)
      : h(static_cast<const T*>(args.h) + row * args.length),
        grad(kAscent ? static_cast<const T*>(args.grad) + row * args.length : nullptr),
        sigma(static_cast<const T*>(args.sigma) + row * args.sigma_stride),
        out(static_cast<T*>(args.out) + row * args.length) {}
};

// A row as the solver sees it, computed from memory again each time.
template <typename T, bool kAscent>
struct ReadRow {
  static constexpr bool kScaled = true;
  using C = Compute<T>;
  MahalanobisOperands<T, kAscent> at;
  RowAscent<C> ascent;
  const T* upstream_row;
  DROCC_HD_MEMBER C d(int64_t i) const {
    if constexpr (kAscent) return ascent(to_compute(at.h[i]), to_compute(at.grad[i]));
    return to_compute(at.h[i]);
  }
  DROCC_HD_MEMBER C sigma(int64_t i) const { return to_compute(at.sigma[i]); }
  DROCC_HD_MEMBER C upstream(int64_t i) const { return to_compute(upstream_row[i]); }
  DROCC_HD_MEMBER void store(int64_t i, C value) const { from_compute(value, at.out + i); }
};

// The same, held on chip in the compute type: this block's part, d first, then sigma.
template <typename T, bool kAscent>
struct HeldRow {
  static constexpr bool kScaled = true;
  using C = Compute<T>;
  MahalanobisOperands<T, kAscent> at;
  RowAscent<C> ascent;
  const T* upstream_row;
  C* d_part;
  C* sigma_part;
  int begin;
  DROCC_HD_MEMBER C d(int64_t i) const { return d_part[static_cast<int>(i) - begin]; }
  DROCC_HD_MEMBER C sigma(int64_t i) const { return sigma_part[static_cast<int>(i) - begin]; }
  DROCC_HD_MEMBER C upstream(int64_t i) const { return to_compute(upstream_row[i]); }
  DROCC_HD_MEMBER void store(int64_t i, C value) const { from_compute(value, at.out + i); }
};

// body(i, n): n elements from i on, in turn by 16 bytes where the row is aligned, else one at a time.
template <typename T, typename Team, typename Body>
DROCC_HD void for_packs(const Team& team, int64_t n, bool aligned, const Body& body) {
  const int end = team.part_end(n);
  if (aligned) {
    constexpr int kCount = Pack<T>::kCount;
    DROCC_UNROLL_BY(2)
    for (int i = team.part_begin() + team.rank() * kCount; i < end; i += team.threads() * kCount) {
      body(i, std::integral_constant<int, kCount>{});
    }
  } else {
    for (int i = team.part_begin() + team.rank(); i < end; i += team.threads()) {
      body(i, std::integral_constant<int, 1>{});
    }
  }
}

// Reads elements from memory into the compute type.
template <typename T, typename C, int kCount>
DROCC_HD void fetch(const T* from, std::integral_constant<int, kCount>, C* to) {
  if constexpr (kCount == 1) {
    *to = to_compute(*from);
  } else {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
    C values[kCount];
    DROCC_UNROLL
    for (int e = 0; e < kCount; ++e) values[e] = pack.get(e);
    DROCC_UNROLL
    for (int e = 0; e < kCount; e += Pack<C>::kCount) {
      *reinterpret_cast<Pack<C>*>(to + e) = *reinterpret_cast<const Pack<C>*>(values + e);
    }
  }
}

// memory: of this team, for 2 * part_length values; not used where rows are re-read (kHeld = false).
template <typename T, bool kAscent, bool kHeld, typename Team>
DROCC_HD auto read_row(const Team& team, const MahalanobisRowsArgs& args, bool aligned, int64_t row,
                       Compute<T>* memory) {
  using C = Compute<T>;
  const int64_t n = args.length;
  const MahalanobisOperands<T, kAscent> at(args, row);
  if constexpr (!kHeld) {
    ReadRow<T, kAscent> view{at, {}, nullptr};
    if constexpr (kAscent) {
      view.ascent = make_row_ascent<C>(team, n, args.step_size, [&](int64_t i) { return to_compute(at.grad[i]); });
    }
    return view;
  } else {
    const int begin = team.part_begin();
    HeldRow<T, kAscent> view{at, {}, nullptr, memory, memory + team.part_length(), begin};
    for_packs<T>(team, n, aligned, [&](int i, auto count) {
      fetch(kAscent ? at.grad + i : at.h + i, count, view.d_part + (i - begin));
      fetch(at.sigma + i, count, view.sigma_part + (i - begin));
    });
    team.sync();
    if constexpr (kAscent) {
      view.ascent = make_row_ascent<C>(team, n, args.step_size, [&](int64_t i) { return view.d(i); });
      team.sync();
      for_packs<T>(team, n, aligned, [&](int i, auto count) {
        C* d = view.d_part + (i - begin);
        alignas(16) C h[decltype(count)::value];
        fetch(at.h + i, count, h);
        DROCC_UNROLL
        for (int e = 0; e < decltype(count)::value; ++e) d[e] = view.ascent(h[e], d[e]);
      });
      team.sync();
    }
    return view;
  }
}

// The same row in double.
template <typename View>
struct WideRow {
  static constexpr bool kScaled = true;
  const View& view;
  DROCC_HD_MEMBER double d(int64_t i) const { return view.d(i); }
  DROCC_HD_MEMBER double sigma(int64_t i) const { return view.sigma(i); }
  DROCC_HD_MEMBER void store(int64_t i, double value) const { view.store(i, static_cast<typename View::C>(value)); }
};

template <typename T, bool kAscent, bool kHeld, typename Team>
DROCC_HD void mahalanobis_shell_row(const Team& team, const MahalanobisRowsArgs& args, bool aligned, int64_t row,
                                    Compute<T>* memory) {
  using C = Compute<T>;
  const auto view = read_row<T, kAscent, kHeld>(team, args, aligned, row, memory);
  const math::Shell shell = shell_of<T>(args.radius_rows, args.radius, args.gamma, row);
  const auto plan = math::plan_projection<C>(team, args.length, view, shell, args.grid_points, kEnough<C>);
  if constexpr (sizeof(C) == 4 && kHeld) {
    if (plan.beyond) {  // a row some 1e15 times longer or shorter than the radius
      const WideRow<std::remove_const_t<decltype(view)>> wide{view};
      const auto exact = math::plan_projection<double>(team, args.length, wide, shell, args.grid_points, kEnough<C>);
      math::write_projection(team, args.length, wide, exact);
      return;
    }
  }
  math::write_projection(team, args.length, view, plan);
}

template <typename T, bool kAscent, bool kHeld, typename Team>
DROCC_HD void mahalanobis_shell_backward_row(const Team& team, const MahalanobisBackwardArgs& args, bool aligned,
                                             int64_t row, Compute<T>* memory) {
  using C = Compute<T>;
  const MahalanobisRowsArgs& forward = args.forward;
  const int64_t n = forward.length;
  const int64_t offset = row * n;
  auto view = read_row<T, kAscent, kHeld>(team, forward, aligned, row, memory);
  view.upstream_row = static_cast<const T*>(args.upstream) + offset;
  T* grad_h = static_cast<T*>(args.grad_h) + offset;
  C* grad_sigma = static_cast<C*>(args.grad_sigma) + offset;
  const math::Shell shell = shell_of<T>(forward.radius_rows, forward.radius, forward.gamma, row);
  const auto plan = math::plan_projection<C>(team, n, view, shell, forward.grid_points, kEnough<C>);
  const auto gradient = math::plan_gradient(team, n, view, plan, forward.gamma);
  const auto term = [&](int64_t i) {
    return math::gradient_term(plan, gradient, i, view.d(i), view.sigma(i), view.upstream(i));
  };
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    const auto both = term(i);
    from_compute(both.d, grad_h + i);
    grad_sigma[i] = both.sigma;
  }
  if constexpr (kAscent) {
    T* grad_grad = static_cast<T*>(args.grad_grad) + offset;
    math::ascent_backward(
        team, n, view.ascent.grad_norm, forward.step_size,
        [&](int64_t i) -> double { return to_compute(view.at.grad[i]); },
        [&](int64_t i) -> double { return term(i).d; },
        [&](int64_t i, double value) { from_compute(value, grad_grad + i); });
  }
  if (team.leads()) {
    const C grad_radius = plan.side == math::Side::kInvalid ? static_cast<C>(math::quiet_nan()) : gradient.radius;
    static_cast<C*>(args.grad_radius)[row] = grad_radius;
  }
}

template <typename T, typename Team>
DROCC_HD void mahalanobis_norm_row(const Team& team, const MahalanobisRowsArgs& args, int64_t row) {
  const auto view = read_row<T, false, false>(team, args, false, row, nullptr);
  const Compute<T> norm = math::mahalanobis_norm_row<Compute<T>>(team, args.length, view);
  if (team.leads()) static_cast<Compute<T>*>(args.out)[row] = norm;
}

template <typename T, typename Team>
DROCC_HD void mahalanobis_norm_backward_row(const Team& team, const MahalanobisBackwardArgs& args, int64_t row) {
  using C = Compute<T>;
  const int64_t n = args.forward.length;
  const auto view = read_row<T, false, false>(team, args.forward, false, row, nullptr);
  const C length = math::mahalanobis_norm_row<C>(team, n, view);
  const C upstream = static_cast<const C*>(args.upstream)[row];
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    const auto both = math::norm_gradient_term(length, view.d(i), view.sigma(i), upstream);
    from_compute(both.d, static_cast<T*>(args.grad_h) + row * n + i);
    static_cast<C*>(args.grad_sigma)[row * n + i] = both.sigma;
  }
}

}  // namespace drocc::cuda
