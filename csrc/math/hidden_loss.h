// The loss behind a hidden layer: the cross-entropy of a logit, and what ReLU lets through.
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

// What ReLU leaves of a unit; NaN stays.
template <typename C>
DROCC_HD C rectified(C unit) {
  return unit < 0 ? C(0) : unit;
}

// Its derivative where it left `active`: 1, 0 or NaN.
template <typename C>
DROCC_HD C rectified_slope(C active) {
  return active > 0 ? C(1) : active;
}

}  // namespace drocc::math
