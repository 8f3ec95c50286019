// Random calls of an operator: shapes around the limits of launch.h, layouts, rows of many kinds.
#pragma once

#include "../../cuda/launch.h"
#include "operators.h"

namespace tests {

enum class Kind {
  kPlain,
  kZeroGrad,
  kTinyGrad,
  kHuge,
  kTiny,
  kZeroH,
  kNan,
  kInfinity,
  kCancels,
  kNegativeSigma,
  kZeroSigma,
  kSomeZeroSigma,
  kEqualSigma,
  kWideSigma,
  kHard,
  kBadRadius,
  kCount
};

struct Case {
  const Operator* op = nullptr;
  int device = 0;
  ScalarType type = ScalarType::Float;
  std::vector<int64_t> sizes;
  Layout h = Layout::kContiguous, grad = Layout::kContiguous, sigma = Layout::kContiguous,
         upstream = Layout::kContiguous;
  bool shared_sigma = false, rows_have_radii = false;
  double step = 0.7, gamma = 1.5, radius = 1;
  int64_t grid = 0;
  uint64_t seed = 0;
  int64_t batch() const { return sizes[0]; }
  int64_t length() const;
  std::string describe() const;
};

using Random = std::mt19937_64;

// Lengths at which launch.h changes its mind for this operator, type and device, up to `most`.
std::vector<int64_t> limits(const Operator& op, ScalarType type, int device, int64_t most);

// most_elements bounds the size of the call.
Case random_case(Random& random, const Operator& op, ScalarType type, int device, int64_t length,
                 int64_t most_elements);

// The rows' operands, rounded to what is stored.
struct Operands {
  Rows h, grad, sigma, upstream, upstream_rows, radii;
  std::vector<reference::Row> rows;
};
Operands make_operands(const Case& c);
Call upload(const Case& c, Operands& operands);

}  // namespace tests
