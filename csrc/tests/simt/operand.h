// Tensors of the tests: values as stored, in some layout, in the emulator's device memory.
#pragma once

#include <random>

#include "../../cuda/element.h"
#include "reference.h"
#include "torch.h"

namespace tests {

using drocc::cuda::from_compute;
using drocc::cuda::to_compute;
using torch::stable::ScalarType;
using torch::stable::Tensor;
using Rows = std::vector<reference::Values>;

enum class Layout { kContiguous, kOffset, kChannelsLast, kGaps, kExpanded, kCount };

inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
// Half a unit in the last place, relative.
inline long double rounding(ScalarType type) {
  if (type == ScalarType::Long) return 0;
  return type == ScalarType::Double  ? 0x1p-53L
         : type == ScalarType::Float ? 0x1p-24L
         : type == ScalarType::Half  ? 0x1p-11L
                                     : 0x1p-8L;
}

inline void write(ScalarType type, void* at, long double value) {
  switch (type) {
    case ScalarType::Double:
      *static_cast<double*>(at) = static_cast<double>(value);
      return;
    case ScalarType::Float:
      *static_cast<float*>(at) = static_cast<float>(value);
      return;
    case ScalarType::Half:
      return from_compute(static_cast<double>(value), static_cast<drocc::cuda::Half*>(at));
    default:
      return from_compute(static_cast<double>(value), static_cast<drocc::cuda::BFloat16*>(at));
  }
}
inline long double read(ScalarType type, const void* at) {
  switch (type) {
    case ScalarType::Double:
      return *static_cast<const double*>(at);
    case ScalarType::Float:
      return *static_cast<const float*>(at);
    case ScalarType::Half:
      return to_compute(*static_cast<const drocc::cuda::Half*>(at));
    default:
      return to_compute(*static_cast<const drocc::cuda::BFloat16*>(at));
  }
}
inline long double stored(ScalarType type, long double value) {
  unsigned char memory[8];
  write(type, memory, value);
  return read(type, memory);
}

// [rows, columns], or for channels_last [rows, channels, 1 x width].
inline Tensor make_tensor(const std::vector<int64_t>& sizes, ScalarType type, int device, Layout layout) {
  using torch::stable::contiguous_strides;
  std::vector<int64_t> strides = contiguous_strides(sizes);
  switch (layout) {
    case Layout::kOffset:
      return {sizes, strides, type, device, 1};
    case Layout::kChannelsLast:
      if (sizes.size() == 4) {
        const int64_t channels = sizes[1], height = sizes[2], width = sizes[3];
        strides = {channels * height * width, 1, width * channels, channels};
      }
      return {sizes, strides, type, device};
    case Layout::kGaps:
      for (size_t d = 0; d + 1 < strides.size(); ++d) strides[d] += d == 0 ? 3 : 0;
      return {sizes, strides, type, device};
    case Layout::kExpanded:
      strides[0] = 0;
      return {sizes, strides, type, device};
    default:
      return {sizes, strides, type, device};
  }
}

// at(row, column, place) for every element; columns in the order of the dimensions.
template <typename Body>
void for_each_element(const Tensor& t, const Body& body) {
  int64_t index = 0;
  const int64_t columns = t.size(0) == 0 ? 1 : t.numel() / t.size(0);
  torch::stable::for_each_place(t, t, [&](int64_t place, int64_t) {
    body(static_cast<size_t>(index / columns), static_cast<size_t>(index % columns),
         static_cast<unsigned char*>(t.mutable_data_ptr()) + place);
    ++index;
  });
}

// Writes the rows and makes them what was stored.
inline Tensor upload(Rows& rows, const std::vector<int64_t>& sizes, ScalarType type, int device, Layout layout) {
  Tensor t = make_tensor(sizes, type, device, layout);
  for_each_element(t, [&](size_t row, size_t column, void* at) { write(type, at, rows[row][column]); });
  for_each_element(t, [&](size_t row, size_t column, const void* at) { rows[row][column] = read(type, at); });
  return t;
}

inline std::vector<unsigned char> bytes_of(const Tensor& t) {
  std::vector<unsigned char> bytes;
  bytes.reserve(static_cast<size_t>(t.numel() * t.element_size()));
  for_each_element(
      t, [&](size_t, size_t, const unsigned char* at) { bytes.insert(bytes.end(), at, at + t.element_size()); });
  return bytes;
}

}  // namespace tests
