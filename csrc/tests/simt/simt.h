// What CUDA device code uses, on the host: one fiber per CUDA thread, scheduled by a seed (simt.cpp). The kernels' own
// source is compiled against this by a C++ compiler; include/ holds the headers that they name.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

namespace simt {

using Site = std::source_location;

// Where the running thread is.
struct Place {
  uint3 thread{}, block{};
  dim3 block_dim, grid_dim;
};
extern Place* here;

// ---- the threads of a warp that a mask names meet: each brings a value and takes one away. It is a failure where they
// differ in operation, argument, size or call site, or where one of them has left or is not in the mask it names.
enum class WarpOp { kSync, kShuffle, kShuffleXor, kShuffleUp, kShuffleDown, kBallot, kAny, kAll, kAdd, kMax, kMin };
uint64_t meet_warp(WarpOp op, unsigned mask, uint64_t value, int argument, int bytes, const Site& site);

// ---- all threads of a block, or of a cluster, meet; none may have left.
enum class BlockOp { kSync, kOr, kAnd, kCount };
int meet_block(BlockOp op, int value, const Site& site);
void meet_cluster(const Site& site);
unsigned blocks_of_cluster();
unsigned rank_in_cluster();
// The same place in the shared memory of another block of the cluster, which must have begun and not have left.
void* in_cluster(const void* mine, unsigned rank);

// ---- memory
int register_shared(size_t bytes, size_t alignment);
void* shared_variable(int site);
unsigned char* dynamic_shared();
template <typename T, typename Tag>
inline const int shared_site = register_shared(sizeof(T), alignof(T));
template <typename T, typename Tag>
T& shared() {
  return *static_cast<T*>(shared_variable(shared_site<T, Tag>));
}
void fence();
// body() is one indivisible step on the word at `address`.
void before_atomic(const void* address);
// Once in every turn of a loop that waits for memory to change.
void spin();

// The hardware's approximate reciprocal: in some arguments it is the neighbour of the rounded one.
inline float approximate_reciprocal(float x) {
  const float exact = 1 / x;
  uint32_t bits, hash;
  std::memcpy(&hash, &x, sizeof(hash));
  std::memcpy(&bits, &exact, sizeof(bits));
  hash *= 0x9e3779b1u;
  const uint32_t exponent = bits >> 23 & 0xffu;
  if (exponent == 0 || exponent == 0xffu || hash >> 30 != 0) return exact;
  bits = hash >> 29 & 1u ? bits + 1 : bits - 1;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
T shuffle(WarpOp op, unsigned mask, T value, int argument, const Site& site) {
  return from_bits<T>(meet_warp(op, mask, to_bits(value), argument, sizeof(T), site));
}

}  // namespace simt

// ---- CUDA's names
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// __launch_bounds__(threads, blocks) leaves its numbers as no-ops ahead of the function, where launches find them.
#define __launch_bounds__(...) SIMT_LAUNCH_BOUNDS(__VA_ARGS__, 0, 0)
#define SIMT_LAUNCH_BOUNDS(threads, blocks, ...) \
  __attribute__((patchable_function_entry((threads) / 32 + 64 * (blocks), (threads) / 32 + 64 * (blocks))))

namespace simt {
template <auto kOf, auto kPart>
struct Coordinate {
  operator unsigned() const { return (here->*kOf).*kPart; }
};
template <auto kOf, typename Of>
struct Coordinates {
  Coordinate<kOf, &Of::x> x;
  Coordinate<kOf, &Of::y> y;
  Coordinate<kOf, &Of::z> z;
};
}  // namespace simt
constexpr simt::Coordinates<&simt::Place::thread, uint3> threadIdx;
constexpr simt::Coordinates<&simt::Place::block, uint3> blockIdx;
constexpr simt::Coordinates<&simt::Place::block_dim, dim3> blockDim;
constexpr simt::Coordinates<&simt::Place::grid_dim, dim3> gridDim;
constexpr int warpSize = 32;

// The names that kernels of this project use where CUDA has keywords.
#define DROCC_SHARED(type, name) type& name = ::simt::shared<type, decltype([] {})>()
#define DROCC_DYNAMIC_SHARED(name) unsigned char* const name = ::simt::dynamic_shared()
#define DROCC_SPIN() ::simt::spin()

#define SIMT_SITE const ::simt::Site& site = ::simt::Site::current()

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int = 32, SIMT_SITE) {
  return simt::shuffle(simt::WarpOp::kShuffle, mask, value, lane, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int = 32, SIMT_SITE) {
  return simt::shuffle(simt::WarpOp::kShuffleXor, mask, value, lanes, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int = 32, SIMT_SITE) {
  return simt::shuffle(simt::WarpOp::kShuffleUp, mask, value, static_cast<int>(by), site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int = 32, SIMT_SITE) {
  return simt::shuffle(simt::WarpOp::kShuffleDown, mask, value, static_cast<int>(by), site);
}
inline unsigned __ballot_sync(unsigned mask, int flag, SIMT_SITE) {
  return static_cast<unsigned>(simt::meet_warp(simt::WarpOp::kBallot, mask, flag != 0, 0, 4, site));
}
inline int __any_sync(unsigned mask, int flag, SIMT_SITE) {
  return static_cast<int>(simt::meet_warp(simt::WarpOp::kAny, mask, flag != 0, 0, 4, site));
}
inline int __all_sync(unsigned mask, int flag, SIMT_SITE) {
  return static_cast<int>(simt::meet_warp(simt::WarpOp::kAll, mask, flag != 0, 0, 4, site));
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return static_cast<unsigned>(simt::meet_warp(simt::WarpOp::kAdd, mask, value, 0, 4, site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return static_cast<unsigned>(simt::meet_warp(simt::WarpOp::kMax, mask, value, 0, 4, site));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return static_cast<unsigned>(simt::meet_warp(simt::WarpOp::kMin, mask, value, 0, 4, site));
}
inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) {
  simt::meet_warp(simt::WarpOp::kSync, mask, 0, 0, 0, site);
}
inline void __syncthreads(SIMT_SITE) {
  simt::meet_block(simt::BlockOp::kSync, 0, site);
}
inline int __syncthreads_or(int flag, SIMT_SITE) {
  return simt::meet_block(simt::BlockOp::kOr, flag != 0, site);
}
inline int __syncthreads_and(int flag, SIMT_SITE) {
  return simt::meet_block(simt::BlockOp::kAnd, flag != 0, site);
}
inline int __syncthreads_count(int flag, SIMT_SITE) {
  return simt::meet_block(simt::BlockOp::kCount, flag != 0, site);
}
inline void __threadfence() {
  simt::fence();
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  simt::before_atomic(address);
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
// Loads and stores past the first-level cache: here like any other, and no less bound to be ordered.
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
