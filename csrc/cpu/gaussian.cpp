// Normal numbers on the CPU, the ones that torch's generator would give, from its state.
#include "../checks.h"
#include "generator.h"

namespace drocc::cpu {
namespace {

constexpr const char* kOp = "_normal_";

void normal(const Tensor& out, const Tensor& state, double deviation) {
  const bool is_double = out.scalar_type() == ScalarType::Double;
  if ((!is_double && out.scalar_type() != ScalarType::Float) || !out.is_contiguous()) {
    fail(kOp, "out must be float32 or float64 and contiguous, got ", describe_shape(out));
  }
  if (state.scalar_type() != ScalarType::Byte || !state.is_contiguous() || state.numel() != kGeneratorBytes) {
    fail(kOp, "state must hold ", kGeneratorBytes, " bytes, got ", describe_shape(state));
  }
  Tensor filled = out, kept = state;
  auto* bytes = static_cast<uint8_t*>(kept.mutable_data_ptr());
  Generator generator(kOp, bytes);
  if (is_double) {
    generator.normal(static_cast<double*>(filled.mutable_data_ptr()), out.numel(), deviation);
  } else {
    generator.normal(static_cast<float*>(filled.mutable_data_ptr()), out.numel(), deviation);
  }
  generator.save(bytes);
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_normal_", TORCH_BOX(&drocc::cpu::normal));
}
