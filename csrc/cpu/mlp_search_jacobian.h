// The search with Jacobians, where there are few inputs: J_l says how layer l's units depend on h. Torch-free; included
// by files that are compiled once per instruction set.
#pragma once

#include "mlp_search_round.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename C>
class MlpJacobians : protected MlpRound<C> {
 protected:
  using Base = MlpRound<C>;
  using Row = MlpRow<C>;
  using Base::add_scaled;
  using Base::add_up;
  using Base::all_;
  using Base::count_;
  using Base::each_switched;
  using Base::kRows;
  using Base::last_;
  using Base::measure;
  using Base::multiply_by_slopes;
  using Base::net_;
  using Base::products_;
  using Base::read_units;
  using Base::switched;
  using Base::words;

  using Base::Base;

  const C* jacobian(const Row& row, int l) const { return l == 0 ? net_.columns : row.jacobian[l]; }

  // out = sum_i factors[i] matrix[i, :]
  void combine(const C* factors, const C* matrix, int64_t width, C* out) const {
    for (int64_t j = 0; j < width; j += simd::kLanes<C>) {
      simd::Vector<C> sum = factors[0] * simd::load(matrix + j);
      for (int64_t i = 1; i < net_.inputs; ++i) sum += factors[i] * simd::load(matrix + i * width + j);
      simd::store(out + j, sum);
    }
  }

  // Layer by layer: J_l = W_l D_(l-1) J_(l-1) changes by the sum of c (x) a over the changes of the layer before, c
  // then being W_l D_(l-1) c, and over its switched units, c being a column of W_l and a a column of J_(l-1).
  void change_jacobians() {
    for (int64_t i = 0; i < count_; ++i) {
      all_[i]->anew |= all_[i]->moved;
      all_[i]->changes = 0;
    }
    for (int l = 1; l < net_.layers; ++l) {
      for (int64_t i = 0; i < count_; ++i) {
        Row& row = *all_[i];
        // Where no unit is left on, sums of changes would leave rounding where there is no gradient.
        const bool emptied = net_.slope[l - 1] == 0 && count_bits(row.now[l - 1], words(l - 1)) == 0;
        row.anew |= emptied || row.changes + switched(row, l - 1) > kMostChanges;
        if (row.anew) continue;
        for (int64_t m = 0; m < row.changes; ++m) {
          products_.add(row.change[0] + m * net_.wide[l - 1], row.on[l - 1], nullptr, row.change[1] + m * net_.wide[l]);
        }
      }
      products_.run(net_.forward[l]);
      for (int64_t i = 0; i < count_; ++i) {
        Row& row = *all_[i];
        if (row.anew) {
          make_jacobian(row, l);
        } else {
          change_jacobian(row, l);
        }
        add_up(row, l);
        read_units(row, l);
      }
    }
  }

  void make_jacobian(Row& row, int l) {
    const int64_t width = net_.wide[l];
    const C* before = jacobian(row, l - 1);
    products_.add(row.still[l - 1], row.now[l - 1], net_.bias[l], row.still[l]);
    products_.run(net_.forward[l]);
    for (int64_t k = 0; k < net_.inputs;) {
      for (int64_t end = k + kRows < net_.inputs ? k + kRows : net_.inputs; k < end; ++k) {
        products_.add(before + k * net_.wide[l - 1], row.now[l - 1], nullptr, row.jacobian[l] + k * width);
      }
      products_.run(net_.forward[l]);
    }
    combine(row.h, row.jacobian[l], width, row.moving[l]);
  }

  void change_jacobian(Row& row, int l) const {
    const int64_t width = net_.wide[l], before = net_.wide[l - 1], stride = net_.inputs + 2;
    C* const spare = row.change[0];
    row.change[0] = row.change[1];
    row.change[1] = spare;
    each_switched(row, l - 1, [&](int64_t j, C sign) {
      C* along = row.along + row.changes * stride;
      const C* columns = jacobian(row, l - 1) + j;
      for (int64_t k = 0; k < net_.inputs; ++k) along[k] = columns[k * before];
      along[net_.inputs] = row.still[l - 1][j];
      along[net_.inputs + 1] = row.moving[l - 1][j];
      net_.forward[l].copy_row(j, sign, row.change[0] + row.changes * width);
      ++row.changes;
    });
    for (int64_t m = 0; m < row.changes; ++m) {
      const C* change = row.change[0] + m * width;
      const C* along = row.along + m * stride;
      for (int64_t k = 0; k < net_.inputs; ++k) add_scaled(along[k], change, row.jacobian[l] + k * width, width);
      add_scaled(along[net_.inputs], change, row.still[l], width);
      add_scaled(along[net_.inputs + 1], change, row.moving[l], width);
    }
  }

  void jacobian_direction() {
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      row.new_grad = row.anew;
      for (int l = 0; l < net_.layers && !row.new_grad; ++l) row.new_grad = switched(row, l) > 0;
      if (!row.new_grad) continue;
      const int64_t width = net_.wide[last_];
      C* const weights = row.change[0];  // free until the next switch
      multiply_by_slopes(row, last_, net_.output, weights);
      for (int64_t k = 0; k < net_.inputs; ++k) {
        const C* column = row.jacobian[last_] + k * width;
        C sum = 0;
        DROCC_SIMD(reduction(+ : sum))
        for (int64_t j = 0; j < width; ++j) sum += weights[j] * column[j];
        row.g[k] = sum;
      }
      for (int l = 0; l < net_.layers; ++l) combine(row.g, jacobian(row, l), net_.wide[l], row.moving_q[l]);
      measure(row);
    }
  }
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
