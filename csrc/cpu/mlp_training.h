// Algorithm 1 over many batches for one network on the CPU: noise, search, losses, gradients, optimizer. Torch's
// threads help with a batch, unless several networks share them.
#pragma once

#include <cstdint>
#include <vector>

#include "../mlp.h"
#include "generator.h"
#include "mlp_pass.h"
#include "optimizer_kernel.h"

namespace drocc::cpu {

constexpr int kMostMlpParameters = 2 * kMostMlpLayers + 2;

struct SearchSettings {
  double radius, gamma, step_size;
  int64_t num_steps, project_every;
  bool project_start, project_last;
  double noise_scale;
  double factor_share;           // of the rows, the first ones
  const void* factor = nullptr;  // [factor_rank, D], or null
  int64_t factor_rank = 0;
  const void* swap_rows = nullptr;  // [swap_count, D] that the rest goes towards, or null: it starts from N(0, 1)
  int64_t swap_count = 0;
  bool draws_radii = false;
  double least_log = 0.0, most_log = 0.0;  // of a drawn radius over `radius`
  const void* label_rows = nullptr;        // [label_count, D] for targets by distance, or null: every target is 0
  int64_t label_count = 0;
};

// What all networks share.
struct TrainingPlan {
  int type;  // 0 for float, 1 for double
  int num_layers;
  int64_t widths[kMostMlpLayers + 1];
  double negative_slope[kMostMlpLayers];
  const void* x;          // [N, D]
  const bool* is_normal;  // [N], or null
  int64_t batch_size;
  int64_t order_length;  // n
  const double* learning_rates;
  int64_t steps_done;
  OptimizerSettings optimizer;
  double clip_norm;  // 0: none
  bool adversarial;
  double mu;
  SearchSettings search;

  int64_t num_steps() const { return (order_length + batch_size - 1) / batch_size; }
};

// A network's own: what is null does not exist, or does not change.
struct TrainedNetwork {
  const int64_t* order;  // [n], valid positions
  uint8_t* generator;
  void* parameter[kMostMlpParameters];  // W_1, b_1, ..., output, output bias
  bool trained[kMostMlpParameters];
  void* first[kMostMlpParameters];
  void* second[kMostMlpParameters];
  double* losses;  // [steps, 4]
};

class MlpTraining {
 public:
  MlpTraining(const char* op, const TrainingPlan& plan, const TrainedNetwork& network);

  // Returns how many steps were taken.
  int64_t run();

 private:
  char* part(int64_t elements);
  void gather(const int64_t* order, int64_t count);
  template <typename C>
  void draw_start(int64_t count);
  template <typename C>
  void draw_swaps(int64_t first, int64_t count);
  template <typename C>
  void draw_radii(int64_t count);
  void search(int64_t count);
  template <typename C>
  void find_targets(int64_t count);
  double gradient_norm() const;
  void update(int64_t step, double norm);
  bool take_step(int64_t step);

  const TrainingPlan& plan_;
  TrainedNetwork network_;
  MlpView net_;
  int num_parameters_;
  int64_t size_[kMostMlpParameters];
  int64_t bytes_;  // of an element
  Generator generator_;
  MlpPass pass_;
  std::vector<Memory> memory_;
  // A batch: all rows, the normal ones (those rows, where all are), where they are searched around, and masks.
  void *rows_, *normal_rows_, *h_;
  void *noise_ = nullptr, *factor_ = nullptr, *radii_ = nullptr, *targets_ = nullptr;
  std::unique_ptr<int64_t[]> nearest_, swaps_;
  std::unique_ptr<float[]> taken_;
  void *clean_units_, *adv_units_;
  void* packed_;
  std::unique_ptr<bool[]> is_normal_;
  int64_t count_ = 0, normal_count_ = 0;
  MlpGradients gradients_{};
  void* grad_[kMostMlpParameters] = {};
};

}  // namespace drocc::cpu
