// The Mahalanobis shell {y : radius <= ||y||_S <= gamma * radius}, ||y||_S = sqrt(sum_j sigma_j y_j^2): for one row,
// where it lies, its nearest point (secular.h), and the derivatives.
#pragma once

#include "config.h"
#include "l2_shell.h"
#include "scaled_norm.h"
#include "secular.h"

namespace drocc::math {

// Row, in this file: d(i), sigma(i) -> Real, and kScaled: whether products of three of them may leave the range of Real
// (they cannot where Real is wider than what is stored).

template <typename Real>
struct MahalanobisLength {
  bool bad;                // NaN, infinity or a negative sigma in the row
  bool empty;              // no sigma > 0: nothing has a length
  Secular<Real> equation;  // without its unit, which needs a bound
  Real length;             // ||d||_S * d_scale * sqrt(sigma_scale)
  Real fourth;             // sum of (sigma d)^2, in the same scales
};

// radius: what the length will be compared with, so that it fits the scales too; 0 for nothing.
template <typename Real, typename Team, typename Row>
DROCC_HD MahalanobisLength<Real> mahalanobis_length(const Team& team, int64_t n, const Row& row, Real radius) {
  Real largest = 0;
  Real least = 0;
  Real d_largest = 0;
  Real poison = 0;  // stays 0 for finite elements
  Real sums[2] = {0, 0};
  for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
    Real square = 0;
    Real fourth = 0;
    DROCC_UNROLL_BY(4)
    DROCC_SIMD(reduction(max : largest, d_largest) reduction(min : least) reduction(+ : poison, square, fourth))
    for (IndexOf<Team> i = first; i < last; i += team.step()) {
      const Real d = row.d(i);
      const Real sigma = row.sigma(i);
      poison += (d - d) + (sigma - sigma);
      largest = sigma > largest ? sigma : largest;
      least = sigma < least ? sigma : least;
      if constexpr (Row::kScaled) {
        const Real size = sigma > 0 ? static_cast<Real>(fabs(d)) : 0;
        d_largest = size > d_largest ? size : d_largest;
      } else {
        const Real sd = sigma * d;
        square += sd * d;
        fourth += sd * sd;
      }
    }
    sums[0] += square;
    sums[1] += fourth;
  });
  largest = team.max(largest);
  MahalanobisLength<Real> result{};
  // Poison first: it is NaN, which compares unequal to 0.
  result.bad = team.sum(poison + (least < 0 ? 1 : 0)) != 0;
  result.empty = !(largest > 0);
  if (result.bad || result.empty) return result;
  Secular<Real>& equation = result.equation;
  equation = {1, 1, largest, 1 / largest, 0};
  if constexpr (Row::kScaled) {
    d_largest = static_cast<Real>(team.max(d_largest));
    const Real wanted = radius / static_cast<Real>(sqrt(largest));
    d_largest = wanted > d_largest ? wanted : d_largest;
    equation.d_scale = d_largest > 0 ? inverse_scale_of(d_largest) : 1;
    // An even power, so that its root is exact; bounded so that it is finite.
    Real half = inverse_scale_of(static_cast<Real>(sqrt(largest)));
    const Real most = ldexp(Real(1), std::numeric_limits<Real>::max_exponent / 2 - 1);
    half = half < most ? half : most;
    equation.sigma_scale = half * half;
    equation.largest = largest * half * half;
    equation.inverse_largest = 1 / equation.largest;
    for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
      Real square = 0;
      Real fourth = 0;
      DROCC_UNROLL_BY(4)
      DROCC_SIMD(reduction(+ : square, fourth))
      for (IndexOf<Team> i = first; i < last; i += team.step()) {
        const Real sigma = row.sigma(i) * half * half;
        const Real d = sigma > 0 ? row.d(i) * equation.d_scale : 0;
        const Real sd = sigma * d;
        square += sd * d;
        fourth += sd * sd;
      }
      sums[0] += square;
      sums[1] += fourth;
    });
  }
  team.sum_all(sums);
  result.length = static_cast<Real>(sqrt(sums[0]));
  result.fourth = sums[1];
  return result;
}

// What the projection does to a row: x_j = d_j / (b_j + t w_j), times `scale` where sigma_j > 0. In a hard row the tied
// coordinates become `missing` times their direction instead, or, where they are all 0, the first of them takes it.
template <typename Real>
struct MahalanobisPlan {
  Side side;
  bool hard;
  bool on_grid;
  Secular<Real> equation;
  Real t;
  Real scale;
  Real missing;        // in units of d
  ScaledNorm tied;     // of the tied coordinates of d, hard rows only
  int64_t first_tied;  // hard rows only
  Real sigma_unit;     // sqrt(s_max) = sqrt(equation.largest) / sigma_unit
  bool beyond;         // of the range of Real: its squares would overflow; the side is then kInvalid
};

