// The gradients of merge_pyramid's branches.
#include "irnext/cuda/pyramid_adjoint.cuh"

namespace irnext::cuda {

namespace {

constexpr int kTallestTile = 64, kShortestTile = 16;

// A plan for `count` branches from `first` on, or false where tiles do not suit: where the gradient is not made of
// packs, an element of a branch reaches too far, or there are too many planes or their sides are too long.
bool plan_tiles(const Device& device, const AdjointCall& call, int first, int count, bool by_channel,
                AdjointArguments* a) {
  const int64_t pack = 16 / element_size(call.grad.type), group = pack < 4 ? pack : 4;
  if (by_channel ? !packs_along_c(call.grad, call.n, call.c, call.h, call.w, pack)
                 : !packs_along_w(call.grad, call.n, call.c, call.h, call.w, pack))
    return false;
  if (call.w < 2 || call.h < 1 || call.n * call.c > INT32_MAX - kThreads) return false;
  *a = {call.n, call.c, int(call.h), int(call.w), call.grad, {}, 0, 0, 0, 0, 0, 0, 0, 0};
  int64_t reach = 0;
  for (int b = 0; b < count; ++b) {
    const Branch& branch = call.branches[first + b];
    const bool packed = packs_along_c(branch.tensor, call.n, call.c, branch.h, branch.w, group);
    a->branches[b] = {int(branch.h), int(branch.w), branch.tensor, packed, Steps(branch.h, call.h),
                      Steps(branch.w, call.w)};
    if (branch.h * call.h > UINT32_MAX || branch.w * call.w > UINT32_MAX) return false;
    const int64_t own = branch.w > 1 ? divided_up(call.w - 1, branch.w - 1) : call.w;
    reach = own > reach ? own : reach;
  }
  const int64_t units = by_channel ? divided_up(call.c, pack) : call.n * call.c;
  const int64_t column_packs = by_channel ? call.w : call.w / pack;
  if (by_channel) {
    a->channels = power_of_two_at_least(units < kTileChannels ? units : kTileChannels);
    a->columns = kThreads / a->channels;
  } else {
    a->columns = power_of_two_at_least(column_packs < kTileColumnPacks ? column_packs : kTileColumnPacks);
    a->channels = kThreads / a->columns;
  }
  const int64_t width = a->columns * (by_channel ? 1 : pack);
  if (call.w <= width) {
    a->core = int(width);
  } else {
    a->margin = int(by_channel ? reach : divided_up(reach, pack) * pack);
    a->core = int(width - 2 * a->margin);
    if (a->core < width / 2) return false;
  }
  a->across = int(divided_up(call.w, a->core));
  a->groups = divided_up(units, a->channels);
  const int64_t columns_of_tiles = a->groups * a->across * (by_channel ? call.n : 1);
  a->rows = kTallestTile;
  while (a->rows > kShortestTile && columns_of_tiles * divided_up(call.h, a->rows) < 2 * device.multiprocessors)
    a->rows /= 2;
  a->down = int(divided_up(call.h, a->rows));
  return true;
}

template <class T, int V, bool ByChannel, int Count>
cudaError_t launch_count(const AdjointArguments& a, LaunchConfig config, cudaStream_t stream) {
  config.shared_bytes = size_t(kAdjointShared<Acc<T>, V, Count>);
  return launch(&gather_tiles<T, V, ByChannel, Count>, config, stream, a);
}

template <class T, bool ByChannel>
cudaError_t launch_tiles(const AdjointArguments& a, int count, cudaStream_t stream) {
  constexpr int V = 16 / int(sizeof(T));
  LaunchConfig config;
  const cudaError_t error = grid_of(a.groups * a.across * a.down * (ByChannel ? a.n : 1), kThreads, &config);
  if (error != cudaSuccess) return error;
  return count == 1   ? launch_count<T, V, ByChannel, 1>(a, config, stream)
         : count == 2 ? launch_count<T, V, ByChannel, 2>(a, config, stream)
                      : launch_count<T, V, ByChannel, 3>(a, config, stream);
}

cudaError_t gather_each(const AdjointCall& call, int first, int count, bool by_channel, cudaStream_t stream) {
  GatherArguments a = {call.n, call.c, int(call.h), int(call.w), call.grad, by_channel, count, {}};
  int64_t warps = 0;
  for (int b = 0; b < count; ++b) {
    const Branch& branch = call.branches[first + b];
    a.parts[b] = {branch, divided_up(call.n * call.c * branch.h * branch.w, kGatherTeams)};
    warps += a.parts[b].warps;
  }
  LaunchConfig config;
  const cudaError_t error = grid_of(divided_up(warps * kWarp, kThreads), kThreads, &config);
  if (error != cudaSuccess) return error;
  return by_type(call.grad.type,
                 [&](auto element) { return launch(&gather_elements<decltype(element)>, config, stream, a); });
}

}  // namespace

cudaError_t merge_branch_gradients(const AdjointCall& call, cudaStream_t stream) {
  if (!countable(call.n, call.c, call.h, call.w) || call.count > kMostLevels) return cudaErrorInvalidValue;
  if (call.n * call.c == 0) return cudaSuccess;
  Device device;
  cudaError_t error = current_device(&device);
  const bool by_channel = channels_adjacent(call.grad, call.c);
  for (int first = 0; first < call.count && error == cudaSuccess; first += kMergedBranches) {
    const int left = call.count - first, count = left < kMergedBranches ? left : kMergedBranches;
    AdjointArguments a;
    if (!plan_tiles(device, call, first, count, by_channel, &a)) {
      error = gather_each(call, first, count, by_channel, stream);
      continue;
    }
    error = by_type(call.grad.type, [&](auto element) {
      using T = decltype(element);
      return by_channel ? launch_tiles<T, true>(a, count, stream) : launch_tiles<T, false>(a, count, stream);
    });
  }
  return error;
}

}  // namespace irnext::cuda
