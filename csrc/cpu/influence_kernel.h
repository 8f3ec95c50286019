// Row kernels of `influence`, per element type and instruction set.
#pragma once

#include <cstdint>

#include "../row_args.h"
#include "isa.h"

namespace drocc::cpu {

using InfluenceRowsFn = void (*)(const InfluenceRowsArgs&, int64_t begin, int64_t end);

// Indexed by Dtype.
struct InfluenceRows {
  InfluenceRowsFn forward[4];
  InfluenceRowsFn backward[4];
};

DROCC_DECLARE_KERNELS(InfluenceRows, influence_kernels)

}  // namespace drocc::cpu