template <typename Real>
DROCC_HD Real limited(Real value, Real least, Real most) {
  return value < least ? least : (value > most ? most : value);
}

// enough: relative accuracy of t at which one more step of Newton's method leaves nothing. grid_points 0: exact.
template <typename Real, typename Team, typename Row>
DROCC_HD MahalanobisPlan<Real> plan_projection(const Team& team, int64_t n, const Row& row, const Shell& shell,
                                               int64_t grid_points, Real enough) {
  MahalanobisPlan<Real> plan{};
  plan.t = 1;
  plan.scale = 1;
  const MahalanobisLength<Real> measured = mahalanobis_length<Real>(team, n, row, static_cast<Real>(shell.inner));
  plan.side = measured.bad || !(shell.inner > 0) ? Side::kInvalid : Side::kInside;
  if (plan.side == Side::kInvalid || measured.empty) return plan;
  plan.equation = measured.equation;
  plan.sigma_unit = static_cast<Real>(sqrt(measured.equation.sigma_scale));
  // In double: the outer radius may be beyond the range of float, and in the row's units within it.
  const double to_scaled = static_cast<double>(plan.equation.d_scale) * static_cast<double>(plan.sigma_unit);
  const Real inner = static_cast<Real>(shell.inner * to_scaled);
  const Real outer = static_cast<Real>(shell.outer * to_scaled);
  if constexpr (sizeof(Real) == 4) {
    // Coordinates so much longer than the shell that weights below the range of float would count.
    if (!(static_cast<Real>(sqrt(plan.equation.largest)) < Real(1e8) * inner)) {
      plan.side = Side::kInvalid;
      plan.beyond = true;
      return plan;
    }
  }
  const bool near = measured.length < inner;
  if (!near && !(measured.length > outer)) return plan;
  plan.side = near ? Side::kNear : Side::kFar;

  const Real bound = near ? inner : outer;
  const Real length = measured.length / bound;
  plan.equation.unit = static_cast<Real>(sqrt(plan.equation.largest)) / bound;
  if constexpr (sizeof(Real) == 4) {
    if (!(length < Real(1e15)) || (near && !(bound < Real(1e15) * measured.length) && measured.length > 0)) {
      plan.side = Side::kInvalid;
      plan.beyond = true;
      return plan;
    }
  }
  if (!(plan.equation.unit > 0) || !is_finite(plan.equation.unit)) {
    // The radius is beyond the range of Real in the units of the row.
    plan.side = Side::kInvalid;
    return plan;
  }
  if (grid_points > 0) {
    const SecularGridPoint<Real> point = search_secular_grid(team, n, row, plan.equation, grid_points, length, near);
    if (point.found) {
      // A grid point respects one bound only.
      const Real gamma = static_cast<Real>(shell.outer / shell.inner);
      const Real wanted = near ? limited<Real>(point.length, 1, gamma) : limited<Real>(point.length, 1 / gamma, 1);
      plan.on_grid = true;
      plan.t = point.t;
      plan.scale = wanted / point.length;
      return plan;
    }
  }
  const SecularValue<Real> at_one{length * length, measured.fourth * plan.equation.inverse_largest / (bound * bound)};
  const SecularRoot<Real> root = solve_secular(team, n, row, plan.equation, length, at_one, near, enough);
  plan.t = root.t;
  plan.scale = root.scale;
  plan.hard = root.hard;
  if (root.hard) {
    const auto is_tied = [&](int64_t i) { return secular_term(plan.equation, row.d(i), row.sigma(i)).b == 0; };
    plan.missing = root.missing / plan.equation.unit / plan.equation.d_scale;
    plan.tied = scaled_norm(team, n, [&](int64_t i) { return is_tied(i) ? static_cast<double>(row.d(i)) : 0.0; });
    double first = static_cast<double>(n);
    for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
      if (is_tied(i)) {
        first = static_cast<double>(i);
        break;
      }
    }
    plan.first_tied = static_cast<int64_t>(-team.max(-first));
  }
  return plan;
}

// The direction that a tied coordinate of a hard row shares in.
template <typename Real>
DROCC_HD Real tied_direction(const MahalanobisPlan<Real>& plan, int64_t i, Real d) {
  if (plan.tied.scaled > 0) return static_cast<Real>(d * plan.tied.inverse_scale / plan.tied.scaled);
  return i == plan.first_tied ? 1 : 0;
}

