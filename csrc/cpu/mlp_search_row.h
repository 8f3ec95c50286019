// One row of a search in a deep network: what is kept for it, and how it walks until a unit switches. Torch-free;
// included by files that are compiled once per instruction set.
#pragma once

#include "../math/mahalanobis_shell.h"
#include "mlp_pack.h"
#include "mlp_search_kernel.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

using math::SerialTeam;

// Switches that are followed up one by one through Jacobians; where there are more, they are computed anew.
constexpr int64_t kMostChanges = 8;

// Layers are counted from 0.
template <typename C>
struct MlpRow {
  // Vectors of the first layer's units.
  C* clean;  // W_0 x + b_0
  C* u;      // W_0 h
  C* q;      // how u moves with h along the gradient
  C* v;      // D_0 y_0: g = W_0^T v, in the scale of the packed weights
  C* p;      // among units: h = scale (h_0 + W_0^T (p + travelled v))
  C* g;      // through inputs: the gradient; else room for a vector of inputs
  // Of every layer that is followed: z = still + moving, which moves along moving_q. The first one's are clean, u and
  // q.
  C* still[kMostMlpLayers];
  C* moving[kMostMlpLayers];
  C* moving_q[kMostMlpLayers];
  // With Jacobians: how moving depends on h, [D, units] of every layer but the first, and what a switch adds.
  C* jacobian[kMostMlpLayers];
  C* change[2];  // [kMostChanges, units]: the change of layer l is change, times...
  C* along;      // [kMostChanges, D + 2]: ... that of the Jacobian, of still and of moving
  int64_t changes;
  C* z[kMostMlpLayers];           // pre-activations
  C* y[kMostMlpLayers];           // what comes back to a layer; the last one's is shared by all rows
  C* scaled[2];                   // for leaky units: a vector times their slopes
  uint64_t* on[kMostMlpLayers];   // units that were on when the gradient was taken
  uint64_t* now[kMostMlpLayers];  // that are on here

  C* h;
  int64_t index;
  math::Shell shell;
  int64_t done;        // steps
  int64_t taken;       // ways since everything was computed anew
  double square;       // ||h||^2
  double scale;        // C: an error of ||h||, which no step corrects, grows with it
  double travelled;    // sum of a / C since v changed
  double grad_square;  // ||g||^2, in the scale of the packed weights
  double grad_terms;   // the sum of the sizes of the terms it was summed from
  double h_grad;       // <h, g>
  bool no_grad;        // g is exactly 0
  // Steps along one straight line are taken at once: `reach` is how many are tried, `sure` how many are known to switch
  // no unit before the last of them; `quiet` steps passed without a switch.
  int64_t reach, sure, quiet;
  int followed;   // layers whose units are followed from step to step, the first one always
  bool entering;  // all will be, from the next step on
  bool moved;     // h has changed without u
  bool anew;      // compute everything anew
  bool lift;      // bring h up to date
  bool in_full;   // take a step in the space of inputs, with a projection or not
  bool project;
  bool new_grad;
};

// How a row walks alone; what it then needs is computed by MlpBlock.
template <typename C>
class MlpWalk {
 public:
  MlpWalk(const PackedMlp<C>& network, const MlpSearchArgs& args)
      : net_(network),
        args_(args),
        among_units_(network.gram.data != nullptr),
        along_of_ascent_(among_units_ ? 1.0 / network.first_scale : 1.0) {}

 protected:
  using Row = MlpRow<C>;

