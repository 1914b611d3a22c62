// Fibers: functions that can be left in the middle and resumed, each on a stack of its own.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && defined(__linux__) && !defined(IRNEXT_UCONTEXT)
#define IRNEXT_FIBER_ASSEMBLY 1
#else
#define IRNEXT_FIBER_ASSEMBLY 0
#include <ucontext.h>
#endif

#if IRNEXT_FIBER_ASSEMBLY
// Saves the registers that a call preserves on this stack, and goes on where `load` was left. swapcontext would
// do, but asks the kernel about signals each time.
extern "C" __attribute__((visibility("hidden"))) void irnext_switch_stack(void** save, void* load);
asm(R"(
  .pushsection .text.irnext_switch_stack,"axG",@progbits,irnext_switch_stack,comdat
  .weak irnext_switch_stack
  .hidden irnext_switch_stack
  .type irnext_switch_stack,@function
irnext_switch_stack:
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
  .size irnext_switch_stack, .-irnext_switch_stack
  .popsection
)");
#endif

namespace irnext::cuda::host {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// Something that runs on a stack: the thread that schedules, or a fiber.
struct Context {
#if IRNEXT_FIBER_ASSEMBLY
  void* stack_pointer = nullptr;
#else
  ucontext_t registers = {};
#endif
  const void* stack = nullptr;  // its lowest address, for the sanitizer
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

// Stacks are kept for the next launch; their pages are taken from the system when first touched.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() {
    for (char* stack : stacks_) munmap(stack, kStackBytes);
  }

  char* get(size_t index) {
    while (stacks_.size() <= index) {
      constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
      if (stack == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(static_cast<char*>(stack));
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stacks_[index], kStackBytes);  // an abandoned fiber left its marks
#endif
    return stacks_[index];
  }

 private:
  std::vector<char*> stacks_;
};

// Make `context` begin with entry(), which must never return, when it is first switched to.
inline void prepare(Context* context, char* stack, void (*entry)()) {
  context->stack = stack;
  context->stack_bytes = kStackBytes;
  context->fake_stack = nullptr;
#if IRNEXT_FIBER_ASSEMBLY
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // where a caller's return address would be; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int preserved = 0; preserved < 6; ++preserved) *--top = nullptr;
  context->stack_pointer = top;
#else
  getcontext(&context->registers);
  context->registers.uc_stack.ss_sp = stack;
  context->registers.uc_stack.ss_size = kStackBytes;
  context->registers.uc_link = nullptr;
  makecontext(&context->registers, entry, 0);
#endif
}

// To be called first thing by a fiber's entry: learns the bounds of the stack it came from.
inline void entered(Context* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from->stack, &from->stack_bytes);
#else
  (void)from;
#endif
}

// Leave `from` and go on with `to`; `last` where `from` will never be resumed.
inline void switch_context(Context* from, Context* to, bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, to->stack, to->stack_bytes);
#else
  (void)last;
#endif
#if IRNEXT_FIBER_ASSEMBLY
  irnext_switch_stack(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->registers, &to->registers);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

}  // namespace irnext::cuda::host
