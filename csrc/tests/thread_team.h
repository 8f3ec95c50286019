// Teams of std::threads that stand for those of a GPU, and checks that count their failures.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "../cuda/element.h"
#include "../cuda/launch.h"

namespace drocc::tests {

using namespace drocc::cuda;

inline int failures = 0;

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ++drocc::tests::failures;                                          \
      std::printf("%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                          \
      std::printf("\n");                                                 \
    }                                                                    \
  } while (false)

// What the threads of a team share. Values of one exchange are kept apart from the next one's, as on the device.
struct Shared {
  int threads, parts, part_length;
  bool on_chip;
  std::barrier<> barrier;
  std::vector<double> values[2];
  std::vector<int> flags;
  Shared(int threads, int parts, int part_length, bool on_chip)
      : threads(threads),
        parts(parts),
        part_length(part_length),
        on_chip(on_chip),
        barrier(threads * parts),
        flags(static_cast<size_t>(threads)) {
    for (auto& v : values) v.resize(static_cast<size_t>(threads * parts));
  }
};

// reduce.cuh's team with std::barrier for its barriers.
class ThreadTeam {
 public:
  static constexpr int kBlock = 64;
  ThreadTeam(Shared& shared, int part, int rank) : shared_(shared), part_(part), rank_(rank) {}
  int begin(int64_t) const { return part_begin() + rank_; }
  int end(int64_t n) const { return part_end(n); }
  int step() const { return shared_.threads; }
  int rank() const { return rank_; }
  int threads() const { return shared_.threads; }
  int part_length() const { return shared_.part_length; }
  int part_begin() const { return part_ * shared_.part_length; }
  int part_end(int64_t n) const { return static_cast<int>(std::min<int64_t>(part_begin() + shared_.part_length, n)); }
  bool on_chip() const { return shared_.on_chip; }
  bool leads() const { return rank_ == 0 && part_ == 0; }
  void sync() const { shared_.barrier.arrive_and_wait(); }
  bool any(bool flag) const { return max(flag ? 1.0 : 0.0) != 0; }
  template <typename Flag, typename Body>
  void each(int64_t n, const Flag& flag, const Body& body) const {
    auto& flags = shared_.flags;
    for (int64_t first = 0; first < n; first += step()) {
      if (first + rank_ < n) flags[static_cast<size_t>(rank_)] = flag(first + rank_);
      sync();
      for (int64_t k = 0; k < step() && first + k < n; ++k) {
        if (flags[static_cast<size_t>(k)] != 0) body(first + k, flags[static_cast<size_t>(k)]);
      }
      sync();
    }
  }
  template <typename Real>
  Real sum(Real value) const {
    return combine(value, [](Real a, Real b) { return a + b; });
  }
  template <typename Real>
  Real max(Real value) const {
    return combine(value, [](Real a, Real b) { return a > b ? a : b; });
  }
  template <typename Real, int kCount>
  void sum_all(Real (&values)[kCount]) const {
    for (Real& value : values) value = sum(value);
  }

 private:
  template <typename Real, typename Op>
  Real combine(Real value, const Op& op) const {
    auto& values = shared_.values[parity_];
    parity_ ^= 1;
    values[static_cast<size_t>(part_ * shared_.threads + rank_)] = value;
    shared_.barrier.arrive_and_wait();
    Real result = static_cast<Real>(values[0]);
    for (size_t i = 1; i < values.size(); ++i) result = op(result, static_cast<Real>(values[i]));
    return result;
  }
  Shared& shared_;
  int part_, rank_;
  mutable int parity_ = 0;
};

struct Shape {
  int threads, parts;
};

// body(team, part) on every thread of a team over a row of n.
template <typename T, typename Body>
void by_team(Shape shape, int64_t n, bool on_chip, const Body& body) {
  const int pack = Pack<T>::kCount;
  const int part_length =
      shape.parts == 1 ? static_cast<int>(n) : static_cast<int>(round_up(ceil_div(n, shape.parts), pack));
  Shared shared(shape.threads, shape.parts, part_length, on_chip);
  std::vector<std::thread> threads;
  for (int part = 0; part < shape.parts; ++part) {
    for (int rank = 0; rank < shape.threads; ++rank) {
      threads.emplace_back([&, part, rank] { body(ThreadTeam(shared, part, rank), part); });
    }
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace drocc::tests
