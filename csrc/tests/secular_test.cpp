// The solver of csrc/math as C++ sees it, in double and in float (which CUDA uses): against bisection in long double.
//   ctest --test-dir build -R secular
#include "../math/mahalanobis_shell.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

namespace {

using drocc::math::SerialTeam;
using drocc::math::Shell;
using drocc::math::Side;

int failures = 0;

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ++failures;                                                        \
      std::printf("%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                          \
      std::printf("\n");                                                 \
    }                                                                    \
  } while (false)

// kScaledRow: as for rows stored in the type of the arithmetic.
template <typename Real, bool kScaledRow>
struct Row {
  static constexpr bool kScaled = kScaledRow;
  const std::vector<Real>& d_values;
  const std::vector<Real>& sigma_values;
  std::vector<Real>& out;
  Real d(int64_t i) const { return d_values[i]; }
  Real sigma(int64_t i) const { return sigma_values[i]; }
  void store(int64_t i, Real value) const { out[i] = value; }
};

template <typename Real>
struct Projected {
  std::vector<Real> x;
  drocc::math::MahalanobisPlan<Real> plan;
};

template <typename Real, bool kScaledRow>
Projected<Real> project(const std::vector<Real>& d, const std::vector<Real>& sigma, Shell shell, int64_t grid = 0) {
  const auto n = static_cast<int64_t>(d.size());
  std::vector<Real> x(d.size(), std::numeric_limits<Real>::quiet_NaN());
  const Row<Real, kScaledRow> row{d, sigma, x};
  const Real enough = sizeof(Real) == 4 ? Real(1e-5) : Real(1e-9);
  const auto plan = drocc::math::plan_projection<Real>(SerialTeam{}, n, row, shell, grid, enough);
  drocc::math::write_projection(SerialTeam{}, n, row, plan);
  return {x, plan};
}

template <typename Real>
long double length(const std::vector<Real>& x, const std::vector<Real>& sigma) {
  long double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum += static_cast<long double>(sigma[i]) * static_cast<long double>(x[i]) * static_cast<long double>(x[i]);
  }
  return sqrtl(sum);
}

// x for the multiplier that brings ||x||_S to `bound`, by bisection over t in long double; d is outside of the shell
// and the row is not of the hard kind.
template <typename Real>
std::vector<long double> exact(const std::vector<Real>& d, const std::vector<Real>& sigma, long double bound) {
  const long double s_max = *std::max_element(sigma.begin(), sigma.end());
  const auto at = [&](long double t) {
    std::vector<long double> x(d.size());
    for (size_t i = 0; i < d.size(); ++i) {
      const long double s = sigma[i];
      x[i] = s == 0 ? static_cast<long double>(d[i]) : d[i] / ((s_max - s) / s_max + t * (s / s_max));
    }
    return x;
  };
  const auto too_long = [&](long double t) {
    const auto x = at(t);
    long double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += static_cast<long double>(sigma[i]) * x[i] * x[i];
    return sqrtl(sum) > bound;
  };
  long double low = 0, high = 1;
  while (too_long(high)) high *= 2;
  for (int step = 0; step < 300; ++step) {
    const long double middle = low > 0 && high / low > 4 ? sqrtl(low * high) : (low + high) / 2;
    (too_long(middle == 0 ? high * 1e-30L : middle) ? low : high) = middle == 0 ? high * 1e-30L : middle;
  }
  return at(high);
}

template <typename Real>
long double distance(const std::vector<Real>& a, const std::vector<long double>& b) {
  long double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return sqrtl(error / size);
}

template <typename Real>
struct Problem {
  std::vector<Real> d, sigma;
};

template <typename Real>
Problem<Real> random_problem(std::mt19937_64& engine, size_t n, double spread) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(-spread, spread);
  Problem<Real> p{std::vector<Real>(n), std::vector<Real>(n)};
  for (size_t i = 0; i < n; ++i) {
    p.d[i] = static_cast<Real>(normal(engine));
    p.sigma[i] = static_cast<Real>(std::exp(uniform(engine)));
  }
  return p;
}

template <typename Real, bool kScaledRow>
void random_rows(uint64_t seed) {
  // One thread sums n float terms one after the other; the threads of a team have a part of them each.
  const long double on_shell = sizeof(Real) == 4 ? 1e-5L : 1e-14L;
  const long double near_solution = sizeof(Real) == 4 ? 1e-5L : 1e-13L;
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<double> exponent(-3, 3);
  for (const size_t n : {2u, 3u, 17u, 784u, 3072u}) {
    for (const double spread : {0.0, 1e-6, 3.0, 18.0}) {
      for (int repeat = 0; repeat < (n > 100 ? 4 : 40); ++repeat) {
        const auto p = random_problem<Real>(engine, n, spread);
        const Real radius = static_cast<Real>(length(p.d, p.sigma) * std::pow(10.0, exponent(engine)));
        const Shell shell{radius, 1.5 * radius};
        const auto result = project<Real, kScaledRow>(p.d, p.sigma, shell);
        const long double before = length(p.d, p.sigma), after = length(result.x, p.sigma);
        const long double target = before < radius ? radius : before > shell.outer ? shell.outer : before;
        CHECK(fabsl(after / target - 1) <= on_shell, "n %zu spread %g: %Lg for %Lg", n, spread, after, target);
        if (result.plan.side == Side::kInside) continue;
        const long double away = distance(result.x, exact(p.d, p.sigma, target));
        CHECK(away <= near_solution, "n %zu spread %g: %Lg from the solution", n, spread, away);
      }
    }
  }
}

