#include "cases.h"

#include <set>

namespace tests {

int64_t Case::length() const {
  int64_t length = 1;
  for (size_t d = 1; d < sizes.size(); ++d) length *= sizes[d];
  return length;
}

std::string Case::describe() const {
  const char* const name = type == ScalarType::Double     ? "float64"
                           : type == ScalarType::Float    ? "float32"
                           : type == ScalarType::BFloat16 ? "bfloat16"
                                                          : "float16";
  std::string text = std::string(op->name) + " " + name + " [";
  for (const int64_t size : sizes) text += std::to_string(size) + " ";
  text.back() = ']';
  text += " on " + std::string(simt::devices()[static_cast<size_t>(device)].name) + ", layouts";
  for (const Layout layout : {h, grad, sigma, upstream}) text += " " + std::to_string(static_cast<int>(layout));
  return text + (shared_sigma ? ", shared sigma" : "") + (rows_have_radii ? ", radii" : "") + ", step " +
         std::to_string(step) + ", gamma " + std::to_string(gamma) + ", grid " + std::to_string(grid) + ", seed " +
         std::to_string(seed);
}

std::vector<int64_t> limits(const Operator& op, ScalarType type, int device, int64_t most) {
  const simt::DeviceModel& model = simt::devices()[static_cast<size_t>(device)];
  const drocc::cuda::Device of{model.processors, model.shared_per_processor, model.shared_per_block,
                               model.most_cluster};
  const int stored = static_cast<int>(torch::stable::size_of(type));
  const auto key = [&](int64_t length) {
    const auto l = drocc::cuda::choose_launch(of, op.keeps, 2, length, stored, stored == 8 ? 8 : 4);
    return std::make_tuple(static_cast<int>(l.regime), l.slots, l.parts > 1, l.on_chip, l.parts <= 8);
  };
  std::vector<int64_t> found;
  for (int64_t low = 1; low < most;) {
    int64_t high = std::min(most, low + low / 8 + 1);
    const int64_t next = high;
    if (key(low) != key(high)) {
      while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (key(middle) == key(low) ? low : high) = middle;
      }
      found.push_back(low);  // the last of one kind
    }
    low = next;
  }
  return found;
}

Case random_case(Random& random, const Operator& op, ScalarType type, int device, int64_t length,
                 int64_t most_elements) {
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  Case c;
  c.op = &op;
  c.type = type;
  c.device = device;
  c.seed = random();
  const int64_t most_rows = std::max<int64_t>(1, std::min<int64_t>(40, most_elements / length));
  const int64_t batch = below(40) == 0 ? 0 : 1 + below(most_rows);
  c.sizes = {batch, length};
  const auto layout = [&](bool writes) {
    const auto any = static_cast<Layout>(below(static_cast<int64_t>(Layout::kCount)));
    return below(2) == 0 || (writes && any == Layout::kExpanded) ? Layout::kContiguous : any;
  };
  c.h = layout((op.takes & kInPlace) != 0);
  c.grad = layout(false);
  c.sigma = layout(false);
  c.upstream = layout(false);
  const bool folded = c.h == Layout::kChannelsLast || c.grad == Layout::kChannelsLast || below(8) == 0;
  if (folded) {
    const int64_t channels = length % 3 == 0 ? 3 : length % 2 == 0 ? 2 : 1;
    const int64_t height = length / channels % 5 == 0 ? 5 : length / channels % 2 == 0 ? 2 : 1;
    c.sizes = {batch, channels, height, length / channels / height};
  }
  // A shared row of sigma has no batch to lay out.
  c.shared_sigma = (op.takes & kSigma) != 0 && below(3) == 0;
  c.rows_have_radii = below(2) == 0;
  const double gammas[] = {1.5, 1.5, 1.0, 3.0, std::numeric_limits<double>::infinity()};
  c.gamma = gammas[below(5)];
  const double root = std::sqrt(static_cast<double>(length));
  const double factors[] = {0.15, 0.45, 0.8, 1.7, 6.0};
  c.radius = factors[below(5)] * root;
  c.step = below(8) == 0 ? 0 : 0.3 * root;
  if ((op.takes & kSigma) != 0 && below(5) == 0) c.grid = 2 + below(70);
  if (type == ScalarType::Half && length > 50000) c.radius = std::min(c.radius, 300.0);
  return c;
}

