// How operators see tensors: [B, *] with D = product of the rest, as rows of D elements without gaps.
//
// Every operator reduces over a whole row and then works element by element, so the order of elements within a row does
// not matter as long as all operands share it: a channels_last batch is used where it lies.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace drocc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Plain sentences: STD_TORCH_CHECK would put function, file and line in front of them.
template <typename... Parts>
[[noreturn]] inline void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << op << ": ";
  ((text << parts), ...);
  throw std::runtime_error(text.str());
}

inline std::string describe_shape(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(t.size(d));
  return text + "]";
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// What arithmetic runs in, and what values per row are stored in.
inline ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// One value for each row of t, not initialised.
inline Tensor new_row_values(const Tensor& t) {
  return torch::stable::new_empty(t, {t.size(0)}, compute_type(t));
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

// Strides of dimensions of size 1 mean nothing.
inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

inline int64_t row_length(const Tensor& t) {
  int64_t length = 1;
  for (int64_t d = 1; d < t.dim(); ++d) length *= t.size(d);
  return length;
}

// Rows lie one after the other and each fills its D elements in some order.
inline bool is_row_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  const int64_t length = row_length(t);
  if (t.size(0) > 1 && t.stride(0) != length) return false;
  // Peel dimensions from the innermost outwards; a dense row leaves none over.
  int64_t expected = 1;
  while (expected < length) {
    int64_t next = 0;
    for (int64_t d = 1; d < t.dim(); ++d) {
      if (t.size(d) > 1 && t.stride(d) == expected) next = t.size(d);
    }
    if (next == 0) return false;
    expected *= next;
  }
  return true;
}

// Two positions share memory. Broadcast views are the only way there in practice.
inline bool is_expanded(const Tensor& t) {
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) == 0) return true;
  }
  return false;
}

// `t` laid out like the row-dense tensor `like` (a copy only where it is not already).
inline Tensor in_layout_of(const Tensor& t, const Tensor& like) {
  if (same_strides(t, like)) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

// Runs body(out_rows, layout) with a row-dense output that ends up in `out`.
template <typename Body>
inline void with_row_dense(Tensor& out, const Body& body) {
  if (is_row_dense(out)) {
    body(out);
    return;
  }
  Tensor rows = torch::stable::contiguous(out);
  body(rows);
  torch::stable::copy_(out, rows);
}

}  // namespace drocc
