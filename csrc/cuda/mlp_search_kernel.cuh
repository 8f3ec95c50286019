// The search of Algorithm 1 in networks of several layers (math/mlp_search.h) for the rows of one block, through the
// inputs: every step computes all layers anew, so that nothing is lost on the way. Device code.
//
// A product of the rows' vectors with a matrix: threads stand side by side along its outputs, and where there are more
// of them than outputs, groups of threads share out what is summed over. A thread sums two outputs for all rows: each
// weight that it reads serves all of them. The groups' sums are added up in order. So every element is summed in an
// order that the sizes alone decide.
#pragma once

#include "../math/mlp_search.h"
#include "mlp_launch.h"
#include "mlp_search_rows.cuh"
#include "reduce.cuh"

namespace drocc::cuda {

// A network's weights where the kernels find them. Layers are counted from 0.
struct MlpWeights {
  const void* transposed;              // W_l^T [H_(l-1), H_l], each from 1024 tile_begin[l] on; null: held on chip
  const void* tile_largest;            // of each tile the largest size of its weights, NaN where one is not finite
  int tile_begin[kMostMlpLayers + 1];  // of each layer, in tiles; then the number of all
  int held_begin[kMostMlpLayers];      // of each layer in shared memory, in elements
};

struct MlpCall {
  MlpSearchArgs rows;
  MlpWeights weights;
  unsigned char* workspace;  // for rows that are not on chip, rows_bytes for each block; else null
  int64_t workspace_bytes;
  int rows_bytes;  // ahead of held weights
  int partial_bytes;
  int stride;
  int mask_words;
};

// matrix[k, n] = data[k * k_step + n * n_step]
template <typename C>
struct MlpMatrix {
  const C* data;
  int k_step;
  int n_step;
};

template <typename C, int kRows, bool kSigma>
class MlpTile {
 public:
  // memory: dynamic shared memory, as choose_mlp_launch sizes it. first: of this block's rows.
  __device__ MlpTile(const MlpCall& call, int64_t first, unsigned char* memory)
      : call_(call), args_(call.rows), memory_(memory), first_(first), layers_(call.rows.network.num_layers) {
    const int64_t left = args_.batch - first;
    count_ = left < kRows ? static_cast<int>(left) : kRows;
  }

  __device__ void run() {
    prepare();
    start();
    for (int64_t step = 1; step <= args_.num_steps; ++step) {
      forward();
      backward();
      take_step(step % args_.project_every == 0 || (args_.project_last && step == args_.num_steps));
    }
    finish();
  }

