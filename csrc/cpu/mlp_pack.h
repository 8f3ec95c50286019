// A network's weights as the search's products read them. Torch-free; included by files that are compiled once per
// instruction set.
#pragma once

#include "../math/mlp_search.h"
#include "../mlp.h"
#include "masked_product.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

// Layers are counted from 0 here. Backward weights are scaled by powers of two so that the largest of each layer is near
// 1: directions stay the same, and neither products nor squares of the tiniest and the largest weights leave the range
// of C. What leads forward is as given, so that units switch where they do in a plain forward.
template <typename C>
class PackedMlp {
 public:
  int layers = 0;
  int64_t inputs = 0;                 // D
  int64_t wide_inputs = 0;            // D in whole blocks
  int64_t units[kMostMlpLayers];      // H_l
  int64_t wide[kMostMlpLayers];       // H_l in whole blocks; what is beyond H_l is 0
  Strips<C> forward[kMostMlpLayers];   // W_l^T: [what enters, wide]
  Strips<C> backward[kMostMlpLayers];  // W_l, scaled: [units, what enters in whole blocks]
  const C* bias[kMostMlpLayers];
  C slope[kMostMlpLayers];
  const C* output = nullptr;      // scaled
  Strips<C> gram{};               // backward[0] times its transpose: [units, wide]; no data: not wanted
  const C* columns = nullptr;     // W_0^T by rows, with Jacobians
  bool jacobians = false;
  const uint64_t* ones = nullptr;  // bits of the inputs
  const uint64_t* all[kMostMlpLayers];  // bits of all units
  double first_scale = 1.0;       // backward[0] = first_scale * W_0
  bool finite = true;             // all weights are

  // False when memory runs out.
  bool pack(const MlpView& view, math::MlpWay way) {
    const bool with_gram = way == math::MlpWay::kAmongUnits;
    layers = view.num_layers;
    inputs = view.widths[0];
    wide_inputs = simd::whole_blocks(inputs);
    for (int l = 0; l < layers; ++l) {
      units[l] = view.widths[l + 1];
      wide[l] = simd::whole_blocks(units[l]);
      slope[l] = static_cast<C>(view.negative_slope[l]);
    }
    jacobians = way == math::MlpWay::kJacobians;
    divide(with_gram);
    if (!arena_.allocate()) return false;
    divide(with_gram);
    for (int l = 0; l < layers; ++l) fill_layer(view, l);
    const int last = layers - 1;
    fill_output(static_cast<const C*>(view.output), last);
    set_bits(ones_, inputs);
    ones = ones_;
    for (int l = 0; l < layers; ++l) {
      set_bits(all_[l], units[l]);
      all[l] = all_[l];
    }
    if (jacobians) fill_columns(static_cast<const C*>(view.weight[0]));
    if (with_gram) fill_gram(static_cast<const C*>(view.weight[0]));
    return true;
  }

  int64_t entering(int l) const { return l == 0 ? inputs : units[l - 1]; }
  int64_t wide_entering(int l) const { return l == 0 ? wide_inputs : wide[l - 1]; }

 private:
  static int64_t words(int64_t count) { return (count + 63) / 64; }

  void divide(bool with_gram) {
    for (int l = 0; l < layers; ++l) {
      forward[l] = take_strips(entering(l), wide[l]);
      backward[l] = take_strips(units[l], wide_entering(l));
      bias_[l] = arena_.template take<C>(wide[l]);
      all_[l] = arena_.template take<uint64_t>(words(units[l]));
      bias[l] = bias_[l], all[l] = all_[l];
    }
    output_ = arena_.template take<C>(wide[layers - 1]);
    ones_ = arena_.template take<uint64_t>(words(inputs));
    output = output_, ones = ones_;
    columns_ = jacobians ? arena_.template take<C>(inputs * wide[0]) : nullptr;
    columns = columns_;
    if (!with_gram) return;
    gram = take_strips(units[0], wide[0]);
    rows_ = arena_.template take<C>(kGramRows * wide[0]);
  }

  Strips<C> take_strips(int64_t rows, int64_t columns) {
    return {arena_.template take<C>(rows * columns), rows, columns};
  }

