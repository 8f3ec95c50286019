// The l2 shell {y : radius <= ||y|| <= gamma * radius} and the normalized ascent step: every formula, for one row.
//
// A row is done in one of two ways. `plan_step` needs three sums and then one fused pass over the row; it declines
// rows where those sums lose accuracy (tiny or huge entries, a step that nearly cancels h, zeros, NaN). Those go
// through `step_row_exact`, which works in double with scaled norms and is right for every row.
#pragma once

#include "config.h"
#include "scaled_norm.h"

namespace drocc::math {

struct Shell {
  double inner;
  double outer;  // may be infinite
};

// A radius that is not positive and finite in the row's compute type (numbers are checked before, tensors are not read,
// and either may leave the type's range) makes its row NaN.
DROCC_HD Shell make_shell(double radius, double gamma) {
  if (!(radius > 0.0) || !is_finite(radius)) return {quiet_nan(), quiet_nan()};
  return {radius, gamma * radius};
}

enum class Side { kInside, kNear, kFar, kInvalid };

// Where a norm lies, compared in the scaled unit so that an overflowing norm still compares correctly.
DROCC_HD Side side_of(const ScaledNorm& norm, const Shell& shell) {
  if (!(shell.inner > 0.0) || !(norm.scaled >= 0.0)) return Side::kInvalid;
  if (norm.scaled < shell.inner * norm.inverse_scale) return Side::kNear;
  if (norm.scaled > shell.outer * norm.inverse_scale) return Side::kFar;
  return Side::kInside;
}

// ---- one fused pass ------------------------------------------------------------------------------------------

// Sums over a row, accumulated in Compute; absent operands (no grad) leave their sums at 0. Real is the type the plan
// is made in: double on the CPU, where its cost is hidden; Compute on CUDA, where double may run at 1/64 of the speed.
template <typename Real = double>
struct StepSums {
  Real grad_grad;
  Real h_grad;
  Real h_h;
};

template <typename Real = double>
struct StepPlan {
  bool usable;
  Real ascent;
  Real scale;
};

// What a plan says to do with a coordinate, or with a vector of them.
template <bool kAscent, typename Value, typename Factor>
DROCC_HD Value apply_step(Value h, Value grad, Factor ascent, Factor scale) {
  return scale * (kAscent ? h + ascent * grad : h);
}

// Sums of squares between these bounds carry full relative precision in the given type: no entry that matters has
// underflowed and none has overflowed.
template <typename Compute, typename Real>
DROCC_HD bool sum_is_safe(Real sum) {
  if constexpr (sizeof(Compute) == 4) {
    return (sum > Real(1e-28)) & (sum < Real(1e36));
  } else {
    return (sum > 1e-270) & (sum < 1e300);
  }
}

template <typename Compute, typename Real>
DROCC_HD bool factor_is_safe(Real factor) {
  const Real magnitude = fabs(factor);
  if constexpr (sizeof(Compute) == 4) {
    return (magnitude > Real(1e-30)) & (magnitude < Real(1e30));
  } else {
    return (magnitude > 1e-270) & (magnitude < 1e270);
  }
}

// What a row of this norm is multiplied by; exactly 1 inside.
template <typename Real>
DROCC_HD Real shell_factor(Real norm, const Shell& shell) {
  const Real inner = static_cast<Real>(shell.inner);
  const Real outer = static_cast<Real>(shell.outer);
  Real target = norm;
  target = norm < inner ? inner : target;
  target = norm > outer ? outer : target;
  return target / norm;
}

// Free of branches: which side of the shell a row is on is not predictable, and short rows would pay for each miss.
template <typename Compute, bool kAscent, bool kShell, typename Real>
DROCC_HD StepPlan<Real> plan_step(const StepSums<Real>& sums, Real step_size, const Shell& shell) {
  bool usable = sum_is_safe<Compute>(sums.h_h);
  Real ascent = 0;
  Real norm_squared = sums.h_h;
  if (kAscent) {
    ascent = step_size / sqrt(sums.grad_grad);
    const Real unprojected = sums.h_h + step_size * step_size;
    norm_squared = unprojected + 2 * ascent * sums.h_grad;
    usable &= sum_is_safe<Compute>(sums.grad_grad);
    usable &= (step_size == 0) | factor_is_safe<Compute>(ascent);
    // Cancellation would magnify the error of the sums more than fourfold.
    usable &= (norm_squared > Real(0.25) * unprojected) & sum_is_safe<Compute>(norm_squared);
  }
  Real scale = 1;
  if (kShell) {
    scale = shell_factor<Real>(sqrt(norm_squared), shell);
    usable &= (static_cast<Real>(shell.inner) > 0) & factor_is_safe<Compute>(scale);
  }
  return {usable, ascent, scale};
}

// ---- the exact path ------------------------------------------------------------------------------------------

// y_i = h_i + step * g_i / ||g||, without ever forming 1 / ||g|| (which overflows for subnormal gradients).
struct Ascent {
  double inverse_scale;  // brings grad near 1
  double coefficient;    // step / (scaled norm of grad); 0 for a zero gradient
  DROCC_HD_MEMBER double operator()(double h, double grad) const { return h + coefficient * (grad * inverse_scale); }
};

DROCC_HD Ascent make_ascent(const ScaledNorm& grad_norm, double step_size) {
  // A NaN norm must reach the row: NaN is neither zero nor positive.
  const double coefficient = grad_norm.scaled == 0.0 ? 0.0 : step_size / grad_norm.scaled;
  return {grad_norm.inverse_scale, coefficient};
}

// Row: h(i), grad(i) -> double and store(i, double). Collective over the team. grad is not read unless kAscent.
template <bool kAscent, bool kShell, typename Team, typename Row>
DROCC_HD void step_row_exact(const Team& team, int64_t n, const Row& row, double step_size, const Shell& shell) {
  Ascent ascent{1.0, 0.0};
  if (kAscent) ascent = make_ascent(scaled_norm(team, n, [&](int64_t i) { return row.grad(i); }), step_size);
  const auto moved = [&](int64_t i) { return kAscent ? ascent(row.h(i), row.grad(i)) : row.h(i); };

  // Without a shell only the inputs decide: a sum that overflows is infinite, not invalid.
  const ScaledNorm norm =
      kShell ? scaled_norm(team, n, moved) : scaled_norm(team, n, [&](int64_t i) { return row.h(i); });
  const Side side = kShell ? side_of(norm, shell) : (norm.scaled >= 0.0 ? Side::kInside : Side::kInvalid);
  const double target = side == Side::kNear ? shell.inner : shell.outer;
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) {
    double y = 0.0;
    if (side == Side::kInvalid) {
      y = quiet_nan();
    } else if (side == Side::kInside) {
      y = moved(i);
    } else if (norm.scaled == 0.0) {
      // Every point of the inner sphere is equally near to 0; this choice is deterministic.
      y = i == 0 ? target : 0.0;
    } else {
      y = (moved(i) * norm.inverse_scale) / norm.scaled * target;
    }
    row.store(i, y);
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------

// The ascent's: for a gradient P of h + step * v, v = grad / ||grad||, that of grad is (step / ||grad||) (P - v <v,
// P>), and 0 for a zero gradient (no ascent happened). grad(i), upstream(i) -> double and store(i, double).
template <typename Team, typename Grad, typename Upstream, typename Store>
DROCC_HD void ascent_backward(const Team& team, int64_t n, const ScaledNorm& norm, double step_size, const Grad& grad,
                              const Upstream& upstream, const Store& store) {
  const double inverse_norm = norm.scaled > 0.0 ? 1.0 / norm.scaled : 0.0;
  const double gain = make_ascent(norm, step_size).coefficient * norm.inverse_scale;
  const auto v = [&](int64_t i) { return (grad(i) * norm.inverse_scale) * inverse_norm; };
  const double dot = sum_of(team, n, [&](int64_t i) { return v(i) * upstream(i); });
  for (auto i = team.begin(n); i < team.end(n); i += team.step()) store(i, gain * (upstream(i) - v(i) * dot));
}

// With y = h + step * v, u = y / ||y|| and the active radius R (inner or outer):
//   d out / d y applied to G:  G inside;  (R / ||y||) (G - u <u, G>) outside          =: P
//   grad of h: P        grad of grad: the ascent's
//   grad of radius: <u, G>, times gamma on the outer side; 0 inside.
// y = 0 below the inner radius gets 0 for h and G_0 for the radius.
// Row: h(i), grad(i), upstream(i) -> double; store_h(i, double), store_grad(i, double). Returns the radius gradient.
template <bool kAscent, bool kShell, typename Team, typename Row>
DROCC_HD double step_row_backward(const Team& team, int64_t n, const Row& row, double step_size, const Shell& shell,
                                  double gamma) {
  ScaledNorm grad_norm{1.0, 0.0};
  Ascent ascent{1.0, 0.0};
  if (kAscent) {
    grad_norm = scaled_norm(team, n, [&](int64_t i) { return row.grad(i); });
    ascent = make_ascent(grad_norm, step_size);
  }
  const auto moved = [&](int64_t i) { return kAscent ? ascent(row.h(i), row.grad(i)) : row.h(i); };
  // Without a shell h is not needed (and not given): only a bad gradient can spoil the row.
  const ScaledNorm norm = kShell ? scaled_norm(team, n, moved) : grad_norm;
  const Side side = kShell ? side_of(norm, shell) : (norm.scaled >= 0.0 ? Side::kInside : Side::kInvalid);
  const bool outside = side == Side::kNear || side == Side::kFar;

  const double inverse_norm = norm.scaled > 0.0 ? 1.0 / norm.scaled : 0.0;
  const auto u = [&](int64_t i) { return (moved(i) * norm.inverse_scale) * inverse_norm; };

  const double u_dot = outside ? sum_of(team, n, [&](int64_t i) { return u(i) * row.upstream(i); }) : 0.0;
  const bool at_origin = outside && norm.scaled == 0.0;
  const double active = side == Side::kNear ? shell.inner : shell.outer;
  double gain = 1.0;
  if (outside) gain = at_origin ? 0.0 : (active * norm.inverse_scale) * inverse_norm;
  if (side == Side::kInvalid) gain = quiet_nan();
  const auto projected = [&](int64_t i) {
    return outside ? gain * (row.upstream(i) - u(i) * u_dot) : gain * row.upstream(i);
  };

  for (auto i = team.begin(n); i < team.end(n); i += team.step()) row.store_h(i, projected(i));
  if (kAscent) {
    ascent_backward(
        team, n, grad_norm, step_size, [&](int64_t i) { return row.grad(i); }, projected,
        [&](int64_t i, double value) { row.store_grad(i, value); });
  }
  if (side == Side::kInvalid) return quiet_nan();
  if (!outside) return 0.0;
  if (at_origin) return row.upstream(0);
  return side == Side::kNear ? u_dot : gamma * u_dot;
}

}  // namespace drocc::math
