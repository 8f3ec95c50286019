// The parts of simt_test.
#pragma once

#include <map>

#include "cases.h"

namespace tests {

struct Totals {
  int64_t cases = 0, compared = 0, doubtful = 0, clusters = 0, cooperative = 0, several = 0;
  std::map<std::string, double> worst;  // error in units of the tolerance
};

// One call under two schedules, and against the reference.
void run(const Case& c, Totals& totals);
void run_hidden(Random& random, ScalarType type, int device, int64_t batch, int64_t length, int64_t hidden,
                Totals& totals);

void run_nearest(Random& random, ScalarType type, int device, int64_t batch, int64_t count, int64_t length,
                 Totals& totals);

struct MlpShape {
  ScalarType type;
  int device;
  int64_t batch;
  std::vector<int64_t> widths;  // of the inputs and of each layer
  bool with_sigma;
  int64_t grid = 0;
};
void run_mlp(Random& random, const MlpShape& shape, Totals& totals);
// One call with rows like any other, no biases; before() after its operands are in device memory.
void call_plain_mlp(Random& random, const MlpShape& shape, int64_t steps, const std::function<void()>& before);
// So many random networks, and on some devices one for each way of placing them.
void run_mlp_cases(Random& random, int device, int count, bool full, Totals& totals);

// Calls whose launches are at the edge of a rule; first of all, since what a launch allows depends on earlier ones.
void run_launch_rules(Random& random, bool full, Totals& totals);

// That the emulator notices: kernels with a mistake each.
void run_self_tests();

// The table of docs/kernels-cuda.md; instrumented builds only.
void run_traffic();

}  // namespace tests
