// Ops points of `influence`, the same for every device: the shortest example of an operator. A Backend has
//   forward(args, grad) and backward(args, grad), over all rows of grad.
#pragma once

#include "checks.h"
#include "row_args.h"

namespace drocc {

template <typename Backend>
struct InfluenceOps {
  static Tensor influence(const Tensor& grad) {
    check_influence_inputs("influence", grad);
    Tensor out = torch::stable::empty_like(grad);
    with_row_dense(out, [&](Tensor& rows) {
      const Tensor g = in_layout_of(grad, rows);
      Backend::forward({g.const_data_ptr(), nullptr, rows.mutable_data_ptr(), g.size(0), row_length(g)}, g);
    });
    return out;
  }

  static Tensor influence_backward(const Tensor& grad_out, const Tensor& grad) {
    check_influence_inputs("_influence_backward", grad);
    check_like_h("_influence_backward", "grad_out", grad_out, grad);
    const Tensor upstream = torch::stable::contiguous(grad_out);
    const Tensor g = torch::stable::contiguous(grad);
    Tensor out = torch::stable::empty_like(g);
    Backend::backward({g.const_data_ptr(), upstream.const_data_ptr(), out.mutable_data_ptr(), g.size(0), row_length(g)},
                      g);
    return out;
  }
};

}  // namespace drocc

// Inside STABLE_TORCH_LIBRARY_IMPL(drocc, ..., m).
#define DROCC_IMPL_INFLUENCE(m, Ops)               \
  m.impl("influence", TORCH_BOX(&Ops::influence)); \
  m.impl("_influence_backward", TORCH_BOX(&Ops::influence_backward));
