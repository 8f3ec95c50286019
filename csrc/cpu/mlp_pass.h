// A deep network's way forward and back over a batch, spread over torch's threads. The row kernels are those of
// mlp_loss_kernel.h; results do not depend on the number of threads.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "../mlp.h"
#include "dispatch.h"
#include "mlp_loss_kernel.h"

namespace drocc::cpu {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

inline Memory allocate(int64_t bytes) {
  constexpr int64_t kLine = 64;
  Memory memory(std::aligned_alloc(kLine, static_cast<size_t>((bytes / kLine + 1) * kLine)));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// Multiplications from which on a task is worth another thread.
constexpr int64_t kMultiplicationsPerTask = 500'000;

// fn(begin, end) over [0, count), in tasks of enough work.
template <typename Fn>
void run_tasks(int64_t count, int64_t multiplications_each, const Fn& fn) {
  if (count == 0) return;
  const int64_t per_task = 1 + kMultiplicationsPerTask / (multiplications_each > 0 ? multiplications_each : 1);
  if (count <= per_task) {
    fn(0, count);
  } else {
    torch::stable::parallel_for(0, count, per_task, fn);
  }
}

// Where the gradients of a network go; null where they are not wanted.
struct MlpGradients {
  void* weight[kMostMlpLayers];
  void* bias[kMostMlpLayers];
  void* output;
  void* output_bias;
};

// The memory of each group of arrays is the caller's: what has to last differs between callers.
class MlpPass {
 public:
  // type: 0 for float, 1 for double, as in the kernels' tables. most_rows: of clean and adversarial rows together.
  MlpPass(int type, const MlpView& net, int64_t most_rows);

  // Bytes of the packed weights, of what the way forward leaves, and of what the way back needs.
  int64_t packed_bytes() const;
  int64_t state_bytes() const;
  int64_t gradient_bytes() const;

  // Packs the weights for either way or both.
  void pack(void* memory, bool forward, bool back);
  void use_state(void* memory);
  void use_gradients(void* memory);

  // The batch; units may be null.
  void use_rows(const void* clean, int64_t clean_count, const void* adv, int64_t adv_count,
                const void* clean_units = nullptr, const void* adv_units = nullptr);

  void forward() const;

  // The two mean cross-entropies, and leaves the derivatives of the means in place of the logits. is_normal [B] and
  // targets [M] as in the schema, or null.
  struct Losses {
    double clean;
    double adv;
  };
  Losses take_losses(double output_bias, const bool* is_normal, const void* targets) const;

  // Gradients of clean_weight and adv_weight times the two means. May be called again.
  void backward(double clean_weight, double adv_weight, const MlpGradients& gradients);

 private:
  int64_t all_rows() const { return args_.count[0] + args_.count[1]; }
  int64_t layer_size(int layer) const { return args_.net.widths[layer] * args_.net.widths[layer + 1]; }

  const MlpLossRows& rows_;
  int type_;
  int64_t bytes_;  // of an element
  int64_t most_rows_;
  char* gradients_ = nullptr;
  MlpLossArgs args_{};
};

}  // namespace drocc::cpu
