// The row programs of the CUDA kernels on the host, by teams of std::threads (one thread up to two blocks of three),
// against the mathematics in double by one thread; and what launch.h must fulfil.
//   ctest --test-dir build -R cuda_rows
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../cuda/influence_kernel.cuh"
#include "../cuda/l2_shell_kernel.cuh"
#include "../cuda/launch.h"
#include "../cuda/mahalanobis_shell_kernel.cuh"
#include "thread_team.h"

namespace {

using namespace drocc;
using namespace drocc::cuda;
using namespace drocc::tests;
using drocc::math::SerialTeam;

constexpr Shape kShapes[] = {{1, 1}, {2, 1}, {4, 1}, {3, 2}, {2, 3}};

// Memory that starts at a multiple of 16 bytes, or `off` elements behind one.
template <typename T>
class Row {
 public:
  Row(size_t n, size_t off) : packs_(n / Pack<T>::kCount + 3), off_(off) {}
  T* data() { return reinterpret_cast<T*>(packs_.data()) + off_; }
  T& operator[](size_t i) { return data()[i]; }

 private:
  std::vector<Pack<T>> packs_;
  size_t off_;
};

enum class Kind { kPlain, kZeroGrad, kTinyGrad, kHugeH, kZeroH, kNan, kCancels, kCount };

template <typename T>
void fill(std::mt19937_64& engine, Kind kind, size_t n, Row<T>& h, Row<T>& grad, Row<T>& sigma) {
  std::normal_distribution<double> normal;
  const bool narrow = sizeof(T) == 2 && std::is_same_v<T, Half>;
  for (size_t i = 0; i < n; ++i) {
    double x = normal(engine), g = normal(engine);
    if (kind == Kind::kZeroGrad) g = 0;
    if (kind == Kind::kTinyGrad) g *= narrow ? 1e-6 : 1e-35;
    if (kind == Kind::kHugeH) x *= narrow ? 1e3 : 1e25;
    if (kind == Kind::kZeroH) x = 0;
    if (kind == Kind::kCancels) x = -0.999 * g;
    using C = Compute<T>;
    from_compute(static_cast<C>(x), &h[i]);
    from_compute(static_cast<C>(g), &grad[i]);
    from_compute(static_cast<C>(std::exp(normal(engine))), &sigma[i]);
  }
  if (kind == Kind::kNan) from_compute(static_cast<Compute<T>>(NAN), &h[n / 2]);
}

// As the truth sees a row: in double, whatever is stored.
struct DoubleRow {
  static constexpr bool kScaled = true;
  const std::vector<double>&d_values, &sigma_values, &grad_values;
  std::vector<double>& out;
  double d(int64_t i) const { return d_values[i]; }
  double h(int64_t i) const { return d_values[i]; }
  double grad(int64_t i) const { return grad_values[i]; }
  double sigma(int64_t i) const { return sigma_values[i]; }
  double upstream(int64_t i) const { return grad_values[i]; }
  void store(int64_t i, double value) const { out[i] = value; }
};

template <typename T>
void compare(const char* what, Row<T>& actual, const std::vector<double>& exact, double size, Shape shape, Kind kind,
             double tolerance) {
  double worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double value = to_compute(actual[i]);
    if (std::isnan(exact[i])) {
      CHECK(std::isnan(value), "%s: %g, not NaN", what, value);
      continue;
    }
    // Both may be rounded, and to different neighbours.
    const double rounding = sizeof(T) == 2 ? (std::is_same_v<T, Half> ? 0x1p-10 : 0x1p-7) * std::fabs(exact[i]) : 0;
    const double error = std::fabs(value - exact[i]) - rounding;
    worst = error > worst || std::isnan(error) ? error : worst;
  }
  CHECK(worst <= tolerance * size, "%s: n %zu, kind %d, %d x %d threads: off by %g of %g", what, exact.size(),
        static_cast<int>(kind), shape.parts, shape.threads, worst, size);
}