namespace {

Kind random_kind(Random& random, const Case& c) {
  if (random() % 2 == 0) return Kind::kPlain;
  auto kind = static_cast<Kind>(random() % static_cast<uint64_t>(Kind::kCount));
  const bool shell = (c.op->takes & kShell) != 0;
  if (kind == Kind::kBadRadius && !(shell && c.rows_have_radii)) return Kind::kPlain;
  // A radius for all rows would be 1e15 times off, where rows that are read again may become NaN.
  const bool sized = kind == Kind::kHuge || kind == Kind::kTiny;
  if (sized && (c.op->takes & kSigma) != 0 && shell && !c.rows_have_radii) return Kind::kPlain;
  const bool of_sigma = kind >= Kind::kNegativeSigma && kind <= Kind::kHard;
  if (of_sigma && (c.op->takes & kSigma) == 0) return Kind::kPlain;
  // The gradients of a row that a step undoes are rounding's.
  if (kind == Kind::kCancels && (c.op->takes & kUpstream) != 0) return Kind::kPlain;
  return kind;
}

}  // namespace

Operands make_operands(const Case& c) {
  Random random(c.seed);
  std::normal_distribution<double> normal;
  const auto batch = static_cast<size_t>(c.batch()), n = static_cast<size_t>(c.length());
  const bool narrow = c.type == ScalarType::Half, wide = c.type == ScalarType::Double;
  Operands o;
  const auto draw = [&](double size) {
    reference::Values values(n);
    for (auto& value : values) value = size * normal(random);
    return values;
  };
  std::vector<Kind> kinds(batch);
  for (size_t r = 0; r < batch; ++r) {
    const Kind kind = kinds[r] = random_kind(random, c);
    double h = 1, g = 1;
    if (kind == Kind::kHuge) h = narrow ? 1e2 : wide ? 1e100 : 1e16;
    if (kind == Kind::kTiny) h = narrow ? 1e-2 : wide ? 1e-100 : 1e-16;
    if (kind == Kind::kTinyGrad) g = narrow ? 1e-5 : wide ? 1e-170 : 1e-30;
    o.h.push_back(draw(h));
    o.grad.push_back(draw(g));
    o.upstream.push_back(draw(1));
    o.upstream_rows.push_back({normal(random)});
    reference::Values sigma = draw(kind == Kind::kWideSigma && !narrow ? 4 : 0.7);
    for (auto& value : sigma) value = kind == Kind::kEqualSigma ? 1.25L : std::exp(value);
    if (kind == Kind::kHard) sigma[random() % n] = 2 * reference::largest(sigma);
    if (kind == Kind::kZeroSigma) sigma = reference::filled(n, 0);
    if (kind == Kind::kSomeZeroSigma) {
      for (size_t i = 0; i < n; i += 2) sigma[i] = 0;
    }
    if (kind == Kind::kNegativeSigma) sigma[random() % n] = -1;
    o.sigma.push_back(std::move(sigma));
    const size_t somewhere = random() % n;
    if (kind == Kind::kZeroGrad) o.grad[r] = reference::filled(n, 0);
    if (kind == Kind::kZeroH) o.h[r] = reference::filled(n, 0);
    if (kind == Kind::kNan) (random() % 2 == 0 ? o.h : o.grad)[r][somewhere] = reference::kNan;
    if (kind == Kind::kInfinity) (random() % 2 == 0 ? o.h : o.grad)[r][somewhere] = -INFINITY;
    if (kind == Kind::kCancels) {
      const auto size = reference::norm(o.grad[r]);
      for (size_t i = 0; i < n; ++i) o.h[r][i] = -1.001L * c.step * o.grad[r][i] / size;
    }
    if (kind == Kind::kHard) {
      const auto top = std::max_element(o.sigma[r].begin(), o.sigma[r].end()) - o.sigma[r].begin();
      o.h[r][static_cast<size_t>(top)] = 0;
      o.grad[r][static_cast<size_t>(top)] = 0;
    }
  }
  // What is expanded is one row for all; what is shared likewise.
  const auto expand = [&](Rows& rows, bool is) {
    for (size_t r = 1; is && r < batch; ++r) rows[r] = rows[0];
  };
  expand(o.h, c.h == Layout::kExpanded);
  expand(o.grad, c.grad == Layout::kExpanded);
  expand(o.upstream, c.upstream == Layout::kExpanded);
  expand(o.sigma, c.shared_sigma || c.sigma == Layout::kExpanded);
  for (Rows* rows : {&o.h, &o.grad, &o.sigma, &o.upstream}) {
    for (auto& row : *rows) {
      for (auto& value : row) value = stored(c.type, value);
    }
  }
  const ScalarType compute = compute_type(c.type);
  const double factors[] = {0.05, 0.4, 0.8, 1.7, 9.0};
  for (size_t r = 0; r < batch; ++r) {
    for (auto& value : o.upstream_rows[r]) value = stored(compute, value);
    reference::Row row;
    if (c.op->takes & kH) row.h = o.h[r];
    if (c.op->takes & kGrad) row.grad = o.grad[r];
    if (c.op->takes & kSigma) row.sigma = o.sigma[r];
    if (c.op->takes & kUpstream) row.upstream = o.upstream[r];
    if (c.op->takes & kUpstreamRows) row.upstream = o.upstream_rows[r];
    row.step = c.type == ScalarType::Double ? c.step : static_cast<float>(c.step);
    row.gamma = c.gamma;
    row.grid = c.grid;
    row.radius = stored(compute, c.radius);
    if ((c.op->takes & kShell) && c.rows_have_radii) {
      const auto y = reference::ascend(row);
      long double length = row.sigma.empty() ? reference::norm(y) : reference::mahalanobis_length(y, row.sigma);
      if (!std::isfinite(length) || length == 0) length = 1;
      row.radius = stored(compute, factors[random() % 5] * length);
      if (kinds[r] == Kind::kBadRadius) {
        const double bad[] = {0, -1, NAN, INFINITY};
        row.radius = stored(compute, bad[random() % 4]);
      }
    }
    o.radii.push_back({row.radius});
    o.rows.push_back(std::move(row));
  }
  return o;
}

