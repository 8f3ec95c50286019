// The scheduler: fibers, what they wait for, and who is next.
#include "simt.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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

[[maybe_unused]] void crashed(int signal) {
  const auto say = [](const char* text) { (void)!write(STDOUT_FILENO, text, std::strlen(text)); };
  say(signal == SIGABRT ? "failed: the program aborts" : "failed: an access to memory that is not there");
  say(gang != nullptr ? ", by device code\n" : ", by host code\n");
  // Where, if that is not ruined too.
  char text[100] = "";
  if (gang != nullptr) {
    std::snprintf(text, sizeof(text), "(block %u of %u, thread %u of %u)\n", here->block.x, here->grid_dim.x,
                  here->thread.x, here->block_dim.x);
  }
  say(text);
  std::_Exit(1);
}

}  // namespace

void report_crashes() {
#if !defined(__SANITIZE_ADDRESS__)  // which reports them itself
  static unsigned char memory[64 << 10];
  stack_t stack{};
  stack.ss_sp = memory;
  stack.ss_size = sizeof(memory);
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_handler = crashed;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  sigaction(SIGABRT, &action, nullptr);
#endif
}

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

// ---- who is next

void Gang::run(const dim3& grid, const dim3& block, unsigned first, unsigned blocks, size_t dynamic,
               void (*body)(const void*), const void* arguments) {
  const size_t per_block = block.x;
  threads_.resize(blocks * per_block);
  blocks_.resize(blocks);
  cluster_ = {};
  ready_.clear();
  spinning_.clear();
  late_.clear();
  ready_first_ = 0;
  events_ = events_at_spin_ = 0;
  idle_spins_ = left_ = 0;
  failure_.clear();
  random_.seed(schedule.seed);
  first_late_ = last_late_ = 0;
  if (schedule.order == Order::kLate) {
    // A block, where there are several, or a warp.
    const auto all = static_cast<int>(threads_.size()), size = static_cast<int>(per_block);
    const int of_block = static_cast<int>(random_() % blocks) * size;
    const int warp = 32 * static_cast<int>(random_() % ((per_block + 31) / 32));
    const bool whole = blocks > 1 && random_() % 2 == 0;
    first_late_ = whole ? of_block : of_block + warp;
    last_late_ = std::min(whole ? of_block + size : first_late_ + std::min(32, size - warp), all);
  }
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
      (is_late(thread) ? late_ : ready_).push_back(&thread);
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

bool Gang::is_late(const Thread& thread) const {
  const auto number = static_cast<int>(&thread - threads_.data());
  return number >= first_late_ && number < last_late_;
}

// Forward: the one that has waited longest. Backward: the one that was woken last. Threads that spin wait until no
// other can run, late ones until those that spin wait for something that has not happened; if nothing has happened
// between several such turns, nothing will.
Thread* Gang::next() {
  if (ready_first_ == ready_.size() && !late_.empty() && (spinning_.empty() || events_ == events_at_spin_)) {
    Thread* thread = late_.back();
    late_.pop_back();
    return thread;
  }
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
  if (schedule.order == Order::kForward || schedule.order == Order::kLate) {
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
  (is_late(thread) ? late_ : ready_).push_back(&thread);
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
