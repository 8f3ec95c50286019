// Schema of the draw of normal numbers (csrc/math/gaussian.h). Private: `drocc_ext._noise` calls it.
#include <torch/csrc/stable/library.h>

// The CUDA library is given every file of this folder; the schemas are registered once.
#if !defined(DROCC_NO_SCHEMAS)

// Fills out (float32, contiguous, at least 16 elements) with what a CPU generator in this state (5056 bytes, as
// `torch.Generator.get_state` gives) would give `out.normal_(0, deviation)`, and advances the state.
STABLE_TORCH_LIBRARY_FRAGMENT(drocc, m) {
  m.def("_normal_(Tensor(a!) out, Tensor(b!) state, float deviation) -> ()");
}

#endif
