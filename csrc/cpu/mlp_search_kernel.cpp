// Compiled once per instruction set (see isa.h). A block of rows walks together: each row as far as it gets alone, then
// all of them the products that their switched units ask for, so that a matrix is read once for many rows.
#include "mlp_search_jacobian.h"

#include <new>

namespace drocc::cpu::DROCC_ISA {
namespace {

// Where more units of the first layer switch at once, following the second costs more than computing it.
constexpr int64_t kBusy = 4;

// Adding a row of a matrix for each unit that has switched, instead of one for each that is on, pays up to this share.
constexpr int64_t kDense = 4;

template <typename C>
class MlpBlock : MlpJacobians<C> {
  using Row = MlpRow<C>;
  using Base = MlpJacobians<C>;
  using Base::add_scaled;
  using Base::add_up;
  using Base::all_;
  using Base::among_units_;
  using Base::args_;
  using Base::count_;
  using Base::each_switched;
  using Base::kRows;
  using Base::last_;
  using Base::measure;
  using Base::multiply_by_slopes;
  using Base::net_;
  using Base::products_;
  using Base::read_units;
  using Base::switched;
  using Base::words;

 public:
  MlpBlock(const PackedMlp<C>& network, const MlpSearchArgs& args)
      : Base(network, args), follows_(network.layers <= 2 && args.sigma == nullptr && !network.jacobians) {}

  // Where there is next to nothing to share, their vectors shall stay in the first-level cache.
  int64_t rows_at_once() const {
    const bool alone = net_.layers == 1 && !among_units_;
    return alone || (net_.jacobians && net_.layers == 2) ? 4 : kRows;
  }

  bool allocate() {
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1 && !arena_.allocate()) return false;
      for (int64_t i = 0; i < rows_at_once(); ++i) divide(rows_[i]);
      this->moved_row_ = args_.sigma != nullptr ? arena_.template take<double>(net_.inputs) : nullptr;
    }
    return true;
  }

  void run(int64_t begin, int64_t end) {
    count_ = 0;
    for (int64_t i = begin; i < end; ++i) start(rows_[count_], i);
    products_.run(net_.forward[0]);
    for (int64_t i = 0; i < count_; ++i) write(all_[i]->clean, nullptr, args_.clean, all_[i]->index);
    for (;;) {
      lift_rows();
      place_moved_rows();
      drop_finished_rows();
      if (count_ == 0) return;
      if (net_.jacobians) {
        this->change_jacobians();
        this->jacobian_direction();
      } else {
        forward();
        backward();
        direction();
        follow();
      }
      settle();
      for (int64_t i = 0; i < count_; ++i) {
        while (this->walk(*all_[i]) && turn(*all_[i])) {
        }
      }
    }
  }

 private:
  void divide(Row& row) {
    const int64_t first = net_.wide[0];
    for (C** part : {&row.clean, &row.u, &row.q, &row.v, &row.p}) *part = arena_.template take<C>(first);
    row.g = arena_.template take<C>(net_.wide_inputs);
    int64_t widest = 0;
    bool leaky = false;
    for (int l = 0; l < net_.layers; ++l) {
      row.z[l] = arena_.template take<C>(net_.wide[l]);
      row.y[l] = l < last_ ? arena_.template take<C>(net_.wide[l]) : nullptr;
      row.on[l] = arena_.template take<uint64_t>(words(l));
      row.now[l] = arena_.template take<uint64_t>(words(l));
      widest = net_.wide[l] > widest ? net_.wide[l] : widest;
      leaky |= net_.slope[l] != 0;
    }
    for (C*& part : row.scaled) part = leaky ? arena_.template take<C>(widest) : nullptr;
    row.still[0] = row.clean, row.moving[0] = row.u, row.moving_q[0] = row.q;
    for (int l = 1; l < net_.layers; ++l) {
      if (!follows_ && !net_.jacobians) break;
      for (C** part : {row.still + l, row.moving + l, row.moving_q + l}) *part = arena_.template take<C>(net_.wide[l]);
    }
    if (!net_.jacobians) return;
    for (int l = 1; l < net_.layers; ++l) row.jacobian[l] = arena_.template take<C>(net_.inputs * net_.wide[l]);
    for (C*& part : row.change) part = arena_.template take<C>(kMostChanges * widest);
    row.along = arena_.template take<C>(kMostChanges * (net_.inputs + 2));
  }

