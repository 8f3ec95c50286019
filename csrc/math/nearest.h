// The distance from a point to the nearest of many rows, which the soft labels of eq. (1) are made of.
#pragma once

#include "scaled_norm.h"

namespace drocc::math {

// One term more of a squared distance. Real: a number or a vector of numbers.
template <typename Real>
DROCC_HD Real add_square(Real sum, Real a, Real b) {
  const Real difference = a - b;
  return sum + difference * difference;
}

// The distance of two rows, in double: squares of differences of floats then leave no range. Element: (i) -> double.
template <typename Team, typename First, typename Second>
DROCC_HD double distance(const Team& team, int64_t n, const First& first, const Second& second) {
  return sqrt(sum_of(team, n, [&](int64_t i) { return add_square(0.0, first(i), second(i)); }));
}

// Squares of differences between these two bounds kept their precision in Real.
template <typename Real>
DROCC_HD bool is_safe_square(Real square) {
  return square > (sizeof(Real) == 8 ? Real(1e-280) : Real(1e-28)) &&
         square < (sizeof(Real) == 8 ? Real(1e300) : Real(1e37));
}

}  // namespace drocc::math
