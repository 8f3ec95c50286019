// The CUDA kernels on the emulator: every operator, every device model, under two schedules, bit for bit, and against
// the reference in long double.
//   simt_test [--full] [--seed N] [--only TEXT] [--device N] [--cases N] [--part K/N] [--first] [--traffic]
// --cases: per operator, type and device. --part 0/2: one half of the cases, for two processes. --first: ends at the
// first failure.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "checks.h"
#include "suite.h"

namespace tests {
namespace {

struct Options {
  bool full = false;
  uint64_t seed = std::random_device{}();
  std::string only;
  int device = -1;
  int per_group = 0;
  int part = 0;
  int parts = 1;
};

// The largest number of a type, or a little less.
long double largest_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return 65504.0L;
    case ScalarType::BFloat16:
      return 3.3e38L;
    case ScalarType::Float:
      return 3.4e38L;
    default:
      return 1.7e308L;
  }
}

// How far a result may be from the truth, in units of the size it is measured by.
long double tolerance(const Case& c) {
  const bool wide = c.type == ScalarType::Double;
  const bool long_row = c.length() > 100000;
  if (c.op->sums_in_double) return wide ? 2e-13L : 4 * 0x1p-24L;
  long double base = wide ? 4e-14L : 3e-6L;
  if ((c.op->takes & kSigma) != 0) base *= (c.op->takes & kUpstream) != 0 ? 20 : 4;
  return long_row ? 2 * base : base;
}

void compare(const Case& c, const Operands& operands, const std::vector<Tensor>& results, Totals& totals) {
  const long double allowed = tolerance(c);
  for (size_t r = 0; r < operands.rows.size(); ++r) {
    const reference::Result expected = c.op->expected(operands.rows[r]);
    ++totals.compared;
    if (expected.doubtful) {
      ++totals.doubtful;
      continue;
    }
    CHECK(expected.values.size() == results.size(), "%s: %zu results", c.describe().c_str(), results.size());
    for (size_t k = 0; k < results.size(); ++k) {
      const Tensor& t = results[k];
      const reference::Values& exact = expected.values[k];
      const int64_t columns = t.numel() / t.size(0);
      CHECK(columns == static_cast<int64_t>(exact.size()), "%s: result %zu", c.describe().c_str(), k);
      const long double unit = rounding(t.scalar_type());
      long double worst = 0;
      size_t where = 0;
      long double got = 0;
      // One row of the result, wherever its elements lie.
      std::vector<int64_t> sizes = t.sizes();
      sizes[0] = 1;
      const Tensor row(t, sizes, t.strides());
      const auto* first =
          static_cast<const char*>(t.const_data_ptr()) + static_cast<int64_t>(r) * t.stride(0) * t.element_size();
      size_t i = 0;
      torch::stable::for_each_place(row, row, [&](int64_t place, int64_t) {
        const long double value = read(t.scalar_type(), first + place);
        const long double truth = exact[i];
        long double error = 0;
        if (std::isnan(truth) != std::isnan(value)) {
          error = INFINITY;
        } else if (!std::isnan(truth) && std::fabs(truth) < largest_of(t.scalar_type())) {
          const long double least = t.scalar_type() == ScalarType::Half     ? 0x1p-24L
                                    : t.scalar_type() == ScalarType::Double ? 0x1p-1022L
                                                                            : 0x1p-126L;
          const long double slack = 2 * unit * std::fabs(truth) + least + allowed * expected.sizes[k];
          error = std::fabs(value - truth) / slack;
          if (std::isnan(error)) error = INFINITY;
        }
        if (error > worst) worst = error, where = i, got = value;
        ++i;
      });
      const std::string name =
          c.op->name + std::string("/") + std::to_string(k) + (c.type == ScalarType::Double ? "d" : "");
      totals.worst[name] = std::max(totals.worst[name], static_cast<double>(worst));
      CHECK(worst <= 1, "%s: row %zu, result %zu [%zu]: %Lg, not %Lg (size %Lg, radius %Lg)", c.describe().c_str(), r,
            k, where, got, exact[where], expected.sizes[k], operands.rows[r].radius);
    }
  }
}

}  // namespace