  // Takes steps until a unit switches (one step where not all layers are followed), h must be computed, or the search
  // ends. Returns whether a unit has switched, of layers that are all followed.
  bool walk(Row& row) const {
    while (row.done < args_.num_steps) {
      if (args_.sigma != nullptr) {
        step_mahalanobis(row);
        return false;
      }
      if (row.taken >= math::kHiddenRefresh) {
        row.lift = row.moved = row.anew = true;
        return false;
      }
      const int64_t count = row.followed == net_.layers ? straight_steps(row) : 1;
      const int64_t step = row.done + count;
      const bool project = projects_after(step);
      // Where the terms of ||g||^2 cancel or underflow, or ||h|| is 0, only h itself can tell.
      const bool sound =
          math::sum_is_safe<C>(row.grad_square) && row.grad_square > math::kLeastShare<C> * row.grad_terms;
      const double length = args_.step_size * static_cast<double>(count);
      const math::HiddenStep plan =
          math::plan_hidden_step(row.square, row.grad_square, row.h_grad, length, row.shell, project);
      if (!((row.no_grad || sound) && plan.exact && plan.square > 0.0 && row.scale > 1e-12 &&
            row.scale < math::kMostHiddenScale)) {
        row.reach = 1;
        if (count > 1) continue;
        row.done = step;
        row.in_full = row.moved = true;
        row.lift = true;
        row.project = project;
        return false;
      }
      if (count > row.sure) {
        row.sure = steps_to_switch(row, plan.ascent, count);
        if (row.sure < count) {
          row.reach = row.sure;
          continue;
        }
      }
      const bool switches = take(row, plan);
      row.done = step;
      row.sure = 1;
      row.quiet = switches ? 0 : row.quiet + count;
      row.reach = count > 1 ? 2 * count : row.quiet > 3 ? 4 : 1;
      if (switches || row.followed < net_.layers) return row.followed == net_.layers;
    }
    return false;
  }

  bool projects_after(int64_t step) const {
    return step % args_.project_every == 0 || (args_.project_last && step == args_.num_steps);
  }

  // The step in the space of inputs, from h and g.
  void step_in_full(Row& row) const {
    const FullRow view{row.h, row.g};
    if (row.project) {
      math::step_row_exact<true, true>(SerialTeam{}, net_.inputs, view, args_.step_size, row.shell);
    } else {
      math::step_row_exact<true, false>(SerialTeam{}, net_.inputs, view, args_.step_size, row.shell);
    }
  }

  double dot(const C* a, const C* b, int64_t count) const {
    return math::sum_of(SerialTeam{}, count,
                        [&](int64_t i) { return static_cast<double>(a[i]) * static_cast<double>(b[i]); });
  }

  const PackedMlp<C>& net_;
  const MlpSearchArgs& args_;
  const bool among_units_;
  const double along_of_ascent_;
  double* moved_row_ = nullptr;  // [D], with sigma

 private:
  struct FullRow {
    C* h_row;
    const C* grad_row;
    double h(int64_t i) const { return h_row[i]; }
    double grad(int64_t i) const { return grad_row[i]; }
    void store(int64_t i, double value) const { h_row[i] = static_cast<C>(value); }
  };

  struct SigmaRow {
    static constexpr bool kScaled = sizeof(C) == 8;
    const double* moved;
    const C* sigma_row;
    C* out;
    DROCC_HD_MEMBER double d(int64_t i) const { return moved[i]; }
    DROCC_HD_MEMBER double sigma(int64_t i) const { return sigma_row[i]; }
    DROCC_HD_MEMBER void store(int64_t i, double value) const { out[i] = static_cast<C>(value); }
  };

  void step_mahalanobis(Row& row) const {
    ++row.done;
    ++row.taken;
    row.moved = true;
    row.project = projects_after(row.done);
    if (row.taken >= math::kHiddenRefresh) row.anew = true;
    if (!row.project) {
      step_in_full(row);
      return;
    }
    const int64_t n = net_.inputs;
    const C *h = row.h, *g = row.g;
    const math::Ascent ascent = math::make_ascent(
        math::scaled_norm(SerialTeam{}, n, [&](int64_t i) -> double { return g[i]; }), args_.step_size);
    double* moved = moved_row_;
    DROCC_SIMD()
    for (int64_t i = 0; i < n; ++i) moved[i] = ascent(h[i], g[i]);
    const SigmaRow view{moved, static_cast<const C*>(args_.sigma) + row.index * args_.sigma_stride, row.h};
    constexpr double kEnough = sizeof(C) == 4 ? 1e-5 : 1e-9;
    const auto plan = math::plan_projection<double>(SerialTeam{}, n, view, row.shell, args_.grid_points, kEnough);
    math::write_projection(SerialTeam{}, n, view, plan);
  }

