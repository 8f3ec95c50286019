// Element types of the row kernels (CUDA's too) and their conversions. Torch-free: the *_rows.cpp files are compiled
// for several instruction sets and may not pull in inline functions that the rest of the library shares.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/config.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace drocc::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The order of every per-dtype table.
enum class Dtype : int { kFloat, kDouble, kHalf, kBFloat16, kCount };

// Arithmetic runs in Compute: float for float and the half types, double for double.
template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

namespace DROCC_ISA {

DROCC_HD float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

DROCC_HD uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

DROCC_HD float to_compute(float x) {
  return x;
}
DROCC_HD double to_compute(double x) {
  return x;
}
DROCC_HD float to_compute(BFloat16 x) {
  return float_of_bits(static_cast<uint32_t>(x.bits) << 16);
}

DROCC_HD float to_compute(Half x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#elif defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu);
  // Shifted into a float's fields, a half is 2^-112 of its value; the product is exact, subnormals included.
  const float scaled = float_of_bits(magnitude << 13) * 0x1p112f;
  const bool special = magnitude >= 0x7c00u;  // infinity or NaN: the exponent must become all ones
  const uint32_t bits = special ? (magnitude << 13) | 0x7f800000u : bits_of_float(scaled);
  return float_of_bits(bits | sign);
#endif
}

DROCC_HD void from_compute(float x, float* out) {
  *out = x;
}
DROCC_HD void from_compute(double x, double* out) {
  *out = x;
}
DROCC_HD void from_compute(float x, double* out) {
  *out = x;
}
DROCC_HD void from_compute(double x, float* out) {
  *out = static_cast<float>(x);
}

// Round to nearest even, as torch does.
DROCC_HD void from_compute(float x, BFloat16* out) {
  const uint32_t bits = bits_of_float(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

DROCC_HD void from_compute(float x, Half* out) {
#if defined(__CUDA_ARCH__)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  out->bits = bits;
#elif defined(__F16C__)
  out->bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const uint32_t bits = bits_of_float(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // at least 65536: infinity
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: a subnormal half; adding 0.5 lets the adder do the rounding
    result = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(result | sign);
#endif
}

// A double bound for a half type is rounded once, not twice: float rounding to odd keeps the information the second
// rounding needs.
DROCC_HD float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || nearest != nearest) return nearest;
  uint32_t bits = bits_of_float(nearest);
  if ((bits & 1u) == 0) {
    const bool above = fabs(static_cast<double>(nearest)) > fabs(x);
    bits = above ? bits - 1 : bits + 1;
  }
  return float_of_bits(bits);
}
DROCC_HD void from_compute(double x, BFloat16* out) {
  from_compute(round_to_odd(x), out);
}
DROCC_HD void from_compute(double x, Half* out) {
  from_compute(round_to_odd(x), out);
}

// Blocks are short enough for a stack buffer and long enough to amortise the loop around them; sums within a block stay
// in Compute, sums across blocks are double.
constexpr int64_t kBlock = 1024;

// The next block in Compute: the row itself where no conversion is needed, else a converted copy.
DROCC_HD const float* load_block(const float* row, int64_t, float*) {
  return row;
}
DROCC_HD const double* load_block(const double* row, int64_t, double*) {
  return row;
}
template <typename T>
DROCC_HD const float* load_block(const T* row, int64_t count, float* buffer) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (sizeof(T) == 2 && !__is_same(T, BFloat16)) {
    for (; i + 8 <= count; i += 8) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
      _mm256_storeu_ps(buffer + i, _mm256_cvtph_ps(bits));
    }
  }
#endif
  DROCC_SIMD()
  for (int64_t j = i; j < count; ++j) buffer[j] = to_compute(row[j]);
  return buffer;
}

template <typename T, typename Compute>
DROCC_HD void store_block(const Compute* values, int64_t count, T* row) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (__is_same(T, Half)) {
    for (; i + 8 <= count; i += 8) {
      const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), bits);
    }
  }
#endif
  DROCC_SIMD()
  for (int64_t j = i; j < count; ++j) from_compute(values[j], row + j);
}

}  // namespace DROCC_ISA
}  // namespace drocc::cpu
