// The nearest of many rows: distances in long double.
#include <cstdio>

#include "checks.h"
#include "suite.h"

namespace tests {
namespace {

reference::Values some_row(Random& random, size_t length, long double size) {
  std::normal_distribution<double> normal;
  reference::Values row(length);
  for (auto& value : row) value = size * normal(random);
  return row;
}

long double distance(const reference::Values& a, const reference::Values& b) {
  reference::Values apart = a;
  for (size_t i = 0; i < apart.size(); ++i) apart[i] -= b[i];
  return reference::norm(apart);
}

}  // namespace

void run_nearest(Random& random, ScalarType type, int device, int64_t batch, int64_t count, int64_t length,
                 Totals& totals) {
  ++totals.cases;
  const std::string name = "_nearest, type " + std::to_string(static_cast<int>(type)) + ", B " + std::to_string(batch) +
                           ", N " + std::to_string(count) + ", D " + std::to_string(length) + ", on " +
                           simt::devices()[static_cast<size_t>(device)].name;
  // Squares that leave the range of float, and for float64 that of double.
  const long double sizes[] = {1, 1, 1, 1e-30L, 1e30L, 1e-200L, 1e200L};
  const bool narrow = type == ScalarType::Half || type == ScalarType::BFloat16;
  const long double size = sizes[random() % (type == ScalarType::Double ? 7 : narrow ? 3 : 5)];
  Rows points, rows;
  for (int64_t j = 0; j < count; ++j) {
    rows.push_back(some_row(random, static_cast<size_t>(length), size));
    if (random() % 16 == 0) rows.back()[random() % rows.back().size()] = reference::kNan;
  }
  for (int64_t i = 0; i < batch; ++i) {
    points.push_back(random() % 4 == 0 ? rows[random() % rows.size()]  // distance 0, or a row that is not finite
                                       : some_row(random, static_cast<size_t>(length), size));
  }
  const uint64_t seed = random();
  std::vector<std::vector<unsigned char>> bits[2];
  try {
    for (int turn = 0; turn < 2; ++turn) {
      simt::schedule = turn == 0 ? simt::Schedule{} : simt::another_schedule(seed);
      simt::record = {};
      const Tensor x = upload(points, {batch, length}, type, device, Layout::kContiguous);
      const Tensor all = upload(rows, {count, length}, type, device, Layout::kContiguous);
      using Function = std::tuple<Tensor, Tensor> (*)(const Tensor&, const Tensor&);
      const auto [apart, index] = function_of<Function>("_nearest")(x, all);
      bits[turn] = {bytes_of(apart), bytes_of(index)};
      totals.several += turn == 0 && simt::record.launches > 1;
      if (turn == 1) continue;
      for (size_t i = 0; i < points.size(); ++i) {
        ++totals.compared;
        const int64_t where = static_cast<const int64_t*>(index.const_data_ptr())[i];
        const ScalarType wide = compute_type(type);
        const long double got = read(
            wide, static_cast<const char*>(apart.const_data_ptr()) + static_cast<int64_t>(i) * apart.element_size());
        if (!reference::all_finite(points[i])) {
          CHECK(std::isnan(got) && where == -1, "%s: point %zu is not NaN", name.c_str(), i);
          continue;
        }
        long double least = INFINITY;
        for (const auto& row : rows) {
          if (reference::all_finite(row)) least = std::min(least, distance(points[i], row));
        }
        const long double allowed = type == ScalarType::Double ? 1e-13L : 1e-6L;
        if (least == INFINITY) {
          CHECK(got == INFINITY && where == -1, "%s: point %zu has no row", name.c_str(), i);
          continue;
        }
        CHECK(std::fabs(got - least) <= allowed * least, "%s: point %zu: %Lg, not %Lg", name.c_str(), i, got, least);
        CHECK(where >= 0 && where < count, "%s: point %zu: row %lld", name.c_str(), i, static_cast<long long>(where));
        if (where < 0 || where >= count) continue;
        const long double there = distance(points[i], rows[static_cast<size_t>(where)]);
        CHECK(there <= (1 + allowed) * least, "%s: point %zu: row %lld is at %Lg, not %Lg", name.c_str(), i,
              static_cast<long long>(where), there, least);
      }
    }
    CHECK(bits[0] == bits[1], "%s: two schedules, two results", name.c_str());
  } catch (const std::exception& error) {
    CHECK(false, "%s: %s", name.c_str(), error.what());
  }
}

}  // namespace tests
