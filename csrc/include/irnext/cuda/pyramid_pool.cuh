// Average pools of several rates in one read of x, and their adjoint in one write.
//
// Rates 2, 4 and 8 come from tiles of 8 x 8 pixels: the sums of a coarser rate are sums of the finer one's. Along a
// row a thread has the tile to itself; of channels_last, where neighbouring threads take neighbouring channels, four
// threads take a quarter each, since a thread that reads 64 packs one after the other would be waited for. Other
// rates are summed window by window.
#pragma once

#include "irnext/cuda/dynamic_conv2d_tiles.cuh"
#include "irnext/cuda/pyramid.h"

namespace irnext::cuda {

constexpr int kTile = 8;
constexpr int kTileLevels = 3;  // of rates 2, 4, 8

// Four lanes of a warp share an item; lanes with neighbouring items are neighbours.
constexpr int kTeam = 4, kTeams = kWarp / kTeam;

// The item and the part of it that are this thread's.
struct TeamPlace {
  int64_t item;
  int part;

  __device__ __forceinline__ explicit TeamPlace(int64_t warp)
      : item(warp * kTeams + threadIdx.x % kTeams), part(int(threadIdx.x) % kWarp / kTeams) {}
};

__device__ __forceinline__ int64_t warp_number() {
  return int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
}

// The sum over the team, in every lane of it.
template <class A>
__device__ __forceinline__ A team_sum(A value) {
  for (int distance = kTeams; distance < kWarp; distance *= 2)
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

// ---- rates 2, 4 and 8 ----

struct TileArguments {
  int64_t n, c;
  int h, w;
  Tensor x;
  Tensor pools[kTileLevels];  // of rates 2, 4, 8; those not wanted have no data
  int across, down;           // tiles
  int64_t items;
};

// Turn sums over windows into neighbouring elements of a pool's row, as far as the pool has them.
template <int Level, bool Packed, class T, int Count>
__device__ __forceinline__ void store_row(const TileArguments& a, int64_t n, int64_t c, int row, int column,
                                          const Acc<T> (&sums)[Count]) {
  constexpr int kRate = 2 << Level;
  constexpr Acc<T> kShare = Acc<T>(1) / (kRate * kRate);
  const Tensor& pool = a.pools[Level];
  if (!pool.data || row >= a.h / kRate) return;
  T* const to = element<T>(pool, n, c) + row * pool.strides.h + column * pool.strides.w;
  if constexpr (Packed) {
    constexpr int V = Count * int(sizeof(T)) < 16 ? Count : 16 / int(sizeof(T));
    for (int i = 0; i < Count; i += V) {
      Pack<T, V> pack;
      for (int k = 0; k < V; ++k) pack[k] = narrow<T>(sums[i + k] * kShare);
      store_pack(to + i, pack);
    }
  } else {
    for (int i = 0; i < Count; ++i)
      if (column + i < a.w / kRate) to[i * pool.strides.w] = narrow<T>(sums[i] * kShare);
  }
}

// A thread to a tile of one plane. Items are counted along the rows.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) pool_rows(TileArguments a) {
  using A = Acc<T>;
  constexpr int kHalf = kTile / 2;
  constexpr bool kPacked = V > 1;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const int64_t tile_row = quotient(item, a.across), plane = quotient(tile_row, a.down), n = quotient(plane, a.c);
  const int64_t c = plane - n * a.c;
  const int column = int(item - tile_row * a.across) * kTile, top = int(tile_row - plane * a.down) * kTile;
  const T* const from = element<T>(a.x, n, c) + column * a.x.strides.w;
  A eights[1] = {};
  IRNEXT_NO_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int first = top + half * kHalf;
    Pack<T, V> raw[kHalf][kTile / V];
    IRNEXT_UNROLL
    for (int i = 0; i < kHalf; ++i)
      for (int k = 0; k < kTile / V; ++k)
        raw[i][k] = first + i < a.h && column + k * V < a.w
                        ? load_pack<T, V>(from + (first + i) * a.x.strides.h + k * V * a.x.strides.w)
                        : Pack<T, V>{};
    const auto value = [&](int i, int j) { return A(widen(raw[i][j / V][j % V])); };
    A fours[2] = {};
    IRNEXT_UNROLL
    for (int i = 0; i < kHalf; i += 2) {
      A twos[4];
      for (int j = 0; j < 4; ++j) {
        twos[j] = (value(i, 2 * j) + value(i, 2 * j + 1)) + (value(i + 1, 2 * j) + value(i + 1, 2 * j + 1));
        fours[j / 2] += twos[j];
      }
      store_row<0, kPacked, T>(a, n, c, (first + i) / 2, column / 2, twos);
    }
    store_row<1, kPacked, T>(a, n, c, first / 4, column / 4, fours);
    eights[0] += fours[0] + fours[1];
  }
  store_row<2, kPacked, T>(a, n, c, top / 8, column / 8, eights);
}

