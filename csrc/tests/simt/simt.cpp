// The scheduler: fibers, what they wait for, and who is next.
#include "simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>

#include "gang.h"

namespace simt {

Place* here = nullptr;
Gang* gang = nullptr;
Schedule schedule;

namespace {

constexpr size_t kCanary = 0x5eedcafe;
constexpr int kMostIdleSpins = 4;

// Stacks are used again, the most recent first. Untouched pages cost nothing.
std::vector<unsigned char*> free_stacks;

}  // namespace

Stack::Stack() {
  constexpr size_t kAtOnce = 64;
  if (free_stacks.empty()) {
    void* memory = mmap(nullptr, kAtOnce * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("simt: no memory for stacks");
    for (size_t k = 0; k < kAtOnce; ++k) free_stacks.push_back(static_cast<unsigned char*>(memory) + k * kStackBytes);
  }
  memory = free_stacks.back();
  free_stacks.pop_back();
  std::memcpy(memory, &kCanary, sizeof(kCanary));
}

Stack::~Stack() {
  if (memory != nullptr) free_stacks.push_back(memory);
}

namespace {

const char* name_of(WarpOp op) {
  constexpr const char* kNames[] = {"syncwarp", "shfl", "shfl_xor", "shfl_up", "shfl_down", "ballot",
                                    "any",      "all",  "reduce_add", "reduce_max", "reduce_min"};
  return kNames[static_cast<int>(op)];
}

std::string place_of(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0) &&
         (a.function_name() == b.function_name() || std::strcmp(a.function_name(), b.function_name()) == 0);
}

}  // namespace

// ---- who is next

void Gang::run(const dim3& grid, const dim3& block, unsigned first, unsigned blocks, size_t dynamic,
               void (*body)(const void*), const void* arguments) {
  const size_t per_block = block.x;
  threads_.resize(blocks * per_block);
  blocks_.resize(blocks);
  cluster_ = {};
  ready_.clear();
  spinning_.clear();
  ready_first_ = 0;
  events_ = events_at_spin_ = 0;
  idle_spins_ = left_ = 0;
  failure_.clear();
  random_.seed(schedule.seed);
  body_ = body;
  arguments_ = arguments;
  for (unsigned b = 0; b < blocks; ++b) {
    Block& into = blocks_[b];
    into.index = {first + b, 0, 0};
    into.first = static_cast<int>(b * per_block);
    into.threads = static_cast<int>(per_block);
    into.left = 0;
    into.begun = false;
    into.barrier = {};
    into.warps.resize((per_block + 31) / 32);
    for (Warp& warp : into.warps) {
      warp.lanes.fill(nullptr);
      warp.meetings.clear();
    }
    into.arena.reset(dynamic);
    for (unsigned t = 0; t < per_block; ++t) {
      Thread& thread = threads_[b * per_block + t];
      thread.place = {{t, 0, 0}, into.index, block, grid};
      thread.block = &into;
      thread.warp = &into.warps[t / 32];
      thread.lane = static_cast<int>(t % 32);
      thread.warp->lanes[t % 32] = &thread;
      thread.state = State::kReady;
      thread.clock = {};
      prepare(thread.context, thread.stack.memory, kStackBytes, &Gang::enter);
      ready_.push_back(&thread);
    }
  }
  if (schedule.order == Order::kBackward) std::reverse(ready_.begin(), ready_.end());
  if constexpr (monitor::kOn) monitor::begin_gang(threads_);
  Gang* const outer = gang;
  Place* const outer_here = here;
  gang = this;
  Thread* start = next();
  self_ = start;
  here = &start->place;
  start->block->begun = true;
  switch_context(host_, start->context, false);
  gang = outer;
  here = outer_here;
  for (Thread& thread : threads_) {
    size_t canary = 0;
    std::memcpy(&canary, thread.stack.memory, sizeof(canary));
    if (canary != kCanary) throw Fault("a stack overflowed");
  }
  if (!failure_.empty()) throw Fault(failure_);
  for (Block& each : blocks_) each.arena.check();
}

void Gang::enter() {
  entered(gang->self_->context);
  gang->body_(gang->arguments_);
  gang->leave();
}

// Forward: the one that has waited longest. Backward: the one that was woken last. Threads that spin wait until no other
// can run; if nothing has happened between several such turns, nothing will.
Thread* Gang::next() {
  if (ready_first_ == ready_.size() && !spinning_.empty()) {
    ready_.clear();
    ready_first_ = 0;
    if (events_ == events_at_spin_ && ++idle_spins_ > kMostIdleSpins) deadlock("every thread that could run spins");
    if (events_ != events_at_spin_) idle_spins_ = 0;
    events_at_spin_ = events_;
    ready_.swap(spinning_);
    for (Thread* thread : ready_) thread->state = State::kReady;
  }
  if (ready_first_ == ready_.size()) return nullptr;
  if (schedule.order == Order::kForward) {
    Thread* thread = ready_[ready_first_++];
    if (ready_first_ == ready_.size() || ready_first_ >= threads_.size()) {
      ready_.erase(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(ready_first_));
      ready_first_ = 0;
    }
    return thread;
  }
  if (schedule.order == Order::kRandom) std::swap(ready_[random_() % ready_.size()], ready_.back());
  Thread* thread = ready_.back();
  ready_.pop_back();
  return thread;
}

void Gang::switch_to(Thread* thread, bool last) {
  Thread* from = self_;
  if (thread == from) return;
  self_ = thread;
  here = &thread->place;
  thread->block->begun = true;
  switch_context(from->context, thread->context, last);
}

void Gang::wait(State state, const Site& site) {
  self_->state = state;
  self_->site = site;
  Thread* thread = next();
  if (thread == nullptr) deadlock("no thread can run");
  switch_to(thread, false);
}

void Gang::wake(Thread& thread) {
  thread.state = State::kReady;
  ready_.push_back(&thread);
}

void Gang::leave() {
  Thread& thread = *self_;
  thread.state = State::kLeft;
  ++thread.block->left;
  ++left_;
  ++events_;
  for (const WarpMeeting& meeting : thread.warp->meetings) {
    if (meeting.mask >> thread.lane & 1u) {
      fail(std::string("a thread left that ") + name_of(meeting.op) + " at " + place_of(meeting.site) + " waits for");
    }
  }
  if (thread.block->barrier.arrived > 0) {
    fail("a thread left that the barrier at " + place_of(thread.block->barrier.site) + " waits for");
  }
  if (cluster_.arrived > 0) fail("a thread left that the cluster's barrier waits for");
  if constexpr (monitor::kOn) {
    const bool all = std::all_of(thread.warp->lanes.begin(), thread.warp->lanes.end(),
                                 [](const Thread* lane) { return lane == nullptr || lane->state == State::kLeft; });
    if (all) monitor::end_stretch(*thread.warp);
  }
  // What a cluster's block leaves behind is not to be read.
  if (thread.block->left == thread.block->threads && blocks_.size() > 1) thread.block->arena.spoil();
  Thread* then = next();
  if (then != nullptr) switch_to(then, true);
  if (static_cast<size_t>(left_) < threads_.size()) deadlock("no thread can run");
  switch_context(thread.context, host_, true);
  __builtin_unreachable();
}

void Gang::fail(const std::string& what) {
  const Place& place = self_->place;
  failure_ = what + " (block " + std::to_string(place.block.x) + " of " + std::to_string(place.grid_dim.x) +
             ", thread " + std::to_string(place.thread.x) + " of " + std::to_string(place.block_dim.x) + ")";
  switch_context(self_->context, host_, true);
  __builtin_unreachable();
}

void Gang::deadlock(const char* what) {
  std::map<std::string, int> where;
  constexpr const char* kNames[] = {"ready", "in a warp's", "at a barrier", "at a cluster's barrier", "spins", "left"};
  for (const Thread& thread : threads_) {
    std::string state = kNames[static_cast<int>(thread.state)];
    if (thread.state == State::kInWarp) state += " operation";
    if (thread.state != State::kLeft && thread.state != State::kReady) state += " at " + place_of(thread.site);
    ++where[state];
  }
  std::string text = std::string("deadlock: ") + what + ";";
  for (const auto& [state, count] : where) text += " " + std::to_string(count) + " " + state + ",";
  text.pop_back();
  fail(text);
}

// ---- meetings

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
    monitor::end_stretch(warp);
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
  if (rank >= blocks_.size()) fail("block " + std::to_string(rank) + " of a cluster of " + std::to_string(blocks_.size()));
  Block& other = blocks_[rank];
  Block& own = *self_->block;
  if (!other.begun) fail("the shared memory of a block that may not have begun");
  if (other.left == other.threads) fail("the shared memory of a block that may have left");
  const ptrdiff_t offset = static_cast<const unsigned char*>(mine) - own.arena.begin();
  if (offset < 0 || static_cast<size_t>(offset) >= own.arena.bytes()) fail("map_shared_rank: not shared memory");
  return other.arena.begin() + offset;
}

