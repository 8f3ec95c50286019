// The callbacks of an instrumented build, and what they know.
#include "monitor.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "gang.h"

namespace simt::monitor {

Traffic traffic;
bool count_traffic = false;

namespace {

// ---- what is known of two bytes: who wrote last, and who has read since then
struct Cell {
  uint32_t launch = 0, gang = 0;
  uint32_t writer = 0, written_at = 0;  // thread of the gang + 1; 0: none
  uint32_t reader = 0, read_at = 0;
  uint32_t others = 0;               // further readers, in more_readers
  bool read_before = false, written_before = false;  // by gangs of this launch that have ended
};
using Readers = std::vector<std::pair<uint32_t, uint32_t>>;

struct Shadow {
  const unsigned char* memory = nullptr;
  size_t bytes = 0;
  std::vector<Cell> cells;
};

uint32_t launch_number = 0, gang_number = 0;
Thread* first_thread = nullptr;
std::vector<Readers> more_readers(1);
std::unordered_map<const void*, std::shared_ptr<const Times>> words;
std::unordered_map<const unsigned char*, Shadow> shadows;

uint32_t number_of(const Thread& thread) {
  return static_cast<uint32_t>(&thread - first_thread);
}

bool is_before(uint32_t other, uint32_t time, const Thread& thread) {
  const uint32_t own = number_of(thread);
  return other == own || (thread.clock.seen != nullptr && (*thread.clock.seen)[other] >= time);
}

using Known = std::shared_ptr<const Times>;
Known joined(const Known& a, const Known& b) {
  if (a == nullptr || a == b) return b;
  if (b == nullptr) return a;
  auto both = std::make_shared<Times>(*a);
  for (size_t k = 0; k < both->size(); ++k) (*both)[k] = std::max((*both)[k], (*b)[k]);
  return both;
}

// What a thread knows and has done itself.
Known with_own(const Thread& thread) {
  auto all = thread.clock.seen == nullptr ? std::make_shared<Times>(gang->threads().size(), 0)
                                          : std::make_shared<Times>(*thread.clock.seen);
  (*all)[number_of(thread)] = thread.clock.own;
  return all;
}

Shadow& shadow_of(const unsigned char* memory, size_t bytes) {
  static Shadow* last[2] = {};
  for (Shadow* each : last) {
    if (each != nullptr && each->memory == memory && each->bytes == bytes) return *each;
  }
  Shadow& found = shadows[memory];
  if (found.memory != memory || found.bytes != bytes) found = {memory, bytes, std::vector<Cell>((bytes + 1) / 2)};
  last[1] = last[0];
  return *(last[0] = &found);
}

std::string describe(const char* what, size_t bytes, const Thread& thread, uint32_t other) {
  const Thread& there = gang->threads()[other];
  return std::string("race: ") + what + " of " + std::to_string(bytes) + " bytes is not ordered after an access by block " +
         std::to_string(there.place.block.x) + ", thread " + std::to_string(there.place.thread.x) + ", by thread " +
         std::to_string(thread.place.thread.x);
}

void check_cell(Cell& cell, bool shared, bool write, size_t bytes, Thread& thread) {
  if (cell.launch != launch_number || (shared && cell.gang != gang_number)) {
    cell = {launch_number, gang_number, 0, 0, 0, 0, 0, false, false};
  } else if (cell.gang != gang_number) {
    // Blocks that never meet: nothing orders them.
    const bool written = cell.written_before || cell.writer != 0, read = cell.read_before || cell.reader != 0;
    cell = {launch_number, gang_number, 0, 0, 0, 0, 0, read, written};
  }
  const char* what = write ? "a write" : "a read";
  if (cell.written_before || (write && cell.read_before)) {
    gang->fail(std::string("race: ") + what + " of " + std::to_string(bytes) + " bytes that another block uses");
  }
  if (cell.writer != 0 && !is_before(cell.writer - 1, cell.written_at, thread)) {
    gang->fail(describe(what, bytes, thread, cell.writer - 1));
  }
  const uint32_t own = number_of(thread) + 1;
  if (!write) {
    if (cell.reader == 0 || cell.reader == own || is_before(cell.reader - 1, cell.read_at, thread)) {
      cell.reader = own;
      cell.read_at = thread.clock.own;
      return;
    }
    if (cell.others == 0) {
      cell.others = static_cast<uint32_t>(more_readers.size());
      more_readers.emplace_back();
    }
    Readers& others = more_readers[cell.others];
    for (auto& [reader, time] : others) {
      if (reader == own || is_before(reader - 1, time, thread)) {
        reader = own;
        time = thread.clock.own;
        return;
      }
    }
    others.emplace_back(own, thread.clock.own);
    return;
  }
  if (cell.reader != 0 && !is_before(cell.reader - 1, cell.read_at, thread)) {
    gang->fail(describe(what, bytes, thread, cell.reader - 1));
  }
  if (cell.others != 0) {
    for (const auto& [reader, time] : more_readers[cell.others]) {
      if (!is_before(reader - 1, time, thread)) gang->fail(describe(what, bytes, thread, reader - 1));
    }
    more_readers[cell.others].clear();
  }
  cell.writer = own;
  cell.written_at = thread.clock.own;
  cell.reader = 0;
}

// ---- traffic: the accesses of a lane since its warp last met
struct Access {
  const void* code;
  uint32_t turn;  // how often this code has run since then
  const unsigned char* at;
  uint32_t bytes;
  bool write, shared;
};
std::unordered_map<const Warp*, std::vector<Access>> stretches;
std::unordered_map<const Thread*, std::unordered_map<const void*, uint32_t>> turns;

std::vector<const unsigned char*> meeting_places;

void note(const Thread& thread, const void* code, const unsigned char* at, size_t bytes, bool write, bool shared,
          const unsigned char* memory) {
  if (std::find(meeting_places.begin(), meeting_places.end(), memory) != meeting_places.end()) {
    traffic.meetings += static_cast<int64_t>(bytes);
    return;
  }
  // Another block's shared memory is reached by the network of the cluster, not by banks.
  if (shared && memory != thread.block->arena.begin()) return;
  stretches[thread.warp].push_back({code, turns[&thread][code]++, at, static_cast<uint32_t>(bytes), write, shared});
}

int64_t sectors(const std::vector<Access>& accesses) {
  std::vector<uintptr_t> touched;
  for (const Access& access : accesses) {
    const auto first = reinterpret_cast<uintptr_t>(access.at);
    for (uintptr_t s = first / 32; s <= (first + access.bytes - 1) / 32; ++s) touched.push_back(s);
  }
  std::sort(touched.begin(), touched.end());
  return std::unique(touched.begin(), touched.end()) - touched.begin();
}

// A pass serves 32 banks of 4 bytes: all lanes at once up to 4 bytes each, a half or a quarter of them beyond.
void count_passes(const std::vector<Access>& accesses) {
  const size_t at_once = accesses[0].bytes <= 4 ? 32 : accesses[0].bytes <= 8 ? 16 : 8;
  for (size_t first = 0; first < accesses.size(); first += at_once) {
    std::map<uintptr_t, std::vector<uintptr_t>> banks;
    for (size_t k = first; k < std::min(first + at_once, accesses.size()); ++k) {
      const auto begin = reinterpret_cast<uintptr_t>(accesses[k].at);
      for (uintptr_t word = begin / 4; word <= (begin + accesses[k].bytes - 1) / 4; ++word) {
        auto& bank = banks[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    size_t most = 0;
    for (const auto& [bank, in_it] : banks) most = std::max(most, in_it.size());
    traffic.shared_passes += static_cast<int64_t>(most);
    traffic.shared_ideal += 1;
  }
}

bool is_in(const unsigned char* at, const unsigned char* memory, size_t bytes) {
  return at >= memory && at < memory + bytes;
}

}  // namespace

void begin_launch() {
  ++launch_number;
  more_readers.resize(1);
}

void begin_gang(std::vector<Thread>& threads) {
  ++gang_number;
  first_thread = threads.data();
  words.clear();
  if (more_readers.size() > 1000000) ++launch_number, more_readers.resize(1);
}

void join(Thread* const* threads, size_t count) {
  auto all = threads[0]->clock.seen == nullptr ? std::make_shared<Times>(gang->threads().size(), 0)
                                               : std::make_shared<Times>(*threads[0]->clock.seen);
  const Times* last = threads[0]->clock.seen.get();
  for (size_t k = 0; k < count; ++k) {
    const Times* seen = threads[k]->clock.seen.get();
    if (seen != nullptr && seen != last) {
      for (size_t t = 0; t < all->size(); ++t) (*all)[t] = std::max((*all)[t], (*seen)[t]);
      last = seen;
    }
  }
  for (size_t k = 0; k < count; ++k) (*all)[number_of(*threads[k])] = threads[k]->clock.own;
  for (size_t k = 0; k < count; ++k) {
    threads[k]->clock.seen = all;
    ++threads[k]->clock.own;
  }
}

// What C++ says of fences: a fence and then an atomic write give away; an atomic read and then a fence take.
void fence(Thread& thread) {
  thread.clock.seen = joined(thread.clock.seen, thread.clock.found);
  thread.clock.found = nullptr;
  thread.clock.released = with_own(thread);
  ++thread.clock.own;
}

void atomic(Thread& thread, const void* address) {
  auto& word = words[address];
  thread.clock.found = joined(thread.clock.found, word);
  word = joined(word, thread.clock.released);
}

void end_stretch(Warp& warp) {
  if (!count_traffic) return;
  auto& accesses = stretches[&warp];
  std::stable_sort(accesses.begin(), accesses.end(), [](const Access& a, const Access& b) {
    return a.code != b.code ? a.code < b.code : a.turn < b.turn;
  });
  for (size_t first = 0; first < accesses.size();) {
    size_t last = first;
    while (last < accesses.size() && accesses[last].code == accesses[first].code &&
           accesses[last].turn == accesses[first].turn) {
      ++last;
    }
    std::vector<Access> one(accesses.begin() + static_cast<ptrdiff_t>(first),
                            accesses.begin() + static_cast<ptrdiff_t>(last));
    if (one[0].shared) {
      std::sort(one.begin(), one.end(), [](const Access& a, const Access& b) { return a.at < b.at; });
      count_passes(one);
    } else {
      int64_t bytes = 0;
      for (const Access& access : one) bytes += access.bytes;
      (one[0].write ? traffic.written : traffic.read) += bytes;
      (one[0].write ? traffic.written_sectors : traffic.read_sectors) += sectors(one);
    }
    first = last;
  }
  accesses.clear();
  for (const Thread* lane : warp.lanes) turns[lane].clear();
}

void forget(const unsigned char* memory) {
  std::erase(meeting_places, memory);
  const auto found = shadows.find(memory);
  if (found != shadows.end()) found->second.bytes = 0, found->second.cells.clear();
}

void cleared(const void* memory) {
  meeting_places.push_back(find_region(memory).memory);
}

namespace {

[[maybe_unused]] void access(const void* address, size_t bytes, bool write, bool is_volatile, const void* code) {
  if (gang == nullptr) return;
  Thread& thread = gang->self();
  const auto* at = static_cast<const unsigned char*>(address);
  if (is_in(at, thread.stack.memory, kStackBytes)) return;
  const unsigned char* memory = nullptr;
  size_t total = 0;
  bool shared = false;
  const auto try_block = [&](Block& block) {
    if (!is_in(at, block.arena.begin(), block.arena.bytes())) return false;
    if (!block.arena.is_inside(at, bytes)) gang->fail("an access beyond a shared variable");
    if (block.left == block.threads) gang->fail("an access to shared memory of a block that has left");
    memory = block.arena.begin();
    total = block.arena.bytes();
    return shared = true;
  };
  if (!try_block(*thread.block)) {
    for (Block& block : gang->blocks()) {
      if (try_block(block)) break;
    }
  }
  if (!shared) {
    static Region last;
    if (last.memory == nullptr || !is_in(at, last.begin, static_cast<size_t>(last.end - last.begin)) ||
        find_region(last.memory).bytes != last.bytes) {
      last = find_region(at);
    }
    if (last.memory == nullptr) return;  // a constant, an argument
    if (at < last.memory || at + bytes > last.memory + last.bytes) {
      gang->fail(std::string("a ") + (write ? "write" : "read") + " beyond device memory of " +
                 std::to_string(last.bytes) + " bytes");
    }
    memory = last.memory;
    total = last.bytes;
  }
  if ((bytes & (bytes - 1)) == 0 && reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    gang->fail("an access of " + std::to_string(bytes) + " bytes that is not aligned");
  }
  if (is_volatile) {
    if (!write) thread.clock.found = joined(thread.clock.found, words[address]);
    if (write) words[address] = thread.clock.released;
    return;
  }
  if (count_traffic) note(thread, code, at, bytes, write, shared, memory);
  Shadow& shadow = shadow_of(memory, total);
  const auto offset = static_cast<size_t>(at - memory);
  for (size_t cell = offset / 2; cell <= (offset + bytes - 1) / 2; ++cell) {
    check_cell(shadow.cells[cell], shared, write, bytes, thread);
  }
}

}  // namespace
}  // namespace simt::monitor

#if defined(SIMT_MONITOR)
#define SIMT_CODE __builtin_return_address(0)
#define SIMT_CALLBACKS(bytes)                                                                                          \
  void __tsan_read##bytes(void* at) { simt::monitor::access(at, bytes, false, false, SIMT_CODE); }                     \
  void __tsan_write##bytes(void* at) { simt::monitor::access(at, bytes, true, false, SIMT_CODE); }                     \
  void __tsan_unaligned_read##bytes(void* at) { simt::monitor::access(at, bytes, false, false, SIMT_CODE); }           \
  void __tsan_unaligned_write##bytes(void* at) { simt::monitor::access(at, bytes, true, false, SIMT_CODE); }           \
  void __tsan_volatile_read##bytes(void* at) { simt::monitor::access(at, bytes, false, true, SIMT_CODE); }             \
  void __tsan_volatile_write##bytes(void* at) { simt::monitor::access(at, bytes, true, true, SIMT_CODE); }             \
  void __tsan_unaligned_volatile_read##bytes(void* at) { simt::monitor::access(at, bytes, false, true, SIMT_CODE); }   \
  void __tsan_unaligned_volatile_write##bytes(void* at) { simt::monitor::access(at, bytes, true, true, SIMT_CODE); }

// The names that the compiler calls.
extern "C" {
SIMT_CALLBACKS(1)
SIMT_CALLBACKS(2)
SIMT_CALLBACKS(4)
SIMT_CALLBACKS(8)
SIMT_CALLBACKS(16)
void __tsan_read_range(void* at, size_t bytes) { simt::monitor::access(at, bytes, false, false, SIMT_CODE); }
void __tsan_write_range(void* at, size_t bytes) { simt::monitor::access(at, bytes, true, false, SIMT_CODE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
uint8_t __tsan_atomic8_load(const volatile uint8_t* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
uint32_t __tsan_atomic32_load(const volatile uint32_t* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
void __tsan_atomic8_store(volatile uint8_t* at, uint8_t value, int) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
void __tsan_atomic32_store(volatile uint32_t* at, uint32_t value, int) {
  __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}
// device code's atomicAdd has already told monitor::atomic.
uint32_t __tsan_atomic32_fetch_add(volatile uint32_t* at, uint32_t value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
}
#endif
