// Compiler glue for the headers in math/, which hold every formula once, for the host and for CUDA devices.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define DROCC_HD __host__ __device__ __forceinline__
#define DROCC_SIMD(clauses)
#define DROCC_UNROLL _Pragma("unroll")
#define DROCC_PRAGMA(text) _Pragma(#text)
#define DROCC_UNROLL_BY(count) DROCC_PRAGMA(unroll count)
#else
// Internal linkage: the same header is compiled for several instruction sets, and a shared weak symbol could let the
// linker hand AVX-512 code to a machine without it.
#define DROCC_HD [[maybe_unused]] static inline __attribute__((always_inline))
#define DROCC_PRAGMA(text) _Pragma(#text)
#define DROCC_SIMD(clauses) DROCC_PRAGMA(omp simd clauses)
#define DROCC_UNROLL
#define DROCC_UNROLL_BY(count)
#endif

// Members of templates cannot be static functions; always_inline keeps them out of the symbol table.
#if defined(__CUDACC__)
#define DROCC_HD_MEMBER __host__ __device__ __forceinline__
#else
#define DROCC_HD_MEMBER inline __attribute__((always_inline))
#endif

// For the lambda of a hot loop: where it stayed a function of its own, its captures would stay in memory.
#define DROCC_INLINE __attribute__((always_inline))

namespace drocc::math {

// 1 / x for terms of a long sum, where an error in the last place of each does not matter: CUDA's float division takes
// eight instructions and a branch, its reciprocal one.
DROCC_HD double reciprocal(double x) {
  return 1 / x;
}
DROCC_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#elif defined(DROCC_SIMT)
  return ::simt::approximate_reciprocal(x);
#else
  return 1 / x;
#endif
}

}  // namespace drocc::math
