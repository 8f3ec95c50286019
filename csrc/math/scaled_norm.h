// Euclidean norms that neither overflow nor underflow, over a row that a team of threads shares.
#pragma once

#include <utility>

#include "config.h"

namespace drocc::math {

// A team is the threads that work on one row. begin, end and step say which elements of a row of n a thread takes;
// sum and max are collective: every thread of the team calls them and gets the same answer, to the bit.
// This one has one thread: the CPU kernels' team.
struct SerialTeam {
  static constexpr int64_t kBlock = 1024;  // most elements of a thread that are summed one after the other
  DROCC_HD_MEMBER int64_t begin(int64_t) const { return 0; }
  DROCC_HD_MEMBER int64_t end(int64_t n) const { return n; }
  DROCC_HD_MEMBER int64_t step() const { return 1; }
  template <typename Real>
  DROCC_HD_MEMBER Real sum(Real value) const {
    return value;
  }
  template <typename Real>
  DROCC_HD_MEMBER Real max(Real value) const {
    return value;
  }
  // Several sums at the price of one exchange between threads.
  template <typename Real, int kCount>
  DROCC_HD_MEMBER void sum_all(Real (&)[kCount]) const {}
  // What the search in hidden space asks besides; there it is explained.
  DROCC_HD_MEMBER void sync() const {}
  DROCC_HD_MEMBER bool any(bool flag) const { return flag; }
  template <typename Flag, typename Body>
  DROCC_HD_MEMBER void each(int64_t n, const Flag& flag, const Body& body) const {
    for (int64_t j = 0; j < n; ++j) {
      const int value = flag(j);
      if (value != 0) body(j, value);
    }
  }
};

// What a team counts elements in.
template <typename Team>
using IndexOf = decltype(std::declval<const Team&>().step());

// Sums of long rows are taken in two levels, over blocks and then over these, so that no chain of additions grows with
// the row. block(first, last): a stretch of the thread's share, to be gone through by the team's steps.
template <typename Team, typename Block>
DROCC_HD void for_blocks(const Team& team, int64_t n, const Block& block) {
  const IndexOf<Team> end = team.end(n);
  const IndexOf<Team> stride = Team::kBlock * team.step();
  for (IndexOf<Team> first = team.begin(n); first < end;) {
    const IndexOf<Team> last = end - first > stride ? first + stride : end;
    block(first, last);
    first = last;
  }
}

// sum_i term(i). Collective.
template <typename Real = double, typename Team, typename Term>
DROCC_HD Real sum_of(const Team& team, int64_t n, const Term& term) {
  Real total = 0;
  for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
    Real sum = 0;
    DROCC_UNROLL_BY(4)
    DROCC_SIMD(reduction(+ : sum))
    for (IndexOf<Team> i = first; i < last; i += team.step()) sum += term(i);
    total += sum;
  });
  return team.sum(total);
}

// A norm held as scaled / inverse_scale, so that 1e300-sized and 1e-300-sized rows keep full precision.
// A row with a NaN or an infinity has scaled = NaN; a row of exact zeros has scaled = 0.
struct ScaledNorm {
  double inverse_scale;  // a power of two: multiplying by it is exact
  double scaled;         // norm * inverse_scale
};

template <typename Real>
DROCC_HD bool is_finite(Real x) {
  return x - x == 0;
}

DROCC_HD double quiet_nan() {
  return std::numeric_limits<double>::quiet_NaN();
}

// The power of two that brings a positive finite maximum close to 1; bounded so that it is itself a normal number.
template <typename Real>
DROCC_HD Real inverse_scale_of(Real maximum) {
  constexpr int kLimit = std::numeric_limits<Real>::max_exponent - 2;
  int exponent = ilogb(maximum);
  if (exponent > kLimit) exponent = kLimit;
  if (exponent < -kLimit) exponent = -kLimit;
  return ldexp(Real(1), -exponent);
}

// max_i |element(i)|; NaN if any element is NaN or infinite. Element: element(i) -> Real. This and everything below is
// collective.
template <typename Real = double, typename Team, typename Element>
DROCC_HD Real max_abs(const Team& team, int64_t n, const Element& element) {
  Real maximum = 0;
  Real poison = 0;  // stays 0 for finite elements; x - x is NaN otherwise, and NaN survives the sum
  DROCC_SIMD(reduction(max : maximum) reduction(+ : poison))
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    const Real x = fabs(element(i));
    maximum = x > maximum ? x : maximum;
    poison += x - x;
  }
  maximum = team.max(maximum);
  return maximum + team.sum(poison);
}

template <typename Team, typename Element>
DROCC_HD ScaledNorm scaled_norm(const Team& team, int64_t n, const Element& element) {
  const double maximum = max_abs(team, n, element);
  if (!(maximum > 0.0)) return {1.0, maximum};
  const double inverse_scale = inverse_scale_of(maximum);
  const double sum = sum_of(team, n, [&](int64_t i) {
    const double x = element(i) * inverse_scale;
    return x * x;
  });
  return {inverse_scale, sqrt(sum)};
}

// The same where squares of elements cannot leave the range of double, in one pass.
template <typename Team, typename Element>
DROCC_HD ScaledNorm narrow_norm(const Team& team, int64_t n, const Element& element) {
  const double norm = sqrt(sum_of(team, n, [&](int64_t i) {
    const double x = element(i);
    return x * x;
  }));
  return {1.0, norm + (norm - norm)};  // NaN for infinity too
}

}  // namespace drocc::math
