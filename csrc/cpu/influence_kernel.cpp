// Compiled once per instruction set (see isa.h).
#include "influence_kernel.h"

#include "../math/influence.h"
#include "element.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename T>
struct RowView {
  const T* grad_row;
  const T* upstream_row;
  T* out_row;
  double grad(int64_t i) const { return to_compute(grad_row[i]); }
  double upstream(int64_t i) const { return to_compute(upstream_row[i]); }
  void store(int64_t i, double value) const { from_compute(value, out_row + i); }
};

template <typename T>
void forward_rows(const InfluenceRowsArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * args.length;
    const RowView<T> view{static_cast<const T*>(args.grad) + offset, nullptr, static_cast<T*>(args.out) + offset};
    math::influence_row(math::SerialTeam{}, args.length, view);
  }
}

template <typename T>
void backward_rows(const InfluenceRowsArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * args.length;
    const RowView<T> view{static_cast<const T*>(args.grad) + offset, static_cast<const T*>(args.upstream) + offset,
                          static_cast<T*>(args.out) + offset};
    math::influence_row_backward(math::SerialTeam{}, args.length, view);
  }
}

}  // namespace

extern const InfluenceRows influence_kernels = {
    {forward_rows<float>, forward_rows<double>, forward_rows<Half>, forward_rows<BFloat16>},
    {backward_rows<float>, backward_rows<double>, backward_rows<Half>, backward_rows<BFloat16>},
};

}  // namespace drocc::cpu::DROCC_ISA
