// Compiled once per instruction set (see isa.h). One row after the other; its H hidden units stay in the first-level
// cache for all steps, and the rows of the Gram matrix in the second.
#include "hidden_search_rows.h"

#include "../math/hidden_search.h"
#include "element.h"
#include "scratch.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

using math::SerialTeam;

// What is kept up to date by small changes is computed anew after so many steps.
constexpr int64_t kRefresh = 32;

// Steps that lead inwards, before the projection leads out again, make C grow, and h + W^T p small: the error of their
// product grows with C. The row then starts anew from where it is.
constexpr double kMostScale = 4.0;

template <typename C>
class RowSearch {
 public:
  RowSearch(const HiddenSearchArgs& args) : args_(args), narrow_(5 * args.hidden + args.length), wide_(args.hidden) {
    if (!ok()) return;
    on_ = narrow_.data();
    next_on_ = on_ + args.hidden;
    gram_v_ = next_on_ + args.hidden;
    start_u_ = gram_v_ + args.hidden;
    gram_p_ = start_u_ + args.hidden;
    grad_ = gram_p_ + args.hidden;
    entered_ = wide_.data();
  }

  bool ok() const { return narrow_.data() != nullptr && wide_.data() != nullptr; }

  void run(int64_t row) {
    const int64_t hidden = args_.hidden;
    u_ = static_cast<C*>(args_.u) + row * hidden;
    clean_ = static_cast<const C*>(args_.clean) + row * hidden;
    h_ = static_cast<C*>(args_.h) + row * args_.length;
    p_ = static_cast<C*>(args_.coefficients) + row * hidden;
    const C radius =
        args_.radius_rows != nullptr ? static_cast<const C*>(args_.radius_rows)[row] : static_cast<C>(args_.radius);
    shell_ = math::make_shell(radius, args_.gamma);
    start_from_h();
    for (int64_t step = 1; step <= args_.num_steps; ++step) {
      if (step % kRefresh == 0) refresh();
      const bool project = step % args_.project_every == 0 || (args_.project_last && step == args_.num_steps);
      // Where the terms of <v, G v> cancel, or ||h|| is 0, only h itself can tell.
      const bool clear = grad_square_ == 0.0 ? none_on_ : grad_square_ > 1e-4 * grad_terms_;
      const math::HiddenStep plan =
          math::plan_hidden_step(square_, grad_square_, u_scale_ * u_v_, args_.step_size, shell_, project);
      if (clear && plan.exact && plan.square > 0.0 && scale_ > 1e-12 && scale_ < kMostScale) {
        take(plan);
      } else {
        take_in_full(project);
      }
    }
    flush();
    static_cast<C*>(args_.scale)[row] = static_cast<C>(scale_);
  }

 private:
  const C* gram_row(int64_t j) const { return static_cast<const C*>(args_.gram) + j * args_.hidden; }
  const C* weight_row(int64_t j) const { return static_cast<const C*>(args_.weight) + j * args_.length; }
  const C* output() const { return static_cast<const C*>(args_.output); }

  // h and u are up to date.
  void start_from_h() {
    double square = 0.0;
    DROCC_SIMD(reduction(+ : square))
    for (int64_t i = 0; i < args_.length; ++i) square += static_cast<double>(h_[i]) * static_cast<double>(h_[i]);
    square_ = start_square_ = square;
    scale_ = u_scale_ = 1.0;
    travelled_ = 0.0;
    for (int64_t j = 0; j < args_.hidden; ++j) {
      on_[j] = clean_[j] + u_[j] > 0 ? C(1) : C(0);
      start_u_[j] = u_[j];
      p_[j] = 0;
      entered_[j] = 0.0;
    }
    sum_gram_v();
  }

  // u and ||h||^2 from where the search started: C (W h_0 + G p), and its square, without h.
  void refresh() {
    flush();
    for (int64_t k = 0; k < args_.hidden; ++k) gram_p_[k] = 0;
    for (int64_t j = 0; j < args_.hidden; ++j) {
      if (p_[j] != 0) add_gram_row(j, p_[j], gram_p_);
    }
    double square = start_square_;
    const C scale = static_cast<C>(scale_);
    for (int64_t j = 0; j < args_.hidden; ++j) {
      square += static_cast<double>(p_[j]) * (2.0 * start_u_[j] + gram_p_[j]);
      u_[j] = scale * (start_u_[j] + gram_p_[j]);
    }
    square_ = scale_ * scale_ * square;
    u_scale_ = 1.0;
    sum_gram_v();
  }

  // p with what the units that are on have gathered.
  void flush() {
    for (int64_t j = 0; j < args_.hidden; ++j) {
      if (on_[j] == 0) continue;
      p_[j] += static_cast<C>(output()[j] * (travelled_ - entered_[j]));
      entered_[j] = travelled_;
    }
  }

  void sum_gram_v() {
    for (int64_t k = 0; k < args_.hidden; ++k) gram_v_[k] = 0;
    for (int64_t j = 0; j < args_.hidden; ++j) {
      if (on_[j] != 0) add_gram_row(j, output()[j], gram_v_);
    }
    sum_products();
  }

