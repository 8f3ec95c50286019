// Every launch that launch.h chooses over a range of shapes: "kernel family, element bytes, slots, held, threads,
// shared memory", for the device whose numbers are given.
//   cuda_launches PROCESSORS SHARED_PER_PROCESSOR SHARED_PER_BLOCK MOST_CLUSTER
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>

#include "../cuda/mlp_launch.h"

int main(int argc, char** argv) {
  using namespace drocc::cuda;
  if (argc != 5) return 2;
  const Device device{std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4])};
  std::set<std::tuple<const char*, int, int, int, int, int>> seen;
  const char* names[] = {"registers", "shared", "nothing"};
  for (const Residency keep : {Residency::kRegisters, Residency::kShared, Residency::kNothing}) {
    for (const int stored : {2, 4, 8}) {
      for (const int64_t batch : {64, 65536}) {
        for (int64_t length = 1; length < 8000000; length = length * 9 / 8 + 1) {
          const Launch launch = choose_launch(device, keep, batch, length, stored, stored == 8 ? 8 : 4);
          seen.insert(
              {names[static_cast<int>(keep)], stored, launch.slots, launch.on_chip, launch.threads(), launch.shared});
        }
      }
    }
  }
  for (const int stored : {4, 8}) {
    for (const int64_t batch : {64, 65536}) {
      for (int64_t hidden = 1; hidden < 8000; hidden = hidden * 9 / 8 + 1) {
        const Launch launch = choose_hidden_launch(device, batch, 3072, hidden, stored);
        seen.insert({"hidden", stored, launch.slots, launch.on_chip, launch.threads(), launch.shared});
      }
    }
  }
  // Of the search in networks of several layers the slots are the rows of a block.
  for (const int stored : {4, 8}) {
    for (const bool with_sigma : {false, true}) {
      for (const int64_t batch : {3, 64, 300, 65536}) {
        for (int64_t length = 1; length < 100000; length = length * 9 / 8 + 1) {
          for (int64_t units = 1; units < 10000; units = units * 5 / 4 + 1) {
            for (int layers = 1; layers <= drocc::kMostMlpLayers; ++layers) {
              const int64_t widths[] = {length, units, units, units, units};
              const MlpLaunch chosen = choose_mlp_launch(device, batch, layers, widths, stored, with_sigma);
              const Launch& launch = chosen.launch;
              seen.insert({"mlp", stored, launch.rows_per_block, launch.on_chip, launch.threads(), launch.shared});
            }
          }
        }
      }
    }
    seen.insert({"transpose", stored, 4, 0, kTransposeThreads, transpose_bytes(stored)});
  }
  for (const auto& [keep, stored, slots, held, threads, shared] : seen) {
    std::printf("%s %d %d %d %d %d\n", keep, stored, slots, held, threads, shared);
  }
  return 0;
}
