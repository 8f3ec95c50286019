// What rows of a block have in common, however they walk: the switches of their units, and the products that wait for a
// matrix. Torch-free; included by files that are compiled once per instruction set.
#pragma once

#include "mlp_search_row.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

DROCC_HD int64_t count_bits(const uint64_t* bits, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[w]);
  return count;
}

template <typename C>
class MlpRound : protected MlpWalk<C> {
 protected:
  using Row = MlpRow<C>;
  using MlpWalk<C>::among_units_;
  using MlpWalk<C>::net_;

  // Rows of a block: they share the passes through a matrix, as long as their vectors fit into the second-level cache.
  static constexpr int64_t kRows = 16;

  MlpRound(const PackedMlp<C>& network, const MlpSearchArgs& args)
      : MlpWalk<C>(network, args), last_(network.layers - 1) {}

  int64_t words(int l) const { return (net_.wide[l] + 63) / 64; }

  void multiply_by_slopes(const Row& row, int l, const C* vector, C* out) const {
    const C slope = net_.slope[l];
    const C* z = row.z[l];
    DROCC_SIMD()
    for (int64_t j = 0; j < net_.wide[l]; ++j) out[j] = z[j] > 0 ? vector[j] : slope * vector[j];
  }

  // fn(unit, 1 - slope for a unit that was switched on, its negative for one that was switched off)
  template <typename Fn>
  void each_switched(const Row& row, int l, const Fn& fn) const {
    const C change = C(1) - net_.slope[l];
    for (int64_t w = 0; w < words(l); ++w) {
      for (uint64_t bits = row.on[l][w] ^ row.now[l][w]; bits != 0; bits &= bits - 1) {
        const int bit = __builtin_ctzll(bits);
        fn(w * 64 + bit, (row.now[l][w] >> bit & 1) != 0 ? change : -change);
      }
    }
  }

  int64_t switched(const Row& row, int l) const {
    int64_t count = 0;
    for (int64_t w = 0; w < words(l); ++w) count += __builtin_popcountll(row.on[l][w] ^ row.now[l][w]);
    return count;
  }

  void read_units(Row& row, int l) const {
    const C* z = row.z[l];
    simd::positive_words<C>(net_.wide[l], row.on[l], row.now[l], [&](int64_t j) { return simd::load(z + j); });
  }

  void add_scaled(C factor, const C* from, C* to, int64_t count) const {
    DROCC_SIMD()
    for (int64_t j = 0; j < count; ++j) to[j] += factor * from[j];
  }

  void add_up(Row& row, int l) const {
    C* z = row.z[l];
    const C *still = row.still[l], *moving = row.moving[l];
    DROCC_SIMD()
    for (int64_t k = 0; k < net_.wide[l]; ++k) z[k] = still[k] + moving[k];
  }

  void measure(Row& row) const {
    C square = 0, size = 0, along = 0, largest = 0;
    if (among_units_) {
      const C *v = row.v, *q = row.q, *u = row.u;
      DROCC_SIMD(reduction(+ : square, size, along) reduction(max : largest))
      for (int64_t j = 0; j < net_.wide[0]; ++j) {
        const C term = v[j] * q[j];
        square += term;
        size += static_cast<C>(fabs(term));
        along += v[j] * u[j];
        const C magnitude = static_cast<C>(fabs(v[j]));
        largest = magnitude > largest ? magnitude : largest;
      }
      row.h_grad = net_.first_scale * static_cast<double>(along);
      row.grad_square = square, row.grad_terms = size;
    } else {
      const C* g = row.g;
      row.h_grad = this->dot(row.h, g, net_.inputs);
      row.grad_terms = row.grad_square = this->dot(g, g, net_.inputs);
      DROCC_SIMD(reduction(max : largest))
      for (int64_t k = 0; k < net_.inputs; ++k) {
        const C magnitude = static_cast<C>(fabs(g[k]));
        largest = magnitude > largest ? magnitude : largest;
      }
    }
    row.no_grad = largest == 0;
  }

  const int last_;
  MaskedProducts<C, kRows * kMostChanges> products_;
  Row* all_[kRows];  // that have not finished
  int64_t count_ = 0;
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