// Turn sums over windows of V channels into elements of a pool, if it has them.
template <int Level, class T, int V>
__device__ __forceinline__ void store_channels(const TileArguments& a, int64_t n, int64_t c, int row, int column,
                                               const Acc<T> (&sums)[V]) {
  constexpr int kRate = 2 << Level;
  constexpr Acc<T> kShare = Acc<T>(1) / (kRate * kRate);
  const Tensor& pool = a.pools[Level];
  if (!pool.data || row >= a.h / kRate || column >= a.w / kRate) return;
  Pack<T, V> pack;
  for (int e = 0; e < V; ++e) pack[e] = narrow<T>(sums[e] * kShare);
  store_pack(element<T>(pool, n, c) + row * pool.strides.h + column * pool.strides.w, pack);
}

// Four threads to a tile of V channels. Items are counted along the channels, then along the rows.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, V == 8 ? 2 : 3) pool_channels(TileArguments a) {
  using A = Acc<T>;
  constexpr int kQuarter = kTile / 2;
  const TeamPlace place(warp_number());
  const bool exists = place.item < a.items;
  const int64_t packs = a.c / V, pixel = quotient(place.item, packs), tile_row = quotient(pixel, a.across);
  const int64_t c = (place.item - pixel * packs) * V, n = quotient(tile_row, a.down);
  const int column = int(pixel - tile_row * a.across) * kTile + place.part % 2 * kQuarter;
  const int top = int(tile_row - n * a.down) * kTile + place.part / 2 * kQuarter;
  const T* const from = element<T>(a.x, n, c) + column * a.x.strides.w;
  A four[V] = {};
  IRNEXT_UNROLL
  for (int i = 0; i < kQuarter; i += 2) {
    Pack<T, V> raw[2][kQuarter];
    IRNEXT_UNROLL
    for (int k = 0; k < 2; ++k)
      for (int j = 0; j < kQuarter; ++j)
        raw[k][j] = exists && top + i + k < a.h && column + j < a.w
                        ? load_pack<T, V>(from + (top + i + k) * a.x.strides.h + j * a.x.strides.w)
                        : Pack<T, V>{};
    IRNEXT_UNROLL
    for (int j = 0; j < kQuarter; j += 2) {
      A two[V];
      for (int e = 0; e < V; ++e) {
        two[e] = (A(widen(raw[0][j][e])) + A(widen(raw[0][j + 1][e]))) +
                 (A(widen(raw[1][j][e])) + A(widen(raw[1][j + 1][e])));
        four[e] += two[e];
      }
      if (exists) store_channels<0, T>(a, n, c, (top + i) / 2, (column + j) / 2, two);
    }
  }
  if (exists) store_channels<1, T>(a, n, c, top / 4, column / 4, four);
  if (!a.pools[2].data) return;  // alike in every thread
  for (int e = 0; e < V; ++e) four[e] = team_sum(four[e]);
  if (exists && place.part == 0) store_channels<2, T>(a, n, c, top / 8, column / 8, four);
}

// ---- any rates ----

struct WindowArguments {
  int64_t n, c;
  Tensor x;
  bool channels_first;  // of neighbouring lanes, neighbours take neighbouring channels, else neighbouring columns
  int count;
  struct Pool {
    Tensor tensor;
    int rate, h, w;
    int64_t warps;
  } pools[kMostLevels];
};

