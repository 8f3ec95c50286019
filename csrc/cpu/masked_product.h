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
DROCC_HD void add_masked_rows(uint64_t on, const C* factors, const C* matrix, int64_t stride, const C* start, C* out) {
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
      const C* row = matrix + j * stride;
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

template <int kVectors, typename C>
DROCC_HD void masked_strip(const MaskedProduct<C>* products, int64_t count, const C* matrix, int64_t stride,
                           int64_t terms, int64_t column) {
  // 64 rows of a strip stay in the first-level cache for all products.
  for (int64_t word = 0; word * 64 < terms; ++word) {
    const C* rows = matrix + word * 64 * stride + column;
    for (int64_t i = 0; i < count; ++i) {
      const MaskedProduct<C>& product = products[i];
      const C* factors = product.factors + word * 64;
      C* out = product.out + column;
      if (word == 0) {
        const C* start = product.start == nullptr ? nullptr : product.start + column;
        add_masked_rows<kVectors, true>(product.on[word], factors, rows, stride, start, out);
      } else {
        add_masked_rows<kVectors, false>(product.on[word], factors, rows, stride, static_cast<const C*>(nullptr), out);
      }
    }
  }
}

template <int kVectors, typename C>
DROCC_HD void masked_strip_of(int64_t vectors, const MaskedProduct<C>* products, int64_t count, const C* matrix,
                              int64_t stride, int64_t terms, int64_t column) {
  if (vectors == kVectors) {
    masked_strip<kVectors>(products, count, matrix, stride, terms, column);
  } else if constexpr (kVectors > 1) {
    masked_strip_of<kVectors - 1>(vectors, products, count, matrix, stride, terms, column);
  }
}

// The products with a matrix of `terms` rows and `stride` columns, in whole blocks. A product depends neither on the
// others nor on how many there are.
template <typename C>
void masked_products(const MaskedProduct<C>* products, int64_t count, const C* matrix, int64_t stride, int64_t terms) {
  if (count == 0) return;
  constexpr int64_t kStrip = 8 * simd::kLanes<C>;
  for (int64_t column = 0; column < stride; column += kStrip) {
    const int64_t left = stride - column;
    const int64_t vectors = (left < kStrip ? left : kStrip) / simd::kLanes<C>;
    masked_strip_of<8>(vectors, products, count, matrix, stride, terms, column);
  }
}

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
