// Matrix products for blocks of rows that lie in cache: C = A B, or C += A B, with what follows (bias, activation,
// mask) done while a tile is in registers. Torch-free; included by files that are compiled once per instruction set.
//
// B is packed in panels of kTileColumns columns. An element of C is the sum over k in ascending order, cut in parts of
// kDepth that are added up: it depends neither on how many rows there are nor on where in a block its row lies, so rows
// spread over threads give the same bits, and long sums have two levels.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/config.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

// 12 rows of two vectors of 64 bytes, or 6 of 32 bytes, fill the registers of AVX-512 and AVX2.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;
#endif

template <typename C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
};
template <typename C>
using Vector = typename VectorOf<C>::type;

template <typename C>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(C));
template <typename C>
constexpr int64_t kTileColumns = 2 * kLanes<C>;

// A panel of B of this depth stays in the first-level cache, and so many rows of A in the second.
template <typename C>
constexpr int64_t kDepth = 1024 / static_cast<int64_t>(sizeof(C));
constexpr int64_t kRowsInCache = 192;

// V: a vector, or the element itself.
template <typename V, typename C>
DROCC_HD V load(const C* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}
template <typename V, typename C>
DROCC_HD void store(C* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// A matrix whose element (i, j) is data[i * row + j * column]: {p, ld, 1} by rows, {p, 1, ld} its transpose.
template <typename C>
struct Strided {
  const C* data;
  int64_t row;
  int64_t column;
};

// Elements that pack() writes.
template <typename C>
DROCC_HD int64_t packed_size(int64_t depth, int64_t columns) {
  return depth * ((columns + kLanes<C> - 1) / kLanes<C> * kLanes<C>);
}

// B [depth, columns] in panels, the last one filled up with zeros.
template <typename C>
void pack(const Strided<C>& b, int64_t depth, int64_t columns, C* packed) {
  using V = Vector<C>;
  for (int64_t first = 0; first < columns; first += kTileColumns<C>) {
    const int64_t left = columns - first;
    const int64_t width = left > kLanes<C> ? kTileColumns<C> : kLanes<C>;
    const int64_t filled = left < width ? left : width;
    const C* from = b.data + first * b.column;
    if (b.column == 1 && filled == kTileColumns<C>) {
      for (int64_t k = 0; k < depth; ++k) {
        const C* row = from + k * b.row;
        const V values[2] = {load<V>(row), load<V>(row + kLanes<C>)};
        store(packed + k * width, values[0]);
        store(packed + k * width + kLanes<C>, values[1]);
      }
    } else {
      for (int64_t k = 0; k < depth; ++k) {
        const C* row = from + k * b.row;
        for (int64_t j = 0; j < filled; ++j) packed[k * width + j] = row[j * b.column];
        for (int64_t j = filled; j < width; ++j) packed[k * width + j] = C(0);
      }
    }
    packed += depth * width;
  }
}

// ---- what follows: V operator()(V value, int64_t row, int64_t column), for vectors and for single elements --------

struct Plain {
  template <typename V>
  DROCC_HD_MEMBER V operator()(V value, int64_t, int64_t) const {
    return value;
  }
};

// A layer's units: value + bias[column]. bias may be null.
template <typename C>
struct WithBias {
  const C* bias;
  template <typename V>
  DROCC_HD_MEMBER V operator()(V value, int64_t, int64_t column) const {
    return bias == nullptr ? value : value + load<V>(bias + column);
  }
};

// What ReLU leaves of a layer's units; NaN stays, and minus infinity does not become NaN.
template <typename C>
struct Rectified {
  const C* bias;
  template <typename V>
  DROCC_HD_MEMBER V operator()(V value, int64_t, int64_t column) const {
    const V unit = bias == nullptr ? value : value + load<V>(bias + column);
    return unit < 0 ? V{} : unit;
  }
};

// What leaky ReLU leaves.
template <typename C>
struct Activated {
  const C* bias;
  C slope;  // for negative units
  template <typename V>
  DROCC_HD_MEMBER V operator()(V value, int64_t, int64_t column) const {
    const V unit = bias == nullptr ? value : value + load<V>(bias + column);
    return unit > 0 ? unit : slope * unit;
  }
};

// A gradient on its way back through (leaky) ReLU with slope >= 0, whose units or values are given: those have one
// sign.
template <typename C>
struct Masked {
  const C* active;
  int64_t stride;
  C slope;
  template <typename V>
  DROCC_HD_MEMBER V operator()(V value, int64_t row, int64_t column) const {
    return load<V>(active + row * stride + column) > 0 ? value : slope * value;
  }
};

// ---- the product -----------------------------------------------------------------------------------------------

// A function of its own, or its sums would compete with the loops around it for registers.
template <int kRows, int kVectors, typename C, typename Then>
__attribute__((noinline)) void multiply_tile(const Strided<C>& a, const C* b, int64_t depth, C* out, int64_t stride,
                                             bool add, bool last, int64_t row, int64_t column, int64_t columns,
                                             const Then& then) {
  using V = Vector<C>;
  V sums[kRows][kVectors] = {};
  const C* from = a.data;
  for (int64_t k = 0; k < depth; ++k, from += a.column, b += kVectors * kLanes<C>) {
    V values[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) values[v] = load<V>(b + v * kLanes<C>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const C factor = from[i * a.row];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * values[v];
    }
  }
  if (columns == kVectors * kLanes<C>) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        C* to = out + i * stride + v * kLanes<C>;
        V value = sums[i][v];
        if (add) value += load<V>(to);
        if (last) value = then(value, row + i, column + v * kLanes<C>);
        store(to, value);
      }
    }
    return;
  }
  // A panel's end: element by element, nothing beyond it is touched.
  C tile[kRows][kVectors * kLanes<C>];
  std::memcpy(tile, sums, sizeof(tile));
  for (int i = 0; i < kRows; ++i) {
    C* to = out + i * stride;
    for (int64_t j = 0; j < columns; ++j) {
      C value = add ? to[j] + tile[i][j] : tile[i][j];
      if (last) value = then(value, row + i, column + j);
      to[j] = value;
    }
  }
}

