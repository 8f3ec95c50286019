// Torch's CPU generator, from the bytes of its state: normal numbers as `torch.Tensor.normal_` draws them.
#pragma once

#include <cstdint>
#include <optional>

#include "gaussian_kernel.h"

namespace drocc::cpu {

// What `torch.Generator.get_state` gives for the CPU.
constexpr int64_t kGeneratorBytes = 5056;

class Generator {
 public:
  // Fails, in the name of `op`, where the bytes are not those of a seeded generator.
  Generator(const char* op, const uint8_t* state);
  void save(uint8_t* state) const;

  // Fills out with N(0, deviation^2): float to rounding, double bit by bit.
  void normal(float* out, int64_t count, double deviation);
  void normal(double* out, int64_t count, double deviation);

  // One number of `torch.randint(range, ...)`, range < 2^28.
  int64_t below(int64_t range) { return static_cast<int64_t>(word() % static_cast<uint64_t>(range)); }

  // Fills out with what `torch.Tensor.uniform_(low, high)` draws.
  void uniform(float* out, int64_t count, double low, double high);
  void uniform(double* out, int64_t count, double low, double high);

 private:
  double uniform();  // in [0, 1), a multiple of 2^-53
  double next_normal();
  uint32_t word();
  void normal_blocks(double* out, int64_t count, double deviation);

  Mt19937 twister_;
  std::optional<double> second_;  // of a pair whose first number is used
  const NormalRows& rows_;
};

}  // namespace drocc::cpu
