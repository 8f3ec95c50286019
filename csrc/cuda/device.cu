// The device's properties that launches are chosen by.
#include "run.cuh"

namespace drocc::cuda {
namespace {

// Stands for the kernels that use clusters: as many threads and as much shared memory as any.
__global__ void __launch_bounds__(640) cluster_probe() {}

// Larger clusters than 8 are an option of the device; how many fit depends on its layout.
int most_cluster(int shared) {
  cudaLaunchAttribute attribute[1];
  attribute[0].id = cudaLaunchAttributeClusterDimension;
  attribute[0].val.clusterDim.x = 16;
  attribute[0].val.clusterDim.y = 1;
  attribute[0].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16);
  config.blockDim = dim3(640);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.attrs = attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const bool sixteen =
      cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
      cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, cluster_probe, &config) == cudaSuccess && clusters > 0;
  (void)cudaGetLastError();
  return sixteen ? 16 : 8;
}

Device ask(int index) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, index), "drocc_ext");
    return value;
  };
  Device device{};
  device.processors = attribute(cudaDevAttrMultiProcessorCount);
  device.shared_per_processor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  device.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  // What counts is for which architecture the code was compiled that runs here (reduce.cuh), not only the device.
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, cluster_probe), "drocc_ext");
  device.most_cluster = 1;
  if (code.ptxVersion >= 90) {
    if (attribute(cudaDevAttrClusterLaunch) == 0) fail("drocc_ext", "this device cannot launch clusters of blocks");
    device.most_cluster = most_cluster(device.shared_per_block - 2048);
  }
  return device;
}

}  // namespace

const Device& current_device() {
  static std::once_flag asked[kMostDevices];
  static Device devices[kMostDevices];
  int index = 0;
  check(cudaGetDevice(&index), "drocc_ext");
  if (index >= kMostDevices) fail("drocc_ext", "more than ", kMostDevices, " CUDA devices");
  std::call_once(asked[index], [&] { devices[index] = ask(index); });
  return devices[index];
}

}  // namespace drocc::cuda
