// That the emulator notices: small kernels with a mistake each, and the same without.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "checks.h"
#include "monitor.h"
#include "suite.h"

namespace tests {
namespace {

enum class Mistake {
  kNone,
  kSite,      // threads of a warp at different call sites
  kOffset,    // with different arguments
  kMask,      // naming different masks
  kOutside,   // a mask without the thread itself
  kLeft,      // a thread has left that a barrier waits for
  kLeftWarp,  // ... or a warp's operation
  kBarrier,   // different barriers
  kDeadlock,  // a barrier that not all reach
  kSpin,      // nobody sets what is waited for
  kBeyond,    // a write beyond device memory
  kBeyondShared,
};

struct Four {
  float of_warps[4];
};

__global__ void __launch_bounds__(128, 1) sums(Mistake mistake, float* values, int* done) {
  DROCC_SHARED(Four, four);
  float* const of_warps = four.of_warps;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool odd = threadIdx.x == 37;
  float sum = values[threadIdx.x];
  if (mistake == Mistake::kLeft && odd) return;
  if (mistake == Mistake::kLeftWarp && odd) return;
  for (int offset = 16; offset > 0; offset /= 2) {
    if (mistake == Mistake::kSite && odd) {
      sum += __shfl_xor_sync(~0u, sum, offset);
    } else if (mistake == Mistake::kLeft && threadIdx.x / 32 == 1) {
      continue;
    } else {
      const unsigned mask = odd && mistake == Mistake::kMask      ? 0xffu
                            : odd && mistake == Mistake::kOutside ? ~(1u << lane)
                                                                  : ~0u;
      sum += __shfl_xor_sync(mask, sum, odd && mistake == Mistake::kOffset ? 1 : offset);
    }
  }
  if (lane == 0) of_warps[threadIdx.x / 32] = sum;
  if (mistake == Mistake::kBarrier && odd) {
    (void)__syncthreads_or(1);
  } else if (!(mistake == Mistake::kDeadlock && threadIdx.x / 32 == 2)) {
    __syncthreads();
  } else {
    while (*static_cast<volatile int*>(done) == 0) DROCC_SPIN();
  }
  while (mistake == Mistake::kSpin && *static_cast<volatile int*>(done) == 0) DROCC_SPIN();
  float total = 0;
  for (int warp = 0; warp < 4; ++warp) total += of_warps[warp];
  __syncthreads();
  if (mistake == Mistake::kBeyondShared && odd) of_warps[4] = total;
  values[threadIdx.x + (mistake == Mistake::kBeyond ? 1 : 0)] = total;
}

// Each block writes its number where the next one of the cluster reads it.
__global__ void __launch_bounds__(32, 1) neighbours(bool begins, bool stays, int* out) {
  DROCC_SHARED(int, number);
  const auto cluster = cooperative_groups::this_cluster();
  number = static_cast<int>(cluster.block_rank());
  if (begins) cluster.sync();
  out[blockIdx.x] = *cluster.map_shared_rank(&number, (cluster.block_rank() + 1) % cluster.num_blocks());
  if (stays) cluster.sync();
}

// Threads in the order in which they got here.
__global__ void __launch_bounds__(128, 1) arrivals(unsigned* count, unsigned* order) {
  order[atomicAdd(count, 1)] = threadIdx.x;
}

template <typename... Params, typename... Actual>
cudaError_t launch(void (*kernel)(Params...), unsigned blocks, unsigned threads, unsigned cluster, size_t shared,
                   Actual... actual) {
  cudaLaunchAttribute attribute{cudaLaunchAttributeClusterDimension, {dim3(cluster), 0}};
  const cudaLaunchConfig_t config{dim3(blocks), dim3(threads), shared, nullptr, &attribute, cluster > 1 ? 1u : 0u};
  return cudaLaunchKernelEx(&config, kernel, actual...);
}

template <typename Body>
std::string fault_of(const Body& body) {
  try {
    body();
    return "";
  } catch (const simt::Fault& fault) {
    return fault.what();
  }
}

void mistakes() {
  const std::pair<Mistake, const char*> expected[] = {
      {Mistake::kNone, ""},         {Mistake::kSite, "call sites differ"},        {Mistake::kOffset, "arguments"},
      {Mistake::kMask, "masks"},    {Mistake::kOutside, "leaves out the thread"}, {Mistake::kLeft, "a thread left"},
      {Mistake::kLeftWarp, "left"}, {Mistake::kBarrier, "meets another one"},     {Mistake::kDeadlock, "deadlock"},
      {Mistake::kSpin, "deadlock"}, {Mistake::kBeyond, "beyond device memory"},   {Mistake::kBeyondShared, "beyond"},
  };
  for (const auto& [mistake, text] : expected) {
#if defined(__SANITIZE_ADDRESS__)
    if (mistake == Mistake::kBeyond || mistake == Mistake::kBeyondShared) continue;  // the sanitizer ends the program
#endif
    for (const simt::Order order :
         {simt::Order::kForward, simt::Order::kBackward, simt::Order::kRandom, simt::Order::kLate}) {
      simt::schedule = {order, 7};
      unsigned char* const values = simt::allocate(128 * sizeof(float));
      unsigned char* const done = simt::allocate(sizeof(int));
      std::memset(done, 0, sizeof(int));
      for (int k = 0; k < 128; ++k) reinterpret_cast<float*>(values)[k] = 1;
      const std::string fault = fault_of([&, mistake = mistake] {
        CHECK(launch(sums, 1, 128, 1, 0, mistake, reinterpret_cast<float*>(values), reinterpret_cast<int*>(done)) ==
                  cudaSuccess,
              "launch");
      });
      const bool found = mistake == Mistake::kNone ? fault.empty() : fault.find(text) != std::string::npos;
      CHECK(found, "mistake %d: \"%s\"", static_cast<int>(mistake), fault.c_str());
      if (mistake == Mistake::kNone) {
        CHECK(reinterpret_cast<float*>(values)[5] == 128, "%g", double(reinterpret_cast<float*>(values)[5]));
      }
      if (mistake == Mistake::kBeyond) std::memset(values + 128 * sizeof(float), 0xfe, sizeof(float));  // the guard
      simt::release(values);
      simt::release(done);
    }
  }
}

void clusters() {
  unsigned char* const out = simt::allocate(8 * sizeof(int));
  const auto run = [&](bool begins, bool stays) {
    return fault_of([&] {
      CHECK(launch(neighbours, 8, 32, 8, 0, begins, stays, reinterpret_cast<int*>(out)) == cudaSuccess, "launch");
    });
  };
  if (!simt::monitor::kOn) {  // whose threads race for `number` on purpose
    simt::schedule = {};
    CHECK(run(true, true).empty() && reinterpret_cast<int*>(out)[7] == 0 && reinterpret_cast<int*>(out)[2] == 3, "%s",
          run(true, true).c_str());
    CHECK(run(false, true).find("begun") != std::string::npos, "%s", run(false, true).c_str());
    simt::schedule = {simt::Order::kBackward, 0};
    CHECK(!run(true, false).empty(), "a block left early");
  }
  simt::release(out);
}

// A schedule's late warp is the last one, and not always the same.
void late_warps() {
  unsigned char* const memory = simt::allocate(129 * sizeof(unsigned));
  auto* const order = reinterpret_cast<unsigned*>(memory);
  unsigned seen = 0;
  for (uint64_t seed = 0; seed < 16; ++seed) {
    simt::schedule = {simt::Order::kLate, seed};
    order[128] = 0;
    CHECK(launch(arrivals, 1, 128, 1, 0, order + 128, order) == cudaSuccess, "launch");
    for (int k = 97; k < 128; ++k) {
      CHECK(order[k] / 32 == order[96] / 32, "seed %d: %u, then %u", static_cast<int>(seed), order[96], order[k]);
    }
    seen |= 1u << order[96] / 32;
  }
  CHECK(seen == 15, "warps that were late: %x", seen);
  simt::release(memory);
}

void rules() {
  unsigned char* const values = simt::allocate(128 * sizeof(float));
  const auto sum = [&](unsigned blocks, unsigned threads, unsigned cluster, size_t shared) {
    return launch(sums, blocks, threads, cluster, shared, Mistake::kNone, reinterpret_cast<float*>(values),
                  static_cast<int*>(nullptr));
  };
  CHECK(sum(0, 128, 1, 0) == cudaErrorInvalidConfiguration, "no block");
  CHECK(sum(1, 160, 1, 0) == cudaErrorLaunchOutOfResources, "more threads than the bounds");
  CHECK(sum(1, 128, 1, 48 * 1024) == cudaErrorInvalidValue, "more shared memory than by default");
  CHECK(sum(8, 128, 16, 0) == cudaErrorInvalidClusterSize, "a cluster of 16 unasked");
  CHECK(sum(9, 128, 8, 0) == cudaErrorInvalidClusterSize, "no whole clusters");
  CHECK(cudaFuncSetAttribute(sums, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448) == cudaErrorInvalidValue,
        "more than a block may have, with what is static");
  cudaFuncAttributes attributes{};
  CHECK(cudaFuncGetAttributes(&attributes, sums) == cudaSuccess && attributes.maxThreadsPerBlock == 128, "%d",
        attributes.maxThreadsPerBlock);
  simt::release(values);
}

}  // namespace

void run_self_tests() {
  simt::current_device = 0;
  mistakes();
  clusters();
  late_warps();
  rules();
}

}  // namespace tests
