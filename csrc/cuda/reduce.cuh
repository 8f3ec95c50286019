// The team of a CUDA row kernel: the threads of a warp or of a power-of-two part of one, of a block, or of several
// blocks. Which of these it is, is known at run time only: one compiled kernel serves every regime of launch.h.
#pragma once

#include <cooperative_groups.h>

#include "../math/config.h"
#include "launch.h"

// The keywords that the emulator of csrc/tests/simt, a C++ compiler, knows by another name.
#if !defined(DROCC_SIMT)
#define DROCC_SHARED(type, name) __shared__ type name
#define DROCC_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define DROCC_SPIN()
#endif

namespace drocc::cuda {

// Most values that one exchange combines.
constexpr int kMostValues = 3;

// What a kernel needs of its launch.
struct TeamShape {
  int threads_per_row;
  int rows_per_block;
  int parts;
  int part_length;
  bool cluster;
  bool on_chip;
  int64_t first_row;
  // Blocks of a row that are no cluster meet here, [groups]: zero before the launch.
  struct GridExchange* meeting;
};

struct GridExchange {
  unsigned int arrived;
  unsigned int unused[31];  // a cache line of its own
  double values[2][kMostValues][kMostParts];
};

struct Sum {
  template <typename Real>
  static __device__ Real apply(Real a, Real b) {
    return a + b;
  }
  template <typename Real>
  static __device__ Real identity() {
    return 0;
  }
};

struct Max {
  template <typename Real>
  static __device__ Real apply(Real a, Real b) {
    return a > b ? a : b;
  }
  template <typename Real>
  static __device__ Real identity() {
    return -std::numeric_limits<Real>::infinity();
  }
};

// Every exchange combines in the same order for every thread: results are the same to the bit in all of them, so that
// the threads of a team take the same branches. Each has one barrier; the memory of one exchange is used again two
// exchanges later, which no thread reaches before all have left the first.
// kSplit: rows may be split over several blocks.
template <bool kSplit>
class TeamOf {
 public:
  __device__ explicit TeamOf(const TeamShape& shape)
      : shape_(shape),
        rank_(static_cast<int>(threadIdx.x) % shape.threads_per_row),
        part_(kSplit ? static_cast<int>(blockIdx.x % static_cast<unsigned>(shape.parts)) : 0) {}

  // ---- what math/ asks of a team
  static constexpr int kBlock = 64;
  __device__ int begin(int64_t) const { return part_begin() + rank_; }
  __device__ int end(int64_t n) const { return part_end(n); }
  __device__ int step() const { return shape_.threads_per_row; }

  template <typename Real>
  __device__ Real sum(Real value) const {
    Real values[1] = {value};
    exchange<Sum>(values);
    return values[0];
  }
  template <typename Real>
  __device__ Real max(Real value) const {
    Real values[1] = {value};
    exchange<Max>(values);
    return values[0];
  }
  template <typename Real, int kCount>
  __device__ void sum_all(Real (&values)[kCount]) const {
    exchange<Sum>(values);
  }