template <int kVectors, typename C, typename Then, int kRows = kTileRows>
DROCC_HD void multiply_rows(int64_t rows, const Strided<C>& a, const C* b, int64_t depth, C* out, int64_t stride,
                            bool add, bool last, int64_t row, int64_t column, int64_t columns, const Then& then) {
  if (rows == kRows) {
    multiply_tile<kRows, kVectors>(a, b, depth, out, stride, add, last, row, column, columns, then);
  } else if constexpr (kRows > 1) {
    multiply_rows<kVectors, C, Then, kRows - 1>(rows, a, b, depth, out, stride, add, last, row, column, columns, then);
  }
}

// One tile of rows of A times one panel of B.
template <typename C, typename Then>
DROCC_HD void multiply_panel(int64_t rows, const Strided<C>& a, const C* panel, int64_t depth, C* out, int64_t stride,
                             bool add, bool last, int64_t row, int64_t column, int64_t columns, const Then& then) {
  if (columns > kLanes<C>) {
    multiply_rows<2>(rows, a, panel, depth, out, stride, add, last, row, column, columns, then);
  } else {
    multiply_rows<1>(rows, a, panel, depth, out, stride, add, last, row, column, columns, then);
  }
}

// Copies a tile of A, because rows (or columns) that lie a power of two apart drive each other out of the cache.
template <typename C>
DROCC_HD Strided<C> copy_tile(const Strided<C>& a, int64_t rows, int64_t depth, C* copy) {
  if (a.column == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(copy + i * depth, a.data + i * a.row, static_cast<size_t>(depth) * sizeof(C));
    }
    return {copy, depth, 1};
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = 0; i < rows; ++i) copy[k * rows + i] = a.data[k * a.column + i * a.row];
  }
  return {copy, 1, rows};
}

// out [rows, columns] = then(A B), or then(out + A B) with `add`; A [rows, depth], `packed` is B [depth, columns].
template <typename C, typename Then = Plain>
void multiply(int64_t rows, int64_t columns, int64_t depth, const Strided<C>& a, const C* packed, C* out,
              int64_t stride, bool add = false, const Then& then = {}) {
  constexpr int64_t kPanel = kTileColumns<C>;
  alignas(64) C copies[kRowsInCache * kDepth<C>];
  const bool copied = a.column != 1 || (a.row >= kDepth<C> && columns > 2 * kPanel);
  for (int64_t k = 0; k == 0 || k < depth; k += kDepth<C>) {
    const int64_t part = depth - k < kDepth<C> ? depth - k : kDepth<C>;
    const bool adds = add || k > 0, last = k + part >= depth;
    for (int64_t block = 0; block < rows; block += kRowsInCache) {
      const int64_t end = rows - block < kRowsInCache ? rows : block + kRowsInCache;
      Strided<C> tiles[kRowsInCache / kTileRows];
      for (int64_t row = block; row < end; row += kTileRows) {
        const int64_t height = end - row < kTileRows ? end - row : kTileRows;
        Strided<C>& tile = tiles[(row - block) / kTileRows];
        tile = {a.data + row * a.row + k * a.column, a.row, a.column};
        if (copied) tile = copy_tile(tile, height, part, copies + (row - block) * kDepth<C>);
      }
      for (int64_t column = 0; column < columns; column += kPanel) {
        const int64_t width = columns - column < kPanel ? columns - column : kPanel;
        const C* panel = packed + column * depth + k * (width > kLanes<C> ? kPanel : kLanes<C>);
        for (int64_t row = block; row < end; row += kTileRows) {
          const int64_t height = end - row < kTileRows ? end - row : kTileRows;
          multiply_panel(height, tiles[(row - block) / kTileRows], panel, part, out + row * stride + column, stride,
                         adds, last, row, column, width, then);
        }
      }
    }
  }
}

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
