// The search of Algorithm 1 for a network of linear layers and (leaky) ReLUs, f(x) = <output, act(z_L)> + const with
// z_1 = W_1 (x + h) + b_1 and z_(l+1) = W_(l+1) act(z_l) + b_(l+1). D_l: the slopes of layer l's units.
//
// Backward, y_L = output, y_l = W_(l+1)^T D_(l+1) y_(l+1), v = D_1 y_1, and the gradient of the logit is g = W_1^T v.
// It stays the same until a unit switches, and a switch of layer l changes y_(l-1) by one row of W_l.
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

// How a search walks.
enum class MlpWay {
  kInputs,      // through the inputs
  kAmongUnits,  // among the units of the first layer
  kJacobians  // through the inputs, with the Jacobian J_l = W_l D_(l-1) J_(l-1) of each layer, which a switch of unit j
              // of the layer before changes by W_l[:, j] (x) J_(l-1)[j, :]
};

// The cheapest, by the multiplications that a step asks for as a rule: it changes the gradient, and switches a unit of
// one layer or two.
DROCC_HD MlpWay choose_way(int layers, const int64_t* widths, bool with_sigma, int64_t rows, int64_t steps) {
  if (with_sigma || rows == 0 || steps == 0) return MlpWay::kInputs;
  const double d = static_cast<double>(widths[0]), h = static_cast<double>(widths[1]);
  const double n = static_cast<double>(steps);
  // A column of G for each unit that switches, at times all of them; and G itself, shared out.
  if (0.3 * h * h + h * h * d / (static_cast<double>(rows) * n) < 1.5 * d * h) return MlpWay::kAmongUnits;
  if (layers == 1) return MlpWay::kInputs;
  const double last = static_cast<double>(widths[layers]), before = static_cast<double>(widths[layers - 1]);
  const double jacobian = d * last * (10.0 + before / n);
  return jacobian < before * last ? MlpWay::kJacobians : MlpWay::kInputs;
}

// A power of two for what goes back through a layer, which brings its products with weights of this size near 1: the
// direction stays the same, and weights of 1e-22 do not underflow. Bounded, so that what is multiplied by it does not
// overflow.
template <typename C>
DROCC_HD C backward_scale(C largest) {
  constexpr int kLimit = std::numeric_limits<C>::max_exponent - 28;
  if (!(largest > 0) || !is_finite(largest)) return 1;
  const C most = ldexp(C(1), kLimit), scale = inverse_scale_of(largest);
  return scale > most ? most : scale < 1 / most ? 1 / most : scale;
}

}  // namespace drocc::math
