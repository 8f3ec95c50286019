// Schema of the search in hidden space (csrc/math/hidden_search.h). Private: `adversarial_search` calls it.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// h [B, D] where the search starts and u [B, H] = W h are both used up; clean [B, H] = W x + b; weight [H, D];
// gram [H, H] = W W^T; output [H]. Projects after every project_every-th step and, unless project_last is false, after
// the last. Returns (C [B], p [B, H]): the search ends at C (h + p W).
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def(
      "_hidden_search(Tensor(a!) h, Tensor(b!) u, Tensor clean, Tensor weight, Tensor gram, Tensor output, "
      "float step_size, int num_steps, int project_every, float radius, Tensor? radius_rows, float gamma, "
      "bool project_last=True) -> (Tensor, Tensor)");
}

#endif
