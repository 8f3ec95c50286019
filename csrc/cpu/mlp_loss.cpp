// A deep network's losses and gradients on the CPU.
#include <optional>
#include <tuple>
#include <vector>

#include "../mlp_search.h"
#include "mlp_pass.h"

namespace drocc::cpu {
namespace {

using MaybeTensor = std::optional<Tensor>;

double number_in(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? *static_cast<const double*>(t.const_data_ptr())
                                               : *static_cast<const float*>(t.const_data_ptr());
}

void check_rows(const char* op, const Tensor& x, const Tensor& x_adv) {
  if (x.scalar_type() != ScalarType::Float && x.scalar_type() != ScalarType::Double) {
    fail(op, "x must be float32 or float64");
  }
  if (x.dim() != 2 || x_adv.dim() != 2 || x.size(1) != x_adv.size(1)) {
    fail(op, "x and x_adv must have shape [B, D] and [M, D], got ", describe_shape(x), " and ", describe_shape(x_adv));
  }
  check_like_h_in_kind(op, "x_adv", x_adv, x);
}

void check_slopes(const char* op, const std::vector<double>& negative_slopes) {
  for (const double slope : negative_slopes) {
    if (!(slope >= 0.0)) fail(op, "negative_slopes must be >= 0, got ", slope);
  }
}

void check_vector(const char* op, const char* name, const Tensor& t, int64_t count) {
  if (t.numel() != count) fail(op, name, " must have ", count, " elements, got ", describe_shape(t));
}

// A tensor without gaps, kept as long as its pointer is used.
const void* data_of(const char* op, const char* name, const MaybeTensor& t, const Tensor& like, int64_t rows,
                    int64_t width, std::vector<Tensor>& kept) {
  if (!t.has_value()) return nullptr;
  check_vector(op, name, *t, rows * width);
  check_like_h_in_kind(op, name, *t, like);
  kept.push_back(torch::stable::contiguous(*t));
  return kept.back().const_data_ptr();
}

Tensor new_number(const Tensor& like, double value) {
  Tensor number = torch::stable::new_empty(like, {});
  if (like.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(number.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(number.mutable_data_ptr()) = static_cast<float>(value);
  }
  return number;
}

std::tuple<Tensor, Tensor, Tensor> loss(const Tensor& x, const Tensor& x_adv, std::vector<Tensor> weights,
                                        std::vector<MaybeTensor> biases, std::vector<double> negative_slopes,
                                        const Tensor& output, const MaybeTensor& output_bias,
                                        const MaybeTensor& is_normal, const MaybeTensor& targets,
                                        const MaybeTensor& clean_units, const MaybeTensor& adv_units) {
  constexpr const char* kOp = "_mlp_loss";
  check_rows(kOp, x, x_adv);
  check_slopes(kOp, negative_slopes);
  const MlpTensors net(kOp, x, weights, biases, negative_slopes, output);
  const Tensor clean = torch::stable::contiguous(x), adv = torch::stable::contiguous(x_adv);
  const int64_t rows = x.size(0), others = x_adv.size(0), units = net.view().widths[1];
  std::vector<Tensor> kept;
  const void* constant = data_of(kOp, "output_bias", output_bias, x, 1, 1, kept);
  const void* labels = data_of(kOp, "targets", targets, x, others, 1, kept);
  const void* known = data_of(kOp, "clean_units", clean_units, x, rows, units, kept);
  const void* known_adv = data_of(kOp, "adv_units", adv_units, x, others, units, kept);
  const bool* mask = nullptr;
  if (is_normal.has_value()) {
    check_vector(kOp, "is_normal", *is_normal, rows);
    if (is_normal->scalar_type() != ScalarType::Bool) fail(kOp, "is_normal must be boolean");
    kept.push_back(torch::stable::contiguous(*is_normal));
    mask = static_cast<const bool*>(kept.back().const_data_ptr());
  }
  const int type = dtype_index(x);
  MlpPass pass(type, net.view(), rows + others);
  const Memory packed = allocate(pass.packed_bytes());
  Tensor state = torch::stable::new_empty(x, {pass.state_bytes() / (type == 0 ? 4 : 8)});
  pass.pack(packed.get(), true, false);
  pass.use_state(state.mutable_data_ptr());
  pass.use_rows(clean.const_data_ptr(), rows, adv.const_data_ptr(), others, known, known_adv);
  pass.forward();
  const MlpPass::Losses losses = pass.take_losses(constant == nullptr ? 0.0 : number_in(*output_bias), mask, labels);
  return {new_number(x, losses.clean), new_number(x, losses.adv), state};
}

std::vector<Tensor> backward(const Tensor& x, const Tensor& x_adv, std::vector<Tensor> weights,
                             std::vector<double> negative_slopes, const Tensor& output, const Tensor& state,
                             const Tensor& clean_weight, const Tensor& adv_weight, int64_t wanted) {
  constexpr const char* kOp = "_mlp_loss_backward";
  check_rows(kOp, x, x_adv);
  check_slopes(kOp, negative_slopes);
  const MlpTensors net(kOp, x, weights, std::vector<MaybeTensor>(weights.size()), negative_slopes, output);
  const Tensor clean = torch::stable::contiguous(x), adv = torch::stable::contiguous(x_adv);
  const int type = dtype_index(x);
  MlpPass pass(type, net.view(), x.size(0) + x_adv.size(0));
  check_vector(kOp, "state", state, pass.state_bytes() / (type == 0 ? 4 : 8));
  for (const Tensor* t : {&state, &clean_weight, &adv_weight}) check_like_h_in_kind(kOp, "state", *t, x);
  check_vector(kOp, "clean_weight", clean_weight, 1);
  check_vector(kOp, "adv_weight", adv_weight, 1);
  Tensor used = state;  // read only, but the stable ABI has one pointer for both
  const Memory packed = allocate(pass.packed_bytes()), memory = allocate(pass.gradient_bytes());
  pass.pack(packed.get(), false, true);
  pass.use_state(used.mutable_data_ptr());
  pass.use_gradients(memory.get());
  pass.use_rows(clean.const_data_ptr(), x.size(0), adv.const_data_ptr(), x_adv.size(0));
  std::vector<Tensor> results;
  const auto place = [&](std::vector<int64_t> shape) -> void* {
    const bool is_wanted = ((wanted >> results.size()) & 1) != 0;
    if (!is_wanted) shape = {0};
    results.push_back(torch::stable::new_empty(x, {shape.data(), shape.size()}));
    return is_wanted ? results.back().mutable_data_ptr() : nullptr;
  };
  MlpGradients gradients{};
  for (int l = 0; l < net.view().num_layers; ++l) {
    gradients.weight[l] = place({net.view().widths[l + 1], net.view().widths[l]});
    gradients.bias[l] = place({net.view().widths[l + 1]});
  }
  gradients.output = place({output.numel()});
  gradients.output_bias = place({1});
  pass.backward(number_in(clean_weight), number_in(adv_weight), gradients);
  return results;
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_mlp_loss", TORCH_BOX(&drocc::cpu::loss));
  m.impl("_mlp_loss_backward", TORCH_BOX(&drocc::cpu::backward));
}
