// Kernels of `_nearest`, per element type and instruction set.
#pragma once

#include <cstdint>

#include "../row_args.h"
#include "isa.h"

namespace drocc::cpu {

// For points begin to end; false where there was no memory.
using NearestFn = bool (*)(const NearestArgs&, int64_t begin, int64_t end);

// Indexed by Dtype.
struct NearestKernels {
  NearestFn nearest[4];
};

DROCC_DECLARE_KERNELS(NearestKernels, nearest_kernels)

}  // namespace drocc::cpu
