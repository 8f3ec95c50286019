// CPU entry points of `influence`: the shortest example of an operator.
#include "../influence.h"

#include "../l2_shell.h"
#include "dispatch.h"
#include "influence_rows.h"

namespace drocc::cpu {
namespace {

Tensor influence_cpu(const Tensor& grad) {
  check_influence_inputs("influence", grad);
  Tensor out = torch::stable::empty_like(grad);
  with_row_dense(out, [&](Tensor& rows) {
    const Tensor g = in_layout_of(grad, rows);
    const InfluenceRowsArgs args{g.const_data_ptr(), nullptr, rows.mutable_data_ptr(), row_length(g)};
    run_rows(DROCC_SELECT_ROWS(influence_rows).forward[dtype_index(g)], args, g.size(0), args.length);
  });
  return out;
}

Tensor influence_backward_cpu(const Tensor& grad_out, const Tensor& grad) {
  check_influence_inputs("_influence_backward", grad);
  check_like_h("_influence_backward", "grad_out", grad_out, grad);
  const Tensor upstream = torch::stable::contiguous(grad_out);
  const Tensor g = torch::stable::contiguous(grad);
  Tensor out = torch::stable::empty_like(g);
  const InfluenceRowsArgs args{g.const_data_ptr(), upstream.const_data_ptr(), out.mutable_data_ptr(), row_length(g)};
  run_rows(DROCC_SELECT_ROWS(influence_rows).backward[dtype_index(g)], args, g.size(0), args.length);
  return out;
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("influence", TORCH_BOX(&drocc::cpu::influence_cpu));
  m.impl("_influence_backward", TORCH_BOX(&drocc::cpu::influence_backward_cpu));
}
