// The search in hidden space (math/hidden_search.h) of one row by a team of threads, a step at a time. Host and device;
// the CPU has a way of its own, with long vectors and several steps at once (cpu/hidden_search_kernel.cpp).
#pragma once

#include "../math/hidden_search.h"

namespace drocc::cuda {

using math::HiddenStep;
using math::kHiddenRefresh;
using math::kLeastShare;
using math::kMostHiddenScale;
using math::plan_hidden_step;
using math::Shell;
using math::step_row_exact;

// Operands and memory of one row's search over H units and D inputs. A thread of the team touches the units that are
// its own (team.begin, end, step), but for on and p, which all of them read.
template <typename C>
struct HiddenRow {
  int64_t length;   // D
  int64_t hidden;   // H
  const C* weight;  // [H, D]
  const C* gram;    // [H, H]
  const C* output;  // [H]
  const C* clean;   // [H]: W x + b
  C* h;             // [D]: where the search starts; brought up to date where needed
  C* u;             // [H]: W h; then that of where the search ends
  C* p;             // [H]: the result
  C* on;            // [H]: 1 where a unit is on, else 0
  C* next_on;       // [H]: the same after the step
  C* gram_v;        // [H]: G v
  C* start_u;       // [H]: W h_0
  C* gram_p;        // [H]: G p
  double* entered;  // [H]: travelled_ when a unit was last switched on
  C* grad;          // [D], or null: computed anew where it is needed
};

// The search for one row, by a team that also has sync(), which orders the memory of the row; any(flag); and
// each(n, flag, body): flag(j) -> int once by the owner of j, then body(j, flag) by all where that is not 0, in order.
template <typename C, typename Team>
class HiddenSearch {
 public:
  DROCC_HD_MEMBER HiddenSearch(const Team& team, const HiddenRow<C>& row) : team_(team), row_(row) {}

  // Returns C: the search ends at C (h + W^T p), and u is its image.
  DROCC_HD_MEMBER double run(const Shell& shell, double step_size, int64_t num_steps, int64_t project_every,
                             bool project_last) {
    stale_ = Stale::kRow;
    for (int64_t step = 1;; ++step) {
      if (stale_ == Stale::kRow) {
        start_from_h();
      } else if (step % kHiddenRefresh == 0 && step <= num_steps) {
        refresh();
      }
      if (step > num_steps) break;
      if (stale_ == Stale::kRow) sum_gram_v();
      if (stale_ != Stale::kNothing) sum_products();
      stale_ = Stale::kNothing;
      const bool project = step % project_every == 0 || (project_last && step == num_steps);
      // Where the terms of <v, G v> cancel, or ||h|| is 0, only h itself can tell.
      const bool clear = grad_square_ == 0.0 ? none_on_ : grad_square_ > kLeastShare<C> * grad_terms_;
      const HiddenStep plan = plan_hidden_step(square_, grad_square_, u_scale_ * u_v_, step_size, shell, project);
      if (clear && plan.exact && plan.square > 0.0 && scale_ > 1e-12 && scale_ < kMostHiddenScale) {
        take(plan);
      } else {
        take_in_full(project, step_size, shell);
      }
    }
    flush();
    own([&](int64_t j) { row_.u[j] *= static_cast<C>(u_scale_); });
    return scale_;
  }

 private:
  // body(j) for the units of this thread.
  template <typename Body>
  DROCC_HD_MEMBER void own(const Body& body) const {
    for (auto j = team_.begin(row_.hidden); j < team_.end(row_.hidden); j += team_.step()) body(j);
  }

  // h and u are up to date.
  DROCC_HD_MEMBER void start_from_h() {
    double square = 0.0;
    DROCC_SIMD(reduction(+ : square))
    for (auto i = team_.begin(row_.length); i < team_.end(row_.length); i += team_.step()) {
      square += static_cast<double>(row_.h[i]) * static_cast<double>(row_.h[i]);
    }
    square_ = start_square_ = team_.sum(square);
    scale_ = u_scale_ = 1.0;
    travelled_ = 0.0;
    own([&](int64_t j) {
      row_.on[j] = row_.clean[j] + row_.u[j] > 0 ? C(1) : C(0);
      row_.start_u[j] = row_.u[j];
      row_.p[j] = 0;
      row_.entered[j] = 0.0;
    });
  }