  const C* back(const Row& row, int l) const { return l == last_ ? net_.output : row.y[l]; }

  void start(Row& row, int64_t index) {
    row.index = index;
    row.h = static_cast<C*>(args_.h) + index * net_.inputs;
    const C radius =
        args_.radius_rows != nullptr ? static_cast<const C*>(args_.radius_rows)[index] : static_cast<C>(args_.radius);
    row.shell = math::make_shell(radius, args_.gamma);
    row.done = row.taken = row.quiet = 0;
    row.reach = args_.num_steps;
    row.sure = 1;
    row.followed = net_.jacobians ? net_.layers : 1;
    row.lift = row.in_full = row.entering = row.new_grad = false;
    row.moved = row.anew = true;
    row.travelled = 0.0;
    products_.add(static_cast<const C*>(args_.x) + index * net_.inputs, net_.ones, net_.bias[0], row.clean);
    all_[count_++] = &row;
  }

  // vector * D_l as factors and bits of a product: either as it is, among the units that are on, or multiplied.
  void add_masked(Row& row, int l, const C* vector, const C* start, C* out, int room = 0) {
    if (net_.slope[l] == 0) {
      products_.add(vector, row.now[l], start, out);
      return;
    }
    multiply_by_slopes(row, l, vector, row.scaled[room]);
    products_.add(row.scaled[room], net_.all[l], start, out);
  }

  // Whether so few units have switched that their changes are added one by one.
  bool few_switched(const Row& row, int l, int64_t count) const {
    return count * kDense <= (net_.slope[l] == 0 ? count_bits(row.now[l], words(l)) : net_.units[l]);
  }

  // ---- the parts of a round ------------------------------------------------------------------------------------

