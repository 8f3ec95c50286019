// How rows are shared out among threads: one choice, made on the host, for every kernel. No CUDA include: the ordinary
// tests call it for devices that are not there, and `make cuda-check` reads its launches for the occupancy table.
//
//   short    a row per warp or power of two of its threads, several rows per block
//   medium   a row per block, held on chip (registers or shared memory) and read once
//   long     a row per group of blocks, each holding a part: a cluster where the device has them (sm_90 on), else
//            blocks that are resident together and meet in device memory. Rows too long even for that are re-read.
#pragma once

#include <cstdint>

namespace drocc::cuda {

// What a kernel keeps of a row.
enum class Residency {
  kRegisters,  // the operands as stored, 16-byte packs in registers
  kShared,     // two values per element in the compute type, in shared memory
  kNothing,    // rows are re-read; the caches hold all but the longest
};

struct Device {
  int processors;            // multiprocessors
  int shared_per_processor;  // bytes
  int shared_per_block;      // most dynamic shared memory of a block, bytes
  int most_cluster;          // blocks that can form a cluster; 1 where there are no clusters, or no code for them
};

enum class Regime { kShort, kMedium, kLong };

struct Launch {
  Regime regime;
  int threads_per_row;  // of one block; a power of two up to 32, or a multiple of 32
  int rows_per_block;   // 1 but for short rows
  int parts;            // blocks per row, 1 but for long rows
  int part_length;      // elements of a row per block; a multiple of 16 bytes where there are several parts
  bool cluster;         // the parts of a row are a cluster
  bool on_chip;         // a row is read from device memory once
  int slots;            // kRegisters: packs of 16 bytes per thread and operand, 4 or 8
  int shared;           // dynamic shared memory, bytes per block

