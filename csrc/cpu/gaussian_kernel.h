// Kernels that draw normal numbers, per instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

// A Mersenne Mt19937 as torch keeps it: `left` - 1 words of the present ones are not taken yet, from `next` on.
struct Mt19937 {
  uint32_t words[624];
  int64_t left;
  int64_t next;
};

// Pairs are made of numbers that lie this far apart, in blocks of twice as many.
constexpr int64_t kNormalBlock = 16;

struct NormalRows {
  // Replaces all words; called where `left` is 1.
  void (*refill)(Mt19937& twister);
  // Writes uniform numbers in [0, 1).
  void (*uniform)(Mt19937& twister, float* out, int64_t count);
  // Turns whole blocks of them into normal numbers.
  void (*transform)(float* values, int64_t count, float deviation);
};

DROCC_DECLARE_KERNELS(NormalRows, gaussian_kernels)

}  // namespace drocc::cpu
