// Steps of Adam (Kingma and Ba, 2015; with decoupled weight decay Loshchilov and Hutter, 2019) and of SGD with momentum
// for one number, in the order of operations of `torch.optim`.
#pragma once

#include "config.h"

namespace drocc::math {

template <typename C>
struct AdamStep {
  C step_size;      // lr / (1 - beta1^t)
  C first_weight;   // 1 - beta1
  C second_decay;   // beta2
  C second_weight;  // 1 - beta2
  C correction;     // sqrt(1 - beta2^t)
  C eps;
  C weight_decay;  // added to the gradient
  C kept;          // what decoupled weight decay leaves: 1 - lr * weight_decay, or 1
};

template <typename C>
DROCC_HD void adam_update(const AdamStep<C>& step, C grad, C* value, C* first, C* second) {
  const C before = *value * step.kept;
  grad += step.weight_decay * before;
  *first += step.first_weight * (grad - *first);
  *second = step.second_decay * *second + step.second_weight * grad * grad;
  *value = before - step.step_size * *first / (std::sqrt(*second) / step.correction + step.eps);
}

template <typename C>
struct SgdStep {
  C lr;
  C momentum;
  C weight;  // of the gradient: 1 - dampening, or 1 in the first step
  C weight_decay;
  bool nesterov;
};

// velocity is read where momentum is not 0.
template <typename C>
DROCC_HD void sgd_update(const SgdStep<C>& step, C grad, C* value, C* velocity) {
  grad += step.weight_decay * *value;
  if (step.momentum != 0) {
    const C moved = step.momentum * *velocity + step.weight * grad;
    *velocity = moved;
    grad = step.nesterov ? grad + step.momentum * moved : moved;
  }
  *value -= step.lr * grad;
}

}  // namespace drocc::math
