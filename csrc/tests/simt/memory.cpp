// Device memory and the shared memory of blocks: exact sizes, NaN to begin with, guards on both sides.
#include <algorithm>
#include <cstring>
#include <map>

#include "gang.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace simt {
namespace {

constexpr size_t kGuard = 1024;
constexpr size_t kSharedGuard = 64;
constexpr unsigned char kNan = 0xff;
constexpr unsigned char kGuardByte = 0xfe;  // NaN as well

struct Allocation {
  size_t bytes;
  unsigned char* begin;  // of the guard ahead of it
  size_t total;
};
std::map<const unsigned char*, Allocation>& allocations() {
  static std::map<const unsigned char*, Allocation> all;
  return all;
}

struct Variable {
  size_t bytes, offset;
};
std::vector<Variable>& variables() {
  static std::vector<Variable> all;
  return all;
}

size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

bool is_whole(const unsigned char* guard, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(guard, bytes);
  const bool whole = std::all_of(guard, guard + bytes, [](unsigned char byte) { return byte == kGuardByte; });
  ASAN_POISON_MEMORY_REGION(guard, bytes);
  return whole;
}

void set_guard(unsigned char* guard, size_t bytes) {
  std::memset(guard, kGuardByte, bytes);
  ASAN_POISON_MEMORY_REGION(guard, bytes);
}

}  // namespace

unsigned char* allocate(size_t bytes) {
  // At a multiple of 256 bytes, as torch's allocator gives at least.
  const size_t total = bytes + 2 * kGuard + 256;
  unsigned char* begin = new unsigned char[total];
  unsigned char* memory = begin + kGuard;
  memory += round_up(reinterpret_cast<uintptr_t>(memory), 256) - reinterpret_cast<uintptr_t>(memory);
  std::memset(memory, kNan, bytes);
  set_guard(begin, static_cast<size_t>(memory - begin));
  set_guard(memory + bytes, kGuard);
  allocations()[memory] = {bytes, begin, total};
  return memory;
}

void release(unsigned char* memory) {
  const Allocation& allocation = allocations().at(memory);
  if constexpr (monitor::kOn) monitor::forget(memory);
  ASAN_UNPOISON_MEMORY_REGION(allocation.begin, allocation.total);
  delete[] allocation.begin;
  allocations().erase(memory);
}

void check_guards() {
  for (const auto& [memory, allocation] : allocations()) {
    if (!is_whole(allocation.begin, static_cast<size_t>(memory - allocation.begin)) ||
        !is_whole(memory + allocation.bytes, kGuard)) {
      throw Fault("a write beyond device memory of " + std::to_string(allocation.bytes) + " bytes");
    }
  }
}

Region find_region(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  auto next = allocations().upper_bound(at + kGuard + 256);
  while (next != allocations().begin()) {
    --next;
    const Allocation& allocation = next->second;
    if (at >= allocation.begin && at < next->first + allocation.bytes + kGuard) {
      return {next->first, allocation.bytes, allocation.begin, next->first + allocation.bytes + kGuard};
    }
    if (at >= next->first + allocation.bytes + kGuard) break;
  }
  return {};
}

int register_shared(size_t bytes, size_t alignment) {
  auto& all = variables();
  const size_t offset = all.empty() ? kSharedGuard : all.back().offset + all.back().bytes + kSharedGuard;
  all.push_back({bytes, round_up(offset, std::max<size_t>(alignment, 16))});
  return static_cast<int>(all.size()) - 1;
}

// A kernel is taken to have the largest variable of the program: what it has is known to its compiler only.
size_t most_static_shared() {
  size_t most = 0;
  for (const Variable& variable : variables()) most = std::max(most, variable.bytes);
  return most;
}

void Arena::reset(size_t dynamic) {
  const auto& all = variables();
  dynamic_ = dynamic;
  // No better aligned than CUDA promises.
  dynamic_at_ = round_up((all.empty() ? 0 : all.back().offset + all.back().bytes) + kSharedGuard, 32) + 16;
  bytes_ = dynamic_at_ + dynamic + kSharedGuard;
  if (bytes_ > capacity_) {
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), capacity_);
    capacity_ = bytes_;
    memory_ = std::make_unique<unsigned char[]>(capacity_ + 32);
  }
  ASAN_UNPOISON_MEMORY_REGION(memory_.get(), capacity_);
  set_guard(memory_.get(), bytes_);
  const auto open = [&](size_t offset, size_t bytes) {
    ASAN_UNPOISON_MEMORY_REGION(memory_.get() + offset, bytes);
    std::memset(memory_.get() + offset, kNan, bytes);
  };
  for (const Variable& variable : all) open(variable.offset, variable.bytes);
  open(dynamic_at_, dynamic);
}

unsigned char* Arena::variable(int site) {
  return memory_.get() + variables()[static_cast<size_t>(site)].offset;
}

bool Arena::is_inside(const unsigned char* at, size_t bytes) const {
  const auto within = [&](size_t offset, size_t size) {
    return at >= memory_.get() + offset && at + bytes <= memory_.get() + offset + size;
  };
  if (within(dynamic_at_, dynamic_)) return true;
  const auto& all = variables();
  return std::any_of(all.begin(), all.end(),
                     [&](const Variable& variable) { return within(variable.offset, variable.bytes); });
}

void Arena::check() const {
  size_t at = 0;
  const auto check = [&](size_t until) {
    if (!is_whole(memory_.get() + at, until - at)) throw Fault("a write beyond shared memory");
  };
  for (const Variable& variable : variables()) {
    check(variable.offset);
    at = variable.offset + variable.bytes;
  }
  check(dynamic_at_);
  at = dynamic_at_ + dynamic_;
  check(bytes_);
}

void Arena::spoil() {
  for (const Variable& variable : variables()) std::memset(memory_.get() + variable.offset, kNan, variable.bytes);
  std::memset(memory_.get() + dynamic_at_, kNan, dynamic_);
}

}  // namespace simt