// The bisection over k against every k, and what the winner has to fulfil.
template <typename Real, bool kScaledRow>
void grid_rows(uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<double> exponent(-1.5, 1.5);
  int found = 0;
  for (int repeat = 0; repeat < 400; ++repeat) {
    const int64_t points = 2 + static_cast<int64_t>(engine() % 70);
    const auto p = random_problem<Real>(engine, 1 + engine() % 30, 2.0);
    const Real radius = static_cast<Real>(length(p.d, p.sigma) * std::pow(10.0, exponent(engine)));
    const auto plan = project<Real, kScaledRow>(p.d, p.sigma, {radius, radius}, points).plan;
    if (plan.side == Side::kInside) continue;
    const bool near = plan.side == Side::kNear;
    std::vector<Real> none;
    const Row<Real, kScaledRow> row{p.d, p.sigma, none};
    const auto n = static_cast<int64_t>(p.d.size());
    const Real ratio = static_cast<Real>(length(p.d, p.sigma) / radius);
    int64_t last = 0;
    bool doubtful = false;
    for (int64_t k = 1; k < points; ++k) {
      const Real t = drocc::math::secular_grid_point(k, points, ratio, near);
      const Real f = drocc::math::secular_value(SerialTeam{}, n, row, plan.equation, t).f;
      doubtful = doubtful || std::fabs(f - 1) < Real(1e-5);
      if (near ? f >= 1 : f <= 1) last = k;
    }
    if (doubtful) continue;
    CHECK(plan.on_grid == (last > 0), "%lld of %lld", static_cast<long long>(last), static_cast<long long>(points));
    if (!plan.on_grid) continue;
    ++found;
    const Real t = drocc::math::secular_grid_point(last, points, ratio, near);
    CHECK(std::fabs(plan.t / t - 1) < Real(1e-5), "t %g, not %g", double(plan.t), double(t));
  }
  CHECK(found > 100, "only %d rows with a feasible grid point", found);
}

template <typename Real, bool kScaledRow>
void hard_rows() {
  const Real tolerance = sizeof(Real) == 4 ? Real(1e-6) : Real(1e-15);
  const auto near = [&](Real a, double b) { return std::fabs(a - b) <= tolerance * std::max(1.0, std::fabs(b)); };
  // h = 0: the first coordinate of largest sigma takes it all.
  auto x = project<Real, kScaledRow>({0, 0, 0, 0}, {1, 4, 4, 0}, {6, 12}).x;
  CHECK(x[0] == 0 && near(x[1], 3) && x[2] == 0 && x[3] == 0, "%g %g %g", double(x[0]), double(x[1]), double(x[2]));
  // The largest sigma's coordinate is 0: the others go as far as t = 0 brings them, that one takes the rest.
  x = project<Real, kScaledRow>({0, 1, 5}, {1, 0.5, 0}, {2, 4}).x;
  CHECK(near(x[1], 2) && near(x[0], std::sqrt(4 - 0.5 * 4)) && x[2] == 5, "%g %g", double(x[0]), double(x[1]));
  // The same with others that can reach the shell by themselves: no hard case, and the tied coordinate stays 0.
  x = project<Real, kScaledRow>({0, 1}, {1, 0.5}, {1.2, 4}).x;
  CHECK(x[0] == 0 && near(x[1], 1.2 / std::sqrt(0.5)), "%g %g", double(x[0]), double(x[1]));
  // Two tied coordinates below the smallest normal number share it, along the direction they have.
  const Real tiny = std::numeric_limits<Real>::denorm_min();
  const auto shared = project<Real, true>({3 * 4 * tiny, 4 * 4 * tiny}, {2, 2}, {10, 20});
  CHECK(near(shared.x[0], 6 / std::sqrt(2.0)) && near(shared.x[1], 8 / std::sqrt(2.0)), "%g %g", double(shared.x[0]),
        double(shared.x[1]));
}