  // ---- what the search in hidden space asks besides; rows of one block
  __device__ bool any(bool flag) const {
    return warps() > 1 ? __syncthreads_or(flag) != 0 : __any_sync(mask(), flag) != 0;
  }
  // Each thread flags its own elements; the threads of a warp tell one another by a ballot, warps by shared memory.
  template <typename Flag, typename Body>
  __device__ void each(int64_t n, const Flag& flag, const Body& body) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int first = 0; first < n; first += threads()) {
      const int own = first + rank_ < n ? flag(first + rank_) : 0;
      uint2 words = {__ballot_sync(mask(), own != 0), __ballot_sync(mask(), own > 0)};
      uint2* of_warps = reinterpret_cast<uint2*>(memory().warps[parity_][0]);
      if (warps() > 1) {
        if (lane == 0) of_warps[threadIdx.x / 32] = words;
        __syncthreads();
        parity_ ^= 1;
      }
      for (int warp = 0; warp < (warps() > 1 ? warps() : 1); ++warp) {
        if (warps() > 1) words = of_warps[warp];
        for (unsigned flagged = words.x; flagged != 0; flagged &= flagged - 1) {
          const int bit = __ffs(static_cast<int>(flagged)) - 1;
          body(first + 32 * warp + bit, (words.y >> bit & 1u) != 0 ? 1 : -1);
        }
      }
    }
  }

  // ---- what row programs ask besides
  __device__ int rank() const { return rank_; }
  __device__ int threads() const { return shape_.threads_per_row; }
  __device__ int part_begin() const { return part_ * shape_.part_length; }
  __device__ int part_end(int64_t n) const {
    const int end = part_begin() + shape_.part_length;
    return end < n ? end : static_cast<int>(n);
  }
  __device__ int part_length() const { return shape_.part_length; }
  __device__ bool on_chip() const { return shape_.on_chip; }
  __device__ bool leads() const { return rank_ == 0 && part_ == 0; }
  // Orders the shared memory of this block's part of the row.
  __device__ void sync() const {
    if (lanes() < 32 || warps() == 1) {
      __syncwarp(mask());
    } else {
      __syncthreads();
    }
  }

  // The row of this team; may lie beyond the last one.
  __device__ int64_t row() const {
    return shape_.first_row + static_cast<int64_t>(group()) * shape_.rows_per_block +
           threadIdx.x / static_cast<unsigned>(shape_.threads_per_row);
  }
  // Last of all: no block of a cluster may leave while others read its shared memory.
  __device__ void leave() const {
    if (kSplit && shape_.parts > 1 && shape_.cluster) cluster_sync();
  }

 private:
  // Of the shape's numbers, computed anew at each use: registers are dearer.
  __device__ int warps() const { return shape_.threads_per_row / 32; }
  __device__ int lanes() const { return shape_.threads_per_row < 32 ? shape_.threads_per_row : 32; }
  __device__ unsigned mask() const {
    const int first_lane = static_cast<int>(threadIdx.x % 32) & -lanes();
    return (lanes() == 32 ? ~0u : (1u << lanes()) - 1) << first_lane;
  }
  __device__ unsigned group() const { return kSplit ? blockIdx.x / static_cast<unsigned>(shape_.parts) : blockIdx.x; }

  template <typename Op, typename Real, int kCount>
  __device__ void butterfly(Real (&values)[kCount], unsigned mask, int lanes) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = Op::apply(values[k], __shfl_xor_sync(mask, values[k], offset));
    }
  }

  template <typename Op, typename Real, int kCount>
  __device__ void exchange(Real (&values)[kCount]) const {
    static_assert(kCount <= kMostValues);
    butterfly<Op>(values, mask(), lanes());
    if (warps() > 1) {
      const int lane = static_cast<int>(threadIdx.x % 32);
      const int warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (lane == 0) reinterpret_cast<Real*>(memory().warps[parity_][k])[warp] = values[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const Real* theirs = reinterpret_cast<const Real*>(memory().warps[parity_][k]);
        values[k] = lane < warps() ? theirs[lane] : Op::template identity<Real>();
      }
      butterfly<Op>(values, ~0u, 32);
    }
    if (kSplit && shape_.parts > 1) {
      // Code for both would take registers that the rows need: device.cu sees to it that this is the right one.
#if defined(DROCC_SIMT)
      shape_.cluster ? meet_in_cluster<Op>(values) : meet_in_memory<Op>(values);
#elif __CUDA_ARCH__ >= 900
      meet_in_cluster<Op>(values);
#else
      meet_in_memory<Op>(values);
#endif
    }
    parity_ ^= 1;
  }

  template <typename Op, typename Real, int kCount>
  __device__ void meet_in_cluster(Real (&values)[kCount]) const {
#if defined(DROCC_SIMT) || __CUDA_ARCH__ >= 900  // the intrinsics exist only there
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) *reinterpret_cast<Real*>(&memory().block[parity_][k]) = values[k];
    }
    cluster_sync();
    const int lane = static_cast<int>(threadIdx.x % 32);
    const auto cluster = cooperative_groups::this_cluster();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[k] = Op::template identity<Real>();
      if (lane < shape_.parts) {
        values[k] = *reinterpret_cast<const Real*>(cluster.map_shared_rank(&memory().block[parity_][k], lane));
      }
    }
    butterfly<Op>(values, ~0u, 32);
#endif
  }

  // All blocks of the launch are resident (it is a cooperative one), so that waiting for one another ends.
  template <typename Op, typename Real, int kCount>
  __device__ void meet_in_memory(Real (&values)[kCount]) const {
    GridExchange& point = shape_.meeting[group()];
    meetings_ += static_cast<unsigned>(shape_.parts);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) __stcg(&point.values[parity_][k][part_], static_cast<double>(values[k]));
      __threadfence();
      atomicAdd(&point.arrived, 1u);
      // The count wraps around after 2^32 arrivals; the difference does not.
      while (static_cast<int>(*static_cast<volatile unsigned*>(&point.arrived) - meetings_) < 0) {
        DROCC_SPIN();
      }
      __threadfence();
    }
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      Real value = Op::template identity<Real>();
      for (int part = lane; part < shape_.parts; part += 32) {
        value = Op::apply(value, static_cast<Real>(__ldcg(&point.values[parity_][k][part])));
      }
      values[k] = value;
    }
    butterfly<Op>(values, ~0u, 32);
  }

  struct Memory {
    double warps[2][kMostValues][32];
    double block[2][kMostValues];
  };
  static __device__ Memory& memory() {
    DROCC_SHARED(Memory, memory);
    return memory;
  }

  static __device__ void cluster_sync() {
#if defined(DROCC_SIMT) || __CUDA_ARCH__ >= 900
    cooperative_groups::this_cluster().sync();
#endif
  }

  const TeamShape& shape_;
  int rank_;
  int part_;
  mutable int parity_ = 0;
  mutable unsigned meetings_ = 0;
};

using RowTeam = TeamOf<true>;
using BlockTeam = TeamOf<false>;

}  // namespace drocc::cuda