void run(const Case& c, Totals& totals) {
  ++totals.cases;
  Operands operands = make_operands(c);
  const bool in_place = (c.op->takes & kInPlace) != 0;
  std::vector<std::vector<unsigned char>> bits[2];
  try {
    for (int turn = 0; turn < 2; ++turn) {
      simt::schedule = turn == 0 ? simt::Schedule{} : simt::another_schedule(c.seed);
      simt::record = {};
      const Call call = upload(c, operands);
      const Tensor* inputs[] = {&call.h, &call.grad, &call.sigma, &call.upstream, &call.upstream_rows};
      std::vector<std::vector<unsigned char>> before;
      for (const Tensor* input : inputs) before.push_back(bytes_of(*input));
      const std::vector<Tensor> results = c.op->call(call);
      for (size_t k = in_place ? 1 : 0; k < before.size(); ++k) {
        CHECK(bytes_of(*inputs[k]) == before[k], "%s: operand %zu was written", c.describe().c_str(), k);
      }
      for (const Tensor& result : results) bits[turn].push_back(bytes_of(result));
      if (turn == 0) {
        compare(c, operands, results, totals);
        totals.clusters += simt::record.cluster;
        totals.cooperative += simt::record.cooperative;
        totals.several += simt::record.launches > 1;
      }
    }
    CHECK(bits[0] == bits[1], "%s: two schedules, two results", c.describe().c_str());
  } catch (const std::exception& error) {
    CHECK(false, "%s: %s", c.describe().c_str(), error.what());
  }
}

