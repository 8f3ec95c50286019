// Compiled once per instruction set (see isa.h). One row after the other; its H hidden units stay in the first-level
// cache for all steps, and the rows of the Gram matrix in the second.
#include "hidden_search_rows.h"

#include <cstring>

#include "../math/hidden_search.h"
#include "element.h"
#include "scratch.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

using math::SerialTeam;

// What is kept up to date by small changes is computed anew after so many of them.
constexpr int64_t kRefresh = 32;

// Steps that lead inwards, before the projection leads out again, make C grow, and h + W^T p small: the error of their
// product grows with C. The row then starts anew from where it is.
constexpr double kMostScale = 4.0;

// Units are kept in whole blocks of this many; those beyond H are never on.
constexpr int64_t kBlock = 16;

// Rows of the Gram matrix that are added at a time.
constexpr int64_t kRows = 8;

template <typename C>
class RowSearch {
 public:
  RowSearch(const HiddenSearchArgs& args)
      : args_(args),
        units_((args.hidden + kBlock - 1) / kBlock * kBlock),
        narrow_(9 * units_ + args.length),
        wide_(units_),
        bytes_(units_),
        list_(units_) {
    if (!ok()) return;
    C* next = narrow_.data();
    for (C** part : {&on_, &u_, &clean_, &output_, &v_, &gram_v_, &p_, &start_u_, &gram_p_}) {
      *part = next;
      next += units_;
    }
    grad_ = next;
    entered_ = wide_.data();
    switched_ = bytes_.data();
    for (int64_t j = 0; j < units_; ++j) {
      u_[j] = gram_v_[j] = start_u_[j] = gram_p_[j] = 0;
      clean_[j] = -1;
      output_[j] = j < args.hidden ? static_cast<const C*>(args.output)[j] : C(0);
    }
  }

  bool ok() const {
    return narrow_.data() != nullptr && wide_.data() != nullptr && bytes_.data() != nullptr && list_.data() != nullptr;
  }

  void run(int64_t row) {
    const int64_t hidden = args_.hidden;
    copy(static_cast<const C*>(args_.u) + row * hidden, u_);
    copy(static_cast<const C*>(args_.clean) + row * hidden, clean_);
    h_ = static_cast<C*>(args_.h) + row * args_.length;
    const C radius =
        args_.radius_rows != nullptr ? static_cast<const C*>(args_.radius_rows)[row] : static_cast<C>(args_.radius);
    shell_ = math::make_shell(radius, args_.gamma);
    start_from_h();
    // Steps along one straight line are taken at once: `reach` is how many are tried, `sure` how many are known to
    // switch no unit before the last of them. Where units switch at almost every step, trying would not pay.
    int64_t reach = args_.num_steps, sure = 1, quiet = 0;
    for (int64_t done = 0; done < args_.num_steps;) {
      if (taken_ == kRefresh) refresh();
      const int64_t count = straight_steps(done, reach);
      const int64_t step = done + count;
      const bool project = step % args_.project_every == 0 || (args_.project_last && step == args_.num_steps);
      // Where the terms of <v, G v> cancel, or ||h|| is 0, only h itself can tell.
      const bool clear = count_on_ == 0 || grad_square_ > 1e-4 * grad_terms_;
      const double length = args_.step_size * static_cast<double>(count);
      const math::HiddenStep plan =
          math::plan_hidden_step(square_, grad_square_, u_scale_ * u_v_, length, shell_, project);
      if (!(clear && plan.exact && plan.square > 0.0 && scale_ > 1e-12 && scale_ < kMostScale)) {
        if (count == 1) {
          take_in_full(project);
          ++done;
        }
        reach = 1;
        continue;
      }
      if (count > sure) {
        sure = steps_to_switch(plan.ascent, count);
        if (sure < count) {
          reach = sure;
          continue;
        }
      }
      const bool switches = take(plan);
      done = step;
      sure = 1;
      quiet = switches ? 0 : quiet + count;
      reach = count > 1 ? 2 * count : quiet > 3 ? 4 : 1;
    }
    flush();
    for (int64_t j = 0; j < hidden; ++j) static_cast<C*>(args_.coefficients)[row * hidden + j] = p_[j];
    static_cast<C*>(args_.scale)[row] = static_cast<C>(scale_);
  }

 private:
  const C* gram_row(int64_t j) const { return static_cast<const C*>(args_.gram) + j * args_.hidden; }
  const C* weight_row(int64_t j) const { return static_cast<const C*>(args_.weight) + j * args_.length; }

  void copy(const C* from, C* to) const {
    for (int64_t j = 0; j < args_.hidden; ++j) to[j] = from[j];
  }

