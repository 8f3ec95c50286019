// The search in networks of several layers: its iterates in long double, layer by layer.
#include <cstdio>

#include "checks.h"
#include "suite.h"

namespace tests {
namespace {

using reference::Values;

struct Layer {
  Rows weight;  // [units, inputs]
  Values bias;  // empty: none
  double slope = 0;
};

struct Problem {
  ScalarType type;
  int device;
  std::vector<Layer> layers;
  Values output;
  Rows x, h, sigma, radii;  // sigma: none, one row or all
  double step = 0, radius = 1, gamma = 1.3;
  int64_t num_steps = 5, project_every = 1, grid = 0;
  bool project_last = true, rows_have_radii = false;

  int64_t batch() const { return static_cast<int64_t>(x.size()); }
  int64_t length() const { return static_cast<int64_t>(layers[0].weight[0].size()); }
  std::string describe() const {
    std::string text = "_mlp_search " + std::string(type == ScalarType::Double ? "float64" : "float32") + " B " +
                       std::to_string(batch()) + ", " + std::to_string(length());
    for (const Layer& layer : layers) text += "-" + std::to_string(layer.weight.size());
    return text + ", " + std::to_string(num_steps) + " steps" + (sigma.empty() ? "" : ", with sigma") +
           (grid == 0 ? "" : ", grid " + std::to_string(grid)) + ", on " +
           simt::devices()[static_cast<size_t>(device)].name;
  }
};

Values draw(Random& random, ScalarType type, int64_t count, double size) {
  std::normal_distribution<double> normal;
  Values values(static_cast<size_t>(count));
  for (auto& value : values) value = stored(type, size * normal(random));
  return values;
}

Problem make_problem(Random& random, const MlpShape& shape) {
  const ScalarType type = shape.type;
  Problem p;
  p.type = type, p.device = shape.device;
  const auto chance = [&](uint64_t of) { return random() % of == 0; };
  // Two layers so small that a product of their weights is none in float32; biases keep their units apart from 0.
  const bool tiny = chance(5);
  for (size_t l = 1; l < shape.widths.size(); ++l) {
    Layer layer;
    const double size = (tiny && l <= 2 ? 1e-22 : 1) / std::sqrt(static_cast<double>(shape.widths[l - 1]));
    for (int64_t j = 0; j < shape.widths[l]; ++j) {
      layer.weight.push_back(draw(random, type, shape.widths[l - 1], size));
    }
    if (tiny || !chance(3)) layer.bias = draw(random, type, shape.widths[l], tiny && l == 1 ? 1e-22 : 0.5);
    if (chance(3)) layer.slope = chance(4) ? -0.2 : 0.01 + 0.3 * static_cast<double>(random() % 3);
    p.layers.push_back(layer);
  }
  p.output = draw(random, type, shape.widths.back(), 1);
  if (chance(12)) p.output.assign(p.output.size(), 0);  // nowhere to go
  if (chance(16)) p.output[0] = reference::kNan;
  const double root = std::sqrt(static_cast<double>(shape.widths[0]));
  p.step = 0.2 * root, p.radius = root;
  for (int64_t row = 0; row < shape.batch; ++row) {
    p.x.push_back(draw(random, type, shape.widths[0], 1));
    p.h.push_back(draw(random, type, shape.widths[0], 1));
    Values& h = p.h.back();
    const uint64_t kind = random() % 12;
    if (kind == 0) h.assign(h.size(), 0);
    if (kind == 1) h[random() % h.size()] = reference::kNan;
    if (kind == 2) p.x.back()[random() % h.size()] = chance(2) ? reference::kNan : HUGE_VALL;
    p.radii.push_back({chance(10) ? 0 : stored(type, p.radius * (0.5 + static_cast<double>(random() % 100) / 100))});
  }
  if (shape.with_sigma && shape.batch > 0) {
    const bool one = chance(2);
    for (int64_t row = 0; row < (one ? 1 : shape.batch); ++row) {
      p.sigma.push_back(draw(random, type, shape.widths[0], 1));
      for (auto& value : p.sigma.back()) value = stored(type, std::exp(0.5 * static_cast<double>(value)));
    }
  }
  p.rows_have_radii = chance(2);
  if (chance(3)) p.project_every = 3, p.project_last = chance(2);
  if (chance(8)) p.num_steps = 0;
  p.grid = shape.grid;
  return p;
}

// One layer's pre-activations and, for each, the size of what they are summed from.
void units_of(const Layer& layer, const Values& in, Values& z, Values& size) {
  z.assign(layer.weight.size(), 0), size.assign(layer.weight.size(), 0);
  for (size_t j = 0; j < z.size(); ++j) {
    for (size_t k = 0; k < in.size(); ++k) {
      const reference::Real term = layer.weight[j][k] * in[k];
      z[j] += term, size[j] += std::fabs(term);
    }
    if (!layer.bias.empty()) z[j] += layer.bias[j], size[j] += std::fabs(layer.bias[j]);
  }
}

struct Truth {
  Values h;
  // Whether the result follows from the inputs: no unit so near its edge, and no direction so nearly nothing, that
  // rounding decides.
  bool sure = true;
};

// The gradient of the logit at x + h.
Values gradient(const Problem& p, const Values& at, bool& sure) {
  const long double edge = p.type == ScalarType::Double ? 1e-12L : 1e-5L;
  std::vector<Values> slopes;
  Values in = at, z, size;
  for (const Layer& layer : p.layers) {
    units_of(layer, in, z, size);
    slopes.emplace_back();
    in = z;
    for (size_t j = 0; j < z.size(); ++j) {
      if (std::fabs(z[j]) < edge * size[j]) sure = false;
      slopes.back().push_back(z[j] > 0 ? 1 : layer.slope);
      in[j] *= slopes.back()[j];
    }
  }
  Values back = p.output;
  for (size_t l = p.layers.size(); l-- > 0;) {
    Values next(p.layers[l].weight[0].size(), 0);
    long double terms = 0;
    for (size_t j = 0; j < back.size(); ++j) {
      const long double v = back[j] * slopes[l][j];
      for (size_t k = 0; k < next.size(); ++k) {
        next[k] += v * p.layers[l].weight[j][k];
        terms += v * p.layers[l].weight[j][k] * v * p.layers[l].weight[j][k];
      }
    }
    back = next;
    if (terms > 0 && reference::norm(back) < 1e-2L * std::sqrt(terms)) sure = false;
  }
  return back;
}

Truth iterate(const Problem& p, size_t row, const Values& start) {
  Truth truth{start};
  Values& h = truth.h;
  for (int64_t step = 1; step <= p.num_steps; ++step) {
    Values at = p.x[row];
    for (size_t i = 0; i < at.size(); ++i) at[i] += h[i];
    reference::Row r;
    r.h = h;
    r.grad = gradient(p, at, truth.sure);
    r.radius = p.rows_have_radii ? p.radii[row][0] : stored(p.type, p.radius);
    r.gamma = p.gamma, r.step = p.step, r.grid = p.grid;
    const long double before = reference::norm(h);
    const Values moved = reference::ascend(r);
    if (reference::norm(moved) != 0 && reference::norm(moved) < 0.1L * (before + p.step)) truth.sure = false;
    if (step % p.project_every != 0 && !(p.project_last && step == p.num_steps)) {
      h = moved;
      continue;
    }
    if (!p.sigma.empty()) r.sigma = p.sigma[p.sigma.size() == 1 ? 0 : row];
    const reference::Result result =
        p.sigma.empty() ? reference::l2_forward(r, true) : reference::mahalanobis_forward(r);
    truth.sure = truth.sure && !result.doubtful;
    h = result.values[0];
  }
  return truth;
}

long double distance(const Values& a, const Values& b) {
  long double square = 0;
  for (size_t i = 0; i < a.size(); ++i) square += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(square);
}

// Starts that differ by some roundings must end so near one another that rounding cannot lead elsewhere either.
Truth iterate(const Problem& p, size_t row, long double allowed) {
  Truth truth = iterate(p, row, p.h[row]);
  Values near = p.h[row];
  for (size_t i = 0; i < near.size(); ++i) near[i] *= 1 + (i % 2 == 0 ? 16 : -16) * rounding(p.type);
  const Truth other = iterate(p, row, near);
  truth.sure = truth.sure && other.sure && distance(truth.h, other.h) <= 0.1L * allowed * reference::norm(truth.h);
  return truth;
}

Rows download(const Tensor& t, ScalarType type) {
  Rows rows(static_cast<size_t>(t.size(0)), Values(static_cast<size_t>(t.size(1))));
  for_each_element(t, [&](size_t r, size_t c, const void* at) { rows[r][c] = read(type, at); });
  return rows;
}

// The first layer's units against those at `at`, which is where the row is.
void compare_units(const Problem& p, const char* what, size_t row, const Values& got, const Values& at) {
  Values z, size;
  units_of(p.layers[0], at, z, size);
  const long double allowed = 64 * rounding(p.type);
  for (size_t j = 0; j < z.size(); ++j) {
    CHECK(std::fabs(got[j] - z[j]) <= allowed * size[j] + 1e-37L, "%s: row %zu, %s unit %zu is %Lg, not %Lg",
          p.describe().c_str(), row, what, j, got[j], z[j]);
  }
}

bool is_whole(const Problem& p) {
  bool whole = reference::all_finite(p.output);
  for (const Layer& layer : p.layers) whole = whole && reference::all_finite(layer.bias);
  return whole;
}

void compare(const Problem& p, const Rows& end, const Rows& clean, const Rows& adv, Totals& totals) {
  const long double allowed = p.type == ScalarType::Double ? 1e-12L : 5e-5L;
  for (size_t r = 0; r < p.x.size(); ++r) {
    ++totals.compared;
    const bool finite = reference::all_finite(p.x[r]) && reference::all_finite(p.h[r]) && is_whole(p);
    if (reference::all_finite(p.x[r])) compare_units(p, "clean", r, clean[r], p.x[r]);
    const bool bad_radius = p.rows_have_radii && !(p.radii[r][0] > 0);
    bool projected = false;
    for (int64_t step = 1; step <= p.num_steps; ++step) {
      projected |= step % p.project_every == 0 || (p.project_last && step == p.num_steps);
    }
    if (!finite || (bad_radius && projected)) {
      for (const auto value : end[r]) CHECK(std::isnan(value), "%s: row %zu is not NaN", p.describe().c_str(), r);
      for (const auto value : adv[r]) CHECK(std::isnan(value), "%s: row %zu has units", p.describe().c_str(), r);
      continue;
    }
    CHECK(reference::all_finite(end[r]), "%s: row %zu is not finite", p.describe().c_str(), r);
    Values at = p.x[r];
    for (size_t i = 0; i < at.size(); ++i) at[i] = stored(p.type, at[i] + end[r][i]);
    compare_units(p, "adv", r, adv[r], at);
    const Truth truth = iterate(p, r, allowed);
    if (!truth.sure) {
      ++totals.doubtful;
      continue;
    }
    const long double off = distance(end[r], truth.h), size = reference::norm(truth.h);
    const bool wide = p.type == ScalarType::Double, searched = p.grid > 0 && !p.sigma.empty();
    double& worst = totals.worst[std::string("_mlp_search") + (searched ? "/grid" : "") + (wide ? "/d" : "")];
    worst = std::max(worst, static_cast<double>(off / (allowed * (size + 1e-6L))));
    CHECK(off <= allowed * (size + 1e-6L), "%s: row %zu is off by %Lg of %Lg", p.describe().c_str(), r, off, size);
  }
}

struct Results {
  Tensor h, clean, adv;
};

// before(): after all operands are in device memory.
template <typename Before>
Results call(const Problem& p, const Before& before) {
  const auto up = [&](Rows rows, std::vector<int64_t> sizes) {
    return upload(rows, sizes, p.type, p.device, Layout::kContiguous);
  };
  const auto one = [&](const Values& values) {
    const auto count = static_cast<int64_t>(values.size());
    return Tensor(up({values}, {1, count}), {count}, {1});
  };
  const int64_t length = p.length();
  const Tensor h = up(p.h, {p.batch(), length}), x = up(p.x, {p.batch(), length}), output = one(p.output);
  std::vector<Tensor> weights;
  std::vector<std::optional<Tensor>> biases;
  std::vector<double> slopes;
  int64_t inputs = length;
  for (const Layer& layer : p.layers) {
    const auto units = static_cast<int64_t>(layer.weight.size());
    weights.push_back(up(layer.weight, {units, inputs}));
    biases.push_back(layer.bias.empty() ? std::nullopt : std::optional<Tensor>(one(layer.bias)));
    slopes.push_back(layer.slope);
    inputs = units;
  }
  std::optional<Tensor> radii, sigma;
  if (p.rows_have_radii) radii = up(p.radii, {p.batch()});
  if (p.sigma.size() == 1) sigma = one(p.sigma[0]);
  if (p.sigma.size() > 1) sigma = up(p.sigma, {p.batch(), length});
  using Function = std::tuple<Tensor, Tensor> (*)(const Tensor&, const Tensor&, std::vector<Tensor>,
                                                  std::vector<std::optional<Tensor>>, std::vector<double>,
                                                  const Tensor&, const std::optional<Tensor>&, double, int64_t, int64_t,
                                                  double, const std::optional<Tensor>&, double, int64_t, bool);
  before();
  const auto [clean, adv] =
      function_of<Function>("_mlp_search")(h, x, weights, biases, slopes, output, sigma, p.step, p.num_steps,
                                           p.project_every, p.radius, radii, p.gamma, p.grid, p.project_last);
  return {h, clean, adv};
}

}  // namespace

void call_plain_mlp(Random& random, const MlpShape& shape, int64_t steps, const std::function<void()>& before) {
  Problem p = make_problem(random, shape);
  p.num_steps = steps, p.project_every = 1, p.rows_have_radii = false;
  for (Layer& layer : p.layers) layer.bias.clear();
  for (Layer& layer : p.layers) {
    for (Values& row : layer.weight) row = draw(random, p.type, static_cast<int64_t>(row.size()), 1);
  }
  p.output = draw(random, p.type, static_cast<int64_t>(p.output.size()), 1);
  for (Rows* rows : {&p.h, &p.x}) {
    for (Values& row : *rows) row = draw(random, p.type, p.length(), 1);
  }
  simt::schedule = {simt::Order::kForward, 0};
  (void)call(p, before);
}

void run_mlp(Random& random, const MlpShape& shape, Totals& totals) {
  Problem p = make_problem(random, shape);
  ++totals.cases;
  std::vector<std::vector<unsigned char>> bits[2];
  const uint64_t seed = random();
  try {
    for (int turn = 0; turn < 2; ++turn) {
      simt::schedule = turn == 0 ? simt::Schedule{} : simt::another_schedule(seed);
      simt::record = {};
      const auto [h, clean, adv] = call(p, [] {});
      bits[turn] = {bytes_of(h), bytes_of(clean), bytes_of(adv)};
      totals.several += turn == 0 && simt::record.launches > 2;
      if (turn == 0) compare(p, download(h, p.type), download(clean, p.type), download(adv, p.type), totals);
    }
    CHECK(bits[0] == bits[1], "%s: two schedules, two results", p.describe().c_str());
  } catch (const std::exception& error) {
    CHECK(false, "%s: %s", p.describe().c_str(), error.what());
  }
}

namespace {

MlpShape random_shape(Random& random, ScalarType type, int device, bool large) {
  const int64_t sizes[] = {1, 2, 3, 6, 17, 31, 32, 33, 64, 65, 100};
  MlpShape shape{type, device, static_cast<int64_t>(random() % 6), {}, random() % 4 == 0};
  const auto width = [&] {
    if (large && random() % 4 == 0) return 1 + static_cast<int64_t>(random() % 300);
    return sizes[random() % std::size(sizes)];
  };
  // Of the paper's grid search, which there is with sigma only.
  if (random() % 2 == 0) shape.grid = 2 + static_cast<int64_t>(random() % 30);
  shape.widths.push_back(large && random() % 3 == 0 ? 1 + static_cast<int64_t>(random() % 1000) : width());
  for (uint64_t layers = 1 + random() % 4; layers > 0; --layers) shape.widths.push_back(width());
  return shape;
}

}  // namespace

void run_mlp_cases(Random& random, int device, int count, bool full, Totals& totals) {
  for (int k = 0; k < count; ++k) {
    const ScalarType type = k % 2 == 0 ? ScalarType::Float : ScalarType::Double;
    run_mlp(random, random_shape(random, type, device, full || k % 4 == 3), totals);
  }
  for (const ScalarType type : {ScalarType::Float, ScalarType::Double}) {
    run_mlp(random, {type, device, 9, {1 + static_cast<int64_t>(random() % 40), 33, 5}, true, 11}, totals);
  }
  const simt::DeviceModel& model = simt::devices()[static_cast<size_t>(device)];
  if (!full && model.processors != 4) return;
  // Every placement: many rows beside the weights, weights from the caches with few rows and with many, and rows in
  // device memory, for one launch and for several.
  for (const ScalarType type : {ScalarType::Float, ScalarType::Double}) {
    const int64_t row = model.shared_per_block / (type == ScalarType::Double ? 48 : 24);  // longer than fits
    const int64_t held = model.shared_per_block / (type == ScalarType::Double ? 8 : 4);   // weights, likewise
    run_mlp(random, {type, device, 6 * model.processors + 3, {5, 7, 4}, false}, totals);
    run_mlp(random, {type, device, 3, {held / 64, 65, 9}, random() % 2 == 0}, totals);
    run_mlp(random, {type, device, 2 * model.processors * 2 + 3, {row + 2, 3, 2}, random() % 2 == 0}, totals);
    if (full || type == ScalarType::Float) {
      run_mlp(random, {type, device, 67, {40, 40, held / 40}, random() % 2 == 0}, totals);
    }
  }
}

}  // namespace tests