 private:
  __device__ int width(int l) const { return static_cast<int>(args_.network.widths[l]); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ static int warps() { return static_cast<int>(blockDim.x / 32); }
  __device__ int inputs() const { return width(0); }

  // ---- memory: pointers are computed at each use, registers are dearer

  // Powers of two, of each layer's weights and of the output's.
  __device__ C* scales() const { return reinterpret_cast<C*>(memory_); }
  // Of each row: how often a unit was not finite.
  __device__ unsigned* bad_counts() const {
    return reinterpret_cast<unsigned*>(memory_ + kMlpControlBytes - 4 * kMostMlpRows);
  }
  __device__ C* partial() const { return reinterpret_cast<C*>(memory_ + kMlpControlBytes); }
  __device__ C* weights() const {
    return reinterpret_cast<C*>(memory_ + kMlpControlBytes + call_.partial_bytes + call_.rows_bytes);
  }
  __device__ C* vectors(int index) const {
    unsigned char* rows = memory_ + kMlpControlBytes + call_.partial_bytes;
    // Many rows always are on chip: said here, so that the compiler knows too.
    if (kRows == kFewMlpRows && call_.workspace != nullptr) {
      rows = call_.workspace + static_cast<int64_t>(blockIdx.x) * call_.workspace_bytes;
    }
    return reinterpret_cast<C*>(rows) + index * kRows * call_.stride;
  }
  // [kRows, stride] each: where the rows are, and what enters the layers and comes back from them, by turns.
  __device__ C* h() const { return vectors(0); }
  __device__ C* entering(int l) const { return vectors(1 + l % 2); }
  // The units that are on, [layers, kRows, mask_words].
  __device__ unsigned* mask(int l, int row) const {
    return reinterpret_cast<unsigned*>(vectors(3)) + (l * kRows + row) * call_.mask_words;
  }

  // ---- weights

  __device__ bool held() const { return call_.weights.transposed == nullptr; }

  __device__ MlpMatrix<C> forward_matrix(int l) const {
    if (held()) {
      return {weights() + call_.weights.held_begin[l], 1, static_cast<int>(held_stride(width(l)))};
    }
    const int64_t begin = int64_t{1024} * call_.weights.tile_begin[l];
    return {static_cast<const C*>(call_.weights.transposed) + begin, width(l + 1), 1};
  }

  __device__ MlpMatrix<C> backward_matrix(int l) const {
    if (held()) {
      return {weights() + call_.weights.held_begin[l], static_cast<int>(held_stride(width(l))), 1};
    }
    return {static_cast<const C*>(args_.network.weight[l]), width(l), 1};
  }

  // Holds the weights where they fit, and learns how large they are.
  __device__ void prepare() {
    const TeamShape shape{static_cast<int>(blockDim.x), 1, 1, std::numeric_limits<int>::max(), false, true, 0, nullptr};
    const BlockTeam team(shape);
    if (held()) {
      for (int l = 0; l < layers_; ++l) hold(l);
      __syncthreads();
    }
    C sound = 0;  // NaN where a weight is not finite
#pragma unroll 1
    for (int l = 0; l <= layers_; ++l) {
      const C* values = static_cast<const C*>(args_.network.output);
      int count = width(layers_);
      if (l < layers_) {
        const int* tiles = call_.weights.tile_begin;
        values = held() ? weights() + call_.weights.held_begin[l]
                        : static_cast<const C*>(call_.weights.tile_largest) + tiles[l];
        count = held() ? width(l + 1) * static_cast<int>(held_stride(width(l))) : tiles[l + 1] - tiles[l];
      }
      const C largest = math::max_abs<C>(team, count, [&](int64_t i) { return values[i]; });
      sound += largest - largest;
      if (threadIdx.x == 0) scales()[l] = math::backward_scale(largest);
      if (l < layers_ && args_.network.bias[l] != nullptr) {
        const C* bias = static_cast<const C*>(args_.network.bias[l]);
        const C most = math::max_abs<C>(team, width(l + 1), [&](int64_t i) { return bias[i]; });
        sound += most - most;
      }
    }
    sound_ = sound == 0;
  }

  __device__ void hold(int l) {
    const C* from = static_cast<const C*>(args_.network.weight[l]);
    C* to = weights() + call_.weights.held_begin[l];
    const int columns = width(l), stride = static_cast<int>(held_stride(columns));
    for (int row = warp(); row < width(l + 1); row += warps()) {
      for (int k = lane(); k < stride; k += 32) to[row * stride + k] = k < columns ? from[row * columns + k] : C(0);
    }
  }

  // ---- products

  static constexpr int kStretch = 128;    // most terms that are added to one sum, one after the other
  static constexpr int kLeastShare = 16;  // fewer terms are not shared out

  // finish(row, n, n < outputs, sum_k in[row, k] matrix[k, n]) for all rows and outputs, by whole warps. What was
  // written before must be there, and what finish writes is there afterwards.
  template <typename Finish>
  __device__ void product(const C* in, int terms, const MlpMatrix<C>& matrix, int outputs, const Finish& finish) const {
    const int threads = static_cast<int>(blockDim.x);
    const int wanted = (outputs + 32 * kMlpColumns - 1) / (32 * kMlpColumns) * 32;
    const int across = wanted < threads ? wanted : threads;  // threads side by side
    const int most = terms < kLeastShare ? 1 : terms / kLeastShare;
    const int groups = threads / across < most ? threads / across : most;
    const int share = ((terms + groups - 1) / groups + 3) / 4 * 4;
    const int group = static_cast<int>(threadIdx.x) / across, place = static_cast<int>(threadIdx.x) % across;
    const int span = across * kMlpColumns;  // outputs at a time
    for (int begin = 0; begin < outputs; begin += span) {
      if (group < groups) {
        const int from = group * share, to = from + share < terms ? from + share : terms;
        sum_share(in, from, to, matrix, begin + place, across, outputs, partial() + group * kRows * span + place, span);
      }
      __syncthreads();
      const int here = outputs - begin < span ? outputs - begin : span;
      for (int item = warp(); item < (here + 31) / 32 * kRows; item += warps()) {
        const int row = item % kRows, n = item / kRows * 32 + lane();
        C sum = 0;
#pragma unroll 4
        for (int g = 0; g < groups; ++g) sum += partial()[(g * kRows + row) * span + n];
        finish(row, begin + n, begin + n < outputs, sum);
      }
      __syncthreads();
    }
  }

  // One thread's share: terms from..to of outputs n, n + across, ..., all rows. Sums of a stretch first, then over
  // these.
  __device__ void sum_share(const C* in, int from, int to, const MlpMatrix<C>& matrix, int n, int across, int outputs,
                            C* out, int span) const {
    const C* columns[kMlpColumns];
#pragma unroll
    for (int j = 0; j < kMlpColumns; ++j) {
      const int column = n + j * across;  // beyond the last: some other, and nobody looks at it
      columns[j] = matrix.data + static_cast<int64_t>(column < outputs ? column : outputs - 1) * matrix.n_step;
    }
    const int64_t k_step = matrix.k_step;
#pragma unroll 1
    for (int begin = from;;) {
      const int end = begin + kStretch < to ? begin + kStretch : to;
      C sums[kRows][kMlpColumns] = {};
      int k = begin;
      // Of few rows more weights have to be on their way.
#pragma unroll(kRows == kFewMlpRows ? 2 : 1)
      for (; k + 4 <= end; k += 4) {
        C weights[4][kMlpColumns];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < kMlpColumns; ++j) weights[i][j] = columns[j][(k + i) * k_step];
        }
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          C four[4];
          const auto* packs = reinterpret_cast<const Pack<C>*>(in + row * call_.stride + k);
#pragma unroll
          for (int i = 0; i < 4; i += Pack<C>::kCount) {
            const Pack<C> pack = packs[i / Pack<C>::kCount];
#pragma unroll
            for (int e = 0; e < Pack<C>::kCount; ++e) four[i + e] = pack.get(e);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < kMlpColumns; ++j) sums[row][j] += four[i] * weights[i][j];
          }
        }
      }
#pragma unroll 1
      for (; k < end; ++k) {
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const C value = in[row * call_.stride + k];
#pragma unroll
          for (int j = 0; j < kMlpColumns; ++j) sums[row][j] += value * columns[j][k * k_step];
        }
      }
      C* to_row = out;