  // How many of the next steps, `most` at the most, no projection bends but after the last of them.
  int64_t straight_steps(int64_t done, int64_t most) const {
    const int64_t left = args_.num_steps - done;
    const int64_t count = most < left ? most : left;
    const int64_t free = args_.project_every - done % args_.project_every;
    if (count <= free) return count;
    const double length = args_.step_size * static_cast<double>(count - 1);
    return math::stays_in_shell(square_, grad_square_, u_scale_ * u_v_, args_.step_size, length, shell_) ? count : free;
  }

  void set_scales(double scale, double u_scale) {
    scale_ = scale, inverse_scale_ = 1.0 / scale;
    u_scale_ = u_scale, inverse_u_scale_ = 1.0 / u_scale;
  }

  // h and u are up to date.
  void start_from_h() {
    double square = 0.0;
    const C* h = h_;
    DROCC_SIMD(reduction(+ : square))
    for (int64_t i = 0; i < args_.length; ++i) square += static_cast<double>(h[i]) * static_cast<double>(h[i]);
    square_ = start_square_ = square;
    set_scales(1.0, 1.0);
    taken_ = 0;
    travelled_ = 0.0;
    DROCC_SIMD()
    for (int64_t j = 0; j < units_; ++j) {
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
    multiply_gram(p_, gram_p_);
    double square = start_square_;
    const C scale = static_cast<C>(scale_);
    for (int64_t j = 0; j < args_.hidden; ++j) {
      square += static_cast<double>(p_[j]) * (2.0 * start_u_[j] + gram_p_[j]);
      u_[j] = scale * (start_u_[j] + gram_p_[j]);
    }
    square_ = scale_ * scale_ * square;
    set_scales(scale_, 1.0);
    taken_ = 0;
    sum_gram_v();
  }

  // p with what the units that are on have gathered.
  void flush() {
    const double travelled = travelled_;
    DROCC_SIMD()
    for (int64_t j = 0; j < units_; ++j) {
      p_[j] += static_cast<C>(on_[j] * output_[j] * (travelled - entered_[j]));
      entered_[j] = travelled;
    }
  }

  void sum_gram_v() {
    DROCC_SIMD()
    for (int64_t j = 0; j < units_; ++j) v_[j] = on_[j] * output_[j];
    multiply_gram(v_, gram_v_);
    sum_products();
  }

  // product = G vector, by the rows of G that count, several at once.
  void multiply_gram(const C* vector, C* product) {
    int32_t* rows = list_.data();
    int64_t found = 0;
    for (int64_t j = 0; j < args_.hidden; ++j) {
      rows[found] = static_cast<int32_t>(j);  // without a branch, which half of the units would mispredict
      found += vector[j] != 0 ? 1 : 0;
    }
    for (int64_t k = 0; k < units_; ++k) product[k] = 0;
    int64_t i = 0;
    for (; i + kRows <= found; i += kRows) add_rows(rows + i, vector, product);
    for (; i < found; ++i) add_gram_row(rows[i], vector[rows[i]], product);
  }

  void add_rows(const int32_t* rows, const C* vector, C* sum) const {
    const C* r[kRows];
    C w[kRows];
    for (int64_t i = 0; i < kRows; ++i) r[i] = gram_row(rows[i]), w[i] = vector[rows[i]];
    const C *r0 = r[0], *r1 = r[1], *r2 = r[2], *r3 = r[3], *r4 = r[4], *r5 = r[5], *r6 = r[6], *r7 = r[7];
    const C w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7];
    DROCC_SIMD()
    for (int64_t k = 0; k < args_.hidden; ++k) {
      sum[k] +=
          (w0 * r0[k] + w1 * r1[k]) + (w2 * r2[k] + w3 * r3[k]) + (w4 * r4[k] + w5 * r5[k]) + (w6 * r6[k] + w7 * r7[k]);
    }
  }

  void add_gram_row(int64_t j, C weight, C* sum) const {
    const C* row = gram_row(j);
    DROCC_SIMD()
    for (int64_t k = 0; k < args_.hidden; ++k) sum[k] += weight * row[k];
  }

  void sum_products() {
    C square = 0, size = 0, along = 0, count = 0;
    const C *on = on_, *output = output_, *gram_v = gram_v_, *u = u_;
    DROCC_SIMD(reduction(+ : square, size, along, count))
    for (int64_t j = 0; j < units_; ++j) {
      const C v = on[j] * output[j];
      const C term = v * gram_v[j];
      square += term;
      size += static_cast<C>(fabs(term));
      along += v * u[j];
      count += on[j];
    }
    grad_square_ = square, grad_terms_ = size, u_v_ = along;
    count_on_ = static_cast<int64_t>(count);
  }

