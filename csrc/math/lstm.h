// One cell of an LSTM (Hochreiter and Schmidhuber 1997, with forget gate), forward and backward.
#pragma once

#include <cstring>

#include "config.h"

namespace drocc::math {

// exp(x) for a logistic function: beyond these bounds it is 0 or 1 to rounding. NaN stays. In single precision by
// 2^n times a polynomial, which vectorizes; largest relative error 2e-7.
DROCC_HD float exp_of_gate(float x) {
  x = x > 87.0f ? 87.0f : x;
  x = x < -87.0f ? -87.0f : x;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the lowest bits
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + 0x3f800000;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}
DROCC_HD double exp_of_gate(double x) {
  return std::exp(x);
}

template <typename C>
DROCC_HD C sigmoid(C x) {
  return C(1) / (C(1) + exp_of_gate(-x));
}

DROCC_HD float tanh_of(float x) {
  const float t = exp_of_gate(-2.0f * (x < 0 ? -x : x));
  const float size = (1.0f - t) / (1.0f + t);
  const float s = x * x;  // near 0 the quotient cancels
  const float near =
      x * (1.0f + s * (-1.0f / 3.0f + s * (2.0f / 15.0f + s * (-17.0f / 315.0f + s * (62.0f / 2835.0f)))));
  return s < 0.04f ? near : x < 0 ? -size : size;
}
DROCC_HD double tanh_of(double x) {
  return std::tanh(x);
}

// Gates of one unit; before the nonlinearities, after them, or the gradients before them.
template <typename C>
struct LstmGates {
  C input;
  C forget;
  C cell;
  C output;
};

template <typename C>
struct LstmUnit {
  LstmGates<C> gates;  // after the nonlinearities
  C cell;
  C hidden;
};

template <typename C>
DROCC_HD LstmUnit<C> lstm_unit(const LstmGates<C>& z, C former_cell) {
  const LstmGates<C> g{sigmoid(z.input), sigmoid(z.forget), tanh_of(z.cell), sigmoid(z.output)};
  const C cell = g.forget * former_cell + g.input * g.cell;
  return {g, cell, g.output * tanh_of(cell)};
}

template <typename C>
struct LstmUnitGradient {
  LstmGates<C> gates;  // before the nonlinearities
  C former_cell;
};

template <typename C>
DROCC_HD LstmUnitGradient<C> lstm_unit_backward(const LstmGates<C>& g, C cell, C former_cell, C grad_hidden,
                                                C grad_cell) {
  const C wave = tanh_of(cell);
  const C d = grad_cell + grad_hidden * g.output * (C(1) - wave * wave);
  return {{d * g.cell * g.input * (C(1) - g.input), d * former_cell * g.forget * (C(1) - g.forget),
           d * g.input * (C(1) - g.cell * g.cell), grad_hidden * wave * g.output * (C(1) - g.output)},
          d * g.forget};
}

}  // namespace drocc::math
