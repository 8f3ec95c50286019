#include "mlp_pass.h"

#include "../math/mlp_loss.h"

namespace drocc::cpu {
namespace {

// The mean cross-entropy of logits, which become its derivatives. label(i) gives LogitLoss of a logit in row i.
template <typename C, typename At>
double take_mean(C* logits, int64_t rows, C output_bias, const At& at) {
  double sum = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    const math::LogitLoss<C> loss = at(logits[i] + output_bias, i);
    sum += static_cast<double>(loss.loss);
    logits[i] = loss.slope / static_cast<C>(rows);
  }
  return rows == 0 ? 0.0 : sum / static_cast<double>(rows);
}

template <typename C>
MlpPass::Losses losses_of(const MlpLossArgs& args, double output_bias, const bool* is_normal, const C* targets) {
  C* logits = static_cast<C*>(args.logits);
  const C bias = static_cast<C>(output_bias);
  MlpPass::Losses losses;
  losses.clean = take_mean(logits, args.count[0], bias, [&](C logit, int64_t i) {
    return math::logit_loss(logit, is_normal == nullptr || is_normal[i]);
  });
  losses.adv = take_mean(logits + args.count[0], args.count[1], bias, [&](C logit, int64_t i) {
    return targets == nullptr ? math::logit_loss(logit, false) : math::soft_logit_loss(logit, targets[i]);
  });
  return losses;
}

// Writes the slopes times the weights of their means; returns the sum of all.
template <typename C>
double weigh_slopes(const MlpLossArgs& args, double clean_weight, double adv_weight, void* weighted) {
  const C* slopes = static_cast<const C*>(args.logits);
  C* out = static_cast<C*>(weighted);
  double sums[2] = {0.0, 0.0};
  const double weights[2] = {clean_weight, adv_weight};
  for (int part = 0; part < 2; ++part) {
    for (int64_t i = 0; i < args.count[part]; ++i) {
      sums[part] += static_cast<double>(slopes[i]);
      out[i] = static_cast<C>(weights[part]) * slopes[i];
    }
    slopes += args.count[part];
    out += args.count[part];
  }
  return clean_weight * sums[0] + adv_weight * sums[1];
}

}  // namespace

MlpPass::MlpPass(int type, const MlpView& net, int64_t most_rows)
    : rows_(DROCC_SELECT_KERNELS(mlp_loss_kernels)), type_(type), bytes_(type == 0 ? 4 : 8), most_rows_(most_rows) {
  args_.net = net;
}

int64_t MlpPass::packed_bytes() const {
  int64_t size = 0;
  const MlpView& net = args_.net;
  for (int l = 0; l < net.num_layers; ++l) {
    size += rows_.packed_size[type_](net.widths[l], net.widths[l + 1]);
    if (l > 0) size += rows_.packed_size[type_](net.widths[l + 1], net.widths[l]);
  }
  return bytes_ * size;
}

void MlpPass::pack(void* memory, bool forward, bool back) {
  auto* next = static_cast<char*>(memory);
  const MlpView& net = args_.net;
  for (int l = 0; l < net.num_layers; ++l) {
    args_.forward_weight[l] = forward ? next : nullptr;
    next += bytes_ * rows_.packed_size[type_](net.widths[l], net.widths[l + 1]);
    args_.back_weight[l] = back && l > 0 ? next : nullptr;
    if (l > 0) next += bytes_ * rows_.packed_size[type_](net.widths[l + 1], net.widths[l]);
    rows_.pack[type_](args_, l);
  }
}

int64_t MlpPass::state_bytes() const {
  int64_t width = 1;
  for (int l = 1; l <= args_.net.num_layers; ++l) width += args_.net.widths[l];
  return bytes_ * most_rows_ * width;
}

