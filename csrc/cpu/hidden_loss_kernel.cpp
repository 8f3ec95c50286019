// Compiled once per instruction set (see isa.h); plain loops that the compiler vectorizes.
#include "hidden_loss_kernel.h"

#include "../math/hidden_loss.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename C>
void logits(const HiddenLogitsArgs& args, int64_t begin, int64_t end) {
  const C* output = static_cast<const C*>(args.output);
  for (int64_t row = begin; row < end; ++row) {
    C* units = static_cast<C*>(args.units) + row * args.hidden;
    C sum = 0;
    DROCC_SIMD(reduction(+ : sum))
    for (int64_t j = 0; j < args.hidden; ++j) {
      const C active = math::rectified(units[j]);
      units[j] = active;
      sum += active * output[j];
    }
    static_cast<C*>(args.logits)[row] = sum + static_cast<C>(args.bias);
  }
}

// Sums over this many rows stay in C, those over more are double.
constexpr int64_t kRowsInC = 32;

template <typename C>
void gradients(const HiddenGradientsArgs& args, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kColumns;
    const int64_t width = args.hidden - first < kColumns ? args.hidden - first : kColumns;
    const C* output = static_cast<const C*>(args.output) + first;
    double units_bias[kColumns] = {}, output_gradients[kColumns] = {};
    for (int part = 0; part < 2; ++part) {
      const C* slopes = static_cast<const C*>(args.slopes[part]);
      const C weight = static_cast<C>(args.weights[part]);
      for (int64_t from = 0; from < args.rows[part]; from += kRowsInC) {
        const int64_t to = args.rows[part] - from < kRowsInC ? args.rows[part] : from + kRowsInC;
        C some_bias[kColumns] = {}, some_output[kColumns] = {};
        for (int64_t row = from; row < to; ++row) {
          const C slope = weight * slopes[row];
          const C* active = static_cast<const C*>(args.active[part]) + row * args.hidden + first;
          C* units = static_cast<C*>(args.units[part]) + row * args.hidden + first;
          DROCC_SIMD()
          for (int64_t j = 0; j < width; ++j) {
            const C unit = math::rectified_slope(active[j]) * output[j] * slope;
            units[j] = unit;
            some_bias[j] += unit;
            some_output[j] += active[j] * slope;
          }
        }
        DROCC_SIMD()
        for (int64_t j = 0; j < width; ++j) {
          units_bias[j] += static_cast<double>(some_bias[j]);
          output_gradients[j] += static_cast<double>(some_output[j]);
        }
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      static_cast<C*>(args.units_bias)[first + j] = static_cast<C>(units_bias[j]);
      static_cast<C*>(args.output_gradients)[first + j] = static_cast<C>(output_gradients[j]);
    }
  }
}

}  // namespace

extern const HiddenLossRows hidden_loss_kernels = {{logits<float>, logits<double>},
                                                   {gradients<float>, gradients<double>}};

}  // namespace drocc::cpu::DROCC_ISA
