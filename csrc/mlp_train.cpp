// Schema of a whole training, batch after batch. Private: `drocc_ext.training.mlp_epoch` calls it.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// Trains networks of one shape, each as if alone. Per network: a row of order [networks, n], positions of the rows of
// x [N, D] and is_normal [N] in the order in which batches of batch_size take them, one of generators
// [networks, 5056], the bytes of a CPU generator's state, and 2 L + 2 of the parameters and of the optimizer's states:
// W_1, b_1, ..., W_L, b_L, output, output bias. A parameter that is empty does not exist; one whose bit is not set in
// `trained` stays. first and second are Adam's means, or the velocity (first) of SGD with momentum, and empty where the
// optimizer keeps none.
//
// learning_rates, one per step. steps_done: by the optimizer, before. Adam with is_adam, else SGD; clip_norm 0: no
// clipping. Noise: a share of a batch's adversarial rows, the first ones, start from factor^T e, e ~ N(0, 1) drawn
// before the other rows' noise, factor [R, D]; with swap_rows [M, D] those go towards one of them each. With log_radii,
// two bounds, each row's inner radius is drawn before that noise as radius times exp of a number between them. With
// label_rows [M, D] the target of a point found is max(0, 1 - d / radius), d its distance to the nearest of them, else
// 0.
//
// Returns, per network and step, the total, clean and adversarial loss and the gradient's norm [networks, steps, 4],
// and how many steps were taken [networks]: fewer than there are where one of the losses or the norm was not finite,
// and then all is as before that step but for the generator.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def(
      "_mlp_train(Tensor x, Tensor? is_normal, Tensor order, int batch_size, Tensor(a!)[] parameters, "
      "Tensor(b!)[] first, Tensor(c!)[] second, int trained, float[] negative_slopes, Tensor(d!) generators, "
      "Tensor learning_rates, int steps_done, bool is_adam, float beta1, float beta2, float eps, float momentum, "
      "float dampening, bool nesterov, float weight_decay, bool decoupled, float clip_norm, bool adversarial, "
      "float mu, float radius, float gamma, float step_size, int num_steps, int project_every, bool project_start, "
      "bool project_last, float noise_scale, Tensor? factor, float factor_share, "
      "Tensor? swap_rows, float[] log_radii, Tensor? label_rows) -> (Tensor, Tensor)");
}

#endif
