// Row kernels of the search in hidden space, per element type and instruction set.
#pragma once

#include <cstdint>

#include "../row_args.h"
#include "isa.h"

namespace drocc::cpu {

// False when memory for scratch runs out.
using HiddenSearchFn = bool (*)(const HiddenSearchArgs&, int64_t begin, int64_t end);

// For float and double.
struct HiddenSearchRows {
  HiddenSearchFn search[2];
};

DROCC_DECLARE_KERNELS(HiddenSearchRows, hidden_search_kernels)

}  // namespace drocc::cpu
