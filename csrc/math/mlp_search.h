// The search of Algorithm 1 for a network of linear layers and (leaky) ReLUs, f(x) = <output, act(z_L)> + const with
// z_1 = W_1 (x + h) + b_1 and z_(l+1) = W_(l+1) act(z_l) + b_(l+1). D_l: the slopes of layer l's units.
//
// Backward, y_L = output, y_l = W_(l+1)^T D_(l+1) y_(l+1), v = D_1 y_1, and the gradient of the logit is g = W_1^T v. It
// stays the same until a unit switches, and a switch of layer l changes y_(l-1) by one row of W_l.
//
// Two ways to walk. Through the inputs: h <- c (h + a g) and, with q = W_1 g, u = W_1 h <- c (u + a q). Or, where there
// are many inputs, among the first layer's units only, with G = W_1 W_1^T: q = G v, ||g||^2 = <v, q>, <h, g> = <u, v>;
// hidden_search.h has the recurrences and says how h is found in the end.
//
// As long as no unit of the first layer switches, z_2 = k + P follows a straight line too: k = W_2 D_1 (W_1 x + b_1) +
// b_2 stays, P <- c (P + a W_2 D_1 q). A unit j that switches adds column j of W_2 to both.
#pragma once

#include "hidden_search.h"

namespace drocc::math {

// Whether to walk among the units of the first layer rather than through the inputs: what a changed gradient costs, in
// multiplications, with G and without, and G itself shared out among all rows and steps.
DROCC_HD bool walks_among_units(int64_t inputs, int64_t units, int64_t rows, int64_t steps) {
  const double d = static_cast<double>(inputs), h = static_cast<double>(units);
  const double uses = static_cast<double>(rows) * static_cast<double>(steps);
  return uses > 0.0 && 0.3 * h * h + h * h * d / uses < 1.5 * d * h;
}

}  // namespace drocc::math
