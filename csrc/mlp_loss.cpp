// Schemas of a deep network's losses and of their gradients. Private: `drocc_ext.search.mlp.loss` calls them.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// For the network of `_mlp_search` and the output's bias: clean rows x [B, D] and adversarial ones x_adv [M, D] go
// through it together. Returns the mean cross-entropies of the clean rows, at label 1 where is_normal [B] is true or
// absent, else 0, and of the adversarial ones, at the probabilities targets [M] of being normal, or at label 0 (0 where
// M is 0); and what the gradients need. clean_units [B, H_1] and adv_units [M, H_1], the first layer's pre-activations,
// are computed where they are not given.
//
// The gradients are those of clean_weight and adv_weight (one number each) times the two means, of W_1, b_1, ..., W_L,
// b_L, output [H_L] and its bias [1]: the ones whose bits are set in `wanted`, the others are empty.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def(
      "_mlp_loss(Tensor x, Tensor x_adv, Tensor[] weights, Tensor?[] biases, float[] negative_slopes, Tensor output, "
      "Tensor? output_bias, Tensor? is_normal, Tensor? targets, Tensor? clean_units, Tensor? adv_units) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "_mlp_loss_backward(Tensor x, Tensor x_adv, Tensor[] weights, float[] negative_slopes, Tensor output, "
      "Tensor state, Tensor clean_weight, Tensor adv_weight, int wanted) -> Tensor[]");
}

#endif
