// Vectors of the instruction set a file is compiled for, by the compiler's vector types. Torch-free; included by files
// that are compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../math/config.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace drocc::cpu::DROCC_ISA {
namespace {
namespace simd {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <typename C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kBytes)));
};
template <typename C>
using Vector = typename VectorOf<C>::type;

template <typename C>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(C));

// Rows of memory are kept in whole blocks of this many elements: a multiple of every vector's lanes.
constexpr int64_t kBlock = 16;

DROCC_HD int64_t whole_blocks(int64_t count) {
  return (count + kBlock - 1) / kBlock * kBlock;
}

template <typename C>
DROCC_HD Vector<C> load(const C* from) {
  Vector<C> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename C>
DROCC_HD void store(C* to, Vector<C> value) {
  std::memcpy(to, &value, sizeof(value));
}

// One bit for each lane whose value is > 0, the first lane's lowest.
DROCC_HD uint64_t positive_bits(Vector<float> value) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(value), _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
  const __m256 above = _mm256_cmp_ps(reinterpret_cast<__m256>(value), _mm256_setzero_ps(), _CMP_GT_OQ);
  return static_cast<uint64_t>(_mm256_movemask_ps(above));
#elif defined(__SSE2__)
  return static_cast<uint64_t>(_mm_movemask_ps(_mm_cmpgt_ps(reinterpret_cast<__m128>(value), _mm_setzero_ps())));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= static_cast<uint64_t>(value[i] > 0) << i;
  return bits;
#endif
}

DROCC_HD uint64_t positive_bits(Vector<double> value) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(value), _mm512_setzero_pd(), _CMP_GT_OQ);
#elif defined(__AVX2__)
  const __m256d above = _mm256_cmp_pd(reinterpret_cast<__m256d>(value), _mm256_setzero_pd(), _CMP_GT_OQ);
  return static_cast<uint64_t>(_mm256_movemask_pd(above));
#elif defined(__SSE2__)
  return static_cast<uint64_t>(_mm_movemask_pd(_mm_cmpgt_pd(reinterpret_cast<__m128d>(value), _mm_setzero_pd())));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= static_cast<uint64_t>(value[i] > 0) << i;
  return bits;
#endif
}

// fn(vector(first element)) -> Vector<C> for all elements of [0, count), count in whole blocks; returns their bits, 64
// to a word, in `words`, and whether these differ from `before`.
template <typename C, typename Fn>
DROCC_HD bool positive_words(int64_t count, const uint64_t* before, uint64_t* words, const Fn& fn) {
  uint64_t differ = 0;
  for (int64_t begin = 0, word = 0; begin < count; begin += 64, ++word) {
    const int64_t end = count - begin < 64 ? count - begin : 64;
    uint64_t bits = 0;
    for (int64_t i = 0; i < end; i += kLanes<C>) bits |= positive_bits(fn(begin + i)) << i;
    words[word] = bits;
    differ |= bits ^ before[word];
  }
  return differ != 0;
}

// Memory at the start of a cache line, handed out in whole lines: an owner asks for all its parts twice, first to count
// them, then to get them.
class Arena {
 public:
  Arena() = default;
  ~Arena() { std::free(memory_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <typename T>
  T* take(int64_t count) {
    char* const part = lines_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(part);
  }

  // After all parts were counted. False when memory runs out.
  bool allocate() {
    memory_ = static_cast<char*>(std::malloc(used_ + 64));
    if (memory_ == nullptr) return false;
    lines_ = memory_ + (64 - reinterpret_cast<uintptr_t>(memory_) % 64);
    used_ = 0;
    return true;
  }

 private:
  char* memory_ = nullptr;
  char* lines_ = nullptr;
  size_t used_ = 0;
};

}  // namespace simd
}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