// One coordinate of the nearest point, of a row on the near or far side.
template <typename Real>
DROCC_HD Real projected_term(const MahalanobisPlan<Real>& plan, Real d, Real sigma) {
  const SecularTerm<Real> term = secular_term(plan.equation, d, sigma);
  const Real x = d / (term.b + plan.t * term.w) * plan.scale;
  return sigma > 0 ? x : d;  // b may be an ulp beside 1 there
}

template <typename Real>
DROCC_HD Real projected_hard_term(const MahalanobisPlan<Real>& plan, int64_t i, Real d, Real sigma) {
  const SecularTerm<Real> term = secular_term(plan.equation, d, sigma);
  if (term.b == 0) return plan.missing * tied_direction(plan, i, d);
  return sigma > 0 ? d / term.b : d;
}

// Row: also store(i, Real).
template <typename Real, typename Team, typename Row>
DROCC_HD void write_projection(const Team& team, int64_t n, const Row& row, const MahalanobisPlan<Real>& plan) {
  if (plan.side == Side::kInvalid) {
    for (auto i = team.begin(n); i < team.end(n); i += team.step()) row.store(i, static_cast<Real>(quiet_nan()));
  } else if (plan.side == Side::kInside) {
    DROCC_SIMD()
    for (auto i = team.begin(n); i < team.end(n); i += team.step()) row.store(i, row.d(i));
  } else if (plan.hard) {
    for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
      row.store(i, projected_hard_term(plan, i, row.d(i), row.sigma(i)));
    }
  } else {
    DROCC_SIMD()
    for (auto i = team.begin(n); i < team.end(n); i += team.step())
      row.store(i, projected_term(plan, row.d(i), row.sigma(i)));
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------

// The implicit function theorem on F(t) = 1. With c_j = 1 / (b_j + t w_j), an upstream gradient G,
//   a = sum_j G_j w_j u_j c_j^2,  q = sum_j w_j^2 u_j^2 c_j^3  and  rho = a / q:
//   grad of d:      G c - rho w u c^2
//   grad of sigma:  (R / sqrt(s_max)) / s_max * (-(t - 1) G u c^2 - rho u^2 c^3 (1 - (t - 1) w) / 2)
//   grad of R:      rho / sqrt(s_max)                 (R is radius, or gamma * radius)
// For the tied coordinates (w = 1, b = 0) the first difference cancels as t becomes tiny. With a_r and q_r the sums
// over the other coordinates, v = u c, and A = sum G v, V = sum v^2 over the tied ones, it is
//   c (G q_r - v a_r + c (G V - v A)) / q =: D,  the last term 0 where only one is tied
// (v is at most 1; u of a row 1e154 radii long has no square in double),
// and grad of sigma the usual factor times u c (D (1 - t / 2) - G / 2).
// A hard row has t = 0 and, along the unit direction e of its tied coordinates, the missing length m (in units of u).
// There rho = <G, e> / m; the sums run over the other coordinates, and the tied ones get
//   grad of d:      e (rho q - a) / m
//   grad of sigma:  (R / sqrt(s_max)) / s_max * e^2 (rho q - a - <G, e> m / 2)
// (nothing for directions across e: the projection jumps there). Inside the shell: G, 0, 0.
template <typename Real>
struct MahalanobisGradient {
  Real rho;
  Real q;
  Real a_rest;  // a and q without the tied coordinates
  Real q_rest;
  Real tied_along;   // sum of G v over the tied coordinates; not in hard rows
  Real tied_square;  // sum of v^2
  bool one_tied;
  Real from_tied;  // rho q - a
  Real along;      // <G, e>
  Real missing;    // m
  Real sigma_gain;
  Real radius;  // the gradient of the inner radius
};

// Row: also upstream(i) -> Real.
template <typename Real, typename Team, typename Row>
DROCC_HD MahalanobisGradient<Real> plan_gradient(const Team& team, int64_t n, const Row& row,
                                                 const MahalanobisPlan<Real>& plan, double gamma) {
  MahalanobisGradient<Real> result{};
  if (plan.side != Side::kNear && plan.side != Side::kFar) return result;
  Real sums[2] = {0, 0};
  Real tied_sums[3] = {0, 0, 0};
  const Real t = plan.t;
  const Real tied_c = plan.hard ? 0 : 1 / t;
  for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
    Real a = 0;
    Real q = 0;
    Real tied_along = 0;
    Real tied_square = 0;
    Real tied = 0;
    DROCC_UNROLL_BY(4)
    DROCC_SIMD(reduction(+ : a, q, tied_along, tied_square, tied))
    for (IndexOf<Team> i = first; i < last; i += team.step()) {
      const SecularTerm<Real> term = secular_term(plan.equation, row.d(i), row.sigma(i));
      const bool is_tied = term.b == 0;
      const Real u = counted<Row>(term.w, term.u);
      const Real c = is_tied ? 0 : 1 / (term.b + t * term.w);
      const Real v = u * c;
      a += row.upstream(i) * (term.w * v) * c;
      q += (term.w * v) * (term.w * v) * c;
      const Real tied_v = is_tied ? u * tied_c : 0;
      tied_along += is_tied ? row.upstream(i) * tied_v : 0;
      tied_square += tied_v * tied_v;
      tied += is_tied ? Real(1) : 0;
    }
    sums[0] += a;
    sums[1] += q;
    tied_sums[0] += tied_along;
    tied_sums[1] += tied_square;
    tied_sums[2] += tied;
  });
  team.sum_all(sums);
  team.sum_all(tied_sums);
  const Real a = result.a_rest = sums[0];
  const Real q = result.q_rest = sums[1];
  result.tied_along = tied_sums[0];
  result.tied_square = tied_sums[1];
  result.one_tied = tied_sums[2] == 1;
  if (!plan.hard) {
    result.q = q + result.tied_square * tied_c;
    result.rho = (a + result.tied_along * tied_c) / result.q;
  }
  if (plan.hard) {
    result.along = sum_of<Real>(team, n, [&](int64_t i) -> Real {
      const SecularTerm<Real> term = secular_term(plan.equation, row.d(i), row.sigma(i));
      return term.b == 0 ? row.upstream(i) * tied_direction(plan, i, row.d(i)) : 0;
    });
    result.missing = plan.missing * plan.equation.d_scale * plan.equation.unit;
    result.rho = result.along / result.missing;
    result.from_tied = result.rho * q - a;
  }
  const Real root = static_cast<Real>(sqrt(plan.equation.largest)) / plan.sigma_unit;  // sqrt(s_max)
  result.sigma_gain = 1 / plan.equation.unit / plan.equation.d_scale / root / root;
  result.radius = result.rho / root * (plan.side == Side::kFar ? static_cast<Real>(gamma) : 1);
  return result;
}