void MlpPass::use_state(void* memory) {
  auto* next = static_cast<char*>(memory);
  args_.logits = next;
  next += bytes_ * most_rows_;
  for (int l = 0; l < args_.net.num_layers; ++l) {
    args_.active[l] = next;
    next += bytes_ * most_rows_ * args_.net.widths[l + 1];
  }
}

int64_t MlpPass::gradient_bytes() const {
  return state_bytes();
}

void MlpPass::use_gradients(void* memory) {
  gradients_ = static_cast<char*>(memory);
}

void MlpPass::use_rows(const void* clean, int64_t clean_count, const void* adv, int64_t adv_count,
                       const void* clean_units, const void* adv_units) {
  args_.rows[0] = clean;
  args_.rows[1] = adv;
  args_.count[0] = clean_count;
  args_.count[1] = adv_count;
  args_.units[0] = clean_units;
  args_.units[1] = adv_units;
}

void MlpPass::forward() const {
  int64_t each = 0;
  for (int l = 0; l < args_.net.num_layers; ++l) each += layer_size(l);
  run_tasks(all_rows(), each, [&](int64_t begin, int64_t end) { rows_.forward[type_](args_, begin, end); });
}

MlpPass::Losses MlpPass::take_losses(double output_bias, const bool* is_normal, const void* targets) const {
  return type_ == 0 ? losses_of(args_, output_bias, is_normal, static_cast<const float*>(targets))
                    : losses_of(args_, output_bias, is_normal, static_cast<const double*>(targets));
}

void MlpPass::backward(double clean_weight, double adv_weight, const MlpGradients& gradients) {
  const int layers = args_.net.num_layers;
  const double sum = type_ == 0 ? weigh_slopes<float>(args_, clean_weight, adv_weight, gradients_)
                                : weigh_slopes<double>(args_, clean_weight, adv_weight, gradients_);
  if (gradients.output_bias != nullptr) {
    if (type_ == 0) {
      *static_cast<float*>(gradients.output_bias) = static_cast<float>(sum);
    } else {
      *static_cast<double*>(gradients.output_bias) = sum;
    }
  }
  args_.output_gradient = gradients.output;
  // Below the lowest layer whose gradients are wanted there is nothing to do.
  char* next = gradients_ + bytes_ * most_rows_;
  bool wanted = false;
  int64_t each = 0;
  for (int l = 0; l < layers; ++l) {
    args_.weight_gradient[l] = gradients.weight[l];
    args_.bias_gradient[l] = gradients.bias[l];
    if (wanted) each += layer_size(l);
    wanted = wanted || gradients.weight[l] != nullptr || gradients.bias[l] != nullptr;
    args_.gradient[l] = wanted ? next : nullptr;
    next += bytes_ * most_rows_ * args_.net.widths[l + 1];
  }
  args_.slopes = gradients_;
  if (wanted) {
    run_tasks(all_rows(), each, [&](int64_t begin, int64_t end) { rows_.backward[type_](args_, begin, end); });
  }
  for (int l = 0; l < layers; ++l) {
    const int64_t in = args_.net.widths[l], out = args_.net.widths[l + 1];
    if (args_.weight_gradient[l] != nullptr) {
      const auto blocks = [&](int64_t begin, int64_t end) {
        const Memory scratch = allocate(bytes_ * rows_.scratch_size[type_](all_rows()));
        rows_.weight_gradient[type_](args_, l, begin, end, scratch.get());
      };
      run_tasks(count_blocks(in, kGradientColumns) * count_blocks(out, kGradientRows),
                all_rows() * (in < kGradientColumns ? in : kGradientColumns) * kGradientRows, blocks);
    }
    const bool of_output = l == layers - 1 && args_.output_gradient != nullptr;
    if (args_.bias_gradient[l] != nullptr || of_output) {
      const auto units = [&](int64_t begin, int64_t end) { rows_.unit_gradient[type_](args_, l, begin, end); };
      run_tasks(count_blocks(out, kGradientUnits), all_rows() * kGradientUnits, units);
    }
  }
}

}  // namespace drocc::cpu
