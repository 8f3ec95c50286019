// Row kernels of the search in deep networks, per element type and instruction set. Torch-free.
#pragma once

#include <cstdint>

#include "../math/mlp_search.h"
#include "../mlp.h"
#include "isa.h"

namespace drocc::cpu {

// For float and double. Weights are packed once and then serve any number of searches, on any threads.
struct MlpSearchKernels {
  void* (*pack[2])(const MlpView& network, math::MlpWay way);  // null when memory runs out
  void (*release[2])(void* packed);
  // False when memory for scratch runs out.
  bool (*search[2])(const void* packed, const MlpSearchArgs&, int64_t begin, int64_t end);
};

DROCC_DECLARE_KERNELS(MlpSearchKernels, mlp_search_kernels)

}  // namespace drocc::cpu
