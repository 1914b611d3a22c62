// pool_pyramid and its adjoint.
#include "irnext/cuda/pyramid_pool.cuh"

namespace irnext::cuda {

namespace {

// The level of TileArguments that makes a rate, or -1.
int level_of(int64_t rate) { return rate == 2 ? 0 : rate == 4 ? 1 : rate == 8 ? 2 : -1; }

// Whether the tiles make all the pools: each of another rate.
bool tiled(const PoolCall& call, TileArguments* a) {
  for (int k = 0; k < call.count; ++k) {
    const int level = level_of(call.rates[k]);
    if (level < 0 || a->pools[level].data) return false;
    a->pools[level] = call.pools[k];
  }
  return true;
}

// Whether every pool takes packs of V channels, or of the columns that a tile gives it.
bool pools_pack(const PoolCall& call, const TileArguments& a, bool by_channel, int pack) {
  for (int level = 0; level < kTileLevels; ++level) {
    const Tensor& pool = a.pools[level];
    const int64_t h = call.h >> (level + 1), w = call.w >> (level + 1);
    if (!pool.data) continue;
    if (by_channel ? !packs_along_c(pool, call.n, call.c, h, w, pack)
                   : !packs_along_w(pool, call.n, call.c, h, w, kTile >> (level + 1)))
      return false;
  }
  return true;
}

template <class T>
cudaError_t launch_tiles(const PoolCall& call, TileArguments a, cudaStream_t stream) {
  constexpr int V = 16 / int(sizeof(T));
  const bool by_channel = channels_adjacent(call.x, call.c);
  const bool packed = pools_pack(call, a, by_channel, V) &&
                      (by_channel ? packs_along_c(call.x, call.n, call.c, call.h, call.w, V)
                                  : call.w % kTile == 0 && packs_along_w(call.x, call.n, call.c, call.h, call.w, V));
  a.items = call.n * a.across * a.down * (by_channel && packed ? call.c / V : call.c);
  LaunchConfig config;
  const cudaError_t error = grid_of(divided_up(a.items * (by_channel ? kTeam : 1), kThreads), kThreads, &config);
  if (error != cudaSuccess) return error;
  if (by_channel)
    return packed ? launch(&pool_channels<T, V>, config, stream, a) : launch(&pool_channels<T, 1>, config, stream, a);
  return packed ? launch(&pool_rows<T, V>, config, stream, a) : launch(&pool_rows<T, 1>, config, stream, a);
}

template <class T>
cudaError_t launch_windows(const PoolCall& call, cudaStream_t stream) {
  WindowArguments a = {call.n, call.c, call.x, channels_adjacent(call.x, call.c), call.count, {}};
  int64_t warps = 0;
  for (int k = 0; k < call.count; ++k) {
    const int64_t h = call.h / call.rates[k], w = call.w / call.rates[k];
    a.pools[k] = {call.pools[k], int(call.rates[k]), int(h), int(w), divided_up(call.n * call.c * h * w, kTeams)};
    warps += a.pools[k].warps;
  }
  LaunchConfig config;
  const cudaError_t error = grid_of(divided_up(warps * kWarp, kThreads), kThreads, &config);
  return error == cudaSuccess ? launch(&pool_windows<T>, config, stream, a) : error;
}

template <class T, int V, bool ByChannel>
cudaError_t launch_spread(SpreadArguments a, cudaStream_t stream) {
  a.leads = ByChannel ? a.c / V * a.w : a.w / V;
  a.items = a.leads * a.down * (ByChannel ? a.n : a.n * a.c);
  LaunchConfig config;
  const cudaError_t error = grid_of(divided_up(a.items, kThreads), kThreads, &config);
  return error == cudaSuccess ? launch(&spread_pools<T, V, ByChannel>, config, stream, a) : error;
}

}  // namespace

cudaError_t pool_pyramid(const PoolCall& call, cudaStream_t stream) {
  if (!countable(call.n, call.c, call.h, call.w) || call.count > kMostLevels) return cudaErrorInvalidValue;
  if (call.count == 0) return cudaSuccess;
  TileArguments a = {call.n,
                     call.c,
                     int(call.h),
                     int(call.w),
                     call.x,
                     {},
                     int(divided_up(call.w, kTile)),
                     int(divided_up(call.h, kTile)),
                     0};
  const bool by_tiles = tiled(call, &a);
  return by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    return by_tiles ? launch_tiles<T>(call, a, stream) : launch_windows<T>(call, stream);
  });
}

cudaError_t pool_pyramid_backward(const PoolCall& call, cudaStream_t stream) {
  if (!countable(call.n, call.c, call.h, call.w) || call.count > kMostLevels) return cudaErrorInvalidValue;
  SpreadArguments a = {call.n, call.c, int(call.h), int(call.w), call.x, call.count, {},
                       0,      int(divided_up(call.h, kSpreadRows)), 0};
  const bool by_channel = channels_adjacent(call.x, call.c);
  const int64_t pack = 16 / element_size(call.x.type);
  bool packed = by_channel ? packs_along_c(call.x, call.n, call.c, call.h, call.w, pack)
                           : packs_along_w(call.x, call.n, call.c, call.h, call.w, pack);
  for (int k = 0; k < call.count; ++k) {
    const int64_t rate = call.rates[k];
    a.pools[k] = {call.pools[k], int(rate)};
    if (by_channel)
      packed = packed && packs_along_c(call.pools[k], call.n, call.c, call.h / rate, call.w / rate, pack);
  }
  return by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / int(sizeof(T));
    if (by_channel) return packed ? launch_spread<T, V, true>(a, stream) : launch_spread<T, 1, true>(a, stream);
    return packed ? launch_spread<T, V, false>(a, stream) : launch_spread<T, 1, false>(a, stream);
  });
}

}  // namespace irnext::cuda
