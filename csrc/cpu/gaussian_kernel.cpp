// Compiled once per instruction set (see isa.h); plain loops that the compiler vectorizes.
#include "gaussian_kernel.h"

#include <cstring>

#include "../math/gaussian.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

using math::kTwisterShift;
using math::kTwisterWords;

// Replaces all words by the next ones. Each comes from the old word, the one after it and one that is 397 places ahead
// or, by then replaced, 227 behind: vectors of up to 64 words do not overlap with what they need.
void advance(uint32_t* words) {
  constexpr int64_t kBefore = kTwisterWords - kTwisterShift;
  DROCC_SIMD(safelen(64))
  for (int64_t i = 0; i < kBefore; ++i) words[i] = math::twist(words[i], words[i + 1], words[i + kTwisterShift]);
  DROCC_SIMD(safelen(64))
  for (int64_t i = kBefore; i < kTwisterWords - 1; ++i) {
    words[i] = math::twist(words[i], words[i + 1], words[i - kBefore]);
  }
  words[kTwisterWords - 1] = math::twist(words[kTwisterWords - 1], words[0], words[kTwisterShift - 1]);
}

void refill(Mt19937& twister) {
  advance(twister.words);
  twister.left = kTwisterWords + 1;
  twister.next = 0;
}

void uniform(Mt19937& twister, float* out, int64_t count) {
  while (count > 0) {
    if (twister.left == 1) refill(twister);
    const int64_t taken = twister.left - 1 < count ? twister.left - 1 : count;
    const uint32_t* words = twister.words + twister.next;
    DROCC_SIMD()
    for (int64_t i = 0; i < taken; ++i) out[i] = math::uniform_of_word(math::temper(words[i]));
    twister.left -= taken;
    twister.next += taken;
    out += taken;
    count -= taken;
  }
}

void transform(float* values, int64_t count, float deviation) {
  constexpr int64_t kHalf = kNormalBlock / 2;
  constexpr int64_t kPairs = 512;
  float first[kPairs], second[kPairs];
  for (int64_t begin = 0; begin < count; begin += 2 * kPairs) {
    float* part = values + begin;
    const int64_t pairs = (count - begin < 2 * kPairs ? count - begin : 2 * kPairs) / 2;
    for (int64_t i = 0; i < pairs; i += kHalf) {
      std::memcpy(first + i, part + 2 * i, kHalf * sizeof(float));
      std::memcpy(second + i, part + 2 * i + kHalf, kHalf * sizeof(float));
    }
    DROCC_SIMD()
    for (int64_t i = 0; i < pairs; ++i) math::box_muller(first[i], second[i], deviation, first + i, second + i);
    for (int64_t i = 0; i < pairs; i += kHalf) {
      std::memcpy(part + 2 * i, first + i, kHalf * sizeof(float));
      std::memcpy(part + 2 * i + kHalf, second + i, kHalf * sizeof(float));
    }
  }
}

}  // namespace

extern const NormalRows gaussian_kernels = {refill, uniform, transform};

}  // namespace drocc::cpu::DROCC_ISA