  // u and ||h||^2 from where the search started: C (W h_0 + G p), and its square, without h.
  DROCC_HD_MEMBER void refresh() {
    flush();
    own([&](int64_t k) { row_.gram_p[k] = 0; });
    team_.sync();
    for (int64_t j = 0; j < row_.hidden; ++j) {
      if (row_.p[j] != 0) add_gram_row(j, row_.p[j], row_.gram_p);
    }
    team_.sync();
    double square = 0.0;
    const C scale = static_cast<C>(scale_);
    own([&](int64_t j) {
      square += static_cast<double>(row_.p[j]) * (2.0 * row_.start_u[j] + row_.gram_p[j]);
      row_.u[j] = scale * (row_.start_u[j] + row_.gram_p[j]);
    });
    square_ = scale_ * scale_ * (start_square_ + team_.sum(square));
    u_scale_ = 1.0;
    stale_ = Stale::kRow;
  }

  // p with what the units that are on have gathered.
  DROCC_HD_MEMBER void flush() {
    own([&](int64_t j) {
      if (row_.on[j] == 0) return;
      row_.p[j] += static_cast<C>(row_.output[j] * (travelled_ - row_.entered[j]));
      row_.entered[j] = travelled_;
    });
  }

  DROCC_HD_MEMBER void sum_gram_v() {
    own([&](int64_t k) { row_.gram_v[k] = 0; });
    team_.each(
        row_.hidden, [&](int64_t j) { return row_.on[j] != 0 ? 1 : 0; },
        [&](int64_t j, int) { add_gram_row(j, row_.output[j], row_.gram_v); });
  }

  DROCC_HD_MEMBER void add_gram_row(int64_t j, C weight, C* sum) const {
    const C* gram_row = row_.gram + j * row_.hidden;
    DROCC_SIMD()
    for (auto k = team_.begin(row_.hidden); k < team_.end(row_.hidden); k += team_.step()) {
      sum[k] += weight * gram_row[k];
    }
  }

  DROCC_HD_MEMBER void sum_products() {
    C square = 0, size = 0, along = 0, count = 0;
    DROCC_SIMD(reduction(+ : square, size, along, count))
    for (auto j = team_.begin(row_.hidden); j < team_.end(row_.hidden); j += team_.step()) {
      const C v = row_.on[j] * row_.output[j];
      const C term = v * row_.gram_v[j];
      square += term;
      size += static_cast<C>(fabs(term));
      along += v * row_.u[j];
      count += row_.on[j];
    }
    C sums[3] = {square, size, along};
    team_.sum_all(sums);
    grad_square_ = sums[0], grad_terms_ = sums[1], u_v_ = sums[2];
    none_on_ = grad_square_ == 0.0 && !team_.any(count != 0);
  }

  DROCC_HD_MEMBER void take(const HiddenStep& plan) {
    const C along = static_cast<C>(plan.ascent / u_scale_);
    u_scale_ *= plan.factor;
    travelled_ += plan.ascent / scale_;
    scale_ *= plan.factor;
    square_ = plan.square;
    const C factor = static_cast<C>(u_scale_);
    C switched = 0;
    DROCC_SIMD(reduction(+ : switched))
    for (auto j = team_.begin(row_.hidden); j < team_.end(row_.hidden); j += team_.step()) {
      row_.u[j] += along * row_.gram_v[j];
      const C z = row_.clean[j] + factor * row_.u[j];
      const C now = z > 0 ? C(1) : C(0);
      switched += static_cast<C>(fabs(now - row_.on[j]));
      row_.next_on[j] = now;
    }
    if (!team_.any(switched != 0)) {
      u_v_ += static_cast<double>(along) * grad_square_;
      return;
    }
    const auto change = [&](int64_t j) {
      if (row_.next_on[j] == row_.on[j]) return 0;
      row_.on[j] = row_.next_on[j];
      if (row_.on[j] != 0) {
        row_.entered[j] = travelled_;
        return 1;
      }
      row_.p[j] += static_cast<C>(row_.output[j] * (travelled_ - row_.entered[j]));
      return -1;
    };
    team_.each(row_.hidden, change,
               [&](int64_t j, int sign) { add_gram_row(j, sign > 0 ? row_.output[j] : -row_.output[j], row_.gram_v); });
    sum_products();
  }

