// Ops points of `_nearest`, the same for every device. A Backend has nearest(args, points), over all points.
#pragma once

#include <tuple>

#include "checks.h"
#include "row_args.h"

namespace drocc {

template <typename Backend>
struct NearestOps {
  static std::tuple<Tensor, Tensor> nearest(const Tensor& points, const Tensor& rows) {
    constexpr const char* kOp = "nearest_distance";
    for (const Tensor* t : {&points, &rows}) {
      if (t->dim() != 2 || !is_floating(t->scalar_type())) {
        fail(kOp, "points and rows must be floating point of shape [B, D] and [N, D], got ", describe_shape(*t));
      }
    }
    if (points.size(1) != rows.size(1) || rows.size(0) == 0) {
      fail(kOp, "rows must have shape [N >= 1, ", points.size(1), "], got ", describe_shape(rows));
    }
    check_like_h_in_kind(kOp, "rows", rows, points);
    const Tensor dense_points = torch::stable::contiguous(points);
    const Tensor dense_rows = torch::stable::contiguous(rows);
    Tensor distance = new_row_values(points);
    Tensor index = torch::stable::new_empty(points, {points.size(0)}, ScalarType::Long);
    const NearestArgs args{dense_points.const_data_ptr(),
                           dense_rows.const_data_ptr(),
                           distance.mutable_data_ptr(),
                           static_cast<int64_t*>(index.mutable_data_ptr()),
                           points.size(0),
                           rows.size(0),
                           points.size(1)};
    if (args.batch > 0) Backend::nearest(kOp, args, dense_points);
    return {distance, index};
  }
};

}  // namespace drocc