Call upload(const Case& c, Operands& o) {
  const ScalarType compute = compute_type(c.type);
  Rows one_sigma(o.sigma.begin(), o.sigma.begin() + (o.sigma.empty() ? 0 : 1));
  const auto tensor = [&](Rows& rows, unsigned needs, Layout layout) {
    if ((c.op->takes & needs) == 0) return make_tensor({0}, c.type, c.device, Layout::kContiguous);
    return upload(rows, c.sizes, c.type, c.device, layout);
  };
  Call call{tensor(o.h, kH, c.h),
            tensor(o.grad, kGrad, c.grad),
            tensor(o.sigma, kSigma, c.sigma),
            tensor(o.upstream, kUpstream, c.upstream),
            upload(o.upstream_rows, {c.batch()}, compute, c.device, Layout::kContiguous),
            std::nullopt};
  if (c.shared_sigma) {
    std::vector<int64_t> sizes(c.sizes.begin() + 1, c.sizes.end());
    std::vector<int64_t> with_batch = c.sizes;
    with_batch[0] = 1;
    Rows rows = one_sigma.empty() ? Rows{reference::filled(static_cast<size_t>(c.length()), 1)} : one_sigma;
    const Tensor laid = upload(rows, with_batch, c.type, c.device, Layout::kContiguous);
    call.sigma = Tensor(laid, sizes, std::vector<int64_t>(laid.strides().begin() + 1, laid.strides().end()));
  }
  if (c.rows_have_radii) call.radius_rows = upload(o.radii, {c.batch()}, compute, c.device, Layout::kContiguous);
  call.radius = c.radius;
  call.gamma = c.gamma;
  call.step = c.step;
  call.grid = c.grid;
  return call;
}

}  // namespace tests
