// The multiplier of Proposition 1: the nearest x to d with sum_j sigma_j x_j^2 = R^2, for one row.
//
// The minimum is at x_j = d_j / (1 + tau sigma_j). With s_max = max_j sigma_j the unknown used here is
// t = 1 + tau s_max: then 1 + tau sigma_j = b_j + t w_j with w_j = sigma_j / s_max, b_j = (s_max - sigma_j) / s_max,
// and nothing cancels. With u_j = d_j sqrt(s_max) / R the condition on t is
//   F(t) = sum_j w_j (u_j / (b_j + t w_j))^2 = 1.
// Rows nearer than R have their root in [0, 1), rows farther out above 1. 1 / sqrt(F) is increasing and concave in t (a
// sum of inverse squares of positive affine functions, to the power -1/2), so Newton's method for 1 / sqrt(F) = 1
// climbs to the root from any start on its left, without a bracket, and a step from its right ends on its left.
#pragma once

#include "config.h"
#include "scaled_norm.h"

namespace drocc::math {

// The constants of one row's equation. Scales are powers of two, sigma's an even one.
template <typename Real>
struct Secular {
  Real d_scale;
  Real sigma_scale;
  Real largest;          // s_max * sigma_scale
  Real inverse_largest;  // its reciprocal
  Real unit;             // u = d * d_scale * unit
};

template <typename Real>
struct SecularTerm {
  Real u;
  Real w;
  Real b;  // exactly 0 where sigma is the largest of the row ("tied"), and only there
};

template <typename Real>
DROCC_HD Real scaled_d(const Secular<Real>& equation, Real d) {
  return (d * equation.d_scale) * equation.unit;
}

template <typename Real>
DROCC_HD SecularTerm<Real> secular_term(const Secular<Real>& equation, Real d, Real sigma) {
  const Real scaled = sigma * equation.sigma_scale;
  return {scaled_d(equation, d), scaled * equation.inverse_largest,
          (equation.largest - scaled) * equation.inverse_largest};
}

// u in sums where it is multiplied by its weight: without one it may be infinite, where Real is no wider than what is
// stored.
template <typename Row, typename Real>
DROCC_HD Real counted(Real weight, Real u) {
  if constexpr (Row::kScaled) return weight > 0 ? u : 0;
  return u;
}

// F(t) and Q(t) = -t F'(t) / 2; Q <= F.
template <typename Real>
struct SecularValue {
  Real f;
  Real q;
};

// Row, here and below: d(i), sigma(i) -> Real. t > 0. With s_j = sigma_j in units of sigma_scale, w_j = s_j / s_max and
// b_j = (s_max - s_j) / s_max: the divisions by s_max are left out of every term and made good for the sum.
template <typename Real, typename Team, typename Row>
DROCC_HD SecularValue<Real> secular_value(const Team& team, int64_t n, const Row& row, const Secular<Real>& equation,
                                          Real t) {
  Real sums[2] = {0, 0};
  for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
    Real f = 0;
    Real q = 0;
    DROCC_UNROLL_BY(4)
    DROCC_SIMD(reduction(+ : f, q))
    for (IndexOf<Team> i = first; i < last; i += team.step()) {
      const Real s = row.sigma(i) * equation.sigma_scale;
      const Real ts = t * s;
      const Real inverse = reciprocal((equation.largest - s) + ts);
      const Real v = counted<Row>(s, scaled_d(equation, row.d(i))) * inverse;
      const Real share = (s * v) * v;
      f += share;
      q += share * (ts * inverse);
    }
    sums[0] += f;
    sums[1] += q;
  });
  team.sum_all(sums);
  return {sums[0] * equation.largest, sums[1] * equation.largest};
}

// F(0) and -F'(0) / 2 without the tied coordinates, which have a pole there.
template <typename Real, typename Team, typename Row>
DROCC_HD SecularValue<Real> secular_value_at_zero(const Team& team, int64_t n, const Row& row,
                                                  const Secular<Real>& equation) {
  Real sums[2] = {0, 0};
  for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
    Real f = 0;
    Real slope = 0;
    DROCC_UNROLL_BY(4)
    DROCC_SIMD(reduction(+ : f, slope))
    for (IndexOf<Team> i = first; i < last; i += team.step()) {
      const SecularTerm<Real> term = secular_term(equation, row.d(i), row.sigma(i));
      const Real inverse = term.b > 0 ? 1 / term.b : 0;
      const Real v = counted<Row>(term.w, term.u) * inverse;
      const Real share = (term.w * v) * v;
      f += share;
      slope += share * (term.w * inverse);
    }
    sums[0] += f;
    sums[1] += slope;
  });
  team.sum_all(sums);
  return {sums[0], sums[1]};
}

