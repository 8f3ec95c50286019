// Whole trainings on the CPU: checks, outputs, and networks spread over torch's threads.
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "mlp_training.h"

namespace drocc::cpu {
namespace {

constexpr const char* kOp = "_mlp_train";

void check_matrix(const char* name, const Tensor& t, ScalarType type, int64_t rows, int64_t columns) {
  if (t.dim() != 2 || t.size(0) != rows || t.size(1) != columns || !t.is_contiguous() || t.scalar_type() != type) {
    fail(kOp, name, " must be contiguous of its type and of shape [", rows, ", ", columns, "], got ",
         describe_shape(t));
  }
}

// Widths of the layers, from the first network's parameters.
void read_shape(TrainingPlan& plan, const Tensor& x, const std::vector<Tensor>& parameters,
                const std::vector<double>& negative_slopes) {
  const size_t layers = negative_slopes.size();
  if (layers < 1 || layers > kMostMlpLayers) {
    fail(kOp, "negative_slopes must be of 1 to ", kMostMlpLayers, " hidden layers, got ", layers);
  }
  if (parameters.empty() || parameters.size() % (2 * layers + 2) != 0) {
    fail(kOp, "parameters must be ", 2 * layers + 2, " for each network, got ", parameters.size());
  }
  plan.num_layers = static_cast<int>(layers);
  plan.widths[0] = x.size(1);
  for (size_t l = 0; l < layers; ++l) {
    const Tensor& weight = parameters[2 * l];
    if (weight.dim() != 2 || weight.size(0) < 1 || weight.size(1) != plan.widths[l]) {
      fail(kOp, "weights must have shape [units, ", plan.widths[l], "], got ", describe_shape(weight));
    }
    if (!(negative_slopes[l] >= 0.0)) fail(kOp, "negative_slopes must be >= 0, got ", negative_slopes[l]);
    plan.widths[l + 1] = weight.size(0);
    plan.negative_slope[l] = negative_slopes[l];
  }
}

// The memory of a tensor of `count` elements; null where it is empty and may be.
void* data_of(const char* name, const Tensor& t, const Tensor& x, int64_t count, bool may_be_empty) {
  if (may_be_empty && t.numel() == 0) return nullptr;
  if (t.numel() != count || !t.is_contiguous()) {
    fail(kOp, name, " must be contiguous with ", count, " elements, got ", describe_shape(t));
  }
  check_like_h_in_kind(kOp, name, t, x);
  return const_cast<void*>(t.const_data_ptr());
}

TrainedNetwork read_network(const TrainingPlan& plan, const Tensor& x, const Tensor* parameters, const Tensor* first,
                            const Tensor* second, int64_t trained) {
  TrainedNetwork network{};
  const int count = 2 * plan.num_layers + 2;
  const bool has_first = plan.optimizer.is_adam || plan.optimizer.momentum != 0.0;
  for (int i = 0; i < count; ++i) {
    const int l = i / 2;
    const bool is_bias = i % 2 == 1;
    int64_t size = is_bias ? 1 : plan.widths[l];
    if (l < plan.num_layers) size = plan.widths[l + 1] * (is_bias ? 1 : plan.widths[l]);
    network.parameter[i] = data_of("parameters", parameters[i], x, size, is_bias);
    network.trained[i] = ((trained >> i) & 1) != 0 && network.parameter[i] != nullptr;
    if (!network.trained[i]) continue;
    if (has_first) network.first[i] = data_of("first", first[i], x, size, false);
    if (plan.optimizer.is_adam) network.second[i] = data_of("second", second[i], x, size, false);
  }
  return network;
}

void check_settings(const TrainingPlan& plan) {
  const SearchSettings& s = plan.search;
  if (plan.batch_size < 1) fail(kOp, "batch_size must be >= 1, got ", plan.batch_size);
  if (!(s.radius > 0.0) || !std::isfinite(s.radius)) fail(kOp, "radius must be > 0 and finite, got ", s.radius);
  if (!(s.gamma >= 1.0)) fail(kOp, "gamma must be >= 1, got ", s.gamma);
  if (s.num_steps < 0) fail(kOp, "num_steps must be >= 0, got ", s.num_steps);
  if (s.project_every < 1) fail(kOp, "project_every must be >= 1, got ", s.project_every);
  if (!(s.factor_share >= 0.0 && s.factor_share <= 1.0)) {
    fail(kOp, "factor_share must be in [0, 1], got ", s.factor_share);
  }
  if (plan.steps_done < 0) fail(kOp, "steps_done must be >= 0, got ", plan.steps_done);
}

std::tuple<Tensor, Tensor> train(const Tensor& x, const std::optional<Tensor>& is_normal, const Tensor& order,
                                 int64_t batch_size, std::vector<Tensor> parameters, std::vector<Tensor> first,
                                 std::vector<Tensor> second, int64_t trained, std::vector<double> negative_slopes,
                                 const Tensor& generators, const Tensor& learning_rates, int64_t steps_done,
                                 bool is_adam, double beta1, double beta2, double eps, double momentum,
                                 double dampening, bool nesterov, double weight_decay, bool decoupled, double clip_norm,
                                 bool adversarial, double mu, double radius, double gamma, double step_size,
                                 int64_t num_steps, int64_t project_every, bool project_start, bool project_last,
                                 double noise_scale, const std::optional<Tensor>& factor, double factor_share,
                                 const std::optional<Tensor>& swap_rows, std::vector<double> log_radii,
                                 const std::optional<Tensor>& label_rows) {
  const ScalarType type = x.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) fail(kOp, "x must be float32 or float64");
  if (x.dim() != 2 || !x.is_contiguous()) {
    fail(kOp, "x must be contiguous of shape [N, D], got ", describe_shape(x));
  }
  TrainingPlan plan{};
  read_shape(plan, x, parameters, negative_slopes);
  const size_t each = static_cast<size_t>(2 * plan.num_layers + 2), networks = parameters.size() / each;
  for (const auto* states : {&first, &second}) {
    if (states->size() != parameters.size()) fail(kOp, "first and second must have an entry for each parameter");
  }
  plan.type = type == ScalarType::Double ? 1 : 0;
  plan.x = x.const_data_ptr();
  if (is_normal.has_value()) {
    if (is_normal->numel() != x.size(0) || !is_normal->is_contiguous() ||
        is_normal->scalar_type() != ScalarType::Bool) {
      fail(kOp, "is_normal must be boolean, contiguous and of shape [", x.size(0), "], got ",
           describe_shape(*is_normal));
    }
    plan.is_normal = static_cast<const bool*>(is_normal->const_data_ptr());
  }
  plan.batch_size = batch_size;
  plan.order_length = order.dim() == 2 ? order.size(1) : 0;
  plan.steps_done = steps_done;
  plan.optimizer = {is_adam, beta1, beta2, eps, momentum, dampening, nesterov, weight_decay, decoupled};
  plan.clip_norm = clip_norm;
  plan.adversarial = adversarial;
  plan.mu = mu;
  plan.search = {.radius = radius,
                 .gamma = gamma,
                 .step_size = step_size,
                 .num_steps = num_steps,
                 .project_every = project_every,
                 .project_start = project_start,
                 .project_last = project_last,
                 .noise_scale = noise_scale,
                 .factor_share = factor_share};
  if (swap_rows.has_value()) {
    const int64_t swap_count = swap_rows->dim() == 2 ? swap_rows->size(0) : 0;
    check_matrix("swap_rows", *swap_rows, type, swap_count, x.size(1));
    if (swap_count == 0 || x.size(1) == 0) fail(kOp, "swap_rows must have a row and a column");
    plan.search.swap_rows = swap_rows->const_data_ptr();
    plan.search.swap_count = swap_count;
  }
  if (!log_radii.empty()) {
    if (log_radii.size() != 2 || !(log_radii[0] <= log_radii[1])) {
      fail(kOp, "log_radii must be two numbers, first <= second, or none");
    }
    plan.search.draws_radii = true;
    plan.search.least_log = log_radii[0];
    plan.search.most_log = log_radii[1];
  }
  if (label_rows.has_value()) {
    const int64_t label_count = label_rows->dim() == 2 ? label_rows->size(0) : 0;
    check_matrix("label_rows", *label_rows, type, label_count, x.size(1));
    if (label_count == 0) fail(kOp, "label_rows must have a row");
    plan.search.label_rows = label_rows->const_data_ptr();
    plan.search.label_count = label_count;
  }
  check_settings(plan);
  const auto count = static_cast<int64_t>(networks);
  check_matrix("order", order, ScalarType::Long, count, plan.order_length);
  check_matrix("generators", generators, ScalarType::Byte, count, kGeneratorBytes);
  if (learning_rates.numel() != plan.num_steps() || !learning_rates.is_contiguous() ||
      learning_rates.scalar_type() != ScalarType::Double) {
    fail(kOp, "learning_rates must be float64 and one per step, ", plan.num_steps(), ", got ",
         describe_shape(learning_rates));
  }
  plan.learning_rates = static_cast<const double*>(learning_rates.const_data_ptr());
  if (factor.has_value() && factor_share > 0.0) {
    check_matrix("factor", *factor, type, factor->dim() == 2 ? factor->size(0) : 0, x.size(1));
    plan.search.factor = factor->const_data_ptr();
    plan.search.factor_rank = factor->size(0);
  }
  const auto* positions = static_cast<const int64_t*>(order.const_data_ptr());
  for (int64_t i = 0; i < order.numel(); ++i) {
    if (positions[i] < 0 || positions[i] >= x.size(0)) {
      fail(kOp, "order must hold positions of the ", x.size(0), " rows, got ", positions[i]);
    }
  }
  Tensor losses = torch::stable::new_zeros(x, {count, plan.num_steps(), 4}, ScalarType::Double);
  Tensor taken = torch::stable::new_zeros(x, {count}, ScalarType::Long);
  Tensor states = generators;
  std::vector<std::unique_ptr<MlpTraining>> trainings;
  for (size_t i = 0; i < networks; ++i) {
    TrainedNetwork network = read_network(plan, x, &parameters[i * each], &first[i * each], &second[i * each], trained);
    network.order = positions + static_cast<int64_t>(i) * plan.order_length;
    network.generator = static_cast<uint8_t*>(states.mutable_data_ptr()) + static_cast<int64_t>(i) * kGeneratorBytes;
    network.losses = static_cast<double*>(losses.mutable_data_ptr()) + static_cast<int64_t>(i) * plan.num_steps() * 4;
    trainings.push_back(std::make_unique<MlpTraining>(kOp, plan, network));
  }
  auto* done = static_cast<int64_t*>(taken.mutable_data_ptr());
  if (networks == 1) {
    done[0] = trainings[0]->run();
  } else {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) done[i] = trainings[static_cast<size_t>(i)]->run();
    });
  }
  return {losses, taken};
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_mlp_train", TORCH_BOX(&drocc::cpu::train));
}
