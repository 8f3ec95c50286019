// What is moved, counted from the accesses of device code.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "gang.h"

namespace simt::monitor {

Traffic traffic;
bool count_traffic = false;

namespace {

// Of a lane, since its warp last met.
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

}  // namespace

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

void end_stretch(Warp& warp) {
  if (!count_traffic) return;
  auto& accesses = stretches[&warp];
  std::stable_sort(accesses.begin(), accesses.end(), [](const Access& a, const Access& b) {
    return a.code != b.code ? a.code < b.code : a.turn < b.turn;
  });
  std::vector<Access> reads, writes;
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
      traffic.access_sectors += sectors(one);
      (one[0].write ? writes : reads).insert((one[0].write ? writes : reads).end(), one.begin(), one.end());
    }
    first = last;
  }
  traffic.sectors += sectors(reads) + sectors(writes);
  accesses.clear();
  for (const Thread* lane : warp.lanes) turns[lane].clear();
}

void cleared(const void* memory) {
  meeting_places.push_back(find_region(memory).memory);
}

void not_cleared(const unsigned char* memory) {
  std::erase(meeting_places, memory);
}

}  // namespace simt::monitor
