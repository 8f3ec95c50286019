// Threads that run together: a block, the blocks of a cluster, or all blocks of a cooperative launch.
#pragma once

#include <array>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "monitor.h"
#include "simt.h"

namespace simt {

struct Block;
struct Warp;

#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_MONITOR)
constexpr size_t kStackBytes = 128 << 10;
#else
constexpr size_t kStackBytes = 32 << 10;
#endif

enum class State { kReady, kInWarp, kInBlock, kInCluster, kSpins, kLeft };

// From a pool.
struct Stack {
  Stack();
  Stack(Stack&& other) noexcept : memory(std::exchange(other.memory, nullptr)) {}
  ~Stack();
  unsigned char* memory = nullptr;
};

struct Thread {
  Place place;
  Context context;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  State state = State::kReady;
  Site site;            // where it waits
  uint64_t result = 0;  // of what it waited for
  Stack stack;
  monitor::Clock clock;
};

// One call of a warp's operation under way. Threads with other masks may have one of their own.
struct WarpMeeting {
  unsigned mask, arrived;
  WarpOp op;
  int bytes;
  Site site;
  std::array<uint64_t, 32> values;
  std::array<int, 32> arguments;
};

struct Warp {
  std::array<Thread*, 32> lanes{};
  std::vector<WarpMeeting> meetings;
};

struct Barrier {
  int arrived = 0;
  BlockOp op = BlockOp::kSync;
  int value = 0;
  Site site;
};

// Shared memory of a block: guards, static variables, a guard, the dynamic part, a guard.
class Arena {
 public:
  void reset(size_t dynamic);
  unsigned char* variable(int site);
  unsigned char* dynamic() { return memory_.get() + dynamic_at_; }
  unsigned char* begin() { return memory_.get(); }
  size_t bytes() const { return bytes_; }
  size_t dynamic_bytes() const { return dynamic_; }
  void check() const;  // that the guards are whole
  void spoil();        // what others read from here on is NaN
  // Whether [at, at + bytes) is one variable's, or the dynamic part's.
  bool is_inside(const unsigned char* at, size_t bytes) const;

 private:
  std::unique_ptr<unsigned char[]> memory_;
  size_t capacity_ = 0, bytes_ = 0, dynamic_ = 0, dynamic_at_ = 0;
};
size_t most_static_shared();

// The device allocation that an address is in or beside; none: memory is null.
struct Region {
  const unsigned char* memory = nullptr;
  size_t bytes = 0;
  const unsigned char *begin = nullptr, *end = nullptr;  // with the guards
};
Region find_region(const void* address);

struct Block {
  uint3 index{};
  int first = 0, threads = 0, left = 0;  // in the gang
  bool begun = false;
  Barrier barrier;
  std::vector<Warp> warps;
  Arena arena;
};

class Gang {
 public:
  // Blocks [first, first + blocks) of a launch; runs them to their end. A Fault ends them all.
  void run(const dim3& grid, const dim3& block, unsigned first, unsigned blocks, size_t dynamic,
           void (*body)(const void*), const void* arguments);

  uint64_t meet_warp(WarpOp op, unsigned mask, uint64_t value, int argument, int bytes, const Site& site);
  int meet_block(BlockOp op, int value, const Site& site);
  void meet_cluster(const Site& site);
  void* in_cluster(const void* mine, unsigned rank);
  void spin();
  void maybe_yield();
  [[noreturn]] void fail(const std::string& what);
  Thread& self() { return *self_; }
  std::vector<Thread>& threads() { return threads_; }
  std::vector<Block>& blocks() { return blocks_; }

 private:
  static void enter();
  [[noreturn]] void leave();
  void wait(State state, const Site& site);
  void wake(Thread& thread);
  bool is_late(const Thread& thread) const;
  Thread* next();
  void switch_to(Thread* thread, bool last);
  uint64_t finish(WarpMeeting& meeting, Warp& warp);
  [[noreturn]] void deadlock(const char* what);

  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  Barrier cluster_;
  std::vector<Thread*> ready_, spinning_, late_;
  int first_late_ = 0, last_late_ = 0;  // of the threads that run last
  size_t ready_first_ = 0;
  uint64_t events_ = 0, events_at_spin_ = 0;
  int idle_spins_ = 0;
  int left_ = 0;
  std::mt19937_64 random_;
  Thread* self_ = nullptr;
  Context host_;
  void (*body_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::string failure_;
};

const char* name_of(WarpOp op);
std::string place_of(const Site& site);  // file:line

extern Gang* gang;  // that runs now, or null: host code

}  // namespace simt
