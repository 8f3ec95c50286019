// Input checks of `influence`, shared by every device's entry points.
#pragma once

#include "row_layout.h"

namespace drocc {

void check_influence_inputs(const char* op, const Tensor& grad);

}  // namespace drocc
