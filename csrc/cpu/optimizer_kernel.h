// An optimizer's step over one parameter, per element type and instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

// As `torch.optim` has them.
struct OptimizerSettings {
  bool is_adam;  // else SGD
  double beta1, beta2, eps;
  double momentum, dampening;
  bool nesterov;
  double weight_decay;
  bool decoupled;  // AdamW
};

struct OptimizerArgs {
  OptimizerSettings settings;
  double lr;
  int64_t step;         // from 1
  bool first_velocity;  // SGD: there is no velocity yet
  double grad_scale;    // from clipping
  const void* grad;
  void* value;
  void* first;   // mean of gradients, or velocity
  void* second;  // mean of their squares
  int64_t count;
};

// For float and double.
struct OptimizerKernels {
  void (*step[2])(const OptimizerArgs&);
  double (*sum_of_squares[2])(const void* values, int64_t count);
};

DROCC_DECLARE_KERNELS(OptimizerKernels, optimizer_kernels)

}  // namespace drocc::cpu