template <typename T>
void one_row(std::mt19937_64& engine, size_t n, Kind kind, Shape shape, size_t off, bool on_chip) {
  using C = Compute<T>;
  const double tolerance = sizeof(C) == 4 ? 4e-6 : 1e-13;
  Row<T> h(n, off), grad(n, off), sigma(n, off), out(n, off), second(n, off), third(n, off);
  fill(engine, kind, n, h, grad, sigma);
  const bool aligned = off == 0 && n % Pack<T>::kCount == 0;
  const auto widened = [&](Row<T>& row) {
    std::vector<double> values(n);
    for (size_t i = 0; i < n; ++i) values[i] = to_compute(row[i]);
    return values;
  };
  const auto hs = widened(h), grads = widened(grad), sigmas = widened(sigma);
  std::vector<double> exact(n), moved(n);
  const double step = kind == Kind::kCancels ? std::sqrt(double(n)) : 0.7;
  const double root = std::sqrt(static_cast<double>(n));
  const auto largest = [](const std::vector<double>& values) {
    double most = 0;
    for (const double value : values) most = std::max(most, std::fabs(value));
    return most;
  };
  for (const double factor : {0.2, 0.9, 5.0}) {
    const C radius = static_cast<C>(factor * root);
    const math::Shell shell = math::make_shell(radius, 1.5);

    math::step_row_exact<true, true>(SerialTeam{}, n, DoubleRow{hs, sigmas, grads, exact}, step, shell);
    const L2ShellRowsArgs l2{h.data(), grad.data(), out.data(), 1, int64_t(n), step, radius, nullptr, 1.5};
    by_team<T>(shape, n, on_chip,
               [&](const ThreadTeam& team, int) { l2_shell_row<T, 4, true, true>(team, l2, aligned, 0); });
    // Where the step nearly cancels h, what is left of it is the input's rounding.
    const double slack = kind == Kind::kCancels ? 1e3 : 1;
    compare("step", out, exact, slack * largest(exact), shape, kind, tolerance);

    math::step_row_exact<true, false>(SerialTeam{}, n, DoubleRow{hs, sigmas, grads, moved}, step, shell);
    const MahalanobisRowsArgs m{h.data(),   grad.data(), sigma.data(), 0,       out.data(), 1,
                                int64_t(n), step,        radius,       nullptr, 1.5,        0};
    const DoubleRow solver{moved, sigmas, grads, exact};
    const auto plan = math::plan_projection<double>(SerialTeam{}, n, solver, shell, 0, 1e-9);
    math::write_projection(SerialTeam{}, n, solver, plan);
    // One piece of on-chip memory per block.
    std::vector<std::vector<Pack<C>>> memory(static_cast<size_t>(shape.parts), std::vector<Pack<C>>(n + 16));
    const auto at = [&](int part) { return reinterpret_cast<C*>(memory[static_cast<size_t>(part)].data()); };
    by_team<T>(shape, n, on_chip, [&](const ThreadTeam& team, int part) {
      if (on_chip || kind == Kind::kHugeH) {  // re-read rows of that kind are NaN
        mahalanobis_shell_row<T, true, true>(team, m, aligned && team.part_length() % Pack<C>::kCount == 0, 0,
                                             at(part));
      } else {
        mahalanobis_shell_row<T, true, false>(team, m, aligned, 0, nullptr);
      }
    });
    compare("mahalanobis", out, exact, slack * largest(exact), shape, kind, 4 * tolerance);

    if (kind != Kind::kPlain || sizeof(T) == 2) continue;
    // Derivatives: the same formulas by one thread in the same type.
    Row<T> expected[3] = {{n, off}, {n, off}, {n, off}};
    C expected_radius = 0, got_radius = 0;
    const MahalanobisBackwardArgs one{
        m, grad.data(), expected[0].data(), expected[1].data(), expected[2].data(), &expected_radius};
    const MahalanobisBackwardArgs many{m, grad.data(), out.data(), second.data(), third.data(), &got_radius};
    by_team<T>({1, 1}, n, false, [&](const ThreadTeam& team, int) {
      mahalanobis_shell_backward_row<T, true, false>(team, one, false, 0, nullptr);
    });
    by_team<T>(shape, n, on_chip, [&](const ThreadTeam& team, int part) {
      mahalanobis_shell_backward_row<T, true, true>(team, many, aligned, 0, at(part));
    });
    Row<T>* got[3] = {&out, &second, &third};
    for (int k = 0; k < 3; ++k) {
      const auto values = widened(expected[k]);
      compare("mahalanobis gradient", *got[k], values, 1 + largest(values), shape, kind, 20 * tolerance);
    }
    CHECK(std::fabs(got_radius - expected_radius) <= 20 * tolerance * (1 + std::fabs(expected_radius)),
          "radius %g, not %g", double(got_radius), double(expected_radius));

    const L2ShellBackwardArgs l2_one{l2, grad.data(), expected[0].data(), expected[1].data(), &expected_radius};
    const L2ShellBackwardArgs l2_many{l2, grad.data(), out.data(), second.data(), &got_radius};
    by_team<T>({1, 1}, n, false,
               [&](const ThreadTeam& team, int) { l2_shell_backward_row<T, true, true>(team, l2_one, 0); });
    by_team<T>(shape, n, false,
               [&](const ThreadTeam& team, int) { l2_shell_backward_row<T, true, true>(team, l2_many, 0); });
    for (int k = 0; k < 2; ++k) {
      const auto values = widened(expected[k]);
      compare("l2 gradient", *got[k], values, 1 + largest(values), shape, kind, tolerance);
    }
  }

  math::influence_row<double>(SerialTeam{}, n, DoubleRow{hs, sigmas, grads, exact});
  const InfluenceRowsArgs influence{grad.data(), nullptr, out.data(), 1, int64_t(n)};
  by_team<T>(shape, n, false, [&](const ThreadTeam& team, int) { influence_row<T, false>(team, influence, 0); });
  compare("influence", out, exact, largest(exact), shape, kind, tolerance);

  Row<C> norm(1, 0);
  const MahalanobisRowsArgs m{h.data(), nullptr, sigma.data(), 0, norm.data(), 1, int64_t(n), 0, 1, nullptr, 1, 0};
  by_team<T>(shape, n, false, [&](const ThreadTeam& team, int) { mahalanobis_norm_row<T>(team, m, 0); });
  const double length = math::mahalanobis_norm_row<double>(SerialTeam{}, n, DoubleRow{hs, sigmas, grads, exact});
  CHECK(std::isnan(length) ? std::isnan(norm[0]) : std::fabs(norm[0] - length) <= tolerance * length, "norm %g, not %g",
        double(norm[0]), length);
}

