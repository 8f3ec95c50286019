// What the kernels move, counted access by access: bytes of global memory in sectors of 32, against what an operator
// has to move; and passes of shared memory, against what they would be without conflicts between banks.
#include <cstdio>

#include "checks.h"
#include "monitor.h"
#include "suite.h"

namespace tests {
namespace {

struct Line {
  const char* op;
  int64_t batch, length;
  int ideal;     // bytes per element of float32: each operand read once, each result written once
  bool on_chip;  // rows are held, so that they are read once
};

// Of an H200, but for the last: blocks that meet in memory.
constexpr Line kLines[] = {
    {"l2_shell_step_", 256, 6, 12, false},  // not of whole packs: read twice
    {"l2_shell_step_", 256, 8, 12, true},
    {"l2_shell_step_", 16, 784, 12, true},
    {"l2_shell_step_", 8, 3072, 12, true},
    {"l2_shell_step_", 1, 150528, 12, true},
    {"l2_shell_step_", 1, 400000, 12, false},
    {"normalized_ascent", 8, 3072, 12, true},
    {"project_l2_shell_", 8, 3072, 8, true},
    {"project_l2_shell_", 1, 150528, 8, true},
    {"_l2_shell_step_backward", 8, 3072, 20, false},
    {"mahalanobis_shell_step_", 256, 6, 16, true},
    {"mahalanobis_shell_step_", 256, 8, 16, true},
    {"mahalanobis_shell_step_", 8, 784, 16, true},
    {"mahalanobis_shell_step_", 4, 3072, 16, true},
    {"mahalanobis_shell_step_", 1, 150528, 16, true},
    {"project_mahalanobis_shell_", 4, 3072, 12, true},
    {"_mahalanobis_shell_step_backward", 4, 3072, 32, false},
    {"mahalanobis_norm", 4, 3072, 8, false},
    {"influence", 4, 3072, 8, false},
    {"_influence_backward", 4, 3072, 12, false},
};

void count(const Line& line, int device) {
  Case c;
  for (const Operator& op : operators()) {
    if (std::string(op.name) == line.op) c.op = &op;
  }
  if (c.op == nullptr || !is_registered(line.op)) return;
  c.device = device;
  c.sizes = {line.batch, line.length};
  c.rows_have_radii = false;
  c.radius = 0.4 * std::sqrt(static_cast<double>(line.length));
  c.step = c.radius;
  c.seed = static_cast<uint64_t>(line.length);
  Operands operands = make_operands(c);
  // Plain rows only: exceptional ones are read again.
  Random random(c.seed);
  std::normal_distribution<double> normal;
  for (Rows* rows : {&operands.h, &operands.grad, &operands.upstream, &operands.sigma}) {
    for (auto& row : *rows) {
      for (auto& value : row) value = rows == &operands.sigma ? std::exp(normal(random) / 2) : normal(random);
    }
  }
  const Call call = upload(c, operands);
  simt::record = {};
  simt::monitor::traffic = {};
  simt::monitor::count_traffic = true;
  try {
    (void)c.op->call(call);
  } catch (const std::exception& error) {
    CHECK(false, "%s: %s", line.op, error.what());
  }
  simt::monitor::count_traffic = false;
  const simt::monitor::Traffic& t = simt::monitor::traffic;
  const auto elements = static_cast<double>(line.batch * line.length);
  const double read = static_cast<double>(t.read) / elements, written = static_cast<double>(t.written) / elements;
  const double ratio = 32.0 * static_cast<double>(t.sectors) / (elements * line.ideal);
  const double spread = 32.0 * static_cast<double>(t.access_sectors) / static_cast<double>(t.read + t.written);
  const double passes =
      t.shared_ideal == 0 ? 1 : static_cast<double>(t.shared_passes) / static_cast<double>(t.shared_ideal);
  std::printf("| `%s` | %lld x %lld | %d x %d%s | %.2f | %.2f | %d | %.3f | %.2f | %.2f | %.2f |\n", line.op,
              static_cast<long long>(line.batch), static_cast<long long>(line.length), simt::record.most_parts,
              static_cast<int>(simt::record.most_threads),
              simt::record.cluster       ? ", cluster"
              : simt::record.cooperative ? ", cooperative"
                                         : "",
              read, written, line.ideal, ratio, spread, static_cast<double>(t.meetings) / elements, passes);
  CHECK(t.read > 0 && t.written > 0, "%s: nothing was counted", line.op);
  CHECK(!line.on_chip || ratio <= 1.05, "%s [%lld, %lld]: %.3f times what it has to move", line.op,
        static_cast<long long>(line.batch), static_cast<long long>(line.length), ratio);
}

// The search in networks of several layers, a step at a time: what more steps move more, for each block.
// most: kB of each step.
void count_mlp(const MlpShape& shape, double most) {
  if (!is_registered("_mlp_search")) return;
  simt::monitor::Traffic counted[2];
  constexpr int64_t kSteps[] = {1, 5};
  for (int k = 0; k < 2; ++k) {
    Random random(1);
    simt::record = {};
    call_plain_mlp(random, shape, kSteps[k], [] {
      simt::monitor::traffic = {};
      simt::monitor::count_traffic = true;
    });
    simt::monitor::count_traffic = false;
    counted[k] = simt::monitor::traffic;
  }
  std::string widths;
  int64_t weights = 0;
  for (size_t l = 0; l < shape.widths.size(); ++l) {
    widths += (l == 0 ? "" : "-") + std::to_string(shape.widths[l]);
    if (l > 0) weights += shape.widths[l] * shape.widths[l - 1];
  }
  const auto bytes = [](int64_t sectors) { return 32 * static_cast<double>(sectors) / 1000; };
  const double each = bytes(counted[1].sectors - counted[0].sectors) / 4;
  const double passes = static_cast<double>(counted[1].shared_passes) /
                        static_cast<double>(std::max<int64_t>(counted[1].shared_ideal, 1));
  std::printf("| %s | %lld | %d | %.1f | %.1f | %.1f | %.2f |\n", widths.c_str(), static_cast<long long>(shape.batch),
              static_cast<int>(simt::record.most_threads), 4 * static_cast<double>(weights) / 1000,
              bytes(counted[0].sectors) - each, each, passes);
  CHECK(each > 0 && each <= most, "_mlp_search, %s: %.1f kB at each step", widths.c_str(), each);
  CHECK(passes <= 1.05, "_mlp_search, %s: %.2f passes of shared memory", widths.c_str(), passes);
}

}  // namespace

void run_traffic() {
  if constexpr (!simt::monitor::kOn) {
    CHECK(false, "traffic is counted by the instrumented build only");
    return;
  }
  std::printf(
      "| operator, float32 | rows | blocks x threads | read | written | ideal | moved / ideal | spread | meetings | "
      "passes |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Line& line : kLines) count(line, 0);
  count({"l2_shell_step_", 1, 150528, 12, true}, 3);
  count({"mahalanobis_shell_step_", 1, 50000, 16, true}, 3);
  std::printf("\n| `_mlp_search`, float32 | rows | threads | weights, kB | once, kB | each step, kB | passes |\n");
  std::printf("|---|---|---|---|---|---|---|\n");
  // Of held weights nothing is read again; of others, by each of nine blocks, all, forward and back.
  count_mlp({ScalarType::Float, 0, 4, {6, 128, 128}, false}, 3);
  count_mlp({ScalarType::Float, 0, 4, {274, 128, 128}, false}, 8);
  count_mlp({ScalarType::Float, 0, 72, {6, 256, 256, 256}, false}, 1.05 * 9 * 2 * 530.4);
}

}  // namespace tests
