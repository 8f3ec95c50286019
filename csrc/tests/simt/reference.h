// What the operators' results are, row by row in long double, written from the definitions without regard to speed or
// range: a second opinion that shares no line with csrc/math.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace reference {

using Real = long double;
using Values = std::vector<Real>;
constexpr Real kNan = std::numeric_limits<Real>::quiet_NaN();

// One row's operands; what an operator does not take stays empty.
struct Row {
  Values h, grad, sigma, upstream;
  Real radius = 1, gamma = 1, step = 0;
  int64_t grid = 0;
};

// The results of one row, in the operator's order, each with the size that errors are measured by. `doubtful`: rounding
// decides where the row belongs (its gradients jump there), so that nothing can be said.
struct Result {
  std::vector<Values> values;
  std::vector<Real> sizes;
  bool doubtful = false;
};

inline bool all_finite(const Values& x) {
  return std::all_of(x.begin(), x.end(), [](Real value) { return std::isfinite(value); });
}
inline Real dot(const Values& a, const Values& b) {
  Real sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
inline Real norm(const Values& x) {
  return std::sqrt(dot(x, x));
}
inline Real largest(const Values& x) {
  Real most = 0;
  for (const Real value : x) most = std::max(most, std::fabs(value));
  return most;
}
inline Values filled(size_t n, Real value) {
  return Values(n, value);
}

inline Values ascend(const Row& row) {
  if (row.grad.empty()) return row.h;
  const Real size = norm(row.grad);
  Values y = row.h;
  for (size_t i = 0; i < y.size() && size > 0; ++i) y[i] += row.step * row.grad[i] / size;
  return y;
}

// A step's result is the sum of numbers as large as this; its rounding is of their size.
inline Real size_of_terms(const Row& row) {
  const Real step = row.grad.empty() || norm(row.grad) == 0 ? 0 : row.step * largest(row.grad) / norm(row.grad);
  return std::max(largest(row.h), std::fabs(step));
}

inline bool is_bad(const Row& row, bool shell) {
  if (!all_finite(row.h) || !all_finite(row.grad) || !all_finite(row.sigma)) return true;
  if (std::any_of(row.sigma.begin(), row.sigma.end(), [](Real s) { return s < 0; })) return true;
  return shell && (!(row.radius > 0) || !std::isfinite(row.radius));
}

inline bool is_close(Real a, Real b) {
  return std::fabs(a - b) <= 1e-4L * std::fabs(b);
}

// Gradient of h + step * grad / ||grad|| with respect to grad, for the gradient `p` of the sum.
inline Values ascent_backward(const Row& row, const Values& p) {
  const Real size = norm(row.grad);
  if (size == 0) return filled(p.size(), 0);
  const Real along = dot(row.grad, p) / size;
  Values out(p.size());
  for (size_t i = 0; i < p.size(); ++i) out[i] = row.step / size * (p[i] - row.grad[i] / size * along);
  return out;
}

// ---- the l2 shell

inline Result l2_forward(const Row& row, bool shell) {
  const size_t n = row.h.size();
  if (is_bad(row, shell)) return {{filled(n, kNan)}, {1}};
  Values y = ascend(row);
  if (!shell) return {{y}, {size_of_terms(row)}};
  const Real length = norm(y), outer = row.gamma * row.radius;
  Real size = size_of_terms(row);
  if (length == 0) {
    y[0] = row.radius;
    return {{y}, {row.radius}};
  }
  Real factor = 1;
  if (length < row.radius) factor = row.radius / length;
  if (length > outer) factor = outer / length;
  for (Real& value : y) value *= factor;
  return {{y}, {factor * size}};
}

// (grad_h, grad_grad, grad_radius), those that the operator has.
inline Result l2_backward(const Row& row, bool ascent, bool shell) {
  const size_t n = row.upstream.size();
  Result result;
  const auto add = [&](const Values& values, Real size) {
    result.values.push_back(values);
    result.sizes.push_back(size);
  };
  if (is_bad(row, shell)) {
    if (shell) add(filled(n, kNan), 1);
    if (ascent) add(filled(n, kNan), 1);
    if (shell) add({kNan}, 1);
    return result;
  }
  Values p = row.upstream;
  Real radius_gradient = 0, gain = 1;
  const Real up = norm(row.upstream);
  if (shell) {
    const Values y = ascend(row);
    const Real length = norm(y), outer = row.gamma * row.radius;
    result.doubtful = is_close(length, row.radius) || is_close(length, outer);
    // Where the step undoes h, the direction of what is left is rounding's.
    const Real cancelled = norm(row.h) / length;
    if (length == 0) {
      p = filled(n, 0);
      radius_gradient = row.upstream[0];
    } else if (length < row.radius || length > outer) {
      const Real active = length < row.radius ? row.radius : outer;
      const Real along = dot(y, row.upstream) / length;
      for (size_t i = 0; i < n; ++i) p[i] = active / length * (row.upstream[i] - y[i] / length * along);
      radius_gradient = length < row.radius ? along : row.gamma * along;
      gain = active / length * std::max<Real>(1, cancelled);
    }
    add(p, gain * up);
  }
  if (ascent) {
    const Real size = norm(row.grad);
    add(ascent_backward(row, p), size > 0 ? std::fabs(row.step) / size * gain * up : 1);
  }
  if (shell) add({radius_gradient}, std::max<Real>(1, std::min<Real>(row.gamma, 1e6L)) * up * std::max<Real>(1, gain));
  return result;
}

// ---- influence

inline Result influence(const Row& row) {
  const size_t n = row.grad.size();
  if (!all_finite(row.grad)) return {{filled(n, kNan)}, {1}};
  Real sum = 0;
  for (const Real g : row.grad) sum += std::fabs(g);
  if (sum == 0) return {{filled(n, 1)}, {1}};
  Values sigma(n);
  for (size_t i = 0; i < n; ++i) sigma[i] = std::fabs(row.grad[i]) / (sum / static_cast<Real>(n));
  return {{sigma}, {largest(sigma)}};
}

inline Result influence_backward(const Row& row) {
  const size_t n = row.grad.size();
  Values out(n, 0);
  const auto sign = [](Real g) -> Real { return g > 0 ? 1 : g < 0 ? -1 : 0; };
  if (!all_finite(row.grad)) {
    for (size_t i = 0; i < n; ++i) out[i] = sign(row.grad[i]) == 0 ? 0 : kNan;
    return {{out}, {1}};
  }
  Real sum = 0;
  for (const Real g : row.grad) sum += std::fabs(g);
  if (sum == 0) return {{out}, {1}};
  Real along = 0;
  for (size_t i = 0; i < n; ++i) along += row.upstream[i] * std::fabs(row.grad[i]) / sum;
  for (size_t i = 0; i < n; ++i) {
    out[i] = sign(row.grad[i]) * static_cast<Real>(n) / sum * (row.upstream[i] - along);
  }
  return {{out}, {static_cast<Real>(n) / sum * largest(row.upstream)}};
}

// ---- the Mahalanobis shell

inline Real mahalanobis_length(const Values& d, const Values& sigma) {
  Real sum = 0;
  for (size_t i = 0; i < d.size(); ++i) sum += sigma[i] * d[i] * d[i];
  return std::sqrt(sum);
}

inline Result mahalanobis_norm(const Row& row) {
  if (is_bad(row, false)) return {{{kNan}}, {1}};
  const Real length = mahalanobis_length(row.h, row.sigma);
  return {{{length}}, {length}};
}

// upstream: one number.
inline Result mahalanobis_norm_backward(const Row& row) {
  const size_t n = row.h.size();
  if (is_bad(row, false)) return {{filled(n, kNan), filled(n, kNan)}, {1, 1}};
  const Real length = mahalanobis_length(row.h, row.sigma);
  Values by_h(n, 0), by_sigma(n, 0);
  for (size_t i = 0; i < n && length > 0; ++i) {
    by_h[i] = row.upstream[0] * row.sigma[i] * row.h[i] / length;
    by_sigma[i] = row.upstream[0] * row.h[i] * row.h[i] / length / 2;
  }
  return {{by_h, by_sigma}, {largest(by_h), largest(by_sigma)}};
}

// Where a row's projection is: x_j = scale * d_j / (b_j + t w_j). Hard: t = 0, the coordinates of largest sigma share
// what is missing.
struct Projection {
  enum { kInside, kNear, kFar } side = kInside;
  Real t = 1, scale = 1, bound = 0, top = 0;  // top: the largest sigma
  bool hard = false, doubtful = false;
  Real missing = 0, tied_norm = 0;
  size_t first_tied = 0;
  Real b(Real sigma) const { return (top - sigma) / top; }
  Real w(Real sigma) const { return sigma / top; }
};

// ||x(t)||_S / bound.
inline Real relative_length(const Values& d, const Values& sigma, const Projection& p, Real t) {
  Real sum = 0;
  for (size_t i = 0; i < d.size(); ++i) {
    if (sigma[i] == 0 || d[i] == 0) continue;
    const Real x = d[i] / (p.b(sigma[i]) + t * p.w(sigma[i]));
    sum += sigma[i] * x * x;
  }
  return std::sqrt(sum) / p.bound;
}

inline Projection project(const Row& row, const Values& d) {
  Projection p;
  p.top = *std::max_element(row.sigma.begin(), row.sigma.end());
  if (!(p.top > 0)) return p;
  const Real length = mahalanobis_length(d, row.sigma), outer = row.gamma * row.radius;
  p.doubtful = is_close(length, row.radius) || is_close(length, outer);
  if (length >= row.radius && length <= outer) return p;
  const bool near = length < row.radius;
  p.side = near ? Projection::kNear : Projection::kFar;
  p.bound = near ? row.radius : outer;
  const auto at = [&](Real t) { return relative_length(d, row.sigma, p, t); };
  if (row.grid > 0) {
    // Candidates even in tau (near) or in 1 / tau (far); the last feasible one is the nearest.
    const Real points = static_cast<Real>(row.grid - 1);
    const Real ratio = length / p.bound;
    bool found = false;
    for (int64_t k = 1; k < row.grid; ++k) {
      const Real share = static_cast<Real>(k) / points;
      const Real t = near ? share : 1 + (ratio - 1) / share;
      const Real reached = at(t);
      // For equal sigma the last one meets the bound, which counts as feasible.
      p.doubtful = p.doubtful || (is_close(reached, 1) && std::fabs(reached - 1) > 1e-15L);
      if (near ? reached < 1 - 1e-15L : reached > 1 + 1e-15L) continue;
      found = true;
      p.t = t;
      const Real within = near ? std::clamp(reached, Real{1}, row.gamma) : std::clamp(reached, 1 / row.gamma, Real{1});
      p.scale = within / reached;
    }
    if (found) return p;
  }
  Values tied, rest_d, rest_sigma;
  for (size_t i = d.size(); i-- > 0;) {
    if (row.sigma[i] == p.top) {
      tied.push_back(d[i]);
      p.first_tied = i;
    } else {
      rest_d.push_back(d[i]);
      rest_sigma.push_back(row.sigma[i]);
    }
  }
  p.tied_norm = norm(tied);
  if (near && p.tied_norm * std::sqrt(p.top) / p.bound < 1e-37L) {
    const Real others = relative_length(rest_d, rest_sigma, p, 0);
    if (others < 1) {
      p.hard = true;
      p.t = 0;
      p.missing = std::sqrt((1 - others) * (1 + others) / p.top) * p.bound;
      p.doubtful = p.doubtful || is_close(others, 1);
      return p;
    }
  }
  // relative_length falls in t: bisection, in the exponent while the ends are far apart.
  Real low = near ? 0 : 1, high = near ? 1 : length / p.bound * 2;
  while (at(high) > 1) high *= 2;
  if (near) {
    low = high;
    while (at(low) < 1) low /= 16;
  }
  for (int step = 0; step < 200 && high - low > 1e-19L * high; ++step) {
    // The reciprocal is concave and nearly straight: regula falsi on it, safeguarded.
    const Real of_low = 1 / at(low) - 1, of_high = 1 / at(high) - 1;
    Real middle = low - of_low * (high - low) / (of_high - of_low);
    if (step % 3 == 2 || !(middle > low && middle < high)) {
      middle = high > 4 * low ? std::sqrt(low * high) : (low + high) / 2;
    }
    (at(middle) > 1 ? low : high) = middle;
  }
  p.t = high;
  return p;
}

inline Result mahalanobis_forward(const Row& row) {
  const size_t n = row.h.size();
  if (is_bad(row, true)) return {{filled(n, kNan)}, {1}};
  const Values d = ascend(row);
  const Projection p = project(row, d);
  Values x = d;
  for (size_t i = 0; i < n && p.side != Projection::kInside; ++i) {
    const Real sigma = row.sigma[i];
    if (p.hard && sigma == p.top) {
      x[i] = p.tied_norm > 0 ? p.missing * d[i] / p.tied_norm : i == p.first_tied ? p.missing : 0;
    } else if (sigma > 0) {
      x[i] = p.scale * d[i] / (p.b(sigma) + p.t * p.w(sigma));
    }
  }
  const Real moved = largest(d) > 0 ? size_of_terms(row) / largest(d) : 1;
  return {{x}, {largest(x) * std::max<Real>(1, moved)}, p.doubtful && row.grid > 0};
}

// (grad_h, grad_grad, grad_sigma, grad_radius), those that the operator has.
inline Result mahalanobis_backward(const Row& row) {
  const size_t n = row.h.size();
  const bool ascent = !row.grad.empty();
  if (is_bad(row, true)) {
    Result bad{{filled(n, kNan), filled(n, kNan), {kNan}}, {1, 1, 1}};
    if (ascent) bad.values.insert(bad.values.begin(), filled(n, kNan)), bad.sizes.push_back(1);
    return bad;
  }
  const Values d = ascend(row);
  const Projection p = project(row, d);
  const Values& g = row.upstream;
  Values by_d = g, by_sigma(n, 0);
  Real by_radius = 0, radius_size = 1;
  if (p.side != Projection::kInside) {
    Real a = 0, q = 0, size_a = 0;
    const Real tau = (p.t - 1) / p.top;
    const auto c = [&](size_t i) { return 1 / (p.b(row.sigma[i]) + p.t * p.w(row.sigma[i])); };
    const auto is_free = [&](size_t i) { return !p.hard || row.sigma[i] != p.top; };
    for (size_t i = 0; i < n; ++i) {
      if (!is_free(i)) continue;
      const Real s = row.sigma[i];
      a -= g[i] * s * d[i] * c(i) * c(i);
      size_a += std::fabs(g[i] * s * d[i] * c(i) * c(i));
      q += s * s * d[i] * d[i] * c(i) * c(i) * c(i);
    }
    Real rho = -a / q;
    Real along = 0;
    const auto e = [&](size_t i) -> Real { return p.tied_norm > 0 ? d[i] / p.tied_norm : i == p.first_tied ? 1 : 0; };
    if (p.hard) {
      for (size_t i = 0; i < n; ++i) along += is_free(i) ? 0 : g[i] * e(i);
      rho = along / (p.top * p.missing);
    }
    for (size_t i = 0; i < n; ++i) {
      const Real s = row.sigma[i];
      if (is_free(i)) {
        by_d[i] = g[i] * c(i) - rho * s * d[i] * c(i) * c(i);
        by_sigma[i] = -g[i] * tau * d[i] * c(i) * c(i) - rho * d[i] * d[i] * c(i) * c(i) * c(i) * (1 - tau * s) / 2;
      } else {
        // The free coordinates have the length sqrt(R^2 - top m^2) together: what they take the tied ones lose.
        by_d[i] = e(i) * (rho * q + a) / (p.top * p.missing);
        by_sigma[i] = e(i) * e(i) * ((rho * q + a) / p.top - along * p.missing / 2) / p.top;
      }
    }
    by_radius = rho * p.bound * (p.side == Projection::kFar ? row.gamma : 1);
    radius_size =
        p.hard ? std::fabs(by_radius) + 1 : size_a / q * p.bound * (p.side == Projection::kFar ? row.gamma : 1);
  }
  Result result{{by_d}, {std::max(largest(by_d), largest(g))}, p.doubtful};
  if (ascent) {
    const Real size = norm(row.grad);
    result.values.push_back(ascent_backward(row, by_d));
    result.sizes.push_back(size > 0 ? std::fabs(row.step) / size * norm(by_d) : 1);
  }
  result.values.push_back(by_sigma);
  result.sizes.push_back(largest(by_sigma) + largest(g) * largest(d) / std::max(p.top, Real{1e-300L}));
  result.values.push_back({by_radius});
  result.sizes.push_back(std::fabs(by_radius) + radius_size);
  // Near the hard case errors grow like rounding over t.
  for (Real& size : result.sizes) size *= std::max<Real>(1, p.side == Projection::kNear && !p.hard ? 1 / p.t : 1);
  return result;
}

}  // namespace reference