// Four threads to an element of a pool. Every pool has warps of its own.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) pool_windows(WindowArguments a) {
  using A = Acc<T>;
  int64_t warp = warp_number();
  int level = 0;
  while (level < a.count && warp >= a.pools[level].warps) warp -= a.pools[level++].warps;
  if (level == a.count) return;
  const auto& pool = a.pools[level];
  const TeamPlace place(warp);
  const int64_t inner = a.channels_first ? a.c : pool.w, middle = a.channels_first ? pool.w : pool.h;
  const int64_t outer = a.channels_first ? pool.h : a.c;
  const int64_t line = quotient(place.item, inner), block = quotient(line, middle), n = quotient(block, outer);
  const int64_t i = place.item - line * inner, j = line - block * middle, k = block - n * outer;
  const int64_t c = a.channels_first ? i : k, row = a.channels_first ? k : j, column = a.channels_first ? j : i;
  A sum = 0;
  if (n < a.n) {
    const Strides& s = a.x.strides;
    const T* const from = element<T>(a.x, n, c) + row * pool.rate * s.h + column * pool.rate * s.w;
    for (int r = place.part; r < pool.rate; r += kTeam) {
      A part = 0;
      IRNEXT_UNROLL_4
      for (int q = 0; q < pool.rate; ++q) part += A(widen(from[r * s.h + q * s.w]));
      sum += part;
    }
  }
  sum = team_sum(sum);
  const Strides& s = pool.tensor.strides;
  if (n < a.n && place.part == 0)
    element<T>(pool.tensor, n, c)[row * s.h + column * s.w] = narrow<T>(sum / (A(pool.rate) * A(pool.rate)));
}

// ---- the adjoint ----

constexpr int kSpreadRows = 4;  // to a thread, so that what a coarse rate gives is read once for several

struct SpreadArguments {
  int64_t n, c;
  int h, w;
  Tensor x;
  int count;
  struct Pool {
    Tensor tensor;
    int rate;
  } pools[kMostLevels];
  int64_t leads;  // packs side by side: of columns in a plane, or of channels and columns in a sample
  int down;
  int64_t items;
};

// A thread to V columns, or V channels of a column, of a few rows.
template <class T, int V, bool ByChannel>
__global__ void __launch_bounds__(kThreads, V == 8 ? 2 : 3) spread_pools(SpreadArguments a) {
  using A = Acc<T>;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const int64_t line = quotient(item, a.leads), unit = quotient(line, a.down), lead = item - line * a.leads;
  const int first = int(line - unit * a.down) * kSpreadRows;
  const int64_t n = ByChannel ? unit : quotient(unit, a.c);
  const int x = int(ByChannel ? quotient(lead, a.c / V) : lead * V);
  const int64_t c = ByChannel ? (lead - x * (a.c / V)) * V : unit - n * a.c;
  A sums[kSpreadRows][V] = {};
  IRNEXT_NO_UNROLL
  for (int k = 0; k < a.count; ++k) {
    const Tensor& pool = a.pools[k].tensor;
    const int rate = a.pools[k].rate, height = a.h / rate, width = a.w / rate;
    const int column = x / rate, column_phase = x - column * rate;
    const A share = A(1) / (A(rate) * A(rate));
    int row = first / rate, phase = first - row * rate;
    A values[V] = {};
    IRNEXT_UNROLL
    for (int r = 0; r < kSpreadRows; ++r) {
      if (r == 0 || phase == 0) {
        const T* const from = element<T>(pool, n, c) + row * pool.strides.h + column * pool.strides.w;
        if constexpr (ByChannel) {
          const Pack<T, V> pack = row < height && column < width ? load_pack<T, V>(from) : Pack<T, V>{};
          for (int e = 0; e < V; ++e) values[e] = widen(pack[e]) * share;
        } else {
          int q = 0, at = column_phase;  // columns from the first, and pixels into its window
          IRNEXT_UNROLL
          for (int e = 0; e < V; ++e) {
            values[e] = row < height && column + q < width ? widen(from[q * pool.strides.w]) * share : A(0);
            if (++at == rate) at = 0, ++q;
          }
        }
      }
      for (int e = 0; e < V; ++e) sums[r][e] += values[e];
      if (++phase == rate) phase = 0, ++row;
    }
  }
  T* const to = element<T>(a.x, n, c) + x * a.x.strides.w;
  IRNEXT_UNROLL
  for (int r = 0; r < kSpreadRows; ++r) {
    if (first + r >= a.h) return;
    Pack<T, V> pack;
    for (int e = 0; e < V; ++e) pack[e] = narrow<T>(sums[r][e]);
    store_pack(to + (first + r) * a.x.strides.h, pack);
  }
}

}  // namespace irnext::cuda
