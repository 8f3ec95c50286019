// What threads of a warp, a block or a cluster do together, and what is wrong with it where they do not.
#include <algorithm>

#include "gang.h"

namespace simt {

const char* name_of(WarpOp op) {
  constexpr const char* kNames[] = {"syncwarp", "shfl", "shfl_xor",   "shfl_up",    "shfl_down", "ballot",
                                    "any",      "all",  "reduce_add", "reduce_max", "reduce_min"};
  return kNames[static_cast<int>(op)];
}

std::string place_of(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

namespace {

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0) &&
         (a.function_name() == b.function_name() || std::strcmp(a.function_name(), b.function_name()) == 0);
}

}  // namespace

uint64_t Gang::meet_warp(WarpOp op, unsigned mask, uint64_t value, int argument, int bytes, const Site& site) {
  Thread& thread = *self_;
  Warp& warp = *thread.warp;
  const unsigned own = 1u << thread.lane;
  const auto here_is = [&] { return std::string(name_of(op)) + " at " + place_of(site); };
  ++events_;
  if (!(mask & own)) fail(here_is() + ": its mask leaves out the thread itself");
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const Thread* lane = warp.lanes[static_cast<size_t>(__builtin_ctz(rest))];
    if (lane == nullptr || lane->state == State::kLeft) fail(here_is() + ": a thread of its mask has left");
  }
  WarpMeeting* meeting = nullptr;
  for (WarpMeeting& other : warp.meetings) {
    if (!(other.mask & own) || !(other.arrived & mask)) continue;
    const bool by_lane = op == WarpOp::kShuffle;
    const int argument_there = other.arguments[static_cast<size_t>(__builtin_ctz(other.arrived))];
    if (other.mask != mask || other.op != op || other.bytes != bytes || (!by_lane && argument_there != argument) ||
        !same(other.site, site)) {
      fail(here_is() + " meets " + name_of(other.op) + " at " + place_of(other.site) +
           ": masks, operations, arguments or call sites differ");
    }
    meeting = &other;
  }
  if (meeting == nullptr) {
    warp.meetings.push_back({mask, 0, op, bytes, site, {}, {}});
    meeting = &warp.meetings.back();
  }
  meeting->arrived |= own;
  meeting->values[static_cast<size_t>(thread.lane)] = value;
  meeting->arguments[static_cast<size_t>(thread.lane)] = argument;
  if (meeting->arrived == mask) return finish(*meeting, warp);
  wait(State::kInWarp, site);
  return thread.result;
}

uint64_t Gang::finish(WarpMeeting& meeting, Warp& warp) {
  const unsigned mask = meeting.mask;
  uint64_t all = meeting.op == WarpOp::kAll ? 1 : meeting.op == WarpOp::kMin ? ~uint64_t{0} : 0;
  Thread* members[32];
  size_t count = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(__builtin_ctz(rest));
    const uint64_t value = meeting.values[lane];
    members[count++] = warp.lanes[lane];
    switch (meeting.op) {
      case WarpOp::kBallot:
        all |= value << lane;
        break;
      case WarpOp::kAny:
        all |= value;
        break;
      case WarpOp::kAll:
        all &= value;
        break;
      case WarpOp::kAdd:
        all = static_cast<uint32_t>(all + value);
        break;
      case WarpOp::kMax:
        all = std::max(all, value);
        break;
      case WarpOp::kMin:
        all = std::min(all, value);
        break;
      default:
        break;
    }
  }
  for (size_t k = 0; k < count; ++k) {
    const int lane = members[k]->lane;
    const int argument = meeting.arguments[static_cast<size_t>(lane)];
    int from = lane;
    if (meeting.op == WarpOp::kShuffle) from = argument & 31;
    if (meeting.op == WarpOp::kShuffleXor) from = lane ^ argument;
    if (meeting.op == WarpOp::kShuffleUp) from = lane - argument < 0 ? lane : lane - argument;
    if (meeting.op == WarpOp::kShuffleDown) from = lane + argument > 31 ? lane : lane + argument;
    const bool moves = meeting.op >= WarpOp::kShuffle && meeting.op <= WarpOp::kShuffleDown;
    if (moves && (from > 31 || !(mask >> from & 1u))) {
      fail(std::string(name_of(meeting.op)) + " at " + place_of(meeting.site) + " reads a lane outside of its mask");
    }
    members[k]->result = moves ? meeting.values[static_cast<size_t>(from)] : all;
  }
  if constexpr (monitor::kOn) {
    if (meeting.op == WarpOp::kSync) monitor::join(members, count);
    if (mask == ~0u) monitor::end_stretch(warp);  // parts of a warp go on in step with the others
  }
  meeting = warp.meetings.back();
  warp.meetings.pop_back();
  for (size_t k = 0; k < count; ++k) {
    if (members[k] != self_) wake(*members[k]);
  }
  return self_->result;
}

