// Compiled once per instruction set (see isa.h).
#include "mlp_loss_kernel.h"

#include "../math/mlp_loss.h"
#include "gemm.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

// Rows that go through all layers together: their units stay in the second-level cache.
constexpr int64_t kBlockRows = 192;

// Sums over this many rows stay in C, those over more are double.
constexpr int64_t kRowsInC = 32;

template <typename C>
struct Part {
  const C* rows;
  const C* units;  // or null
  int64_t begin;   // where it starts among all rows
  int64_t count;
};

// Calls fn for what of the clean and of the adversarial rows lies in [begin, end).
template <typename C, typename Fn>
DROCC_HD void for_parts(const MlpLossArgs& args, int64_t begin, int64_t end, const Fn& fn) {
  int64_t offset = 0;
  for (int part = 0; part < 2; ++part) {
    const int64_t first = begin > offset ? begin : offset;
    const int64_t limit = offset + args.count[part] < end ? offset + args.count[part] : end;
    if (first < limit) {
      const int64_t skipped = first - offset;
      const C* units = static_cast<const C*>(args.units[part]);
      fn(Part<C>{static_cast<const C*>(args.rows[part]) + skipped * args.net.widths[0],
                 units == nullptr ? nullptr : units + skipped * args.net.widths[1], first, limit - first});
    }
    offset += args.count[part];
  }
}

template <typename C>
int64_t size_packed(int64_t depth, int64_t columns) {
  return packed_size<C>(depth, columns);
}

template <typename C>
void pack_matrix(const void* b, int64_t depth, int64_t columns, void* packed) {
  pack<C>({static_cast<const C*>(b), columns, 1}, depth, columns, static_cast<C*>(packed));
}

template <typename C>
void multiply_matrix(const void* a, int64_t rows, int64_t depth, const void* packed, int64_t columns, void* out) {
  multiply<C>(rows, columns, depth, {static_cast<const C*>(a), depth, 1}, static_cast<const C*>(packed),
              static_cast<C*>(out), columns);
}

template <typename C>
void pack_layer(const MlpLossArgs& args, int layer) {
  const int64_t in = args.net.widths[layer], out = args.net.widths[layer + 1];
  const C* weight = static_cast<const C*>(args.net.weight[layer]);
  if (args.forward_weight[layer] != nullptr) {
    pack<C>({weight, 1, in}, in, out, static_cast<C*>(args.forward_weight[layer]));
  }
  if (args.back_weight[layer] != nullptr) {
    pack<C>({weight, in, 1}, out, in, static_cast<C*>(args.back_weight[layer]));
  }
}

template <typename C>
void take_layer(const MlpLossArgs& args, int layer, const C* input, int64_t rows, C* active) {
  const int64_t in = args.net.widths[layer], out = args.net.widths[layer + 1];
  const C* bias = static_cast<const C*>(args.net.bias[layer]);
  const C* weight = static_cast<const C*>(args.forward_weight[layer]);
  const C slope = static_cast<C>(args.net.negative_slope[layer]);
  if (slope == 0) {
    multiply<C>(rows, out, in, {input, in, 1}, weight, active, out, false, Rectified<C>{bias});
  } else {
    multiply<C>(rows, out, in, {input, in, 1}, weight, active, out, false, Activated<C>{bias, slope});
  }
}

template <typename C>
void forward(const MlpLossArgs& args, int64_t begin, int64_t end) {
  const int last = args.net.num_layers - 1;
  const int64_t first_width = args.net.widths[1], width = args.net.widths[last + 1];
  const C* output = static_cast<const C*>(args.net.output);
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t rows = end - row < kBlockRows ? end - row : kBlockRows;
    for_parts<C>(args, row, row + rows, [&](const Part<C>& part) {
      C* active = static_cast<C*>(args.active[0]) + part.begin * first_width;
      if (part.units == nullptr) {
        take_layer(args, 0, part.rows, part.count, active);
        return;
      }
      const C slope = static_cast<C>(args.net.negative_slope[0]);
      DROCC_SIMD()
      for (int64_t i = 0; i < part.count * first_width; ++i) active[i] = math::leaky_rectified(part.units[i], slope);
    });
    for (int layer = 1; layer <= last; ++layer) {
      const C* input = static_cast<const C*>(args.active[layer - 1]) + row * args.net.widths[layer];
      take_layer(args, layer, input, rows, static_cast<C*>(args.active[layer]) + row * args.net.widths[layer + 1]);
    }
    for (int64_t i = row; i < row + rows; ++i) {
      const C* active = static_cast<const C*>(args.active[last]) + i * width;
      C sum = 0;
      DROCC_SIMD(reduction(+ : sum))
      for (int64_t j = 0; j < width; ++j) sum += active[j] * output[j];
      static_cast<C*>(args.logits)[i] = sum;
    }
  }
}

