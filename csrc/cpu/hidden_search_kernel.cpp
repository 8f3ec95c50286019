// Compiled once per instruction set (see isa.h). One row after the other; its H hidden units stay in the first-level
// cache for all steps, and the rows of the Gram matrix in the second.
#include "hidden_search_kernel.h"

#include <bit>
#include <cstring>

#include "../math/hidden_search.h"
#include "element.h"
#include "scratch.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

using math::SerialTeam;

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
        narrow_(10 * units_ + args.length),
        wide_(units_),
        bytes_(units_),
        listed_(units_) {
    if (!ok()) return;
    C* next = narrow_.data();
    for (C** part : {&on_, &u_, &clean_, &output_, &v_, &weights_, &gram_v_, &p_, &start_u_, &gram_p_}) {
      *part = next;
      next += units_;
    }
    grad_ = next;
    entered_ = wide_.data();
    switched_ = bytes_.data();
    list_ = listed_.data();
    for (int64_t j = 0; j < units_; ++j) {
      u_[j] = gram_v_[j] = start_u_[j] = gram_p_[j] = 0;
      clean_[j] = -1;
      output_[j] = j < args.hidden ? static_cast<const C*>(args.output)[j] : C(0);
    }
  }

  bool ok() const {
    return narrow_.data() != nullptr && wide_.data() != nullptr && bytes_.data() != nullptr &&
           listed_.data() != nullptr;
  }

  void run(int64_t row) {
    const int64_t hidden = args_.hidden;
    copy(static_cast<const C*>(args_.u) + row * hidden, u_);
    for (int64_t j = hidden; j < units_; ++j) u_[j] = 0;  // a row of infinite steps leaves NaN there
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
      if (taken_ == math::kHiddenRefresh) refresh();
      const int64_t count = straight_steps(done, reach);
      const int64_t step = done + count;
      const bool project = step % args_.project_every == 0 || (args_.project_last && step == args_.num_steps);
      // Where the terms of <v, G v> cancel or underflow, or ||h|| is 0, only h itself can tell.
      const bool sound = math::sum_is_safe<C>(grad_square_) && grad_square_ > math::kLeastShare<C> * grad_terms_;
      const double length = args_.step_size * static_cast<double>(count);
      const math::HiddenStep plan =
          math::plan_hidden_step(square_, grad_square_, u_scale_ * u_v_, length, shell_, project);
      if (!((count_on_ == 0 || sound) && plan.exact && plan.square > 0.0 && scale_ > 1e-12 &&
            scale_ < math::kMostHiddenScale)) {
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
    C* end_u = static_cast<C*>(args_.u) + row * hidden;
    C* coefficients = static_cast<C*>(args_.coefficients) + row * hidden;
    const C factor = static_cast<C>(u_scale_);
    for (int64_t j = 0; j < hidden; ++j) {
      end_u[j] = factor * u_[j];
      coefficients[j] = p_[j];
    }
    static_cast<C*>(args_.scale)[row] = static_cast<C>(scale_);
  }

 private:
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

  // Of two vectors of D.
  double dot(const C* a, const C* b) const {
    return math::sum_of(SerialTeam{}, args_.length,
                        [&](int64_t i) { return static_cast<double>(a[i]) * static_cast<double>(b[i]); });
  }

  // h and u are up to date.
  void start_from_h() {
    square_ = start_square_ = dot(h_, h_);
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
    const C *p = p_, *start_u = start_u_, *gram_p = gram_p_;
    C* u = u_;
    DROCC_SIMD(reduction(+ : square))
    for (int64_t j = 0; j < units_; ++j) {
      square += static_cast<double>(p[j]) * (2.0 * start_u[j] + gram_p[j]);
      u[j] = scale * (start_u[j] + gram_p[j]);
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

  void multiply_gram(const C* vector, C* product) {
    int64_t found = 0;
    for (int64_t j = 0; j < args_.hidden; ++j) {
      list_[found] = static_cast<int32_t>(j);  // without a branch, which half of the units would mispredict
      weights_[found] = vector[j];
      found += vector[j] != 0 ? 1 : 0;
    }
    for (int64_t k = 0; k < units_; ++k) product[k] = 0;
    add_listed_rows(found, product);
  }

  // Adds the first `count` listed rows of G with their weights, several in one pass over the sum.
  void add_listed_rows(int64_t count, C* sum) const {
    int64_t i = 0;
    for (; i + kRows <= count; i += kRows) add_rows<kRows>(i, sum);
    for (; i + 2 <= count; i += 2) add_rows<2>(i, sum);
    if (i < count) add_rows<1>(i, sum);
  }

  template <int kCount>
  void add_rows(int64_t first, C* sum) const {
    const C* rows[kCount];
    C weights[kCount];
    for (int i = 0; i < kCount; ++i) {
      rows[i] = static_cast<const C*>(args_.gram) + list_[first + i] * args_.hidden;
      weights[i] = weights_[first + i];
    }
    DROCC_SIMD()
    for (int64_t k = 0; k < args_.hidden; ++k) {
      C value = sum[k];
      for (int i = 0; i < kCount; ++i) value += weights[i] * rows[i][k];
      sum[k] = value;
    }
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
    const int64_t count = list_switched();
    if (count > 0) toggle_listed(count);
    return count > 0;
  }

  // Lists the units with a 1 in `switched_`; returns how many there are.
  int64_t list_switched() {
    static_assert(std::endian::native == std::endian::little);
    int64_t count = 0;
    for (int64_t begin = 0; begin < units_; begin += 64) {
      uint64_t units = 0;
      const int64_t end = units_ - begin < 64 ? units_ - begin : 64;
      for (int64_t j = 0; j < end; j += 8) {
        uint64_t eight;
        std::memcpy(&eight, switched_ + begin + j, sizeof(eight));
        units |= (eight * 0x0102040810204080u >> 56) << j;  // the lowest bit of each of the eight bytes
      }
      for (; units != 0; units &= units - 1) list_[count++] = static_cast<int32_t>(begin + __builtin_ctzll(units));
    }
    return count;
  }

  // Switches the listed units: v changes by d in their entries, <v, G v> by <d, G v> before and after.
  void toggle_listed(int64_t count) {
    const double travelled = travelled_;
    double square = 0.0, size = 0.0, u_v = 0.0, more = 0.0;
    for (int64_t i = 0; i < count; ++i) {  // without branches: they would be mispredicted
      const int64_t j = list_[i];
      const C on = on_[j];
      p_[j] += static_cast<C>(on * output_[j] * (travelled - entered_[j]));
      entered_[j] = travelled;
      on_[j] = C(1) - on;
      const C sign = C(1) - 2 * on;
      const C change = sign * output_[j];
      weights_[i] = change;
      more += sign;
      const double before = static_cast<double>(change) * gram_v_[j];
      square += before;
      size += fabs(before);
      u_v += static_cast<double>(change) * u_[j];
    }
    count_on_ += static_cast<int64_t>(more);
    u_v_ += u_v;
    add_listed_rows(count, gram_v_);
    for (int64_t i = 0; i < count; ++i) {
      const double after = static_cast<double>(weights_[i]) * gram_v_[list_[i]];
      square += after;
      size += fabs(after);
    }
    grad_square_ += square;
    grad_terms_ += size;
    if (count_on_ == 0) sum_gram_v();  // exactly 0
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
      u_[j] = static_cast<C>(dot(weight_row(j), h_));
    }
    start_from_h();
  }

  const HiddenSearchArgs& args_;
  const int64_t units_;  // H in whole blocks
  Scratch<C> narrow_;
  Scratch<double> wide_;
  Scratch<uint8_t> bytes_;
  Scratch<int32_t> listed_;
  C* on_ = nullptr;              // 1 where a unit is on, else 0
  C* u_ = nullptr;               // W h / u_scale_
  C* clean_ = nullptr;           // W x + b
  C* output_ = nullptr;          // weights of the logit
  C* v_ = nullptr;               // output_ where a unit is on: room for a product
  C* weights_ = nullptr;         // of the listed rows
  C* gram_v_ = nullptr;          // G v
  C* p_ = nullptr;               // but for what units that are on have gathered since they were entered
  C* start_u_ = nullptr;         // W h_0
  C* gram_p_ = nullptr;          // G p
  C* grad_ = nullptr;            // [D]
  double* entered_ = nullptr;    // travelled_ when a unit was last switched on
  int32_t* list_ = nullptr;      // units
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

extern const HiddenSearchRows hidden_search_kernels = {{search_rows<float>, search_rows<double>}};

}  // namespace drocc::cpu::DROCC_ISA