template <typename T>
void rows(uint64_t seed) {
  std::mt19937_64 engine(seed);
  for (const Shape shape : kShapes) {
    for (const size_t n : {1u, 2u, 6u, 16u, 37u, 64u}) {
      for (int kind = 0; kind < static_cast<int>(Kind::kCount); ++kind) {
        const bool fits = n <= static_cast<size_t>(shape.threads * shape.parts * 4 * Pack<T>::kCount);
        one_row<T>(engine, n, static_cast<Kind>(kind), shape, 0, fits);
        if (kind == 0) one_row<T>(engine, n, Kind::kPlain, shape, 1, fits);
        if (kind == 0) one_row<T>(engine, n, Kind::kPlain, shape, 0, false);
      }
    }
  }
}

// Blocks of a launch that one multiprocessor holds at least: with all the registers that the bounds leave a thread, and
// the threads of the smallest architecture. reduce.cuh has 1584 bytes of static memory, the system takes 1024.
int64_t resident(const Device& device, Residency keep, const Launch& l, int stored) {
  const int threads = keep == Residency::kRegisters ? most_tile_threads(l.slots, stored) : kMostSharedThreads;
  const int registers = std::min(255, 65536 / threads / 8 * 8);
  const int by_memory = device.shared_per_processor / (l.shared + 1584 + 1024);
  return std::min({65536 / registers / l.threads(), by_memory, 1536 / l.threads()});
}

