// Tasks for threads: how many are worth it, and how they are run.
#pragma once

#include <algorithm>

#include "binding/arguments.h"
#include "kernels.h"

namespace irnext::cpu {

// Enough tasks for the largest machines, none smaller than what is worth a thread.
constexpr int64_t kTasks = 256, kTaskElements = 16384;

// Whether to compute along the channels: they lie side by side, and fill a vector at least.
inline bool along_channels(const torch::stable::Tensor& tensor) {
  const bool wide = binding::wide_type(tensor) == torch::headeronly::ScalarType::Double;
  return binding::channels_adjacent(tensor) && tensor.size(1) >= kernels().vector_bytes / (wide ? 8 : 4);
}

template <class Call>
void run(void (*kernel)(const Call&, int64_t, int64_t), const Call& call, int64_t elements) {
  const int64_t tasks = call.tasks.count();
  if (tasks == 0 || elements == 0) return;
  const int64_t grain = std::max<int64_t>(2 * kTaskElements * tasks / elements, 1);
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

}  // namespace irnext::cpu
