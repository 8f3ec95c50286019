// Schemas of an LSTM layer and of its gradient with respect to the input alone, which is what a search differentiates.
// Private: `drocc_ext.search.recurrent` calls them.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// x [T, B, I]; h_0 and c_0 [B, H]; w_ih [4 H, I], w_hh [4 H, H], biases [4 H] with the gates in torch's order (input,
// forget, cell, output). Returns the hidden states [T, B, H], the cells [T, B, H] and the gates [T, B, 4 H].
//
// The backward takes the gradients of all hidden states and of the last cell, and overwrites gates. Returns those of x,
// h_0 and c_0.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def(
      "_lstm(Tensor x, Tensor h_0, Tensor c_0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "_lstm_backward(Tensor grad_hidden, Tensor? grad_cell, Tensor c_0, Tensor cells, Tensor(a!) gates, Tensor w_ih, "
      "Tensor w_hh) -> (Tensor, Tensor, Tensor)");
}

#endif