#pragma unroll
      for (int row = 0; row < kRows; ++row, to_row += span) {
#pragma unroll
        for (int j = 0; j < kMlpColumns; ++j) {
          C& sum = to_row[j * across];
          sum = begin == from ? sums[row][j] : sum + sums[row][j];
        }
      }
      begin = end;
      if (begin >= to) return;
    }
  }

  // ---- the parts of a search

  // A layer's units: finish(row, n, n < units, z).
  template <typename Finish>
  __device__ void layer(int l, const C* in, const Finish& finish) const {
    const C* bias = static_cast<const C*>(args_.network.bias[l]);
    product(in, width(l), forward_matrix(l), width(l + 1), [&](int row, int n, bool exists, C sum) {
      const C z = exists && bias != nullptr ? sum + bias[n] : sum;
      // The first layer tells which rows are not finite.
      if (l == 0) {
        const bool bad = exists && !math::is_finite(z);
        if (__any_sync(~0u, bad) != 0 && lane() == 0) atomicAdd(&bad_counts()[row], 1u);
      }
      finish(row, n, exists, z);
    });
  }

  __device__ const C* x_row(int row) const {
    return static_cast<const C*>(args_.x) + (first_ + row) * args_.network.widths[0];
  }

  template <typename Value>
  __device__ void set_inputs(int row, const Value& value) const {
    for (int i = lane(); i < inputs(); i += 32) entering(0)[row * call_.stride + i] = value(i);
  }

  __device__ void write_units(void* to, int row, int n, bool exists, C z) const {
    if (exists && row < count_) static_cast<C*>(to)[(first_ + row) * args_.network.widths[1] + n] = z;
  }

  __device__ void start() {
    const C* given = static_cast<const C*>(args_.h) + first_ * args_.network.widths[0];
    for (int row = warp(); row < kRows; row += warps()) {
      if (lane() == 0) bad_counts()[row] = 0;
      const bool exists = row < count_;
      for (int i = lane(); i < inputs(); i += 32) {
        h()[row * call_.stride + i] = exists ? given[static_cast<int64_t>(row) * inputs() + i] : C(0);
      }
      set_inputs(row, [&](int i) { return exists ? x_row(row)[i] : C(0); });
    }
    __syncthreads();
    layer(0, entering(0), [&](int row, int n, bool exists, C z) { write_units(args_.clean, row, n, exists, z); });
    for (int row = warp(); row < count_; row += warps()) enter(row);
    __syncthreads();
  }

  __device__ void enter(int row) const {
    set_inputs(row, [&](int i) { return x_row(row)[i] + h()[row * call_.stride + i]; });
  }

  __device__ static C times_slope(bool on, C slope, C value) { return on ? value : slope == 0 ? C(0) : slope * value; }

  // Through all layers, and back through the last activation.
  __device__ void forward() const {
    const C* output = static_cast<const C*>(args_.network.output);
    const C output_scale = scales()[layers_];
#pragma unroll 1
    for (int l = 0; l < layers_; ++l) {
      const C slope = static_cast<C>(args_.network.negative_slope[l]);
      const bool last = l + 1 == layers_;
      C* out = entering(l + 1);
      layer(l, entering(l), [&](int row, int n, bool exists, C z) {
        const bool on = exists && z > 0;
        const unsigned word = __ballot_sync(~0u, on);
        if (lane() == 0) mask(l, row)[n / 32] = word;
        if (!exists) return;
        const C value = last ? output[n] * output_scale : z;
        out[row * call_.stride + n] =
            last ? scales()[l] * times_slope(on, slope, value) : times_slope(on, slope, value);
      });
    }
  }

  // The gradient, in the scale of the layers' weights, comes to lie where layer 0's inputs do, or their other place.
  __device__ void backward() const {
#pragma unroll 1
    for (int l = layers_ - 1; l >= 0; --l) {
      const C slope = l > 0 ? static_cast<C>(args_.network.negative_slope[l - 1]) : C(1);
      const C scale = l > 0 ? scales()[l - 1] : C(1);
      C* out = entering(l);
      product(entering(l + 1), width(l + 1), backward_matrix(l), width(l), [&](int row, int n, bool exists, C sum) {
        if (!exists) return;
        const bool on = l == 0 || (mask(l - 1, row)[n / 32] >> (n % 32) & 1u) != 0;
        out[row * call_.stride + n] = scale * times_slope(on, slope, sum);
      });
    }
  }

  __device__ bool is_bad(int row) const { return !sound_ || bad_counts()[row] != 0; }

  // A row by a warp: the step, then what enters the network next. A lane touches elements of its own alone.
  __device__ void take_step(bool project) const {
    const TeamShape shape{32, 1, 1, std::numeric_limits<int>::max(), false, true, 0, nullptr};
    const BlockTeam team(shape);
    for (int row = warp(); row < count_; row += warps()) {
      C* h = this->h() + row * call_.stride;
      const C* grad = entering(0) + row * call_.stride;
      if (is_bad(row)) {
        for (int i = lane(); i < inputs(); i += 32) h[i] = static_cast<C>(math::quiet_nan());
      } else {
        const math::Shell shell = shell_of<C>(args_.radius_rows, args_.radius, args_.gamma, first_ + row);
        if (!project) {
          mlp_l2_step<false>(team, inputs(), h, grad, args_.step_size, shell);
        } else if constexpr (kSigma) {
          const C* sigma = static_cast<const C*>(args_.sigma) + (first_ + row) * args_.sigma_stride;
          mlp_mahalanobis_step(team, inputs(), h, grad, sigma, args_.step_size, shell, args_.grid_points);
        } else {
          mlp_l2_step<true>(team, inputs(), h, grad, args_.step_size, shell);
        }
      }
      enter(row);
    }
    __syncthreads();
  }

  // The rows where they have ended; those that are not finite are NaN altogether.
  __device__ void finish() const {
    layer(0, entering(0), [&](int row, int n, bool exists, C z) { write_units(args_.adv, row, n, exists, z); });
    C* ends = static_cast<C*>(args_.h) + first_ * args_.network.widths[0];
    for (int row = warp(); row < count_; row += warps()) {
      const bool bad = is_bad(row);
      const C nan = static_cast<C>(math::quiet_nan());
      for (int i = lane(); i < inputs(); i += 32) {
        ends[static_cast<int64_t>(row) * inputs() + i] = bad ? nan : h()[row * call_.stride + i];
      }
      for (int n = lane(); bad && n < width(1); n += 32) write_units(args_.adv, row, n, true, nan);
    }
  }

  const MlpCall& call_;
  const MlpSearchArgs& args_;
  unsigned char* const memory_;
  const int64_t first_;
  const int layers_;
  int count_;   // rows that exist
  bool sound_;  // all weights are finite
};