  int threads() const { return threads_per_row * rows_per_block; }
};

// Most threads of a block, as compiled (__launch_bounds__): what leaves each kernel enough registers.
constexpr int most_tile_threads(int slots, int stored) {
  return slots == 4 ? 768 : stored == 8 ? 512 : 640;  // with 8 slots, half as many fit twice
}
constexpr int kMostSharedThreads = 512;
constexpr int kMostReadingThreads = 256;
constexpr int kShortThreads = 128;
constexpr int kMostParts = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
constexpr int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}
constexpr int at_most(int64_t a, int64_t b) {
  return static_cast<int>(a < b ? a : b);
}
constexpr int at_least(int64_t a, int64_t b) {
  return static_cast<int>(a > b ? a : b);
}
// The smallest power of two >= n.
constexpr int power_of_two(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// The number of blocks for a row of which each block should take `wanted` elements and can take no more than `most`;
// 0 where the device has not enough blocks for that.
constexpr int choose_parts(const Device& device, int64_t length, int64_t wanted, int64_t most) {
  if (device.most_cluster > 1) {
    const int parts = at_most(power_of_two(ceil_div(length, wanted)), device.most_cluster);
    return ceil_div(length, parts) <= most ? parts : 0;
  }
  // Two blocks of the wanted size are resident on a processor, one of the largest.
  const int64_t parts = ceil_div(length, wanted);
  if (parts <= at_most(2 * device.processors, kMostParts)) return static_cast<int>(parts);
  return ceil_div(length, most) <= device.processors ? static_cast<int>(ceil_div(length, most)) : 0;
}

// stored, compute: bytes of an element as stored and in the type of the arithmetic.
inline Launch choose_launch(const Device& device, Residency keep, int64_t batch, int64_t length, int stored,
                            int compute) {
  const int pack = 16 / stored;
  Launch launch{Regime::kShort, 1, 1, 1, static_cast<int>(length), false, true, 4, 0};
  const bool clusters = device.most_cluster > 1;

  // ---- short: threads enough for two packs each; the elements of a warp's rows are one stretch of memory
  const auto short_rows = [&](int64_t per_thread, int row_bytes) {
    launch.threads_per_row = at_most(power_of_two(ceil_div(length, per_thread)), 32);
    launch.rows_per_block = kShortThreads / launch.threads_per_row;
    launch.shared = launch.rows_per_block * row_bytes;
  };
  const auto threads_for = [&](int64_t part, int64_t per_thread, int least, int most) {
    return at_least(least, at_most(round_up(ceil_div(part, per_thread), 32), most));
  };
  // Where few blocks fit, their sizes are powers of two: others would leave a multiprocessor half empty.
  const auto split = [&](int parts) {
    launch.regime = Regime::kLong;
    launch.parts = parts > 0 ? parts : clusters ? device.most_cluster : at_most(device.processors, kMostParts);
    launch.cluster = clusters;
    launch.part_length = static_cast<int>(round_up(ceil_div(length, launch.parts), pack));
    launch.on_chip = parts > 0;
  };

  if (keep == Residency::kRegisters) {
    if (length <= 32 * 8 * pack) {
      short_rows(2 * pack, 0);
      launch.slots = length <= 32 * 4 * pack ? 4 : 8;
      return launch;
    }
    // With clusters, rows that would need a whole processor's registers are split instead, so that two rows' parts
    // share a processor and one loads while the other is summed.
    const int most = most_tile_threads(4, stored) / (clusters ? 2 : 1);
    launch.regime = Regime::kMedium;
    launch.threads_per_row = threads_for(length, 4 * pack, 64, most);
    if (launch.threads_per_row > 384 && launch.threads_per_row < 512) launch.threads_per_row = 512;
    if (length <= int64_t{most} * 4 * pack) return launch;
    launch.slots = 8;
    const int most_long = most_tile_threads(8, stored);
    split(choose_parts(device, length, most_long / 2 * 8 * pack, most_long * 8 * pack));
    const int threads = threads_for(launch.part_length, 8 * pack, 64, most_long);
    const bool even = stored != 8 && (threads <= most_long / 2 || threads > 512);
    launch.threads_per_row = even ? threads : power_of_two(threads);
    return launch;
  }

  if (keep == Residency::kShared) {
    const int bytes = 2 * compute;  // per element
    const int per_thread = 96 / bytes;
    // A warp per row is slow where rows are few: it makes the solver's passes alone.
    const bool many = batch >= 16 * static_cast<int64_t>(device.processors);
    const int64_t row_bytes = round_up(length * bytes, 16);
    if (length <= (many ? 1024 : 256)) {
      short_rows(8, static_cast<int>(row_bytes));
      if (launch.shared <= device.shared_per_processor / 5) return launch;
      launch.rows_per_block = 1;
    }
    const int64_t half = device.shared_per_processor / 2 - 4096;
    const int64_t whole = device.shared_per_block - 2048;
    launch.regime = Regime::kMedium;
    if (row_bytes > (clusters ? half : whole)) split(choose_parts(device, length, half / bytes, whole / bytes));
    // Registers are enough for one block of the most threads on a processor: parts of which two must be resident have
    // half as many.
    const bool pairs = launch.parts > 1 && !clusters && launch.part_length <= round_up(half / bytes, pack);
    const int most = pairs ? kMostSharedThreads / 2 : kMostSharedThreads;
    launch.threads_per_row = power_of_two(threads_for(launch.part_length, per_thread, 64, most));
    launch.shared = launch.on_chip ? static_cast<int>(round_up(int64_t{launch.part_length} * bytes, 16)) : 0;
    return launch;
  }

  launch.on_chip = false;
  if (length <= 1024) {
    short_rows(8, 0);
    return launch;
  }
  launch.regime = Regime::kMedium;
  if (length > 32768) {
    // From here on a few rows do not fill the device, or leave the first-level cache.
    split(choose_parts(device, length, 8192, at_least(8192, ceil_div(length, device.processors))));
    launch.on_chip = false;
  }
  launch.threads_per_row = threads_for(launch.part_length, 16, 64, kMostReadingThreads);
  return launch;
}

// ---- the search in hidden space: a row by a warp or a block, its H units on chip for all steps

// Of a unit: eight values in the compute type and one double.
constexpr int64_t hidden_bytes(int64_t hidden, int compute) {
  return round_up(hidden * (8 * compute + 8), 16);
}

inline Launch choose_hidden_launch(const Device& device, int64_t batch, int64_t length, int64_t hidden, int compute) {
  const int longest = at_least(length, hidden);
  Launch launch{Regime::kMedium, 0, 1, 1, longest, false, true, 4, 0};
  const int64_t row_bytes = hidden_bytes(hidden, compute);
  // Where rows are many a warp takes one, without barriers. Where they are few, more threads finish one sooner.
  if (batch >= 4 * static_cast<int64_t>(device.processors) && hidden <= 512 / compute) {
    launch.regime = Regime::kShort;
    launch.threads_per_row = 32;
    launch.rows_per_block = 4;
  } else {
    launch.threads_per_row = at_least(32, at_most(power_of_two(ceil_div(hidden * compute, 8)), kMostSharedThreads));
  }
  launch.shared = static_cast<int>(launch.rows_per_block * row_bytes);
  if (launch.rows_per_block * row_bytes > device.shared_per_block - 2048) {
    launch.on_chip = false;  // in device memory, for so many rows at a time as fill the device
    launch.shared = 0;
  }
  return launch;
}

}  // namespace drocc::cuda
