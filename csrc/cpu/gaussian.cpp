// Normal numbers on the CPU, the ones that torch's generator would give, from its state.
#include <cstring>

#include "../checks.h"
#include "dispatch.h"
#include "gaussian_kernel.h"

namespace drocc::cpu {
namespace {

constexpr const char* kOp = "_normal_";

// What `torch.Generator.get_state` gives for the CPU: seed (8 bytes), left (4), seeded (4), next (8), the words (8
// each), and what other distributions keep.
constexpr int64_t kStateBytes = 5056, kLeft = 8, kSeeded = 12, kNext = 16, kWords = 24;

Mt19937 read_state(const uint8_t* bytes) {
  Mt19937 twister;
  int32_t left, seeded;
  uint64_t next, words[624];
  std::memcpy(&left, bytes + kLeft, sizeof(left));
  std::memcpy(&seeded, bytes + kSeeded, sizeof(seeded));
  std::memcpy(&next, bytes + kNext, sizeof(next));
  std::memcpy(words, bytes + kWords, sizeof(words));
  if (seeded != 1 || left < 1 || left > 624 || next > 624 || (left > 1 && left + next != 625)) {
    fail(kOp, "state must be that of a seeded generator");
  }
  twister.left = left;
  twister.next = static_cast<int64_t>(next);
  for (int i = 0; i < 624; ++i) twister.words[i] = static_cast<uint32_t>(words[i]);
  return twister;
}

void write_state(const Mt19937& twister, uint8_t* bytes) {
  const auto left = static_cast<int32_t>(twister.left);
  const auto next = static_cast<uint64_t>(twister.next);
  uint64_t words[624];
  for (int i = 0; i < 624; ++i) words[i] = twister.words[i];
  std::memcpy(bytes + kLeft, &left, sizeof(left));
  std::memcpy(bytes + kNext, &next, sizeof(next));
  std::memcpy(bytes + kWords, words, sizeof(words));
}

void normal(const Tensor& out, const Tensor& state, double deviation) {
  if (out.scalar_type() != ScalarType::Float || !out.is_contiguous() || out.numel() < kNormalBlock) {
    fail(kOp, "out must be float32, contiguous and of at least ", kNormalBlock, " elements, got ", describe_shape(out));
  }
  if (state.scalar_type() != ScalarType::Byte || !state.is_contiguous() || state.numel() != kStateBytes) {
    fail(kOp, "state must hold ", kStateBytes, " bytes, got ", describe_shape(state));
  }
  Tensor filled = out, kept = state;
  auto* values = static_cast<float*>(filled.mutable_data_ptr());
  auto* bytes = static_cast<uint8_t*>(kept.mutable_data_ptr());
  const int64_t count = out.numel(), blocks = count / kNormalBlock;
  const auto scale = static_cast<float>(deviation);
  const NormalRows& rows = DROCC_SELECT_KERNELS(gaussian_kernels);
  Mt19937 twister = read_state(bytes);
  rows.uniform(twister, values, count);
  const auto transform = [&](float* all, int64_t begin, int64_t end) {
    rows.transform(all + begin * kNormalBlock, (end - begin) * kNormalBlock, scale);
  };
  run_rows(transform, values, blocks, kNormalBlock);
  if (count % kNormalBlock != 0) {  // torch draws the last block anew, over the end of the one before
    float* last = values + count - kNormalBlock;
    rows.uniform(twister, last, kNormalBlock);
    rows.transform(last, kNormalBlock, scale);
  }
  write_state(twister, bytes);
}

}  // namespace
}  // namespace drocc::cpu

STABLE_TORCH_LIBRARY_IMPL(drocc, CPU, m) {
  m.impl("_normal_", TORCH_BOX(&drocc::cpu::normal));
}
