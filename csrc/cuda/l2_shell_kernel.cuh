// One row of the l2 shell operators, by a team of threads. Host and device: the tests run it with teams of threads.
// Arithmetic is in Compute (float for float and the half types); double only in rows that plan_step declines, and in
// backward passes.
#pragma once

#include "../math/l2_shell.h"
#include "../row_args.h"
#include "element.h"

namespace drocc::cuda {

template <typename T>
DROCC_HD math::Shell shell_of(const void* radius_rows, double radius, double gamma, int64_t row) {
  // In Compute either way: a radius outside its range is as bad as a row's radius of 0 or infinity.
  return math::make_shell(
      radius_rows != nullptr ? static_cast<const Compute<T>*>(radius_rows)[row] : static_cast<Compute<T>>(radius),
      gamma);
}

template <typename T>
struct L2ExactRow {
  const T* h_row;
  const T* grad_row;
  T* out_row;
  DROCC_HD_MEMBER double h(int64_t i) const { return to_compute(h_row[i]); }
  DROCC_HD_MEMBER double grad(int64_t i) const { return to_compute(grad_row[i]); }
  DROCC_HD_MEMBER void store(int64_t i, double value) const { from_compute(value, out_row + i); }
};

// h.h, h.grad and grad.grad of a thread's share of a row.
template <bool kAscent, typename C>
DROCC_HD void add_products(C (&sums)[3], C h, C grad) {
  sums[0] += h * h;
  if constexpr (kAscent) {
    sums[1] += h * grad;
    sums[2] += grad * grad;
  }
}

template <typename C>
DROCC_HD void add_sums(C (&sums)[3], const C (&part)[3]) {
  DROCC_UNROLL
  for (int k = 0; k < 3; ++k) sums[k] += part[k];
}

// aligned: every row of every operand starts at a multiple of 16 bytes and is one long. Such rows are held in registers
// (the team says whether they fit); others are read a second time, mostly from a cache.
template <typename T, int kSlots, bool kAscent, bool kShell, typename Team>
DROCC_HD void l2_shell_row(const Team& team, const L2ShellRowsArgs& args, bool aligned, int64_t row) {
  using C = Compute<T>;
  constexpr int kCount = Pack<T>::kCount;
  const int64_t offset = row * args.length;
  const T* h = static_cast<const T*>(args.h) + offset;
  const T* grad = kAscent ? static_cast<const T*>(args.grad) + offset : h;
  T* out = static_cast<T*>(args.out) + offset;
  const int begin = team.part_begin();
  const int end = team.part_end(args.length);
  const bool held = aligned && team.on_chip();

  // Sums over a few elements first, then over these: fewer roundings in a row.
  Tile<T, kSlots> h_tile;
  Tile<T, kSlots> grad_tile;
  C sums[3] = {0, 0, 0};
  if (held) {
    h_tile.load(team, h, begin, end);
    if constexpr (kAscent) grad_tile.load(team, grad, begin, end);
    DROCC_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      C part[3] = {0, 0, 0};
      DROCC_UNROLL
      for (int e = 0; e < kCount; ++e) {
        add_products<kAscent>(part, h_tile.packs[slot].get(e), kAscent ? grad_tile.packs[slot].get(e) : C(0));
      }
      add_sums(sums, part);
    }
  } else {
    constexpr int kAtOnce = 16;
    for (int first = begin + team.rank(); first < end; first += kAtOnce * team.threads()) {
      C part[3] = {0, 0, 0};
      DROCC_UNROLL_BY(4)
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * team.threads();
        if (i < end) add_products<kAscent>(part, to_compute(h[i]), kAscent ? to_compute(grad[i]) : C(0));
      }
      add_sums(sums, part);
    }
  }
  if constexpr (kAscent) {
    team.sum_all(sums);
  } else {
    sums[0] = team.sum(sums[0]);
  }

  const math::Shell shell =
      kShell ? shell_of<T>(args.radius_rows, args.radius, args.gamma, row) : math::Shell{1.0, 1.0};
  const auto plan = math::plan_step<C, kAscent, kShell>(math::StepSums<C>{sums[2], sums[1], sums[0]},
                                                        static_cast<C>(args.step_size), shell);
  const auto apply = [&](C x, C g) { return math::apply_step<kAscent>(x, g, plan.ascent, plan.scale); };
  if (!plan.usable) {
    // In place, a thread writes here what another one has read: shuffles do not order memory.
    team.sync();
    const L2ExactRow<T> view{h, grad, out};
    math::step_row_exact<kAscent, kShell>(team, args.length, view, args.step_size, shell);
  } else if (held) {
    DROCC_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      DROCC_UNROLL
      for (int e = 0; e < kCount; ++e) {
        h_tile.packs[slot].set(e, apply(h_tile.packs[slot].get(e), kAscent ? grad_tile.packs[slot].get(e) : C(0)));
      }
    }
    h_tile.store(team, out, begin, end);
  } else {
    DROCC_UNROLL_BY(4)
    for (int i = begin + team.rank(); i < end; i += team.threads()) {
      from_compute(apply(to_compute(h[i]), kAscent ? to_compute(grad[i]) : C(0)), out + i);
    }
  }
}

template <typename T>
struct L2BackwardRow {
  const T* h_row;
  const T* grad_row;
  const T* upstream_row;
  T* grad_h_row;
  T* grad_grad_row;
  DROCC_HD_MEMBER double h(int64_t i) const { return to_compute(h_row[i]); }
  DROCC_HD_MEMBER double grad(int64_t i) const { return to_compute(grad_row[i]); }
  DROCC_HD_MEMBER double upstream(int64_t i) const { return to_compute(upstream_row[i]); }
  DROCC_HD_MEMBER void store_h(int64_t i, double value) const {
    if (grad_h_row != nullptr) from_compute(value, grad_h_row + i);
  }
  DROCC_HD_MEMBER void store_grad(int64_t i, double value) const { from_compute(value, grad_grad_row + i); }
};

template <typename T, bool kAscent, bool kShell, typename Team>
DROCC_HD void l2_shell_backward_row(const Team& team, const L2ShellBackwardArgs& args, int64_t row) {
  const L2ShellRowsArgs& forward = args.forward;
  const int64_t offset = row * forward.length;
  const L2BackwardRow<T> view{static_cast<const T*>(forward.h) + offset,
                              kAscent ? static_cast<const T*>(forward.grad) + offset : nullptr,
                              static_cast<const T*>(args.upstream) + offset,
                              args.grad_h != nullptr ? static_cast<T*>(args.grad_h) + offset : nullptr,
                              kAscent ? static_cast<T*>(args.grad_grad) + offset : nullptr};
  const math::Shell shell =
      kShell ? shell_of<T>(forward.radius_rows, forward.radius, forward.gamma, row) : math::Shell{1.0, 1.0};
  const double grad_radius =
      math::step_row_backward<kAscent, kShell>(team, forward.length, view, forward.step_size, shell, forward.gamma);
  if (kShell && team.leads()) from_compute(grad_radius, static_cast<Compute<T>*>(args.grad_radius) + row);
}

}  // namespace drocc::cuda
