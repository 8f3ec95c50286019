// The search in hidden space: its iterates in long double, written out over h.
#include <cstdio>

#include "checks.h"
#include "suite.h"

namespace tests {
namespace {

struct Problem {
  ScalarType type;
  int device;
  int64_t batch, length, hidden;
  Rows weight, gram, output, clean, h, u, radii;
  double step = 0, radius = 1, gamma = 1.3;
  int64_t num_steps = 9, project_every = 1;
  bool project_last = true, rows_have_radii = false;
  std::string describe() const {
    return "_hidden_search " + std::string(type == ScalarType::Double ? "float64" : "float32") + " B " +
           std::to_string(batch) + ", D " + std::to_string(length) + ", H " + std::to_string(hidden) + ", " +
           std::to_string(num_steps) + " steps, on " + simt::devices()[static_cast<size_t>(device)].name;
  }
};

Problem make_problem(Random& random, ScalarType type, int device, int64_t batch, int64_t length, int64_t hidden) {
  std::normal_distribution<double> normal;
  const double root = std::sqrt(static_cast<double>(length));
  Problem p{type, device, batch, length, hidden, {}, {}, {}, {}, {}, {}, {}};
  const auto draw = [&](int64_t rows, int64_t columns, double size) {
    Rows all(static_cast<size_t>(rows), reference::Values(static_cast<size_t>(columns)));
    for (auto& row : all) {
      for (auto& value : row) value = stored(type, size * normal(random));
    }
    return all;
  };
  p.weight = draw(hidden, length, 1 / root);
  p.output = draw(1, hidden, 1);
  p.clean = draw(batch, hidden, 1);
  p.h = draw(batch, length, 1);
  p.step = 0.1 * root;
  p.radius = root;
  for (size_t row = 0; row < p.h.size(); ++row) {
    switch (random() % 8) {
      case 0:
        p.h[row].assign(p.h[row].size(), 0);
        break;
      case 1:
        p.clean[row].assign(p.clean[row].size(), -100);  // no unit is on
        break;
      case 2:
        if (random() % 2 == 0) p.h[row][random() % p.h[row].size()] = reference::kNan;
        break;
      default:
        break;
    }
    p.radii.push_back({stored(type, p.radius * (0.5 + static_cast<double>(random() % 100) / 100))});
  }
  p.rows_have_radii = random() % 2 == 0;
  if (random() % 3 == 0) p.project_every = 4, p.project_last = random() % 2 == 0;
  if (random() % 4 == 0) p.num_steps = 70, p.step = 0.01 * root;
  if (random() % 8 == 0) p.num_steps = 0;
  if (random() % 4 == 0) p.radius = 0.15 * root, p.gamma = 1, p.project_every = 3;
  for (const auto& a : p.weight) {
    p.gram.emplace_back();
    for (const auto& b : p.weight) p.gram.back().push_back(stored(type, reference::dot(a, b)));
  }
  for (const auto& h : p.h) {
    p.u.emplace_back();
    for (const auto& w : p.weight) p.u.back().push_back(stored(type, reference::dot(w, h)));
  }
  return p;
}

struct Truth {
  reference::Values h;
  // Whether the result follows from the inputs: no unit came so near its edge that rounding may switch it, and no step
  // so nearly undid h that its direction is rounding's.
  bool sure = true;
};

Truth iterate(const Problem& p, size_t row, const reference::Values& start) {
  Truth truth{start};
  auto& h = truth.h;
  const long double edge = p.type == ScalarType::Double ? 1e-9L : 1e-4L;
  const long double inner = p.rows_have_radii ? p.radii[row][0] : stored(p.type, p.radius), outer = inner * p.gamma;
  for (int64_t step = 1; step <= p.num_steps; ++step) {
    reference::Values grad(h.size(), 0);
    for (size_t j = 0; j < p.weight.size(); ++j) {
      const long double z = p.clean[row][j] + reference::dot(p.weight[j], h);
      truth.sure = truth.sure && !(std::fabs(z) < edge);
      for (size_t i = 0; z > 0 && i < h.size(); ++i) grad[i] += p.output[0][j] * p.weight[j][i];
    }
    const long double size = reference::norm(grad), before = reference::norm(h);
    // Units that nearly cancel one another leave a direction that is rounding's too.
    truth.sure = truth.sure && (size == 0 || size > 1e-2L);
    for (size_t i = 0; i < h.size() && size > 0; ++i) h[i] += p.step * grad[i] / size;
    const long double length = reference::norm(h);
    truth.sure = truth.sure && ((before == 0 && size == 0) || length > 0.1L * (before + p.step));
    if (step % p.project_every != 0 && !(p.project_last && step == p.num_steps)) continue;
    const long double target = length < inner ? inner : length > outer ? outer : length;
    if (length == 0) h[0] = target;
    for (size_t i = 0; i < h.size() && length > 0; ++i) h[i] *= target / length;
  }
  return truth;
}

long double distance(const reference::Values& a, const reference::Values& b) {
  long double square = 0;
  for (size_t i = 0; i < a.size(); ++i) square += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(square);
}

// Where the search ends, and whether starts that differ by some roundings end so near one another that rounding on the
// way cannot lead elsewhere either.
Truth iterate(const Problem& p, size_t row, long double allowed) {
  Truth truth = iterate(p, row, p.h[row]);
  reference::Values near = p.h[row];
  for (size_t i = 0; i < near.size(); ++i) near[i] *= 1 + (i % 2 == 0 ? 16 : -16) * rounding(p.type);
  const Truth other = iterate(p, row, near);
  truth.sure = truth.sure && distance(truth.h, other.h) <= 0.1L * allowed * reference::norm(truth.h);
  return truth;
}

}  // namespace

void run_hidden(Random& random, ScalarType type, int device, int64_t batch, int64_t length, int64_t hidden,
                Totals& totals) {
  Problem p = make_problem(random, type, device, batch, length, hidden);
  ++totals.cases;
  std::vector<std::vector<unsigned char>> bits[2];
  const uint64_t seed = random();
  try {
    for (int turn = 0; turn < 2; ++turn) {
      simt::schedule = turn == 0 ? simt::Schedule{} : simt::another_schedule(seed);
      simt::record = {};
      const auto up = [&](Rows rows, std::vector<int64_t> sizes) {
        return upload(rows, sizes, type, device, Layout::kContiguous);
      };
      const Tensor h = up(p.h, {batch, length}), u = up(p.u, {batch, hidden}), clean = up(p.clean, {batch, hidden}),
                   weight = up(p.weight, {hidden, length}), gram = up(p.gram, {hidden, hidden}),
                   output = Tensor(up(p.output, {1, hidden}), {hidden}, {1});
      std::optional<Tensor> radii;
      if (p.rows_have_radii) radii = up(p.radii, {batch});
      using Function = std::tuple<Tensor, Tensor> (*)(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                      const Tensor&, const Tensor&, double, int64_t, int64_t, double,
                                                      const std::optional<Tensor>&, double, bool);
      const auto [scale, coefficients] =
          function_of<Function>("_hidden_search")(h, u, clean, weight, gram, output, p.step, p.num_steps,
                                                  p.project_every, p.radius, radii, p.gamma, p.project_last);
      bits[turn] = {bytes_of(scale), bytes_of(coefficients), bytes_of(h), bytes_of(u)};
      totals.several += turn == 0 && simt::record.launches > 1;
      if (turn == 1) continue;
      Rows end_h(p.h), end_p(p.clean), end_u(p.u);
      const auto down = [&](const Tensor& t, Rows& rows) {
        for_each_element(t, [&](size_t r, size_t c, const void* at) { rows[r][c] = read(type, at); });
      };
      down(h, end_h);
      down(coefficients, end_p);
      down(u, end_u);
      for (size_t r = 0; r < p.h.size(); ++r) {
        ++totals.compared;
        const long double allowed = type == ScalarType::Double ? 1e-10L : 1e-3L;
        const Truth truth = iterate(p, r, allowed);
        const long double c = read(
            type, static_cast<const char*>(scale.const_data_ptr()) + static_cast<int64_t>(r) * scale.element_size());
        reference::Values end = end_h[r];
        for (size_t j = 0; j < p.weight.size(); ++j) {
          for (size_t i = 0; i < end.size(); ++i) end[i] += end_p[r][j] * p.weight[j][i];
        }
        for (auto& value : end) value *= c;
        if (!reference::all_finite(p.h[r])) {
          CHECK(p.num_steps == 0 || std::isnan(end[0]), "%s: row %zu is not NaN", p.describe().c_str(), r);
          continue;
        }
        CHECK(reference::all_finite(end), "%s: row %zu is not finite", p.describe().c_str(), r);
        if (!truth.sure) {
          ++totals.doubtful;
          continue;
        }
        const long double off = distance(end, truth.h), size = reference::norm(truth.h);
        long double off_u = 0, size_u = 0;
        for (size_t j = 0; j < p.weight.size(); ++j) {
          const long double exact = reference::dot(p.weight[j], truth.h);
          off_u += (end_u[r][j] - exact) * (end_u[r][j] - exact);
          size_u += exact * exact;
        }
        CHECK(off <= allowed * (size + 1e-6L), "%s: row %zu is off by %Lg of %Lg", p.describe().c_str(), r, off, size);
        const long double bound = allowed * allowed * (size_u + size * size);
        CHECK(off_u <= bound, "%s: row %zu: its image is off by %Lg of %Lg", p.describe().c_str(), r, std::sqrt(off_u),
              std::sqrt(size_u));
      }
    }
    CHECK(bits[0] == bits[1], "%s: two schedules, two results", p.describe().c_str());
  } catch (const std::exception& error) {
    CHECK(false, "%s: %s", p.describe().c_str(), error.what());
  }
}

}  // namespace tests
