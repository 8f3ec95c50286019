// Compiled once per instruction set (see isa.h); plain loops that the compiler vectorizes.
#include "optimizer_kernel.h"

#include "../math/optimizer.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename C>
void take_step(const OptimizerArgs& args) {
  const OptimizerSettings& s = args.settings;
  const C scale = static_cast<C>(args.grad_scale);
  const C* grad = static_cast<const C*>(args.grad);
  C* value = static_cast<C*>(args.value);
  C* first = static_cast<C*>(args.first);
  C* second = static_cast<C*>(args.second);
  if (s.is_adam) {
    const double t = static_cast<double>(args.step);
    const math::AdamStep<C> step{static_cast<C>(args.lr / (1 - std::pow(s.beta1, t))),
                                 static_cast<C>(1 - s.beta1),
                                 static_cast<C>(s.beta2),
                                 static_cast<C>(1 - s.beta2),
                                 static_cast<C>(std::sqrt(1 - std::pow(s.beta2, t))),
                                 static_cast<C>(s.eps),
                                 static_cast<C>(s.decoupled ? 0.0 : s.weight_decay),
                                 static_cast<C>(s.decoupled ? 1 - args.lr * s.weight_decay : 1.0)};
    DROCC_SIMD()
    for (int64_t i = 0; i < args.count; ++i) {
      math::adam_update(step, scale * grad[i], value + i, first + i, second + i);
    }
    return;
  }
  const math::SgdStep<C> step{static_cast<C>(args.lr), static_cast<C>(s.momentum),
                              static_cast<C>(args.first_velocity ? 1.0 : 1 - s.dampening),
                              static_cast<C>(s.weight_decay), s.nesterov};
  DROCC_SIMD()
  for (int64_t i = 0; i < args.count; ++i) math::sgd_update(step, scale * grad[i], value + i, first + i);
}

template <typename C>
double sum_of_squares(const void* values, int64_t count) {
  const C* all = static_cast<const C*>(values);
  double sum = 0.0;
  DROCC_SIMD(reduction(+ : sum))
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(all[i]) * static_cast<double>(all[i]);
  return sum;
}

}  // namespace

extern const OptimizerKernels optimizer_kernels = {{take_step<float>, take_step<double>},
                                                   {sum_of_squares<float>, sum_of_squares<double>}};

}  // namespace drocc::cpu::DROCC_ISA
