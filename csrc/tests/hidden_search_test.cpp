// The search in hidden space by teams of threads, as the CUDA kernel runs it, and by one thread, as the CPU does,
// against the iteration written out over h.
//   ctest --test-dir build -R hidden_search
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../cuda/hidden_search_kernel.cuh"
#include "thread_team.h"

namespace {

using namespace drocc;
using namespace drocc::tests;

constexpr Shape kShapes[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}};

enum class Kind { kPlain, kProjectsSeldom, kFromOrigin, kCancels, kNoUnitOn, kNan, kManySteps, kInwards, kCount };

struct Problem {
  size_t length, hidden;
  std::vector<double> weight, gram, output, clean, h, u;
  double step_size, radius, gamma;
  int64_t num_steps, project_every;
  bool project_last;
};

Problem problem(std::mt19937_64& engine, Kind kind, size_t length, size_t hidden) {
  std::normal_distribution<double> normal;
  const auto draw = [&](size_t n, double size) {
    std::vector<double> values(n);
    for (double& value : values) value = size * normal(engine);
    return values;
  };
  const double root = std::sqrt(static_cast<double>(length));
  Problem p{length,
            hidden,
            draw(hidden * length, 1 / root),
            {},
            draw(hidden, 1),
            draw(hidden, 1),
            draw(length, 1),
            {},
            0.1 * root,
            root,
            1.3,
            9,
            1,
            true};
  switch (kind) {
    case Kind::kProjectsSeldom:
      p.project_every = 4;
      p.project_last = false;
      break;
    case Kind::kFromOrigin:
      for (double& x : p.h) x = 0;
      break;
    case Kind::kCancels:  // one linear function, and a step that nearly undoes h
      for (double& x : p.clean) x = 100;
      for (size_t i = 0; i < length; ++i) {
        p.h[i] = 0;
        for (size_t j = 0; j < hidden; ++j) p.h[i] -= p.output[j] * p.weight[j * length + i];
      }
      p.step_size = 0;
      for (const double x : p.h) p.step_size += x * x;
      p.step_size = 1.0001 * std::sqrt(p.step_size);
      break;
    case Kind::kNoUnitOn:
      for (double& x : p.clean) x = -100;
      break;
    case Kind::kNan:
      p.h[length / 2] = NAN;
      break;
    case Kind::kManySteps:
      p.num_steps = 70;
      p.step_size = 0.01 * root;
      break;
    case Kind::kInwards:
      p.radius = 0.15 * root;
      p.gamma = 1;
      p.project_every = 3;
      break;
    default:
      break;
  }
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (size_t i = 0; i < length; ++i) sum += a[i] * b[i];
    return sum;
  };
  for (size_t j = 0; j < hidden; ++j) {
    p.u.push_back(dot(&p.weight[j * length], p.h.data()));
    for (size_t k = 0; k < hidden; ++k) p.gram.push_back(dot(&p.weight[j * length], &p.weight[k * length]));
  }
  return p;
}

struct Truth {
  std::vector<double> h;
  bool sure;  // no unit came so near its edge that rounding may switch it
};

Truth iterate(const Problem& p) {
  Truth result{p.h, true};
  std::vector<double>& h = result.h;
  for (int64_t step = 1; step <= p.num_steps; ++step) {
    std::vector<double> grad(p.length);
    for (size_t j = 0; j < p.hidden; ++j) {
      double z = p.clean[j];
      for (size_t i = 0; i < p.length; ++i) z += p.weight[j * p.length + i] * h[i];
      result.sure = result.sure && !(std::fabs(z) < 1e-6);
      for (size_t i = 0; z > 0 && i < p.length; ++i) grad[i] += p.output[j] * p.weight[j * p.length + i];
    }
    double size = 0;
    for (const double g : grad) size += g * g;
    size = std::sqrt(size);
    double norm = 0;
    for (size_t i = 0; i < p.length; ++i) {
      if (size > 0) h[i] += p.step_size * grad[i] / size;
      norm += h[i] * h[i];
    }
    norm = std::sqrt(norm);
    if (step % p.project_every != 0 && !(p.project_last && step == p.num_steps)) continue;
    const double target = norm < p.radius ? p.radius : norm > p.gamma * p.radius ? p.gamma * p.radius : norm;
    if (norm == 0) h[0] = target;  // as the operators do
    for (size_t i = 0; norm > 0 && i < p.length; ++i) h[i] *= target / norm;
  }
  return result;
}

