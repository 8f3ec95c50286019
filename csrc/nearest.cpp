// Schema of the search for nearest rows. Private: `drocc_ext.ops.nearest` calls it.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// For each of points [B, D] the distance to the nearest of rows [N, D], [B] in the compute type, and which row that is,
// [B]. A row with NaN or infinity is nobody's nearest; where that leaves none, the distance is infinite and the index
// -1. A point with NaN or infinity has distance NaN and index -1.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def("_nearest(Tensor points, Tensor rows) -> (Tensor, Tensor)");
}

#endif
