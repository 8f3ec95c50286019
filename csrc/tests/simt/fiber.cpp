#include "fiber.h"

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if defined(SIMT_OWN_SWITCH)
// What the calling convention lets a function rely on: rbx, rbp, r12 to r15 and the stack.
asm(R"(
.text
.type simt_switch_stack,@function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");
extern "C" void simt_switch_stack(void** save, void* load);
#endif

namespace simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
Context* left = nullptr;  // by the switch under way
#endif

}  // namespace

void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  context.fake_stack = nullptr;
  context.bottom = stack;
  context.bytes = bytes;
#if defined(__SANITIZE_ADDRESS__)
  // What threads before it left there was never returned from.
  ASAN_UNPOISON_MEMORY_REGION(stack, bytes);
#endif
#if defined(SIMT_OWN_SWITCH)
  // As if entry had been called: its return address, never used, is at a multiple of 16 less 8.
  auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  void** at = reinterpret_cast<void**>(top) - 1;
  *at = nullptr;
  *--at = reinterpret_cast<void*>(entry);
  for (int k = 0; k < 6; ++k) *--at = nullptr;
  context.stack_pointer = at;
#else
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = bytes;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  left = &from;
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(SIMT_OWN_SWITCH)
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.saved, &to.saved);
#endif
  entered(from);
}

void entered([[maybe_unused]] Context& context) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(context.fake_stack, &bottom, &bytes);
  if (left->bottom == nullptr) left->bottom = bottom, left->bytes = bytes;
#endif
}

}  // namespace simt
