// Stacks that one host thread switches between. On x86-64 Linux by a few instructions: ucontext saves the signal mask,
// a system call each time. Elsewhere by ucontext.
#pragma once

#include <cstddef>

#if defined(__x86_64__) && defined(__linux__)
#define SIMT_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// Where a stack was left.
struct Context {
#if defined(SIMT_OWN_SWITCH)
  void* stack_pointer = nullptr;
#else
  ucontext_t saved;
#endif
  // For the address sanitizer, which must know what stack it is on. The host's stack is learned at the first switch.
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
};

// The next switch to `context` calls entry() on the given stack; entry never returns.
void prepare(Context& context, void* stack, size_t bytes, void (*entry)());

// Leaves the running stack, described by `from`, for `to`. `last`: `from` is never entered again.
void switch_context(Context& from, Context& to, bool last);

// First of all in an entry: completes the switch that led there.
void entered(Context& from);

}  // namespace simt
