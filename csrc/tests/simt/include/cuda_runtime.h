// Stands in for CUDA's runtime: the calls that this project makes, with CUDA's rules (../runtime.cpp).
#pragma once

#include <tuple>
#include <utility>

#include "../simt.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidClusterSize = 912,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrClusterLaunch = 120,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative;
  } val;
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaFuncAttributes {
  int binaryVersion, ptxVersion, numRegs, maxThreadsPerBlock, maxDynamicSharedSizeBytes;
  size_t sharedSizeBytes;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device);
cudaError_t cudaMemsetAsync(void* address, int byte, size_t bytes, cudaStream_t stream);

namespace simt {

cudaError_t get_function(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t set_function(const void* kernel, cudaFuncAttribute name, int value);
cudaError_t most_blocks(int* blocks, const void* kernel, int threads, size_t dynamic);
cudaError_t most_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);
// body(arguments) on every thread.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(const void*),
                   const void* arguments);

}  // namespace simt

template <typename... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Params...)) {
  return simt::get_function(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute name, int value) {
  return simt::set_function(reinterpret_cast<const void*>(kernel), name, value);
}
template <typename... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Params...), int threads,
                                                          size_t dynamic) {
  return simt::most_blocks(blocks, reinterpret_cast<const void*>(kernel), threads, dynamic);
}
template <typename... Params>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Params...), const cudaLaunchConfig_t* config) {
  return simt::most_clusters(clusters, reinterpret_cast<const void*>(kernel), config);
}
template <typename... Params, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Actual&&... actual) {
  using Call = std::pair<void (*)(Params...), std::tuple<Params...>>;
  const Call call{kernel, {std::forward<Actual>(actual)...}};
  return simt::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [](const void* memory) {
        const Call& call = *static_cast<const Call*>(memory);
        std::apply(call.first, call.second);
      },
      &call);
}
