// One row of `influence`, by a team of threads. Host and device. Forward in Compute, backward in double: gradients of
// tiny rows are large.
#pragma once

#include <type_traits>

#include "../math/influence.h"
#include "../row_args.h"
#include "element.h"

namespace drocc::cuda {

template <typename T, typename Real>
struct InfluenceRow {
  const T* grad_row;
  const T* upstream_row;
  T* out_row;
  DROCC_HD_MEMBER Real grad(int64_t i) const { return to_compute(grad_row[i]); }
  DROCC_HD_MEMBER Real upstream(int64_t i) const { return to_compute(upstream_row[i]); }
  DROCC_HD_MEMBER void store(int64_t i, Real value) const { from_compute(value, out_row + i); }
};

template <typename T, bool kBackward, typename Team>
DROCC_HD void influence_row(const Team& team, const InfluenceRowsArgs& args, int64_t row) {
  using Real = std::conditional_t<kBackward, double, Compute<T>>;
  const int64_t offset = row * args.length;
  const InfluenceRow<T, Real> view{static_cast<const T*>(args.grad) + offset,
                                   kBackward ? static_cast<const T*>(args.upstream) + offset : nullptr,
                                   static_cast<T*>(args.out) + offset};
  if constexpr (kBackward) {
    math::influence_row_backward<Real>(team, args.length, view);
  } else {
    math::influence_row<Real>(team, args.length, view);
  }
}

}  // namespace drocc::cuda
