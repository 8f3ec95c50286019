#include "mahalanobis_shell.h"

namespace drocc {

bool is_shared_sigma(const Tensor& sigma, const Tensor& h) {
  if (sigma.dim() != h.dim() - 1) return false;
  for (int64_t d = 0; d < sigma.dim(); ++d) {
    if (sigma.size(d) != h.size(d + 1)) return false;
  }
  return true;
}

void check_mahalanobis_shell_inputs(const char* op, const MahalanobisShellInputs& inputs) {
  check_l2_shell_inputs(op, inputs.shell);
  const Tensor& h = inputs.shell.h;
  const Tensor& sigma = inputs.sigma;
  if (!same_shape(sigma, h) && !is_shared_sigma(sigma, h)) {
    fail(op, "sigma must have the shape of h, ", describe_shape(h), ", or of one row of it, got ",
         describe_shape(sigma));
  }
  check_like_h_in_kind(op, "sigma", sigma, h);
  if (inputs.grid_points != 0 && inputs.grid_points < 2) {
    fail(op, "grid_points must be >= 2, or 0 for the exact solver, got ", inputs.grid_points);
  }
}

SigmaRows sigma_rows(const Tensor& sigma, const Tensor& rows, bool overwritten) {
  const bool shared = is_shared_sigma(sigma, rows);
  if (shared && rows.is_contiguous()) {
    const Tensor one = torch::stable::contiguous(sigma);
    return {overwritten && share_memory(one, rows) ? torch::stable::clone(one) : one, 0};
  }
  if (!shared && same_strides(sigma, rows) && !(overwritten && share_memory(sigma, rows))) {
    return {sigma, row_length(rows)};
  }
  Tensor copy = torch::stable::empty_like(rows);
  torch::stable::copy_(copy, sigma);  // repeats a shared one
  return {copy, row_length(rows)};
}

}  // namespace drocc

// The CUDA library has the checks of this file too; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// sigma: [*] or [B, *]. grid_points: 0 for the exact solver, else the K of the paper's grid. The gradient of sigma
// comes as [B, D] in the compute type, also where sigma is shared.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def("mahalanobis_norm(Tensor h, Tensor sigma) -> Tensor");
  m.def("_mahalanobis_norm_backward(Tensor grad_out, Tensor h, Tensor sigma) -> (Tensor, Tensor)");
  m.def(
      "project_mahalanobis_shell(Tensor h, Tensor sigma, float radius, Tensor? radius_rows, float gamma, "
      "int grid_points) -> Tensor");
  m.def(
      "project_mahalanobis_shell_(Tensor(a!) h, Tensor sigma, float radius, Tensor? radius_rows, float gamma, "
      "int grid_points) -> ()");
  m.def(
      "_project_mahalanobis_shell_backward(Tensor grad_out, Tensor h, Tensor sigma, float radius, "
      "Tensor? radius_rows, float gamma, int grid_points) -> (Tensor, Tensor, Tensor)");
  m.def(
      "mahalanobis_shell_step(Tensor h, Tensor grad, Tensor sigma, float step_size, float radius, "
      "Tensor? radius_rows, float gamma, int grid_points) -> Tensor");
  m.def(
      "mahalanobis_shell_step_(Tensor(a!) h, Tensor grad, Tensor sigma, float step_size, float radius, "
      "Tensor? radius_rows, float gamma, int grid_points) -> ()");
  m.def(
      "_mahalanobis_shell_step_backward(Tensor grad_out, Tensor h, Tensor grad, Tensor sigma, float step_size, "
      "float radius, Tensor? radius_rows, float gamma, int grid_points) -> (Tensor, Tensor, Tensor, Tensor)");
}
#endif
