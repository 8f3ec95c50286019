// The operators under test: how each is called and what it should give. A new operator is one entry of the table.
#pragma once

#include <functional>

#include "../../cuda/launch.h"
#include "operand.h"

namespace tests {

// The operands of one call; what an operator does not take is not read.
struct Call {
  Tensor h, grad, sigma, upstream, upstream_rows;
  std::optional<Tensor> radius_rows;
  double radius = 1, gamma = 1, step = 0;
  int64_t grid = 0;
};

enum Takes : unsigned { kH = 1, kGrad = 2, kSigma = 4, kUpstream = 8, kUpstreamRows = 16, kShell = 32, kInPlace = 64 };

struct Operator {
  const char* name;
  unsigned takes;
  bool sums_in_double;           // its accuracy is that of its result's type
  drocc::cuda::Residency keeps;  // as its launch says
  std::function<std::vector<Tensor>(const Call&)> call;
  std::function<reference::Result(const reference::Row&)> expected;
};

// Those that the library registers; the table below is for all.
const std::vector<Operator>& operators();
bool is_registered(const std::string& name);

template <typename Function>
Function function_of(const char* name) {
  return std::any_cast<Function>(torch::stable::Library::table().at(name));
}

}  // namespace tests
