// Stands in for the part of torch's stable interface that the operators use: tensors in the emulator's device memory,
// and a table of the operators that a library registers. Strides and copies behave as torch's.
#pragma once

#include <any>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "device.h"

namespace torch::headeronly {
enum class ScalarType { Byte, Long, Half, BFloat16, Float, Double };
}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

inline int64_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
      return 4;
    default:
      return 8;
  }
}

class Tensor {
 public:
  Tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides, ScalarType type, int device, int64_t offset = 0)
      : sizes_(std::move(sizes)), strides_(std::move(strides)), type_(type), device_(device) {
    int64_t span = 1;
    for (size_t d = 0; d < sizes_.size(); ++d) span = sizes_[d] == 0 ? 0 : span + (sizes_[d] - 1) * strides_[d];
    if (numel() == 0) span = 0;
    const int64_t bytes = (span == 0 ? 0 : offset + span) * size_of(type);
    memory_ = std::shared_ptr<unsigned char>(simt::allocate(static_cast<size_t>(bytes)), simt::release);
    offset_ = offset * size_of(type);
  }
  // Of the same memory.
  Tensor(const Tensor& of, std::vector<int64_t> sizes, std::vector<int64_t> strides) : Tensor(of) {
    sizes_ = std::move(sizes);
    strides_ = std::move(strides);
  }

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t d) const { return sizes_[static_cast<size_t>(d)]; }
  int64_t stride(int64_t d) const { return strides_[static_cast<size_t>(d)]; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  ScalarType scalar_type() const { return type_; }
  int64_t element_size() const { return size_of(type_); }
  int64_t numel() const { return std::accumulate(sizes_.begin(), sizes_.end(), int64_t{1}, std::multiplies<>()); }
  bool is_cuda() const { return true; }
  bool is_cpu() const { return false; }
  int get_device_index() const { return device_; }
  const void* const_data_ptr() const { return numel() == 0 ? nullptr : memory_.get() + offset_; }
  void* mutable_data_ptr() const { return numel() == 0 ? nullptr : memory_.get() + offset_; }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int64_t d = dim() - 1; d >= 0; --d) {
      if (size(d) != 1 && stride(d) != expected) return numel() == 0;
      expected *= size(d);
    }
    return true;
  }

 private:
  std::vector<int64_t> sizes_, strides_;
  ScalarType type_;
  int device_;
  int64_t offset_;  // bytes
  std::shared_ptr<unsigned char> memory_;
};

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t next = 1;
  for (size_t d = sizes.size(); d-- > 0; next *= std::max<int64_t>(sizes[d], 1)) strides[d] = next;
  return strides;
}

inline Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return {sizes, contiguous_strides(sizes), type, like.get_device_index()};
}

// Dense, in the order of the strides of `like`.
inline Tensor empty_like(const Tensor& like) {
  std::vector<size_t> order(like.sizes().size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return like.strides()[a] > like.strides()[b]; });
  std::vector<int64_t> strides(order.size());
  int64_t next = 1;
  for (size_t k = order.size(); k-- > 0; next *= std::max<int64_t>(like.sizes()[order[k]], 1)) strides[order[k]] = next;
  return {like.sizes(), like.is_contiguous() ? contiguous_strides(like.sizes()) : strides, like.scalar_type(),
          like.get_device_index()};
}

// body(bytes from the start of `a`, and of `b`) for every element.
template <typename Body>
void for_each_place(const Tensor& a, const Tensor& b, const Body& body) {
  std::vector<int64_t> at(a.sizes().size(), 0);
  for (int64_t left = a.numel(); left > 0; --left) {
    int64_t in_a = 0, in_b = 0;
    for (size_t d = 0; d < at.size(); ++d) in_a += at[d] * a.strides()[d], in_b += at[d] * b.strides()[d];
    body(in_a * a.element_size(), in_b * b.element_size());
    for (size_t d = at.size(); d-- > 0;) {
      if (++at[d] < a.sizes()[d]) break;
      at[d] = 0;
    }
  }
}

// A smaller shape is repeated over the leading dimensions.
inline void copy_(Tensor& to, const Tensor& from) {
  std::vector<int64_t> strides(to.sizes().size(), 0);
  for (size_t d = 0; d < from.sizes().size(); ++d) {
    const size_t into = strides.size() - from.sizes().size() + d;
    strides[into] = from.sizes()[d] == 1 ? 0 : from.strides()[d];
  }
  const Tensor repeated(from, to.sizes(), strides);
  for_each_place(to, repeated, [&](int64_t in_to, int64_t in_from) {
    std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + in_to,
                static_cast<const char*>(from.const_data_ptr()) + in_from, static_cast<size_t>(to.element_size()));
  });
}

inline Tensor clone(const Tensor& t) {
  Tensor copy = empty_like(t);
  copy_(copy, t);
  return copy;
}

inline Tensor contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = new_empty(t, t.sizes(), t.scalar_type());
  copy_(copy, t);
  return copy;
}

namespace accelerator {
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : before_(simt::current_device) { simt::current_device = device; }
  DeviceGuard(const DeviceGuard&) = delete;
  ~DeviceGuard() { simt::current_device = before_; }

 private:
  int before_;
};
}  // namespace accelerator

// ---- operators by name
class Library {
 public:
  template <typename Function>
  void impl(const char* name, Function function) {
    table()[name] = function;
  }
  static std::map<std::string, std::any>& table() {
    static std::map<std::string, std::any> operators;
    return operators;
  }
};

struct Registration {
  explicit Registration(void (*body)(Library&)) {
    Library library;
    body(library);
  }
};

}  // namespace torch::stable

#define SIMT_JOIN(a, b) a##b
#define SIMT_NAME(base, line) SIMT_JOIN(base, line)
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m)                                                                   \
  static void SIMT_NAME(simt_register_, __LINE__)(torch::stable::Library & m);                                       \
  static const torch::stable::Registration SIMT_NAME(simt_at_start_, __LINE__)(SIMT_NAME(simt_register_, __LINE__)); \
  static void SIMT_NAME(simt_register_, __LINE__)(torch::stable::Library & m)
#define TORCH_BOX(function) function

inline int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}
#define TORCH_ERROR_CODE_CHECK(call)                                      \
  do {                                                                    \
    if ((call) != 0) throw std::runtime_error("torch: " #call " failed"); \
  } while (false)