  // How many of the next steps, `reach` at the most, no projection bends but after the last of them.
  int64_t straight_steps(const Row& row) const {
    const int64_t left = args_.num_steps - row.done;
    const int64_t count = row.reach < left ? row.reach : left;
    const int64_t free = args_.project_every - row.done % args_.project_every;
    if (count <= free) return count;
    const double length = args_.step_size * static_cast<double>(count - 1);
    const bool stays =
        math::stays_in_shell(row.square, row.grad_square, row.h_grad, args_.step_size, length, row.shell);
    return stays ? count : free;
  }

  // After how many of `count` equal steps, which lead as far as `ascent` together, a unit has switched first; `count`
  // where none has before the last.
  int64_t steps_to_switch(const Row& row, double ascent, int64_t count) const {
    const C step = static_cast<C>(ascent * along_of_ascent_ / static_cast<double>(count));
    int64_t first = count;
    for (int l = 0; l < net_.layers; ++l) {
      const int64_t here = steps_to_switch(row.still[l], row.moving[l], row.moving_q[l], net_.wide[l], step, count);
      first = here < first ? here : first;
    }
    return first;
  }

  static int64_t steps_to_switch(const C* still, const C* moving, const C* q, int64_t units, C step, int64_t count) {
    const C way = static_cast<C>(count - 1) * step;
    C first = static_cast<C>(count);
    DROCC_SIMD(reduction(min : first))
    for (int64_t j = 0; j < units; ++j) {
      const C z = still[j] + moving[j];
      const C slope = step * q[j];
      const bool switches = (z + way * q[j] > 0) != (z > 0);
      const C when = switches ? -z / slope : static_cast<C>(count);
      first = when < first ? when : first;
    }
    const auto whole = static_cast<int64_t>(first);
    const int64_t next = whole + (static_cast<C>(whole) < first ? 1 : 0);
    return next < 1 ? 1 : (next > count ? count : next);
  }

  // Whether a unit that is followed has switched in the end.
  bool take(Row& row, const math::HiddenStep& plan) const {
    ++row.taken;
    const C along = static_cast<C>(plan.ascent * along_of_ascent_);
    const C factor = static_cast<C>(plan.factor);
    if (among_units_) {
      row.travelled += plan.ascent / row.scale;
    } else {
      const C ascent = static_cast<C>(plan.ascent);
      C* h = row.h;
      const C* g = row.g;
      DROCC_SIMD()
      for (int64_t i = 0; i < net_.inputs; ++i) h[i] = factor * (h[i] + ascent * g[i]);
    }
    row.scale *= plan.factor;
    row.square = plan.square;
    row.h_grad = plan.factor * (row.h_grad + plan.ascent * row.grad_square);
    bool switches = false;
    for (int l = 0; l < row.followed; ++l) {
      switches |= take_layer(row, l, row.still[l], row.moving[l], row.moving_q[l], along, factor);
    }
    return switches;
  }

  bool take_layer(Row& row, int l, const C* still, C* moving, const C* q, C along, C factor) const {
    C* z = row.z[l];
    return simd::positive_words<C>(net_.wide[l], row.on[l], row.now[l], [&](int64_t j) {
      const simd::Vector<C> there = factor * (simd::load(moving + j) + along * simd::load(q + j));
      const simd::Vector<C> value = simd::load(still + j) + there;
      simd::store(moving + j, there);
      simd::store(z + j, value);
      return value;
    });
  }
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