template <typename Real>
struct MahalanobisGradientTerm {
  Real d;
  Real sigma;
};

template <typename Real>
DROCC_HD MahalanobisGradientTerm<Real> gradient_term(const MahalanobisPlan<Real>& plan,
                                                     const MahalanobisGradient<Real>& gradient, int64_t i, Real d,
                                                     Real sigma, Real upstream) {
  if (plan.side == Side::kInside) return {upstream, 0};
  if (plan.side == Side::kInvalid) return {static_cast<Real>(quiet_nan()), static_cast<Real>(quiet_nan())};
  const SecularTerm<Real> term = secular_term(plan.equation, d, sigma);
  if (plan.hard && term.b == 0) {
    const Real e = tied_direction(plan, i, d);
    const Real share = gradient.from_tied - gradient.along * gradient.missing / 2;
    return {e * gradient.from_tied / gradient.missing, gradient.sigma_gain * e * e * share};
  }
  const Real c = 1 / (term.b + plan.t * term.w);
  const Real v = term.u * c;
  if (term.b == 0) {
    Real rest = upstream * gradient.q_rest - v * gradient.a_rest;
    if (!gradient.one_tied) {
      rest += c * (upstream * gradient.tied_square - v * gradient.tied_along);
    }
    const Real by_d = c * (rest / gradient.q);
    return {by_d, gradient.sigma_gain * v * (by_d * (1 - plan.t / 2) - upstream / 2)};
  }
  const Real bent = gradient.rho * v * c;
  const Real lift = (plan.t - 1) * term.w;
  const Real by_sigma = -(plan.t - 1) * upstream * v * c - bent * v * (1 - lift) / 2;
  return {upstream * c - term.w * bent, gradient.sigma_gain * by_sigma};
}

// ||d||_S.
template <typename Real, typename Team, typename Row>
DROCC_HD Real mahalanobis_norm_row(const Team& team, int64_t n, const Row& row) {
  const MahalanobisLength<Real> measured = mahalanobis_length<Real>(team, n, row, 0);
  if (measured.bad) return static_cast<Real>(quiet_nan());
  if (measured.empty) return 0;
  return measured.length / measured.equation.d_scale / static_cast<Real>(sqrt(measured.equation.sigma_scale));
}

// For an upstream gradient G of the length: grad of d = G sigma d / ||d||_S, grad of sigma = G d^2 / (2 ||d||_S); both
// 0 for a row of length 0.
template <typename Real>
DROCC_HD MahalanobisGradientTerm<Real> norm_gradient_term(Real length, Real d, Real sigma, Real upstream) {
  if (length == 0) return {0, 0};
  const Real unit = upstream * (d / length);
  return {unit * sigma, unit * d / 2};
}

}  // namespace drocc::math
