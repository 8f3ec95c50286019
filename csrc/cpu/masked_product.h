// Products of many short vectors with one matrix, of which only the entries that are on count: what a layer of (leaky)
// ReLU units passes on, in either direction. Half the units of a row are off as a rule, each row's own, which a dense
// product cannot use. Torch-free; included by files that are compiled once per instruction set.
#pragma once

#include "simd.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

// out = start + sum_j factors[j] M[j, :] over the j whose bit in `on` is set. start may be null: 0.
template <typename C>
struct MaskedProduct {
  const C* factors;
  const uint64_t* on;
  const C* start;
  C* out;
};

// Adds up to 64 rows of the matrix to one strip of kVectors vectors.
template <int kVectors, bool kFirst, typename C>
DROCC_HD void add_masked_rows(uint64_t on, const C* factors, const C* strip, const C* start, C* out) {
  using V = simd::Vector<C>;
  // A narrow strip is summed in several chains: one would wait for each addition's latency.
  constexpr int kChains = kVectors > 4 ? 1 : kVectors > 2 ? 2 : 4;
  V sums[kChains][kVectors] = {};
  while (on != 0) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      if (chain > 0 && on == 0) break;
      const int j = __builtin_ctzll(on);
      on &= on - 1;
      const C factor = factors[j];
      const C* row = strip + j * (kVectors * simd::kLanes<C>);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[chain][v] += factor * simd::load(row + v * simd::kLanes<C>);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    V sum = sums[0][v];
#pragma GCC unroll 4
    for (int chain = 1; chain < kChains; ++chain) sum += sums[chain][v];
    C* to = out + v * simd::kLanes<C>;
    if (!kFirst) {
      sum += simd::load(to);
    } else if (start != nullptr) {
      sum += simd::load(start + v * simd::kLanes<C>);
    }
    simd::store(to, sum);
  }
}

// So many products with nothing masked share what is read of a strip.
#if defined(__AVX512F__)
constexpr int kTogether = 4;
#else
constexpr int kTogether = 2;
#endif

// Adds 64 rows of the matrix to kVectors vectors of kTogether products, in the order in which add_masked_rows does.
template <int kVectors, typename C>
DROCC_HD void add_all_rows(const MaskedProduct<C>* products, int64_t first, const C* strip, int64_t width,
                           int64_t column) {
  using V = simd::Vector<C>;
  V sums[kTogether][kVectors] = {};
  const C* factors[kTogether];
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) factors[i] = products[i].factors + first;
  for (int j = 0; j < 64; ++j) {
    const C* row = strip + j * width;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const V values = simd::load(row + v * simd::kLanes<C>);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) sums[i][v] += factors[i][j] * values;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) {
    const MaskedProduct<C>& product = products[i];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t place = column + v * simd::kLanes<C>;
      V sum = sums[i][v];
      if (first > 0) {
        sum += simd::load(product.out + place);
      } else if (product.start != nullptr) {
        sum += simd::load(product.start + place);
      }
      simd::store(product.out + place, sum);
    }
  }
}

template <typename C>
DROCC_HD bool nothing_masked(const MaskedProduct<C>* products, int64_t word) {
  uint64_t all = ~uint64_t{0};
  for (int i = 0; i < kTogether; ++i) all &= products[i].on[word];
  return all == ~uint64_t{0};
}

template <int kVectors, typename C>
DROCC_HD void masked_strip(const MaskedProduct<C>* products, int64_t count, const C* strip, int64_t terms,
                           int64_t column) {
  constexpr int64_t kWidth = kVectors * simd::kLanes<C>;
  // 64 rows of a strip stay in the first-level cache for all products.
  for (int64_t word = 0; word * 64 < terms; ++word) {
    const C* rows = strip + word * 64 * kWidth;
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (kVectors == 8) {  // narrower ones add up in another order
        if (i + kTogether <= count && nothing_masked(products + i, word)) {
          add_all_rows<4>(products + i, word * 64, rows, kWidth, column);
          add_all_rows<4>(products + i, word * 64, rows + kWidth / 2, kWidth, column + kWidth / 2);
          i += kTogether - 1;
          continue;
        }
      }
      const MaskedProduct<C>& product = products[i];
      const C* factors = product.factors + word * 64;
      C* out = product.out + column;
      if (word == 0) {
        const C* start = product.start == nullptr ? nullptr : product.start + column;
        add_masked_rows<kVectors, true>(product.on[word], factors, rows, start, out);
      } else {
        add_masked_rows<kVectors, false>(product.on[word], factors, rows, static_cast<const C*>(nullptr), out);
      }
    }
  }
}

template <int kVectors, typename C>
DROCC_HD void masked_strip_of(int64_t vectors, const MaskedProduct<C>* products, int64_t count, const C* strip,
                              int64_t terms, int64_t column) {
  if (vectors == kVectors) {
    masked_strip<kVectors>(products, count, strip, terms, column);
  } else if constexpr (kVectors > 1) {
    masked_strip_of<kVectors - 1>(vectors, products, count, strip, terms, column);
  }
}

// A matrix in vertical strips, one after the other: a strip of 64 rows then lies in one piece, where rows of the whole
// matrix would fall into the same few lines of the cache.
template <typename C>
struct Strips {
  static constexpr int64_t kWidth = 8 * simd::kLanes<C>;

  C* data;
  int64_t rows;
  int64_t columns;  // in whole blocks

  DROCC_HD_MEMBER static int64_t width(int64_t column, int64_t columns) {
    return columns - column < kWidth ? columns - column : kWidth;
  }

  // to[column] = factor * (*this)[row][column]
  DROCC_HD_MEMBER void copy_row(int64_t row, C factor, C* to) const {
    for (int64_t column = 0; column < columns; column += kWidth) {
      const int64_t wide = width(column, columns);
      const C* from = data + column * rows + row * wide;
      DROCC_SIMD()
      for (int64_t j = 0; j < wide; ++j) to[column + j] = factor * from[j];
    }
  }

  // to[column] += factor * (*this)[row][column]
  DROCC_HD_MEMBER void add_row(int64_t row, C factor, C* to) const {
    for (int64_t column = 0; column < columns; column += kWidth) {
      const int64_t wide = width(column, columns);
      const C* from = data + column * rows + row * wide;
      DROCC_SIMD()
      for (int64_t j = 0; j < wide; ++j) to[column + j] += factor * from[j];
    }
  }
};

// The products with a matrix. A product depends neither on the others nor on how many there are.
template <typename C>
void masked_products(const MaskedProduct<C>* products, int64_t count, const Strips<C>& matrix) {
  if (count == 0) return;
  for (int64_t column = 0; column < matrix.columns; column += Strips<C>::kWidth) {
    const int64_t vectors = Strips<C>::width(column, matrix.columns) / simd::kLanes<C>;
    masked_strip_of<8>(vectors, products, count, matrix.data + column * matrix.rows, matrix.rows, column);
  }
}

// Products that wait for their matrix.
template <typename C, int kMost>
class MaskedProducts {
 public:
  void add(const C* factors, const uint64_t* on, const C* start, C* out) {
    list_[count_++] = {factors, on, start, out};
  }
  void run(const Strips<C>& matrix) {
    masked_products(list_, count_, matrix);
    count_ = 0;
  }

 private:
  MaskedProduct<C> list_[kMost];
  int64_t count_ = 0;
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
