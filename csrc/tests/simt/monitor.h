// What only an instrumented build sees (-fsanitize=thread, whose callbacks are the emulator's own): every access of
// device code to device and shared memory. Races are found by happens-before, per two bytes; accesses must lie within
// one allocation or variable and be aligned to their size; bytes, sectors and bank conflicts are counted per launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace simt {
struct Thread;
struct Warp;
}  // namespace simt

namespace simt::monitor {

#if defined(SIMT_MONITOR)
constexpr bool kOn = true;
#else
constexpr bool kOn = false;
#endif

// What a thread knows of the others': theirs is ordered before its next access up to the given times.
using Times = std::vector<uint32_t>;
struct Clock {
  uint32_t own = 1;
  std::shared_ptr<const Times> seen;
  std::shared_ptr<const Times> released;  // by its last fence
  std::shared_ptr<const Times> found;     // in words it read since its last fence
};

void begin_launch();
void begin_gang(std::vector<Thread>& threads);
// A barrier: each of them has seen what all of them did.
void join(Thread* const* threads, size_t count);
void fence(Thread& thread);
void atomic(Thread& thread, const void* address);
// Ends what is taken as one stretch of accesses of a warp, lane by lane.
void end_stretch(Warp& warp);
void forget(const unsigned char* memory);
// That the host cleared this memory.
void cleared(const void* memory);

// Of the launches since it was cleared. Global memory in bytes, as asked for and in the sectors of 32 bytes that each
// access of a warp touches; shared memory of the block itself in passes of 128 bytes, needed and without conflicts.
struct Traffic {
  int64_t read = 0, written = 0;
  int64_t read_sectors = 0, written_sectors = 0;
  int64_t meetings = 0;  // bytes of what the host cleared for the launch: where blocks meet, not counted above
  int64_t shared_passes = 0, shared_ideal = 0;
};
extern Traffic traffic;
extern bool count_traffic;

}  // namespace simt::monitor