template <typename C>
void backward(const MlpLossArgs& args, int64_t begin, int64_t end) {
  const int last = args.net.num_layers - 1;
  const int64_t width = args.net.widths[last + 1];
  const C* output = static_cast<const C*>(args.net.output);
  const C* slopes = static_cast<const C*>(args.slopes);
  if (args.gradient[last] == nullptr) return;
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t rows = end - row < kBlockRows ? end - row : kBlockRows;
    for (int64_t i = row; i < row + rows; ++i) {
      const C* active = static_cast<const C*>(args.active[last]) + i * width;
      C* gradient = static_cast<C*>(args.gradient[last]) + i * width;
      const C slope = slopes[i], negative = static_cast<C>(args.net.negative_slope[last]);
      DROCC_SIMD()
      for (int64_t j = 0; j < width; ++j) gradient[j] = math::leaky_slope(active[j], negative) * output[j] * slope;
    }
    for (int layer = last; layer > 0 && args.gradient[layer - 1] != nullptr; --layer) {
      const int64_t in = args.net.widths[layer], out = args.net.widths[layer + 1];
      const C* gradient = static_cast<const C*>(args.gradient[layer]) + row * out;
      const Masked<C> mask{static_cast<const C*>(args.active[layer - 1]) + row * in, in,
                           static_cast<C>(args.net.negative_slope[layer - 1])};
      multiply<C>(rows, in, out, {gradient, out, 1}, static_cast<const C*>(args.back_weight[layer]),
                  static_cast<C*>(args.gradient[layer - 1]) + row * in, in, false, mask);
    }
  }
}

template <typename C>
int64_t scratch_size(int64_t rows) {
  return packed_size<C>(rows, kGradientColumns);
}

template <typename C>
void weight_gradient(const MlpLossArgs& args, int layer, int64_t begin, int64_t end, void* scratch) {
  const int64_t in = args.net.widths[layer], out = args.net.widths[layer + 1];
  const int64_t down = count_blocks(out, kGradientRows), all = args.count[0] + args.count[1];
  C* packed = static_cast<C*>(scratch);
  // Blocks below each other share the input's columns.
  for (int64_t block = begin; block < end;) {
    const int64_t column = block / down * kGradientColumns;
    const int64_t columns = in - column < kGradientColumns ? in - column : kGradientColumns;
    const int64_t next = (block / down + 1) * down < end ? (block / down + 1) * down : end;
    const int64_t first = block % down * kGradientRows;
    const int64_t limit = ((next - 1) % down + 1) * kGradientRows;
    const int64_t rows = (limit < out ? limit : out) - first;
    C* to = static_cast<C*>(args.weight_gradient[layer]) + first * in + column;
    const auto add = [&](const C* input, int64_t from, int64_t count, bool adds) {
      const C* gradient = static_cast<const C*>(args.gradient[layer]) + from * out + first;
      pack<C>({input + column, in, 1}, count, columns, packed);
      multiply<C>(rows, columns, count, {gradient, 1, out}, packed, to, in, adds);
    };
    if (layer > 0) {
      add(static_cast<const C*>(args.active[layer - 1]), 0, all, false);
    } else {
      add(static_cast<const C*>(args.rows[0]), 0, args.count[0], false);
      if (args.count[1] > 0) add(static_cast<const C*>(args.rows[1]), args.count[0], args.count[1], true);
    }
    block = next;
  }
}

// sums[j] = sum over rows of weights[row] * values[row, j], without weights their plain sum.
template <bool kWeighted, typename C>
DROCC_HD void sum_columns(const C* values, const C* weights, int64_t rows, int64_t stride, int64_t columns, C* out) {
  double sums[kGradientUnits] = {};
  for (int64_t from = 0; from < rows; from += kRowsInC) {
    const int64_t to = rows - from < kRowsInC ? rows : from + kRowsInC;
    C some[kGradientUnits] = {};
    for (int64_t row = from; row < to; ++row) {
      const C weight = kWeighted ? weights[row] : C(1);
      const C* value = values + row * stride;
      DROCC_SIMD()
      for (int64_t j = 0; j < columns; ++j) some[j] += kWeighted ? weight * value[j] : value[j];
    }
    for (int64_t j = 0; j < columns; ++j) sums[j] += static_cast<double>(some[j]);
  }
  for (int64_t j = 0; j < columns; ++j) out[j] = static_cast<C>(sums[j]);
}

template <typename C>
void unit_gradient(const MlpLossArgs& args, int layer, int64_t begin, int64_t end) {
  const int64_t width = args.net.widths[layer + 1], rows = args.count[0] + args.count[1];
  for (int64_t first = begin * kGradientUnits; first < end * kGradientUnits && first < width; first += kGradientUnits) {
    const int64_t columns = width - first < kGradientUnits ? width - first : kGradientUnits;
    if (args.bias_gradient[layer] != nullptr) {
      sum_columns<false, C>(static_cast<const C*>(args.gradient[layer]) + first, nullptr, rows, width, columns,
                            static_cast<C*>(args.bias_gradient[layer]) + first);
    }
    if (layer == args.net.num_layers - 1 && args.output_gradient != nullptr) {
      sum_columns<true, C>(static_cast<const C*>(args.active[layer]) + first, static_cast<const C*>(args.slopes), rows,
                           width, columns, static_cast<C*>(args.output_gradient) + first);
    }
  }
}

}  // namespace

extern const MlpLossRows mlp_loss_kernels = {
    {size_packed<float>, size_packed<double>},
    {pack_matrix<float>, pack_matrix<double>},
    {multiply_matrix<float>, multiply_matrix<double>},
    {pack_layer<float>, pack_layer<double>},
    {forward<float>, forward<double>},
    {backward<float>, backward<double>},
    {weight_gradient<float>, weight_gradient<double>},
    {scratch_size<float>, scratch_size<double>},
    {unit_gradient<float>, unit_gradient<double>},
};

}  // namespace drocc::cpu::DROCC_ISA
