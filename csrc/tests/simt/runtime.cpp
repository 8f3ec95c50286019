// CUDA's runtime: devices, attributes of kernels, occupancy, the rules of launches.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>

#include "gang.h"

// Ahead of each kernel: as many no-ops as __launch_bounds__ says (simt.h). The linker collects where they begin.
extern "C" {
extern const uintptr_t __start___patchable_function_entries[] __attribute__((weak));
extern const uintptr_t __stop___patchable_function_entries[] __attribute__((weak));
}

namespace simt {

int current_device = 0;
std::function<void(const char*)> on_runtime_call;
Record record;

const std::vector<DeviceModel>& devices() {
  static const std::vector<DeviceModel> models = {
      {"H200", 90, 132, 233472, 232448, 16, 2048, 32},   {"H200, clusters of 8", 90, 132, 233472, 232448, 8, 2048, 32},
      {"A100", 80, 108, 167936, 166912, 1, 2048, 32},    {"sm_86", 86, 84, 102400, 101376, 1, 1536, 16},
      {"sm_120", 120, 170, 102400, 101376, 8, 1536, 24}, {"4 processors", 80, 4, 102400, 101376, 1, 1536, 16}};
  return models;
}

namespace {

constexpr int kRegisters = 65536;
constexpr int kDefaultShared = 48 * 1024;
constexpr size_t kReservedShared = 1024;  // of every block, by the system

struct Kernel {
  int most_dynamic = -1;  // bytes; -1: as by default
  bool any_cluster = false;
};
std::map<std::pair<const void*, int>, Kernel> kernels;

struct Bounds {
  int threads = 1024, blocks = 1;
};

Bounds bounds_of(const void* kernel) {
  const auto entry = reinterpret_cast<uintptr_t>(kernel);
  uintptr_t nearest = 0;
  for (const uintptr_t* at = __start___patchable_function_entries; at != __stop___patchable_function_entries; ++at) {
    if (*at <= entry && *at > nearest) nearest = *at;
  }
#if defined(__aarch64__)
  const auto count = static_cast<int>(entry - nearest) / 4;
#else
  const auto count = static_cast<int>(entry - nearest);
#endif
  if (nearest == 0 || count == 0 || count > 1024) throw Fault("a kernel without __launch_bounds__");
  return {count % 64 * 32, std::max(count / 64, 1)};
}

// The most that the compiler may give a thread within the bounds: no compiled kernel has more.
int registers_of(const void* kernel) {
  const Bounds bounds = bounds_of(kernel);
  return std::min(255, kRegisters / (bounds.threads * bounds.blocks) / 8 * 8);
}

int dynamic_limit(const void* kernel) {
  const int set = kernels[{kernel, current_device}].most_dynamic;
  return set >= 0 ? set : kDefaultShared - static_cast<int>(most_static_shared());
}

int resident(const void* kernel, int threads, size_t dynamic) {
  const DeviceModel& model = device();
  const int warps = (threads + 31) / 32;
  const size_t shared = dynamic + most_static_shared() + kReservedShared;
  return std::min({model.blocks_per_processor, model.threads_per_processor / (warps * 32),
                   kRegisters / (registers_of(kernel) * 32) / warps,
                   static_cast<int>(static_cast<size_t>(model.shared_per_processor) / shared)});
}

void before(const char* call) {
  if (!on_runtime_call) return;
  // What runs there calls the runtime itself.
  const auto body = std::move(on_runtime_call);
  on_runtime_call = nullptr;
  const int device = current_device;
  body(call);
  current_device = device;
  on_runtime_call = body;
}

}  // namespace

cudaError_t get_function(cudaFuncAttributes* attributes, const void* kernel) {
  before("cudaFuncGetAttributes");
  const int code = device().arch >= 90 ? 90 : 80;
  *attributes = {code,
                 code,
                 registers_of(kernel),
                 bounds_of(kernel).threads,
                 dynamic_limit(kernel),
                 most_static_shared()};
  return cudaSuccess;
}

cudaError_t set_function(const void* kernel, cudaFuncAttribute name, int value) {
  before("cudaFuncSetAttribute");
  Kernel& of = kernels[{kernel, current_device}];
  if (name == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    of.any_cluster = value != 0;
    return device().most_cluster > 1 ? cudaSuccess : cudaErrorInvalidValue;
  }
  if (value < 0 || value + static_cast<int>(most_static_shared()) > device().shared_per_block) {
    return cudaErrorInvalidValue;
  }
  of.most_dynamic = value;
  return cudaSuccess;
}

cudaError_t most_blocks(int* blocks, const void* kernel, int threads, size_t dynamic) {
  before("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  *blocks = threads <= bounds_of(kernel).threads ? resident(kernel, threads, dynamic) : 0;
  return cudaSuccess;
}

cudaError_t most_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  before("cudaOccupancyMaxActiveClusters");
  const auto parts = static_cast<int>(config->attrs[0].val.clusterDim.x);
  const bool allowed = parts <= 8 || kernels[{kernel, current_device}].any_cluster;
  if (!allowed || config->dynamicSmemBytes > static_cast<size_t>(dynamic_limit(kernel))) return cudaErrorInvalidClusterSize;
  const int at_once = resident(kernel, static_cast<int>(config->blockDim.x), config->dynamicSmemBytes);
  *clusters = parts <= device().most_cluster ? at_once * device().processors / parts : 0;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(const void*),
                   const void* arguments) {
  before("cudaLaunchKernelEx");
  const DeviceModel& model = device();
  const int64_t threads = config.blockDim.x, blocks = config.gridDim.x;
  const Bounds bounds = bounds_of(kernel);
  if (threads == 0 || blocks == 0 || threads > 1024 || blocks > INT32_MAX || config.gridDim.y != 1 ||
      config.blockDim.y != 1) {
    return cudaErrorInvalidConfiguration;
  }
  if (threads > bounds.threads) return cudaErrorLaunchOutOfResources;
  if (config.dynamicSmemBytes > static_cast<size_t>(dynamic_limit(kernel))) return cudaErrorInvalidValue;
  if (resident(kernel, static_cast<int>(threads), config.dynamicSmemBytes) == 0) return cudaErrorLaunchOutOfResources;
  unsigned together = 1;
  bool cooperative = false, cluster = false;
  for (unsigned k = 0; k < config.numAttrs; ++k) {
    const cudaLaunchAttribute& attribute = config.attrs[k];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      together = attribute.val.clusterDim.x;
      cluster = true;
      const bool any = kernels[{kernel, current_device}].any_cluster;
      if (model.most_cluster <= 1 || together == 0 || blocks % together != 0) return cudaErrorInvalidClusterSize;
      if (static_cast<int>(together) > (any ? model.most_cluster : 8)) return cudaErrorInvalidClusterSize;
    } else if (attribute.val.cooperative != 0) {
      cooperative = true;
      together = static_cast<unsigned>(blocks);
      const int at_once = resident(kernel, static_cast<int>(threads), config.dynamicSmemBytes);
      if (blocks > int64_t{at_once} * model.processors) return cudaErrorCooperativeLaunchTooLarge;
    }
  }
  ++record.launches;
  record.threads += threads * blocks;
  record.most_parts = std::max(record.most_parts, static_cast<int>(together));
  record.most_threads = std::max(record.most_threads, config.blockDim.x);
  record.cluster |= cluster;
  record.cooperative |= cooperative;
  record.most_dynamic = std::max(record.most_dynamic, config.dynamicSmemBytes);
  if constexpr (monitor::kOn) monitor::begin_launch();
  // A launch within another, of what stands for another host thread, has its own gang.
  static std::vector<std::unique_ptr<Gang>> idle;
  std::unique_ptr<Gang> runs;
  if (idle.empty()) {
    runs = std::make_unique<Gang>();
  } else {
    runs = std::move(idle.back());
    idle.pop_back();
  }
  // Blocks that do not meet may run in any order: one after the other, in the schedule's.
  const auto gangs = static_cast<size_t>(blocks) / together;
  std::vector<unsigned> order(gangs);
  for (size_t g = 0; g < gangs; ++g) order[g] = static_cast<unsigned>(g);
  if (schedule.order == Order::kBackward) std::reverse(order.begin(), order.end());
  if (schedule.order == Order::kRandom) std::shuffle(order.begin(), order.end(), std::mt19937_64(schedule.seed));
  for (const unsigned g : order) {
    runs->run(config.gridDim, config.blockDim, g * together, together, config.dynamicSmemBytes, body, arguments);
  }
  idle.push_back(std::move(runs));
  check_guards();
  return cudaSuccess;
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    default:
      return "invalid cluster size";
  }
}

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = simt::current_device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int index) {
  const simt::DeviceModel& model = simt::devices()[static_cast<size_t>(index)];
  switch (name) {
    case cudaDevAttrMultiProcessorCount:
      *value = model.processors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = model.shared_per_processor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = model.shared_per_block;
      return cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = model.most_cluster > 1;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaMemsetAsync(void* address, int byte, size_t bytes, cudaStream_t) {
  const simt::Region region = simt::find_region(address);
  const auto* at = static_cast<const unsigned char*>(address);
  if (region.memory == nullptr || at < region.memory || at + bytes > region.memory + region.bytes) {
    return cudaErrorInvalidValue;
  }
  std::memset(address, byte, bytes);
  if constexpr (simt::monitor::kOn) simt::monitor::cleared(address);
  return cudaSuccess;
}