template <typename Real, bool kScaledRow>
void edge_rows() {
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  const Real infinity = std::numeric_limits<Real>::infinity();
  const auto all_nan = [](const std::vector<Real>& x) {
    return std::all_of(x.begin(), x.end(), [](Real value) { return value != value; });
  };
  using Values = std::vector<Real>;
  CHECK(all_nan(project<Real, kScaledRow>({1, nan}, {1, 1}, {1, 2}).x), "NaN in d");
  CHECK(all_nan(project<Real, kScaledRow>({1, infinity}, {1, 0}, {1, 2}).x), "infinity in d");
  CHECK(all_nan(project<Real, kScaledRow>({1, 1}, {1, nan}, {1, 2}).x), "NaN in sigma");
  CHECK(all_nan(project<Real, kScaledRow>({1, 1}, {1, infinity}, {1, 2}).x), "infinity in sigma");
  CHECK(all_nan(project<Real, kScaledRow>({1, 0}, {1, -1}, {1, 2}).x), "negative sigma");
  CHECK(all_nan(project<Real, kScaledRow>({1, 1}, {0, 0}, {nan, nan}).x), "radius");
  CHECK((project<Real, kScaledRow>({1, -2}, {0, 0}, {5, 6}).x == Values{1, -2}), "all-zero sigma");
  CHECK((project<Real, kScaledRow>({1, -2}, {1, 1}, {2, infinity}).x == Values{1, -2}), "inside");
  CHECK((project<Real, kScaledRow>({}, {}, {2, 3}).x.empty()), "no coordinate");
}

// Rows whose literal recipe fails: maxima that differ in the last bits, and numbers over the whole range of the type.
template <typename Real, bool kScaledRow>
void contrived_rows(uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  const long double on_shell = sizeof(Real) == 4 ? 3e-6L : 1e-13L;
  for (int repeat = 0; repeat < 500; ++repeat) {
    auto p = random_problem<Real>(engine, 8, 1e-3);
    const Real top = Real(1.7);
    for (size_t i = 0; i < 6; ++i) {
      p.sigma[i] = top;
      for (uint64_t ulp = engine() % 4; ulp > 0; --ulp) p.sigma[i] = std::nextafter(p.sigma[i], Real(0));
      p.d[i] = static_cast<Real>(normal(engine) * std::pow(10.0, -double(engine() % 20)));
    }
    const Real scale = static_cast<Real>(std::pow(10.0, double(engine() % 25) - 12));
    for (auto& value : p.sigma) value *= scale;
    const Real radius = static_cast<Real>(length(p.d, p.sigma) * std::pow(10.0, 3 * normal(engine) / 2));
    const auto x = project<Real, kScaledRow>(p.d, p.sigma, {radius, radius}).x;
    const long double after = length(x, p.sigma);
    CHECK(fabsl(after / radius - 1) <= on_shell, "%Lg for %g", after, double(radius));
  }
}

// The gradient of the radius by differences of the solution, for rows up to 1e200 radii long.
void far_gradients() {
  using Values = std::vector<double>;
  for (const double size : {1.0, 1e20, 1e140, 1e154, 1e160, 1e200}) {
    const Values d{3 * size, -2 * size, size}, sigma{1, 2, 0.5}, upstream{0.3, -0.7, 0.2};
    const double radius = 1.5, gamma = 1.25;
    Values out(3);
    struct GradientRow : Row<double, true> {
      const Values& g;
      double upstream(int64_t i) const { return g[static_cast<size_t>(i)]; }
    };
    const GradientRow row{{d, sigma, out}, upstream};
    const auto plan = drocc::math::plan_projection<double>(SerialTeam{}, 3, row, {radius, gamma * radius}, 0, 1e-9);
    const auto gradient = drocc::math::plan_gradient(SerialTeam{}, 3, row, plan, gamma);
    const auto along = [&](long double r) {
      const auto x = exact(d, sigma, gamma * r);
      return x[0] * upstream[0] + x[1] * upstream[1] + x[2] * upstream[2];
    };
    const long double step = 1e-6L;
    const long double expected = (along(radius + step) - along(radius - step)) / (2 * step);
    CHECK(fabsl(gradient.radius - expected) <= 1e-9L, "size %g: %g, not %Lg", size, gradient.radius, expected);
    for (int64_t i = 0; i < 3; ++i) {
      const auto k = static_cast<size_t>(i);
      const auto term = drocc::math::gradient_term(plan, gradient, i, d[k], sigma[k], upstream[k]);
      CHECK(std::isfinite(term.d) && std::isfinite(term.sigma), "size %g: %g %g", size, term.d, term.sigma);
    }
  }
}

template <typename Real, bool kScaledRow>
void all(uint64_t seed) {
  random_rows<Real, kScaledRow>(seed);
  grid_rows<Real, kScaledRow>(seed + 1);
  contrived_rows<Real, kScaledRow>(seed + 2);
  hard_rows<Real, kScaledRow>();
  edge_rows<Real, kScaledRow>();
}

}  // namespace

int main() {
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  all<double, true>(seed);
  all<double, false>(seed);
  all<float, true>(seed);
  far_gradients();
  std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