namespace {

void run_all(const Options& options, Totals& totals) {
  Random random(options.seed);
  const auto elsewhere = [&](int64_t index) { return index % options.parts != options.part; };
  if (options.only.empty() && options.part == 0) {
    run_launch_rules(random, options.full, totals);
    run_self_tests();
  }
  const int64_t edges[] = {1,   2,   3,   4,   7,   8,   15,  16,  31,  32,  33,   63,   64,   65,  100,
                           127, 128, 129, 255, 256, 257, 511, 512, 513, 784, 1000, 1023, 1024, 1025};
  const ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
  const int per_group = options.per_group > 0 ? options.per_group : options.full ? 18 : 2;
  for (int device = 0; device < static_cast<int>(simt::devices().size()); ++device) {
    if (options.device >= 0 && device != options.device) continue;
    const bool search = options.only != "_mlp_search" && options.only != "_nearest";
    for (int k = 0; is_registered("_hidden_search") && search && k < 8 * per_group; ++k) {
      if (elsewhere(device + k)) continue;
      const ScalarType type = k % 2 == 0 ? ScalarType::Float : ScalarType::Double;
      const int64_t sizes[] = {1, 2, 5, 17, 31, 32, 33, 64, 100};
      const int64_t most_hidden = options.full && k % 16 == 0 ? 700 : 140;
      const int64_t hidden = k % 3 == 0 ? 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(most_hidden))
                                        : sizes[random() % std::size(sizes)];
      run_hidden(random, type, device, static_cast<int64_t>(random() % (k % 8 == 0 ? 40 : 6)),
                 sizes[random() % std::size(sizes)], hidden, totals);
    }
    if (is_registered("_mlp_search") && !elsewhere(device) && (options.only.empty() || options.only == "_mlp_search")) {
      run_mlp_cases(random, device, 4 * per_group, options.full, totals);
    }
    const bool nearest = options.only.empty() || options.only == "_nearest";
    for (int k = 0; is_registered("_nearest") && nearest && k < 4 * per_group; ++k) {
      if (elsewhere(device + k)) continue;
      const int64_t longest = options.full && k % 16 == 0 ? 60000 : k % 8 == 0 ? 3000 : 300;
      run_nearest(random, types[static_cast<size_t>(k) % std::size(types)], device, static_cast<int64_t>(random() % 6),
                  1 + static_cast<int64_t>(random() % 20),
                  1 + static_cast<int64_t>(random() % static_cast<uint64_t>(longest)), totals);
    }
    int group = device;
    for (const Operator& op : operators()) {
      if (!is_registered(op.name)) continue;
      for (const ScalarType type : types) {
        ++group;
        const std::vector<int64_t> near = limits(op, type, device, options.full ? 700000 : 20000);
        for (int k = 0; k < per_group; ++k) {
          if (elsewhere(group + k)) continue;
          const uint64_t which = random() % 20;
          int64_t length = edges[random() % std::size(edges)];
          if (which < 4) length = 1 + static_cast<int64_t>(random() % 1200);
          if (which >= 14 && !near.empty()) length = near[random() % near.size()] + static_cast<int64_t>(random() % 3);
          if (which == 13) length = 2000 + static_cast<int64_t>(random() % (options.full ? 60000 : 8000));
          if (which == 12 && options.full) length = 150528;
          // Of every third group one is sure to have the last of these kinds: parts, where rows have them.
          const bool last = !options.full && k == 0 && group % 3 == 0 && !near.empty();
          if (last) length = near.back() + 1 + static_cast<int64_t>(random() % 3);
          const Case c = random_case(random, op, type, device, length, options.full ? 60000 : 12000);
          if (!options.only.empty() && c.describe().find(options.only) == std::string::npos) continue;
          run(c, totals);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tests

int main(int argc, char** argv) {
  using namespace tests;
  Options options;
  for (int k = 1; k < argc; ++k) {
    const std::string name = argv[k];
    const auto value = [&] { return k + 1 < argc ? argv[++k] : ""; };
    if (name == "--full") {
      options.full = true;
    } else if (name == "--traffic") {
      run_traffic();
      std::printf("%d checks failed\n", failures);
      return failures == 0 ? 0 : 1;
    } else if (name == "--first") {
      stop_at_first = true;
    } else if (name == "--seed") {
      options.seed = std::strtoull(value(), nullptr, 10);
    } else if (name == "--only") {
      options.only = value();
    } else if (name == "--device") {
      options.device = std::atoi(value());
    } else if (name == "--cases") {
      options.per_group = std::atoi(value());
    } else if (name == "--part") {
      if (std::sscanf(value(), "%d/%d", &options.part, &options.parts) != 2 || options.part < 0 ||
          options.part >= options.parts) {
        std::printf("--part: 0/2 or 1/2, for instance\n");
        return 2;
      }
    } else {
      std::printf("unknown: %s\n", name.c_str());
      return 2;
    }
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  simt::report_crashes();
  std::printf("seed %llu\n", static_cast<unsigned long long>(options.seed));
  const auto start = std::clock();
  Totals totals;
  run_all(options, totals);
  if (options.only.empty() && options.device < 0 && is_registered("mahalanobis_shell_step")) {
    CHECK(totals.clusters > 0 && totals.cooperative > 0 && totals.several > 0, "a way of launching was not seen");
    CHECK(4 * totals.doubtful < totals.compared, "few rows are compared");
  }
  for (const auto& [name, worst] : totals.worst) std::printf("  %-44s %.3f\n", name.c_str(), worst);
  std::printf(
      "%lld cases, %lld rows (%lld decided by rounding), with clusters %lld, cooperative %lld, in several launches "
      "%lld; %.0f s\n",
      static_cast<long long>(totals.cases), static_cast<long long>(totals.compared),
      static_cast<long long>(totals.doubtful), static_cast<long long>(totals.clusters),
      static_cast<long long>(totals.cooperative), static_cast<long long>(totals.several),
      double(std::clock() - start) / CLOCKS_PER_SEC);
  std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