int Gang::meet_block(BlockOp op, int value, const Site& site) {
  Thread& thread = *self_;
  Block& block = *thread.block;
  Barrier& barrier = block.barrier;
  ++events_;
  if (block.left > 0) fail("barrier at " + place_of(site) + ": a thread of the block has left");
  if (barrier.arrived == 0) {
    barrier = {0, op, op == BlockOp::kAnd ? 1 : 0, site};
  } else if (barrier.op != op || !same(barrier.site, site)) {
    fail("barrier at " + place_of(site) + " meets another one, at " + place_of(barrier.site));
  }
  if (op == BlockOp::kOr) barrier.value |= value;
  if (op == BlockOp::kAnd) barrier.value &= value;
  if (op == BlockOp::kCount) barrier.value += value;
  if (++barrier.arrived < block.threads) {
    wait(State::kInBlock, site);
    return static_cast<int>(thread.result);
  }
  barrier.arrived = 0;
  std::vector<Thread*> members;
  members.reserve(static_cast<size_t>(block.threads));
  for (int t = 0; t < block.threads; ++t) members.push_back(&threads_[static_cast<size_t>(block.first + t)]);
  if constexpr (monitor::kOn) {
    monitor::join(members.data(), members.size());
    for (Warp& warp : block.warps) monitor::end_stretch(warp);
  }
  for (Thread* member : members) {
    member->result = static_cast<uint64_t>(barrier.value);
    if (member != self_) wake(*member);
  }
  return barrier.value;
}

void Gang::meet_cluster(const Site& site) {
  ++events_;
  if (left_ > 0) fail("the cluster's barrier at " + place_of(site) + ": a thread has left");
  if (cluster_.arrived == 0) {
    cluster_.site = site;
  } else if (!same(cluster_.site, site)) {
    fail("the cluster's barrier at " + place_of(site) + " meets another one, at " + place_of(cluster_.site));
  }
  if (++cluster_.arrived < static_cast<int>(threads_.size())) return wait(State::kInCluster, site);
  cluster_.arrived = 0;
  if constexpr (monitor::kOn) {
    std::vector<Thread*> members;
    for (Thread& thread : threads_) members.push_back(&thread);
    monitor::join(members.data(), members.size());
    for (Block& block : blocks_) {
      for (Warp& warp : block.warps) monitor::end_stretch(warp);
    }
  }
  for (Thread& thread : threads_) {
    if (&thread != self_) wake(thread);
  }
}

void* Gang::in_cluster(const void* mine, unsigned rank) {
  if (rank >= blocks_.size())
    fail("block " + std::to_string(rank) + " of a cluster of " + std::to_string(blocks_.size()));
  Block& other = blocks_[rank];
  Block& own = *self_->block;
  if (!other.begun) fail("the shared memory of a block that may not have begun");
  if (other.left == other.threads) fail("the shared memory of a block that may have left");
  const ptrdiff_t offset = static_cast<const unsigned char*>(mine) - own.arena.begin();
  if (offset < 0 || static_cast<size_t>(offset) >= own.arena.bytes()) fail("map_shared_rank: not shared memory");
  return other.arena.begin() + offset;
}

}  // namespace simt