// Largest |u| among the tied coordinates.
template <typename Real, typename Team, typename Row>
DROCC_HD Real largest_tied(const Team& team, int64_t n, const Row& row, const Secular<Real>& equation) {
  Real largest = 0;
  DROCC_SIMD(reduction(max : largest))
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    const SecularTerm<Real> term = secular_term(equation, row.d(i), row.sigma(i));
    const Real size = term.b == 0 ? static_cast<Real>(fabs(term.u)) : 0;
    largest = size > largest ? size : largest;
  }
  return static_cast<Real>(team.max(largest));
}

// The relative step of Newton's method, in the one order of operations that keeps its precision when t is tiny.
template <typename Real>
DROCC_HD Real newton_increment(const SecularValue<Real>& value) {
  return (value.f / value.q) * (sqrt(value.f) - 1);
}

template <typename Real>
struct SecularRoot {
  Real t;
  Real scale;  // brings the coordinates with sigma > 0 onto the ellipsoid, to rounding
  bool hard;   // no root: t is 0, and the tied coordinates take `missing` (in units of u)
  Real missing;
};

constexpr int kMostNewtonSteps = 64;

// length: ||d||_S / R; at_one: its square F(1), and Q(1). near: length < 1; otherwise length > 1.
template <typename Real, typename Team, typename Row>
DROCC_HD SecularRoot<Real> solve_secular(const Team& team, int64_t n, const Row& row, const Secular<Real>& equation,
                                         Real length, const SecularValue<Real>& at_one, bool near, Real enough) {
  const Real tiny = std::numeric_limits<Real>::min();
  const Real eps = std::numeric_limits<Real>::epsilon();
  // A start that is left of the root for certain. Far out b + t w <= t, so that sqrt(F(t)) >= length / t.
  Real left = length;
  if (near) {
    left = largest_tied(team, n, row, equation);  // v of that coordinate alone is 1 there
    if (left < tiny) {
      const SecularValue<Real> zero = secular_value_at_zero(team, n, row, equation);
      if (zero.f < 1) return {0, 1, true, static_cast<Real>(sqrt(1 - zero.f))};
      left = newton_increment(zero);
    }
  }
  left = left > tiny ? left : tiny;
  // A better one: a step from t = 1, whichever side of the root that is. Where the root is tiny, rounding may put it on
  // the right.
  const Real from_one = at_one.q > 0 && is_finite(at_one.f) ? 1 + newton_increment(at_one) : 0;
  Real t = from_one > left ? from_one : left;
  for (int step = 0;; ++step) {
    const SecularValue<Real> value = secular_value(team, n, row, equation, t);
    const Real root = sqrt(value.f);
    const Real increment = newton_increment(value);
    Real next = t * (1 + increment);
    const Real away = root - 1;
    if (away > 4 * eps || away < -4 * eps) {
      // What is left after this step is of the order of its square, below rounding: F there is 1.
      if (increment <= enough && increment >= -enough) return {next, 1, false, 0};
      if (away < 0) next = next > left ? next : left;
      if ((away > 0 ? next > t : next < t) && step < kMostNewtonSteps) {
        t = next;
        continue;
      }
    }
    // A length beyond the range of Real must not pass for one that was brought to the bound.
    return {t, is_finite(root) ? 1 / root : static_cast<Real>(quiet_nan()), false, 0};
  }
}

// ---- the paper's grid ----------------------------------------------------------------------------------------

// Candidate k of 1 .. points - 1, even in tau (near) or in 1 / tau (far) between the bounds of section 4; k = 0 is
// singular. length: ||d||_S / R.
template <typename Real>
DROCC_HD Real secular_grid_point(int64_t k, int64_t points, Real length, bool near) {
  if (near) return static_cast<Real>(k) / static_cast<Real>(points - 1);
  return 1 + (length - 1) * static_cast<Real>(points - 1) / static_cast<Real>(k);
}

// The feasible candidate of least distance. Distance falls and feasibility only ends as k grows, so it is the last
// feasible one, found by bisection over k. Without any, or where the root is of the hard kind, 0: solve exactly.
template <typename Real>
struct SecularGridPoint {
  bool found;
  Real t;
  Real length;  // ||x||_S / R of the point
};

template <typename Real, typename Team, typename Row>
DROCC_HD SecularGridPoint<Real> search_secular_grid(const Team& team, int64_t n, const Row& row,
                                                    const Secular<Real>& equation, int64_t points, Real length,
                                                    bool near) {
  // For equal sigma the far end meets the bound exactly: rounding must not exclude it.
  const Real tolerance = 16 * std::numeric_limits<Real>::epsilon();
  SecularGridPoint<Real> best{false, 0, 0};
  int64_t feasible = 0;
  int64_t infeasible = points;
  while (infeasible - feasible > 1) {
    const int64_t k = feasible + (infeasible - feasible) / 2;
    const Real t = secular_grid_point(k, points, length, near);
    const Real f = secular_value(team, n, row, equation, t).f;
    if (near ? f >= 1 - tolerance : f <= 1 + tolerance) {
      feasible = k;
      best = {true, t, static_cast<Real>(sqrt(f))};
    } else {
      infeasible = k;
    }
  }
  return best;
}

}  // namespace drocc::math
