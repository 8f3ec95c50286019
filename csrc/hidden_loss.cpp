// Schemas of the loss behind a hidden layer and of its gradients. Private: `drocc_ext._hidden_loss` calls them.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// For logits <output, relu(units)> + bias: clean [B, H] and found [M, H] hold the units and then what ReLU leaves of
// them. Returns the mean cross-entropies of the clean rows, at label 1 where normal [B] is true or absent, else 0, and
// of the found ones, at label 0; and the derivatives of these two with respect to the logits, [B + M].
//
// The gradients are those of clean_weight and found_weight (one number each) times the two means: of the units, [B, H]
// and [M, H], of the bias [H] that is in the units, of output [H] and of bias [1].
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def(
      "_hidden_loss(Tensor(a!) clean, Tensor(b!) found, Tensor output, Tensor? bias, Tensor? normal) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "_hidden_loss_backward(Tensor clean, Tensor found, Tensor output, Tensor slopes, Tensor clean_weight, "
      "Tensor found_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

#endif
