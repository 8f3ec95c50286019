#include "mlp_training.h"

#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "../math/mlp_search.h"
#include "../row_args.h"
#include "l2_shell_kernel.h"
#include "mlp_search_kernel.h"
#include "nearest_kernel.h"

namespace drocc::cpu {
namespace {

// Rows of a search that another thread may take: the search goes through them in blocks of divisors of it.
constexpr int64_t kSearchRows = 64;

// Share of N(0, 1) in a swap.
constexpr double kDither = 1e-3;

MlpView make_view(const TrainingPlan& plan, const TrainedNetwork& network) {
  MlpView view{};
  view.num_layers = plan.num_layers;
  view.widths[0] = plan.widths[0];
  for (int l = 0; l < plan.num_layers; ++l) {
    view.widths[l + 1] = plan.widths[l + 1];
    view.weight[l] = network.parameter[2 * l];
    view.bias[l] = network.parameter[2 * l + 1];
    view.negative_slope[l] = plan.negative_slope[l];
  }
  view.output = network.parameter[2 * plan.num_layers];
  return view;
}

}  // namespace

MlpTraining::MlpTraining(const char* op, const TrainingPlan& plan, const TrainedNetwork& network)
    : plan_(plan),
      network_(network),
      net_(make_view(plan, network)),
      num_parameters_(2 * plan.num_layers + 2),
      bytes_(plan.type == 0 ? 4 : 8),
      generator_(op, network.generator),
      pass_(plan.type, net_, 2 * plan.batch_size) {
  const int layers = plan.num_layers;
  for (int l = 0; l < layers; ++l) {
    size_[2 * l] = plan.widths[l] * plan.widths[l + 1];
    size_[2 * l + 1] = plan.widths[l + 1];
  }
  size_[2 * layers] = plan.widths[layers];
  size_[2 * layers + 1] = 1;
  const int64_t rows = plan.batch_size, inputs = plan.widths[0], units = plan.widths[1];
  rows_ = part(rows * inputs);
  normal_rows_ = plan.is_normal == nullptr ? rows_ : part(rows * inputs);
  h_ = part(rows * inputs);
  const SearchSettings& s = plan.search;
  if (s.factor != nullptr) {
    const MlpLossRows& kernels = DROCC_SELECT_KERNELS(mlp_loss_kernels);
    noise_ = part(rows * s.factor_rank);
    factor_ = part(kernels.packed_size[plan.type](s.factor_rank, inputs));
    kernels.pack_matrix[plan.type](s.factor, s.factor_rank, inputs, factor_);
  }
  if (s.swap_rows != nullptr) {
    swaps_ = std::make_unique<int64_t[]>(static_cast<size_t>(2 * rows));
    taken_ = std::make_unique<float[]>(static_cast<size_t>(rows * (inputs + 1)));
  }
  if (s.draws_radii) radii_ = part(rows);
  if (s.label_rows != nullptr) {
    targets_ = part(rows);
    nearest_ = std::make_unique<int64_t[]>(static_cast<size_t>(rows));
  }
  clean_units_ = part(rows * units);
  adv_units_ = part(rows * units);
  packed_ = part(pass_.packed_bytes() / bytes_);
  pass_.use_state(part(pass_.state_bytes() / bytes_));
  pass_.use_gradients(part(pass_.gradient_bytes() / bytes_));
  is_normal_ = std::make_unique<bool[]>(static_cast<size_t>(rows));
  for (int i = 0; i < num_parameters_; ++i) {
    if (network.trained[i]) grad_[i] = part(size_[i]);
  }
  for (int l = 0; l < layers; ++l) {
    gradients_.weight[l] = grad_[2 * l];
    gradients_.bias[l] = grad_[2 * l + 1];
  }
  gradients_.output = grad_[2 * layers];
  gradients_.output_bias = grad_[2 * layers + 1];
}

int64_t MlpTraining::run() {
  int64_t step = 0;
  while (step < plan_.num_steps() && take_step(step)) ++step;
  generator_.save(network_.generator);
  return step;
}

bool MlpTraining::take_step(int64_t step) {
  const int64_t begin = step * plan_.batch_size;
  const int64_t left = plan_.order_length - begin;
  gather(network_.order + begin, left < plan_.batch_size ? left : plan_.batch_size);
  const bool searched = plan_.adversarial && normal_count_ > 0;
  const void *clean_units = nullptr, *adv_units = nullptr;
  if (searched) {
    if (plan_.type == 0) {
      draw_radii<float>(normal_count_);
      draw_start<float>(normal_count_);
      search(normal_count_);
      find_targets<float>(normal_count_);
    } else {
      draw_radii<double>(normal_count_);
      draw_start<double>(normal_count_);
      search(normal_count_);
      find_targets<double>(normal_count_);
    }
    adv_units = adv_units_;
    if (normal_count_ == count_) clean_units = clean_units_;
  }
  pass_.pack(packed_, true, true);
  pass_.use_rows(rows_, count_, h_, searched ? normal_count_ : 0, clean_units, adv_units);
  pass_.forward();
  const void* constant = network_.parameter[num_parameters_ - 1];
  double output_bias = 0.0;
  if (constant != nullptr) {
    output_bias = plan_.type == 0 ? *static_cast<const float*>(constant) : *static_cast<const double*>(constant);
  }
  const MlpPass::Losses means = pass_.take_losses(output_bias, normal_count_ == count_ ? nullptr : is_normal_.get(),
                                                  searched ? targets_ : nullptr);
  // The loss is a number of the network's type, as in the loop.
  double total, clean = means.clean, adv = means.adv;
  if (plan_.type == 0) {
    clean = static_cast<float>(clean);
    adv = static_cast<float>(adv);
    total = static_cast<float>(clean) + static_cast<float>(plan_.mu) * static_cast<float>(adv);
  } else {
    total = clean + plan_.mu * adv;
  }
  pass_.backward(1.0, plan_.mu, gradients_);
  const double norm = gradient_norm();
  double* record = network_.losses + 4 * step;
  record[0] = total;
  record[1] = clean;
  record[2] = adv;
  record[3] = norm;
  if (!std::isfinite(total + norm)) return false;
  update(step, norm);
  return true;
}

void MlpTraining::gather(const int64_t* order, int64_t count) {
  const size_t row_bytes = static_cast<size_t>(plan_.widths[0] * bytes_);
  const char* x = static_cast<const char*>(plan_.x);
  char *rows = static_cast<char*>(rows_), *normal_rows = static_cast<char*>(normal_rows_);
  count_ = count;
  normal_count_ = 0;
  for (int64_t i = 0; i < count; ++i) {
    const size_t at = static_cast<size_t>(i);
    const char* row = x + static_cast<size_t>(order[i]) * row_bytes;
    std::memcpy(rows + at * row_bytes, row, row_bytes);
    is_normal_[at] = plan_.is_normal == nullptr || plan_.is_normal[order[i]];
    if (!is_normal_[at]) continue;
    if (normal_rows != rows) std::memcpy(normal_rows + static_cast<size_t>(normal_count_) * row_bytes, row, row_bytes);
    ++normal_count_;
  }
}

template <typename C>
void MlpTraining::draw_radii(int64_t count) {
  const SearchSettings& s = plan_.search;
  if (!s.draws_radii) return;
  C* radii = static_cast<C*>(radii_);
  if (s.least_log < s.most_log) {
    generator_.uniform(radii, count, s.least_log, s.most_log);
  } else {
    for (int64_t i = 0; i < count; ++i) radii[i] = static_cast<C>(s.least_log);
  }
  for (int64_t i = 0; i < count; ++i) radii[i] = std::exp(radii[i]) * static_cast<C>(s.radius);
}

// As `drocc_ext.search.noise.swaps` draws them.
template <typename C>
void MlpTraining::draw_swaps(int64_t first, int64_t count) {
  const SearchSettings& s = plan_.search;
  const int64_t inputs = plan_.widths[0];
  int64_t *others = swaps_.get(), *certain = others + count;
  float *drawn = taken_.get(), *shares = drawn + count * inputs;
  for (int64_t i = 0; i < count; ++i) others[i] = generator_.below(s.swap_count);
  generator_.uniform(drawn, count * inputs, 0.0, 1.0);
  generator_.uniform(shares, count, 0.0, 1.0);
  for (int64_t i = 0; i < count; ++i) certain[i] = generator_.below(inputs);
  C* h = static_cast<C*>(h_) + first * inputs;
  generator_.normal(h, count * inputs, 1.0);
  const C scale = static_cast<C>(s.noise_scale), dither = static_cast<C>(kDither);
  for (int64_t i = 0; i < count; ++i) {
    const C* x = static_cast<const C*>(normal_rows_) + (first + i) * inputs;
    const C* other = static_cast<const C*>(s.swap_rows) + others[i] * inputs;
    for (int64_t j = 0; j < inputs; ++j) {
      const bool taken = drawn[i * inputs + j] < shares[i] / 2 || j == certain[i];
      C& value = h[i * inputs + j];
      value = scale * ((taken ? other[j] - x[j] : C(0)) + dither * value);
    }
  }
}

template <typename C>
void MlpTraining::draw_start(int64_t count) {
  const SearchSettings& s = plan_.search;
  const int64_t inputs = plan_.widths[0];
  C* h = static_cast<C*>(h_);
  const auto correlated = s.factor == nullptr ? 0 : static_cast<int64_t>(s.factor_share * static_cast<double>(count));
  if (correlated > 0) {
    C* noise = static_cast<C*>(noise_);
    generator_.normal(noise, correlated * s.factor_rank, s.noise_scale);
    const auto multiply = DROCC_SELECT_KERNELS(mlp_loss_kernels).multiply_matrix[plan_.type];
    run_tasks(correlated, s.factor_rank * inputs, [&](int64_t begin, int64_t end) {
      multiply(noise + begin * s.factor_rank, end - begin, s.factor_rank, factor_, inputs, h + begin * inputs);
    });
  }
  if (s.swap_rows != nullptr) {
    draw_swaps<C>(correlated, count - correlated);
  } else {
    generator_.normal(h + correlated * inputs, (count - correlated) * inputs, s.noise_scale);
  }
  if (s.project_start || s.num_steps == 0) {
    const L2ShellRowsArgs args{h, nullptr, h, count, inputs, 0.0, s.radius, radii_, s.gamma};
    run_rows(DROCC_SELECT_KERNELS(l2_shell_kernels).project_l2_shell[plan_.type], args, count, inputs);
  }
}

void MlpTraining::search(int64_t count) {
  const MlpSearchKernels& kernels = DROCC_SELECT_KERNELS(mlp_search_kernels);
  const SearchSettings& s = plan_.search;
  MlpSearchArgs args{};
  args.network = net_;
  args.h = h_;
  args.x = normal_rows_;
  args.clean = clean_units_;
  args.adv = adv_units_;
  args.batch = count;
  args.step_size = s.step_size;
  args.num_steps = s.num_steps;
  args.project_every = s.project_every;
  args.project_last = s.project_last;
  args.radius = s.radius;
  args.radius_rows = radii_;
  args.gamma = s.gamma;
  const math::MlpWay way = math::choose_way(net_.num_layers, net_.widths, false, count, s.num_steps);
  const std::unique_ptr<void, void (*)(void*)> packed(kernels.pack[plan_.type](net_, way), kernels.release[plan_.type]);
  std::atomic<bool> ok{packed != nullptr};
  if (ok) {
    int64_t each = 0;
    for (int l = 0; l < net_.num_layers; ++l) each += net_.widths[l] * net_.widths[l + 1];
    const auto blocks = [&](int64_t begin, int64_t end) {
      const int64_t last = end * kSearchRows < count ? end * kSearchRows : count;
      if (!kernels.search[plan_.type](packed.get(), args, begin * kSearchRows, last)) ok = false;
    };
    run_tasks((count + kSearchRows - 1) / kSearchRows, kSearchRows * each * (1 + s.num_steps), blocks);
  }
  if (!ok) throw std::bad_alloc();
  const auto add = [&](auto zero) {
    using C = decltype(zero);
    const C* x = static_cast<const C*>(normal_rows_);
    C* h = static_cast<C*>(h_);
    DROCC_SIMD()
    for (int64_t i = 0; i < count * net_.widths[0]; ++i) h[i] += x[i];
  };
  if (plan_.type == 0) {
    add(0.0f);
  } else {
    add(0.0);
  }
}

// Targets by the distance to the nearest training row: 1 on it, 0 from the radius on.
template <typename C>
void MlpTraining::find_targets(int64_t count) {
  const SearchSettings& s = plan_.search;
  if (s.label_rows == nullptr) return;
  const NearestArgs args{h_, s.label_rows, targets_, nearest_.get(), count, s.label_count, plan_.widths[0]};
  const NearestFn fn = DROCC_SELECT_KERNELS(nearest_kernels).nearest[plan_.type];
  std::atomic<bool> ok{true};
  run_tasks(count, s.label_count * plan_.widths[0], [&](int64_t begin, int64_t end) {
    if (!fn(args, begin, end)) ok = false;
  });
  if (!ok) throw std::bad_alloc();
  C* targets = static_cast<C*>(targets_);
  const auto radius = static_cast<C>(s.radius);
  for (int64_t i = 0; i < count; ++i) {
    const C target = 1 - targets[i] / radius;
    targets[i] = target < 0 ? C(0) : target;
  }
}

double MlpTraining::gradient_norm() const {
  const OptimizerKernels& kernels = DROCC_SELECT_KERNELS(optimizer_kernels);
  double sum = 0.0;
  for (int i = 0; i < num_parameters_; ++i) {
    if (grad_[i] != nullptr) sum += kernels.sum_of_squares[plan_.type](grad_[i], size_[i]);
  }
  // In the loop the squares are summed up in the network's type.
  if (plan_.type == 0 && sum > FLT_MAX) return HUGE_VAL;
  return std::sqrt(sum);
}

void MlpTraining::update(int64_t step, double norm) {
  const OptimizerKernels& kernels = DROCC_SELECT_KERNELS(optimizer_kernels);
  OptimizerArgs args{};
  args.settings = plan_.optimizer;
  args.lr = plan_.learning_rates[step];
  args.step = plan_.steps_done + step + 1;
  args.first_velocity = args.step == 1;
  args.grad_scale = 1.0;
  if (plan_.clip_norm > 0.0) {
    const double scale = plan_.clip_norm / (norm + 1e-6);
    if (scale < 1.0) args.grad_scale = scale;
  }
  for (int i = 0; i < num_parameters_; ++i) {
    if (grad_[i] == nullptr) continue;
    args.grad = grad_[i];
    args.value = network_.parameter[i];
    args.first = network_.first[i];
    args.second = network_.second[i];
    args.count = size_[i];
    kernels.step[plan_.type](args);
  }
}

char* MlpTraining::part(int64_t elements) {
  memory_.push_back(allocate(elements * bytes_));
  return static_cast<char*>(memory_.back().get());
}

}  // namespace drocc::cpu
