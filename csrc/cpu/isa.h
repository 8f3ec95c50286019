// Which instruction set the CPU kernels use. The row kernels (*_rows.cpp) are compiled once per set, with
// DROCC_ISA naming the namespace; everything else is compiled for the baseline.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace drocc::cpu {

enum class Isa { kGeneric, kAvx2, kAvx512 };

// A table of row kernels for one operator family, per instruction set.
#if defined(DROCC_X86_ISAS)
#define DROCC_DECLARE_KERNELS(Table, name) \
  namespace generic {                      \
  extern const Table name;                 \
  }                                        \
  namespace avx2 {                         \
  extern const Table name;                 \
  }                                        \
  namespace avx512 {                       \
  extern const Table name;                 \
  }
#define DROCC_SELECT_KERNELS(name)                                           \
  (::drocc::cpu::selected_isa() == ::drocc::cpu::Isa::kAvx512 ? avx512::name \
   : ::drocc::cpu::selected_isa() == ::drocc::cpu::Isa::kAvx2 ? avx2::name   \
                                                              : generic::name)
#else
#define DROCC_DECLARE_KERNELS(Table, name) \
  namespace generic {                      \
  extern const Table name;                 \
  }
#define DROCC_SELECT_KERNELS(name) (generic::name)
#endif

inline bool is_supported(Isa isa) {
#if defined(DROCC_X86_ISAS)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kGeneric;
}

inline const char* name_of(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "generic";
}

// The best supported set, or the one named by DROCC_CPU_ISA when this machine supports it (used to test each of them).
inline Isa detect_isa() {
  const char* wanted = std::getenv("DROCC_CPU_ISA");
  Isa best = Isa::kGeneric;
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (!is_supported(isa)) continue;
    if (wanted != nullptr && std::strcmp(wanted, name_of(isa)) == 0) return isa;
    best = isa;
  }
  return best;
}

inline Isa selected_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

}  // namespace drocc::cpu
