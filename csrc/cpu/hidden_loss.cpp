// The loss behind a hidden layer and its gradients on the CPU.
#include <optional>
#include <tuple>

#include "../checks.h"
#include "../math/hidden_loss.h"
#include "dispatch.h"
#include "hidden_loss_kernel.h"

namespace drocc::cpu {
namespace {

void check_vector(const char* op, const char* name, const Tensor& t, int64_t count) {
  if (t.numel() != count || !t.is_contiguous()) {
    fail(op, name, " must be contiguous with ", count, " elements, got ", describe_shape(t));
  }
}

void check_units(const char* op, const Tensor& clean, const Tensor& found, const Tensor& output) {
  if (clean.dim() != 2 || found.dim() != 2 || clean.size(1) != found.size(1) || !clean.is_contiguous() ||
      !found.is_contiguous()) {
    fail(op, "clean and found must be contiguous of shape [B, H] and [M, H], got ", describe_shape(clean), " and ",
         describe_shape(found));
  }
  if (clean.scalar_type() != ScalarType::Float && clean.scalar_type() != ScalarType::Double) {
    fail(op, "clean must be float32 or float64");
  }
  check_like_h_in_kind(op, "found", found, clean);
  check_vector(op, "output", output, clean.size(1));
  check_like_h_in_kind(op, "output", output, clean);
}

double number_in(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? *static_cast<const double*>(t.const_data_ptr())
                                               : *static_cast<const float*>(t.const_data_ptr());
}

// The mean cross-entropy of logits, which become its derivatives. A row is normal where `normal` says so, or is null.
template <typename C>
double cross_entropy(C* logits, int64_t rows, bool all_normal, const bool* normal) {
  double sum = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    const bool is_normal = normal != nullptr ? normal[i] : all_normal;
    const math::LogitLoss<C> at = math::logit_loss(logits[i], is_normal);
    sum += static_cast<double>(at.loss);
    logits[i] = at.slope / static_cast<C>(rows);
  }
  return sum / static_cast<double>(rows);
}

std::tuple<Tensor, Tensor, Tensor> loss(const Tensor& clean, const Tensor& found, const Tensor& output,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& normal) {
  constexpr const char* kOp = "_hidden_loss";
  check_units(kOp, clean, found, output);
  if (bias.has_value()) {
    check_vector(kOp, "bias", *bias, 1);
    check_like_h_in_kind(kOp, "bias", *bias, clean);
  }
  const bool* mask = nullptr;
  if (normal.has_value()) {
    check_vector(kOp, "normal", *normal, clean.size(0));
    if (normal->scalar_type() != ScalarType::Bool) fail(kOp, "normal must be boolean");
    mask = static_cast<const bool*>(normal->const_data_ptr());
  }
  const int64_t rows = clean.size(0), others = found.size(0), hidden = clean.size(1);
  Tensor slopes = torch::stable::new_empty(clean, {rows + others});
  Tensor clean_loss = torch::stable::new_empty(clean, {});
  Tensor found_loss = torch::stable::new_empty(clean, {});
  Tensor units = clean, found_units = found;
  const double constant = bias.has_value() ? number_in(*bias) : 0.0;
  const auto fill = [&](auto zero) {
    using C = decltype(zero);
    auto* logits = static_cast<C*>(slopes.mutable_data_ptr());
    const auto fn = DROCC_SELECT_KERNELS(hidden_loss_kernels).logits[dtype_index(clean)];
    run_rows(fn, HiddenLogitsArgs{units.mutable_data_ptr(), output.const_data_ptr(), logits, constant, hidden}, rows,
             hidden);
    run_rows(fn,
             HiddenLogitsArgs{found_units.mutable_data_ptr(), output.const_data_ptr(), logits + rows, constant, hidden},
             others, hidden);
    *static_cast<C*>(clean_loss.mutable_data_ptr()) = static_cast<C>(cross_entropy(logits, rows, true, mask));
    *static_cast<C*>(found_loss.mutable_data_ptr()) =
        static_cast<C>(cross_entropy(logits + rows, others, false, nullptr));
  };
  if (clean.scalar_type() == ScalarType::Double) {
    fill(0.0);
  } else {
    fill(0.0f);
  }
  return {clean_loss, found_loss, slopes};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& clean, const Tensor& found,
                                                            const Tensor& output, const Tensor& slopes,
                                                            const Tensor& clean_weight, const Tensor& found_weight) {
  constexpr const char* kOp = "_hidden_loss_backward";
  check_units(kOp, clean, found, output);
  check_vector(kOp, "slopes", slopes, clean.size(0) + found.size(0));
  check_vector(kOp, "clean_weight", clean_weight, 1);
  check_vector(kOp, "found_weight", found_weight, 1);
  for (const Tensor* t : {&slopes, &clean_weight, &found_weight}) check_like_h_in_kind(kOp, "slopes", *t, clean);
  const int64_t rows = clean.size(0), others = found.size(0), hidden = clean.size(1);
  Tensor units = torch::stable::empty_like(clean);
  Tensor found_units = torch::stable::empty_like(found);
  Tensor units_bias = torch::stable::new_empty(clean, {hidden});
  Tensor output_gradients = torch::stable::new_empty(clean, {hidden});
  Tensor bias = torch::stable::new_empty(clean, {1});
  const double weights[2] = {number_in(clean_weight), number_in(found_weight)};
  const auto fill = [&](auto zero) {
    using C = decltype(zero);
    const auto* all = static_cast<const C*>(slopes.const_data_ptr());
    double sums[2] = {0.0, 0.0};
    for (int64_t i = 0; i < rows + others; ++i) sums[i < rows ? 0 : 1] += static_cast<double>(all[i]);
    *static_cast<C*>(bias.mutable_data_ptr()) = static_cast<C>(weights[0] * sums[0] + weights[1] * sums[1]);
    const HiddenGradientsArgs args{{clean.const_data_ptr(), found.const_data_ptr()},
                                   {units.mutable_data_ptr(), found_units.mutable_data_ptr()},
                                   {all, all + rows},
                                   {weights[0], weights[1]},
                                   {rows, others},
                                   output.const_data_ptr(),
                                   units_bias.mutable_data_ptr(),
                                   output_gradients.mutable_data_ptr(),
                                   hidden};
    run_rows(DROCC_SELECT_KERNELS(hidden_loss_kernels).gradients[dtype_index(clean)], args,
             (hidden + kColumns - 1) / kColumns, (rows + others) * kColumns);
  };
  if (clean.scalar_type() == ScalarType::Double) {
    fill(0.0);
  } else {
    fill(0.0f);
  }
  return {units, found_units, units_bias, output_gradients, bias};
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_hidden_loss", TORCH_BOX(&drocc::cpu::loss));
  m.impl("_hidden_loss_backward", TORCH_BOX(&drocc::cpu::backward));
}
