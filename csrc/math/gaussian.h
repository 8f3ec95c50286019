// Normal numbers as torch draws them on the CPU: a Mersenne Mt19937 (Matsumoto and Nishimura, 1998) and the transform
// of Box and Muller, eight pairs at a time. The same words in the same places; values agree to rounding.
#pragma once

#include <cstring>

#include "config.h"

namespace drocc::math {

constexpr int64_t kTwisterWords = 624;
constexpr int64_t kTwisterShift = 397;

// The next word in the place of `word`, from the one after it and the one kTwisterShift places on.
DROCC_HD uint32_t twist(uint32_t word, uint32_t after, uint32_t ahead) {
  const uint32_t mixed = (word & 0x80000000u) | (after & 0x7fffffffu);
  return ahead ^ (mixed >> 1) ^ ((0u - (after & 1u)) & 0x9908b0dfu);
}

DROCC_HD uint32_t temper(uint32_t word) {
  word ^= word >> 11;
  word ^= (word << 7) & 0x9d2c5680u;
  word ^= (word << 15) & 0xefc60000u;
  return word ^ (word >> 18);
}

// In [0, 1), a multiple of 2^-24.
DROCC_HD float uniform_of_word(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word & 0xffffffu)) * 0x1p-24f;
}

// The natural logarithm of x in [2^-24, 1], to about a unit in the last place (polynomials of the Cephes library).
DROCC_HD float log_of_fraction(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  int32_t exponent = (bits >> 23) - 126;
  bits = (bits & 0x007fffff) | 0x3f000000;
  float m;  // in [0.5, 1)
  std::memcpy(&m, &bits, sizeof(m));
  const bool small = m < 0.707106781186547524f;
  exponent -= small ? 1 : 0;
  m = (small ? m + m : m) - 1.0f;
  const float e = static_cast<float>(exponent);
  float y = 7.0376836292e-2f;
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  const float square = m * m;
  y = y * m * square + e * -2.12194440e-4f - 0.5f * square;
  return m + y + e * 0.693359375f;
}

// Sine and cosine of an angle in [0, 2 pi], likewise.
DROCC_HD void sine_cosine(float angle, float* sine, float* cosine) {
  const int32_t quarter = (static_cast<int32_t>(angle * 1.27323954473516f) + 1) >> 1;  // nearest multiple of pi / 2
  const float count = static_cast<float>(2 * quarter);
  float r = angle - count * 0.78515625f;
  r -= count * 2.4187564849853515625e-4f;
  r -= count * 3.77489497744594108e-8f;
  const float z = r * r;
  float s = -1.9515295891e-4f;
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * r + r;
  float c = 2.443315711809948e-5f;
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = c * z * z - 0.5f * z + 1.0f;
  const bool swapped = (quarter & 1) != 0;
  const float sine_size = swapped ? c : s;
  const float cosine_size = swapped ? s : c;
  *sine = (quarter & 2) != 0 ? -sine_size : sine_size;
  *cosine = ((quarter + 1) & 2) != 0 ? -cosine_size : cosine_size;
}

// Two normal numbers of standard deviation `deviation` from two numbers in [0, 1).
DROCC_HD void box_muller(float u, float v, float deviation, float* first, float* second) {
  const float length = sqrtf(-2.0f * log_of_fraction(1.0f - u)) * deviation;
  float sine, cosine;
  sine_cosine(6.283185307179586f * v, &sine, &cosine);
  *first = length * cosine;
  *second = length * sine;
}

}  // namespace drocc::math
