// Input checks of the Mahalanobis shell operators, shared by every device's entry points.
#pragma once

#include "l2_shell.h"

namespace drocc {

// What an operator of this family takes: l2's, a sigma, and the grid.
struct MahalanobisShellInputs {
  L2ShellInputs shell;
  const Tensor& sigma;
  int64_t grid_points = 0;
};

void check_mahalanobis_shell_inputs(const char* op, const MahalanobisShellInputs& inputs);

// Whether all rows of h share one sigma, of the shape of a row.
bool is_shared_sigma(const Tensor& sigma, const Tensor& h);

// sigma as rows: laid out like `rows` (which has the shape of h); one row where it is shared and `rows` is contiguous.
// A sigma in memory that is about to be overwritten is copied.
struct SigmaRows {
  Tensor sigma;
  int64_t stride;  // elements from one row to the next
};
SigmaRows sigma_rows(const Tensor& sigma, const Tensor& rows, bool overwritten);

}  // namespace drocc
