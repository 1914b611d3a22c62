// Picks the instruction set of the machine it runs on.
#include <atomic>
#include <cstring>
#include <initializer_list>

#include "kernels.h"
#include "winograd.h"

namespace irnext::cpu {

extern const Kernels kernels_baseline;
extern const WinogradKernels winograd_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
extern const WinogradKernels winograd_avx2, winograd_avx512;
#endif

namespace {

const Kernels* find(const char* name) {
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? &kernels_avx512
               : nullptr;
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
               ? &kernels_avx2
               : nullptr;
#endif
  return std::strcmp(name, "baseline") ? nullptr : &kernels_baseline;
}

const Kernels* fastest() {
  for (const char* name : {"avx512", "avx2"})
    if (const Kernels* found = find(name)) return found;
  return &kernels_baseline;
}

std::atomic<const Kernels*> chosen{fastest()};

}  // namespace

const Kernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

const WinogradKernels& winograd() {
#if defined(__x86_64__)
  const Kernels* current = &kernels();
  if (current == &kernels_avx512) return winograd_avx512;
  if (current == &kernels_avx2) return winograd_avx2;
#endif
  return winograd_baseline;
}

bool select_kernels(const char* name) {
  const Kernels* found = find(name);
  if (found) chosen.store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace irnext::cpu
