// Euclidean norms that neither overflow nor underflow, over a row that a team of threads shares.
#pragma once

#include "config.h"

namespace drocc::math {

// The team of one thread: the CPU kernels' team, and the host-side stand-in for a CUDA team.
struct SerialTeam {
  DROCC_HD_MEMBER int64_t rank() const { return 0; }
  DROCC_HD_MEMBER int64_t size() const { return 1; }
  DROCC_HD_MEMBER double sum(double value) const { return value; }
  DROCC_HD_MEMBER double max(double value) const { return value; }
};

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

// max_i |element(i)|, element(i) -> double; NaN if any element is NaN or infinite. This and everything below is
// collective: every thread of the team calls it and gets the same answer.
template <typename Team, typename Element>
DROCC_HD double max_abs(const Team& team, int64_t n, const Element& element) {
  double maximum = 0.0;
  double poison = 0.0;  // stays 0 for finite elements; x - x is NaN otherwise, and NaN survives the sum
  DROCC_SIMD(reduction(max : maximum) reduction(+ : poison))
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double x = fabs(element(i));
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
  double sum = 0.0;
  DROCC_SIMD(reduction(+ : sum))
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double x = element(i) * inverse_scale;
    sum += x * x;
  }
  return {inverse_scale, sqrt(team.sum(sum))};
}

// The same where squares of elements cannot leave the range of double, in one pass.
template <typename Team, typename Element>
DROCC_HD ScaledNorm narrow_norm(const Team& team, int64_t n, const Element& element) {
  double sum = 0.0;
  DROCC_SIMD(reduction(+ : sum))
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double x = element(i);
    sum += x * x;
  }
  const double norm = sqrt(team.sum(sum));
  return {1.0, norm + (norm - norm)};  // NaN for infinity too
}

}  // namespace drocc::math
