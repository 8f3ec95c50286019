// Compiled once per instruction set (see isa.h). Rows are the lanes of a vector: a block of rows, turned on its side,
// stays in the cache while a tile of points goes over it, and no distance but the least is ever stored.
#include "nearest_kernel.h"

#include <limits>
#include <type_traits>

#include "../math/nearest.h"
#include "element.h"
#include "scratch.h"
#include "simd.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

// Points that share a block: the more there are, the less often is it turned, as long as they stay in the cache.
constexpr int64_t kLeastTile = 128, kMostTile = 512, kTileElements = 1 << 16;
constexpr int64_t kTogether = 4;  // points whose sums are in registers at a time
constexpr int64_t kChain = 1024;  // most terms that are summed one after the other

constexpr int64_t kVectors = 2;  // to a block: with kTogether enough sums to hide an addition's latency

template <typename T>
class NearestSearch {
  using C = typename ComputeOf<T>::type;
  using Value = simd::Vector<C>;
  // As wide as C, so that a comparison of values chooses among them.
  using Count = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Count Index __attribute__((vector_size(simd::kBytes)));
  static constexpr int64_t kWidth = simd::kLanes<C>;
  static constexpr int64_t kLanes = kVectors * kWidth;

 public:
  explicit NearestSearch(const NearestArgs& args)
      : args_(args),
        tile_(args.length * kLeastTile > kTileElements  ? kLeastTile
              : args.length * kMostTile > kTileElements ? kTileElements / args.length
                                                        : kMostTile),
        block_(args.length * kLanes),
        points_(tile_ * args.length),
        least_(tile_ * kLanes),
        blocks_(tile_ * kLanes) {}

  int64_t tile() const { return tile_; }

  bool ok() const {
    return block_.data() != nullptr && points_.data() != nullptr && least_.data() != nullptr &&
           blocks_.data() != nullptr;
  }

  void run(int64_t first, int64_t count) {
    const int64_t length = args_.length;
    const T* points = static_cast<const T*>(args_.points) + first * length;
    for (int64_t i = 0; i < count * length; ++i) points_.data()[i] = static_cast<C>(to_compute(points[i]));
    for (int64_t i = 0; i < count * kLanes; ++i) {
      least_.data()[i] = std::numeric_limits<C>::infinity();
      blocks_.data()[i] = -1;
    }
    for (int64_t row = 0; row < args_.rows_count; row += kLanes) {
      load_block(row);
      int64_t i = 0;
      for (; i + kTogether <= count; i += kTogether) compare<kTogether>(i, row / kLanes);
      for (; i < count; ++i) compare<1>(i, row / kLanes);
    }
    for (int64_t i = 0; i < count; ++i) finish(i, first + i);
  }

 private:
  const T* row(int64_t i) const { return static_cast<const T*>(args_.rows) + i * args_.length; }

  void load_block(int64_t first) {
    const int64_t count = args_.rows_count - first < kLanes ? args_.rows_count - first : kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      // Lanes beyond the last row hold NaN, which is less than nothing.
      if (lane < count) {
        const T* from = row(first + lane);
        for (int64_t d = 0; d < args_.length; ++d)
          block_.data()[d * kLanes + lane] = static_cast<C>(to_compute(from[d]));
      } else {
        for (int64_t d = 0; d < args_.length; ++d) {
          block_.data()[d * kLanes + lane] = std::numeric_limits<C>::quiet_NaN();
        }
      }
    }
  }

  template <int64_t kCount>
  void compare(int64_t first, int64_t block) {
    const C* points = points_.data() + first * args_.length;
    Value total[kCount][kVectors] = {};
    for (int64_t begin = 0; begin < args_.length; begin += kChain) {
      const int64_t end = begin + kChain < args_.length ? begin + kChain : args_.length;
      Value sum[kCount][kVectors] = {};
      for (int64_t d = begin; d < end; ++d) {
        Value rows[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) rows[v] = simd::load(block_.data() + d * kLanes + v * kWidth);
        for (int64_t k = 0; k < kCount; ++k) {
          const Value point = points[k * args_.length + d] - Value{};  // in every lane
          for (int64_t v = 0; v < kVectors; ++v) sum[k][v] = math::add_square(sum[k][v], rows[v], point);
        }
      }
      for (int64_t k = 0; k < kCount; ++k) {
        for (int64_t v = 0; v < kVectors; ++v) total[k][v] += sum[k][v];
      }
    }
    for (int64_t k = 0; k < kCount; ++k) {
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t at = (first + k) * kLanes + v * kWidth;
        const Value least = simd::load(least_.data() + at);
        const Index before = load_index(at);
        const auto nearer = total[k][v] < least;
        simd::store(least_.data() + at, nearer ? total[k][v] : least);
        const Index blocks = nearer ? Index{} + static_cast<Count>(block) : before;
        std::memcpy(blocks_.data() + at, &blocks, sizeof(blocks));
      }
    }
  }

  Index load_index(int64_t at) const {
    Index value;
    std::memcpy(&value, blocks_.data() + at, sizeof(value));
    return value;
  }

  void finish(int64_t i, int64_t point) {
    const C* x = points_.data() + i * args_.length;
    C least = std::numeric_limits<C>::infinity();
    int64_t nearest = -1;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const C value = least_.data()[i * kLanes + lane];
      const int64_t here = static_cast<int64_t>(blocks_.data()[i * kLanes + lane]) * kLanes + lane;
      if (value < least || (value == least && here >= 0 && here < nearest)) {  // of equal ones the first row
        least = value;
        nearest = here;
      }
    }
    double distance = nearest < 0 ? 0.0 : distance_to(x, nearest);
    if (!math::is_safe_square(least) && !(nearest >= 0 && distance == 0.0)) distance = search_in_full(x, nearest);
    static_cast<C*>(args_.distance)[point] = static_cast<C>(distance);
    args_.index[point] = nearest;
  }

  double distance_to(const C* x, int64_t i) const {
    const T* r = row(i);
    return math::distance(
        math::SerialTeam{}, args_.length, [&](int64_t d) { return static_cast<double>(x[d]); },
        [&](int64_t d) { return static_cast<double>(to_compute(r[d])); });
  }

  // Where squares may have left the range of C.
  double search_in_full(const C* x, int64_t& nearest) const {
    nearest = -1;
    double poison = 0.0;
    for (int64_t d = 0; d < args_.length; ++d) poison += static_cast<double>(x[d] - x[d]);
    if (poison != 0.0) return math::quiet_nan();
    double least = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < args_.rows_count; ++i) {
      const double distance = distance_to(x, i);
      if (distance < least) {
        least = distance;
        nearest = i;
      }
    }
    return least;
  }

  const NearestArgs& args_;
  const int64_t tile_;
  Scratch<C> block_;
  Scratch<C> points_;
  Scratch<C> least_;
  Scratch<Count> blocks_;
};

template <typename T>
bool nearest(const NearestArgs& args, int64_t begin, int64_t end) {
  NearestSearch<T> search(args);
  if (!search.ok()) return false;
  for (int64_t first = begin; first < end; first += search.tile()) {
    search.run(first, end - first < search.tile() ? end - first : search.tile());
  }
  return true;
}

}  // namespace

extern const NearestKernels nearest_kernels = {{nearest<float>, nearest<double>, nearest<Half>, nearest<BFloat16>}};

}  // namespace drocc::cpu::DROCC_ISA