  // Among units: h = scale (h_0 + W_0^T p). And the steps that are taken there.
  void lift_rows() {
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      row.lift |= row.done == args_.num_steps && !row.moved;
      if (!row.lift || !among_units_) continue;
      keep_way(row);
      products_.add(row.p, net_.all[0], nullptr, row.g);
    }
    products_.run(net_.backward[0]);
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (row.lift && among_units_) {
        const C scale = static_cast<C>(row.scale);
        DROCC_SIMD()
        for (int64_t k = 0; k < net_.inputs; ++k) row.h[k] = scale * (row.h[k] + row.g[k]);
        if (row.in_full) products_.add(row.v, net_.all[0], nullptr, row.g);
      }
      row.lift = false;
    }
    products_.run(net_.backward[0]);
    for (int64_t i = 0; i < count_; ++i) {
      if (all_[i]->in_full) this->step_in_full(*all_[i]);
      all_[i]->in_full = false;
    }
  }

  void place_moved_rows() {
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (row.moved) products_.add(row.h, net_.ones, nullptr, row.u);
    }
    products_.run(net_.forward[0]);
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (!row.moved) continue;
      C* z = row.z[0];
      C poison = 0;  // NaN where a unit is not finite
      DROCC_SIMD(reduction(+ : poison))
      for (int64_t j = 0; j < net_.wide[0]; ++j) {
        z[j] = row.clean[j] + row.u[j];
        poison += z[j] - z[j];
        row.p[j] = 0;
      }
      read_units(row, 0);
      row.square = this->dot(row.h, row.h, net_.inputs);
      row.scale = 1.0;
      row.travelled = 0.0;
      if (row.anew) row.taken = 0;
      if (!(poison == 0) || !math::is_finite(row.square) || !net_.finite) {
        for (int64_t k = 0; k < net_.inputs; ++k) row.h[k] = static_cast<C>(math::quiet_nan());
        for (int64_t j = 0; j < net_.wide[0]; ++j) row.u[j] = static_cast<C>(math::quiet_nan());
        row.done = args_.num_steps;
      }
    }
  }

  void drop_finished_rows() {
    int64_t left = 0;
    for (int64_t i = 0; i < count_; ++i) {
      Row* row = all_[i];
      if (row->done < args_.num_steps) {
        all_[left++] = row;
      } else {
        if (args_.sigma == nullptr && args_.num_steps > 0 && this->projects_after(args_.num_steps)) to_shell(*row);
        write(row->clean, row->u, args_.adv, row->index);
      }
    }
    count_ = left;
  }

  // What the recurrence for ||h|| has lost: the search ends on the shell to rounding.
  void to_shell(Row& row) const {
    const double norm = sqrt(this->dot(row.h, row.h, net_.inputs));
    const C factor = static_cast<C>(math::shell_factor(norm, row.shell));
    if (factor == C(1)) return;
    for (int64_t k = 0; k < net_.inputs; ++k) row.h[k] *= factor;
    for (int64_t j = 0; j < net_.wide[0]; ++j) row.u[j] *= factor;
  }

  void write(const C* a, const C* b, void* to, int64_t index) const {
    C* out = static_cast<C*>(to) + index * net_.units[0];
    for (int64_t j = 0; j < net_.units[0]; ++j) out[j] = b == nullptr ? a[j] : a[j] + b[j];
  }

  // The units of all layers but the first.
  void forward() {
    for (int l = 1; l < net_.layers; ++l) {
      const C* bias = net_.bias[l];
      for (int64_t i = 0; i < count_; ++i) {
        Row& row = *all_[i];
        if (row.followed == 2 && !row.moved && !row.anew) {
          const int64_t count = switched(row, 0);
          if (count == 0) continue;
          if (count <= kBusy) {
            switch_followed(row);
            continue;
          }
          row.followed = 1;
        }
        if (row.followed == 2) {
          add_masked(row, 0, row.clean, bias, row.still[1], 0);
          add_masked(row, 0, row.u, nullptr, row.moving[1], 1);
        } else {
          add_masked(row, l - 1, row.z[l - 1], bias, row.z[l]);
        }
      }
      products_.run(net_.forward[l]);
      for (int64_t i = 0; i < count_; ++i) {
        Row& row = *all_[i];
        if (row.followed == 2) add_up(row, 1);
        read_units(row, l);
      }
    }
    if (!follows_ || net_.layers == 1) return;
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      row.entering = row.followed == 1 && !row.moved && !row.anew && switched(row, 0) + switched(row, 1) == 0;
    }
  }

  void switch_followed(Row& row) const {
    each_switched(row, 0, [&](int64_t j, C change) {
      net_.forward[1].add_row(j, change * row.clean[j], row.still[1]);
      net_.forward[1].add_row(j, change * row.u[j], row.moving[1]);
    });
  }

  void backward() {
    for (int64_t i = 0; i < count_; ++i) all_[i]->new_grad = all_[i]->anew;
    for (int l = last_; l > 0; --l) {
      for (int64_t i = 0; i < count_; ++i) {
        Row& row = *all_[i];
        const C* y = back(row, l);
        if (!row.new_grad) {
          const int64_t count = switched(row, l);
          if (count == 0) continue;
          row.new_grad = true;
          if (few_switched(row, l, count)) {
            each_switched(row, l,
                          [&](int64_t k, C change) { net_.backward[l].add_row(k, change * y[k], row.y[l - 1]); });
            continue;
          }
        }
        add_masked(row, l, y, nullptr, row.y[l - 1]);
      }
      products_.run(net_.backward[l]);
    }
  }

  // What a row that has walked until a unit switched can do alone, where all that it needs are some rows of G: others
  // wait for the round.
  bool turn(Row& row) const {
    if (net_.layers > 1 || !among_units_ || row.done == args_.num_steps) return false;
    if (!few_switched(row, 0, switched(row, 0))) return false;
    turn_among_units(row);
    measure(row);
    keep_switches(row);
    return true;
  }

  void turn_among_units(Row& row) const {
    const C* y = back(row, 0);
    keep_way(row);
    multiply_by_slopes(row, 0, y, row.v);
    each_switched(row, 0, [&](int64_t j, C change) { net_.gram.add_row(j, change * y[j], row.q); });
  }

  // Before v changes: p with what the way along it has been.
  void keep_way(Row& row) const {
    add_scaled(static_cast<C>(row.travelled), row.v, row.p, net_.wide[0]);
    row.travelled = 0.0;
  }

  // v, and which way it leads.
  void direction() {
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      const int64_t count = row.new_grad ? 0 : switched(row, 0);
      if (!row.new_grad && count == 0) continue;
      const bool few = !row.new_grad && among_units_ && few_switched(row, 0, count);
      row.new_grad = true;
      if (few) {
        turn_among_units(row);
        continue;
      }
      if (among_units_ && !row.anew) keep_way(row);
      multiply_by_slopes(row, 0, back(row, 0), row.v);
      const uint64_t* on = net_.slope[0] == 0 ? row.now[0] : net_.all[0];
      products_.add(row.v, on, nullptr, among_units_ ? row.q : row.g);
    }
    if (among_units_) {
      products_.run(net_.gram);
    } else {
      products_.run(net_.backward[0]);
    }
    if (args_.sigma != nullptr) return;
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (row.new_grad && !among_units_) products_.add(row.g, net_.ones, nullptr, row.q);
    }
    products_.run(net_.forward[0]);
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (row.new_grad || row.moved) measure(row);
    }
  }

  // How the second layer's units move.
  void follow() {
    if (!follows_ || net_.layers == 1) return;
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (row.entering) add_masked(row, 0, row.clean, net_.bias[1], row.still[1], 1);
      if (row.entering || (row.followed == 2 && row.new_grad)) add_masked(row, 0, row.q, nullptr, row.moving_q[1]);
    }
    products_.run(net_.forward[1]);
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      if (!row.entering) continue;
      row.followed = 2;
      const C *z = row.z[1], *still = row.still[1];
      C* moving = row.moving[1];
      DROCC_SIMD()
      for (int64_t k = 0; k < net_.wide[1]; ++k) moving[k] = z[k] - still[k];
    }
  }

  void settle() {
    for (int64_t i = 0; i < count_; ++i) {
      Row& row = *all_[i];
      row.moved = row.anew = row.entering = false;
      if (row.new_grad) keep_switches(row);
    }
  }

  void keep_switches(Row& row) const {
    for (int l = 0; l < net_.layers; ++l) {
      for (int64_t w = 0; w < words(l); ++w) row.on[l][w] = row.now[l][w];
    }
  }

  const bool follows_;
  simd::Arena arena_;
  Row rows_[kRows];
};

template <typename C>
void* pack(const MlpView& network, math::MlpWay way) {
  auto* packed = new (std::nothrow) PackedMlp<C>;
  if (packed != nullptr && !packed->pack(network, way)) {
    delete packed;
    packed = nullptr;
  }
  return packed;
}

template <typename C>
void release(void* packed) {
  delete static_cast<PackedMlp<C>*>(packed);
}

template <typename C>
bool search(const void* packed, const MlpSearchArgs& args, int64_t begin, int64_t end) {
  MlpBlock<C> block(*static_cast<const PackedMlp<C>*>(packed), args);
  if (!block.allocate()) return false;
  const int64_t some = block.rows_at_once();
  for (int64_t row = begin; row < end; row += some) block.run(row, end - row < some ? end : row + some);
  return true;
}

}  // namespace

extern const MlpSearchKernels mlp_search_kernels = {
    {pack<float>, pack<double>}, {release<float>, release<double>}, {search<float>, search<double>}};

}  // namespace drocc::cpu::DROCC_ISA
