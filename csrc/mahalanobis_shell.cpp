// Schemas of the Mahalanobis shell operators.
#include <torch/csrc/stable/library.h>

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
