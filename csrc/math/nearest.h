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

// A square between these two bounds kept its precision in Real.
template <typename Real>
DROCC_HD bool is_safe_square(Real square) {
  return square > (sizeof(Real) == 8 ? Real(1e-280) : Real(1e-28)) &&
         square < (sizeof(Real) == 8 ? Real(1e300) : Real(1e37));
}

// The distance of two rows, in double. Squares of differences of floats leave no range; where those of doubles do, the
// differences are scaled. Element: (i) -> double. Collective.
template <typename Team, typename First, typename Second>
DROCC_HD double distance(const Team& team, int64_t n, const First& first, const Second& second) {
  const double square = sum_of(team, n, [&](int64_t i) { return add_square(0.0, first(i), second(i)); });
  if (is_safe_square(square)) return sqrt(square);
  const ScaledNorm norm = scaled_norm(team, n, [&](int64_t i) { return first(i) - second(i); });
  return norm.scaled / norm.inverse_scale;
}

struct Nearest {
  double distance;  // infinity where there is no row, NaN where the point is not finite
  int64_t index;    // -1 in both cases
};

// The nearest of count rows to a point, one row after the other by the whole team. Point: (i) -> double, Row: (j, i) ->
// double. A row that is not finite is nobody's nearest: no comparison with NaN holds. Collective.
template <typename Team, typename Point, typename Row>
DROCC_HD Nearest nearest(const Team& team, int64_t n, int64_t count, const Point& point, const Row& row) {
  const double size = max_abs(team, n, point);  // NaN for infinity too
  if (size != size) return {size, -1};
  Nearest least{std::numeric_limits<double>::infinity(), -1};
  for (int64_t j = 0; j < count; ++j) {
    const double apart = distance(team, n, point, [&](int64_t i) { return row(j, i); });
    if (apart < least.distance) least = {apart, j};
  }
  return least;
}

}  // namespace drocc::math
