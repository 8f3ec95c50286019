// Influence of a coordinate on the output (section 4 of the paper): sigma_j = |g_j| / mean_k |g_k|, for one row.
#pragma once

#include "config.h"
#include "scaled_norm.h"

namespace drocc::math {

// Row: grad(i) -> Real and store(i, Real). A zero row gets ones, a row with NaN or infinity becomes NaN.
template <typename Real = double, typename Team, typename Row>
DROCC_HD void influence_row(const Team& team, int64_t n, const Row& row) {
  const Real maximum = max_abs<Real>(team, n, [&](int64_t i) { return row.grad(i); });
  const Real inverse_scale = maximum > 0 ? inverse_scale_of(maximum) : 1;
  const Real sum = sum_of<Real>(team, n, [&](int64_t i) { return fabs(row.grad(i)) * inverse_scale; });
  const Real mean = sum / static_cast<Real>(n);
  const bool zero = maximum == 0;
  // max_abs is NaN for a bad row, and NaN reaches every coordinate of it through this factor. The scale stays out of
  // it: their product overflows for subnormal rows.
  const Real factor = zero ? 0 : (1 + (maximum - maximum)) / mean;
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    row.store(i, zero ? 1 : fabs(row.grad(i)) * inverse_scale * factor);
  }
}

// d sigma_j / d g_k = sign(g_k) / mean * (delta_jk - sigma_j / n), so for an upstream gradient G:
//   grad_k = sign(g_k) / mean * (G_k - (1/n) sum_j G_j sigma_j).   A zero row gets 0.
// Row: grad(i), upstream(i) -> Real and store(i, Real).
template <typename Real = double, typename Team, typename Row>
DROCC_HD void influence_row_backward(const Team& team, int64_t n, const Row& row) {
  const Real maximum = max_abs<Real>(team, n, [&](int64_t i) { return row.grad(i); });
  const bool zero = maximum == 0;
  const Real inverse_scale = maximum > 0 ? inverse_scale_of(maximum) : 1;
  Real sum = 0;
  Real dot = 0;
  for_blocks(team, n, [&](IndexOf<Team> first, IndexOf<Team> last) DROCC_INLINE {
    Real block_sum = 0;
    Real block_dot = 0;
    DROCC_UNROLL_BY(4)
    DROCC_SIMD(reduction(+ : block_sum, block_dot))
    for (IndexOf<Team> i = first; i < last; i += team.step()) {
      const Real magnitude = fabs(row.grad(i)) * inverse_scale;
      block_sum += magnitude;
      block_dot += magnitude * row.upstream(i);
    }
    sum += block_sum;
    dot += block_dot;
  });
  sum = team.sum(sum);
  dot = team.sum(dot);
  const Real count = static_cast<Real>(n);
  const Real slope = zero ? 0 : (inverse_scale + (maximum - maximum)) * (count / sum);
  const Real mean_upstream = zero ? 0 : dot / sum;
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    const Real g = row.grad(i);
    const Real sign = g > 0 ? 1 : (g < 0 ? -1 : 0);
    row.store(i, sign == 0 ? 0 : sign * slope * (row.upstream(i) - mean_upstream));
  }
}

}  // namespace drocc::math
