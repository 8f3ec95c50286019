// One step of Algorithm 1 or 2 for a row of the search in networks of several layers, in place, by a team of threads
// that each touch elements of their own alone. Host and device.
#pragma once

#include "mahalanobis_shell_kernel.cuh"

namespace drocc::cuda {

template <typename C>
struct MlpStepRow {
  C* h_row;
  const C* grad_row;
  DROCC_HD_MEMBER double h(int64_t i) const { return h_row[i]; }
  DROCC_HD_MEMBER double grad(int64_t i) const { return grad_row[i]; }
  DROCC_HD_MEMBER void store(int64_t i, double value) const { h_row[i] = static_cast<C>(value); }
};

// The ascent and, with kShell, the projection.
template <bool kShell, typename C, typename Team>
DROCC_HD void mlp_l2_step(const Team& team, int n, C* h, const C* grad, double step_size, const math::Shell& shell) {
  C sums[3] = {0, 0, 0};
  math::for_blocks(team, n, [&](int first, int last) DROCC_INLINE {
    C part[3] = {0, 0, 0};
    DROCC_UNROLL_BY(4)
    for (int i = first; i < last; i += team.step()) add_products<true>(part, h[i], grad[i]);
    add_sums(sums, part);
  });
  team.sum_all(sums);
  const auto plan =
      math::plan_step<C, true, kShell>(math::StepSums<C>{sums[2], sums[1], sums[0]}, static_cast<C>(step_size), shell);
  if (plan.usable) {
    for (int i = team.begin(n); i < team.end(n); i += team.step()) {
      h[i] = math::apply_step<true>(h[i], grad[i], plan.ascent, plan.scale);
    }
  } else {
    math::step_row_exact<true, kShell>(team, n, MlpStepRow<C>{h, grad}, step_size, shell);
  }
}

// As the solver sees a row that has ascended.
template <typename T>
struct MlpSigmaRow {
  static constexpr bool kScaled = true;
  using C = T;
  C* moved;
  const C* sigma_row;
  DROCC_HD_MEMBER C d(int64_t i) const { return moved[i]; }
  DROCC_HD_MEMBER C sigma(int64_t i) const { return sigma_row[i]; }
  DROCC_HD_MEMBER void store(int64_t i, C value) const { moved[i] = value; }
};

template <typename C, typename Team>
DROCC_HD void mlp_mahalanobis_step(const Team& team, int n, C* h, const C* grad, const C* sigma, double step_size,
                                   const math::Shell& shell, int64_t grid_points) {
  const RowAscent<C> ascent = make_row_ascent<C>(team, n, step_size, [&](int64_t i) { return grad[i]; });
  for (int i = team.begin(n); i < team.end(n); i += team.step()) h[i] = ascent(h[i], grad[i]);
  const MlpSigmaRow<C> view{h, sigma};
  const auto plan = math::plan_projection<C>(team, n, view, shell, grid_points, kEnough<C>);
  if constexpr (sizeof(C) == 4) {
    if (plan.beyond) {  // a row some 1e15 times longer or shorter than the radius
      const WideRow<MlpSigmaRow<C>> wide{view};
      const auto exact = math::plan_projection<double>(team, n, wide, shell, grid_points, kEnough<C>);
      math::write_projection(team, n, wide, exact);
      return;
    }
  }
  math::write_projection(team, n, view, plan);
}

}  // namespace drocc::cuda
