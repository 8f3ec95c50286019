// Elements as row programs see them: the CPU kernels' types and conversions, and packs of 16 bytes. Host and device.
#pragma once

#ifndef DROCC_ISA
#define DROCC_ISA device
#endif
#include "../cpu/element.h"

namespace drocc::cuda {

using cpu::BFloat16;
using cpu::Half;
using cpu::DROCC_ISA::from_compute;
using cpu::DROCC_ISA::to_compute;

template <typename T>
using Compute = typename cpu::ComputeOf<T>::type;

// 16 bytes of elements, in words that the compiler keeps in registers whatever the type.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T values[kCount];
  DROCC_HD_MEMBER Compute<T> get(int e) const { return to_compute(values[e]); }
  DROCC_HD_MEMBER void set(int e, Compute<T> value) { from_compute(value, &values[e]); }
  DROCC_HD_MEMBER void clear() { *this = {}; }
};

template <typename T>
struct alignas(16) HalfPack {
  static constexpr int kCount = 8;
  uint32_t words[4];
  DROCC_HD_MEMBER T at(int e) const {
    return T{static_cast<uint16_t>(e % 2 == 0 ? words[e / 2] & 0xffffu : words[e / 2] >> 16)};
  }
  DROCC_HD_MEMBER void put(int e, T value) {
    uint32_t& word = words[e / 2];
    word = e % 2 == 0 ? (word & 0xffff0000u) | value.bits : (word & 0xffffu) | static_cast<uint32_t>(value.bits) << 16;
  }
  DROCC_HD_MEMBER float get(int e) const { return to_compute(at(e)); }
  DROCC_HD_MEMBER void set(int e, float value) {
    T rounded;
    from_compute(value, &rounded);
    put(e, rounded);
  }
  DROCC_HD_MEMBER void clear() { words[0] = words[1] = words[2] = words[3] = 0; }
};
template <>
struct Pack<Half> : HalfPack<Half> {};
template <>
struct Pack<BFloat16> : HalfPack<BFloat16> {};

// The packs of a row's part [begin, end) that one thread holds; zeros beyond the end. Rows are aligned to 16 bytes.
template <typename T, int kSlots>
struct Tile {
  Pack<T> packs[kSlots];

  template <typename Team>
  DROCC_HD_MEMBER void load(const Team& team, const T* row, int begin, int end) {
    const int first = begin + team.rank() * Pack<T>::kCount;
    const int step = team.threads() * Pack<T>::kCount;
    const Pack<T>* from = reinterpret_cast<const Pack<T>*>(row + first);
    DROCC_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      packs[slot].clear();
      if (first + slot * step < end) packs[slot] = from[slot * team.threads()];
    }
  }

  template <typename Team>
  DROCC_HD_MEMBER void store(const Team& team, T* row, int begin, int end) const {
    const int first = begin + team.rank() * Pack<T>::kCount;
    const int step = team.threads() * Pack<T>::kCount;
    Pack<T>* to = reinterpret_cast<Pack<T>*>(row + first);
    DROCC_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      if (first + slot * step < end) to[slot * team.threads()] = packs[slot];
    }
  }
};

}  // namespace drocc::cuda
