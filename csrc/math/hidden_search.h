// The l2 search of Algorithm 1 for a network f(x) = <v2, relu(W x + b)> + const, without leaving the hidden space.
//
// The loss sees h only through u = W h, and the gradient of the logit is W^T v with v_j = v2_j where unit j is on. With
// G = W W^T (once for all rows) every number of a step comes from vectors of H hidden units instead of D inputs:
//   ||g||^2 = <v, G v>,   <h, g> = <u, v>,   u <- c (u + a G v),   ||h||^2 <- c^2 (||h||^2 + 2 a <h, g> + eta^2)
// with a = eta / ||g|| and the projection's factor c. The h that was reached is C (h_0 + W^T p), where C is the product
// of the factors c and p the sum of (a / C) v: the same iterates in exact arithmetic.
//
// G v and the sums only change where a unit switches, which few do in a step: a step costs one pass over the units. And
// as long as none switches and no projection bends the way, the steps follow one straight line, which is taken at once.
#pragma once

#include "config.h"
#include "l2_shell.h"

namespace drocc::math {

// What is kept up to date by small changes is computed anew after so many of them.
constexpr int64_t kHiddenRefresh = 64;

// Steps that lead inwards, before the projection leads out again, make C grow, and h + W^T p small: the error of their
// product grows with C. The row then starts anew from where it is.
constexpr double kMostHiddenScale = 4.0;

// Least share of <v, G v> in the sizes of its terms; what is lost by cancellation is the inverse of it, in the same
// direction at each step that has the same gradient.
template <typename C>
constexpr double kLeastShare = sizeof(C) == 4 ? 0.2 : 1e-4;

// What one step does, in numbers per row.
struct HiddenStep {
  double ascent;  // a; 0 where there is no gradient
  double factor;  // c; 1 without projection
  double square;  // ||h||^2 afterwards
  bool exact;     // false: the recurrence for ||h||^2 has cancelled, compute h, u and it anew
};

// square: ||h||^2; grad_square: ||g||^2; h_grad: <h, g>. A row whose numbers are not finite becomes NaN.
DROCC_HD HiddenStep plan_hidden_step(double square, double grad_square, double h_grad, double step_size,
                                     const Shell& shell, bool project) {
  HiddenStep step{0.0, 1.0, square, true};
  if (grad_square != 0.0) {
    step.ascent = step_size / sqrt(grad_square);
    const double apart = square + step_size * step_size;
    step.square = apart + 2.0 * step.ascent * h_grad;
    step.exact = !(step.square < 0.01 * apart);
  }
  if (project) {
    step.factor = shell.inner > 0.0 ? shell_factor(sqrt(step.square), shell) : quiet_nan();
    step.square *= step.factor * step.factor;
  }
  return step;
}

// Whether a straight way begins, ends and stays in the shell, so that no projection bends it; all but the end of its
// first step counts as the beginning. `length` is that of the whole way; the other numbers are as above.
DROCC_HD bool stays_in_shell(double square, double grad_square, double h_grad, double step_size, double length,
                             const Shell& shell) {
  if (grad_square == 0.0) length = step_size = 0.0;
  const double rise = grad_square == 0.0 ? 0.0 : 2.0 * h_grad / sqrt(grad_square);
  const double lowest = -0.5 * rise;  // how far along the way ||h|| is least
  const double turn = lowest < step_size ? step_size : lowest > length ? length : lowest;
  const double begin = square + step_size * (step_size + rise);
  const double end = square + length * (length + rise);
  const double least = square + turn * (turn + rise);
  const double outer = shell.outer * shell.outer;
  return least >= shell.inner * shell.inner && begin <= outer && end <= outer;
}

}  // namespace drocc::math
