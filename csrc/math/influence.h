// Influence of a coordinate on the output (section 4 of the paper): sigma_j = |g_j| / mean_k |g_k|, for one row.
#pragma once

#include "config.h"
#include "scaled_norm.h"

namespace drocc::math {

// Row: grad(i) -> double and store(i, double). A zero row gets ones, a row with NaN or infinity becomes NaN.
template <typename Team, typename Row>
DROCC_HD void influence_row(const Team& team, int64_t n, const Row& row) {
  const double maximum = max_abs(team, n, [&](int64_t i) { return row.grad(i); });
  const double inverse_scale = maximum > 0.0 ? inverse_scale_of(maximum) : 1.0;
  double sum = 0.0;
  DROCC_SIMD(reduction(+ : sum))
  for (int64_t i = team.rank(); i < n; i += team.size()) sum += fabs(row.grad(i)) * inverse_scale;
  const double mean = team.sum(sum) / static_cast<double>(n);
  const bool zero = maximum == 0.0;
  // max_abs is NaN for a bad row, and NaN reaches every coordinate of it through this factor. The scale stays out of
  // it: their product overflows for subnormal rows.
  const double factor = zero ? 0.0 : (1.0 + (maximum - maximum)) / mean;
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    row.store(i, zero ? 1.0 : fabs(row.grad(i)) * inverse_scale * factor);
  }
}

// d sigma_j / d g_k = sign(g_k) / mean * (delta_jk - sigma_j / n), so for an upstream gradient G:
//   grad_k = sign(g_k) / mean * (G_k - (1/n) sum_j G_j sigma_j).   A zero row gets 0.
// Row: grad(i), upstream(i) -> double and store(i, double).
template <typename Team, typename Row>
DROCC_HD void influence_row_backward(const Team& team, int64_t n, const Row& row) {
  const double maximum = max_abs(team, n, [&](int64_t i) { return row.grad(i); });
  const bool zero = maximum == 0.0;
  const double inverse_scale = maximum > 0.0 ? inverse_scale_of(maximum) : 1.0;
  double sum = 0.0;
  double dot = 0.0;
  DROCC_SIMD(reduction(+ : sum, dot))
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double magnitude = fabs(row.grad(i)) * inverse_scale;
    sum += magnitude;
    dot += magnitude * row.upstream(i);
  }
  sum = team.sum(sum);
  dot = team.sum(dot);
  const double count = static_cast<double>(n);
  const double slope = zero ? 0.0 : (inverse_scale + (maximum - maximum)) * (count / sum);
  const double mean_upstream = zero ? 0.0 : dot / sum;
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double g = row.grad(i);
    const double sign = g > 0.0 ? 1.0 : (g < 0.0 ? -1.0 : 0.0);
    row.store(i, sign == 0.0 ? 0.0 : sign * slope * (row.upstream(i) - mean_upstream));
  }
}

}  // namespace drocc::math
