// One row of the search in hidden space, by a team of threads. Host and device.
#pragma once

#include "../row_args.h"
#include "hidden_search_team.cuh"
#include "l2_shell_kernel.cuh"
#include "launch.h"

namespace drocc::cuda {

// memory: hidden_bytes() that the whole team sees, at a multiple of 16 bytes.
template <typename C, typename Team>
DROCC_HD void hidden_search_row(const Team& team, const HiddenSearchArgs& args, int64_t row, void* memory) {
  const int64_t hidden = args.hidden;
  double* entered = static_cast<double*>(memory);
  C* units = reinterpret_cast<C*>(entered + hidden);
  C* u = units + 5 * hidden;
  C* p = units + 6 * hidden;
  C* clean = units + 7 * hidden;
  for (auto j = team.begin(hidden); j < team.end(hidden); j += team.step()) {
    u[j] = static_cast<const C*>(args.u)[row * hidden + j];
    clean[j] = static_cast<const C*>(args.clean)[row * hidden + j];
  }
  // The gradient in the space of h, of which few rows have need, is computed anew at each use: no memory for it.
  const HiddenRow<C> operands{args.length,
                              hidden,
                              static_cast<const C*>(args.weight),
                              static_cast<const C*>(args.gram),
                              static_cast<const C*>(args.output),
                              clean,
                              static_cast<C*>(args.h) + row * args.length,
                              u,
                              p,
                              units,
                              units + hidden,
                              units + 2 * hidden,
                              units + 3 * hidden,
                              units + 4 * hidden,
                              entered,
                              nullptr};
  HiddenSearch search(team, operands);
  const double scale = search.run(shell_of<C>(args.radius_rows, args.radius, args.gamma, row), args.step_size,
                                  args.num_steps, args.project_every, args.project_last);
  for (auto j = team.begin(hidden); j < team.end(hidden); j += team.step()) {
    static_cast<C*>(args.coefficients)[row * hidden + j] = p[j];
    static_cast<C*>(args.u)[row * hidden + j] = u[j];
  }
  if (team.leads()) static_cast<C*>(args.scale)[row] = static_cast<C>(scale);
}

}  // namespace drocc::cuda