// W_l^T, a tile of 32 x 32 weights by a block, and the largest size in it. memory: transpose_bytes.
template <typename C>
__device__ void transpose_tile(const BlockTeam& team, const MlpCall& call, int tile, C* memory) {
  const MlpView& network = call.rows.network;
  int l = 0;
  while (tile >= call.weights.tile_begin[l + 1]) ++l;
  const int units = static_cast<int>(network.widths[l + 1]), inputs = static_cast<int>(network.widths[l]);
  const int across = (inputs + 31) / 32, index = tile - call.weights.tile_begin[l];
  const int first_unit = index / across * 32, first_input = index % across * 32;
  const C* from = static_cast<const C*>(network.weight[l]);
  C* to = const_cast<C*>(static_cast<const C*>(call.weights.transposed)) + int64_t{1024} * call.weights.tile_begin[l];
  const int lane = team.rank() % 32, warp = team.rank() / 32, warps = team.threads() / 32;
  C largest = 0, poison = 0;
  for (int i = warp; i < 32; i += warps) {
    const int unit = first_unit + i, input = first_input + lane;
    C weight = 0;
    if (unit < units && input < inputs) weight = from[static_cast<int64_t>(unit) * inputs + input];
    memory[i * 33 + lane] = weight;
    const C size = fabs(weight);
    largest = size > largest ? size : largest;
    poison += weight - weight;
  }
  team.sync();
  for (int i = warp; i < 32; i += warps) {
    const int unit = first_unit + lane, input = first_input + i;
    if (unit < units && input < inputs) to[static_cast<int64_t>(input) * units + unit] = memory[lane * 33 + i];
  }
  largest = team.max(largest) + team.sum(poison);
  if (team.leads()) const_cast<C*>(static_cast<const C*>(call.weights.tile_largest))[tile] = largest;
}

}  // namespace drocc::cuda