void launches() {
  const Device devices[] = {{108, 167936, 166912, 1}, {84, 102400, 101376, 1},  {132, 233472, 232448, 16},
                            {132, 233472, 232448, 8}, {170, 102400, 101376, 8}, {16, 65536, 65536, 1},
                            {4, 102400, 101376, 1}};
  for (const Device& device : devices) {
    for (const Residency keep : {Residency::kRegisters, Residency::kShared, Residency::kNothing}) {
      for (const int stored : {2, 4, 8}) {
        for (const int64_t batch : {1, 256, 65536}) {
          for (int64_t length = 1; length < (int64_t{1} << 31) - (int64_t{1} << 20); length += 1 + length / 7) {
            const int pack = 16 / stored, compute = stored == 8 ? 8 : 4;
            const Launch l = choose_launch(device, keep, batch, length, stored, compute);
            const bool warps = l.threads_per_row % 32 == 0 || (32 % l.threads_per_row == 0 && l.parts == 1);
            const int most = keep == Residency::kRegisters ? most_tile_threads(l.slots, stored) : kMostSharedThreads;
            const bool parts = l.cluster ? l.parts <= device.most_cluster : l.parts <= kMostParts;
            CHECK(warps && l.threads() <= most && l.threads() % 32 == 0 && parts, "%lld", (long long)length);
            CHECK(int64_t{l.part_length} * l.parts >= length, "%lld: not covered", (long long)length);
            CHECK(l.parts == 1 || (l.part_length % pack == 0 && l.rows_per_block == 1 && l.threads_per_row >= 64),
                  "%lld: parts", (long long)length);
            CHECK(l.shared <= device.shared_per_block - 1584, "%lld: %d bytes", (long long)length, l.shared);
            // Blocks that wait for one another must all be there.
            const int64_t at_once = resident(device, keep, l, stored);
            CHECK(at_once >= 1, "%lld: one block does not fit", (long long)length);
            CHECK(l.parts == 1 || l.cluster || l.parts <= at_once * device.processors,
                  "%lld on %d processors: %d blocks of %d threads wait for one another", (long long)length,
                  device.processors, l.parts, l.threads());
            if (keep == Residency::kRegisters && l.on_chip) {
              CHECK(l.part_length <= l.threads_per_row * l.slots * pack, "%lld: does not fit", (long long)length);
            }
            if (keep == Residency::kShared && l.on_chip) {
              CHECK(l.shared >= l.rows_per_block * l.part_length * 2 * compute, "%lld: memory", (long long)length);
            }
          }
        }
      }
    }
  }
  const Device h200{132, 233472, 232448, 16};
  const auto on_h200 = [&](Residency keep, int64_t batch, int64_t length) {
    return choose_launch(h200, keep, batch, length, 4, 4);
  };
  CHECK(on_h200(Residency::kRegisters, 256, 6).regime == Regime::kShort, "6");
  CHECK(on_h200(Residency::kRegisters, 256, 3072).regime == Regime::kMedium, "3072");
  CHECK(on_h200(Residency::kRegisters, 64, 150528).parts == 16 && on_h200(Residency::kRegisters, 64, 150528).on_chip,
        "150528");
  CHECK(on_h200(Residency::kShared, 65536, 3072).regime == Regime::kMedium, "3072");
  CHECK(on_h200(Residency::kShared, 64, 150528).parts == 16 && on_h200(Residency::kShared, 64, 150528).on_chip,
        "150528");
}

}  // namespace

int main() {
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  launches();
  rows<float>(seed);
  rows<double>(seed + 1);
  rows<Half>(seed + 2);
  rows<BFloat16>(seed + 3);
  std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