  // After how many of `count` equal steps, which lead as far as `ascent` together, a unit has switched first; `count`
  // where none has before the last.
  int64_t steps_to_switch(double ascent, int64_t count) const {
    const C factor = static_cast<C>(u_scale_);
    const C step = static_cast<C>(ascent / static_cast<double>(count));
    const C way = step * static_cast<C>(count - 1);
    C switched = 0;
    DROCC_SIMD(reduction(+ : switched))
    for (int64_t j = 0; j < units_; ++j) {
      const C now = clean_[j] + factor * u_[j] + way * gram_v_[j] > 0 ? C(1) : C(0);
      switched += static_cast<C>(fabs(now - on_[j]));
    }
    if (switched == 0) return count;
    C first = static_cast<C>(count - 1);
    DROCC_SIMD(reduction(min : first))
    for (int64_t j = 0; j < units_; ++j) {
      const C z = clean_[j] + factor * u_[j];
      const C slope = step * gram_v_[j];
      const C now = z + static_cast<C>(count - 1) * slope > 0 ? C(1) : C(0);
      const C when = now != on_[j] ? -z / slope : static_cast<C>(count);
      first = when < first ? when : first;
    }
    const auto whole = static_cast<int64_t>(first);
    const int64_t next = whole + (static_cast<C>(whole) < first ? 1 : 0);
    return next < 1 ? 1 : next;
  }

  // Whether a unit has switched in the end.
  bool take(const math::HiddenStep& plan) {
    ++taken_;
    const C along = static_cast<C>(plan.ascent * inverse_u_scale_);
    travelled_ += plan.ascent * inverse_scale_;
    square_ = plan.square;
    if (plan.factor != 1.0) set_scales(scale_ * plan.factor, u_scale_ * plan.factor);
    const C factor = static_cast<C>(u_scale_);
    const C *on = on_, *clean = clean_, *gram_v = gram_v_;
    C* u = u_;
    uint8_t* switched = switched_;
    DROCC_SIMD()
    for (int64_t j = 0; j < units_; ++j) {
      u[j] += along * gram_v[j];
      const C now = clean[j] + factor * u[j] > 0 ? C(1) : C(0);
      switched[j] = now != on[j] ? 1 : 0;
    }
    u_v_ += static_cast<double>(along) * grad_square_;
    bool any = false;
    for (int64_t begin = 0; begin < units_; begin += 8) {
      uint64_t eight;
      std::memcpy(&eight, switched_ + begin, sizeof(eight));
      if (eight == 0) continue;
      any = true;
      for (int64_t j = begin; j < begin + 8; ++j) {
        if (switched_[j] != 0) toggle(j);
      }
    }
    if (any && count_on_ == 0) sum_gram_v();  // exactly 0
    return any;
  }

  // Switches a unit: v changes in one entry, and the sums with it.
  void toggle(int64_t j) {
    const C change = on_[j] == 0 ? output_[j] : -output_[j];
    if (on_[j] == 0) {
      entered_[j] = travelled_;
    } else {
      p_[j] += static_cast<C>(output_[j] * (travelled_ - entered_[j]));
    }
    count_on_ += on_[j] == 0 ? 1 : -1;
    on_[j] = 1 - on_[j];
    const double wide = change;
    const double crossed = 2.0 * wide * gram_v_[j], own = wide * wide * gram_row(j)[j];
    grad_square_ += crossed + own;
    grad_terms_ += fabs(crossed) + own;
    u_v_ += wide * u_[j];
    add_gram_row(j, change, gram_v_);
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
      const C v = on_[j] * output_[j];
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
  const int64_t units_;  // H in whole blocks
  Scratch<C> narrow_;
  Scratch<double> wide_;
  Scratch<uint8_t> bytes_;
  Scratch<int32_t> list_;
  C* on_ = nullptr;              // 1 where a unit is on, else 0
  C* u_ = nullptr;               // W h / u_scale_
  C* clean_ = nullptr;           // W x + b
  C* output_ = nullptr;          // weights of the logit
  C* v_ = nullptr;               // output_ where a unit is on: room for a product
  C* gram_v_ = nullptr;          // G v
  C* p_ = nullptr;               // but for what units that are on have gathered since they were entered
  C* start_u_ = nullptr;         // W h_0
  C* gram_p_ = nullptr;          // G p
  C* grad_ = nullptr;            // [D]
  double* entered_ = nullptr;    // travelled_ when a unit was last switched on
  uint8_t* switched_ = nullptr;  // 1 where a step has switched a unit
  C* h_ = nullptr;
  math::Shell shell_{};
  int64_t taken_ = 0;                         // ways taken since u and the sums were computed anew
  double square_ = 0.0;                       // ||h||^2
  double start_square_ = 0.0;                 // ||h_0||^2
  double scale_ = 1.0, inverse_scale_ = 1.0;  // C
  double u_scale_ = 1.0, inverse_u_scale_ = 1.0;
  double travelled_ = 0.0;    // sum of a / C
  double grad_square_ = 0.0;  // <v, G v>
  double grad_terms_ = 0.0;   // the sum of the sizes of the terms it was summed from
  double u_v_ = 0.0;          // <u_, v>
  int64_t count_on_ = 0;
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
