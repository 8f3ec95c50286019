// The cross-entropy of a logit at a label between 0 and 1, and what (leaky) ReLU does to a unit and to its gradient.
#pragma once

#include "config.h"

namespace drocc::math {

template <typename C>
struct LogitLoss {
  C loss;   // log(1 + exp(z)), z the logit for an anomalous row and its negative for a normal one
  C slope;  // d loss / d logit
};

// Neither overflows nor cancels: only exp(-|z|) is taken.
template <typename C>
DROCC_HD LogitLoss<C> logit_loss(C logit, bool is_normal) {
  const C z = is_normal ? -logit : logit;  // how far on the wrong side
  const C small = std::exp(-std::fabs(z));
  const C share = C(1) / (C(1) + small);
  const C slope = z < 0 ? small * share : share;
  return {(z < 0 ? C(0) : z) + std::log1p(small), is_normal ? -slope : slope};
}

// At the probability `target` of being normal. Free of cancellation at 0 and 1, where it equals `logit_loss`.
template <typename C>
DROCC_HD LogitLoss<C> soft_logit_loss(C logit, C target) {
  const C small = std::exp(-std::fabs(logit));
  const C share = C(1) / (C(1) + small);
  const C up = logit < 0 ? small * share : share;    // sigmoid(logit)
  const C down = logit < 0 ? share : small * share;  // sigmoid(-logit)
  const C wrong = logit < 0 ? -target * logit : (C(1) - target) * logit;
  return {wrong + std::log1p(small), (C(1) - target) * up - target * down};
}

// What leaky ReLU leaves of a unit (ReLU where negative_slope is 0); NaN stays, and minus infinity is not made NaN.
template <typename C>
DROCC_HD C leaky_rectified(C unit, C negative_slope) {
  return unit < 0 ? (negative_slope == 0 ? C(0) : negative_slope * unit) : unit;
}

// Its derivative where it left `active`; NaN stays.
template <typename C>
DROCC_HD C leaky_slope(C active, C negative_slope) {
  return active > 0 ? C(1) : (active == active ? negative_slope : active);
}

}  // namespace drocc::math