void Gang::spin() {
  Thread& thread = *self_;
  thread.state = State::kSpins;
  thread.site = Site::current();
  spinning_.push_back(&thread);
  Thread* then = next();
  switch_to(then, false);
}

// Where a random schedule may let others go first, besides meetings.
void Gang::maybe_yield() {
  ++events_;
  if (schedule.order != Order::kRandom || random_() % 2 != 0) return;
  wake(*self_);
  switch_to(next(), false);
}

// ---- what device code calls

uint64_t meet_warp(WarpOp op, unsigned mask, uint64_t value, int argument, int bytes, const Site& site) {
  return gang->meet_warp(op, mask, value, argument, bytes, site);
}
int meet_block(BlockOp op, int value, const Site& site) {
  return gang->meet_block(op, value, site);
}
void meet_cluster(const Site& site) {
  gang->meet_cluster(site);
}
unsigned blocks_of_cluster() {
  return static_cast<unsigned>(gang->blocks().size());
}
unsigned rank_in_cluster() {
  return static_cast<unsigned>(gang->self().block - gang->blocks().data());
}
void* in_cluster(const void* mine, unsigned rank) {
  return gang->in_cluster(mine, rank);
}
unsigned char* dynamic_shared() {
  return gang->self().block->arena.dynamic();
}
void* shared_variable(int site) {
  return gang->self().block->arena.variable(site);
}
void fence() {
  if constexpr (monitor::kOn) monitor::fence(gang->self());
  gang->maybe_yield();
}
void before_atomic(const void* address) {
  gang->maybe_yield();
  if constexpr (monitor::kOn) monitor::atomic(gang->self(), address);
}
void spin() {
  gang->spin();
}

}  // namespace simt