  void add_gram_row(int64_t j, C weight, C* sum) const {
    const C* row = gram_row(j);
    DROCC_SIMD()
    for (int64_t k = 0; k < args_.hidden; ++k) sum[k] += weight * row[k];
  }

  void sum_products() {
    const C* output_weights = output();
    C square = 0, size = 0, along = 0, count = 0;
    DROCC_SIMD(reduction(+ : square, size, along, count))
    for (int64_t j = 0; j < args_.hidden; ++j) {
      const C v = on_[j] * output_weights[j];
      const C term = v * gram_v_[j];
      square += term;
      size += static_cast<C>(fabs(term));
      along += v * u_[j];
      count += on_[j];
    }
    grad_square_ = square, grad_terms_ = size, u_v_ = along;
    none_on_ = count == 0;
  }

  void take(const math::HiddenStep& plan) {
    const C along = static_cast<C>(plan.ascent / u_scale_);
    u_scale_ *= plan.factor;
    travelled_ += plan.ascent / scale_;
    scale_ *= plan.factor;
    square_ = plan.square;
    const C factor = static_cast<C>(u_scale_);
    C switched = 0;
    DROCC_SIMD(reduction(+ : switched))
    for (int64_t j = 0; j < args_.hidden; ++j) {
      u_[j] += along * gram_v_[j];
      const C z = clean_[j] + factor * u_[j];
      const C now = z > 0 ? C(1) : C(0);
      switched += static_cast<C>(fabs(now - on_[j]));
      next_on_[j] = now;
    }
    if (switched == 0) {
      u_v_ += static_cast<double>(along) * grad_square_;
      return;
    }
    for (int64_t j = 0; j < args_.hidden; ++j) {
      if (next_on_[j] == on_[j]) continue;
      const C weight = output()[j];
      if (next_on_[j] != 0) {
        entered_[j] = travelled_;
        add_gram_row(j, weight, gram_v_);
      } else {
        p_[j] += static_cast<C>(weight * (travelled_ - entered_[j]));
        add_gram_row(j, -weight, gram_v_);
      }
      on_[j] = next_on_[j];
    }
    sum_products();
  }

  struct FullRow {
    C* h_row;
    const C* grad_row;
    double h(int64_t i) const { return h_row[i]; }
    double grad(int64_t i) const { return grad_row[i]; }
    void store(int64_t i, double value) const { h_row[i] = static_cast<C>(value); }
  };

  // The step in the space of h.
  void take_in_full(bool project) {
    flush();
    const int64_t n = args_.length;
    for (int64_t i = 0; i < n; ++i) grad_[i] = 0;
    for (int64_t j = 0; j < args_.hidden; ++j) {
      const C* row = weight_row(j);
      const C v = on_[j] * output()[j];
      const C p = p_[j];
      DROCC_SIMD()
      for (int64_t i = 0; i < n; ++i) {
        h_[i] += p * row[i];
        grad_[i] += v * row[i];
      }
    }
    const C scale = static_cast<C>(scale_);
    for (int64_t i = 0; i < n; ++i) h_[i] *= scale;
    const FullRow view{h_, grad_};
    if (project) {
      math::step_row_exact<true, true>(SerialTeam{}, n, view, args_.step_size, shell_);
    } else {
      math::step_row_exact<true, false>(SerialTeam{}, n, view, args_.step_size, shell_);
    }
    for (int64_t j = 0; j < args_.hidden; ++j) {
      const C* row = weight_row(j);
      double sum = 0.0;
      DROCC_SIMD(reduction(+ : sum))
      for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(row[i]) * static_cast<double>(h_[i]);
      u_[j] = static_cast<C>(sum);
    }
    start_from_h();
  }

  const HiddenSearchArgs& args_;
  Scratch<C> narrow_;
  Scratch<double> wide_;
  C* on_ = nullptr;            // 1 where a unit is on, else 0
  C* next_on_ = nullptr;       // the same after the step
  C* gram_v_ = nullptr;        // G v
  C* start_u_ = nullptr;       // W h_0
  C* gram_p_ = nullptr;        // G p
  C* grad_ = nullptr;          // [D]
  double* entered_ = nullptr;  // travelled_ when a unit was last switched on
  C* u_ = nullptr;
  const C* clean_ = nullptr;
  C* h_ = nullptr;
  C* p_ = nullptr;
  math::Shell shell_{};
  double square_ = 0.0;        // ||h||^2
  double start_square_ = 0.0;  // ||h_0||^2
  double scale_ = 1.0;         // C
  double u_scale_ = 1.0;       // W h = u_scale_ * u_
  double travelled_ = 0.0;     // sum of a / C
  double grad_square_ = 0.0;   // <v, G v>
  double grad_terms_ = 0.0;    // the sum of its terms' sizes
  double u_v_ = 0.0;           // <u_, v>
  bool none_on_ = false;
};

template <typename C>
bool search_rows(const HiddenSearchArgs& args, int64_t begin, int64_t end) {
  RowSearch<C> search(args);
  if (!search.ok()) return false;
  for (int64_t row = begin; row < end; ++row) search.run(row);
  return true;
}

}  // namespace

extern const HiddenSearchRows hidden_search_rows = {{search_rows<float>, search_rows<double>}};

}  // namespace drocc::cpu::DROCC_ISA
