// The nearest row of one point, by a team of threads. Host and device. In double, so that no square leaves its range.
#pragma once

#include "../math/nearest.h"
#include "../row_args.h"
#include "element.h"

namespace drocc::cuda {

template <typename T, typename Team>
DROCC_HD void nearest_row(const Team& team, const NearestArgs& args, int64_t point) {
  const T* x = static_cast<const T*>(args.points) + point * args.length;
  const T* rows = static_cast<const T*>(args.rows);
  const math::Nearest found = math::nearest(
      team, args.length, args.rows_count, [&](int64_t i) { return static_cast<double>(to_compute(x[i])); },
      [&](int64_t j, int64_t i) { return static_cast<double>(to_compute(rows[j * args.length + i])); });
  if (team.begin(args.length) == 0) {  // the first thread
    static_cast<Compute<T>*>(args.distance)[point] = static_cast<Compute<T>>(found.distance);
    args.index[point] = found.index;
  }
}

}  // namespace drocc::cuda