// Where the search in C by a team ends.
template <typename C>
std::vector<double> search(const Problem& p, Shape shape) {
  const auto narrowed = [](const std::vector<double>& values) { return std::vector<C>(values.begin(), values.end()); };
  std::vector<C> weight = narrowed(p.weight), gram = narrowed(p.gram), output = narrowed(p.output);
  std::vector<C> clean = narrowed(p.clean), h = narrowed(p.h), u = narrowed(p.u), coefficients(p.hidden, C(NAN));
  C scale = C(NAN);
  const HiddenSearchArgs args{h.data(),
                              u.data(),
                              clean.data(),
                              weight.data(),
                              gram.data(),
                              output.data(),
                              coefficients.data(),
                              &scale,
                              1,
                              int64_t(p.length),
                              int64_t(p.hidden),
                              p.step_size,
                              p.num_steps,
                              p.project_every,
                              p.project_last,
                              p.radius,
                              nullptr,
                              p.gamma};
  std::vector<double> memory(static_cast<size_t>(hidden_bytes(args.hidden, sizeof(C))) / sizeof(double) + 1);
  by_team<C>(shape, std::max(args.length, args.hidden), true,
             [&](const ThreadTeam& team, int) { hidden_search_row<C>(team, args, 0, memory.data()); });
  std::vector<double> end(p.length);
  for (size_t i = 0; i < p.length; ++i) {
    double sum = h[i];
    for (size_t j = 0; j < p.hidden; ++j) sum += static_cast<double>(coefficients[j]) * p.weight[j * p.length + i];
    end[i] = static_cast<double>(scale) * sum;
  }
  return end;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double off = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    off += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return size > 0 ? std::sqrt(off / size) : std::sqrt(off);
}

void compare(std::mt19937_64& engine, Kind kind, size_t length, size_t hidden, int& sure) {
  const Problem p = problem(engine, kind, length, hidden);
  const Truth truth = iterate(p);
  for (const Shape shape : kShapes) {
    const auto wide = search<double>(p, shape), narrow = search<float>(p, shape);
    const int k = static_cast<int>(kind), n = static_cast<int>(length), m = static_cast<int>(hidden);
    if (kind == Kind::kNan) {
      CHECK(std::isnan(wide[0]) && std::isnan(narrow[0]), "kind %d, %d inputs, %d units", k, n, m);
    } else if (truth.sure) {
      // Steps that cancel h magnify rounding; so do one input's units, whose gradients cancel one another.
      const double slack = kind == Kind::kCancels ? 1e5 : length == 1 ? 1e3 : 1;
      CHECK(distance(wide, truth.h) <= 1e-10 * slack, "kind %d, %d inputs, %d units, %d threads: off by %g", k, n, m,
            shape.threads, distance(wide, truth.h));
      double norm = 0;
      for (const double x : narrow) norm += x * x;
      norm = std::sqrt(norm);
      // In float rounding may switch a unit, but the search ends in the shell.
      const bool held = !p.project_last || (norm > p.radius * (1 - 1e-3) && norm < p.radius * p.gamma * (1 + 1e-3));
      CHECK(length == 1 || (held && std::isfinite(norm)), "kind %d, %d inputs, %d units: float ends at norm %g", k, n,
            m, norm);
    }
  }
  sure += truth.sure ? 1 : 0;
}

void launches() {
  const drocc::cuda::Device devices[] = {
      {108, 167936, 166912, 1}, {84, 102400, 101376, 1}, {132, 233472, 232448, 16}, {16, 65536, 65536, 1}};
  for (const auto& device : devices) {
    for (const int compute : {4, 8}) {
      for (const int64_t batch : {1, 256, 65536}) {
        for (int64_t hidden = 1; hidden < 100000; hidden += 1 + hidden / 5) {
          const Launch l = choose_hidden_launch(device, batch, 3072, hidden, compute);
          CHECK(l.threads_per_row % 32 == 0 && l.threads() <= kMostSharedThreads && l.parts == 1, "%d", int(hidden));
          CHECK(l.part_length >= hidden && l.part_length >= 3072, "%d: not covered", int(hidden));
          CHECK(l.shared <= device.shared_per_block, "%d: %d bytes", int(hidden), l.shared);
          CHECK(!l.on_chip || l.shared >= l.rows_per_block * hidden_bytes(hidden, compute), "%d", int(hidden));
        }
      }
    }
  }
}

}  // namespace

int main() {
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 engine(seed);
  launches();
  int sure = 0, all = 0;
  for (int round = 0; round < 3; ++round) {
    for (const size_t length : {1u, 5u, 40u}) {
      for (const size_t hidden : {1u, 3u, 17u, 33u}) {
        for (int kind = 0; kind < static_cast<int>(Kind::kCount); ++kind, ++all) {
          compare(engine, static_cast<Kind>(kind), length, hidden, sure);
        }
      }
    }
  }
  CHECK(2 * sure > all, "only %d of %d rows were compared", sure, all);
  std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
