// From a tensor's dtype to a row kernel, and rows spread over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../row_layout.h"
#include "element.h"

namespace drocc::cpu {

inline int dtype_index(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return static_cast<int>(Dtype::kFloat);
    case ScalarType::Double:
      return static_cast<int>(Dtype::kDouble);
    case ScalarType::Half:
      return static_cast<int>(Dtype::kHalf);
    default:  // the checks admit nothing else
      return static_cast<int>(Dtype::kBFloat16);
  }
}

// One task is worth handing to another thread from about this many elements on (some 10 microseconds of work).
constexpr int64_t kElementsPerTask = 32768;

// fn(args, begin, end) over rows [0, batch).
template <typename Fn, typename Args>
inline void run_rows(Fn fn, const Args& args, int64_t batch, int64_t length) {
  if (batch == 0) return;
  const int64_t rows_per_task = 1 + kElementsPerTask / (length > 0 ? length : 1);
  if (batch <= rows_per_task) {
    fn(args, 0, batch);
    return;
  }
  torch::stable::parallel_for(0, batch, rows_per_task, [&](int64_t begin, int64_t end) { fn(args, begin, end); });
}

}  // namespace drocc::cpu
