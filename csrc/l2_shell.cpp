// Schemas of the l2 shell operators.
#include <torch/csrc/stable/library.h>

#if !defined(DROCC_NO_SCHEMAS)

// radius is the one radius of all rows; radius_rows, [B] in float32 (float64 for float64 h), takes its place when
// given. drocc_ext/ops/_table.py derives the same strings for machines without this library; a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def("normalized_ascent(Tensor h, Tensor grad, float step_size) -> Tensor");
  m.def("normalized_ascent_(Tensor(a!) h, Tensor grad, float step_size) -> ()");
  m.def("_normalized_ascent_backward(Tensor grad_out, Tensor grad, float step_size) -> Tensor");
  m.def("project_l2_shell(Tensor h, float radius, Tensor? radius_rows, float gamma) -> Tensor");
  m.def("project_l2_shell_(Tensor(a!) h, float radius, Tensor? radius_rows, float gamma) -> ()");
  m.def(
      "_project_l2_shell_backward(Tensor grad_out, Tensor h, float radius, Tensor? radius_rows, float gamma) "
      "-> (Tensor, Tensor)");
  m.def(
      "l2_shell_step(Tensor h, Tensor grad, float step_size, float radius, Tensor? radius_rows, float gamma) "
      "-> Tensor");
  m.def(
      "l2_shell_step_(Tensor(a!) h, Tensor grad, float step_size, float radius, Tensor? radius_rows, float gamma) "
      "-> ()");
  m.def(
      "_l2_shell_step_backward(Tensor grad_out, Tensor h, Tensor grad, float step_size, float radius, "
      "Tensor? radius_rows, float gamma) -> (Tensor, Tensor, Tensor)");
}
#endif
