// The emulator as tests see it: devices, memory, schedules, what a launch did.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

// Numbers of a device that launches depend on.
struct DeviceModel {
  const char* name;
  int arch;                  // 90: sm_90
  int processors;            // multiprocessors
  int shared_per_processor;  // bytes
  int shared_per_block;      // most of a block, bytes
  int most_cluster;          // blocks; 1: no clusters
  int threads_per_processor;
  int blocks_per_processor;
};
const std::vector<DeviceModel>& devices();
extern int current_device;
inline const DeviceModel& device() {
  return devices()[static_cast<size_t>(current_device)];
}

// What the emulator found wrong in device code or in a launch: a race, a deadlock, an access out of bounds ...
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Device memory: as many bytes as asked for, all ones (NaN), between guards. An access beyond them is a Fault.
unsigned char* allocate(size_t bytes);
void release(unsigned char* memory);
void check_guards();
// What ends the program, an access to no memory at all or a ruined heap: with a line that says which thread it was.
void report_crashes();

// ---- schedules: which runnable thread is next, and in what order blocks run
// kLate: a warp or a block of the seed's choice runs only where no other thread can.
enum class Order { kForward, kBackward, kRandom, kLate };
struct Schedule {
  Order order = Order::kForward;
  uint64_t seed = 0;
};
extern Schedule schedule;
// The second schedule of a call: any but forward.
inline Schedule another_schedule(uint64_t seed) {
  constexpr Order kOrders[] = {Order::kBackward, Order::kRandom, Order::kLate};
  return {kOrders[seed % 3], seed};
}

// Called ahead of every call of the runtime by the host, with its name: what another host thread may do in between.
extern std::function<void(const char* call)> on_runtime_call;

// ---- of the launches since it was cleared
struct Record {
  int64_t launches = 0;
  int64_t threads = 0;
  int most_parts = 0;         // blocks that met
  unsigned most_threads = 0;  // of a block
  bool cluster = false, cooperative = false;
  size_t most_dynamic = 0;  // bytes of dynamic shared memory
};
extern Record record;

}  // namespace simt
