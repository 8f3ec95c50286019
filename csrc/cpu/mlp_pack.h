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
  const C* forward[kMostMlpLayers];   // W_l^T: [what enters, wide]
  const C* backward[kMostMlpLayers];  // W_l, scaled: [units, what enters in whole blocks]
  const C* bias[kMostMlpLayers];
  C slope[kMostMlpLayers];
  const C* output = nullptr;      // scaled
  const C* gram = nullptr;        // backward[0] times its transpose: [units, wide]; null: not wanted
  const uint64_t* ones = nullptr;  // bits of the inputs
  const uint64_t* all[kMostMlpLayers];  // bits of all units
  double first_scale = 1.0;       // backward[0] = first_scale * W_0
  bool finite = true;             // all weights are

  // False when memory runs out.
  bool pack(const MlpView& view, bool with_gram) {
    layers = view.num_layers;
    inputs = view.widths[0];
    wide_inputs = simd::whole_blocks(inputs);
    for (int l = 0; l < layers; ++l) {
      units[l] = view.widths[l + 1];
      wide[l] = simd::whole_blocks(units[l]);
      slope[l] = static_cast<C>(view.negative_slope[l]);
    }
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
    if (with_gram) fill_gram();
    return true;
  }

  int64_t entering(int l) const { return l == 0 ? inputs : units[l - 1]; }
  int64_t wide_entering(int l) const { return l == 0 ? wide_inputs : wide[l - 1]; }

 private:
  static int64_t words(int64_t count) { return (count + 63) / 64; }

  void divide(bool with_gram) {
    for (int l = 0; l < layers; ++l) {
      forward_[l] = arena_.template take<C>(entering(l) * wide[l]);
      backward_[l] = arena_.template take<C>(units[l] * wide_entering(l));
      bias_[l] = arena_.template take<C>(wide[l]);
      all_[l] = arena_.template take<uint64_t>(words(units[l]));
      forward[l] = forward_[l], backward[l] = backward_[l], bias[l] = bias_[l];
    }
    output_ = arena_.template take<C>(wide[layers - 1]);
    gram_ = with_gram ? arena_.template take<C>(units[0] * wide[0]) : nullptr;
    ones_ = arena_.template take<uint64_t>(words(inputs));
    output = output_, gram = gram_;
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
    const int64_t columns = entering(l), wide_columns = wide_entering(l);
    const C scale = scale_of(weight, units[l] * columns);
    if (l == 0) first_scale = static_cast<double>(scale);
    if (given != nullptr) scale_of(given, units[l]);
    for (int64_t j = 0; j < wide[l]; ++j) bias_[l][j] = given != nullptr && j < units[l] ? given[j] : C(0);
    for (int64_t j = 0; j < units[l]; ++j) {
      C* row = backward_[l] + j * wide_columns;
      DROCC_SIMD()
      for (int64_t i = 0; i < columns; ++i) row[i] = scale * weight[j * columns + i];
      for (int64_t i = columns; i < wide_columns; ++i) row[i] = 0;
    }
    // By square parts, so that a part's rows stay in the cache.
    constexpr int64_t kPart = 16;
    for (int64_t first = 0; first < columns; first += kPart) {
      const int64_t end = columns - first < kPart ? columns : first + kPart;
      for (int64_t part = 0; part < wide[l]; part += kPart) {
        for (int64_t i = first; i < end; ++i) {
          C* to = forward_[l] + i * wide[l];
          for (int64_t j = part; j < part + kPart; ++j) to[j] = j < units[l] ? weight[j * columns + i] : C(0);
        }
      }
    }
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

  void fill_gram() {
    const C scale = static_cast<C>(first_scale);
    constexpr int64_t kRows = 16;  // at a time, so that a part of the matrix is read once for all of them
    for (int64_t first = 0; first < units[0]; first += kRows) {
      MaskedProduct<C> products[kRows];
      const int64_t count = units[0] - first < kRows ? units[0] - first : kRows;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t j = first + i;
        products[i] = {backward[0] + j * wide_inputs, ones, nullptr, gram_ + j * wide[0]};
      }
      masked_products(products, count, forward[0], wide[0], inputs);
    }
    DROCC_SIMD()
    for (int64_t i = 0; i < units[0] * wide[0]; ++i) gram_[i] *= scale;
  }

  simd::Arena arena_;
  C* forward_[kMostMlpLayers];
  C* backward_[kMostMlpLayers];
  C* bias_[kMostMlpLayers];
  uint64_t* all_[kMostMlpLayers];
  C* output_ = nullptr;
  C* gram_ = nullptr;
  uint64_t* ones_ = nullptr;
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