  // Of the logit, at input i.
  DROCC_HD_MEMBER C gradient(int64_t i) const {
    if (row_.grad != nullptr) return row_.grad[i];
    C sum = 0;
    DROCC_UNROLL_BY(1)
    for (int64_t j = 0; j < row_.hidden; ++j) sum += row_.on[j] * row_.output[j] * row_.weight[j * row_.length + i];
    return sum;
  }

  struct FullRow {
    const HiddenSearch& search;
    DROCC_HD_MEMBER double h(int64_t i) const { return search.row_.h[i]; }
    DROCC_HD_MEMBER double grad(int64_t i) const { return search.gradient(i); }
    DROCC_HD_MEMBER void store(int64_t i, double value) const { search.row_.h[i] = static_cast<C>(value); }
  };

  // The step in the space of h. Few rows take it: its loops are not unrolled, for the registers of the others.
  DROCC_HD_MEMBER void take_in_full(bool project, double step_size, const Shell& shell) {
    flush();
    team_.sync();
    const int64_t n = row_.length;
    const auto begin = team_.begin(n), end = team_.end(n);
    const bool keeps = row_.grad != nullptr;
    if (keeps) {
      DROCC_UNROLL_BY(1)
      for (auto i = begin; i < end; i += team_.step()) row_.grad[i] = 0;
    }
    for (int64_t j = 0; j < row_.hidden; ++j) {
      const C* weight_row = row_.weight + j * n;
      const C v = row_.on[j] * row_.output[j];
      const C p = row_.p[j];
      DROCC_SIMD()
      DROCC_UNROLL_BY(1)
      for (auto i = begin; i < end; i += team_.step()) {
        row_.h[i] += p * weight_row[i];
        if (keeps) row_.grad[i] += v * weight_row[i];
      }
    }
    const C scale = static_cast<C>(scale_);
    DROCC_UNROLL_BY(1)
    for (auto i = begin; i < end; i += team_.step()) row_.h[i] *= scale;
    const FullRow view{*this};
    if (project) {
      step_row_exact<true, true>(team_, n, view, step_size, shell);
    } else {
      step_row_exact<true, false>(team_, n, view, step_size, shell);
    }
    for (int64_t j = 0; j < row_.hidden; ++j) {
      const C* weight_row = row_.weight + j * n;
      double sum = 0.0;
      DROCC_SIMD(reduction(+ : sum))
      DROCC_UNROLL_BY(1)
      for (auto i = begin; i < end; i += team_.step()) {
        sum += static_cast<double>(weight_row[i]) * static_cast<double>(row_.h[i]);
      }
      sum = team_.sum(sum);
      if (j >= team_.begin(row_.hidden) && (j - team_.begin(row_.hidden)) % team_.step() == 0) {
        row_.u[j] = static_cast<C>(sum);
      }
    }
    team_.sync();
    stale_ = Stale::kRow;
  }

  // What is to be computed anew before the next step: in one place, which keeps the code of a kernel short.
  enum class Stale { kNothing, kSums, kRow };

  const Team& team_;
  const HiddenRow<C>& row_;
  double square_ = 0.0;        // ||h||^2
  double start_square_ = 0.0;  // ||h_0||^2
  double scale_ = 1.0;         // C
  double u_scale_ = 1.0;       // W h = u_scale_ * u
  double travelled_ = 0.0;     // sum of a / C
  double grad_square_ = 0.0;   // <v, G v>
  double grad_terms_ = 0.0;    // the sum of its terms' sizes
  double u_v_ = 0.0;           // <u, v> / u_scale_
  Stale stale_ = Stale::kRow;
  bool none_on_ = false;  // said only where grad_square_ is 0
};

}  // namespace drocc::cuda