  // value(row, column) of all entries, 0 beyond `filled` columns.
  template <typename Value>
  static void fill(const Strips<C>& strips, int64_t filled, const Value& value) {
    // By square parts, whichever way they are read.
    constexpr int64_t kPart = simd::kBlock;
    for (int64_t column = 0; column < strips.columns; column += Strips<C>::kWidth) {
      const int64_t width = Strips<C>::width(column, strips.columns);
      for (int64_t part = 0; part < width; part += kPart) {
        const int64_t first = column + part;
        const int64_t some = filled - first < kPart ? (filled < first ? 0 : filled - first) : kPart;
        for (int64_t row = 0; row < strips.rows; ++row) {
          C* to = strips.data + column * strips.rows + row * width + part;
          for (int64_t j = 0; j < some; ++j) to[j] = value(row, first + j);
          for (int64_t j = some; j < kPart; ++j) to[j] = 0;
        }
      }
    }
  }

  // The power of two that brings the largest of them near 1.
  C scale_of(const C* values, int64_t count) {
    const C largest = math::max_abs<C>(math::SerialTeam{}, count, [&](int64_t i) { return values[i]; });
    if (!math::is_finite(largest)) finite = false;
    return largest > 0 ? math::inverse_scale_of(largest) : C(1);
  }

  void fill_layer(const MlpView& view, int l) {
    const C* weight = static_cast<const C*>(view.weight[l]);
    const C* given = static_cast<const C*>(view.bias[l]);
    const int64_t columns = entering(l);
    const C scale = scale_of(weight, units[l] * columns);
    if (l == 0) first_scale = static_cast<double>(scale);
    // Jacobians are products of weights as they are given.
    if (!(scale > C(0x1p-20) && scale < C(0x1p20)) || slope[l] != 0) jacobians = false;
    if (given != nullptr) scale_of(given, units[l]);
    for (int64_t j = 0; j < wide[l]; ++j) bias_[l][j] = given != nullptr && j < units[l] ? given[j] : C(0);
    fill(backward[l], columns, [=](int64_t j, int64_t i) { return scale * weight[j * columns + i]; });
    const int64_t rows = units[l];
    fill(forward[l], rows, [=](int64_t i, int64_t j) { return weight[j * columns + i]; });
  }

  void fill_output(const C* given, int last) {
    const C scale = scale_of(given, units[last]);
    for (int64_t j = 0; j < wide[last]; ++j) output_[j] = j < units[last] ? scale * given[j] : C(0);
  }

  static void set_bits(uint64_t* bits, int64_t count) {
    for (int64_t word = 0; word < words(count); ++word) {
      const int64_t left = count - word * 64;
      bits[word] = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    }
  }

  void fill_columns(const C* weight) {
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t j = 0; j < wide[0]; ++j) columns_[i * wide[0] + j] = j < units[0] ? weight[j * inputs + i] : C(0);
    }
  }

  static constexpr int64_t kGramRows = 16;  // at a time, so that the matrix is read once for all of them

  void fill_gram(const C* weight) {
    const C scale = static_cast<C>(first_scale * first_scale);
    for (int64_t first = 0; first < units[0]; first += kGramRows) {
      MaskedProduct<C> products[kGramRows];
      const int64_t count = units[0] - first < kGramRows ? units[0] - first : kGramRows;
      for (int64_t i = 0; i < count; ++i) {
        products[i] = {weight + (first + i) * inputs, ones, nullptr, rows_ + i * wide[0]};
      }
      masked_products(products, count, forward[0]);
      for (int64_t column = 0; column < wide[0]; column += Strips<C>::kWidth) {
        const int64_t width = Strips<C>::width(column, wide[0]);
        for (int64_t i = 0; i < count; ++i) {
          C* to = gram.data + column * units[0] + (first + i) * width;
          for (int64_t j = 0; j < width; ++j) to[j] = scale * rows_[i * wide[0] + column + j];
        }
      }
    }
  }

  simd::Arena arena_;
  C* bias_[kMostMlpLayers];
  uint64_t* all_[kMostMlpLayers];
  C* output_ = nullptr;
  C* columns_ = nullptr;
  C* rows_ = nullptr;
  uint64_t* ones_ = nullptr;
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
