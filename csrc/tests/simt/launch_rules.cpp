// Launches at the edge of CUDA's rules.
#include "checks.h"
#include "suite.h"

namespace tests {
namespace {

Case plain(const char* name, ScalarType type, int device, int64_t batch, int64_t length) {
  Case c;
  for (const Operator& op : operators()) {
    if (std::string(op.name) == name) c.op = &op;
  }
  c.device = device;
  c.type = type;
  c.sizes = {batch, length};
  c.rows_have_radii = true;
  c.seed = static_cast<uint64_t>(length);
  return c;
}

// The limit without an attribute, 48 KiB, counts the kernel's static memory too.
void shared_memory(Random& random, Totals& totals) {
  if (is_registered("project_mahalanobis_shell")) {
    run(plain("project_mahalanobis_shell", ScalarType::Double, 0, 2, 3072), totals);
    run(plain("mahalanobis_shell_step", ScalarType::Float, 1, 2, 5999), totals);
    run(plain("mahalanobis_shell_step", ScalarType::BFloat16, 3, 1, 6100), totals);
  }
  if (is_registered("_hidden_search")) {
    run_hidden(random, ScalarType::Float, 0, 1, 4, 1200, totals);
    run_hidden(random, ScalarType::Double, 2, 1, 4, 675, totals);
  }
}

// Between any two calls of the runtime another host thread may launch the same kernel with less memory.
void other_host_threads(Totals& totals) {
  if (!is_registered("mahalanobis_shell_step")) return;
  for (const char* call :
       {"cudaFuncSetAttribute", "cudaOccupancyMaxActiveBlocksPerMultiprocessor", "cudaLaunchKernelEx"}) {
    for (const int device : {0, 3}) {
      for (const int64_t length : {8000, 20000}) {
        const Case smaller =
            plain("mahalanobis_shell_step", ScalarType::Float, device, 1, length == 8000 ? 6200 : 15000);
        const Case larger = plain("mahalanobis_shell_step", ScalarType::Float, device, 1, length);
        simt::on_runtime_call = [&](const char* name) {
          if (std::string(name) == call) run(smaller, totals);
        };
        run(larger, totals);
        simt::on_runtime_call = nullptr;
      }
    }
  }
}

// Blocks that meet in memory must be resident together.
void residency(bool full, Totals& totals) {
  constexpr int kSmall = 5;  // 4 processors
  if (is_registered("l2_shell_step")) {
    run(plain("l2_shell_step", ScalarType::Float, kSmall, 3, 90000), totals);
    if (full) run(plain("l2_shell_step", ScalarType::Double, 3, 1, 600000), totals);
  }
  if (!is_registered("mahalanobis_shell_step")) return;
  for (const ScalarType type : {ScalarType::Float, ScalarType::Double}) {
    run(plain("mahalanobis_shell_step", type, kSmall, 2, type == ScalarType::Float ? 40000 : 22000), totals);
  }
  run(plain("_project_mahalanobis_shell_backward", ScalarType::Half, kSmall, 3, 40000), totals);
  // Longer than the device holds: read again.
  run(plain("mahalanobis_shell_step", ScalarType::Float, kSmall, 1, 60000), totals);
  if (!full) return;
  run(plain("mahalanobis_shell_step", ScalarType::Float, kSmall, 1, 150528), totals);
  run(plain("mahalanobis_shell_step", ScalarType::Float, 3, 1, 500000), totals);
  run(plain("project_mahalanobis_shell", ScalarType::Double, 3, 1, 300000), totals);
  run(plain("mahalanobis_shell_step", ScalarType::Float, 2, 1, 1000000), totals);
}

// Parts of rows: in clusters of 8 and of 16, which have to be asked for, and in blocks that meet in memory. The last
// part is shorter.
void parts(Totals& totals) {
  for (const char* name : {"influence", "_influence_backward", "_l2_shell_step_backward", "mahalanobis_norm"}) {
    if (!is_registered(name)) continue;
    for (const auto& [device, length] : {std::pair{0, 32771}, {0, 65543}, {1, 65543}, {5, 32771}}) {
      run(plain(name, ScalarType::Float, device, 2, length), totals);
    }
  }
  if (is_registered("l2_shell_step")) run(plain("l2_shell_step", ScalarType::Float, 0, 1, 81941), totals);
}

}  // namespace

void run_launch_rules(Random& random, bool full, Totals& totals) {
  shared_memory(random, totals);
  other_host_threads(totals);
  residency(full, totals);
  parts(totals);
}

}  // namespace tests
