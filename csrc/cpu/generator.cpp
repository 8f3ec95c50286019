#include "generator.h"

#include <cmath>
#include <cstring>

#include "../math/gaussian.h"
#include "dispatch.h"

namespace drocc::cpu {
namespace {

// Seed (8 bytes), left (4), seeded (4), next (8), the words (8 each), x, rho (once used), the second number of a pair
// (8 each) and whether there is one (4).
constexpr int64_t kLeft = 8, kSeeded = 12, kNext = 16, kWords = 24;
constexpr int64_t kSecond = kWords + 8 * math::kTwisterWords + 8, kHasSecond = kSecond + 16;
constexpr double kTwoPi = 6.283185307179586476925;

}  // namespace

Generator::Generator(const char* op, const uint8_t* state) : rows_(DROCC_SELECT_KERNELS(gaussian_kernels)) {
  int32_t left, seeded, has_second;
  uint64_t next, words[math::kTwisterWords];
  std::memcpy(&left, state + kLeft, sizeof(left));
  std::memcpy(&seeded, state + kSeeded, sizeof(seeded));
  std::memcpy(&next, state + kNext, sizeof(next));
  std::memcpy(words, state + kWords, sizeof(words));
  std::memcpy(&has_second, state + kHasSecond, sizeof(has_second));
  if (seeded != 1 || left < 1 || left > 624 || next > 624 || (left > 1 && static_cast<uint64_t>(left) + next != 625)) {
    fail(op, "state must be that of a seeded generator");
  }
  twister_.left = left;
  twister_.next = static_cast<int64_t>(next);
  for (int64_t i = 0; i < math::kTwisterWords; ++i) twister_.words[i] = static_cast<uint32_t>(words[i]);
  if (has_second != 0) {
    double second;
    std::memcpy(&second, state + kSecond, sizeof(second));
    second_ = second;
  }
}

void Generator::save(uint8_t* state) const {
  const auto left = static_cast<int32_t>(twister_.left);
  const auto next = static_cast<uint64_t>(twister_.next);
  uint64_t words[math::kTwisterWords];
  for (int64_t i = 0; i < math::kTwisterWords; ++i) words[i] = twister_.words[i];
  const double second = second_.value_or(0.0);
  const int32_t has_second = second_.has_value() ? 1 : 0;
  std::memcpy(state + kLeft, &left, sizeof(left));
  std::memcpy(state + kNext, &next, sizeof(next));
  std::memcpy(state + kWords, words, sizeof(words));
  std::memcpy(state + kSecond, &second, sizeof(second));
  std::memcpy(state + kHasSecond, &has_second, sizeof(has_second));
}

void Generator::normal(float* out, int64_t count, double deviation) {
  if (count < kNormalBlock) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(next_normal() * deviation);
    return;
  }
  const auto scale = static_cast<float>(deviation);
  rows_.uniform(twister_, out, count);
  const auto transform = [&](float* all, int64_t begin, int64_t end) {
    rows_.transform(all + begin * kNormalBlock, (end - begin) * kNormalBlock, scale);
  };
  run_rows(transform, out, count / kNormalBlock, kNormalBlock);
  if (count % kNormalBlock != 0) {  // torch draws the last block anew, over the end of the one before
    float* last = out + count - kNormalBlock;
    rows_.uniform(twister_, last, kNormalBlock);
    rows_.transform(last, kNormalBlock, scale);
  }
}

void Generator::normal(double* out, int64_t count, double deviation) {
  if (count < kNormalBlock) {
    for (int64_t i = 0; i < count; ++i) out[i] = next_normal() * deviation;
    return;
  }
  normal_blocks(out, count, deviation);
  if (count % kNormalBlock != 0) normal_blocks(out + count - kNormalBlock, kNormalBlock, deviation);
}

void Generator::normal_blocks(double* out, int64_t count, double deviation) {
  constexpr int64_t kHalf = kNormalBlock / 2;
  for (int64_t i = 0; i < count; ++i) out[i] = uniform();
  for (int64_t block = 0; block + kNormalBlock <= count; block += kNormalBlock) {
    for (int64_t i = block; i < block + kHalf; ++i) {
      const double length = std::sqrt(-2.0 * std::log(1.0 - out[i])), angle = kTwoPi * out[i + kHalf];
      out[i] = length * std::cos(angle) * deviation;
      out[i + kHalf] = length * std::sin(angle) * deviation;
    }
  }
}

void Generator::uniform(float* out, int64_t count, double low, double high) {
  const auto from = static_cast<float>(low), to = static_cast<float>(high);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<float>(word() & ((uint32_t{1} << 24) - 1)) * 0x1p-24f * (to - from) + from;
  }
}

void Generator::uniform(double* out, int64_t count, double low, double high) {
  for (int64_t i = 0; i < count; ++i) out[i] = uniform() * (high - low) + low;
}

double Generator::next_normal() {
  if (second_.has_value()) {
    const double second = *second_;
    second_.reset();
    return second;
  }
  const double u = uniform(), v = uniform();
  const double length = std::sqrt(-2.0 * std::log1p(-v)), angle = kTwoPi * u;
  second_ = length * std::sin(angle);
  return length * std::cos(angle);
}

double Generator::uniform() {
  const uint64_t high = word(), low = word();
  return static_cast<double>(((high << 32) | low) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

// Rarely needed: one word at a time.
uint32_t Generator::word() {
  if (twister_.left == 1) rows_.refill(twister_);
  --twister_.left;
  return math::temper(twister_.words[twister_.next++]);
}

}  // namespace drocc::cpu
