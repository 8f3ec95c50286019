// `drocc_ext._C`: what this build is, for `drocc-ext info` and bug reports. Operators do not pass through here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

#define DROCC_TEXT_(x) #x
#define DROCC_TEXT(x) DROCC_TEXT_(x)

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto isa : {drocc::cpu::Isa::kGeneric, drocc::cpu::Isa::kAvx2, drocc::cpu::Isa::kAvx512}) {
    if (drocc::cpu::is_supported(isa)) names.emplace_back(drocc::cpu::name_of(isa));
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What this build of drocc_ext is.";
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["version"] = DROCC_TEXT(DROCC_VERSION);
        info["torch_stable_abi"] = DROCC_TEXT(DROCC_TORCH_ABI);
        info["torch_at_build"] = DROCC_TEXT(DROCC_TORCH_BUILD);
        info["compiler"] = compiler();
        info["cpu_instruction_set"] = drocc::cpu::name_of(drocc::cpu::selected_isa());
        info["cpu_instruction_sets"] = instruction_sets();
        info["cuda_architectures"] = DROCC_TEXT(DROCC_CUDA_ARCHS);
        return info;
      },
      "Version, ABI, compiler, instruction sets and CUDA architectures of this build, as a dict.");
}
