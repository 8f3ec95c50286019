// Launching: the device's properties, the choice of launch.h carried out, errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <mutex>
#include <set>
#include <utility>

#include "../row_layout.h"
#include "element.h"
#include "reduce.cuh"

namespace drocc::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // not sticky: the next call must not report it again
    fail(what, cudaGetErrorString(error));
  }
}

constexpr int kMostDevices = 64;

// Of the current device; asked once.
const Device& current_device();

// kernel<<<...>>>(args, shape) with a team per row, on the current stream of rows' device, for at_once rows at a time
// where the kernel's workspace has no room for more.
template <typename Args>
void run_rows(const char* op, void (*kernel)(Args, TeamShape), const Args& args, const Launch& launch,
              const Tensor& rows, int64_t at_once = std::numeric_limits<int64_t>::max());

// Calls body(T{}) with the element type of a tensor.
template <typename Body>
void with_element(const Tensor& t, const Body& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    default:  // the checks admit nothing else
      return body(BFloat16{});
  }
}

// What follows runs with the tensor's device current.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& t) : guard_(t.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline void check_row_length(const char* op, int64_t length) {
  if (length > (int64_t{1} << 31) - (int64_t{1} << 20)) fail(op, "a row of ", length, " elements is too long for CUDA");
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Lets a kernel use all the shared memory of a block and the largest clusters of the current device, which it must be
// allowed to from 48 KiB (static memory included) and 8 blocks on. Once, and for the most: what were set for one launch
// would hold for those of other host threads too.
template <typename Args>
void allow_most(const char* op, void (*kernel)(Args, TeamShape)) {
  static std::mutex mutex;
  static std::set<std::pair<void (*)(Args, TeamShape), int>> allowed;
  int index = 0;
  check(cudaGetDevice(&index), op);
  {
    const std::lock_guard lock(mutex);
    if (allowed.count({kernel, index}) > 0) return;
  }
  // Not under the lock: two threads may both get here, and set the same.
  const Device& device = current_device();
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, kernel), op);
  const int most = device.shared_per_block - static_cast<int>(code.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), op);
  if (device.most_cluster > 8) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), op);
  }
  const std::lock_guard lock(mutex);
  allowed.insert({kernel, index});
}

template <typename Args>
void run_rows(const char* op, void (*kernel)(Args, TeamShape), const Args& args, const Launch& launch,
              const Tensor& rows, int64_t at_once) {
  const int64_t batch = rows.size(0);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(rows.get_device_index(), &stream));

  TeamShape shape{launch.threads_per_row,
                  launch.rows_per_block,
                  launch.parts,
                  launch.part_length,
                  launch.cluster,
                  launch.on_chip,
                  0,
                  nullptr};
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(launch.threads()));
  config.dynamicSmemBytes = static_cast<size_t>(launch.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  if (launch.shared > 0 || launch.parts > 8) allow_most(op, kernel);
  int64_t most_groups = at_most((1 << 30) / launch.parts, at_once);  // of one launch
  cudaLaunchAttribute attribute[1];
  config.attrs = attribute;
  std::optional<Tensor> workspace;
  size_t workspace_bytes = 0;
  if (launch.parts > 1 && launch.cluster) {
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = static_cast<unsigned>(launch.parts);
    attribute[0].val.clusterDim.y = 1;
    attribute[0].val.clusterDim.z = 1;
    config.numAttrs = 1;
  } else if (launch.parts > 1) {
    // Blocks wait for one another: a launch has only as many as are resident at once.
    int resident = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, launch.threads(), config.dynamicSmemBytes),
          op);
    most_groups = int64_t{resident} * current_device().processors / launch.parts;
    if (most_groups == 0) fail(op, "a row needs ", launch.parts, " blocks at once, more than this device holds");
    const int64_t groups = most_groups < batch ? most_groups : batch;
    workspace_bytes = static_cast<size_t>(groups) * sizeof(GridExchange);
    workspace = torch::stable::new_empty(rows, {static_cast<int64_t>(workspace_bytes)}, ScalarType::Byte);
    shape.meeting = static_cast<GridExchange*>(workspace->mutable_data_ptr());
    attribute[0].id = cudaLaunchAttributeCooperative;
    attribute[0].val.cooperative = 1;
    config.numAttrs = 1;
  }
  for (int64_t first = 0; first < batch; first += most_groups * launch.rows_per_block) {
    int64_t groups = ceil_div(batch - first, launch.rows_per_block);
    groups = groups < most_groups ? groups : most_groups;
    shape.first_row = first;
    if (shape.meeting != nullptr) check(cudaMemsetAsync(shape.meeting, 0, workspace_bytes, config.stream), op);
    config.gridDim = dim3(static_cast<unsigned>(groups * launch.parts));
    check(cudaLaunchKernelEx(&config, kernel, args, shape), op);
  }
}

}  // namespace drocc::cuda
