// Schema of the search in deep networks (csrc/math/mlp_search.h). Private: `adversarial_search` calls it.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// h [B, D]: where the search starts, then where it ends. x [B, D]; weights [H_l, H_(l-1)] and biases [H_l] of 1 to 4
// hidden layers; negative_slopes of their LeakyReLUs, 0 for ReLU; output [H_L]. With sigma, [D] or [B, D], the shell is
// Mahalanobis's. Projects after every project_every-th step and, unless project_last is false, after the last. Returns
// the first layer's pre-activations, [B, H_1] each, at x and at x + h.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def(
      "_mlp_search(Tensor(a!) h, Tensor x, Tensor[] weights, Tensor?[] biases, float[] negative_slopes, Tensor output, "
      "Tensor? sigma, float step_size, int num_steps, int project_every, float radius, Tensor? radius_rows, "
      "float gamma, int grid_points, bool project_last=True) -> (Tensor, Tensor)");
}

#endif
