// The gradients of merge_pyramid's branches: the adjoint of the up-sampling, gathered from the gradient of the sum.
// It runs after that gradient was written, and reads it once for up to three branches: 4 planes of traffic with the
// pass before (3 without activation's). Computing the gradient again here instead would save the one read, but a
// block needs a margin as wide as an element of the coarsest branch around its tile, half as many pixels again, and
// would read two planes there and find every sum and slope again.
//
// A block walks down the rows of a tile. Of each branch a thread holds the sums, at its columns, that go to the rows
// above and below; where the walk passes a row of a branch, its sums pass through shared memory and are added up
// along the columns. A block owns the elements that lie in its tile, and reads as far around it as they reach.
#pragma once

#include "irnext/cuda/pyramid_merge.cuh"

namespace irnext::cuda {

constexpr int kTileChannels = 4;      // packs of channels to a block: half a cache line or more of each pixel
constexpr int kTileColumnPacks = 64;  // packs of columns to a block, at most

struct AdjointBranch {
  int h, w;
  Tensor tensor;
  bool packed;  // four channels, or two of doubles, can be written together
  Steps down, across;
};

struct AdjointArguments {
  int64_t n, c;
  int h, w;
  Tensor grad;
  AdjointBranch branches[kMergedBranches];
  int columns, channels;  // threads of a block: packs of columns or single ones, packs of channels or single planes
  int core, margin;       // columns of a tile, and those read on each side
  int rows;               // of a tile
  int across, down;       // tiles
  int64_t groups;         // of channels, in a sample, or of planes, in all
};

// The first element of a branch that lies at position p of the plane or after it. Products of sides fit into 32 bits
// here, as the number of planes does: longer divisions are calls, which would take the registers of the sums.
__device__ __forceinline__ int first_from(int small, int large, int p) {
  if (p == 0) return 0;
  if (p >= large) return small;
  return int(uint32_t(p - 1) * uint32_t(small - 1) / uint32_t(large - 1)) + 1;
}

// What a block knows of a branch: the rows and columns of it that it owns, and the rows of the plane that these reach.
enum Fact : int { kRow, kRowEnd, kColumn, kColumnEnd, kReach, kReachEnd, kFacts };

// Call body(p, weight) for all positions of a plane of `large` that element i of a branch of `small` has a weight at:
// those up to its own from near to far, then those after it.
template <class A, class Body>
__device__ __forceinline__ void for_weights(int small, int large, const Steps& steps, int i, const Body& body) {
  const uint32_t step = uint32_t(small - 1), place = uint32_t(i) * steps.unit;
  const int whole = step ? int(place / step) : 0;
  const uint32_t rest = place - uint32_t(whole) * step;
  const auto weight = [&](uint32_t distance) { return 1 - Position{0, distance}.share<A>(steps); };
  uint32_t distance = rest;
  IRNEXT_NO_UNROLL
  for (int p = whole; p >= 0 && distance < steps.unit; --p, distance += step) body(p, weight(distance));
  distance = step - rest;
  IRNEXT_NO_UNROLL
  for (int p = whole + 1; p < large && distance < steps.unit; ++p, distance += step) body(p, weight(distance));
}

// Sums of a row of threads' packs, in shared memory: element e of all packs, then the next of all. The distance is
// such that neighbouring elements lie in different banks, whichever way they are read.
template <class A, int V>
class SumRow {
 public:
  static constexpr int kStride = kThreads + kWarp / V, kSize = V * kStride;

  __device__ __forceinline__ explicit SumRow(int number)
      : data_(shared_array<A>(number * kSize * int(sizeof(A)), kSize)) {}
  __device__ __forceinline__ void write(int thread, const A (&values)[V]) const {
    for (int e = 0; e < V; ++e) data_[e * kStride + thread] = values[e];
  }
  __device__ __forceinline__ A read(int thread, int e) const { return data_[e * kStride + thread]; }

 private:
  Shared<A> data_;
};

// Where a block's tile lies, and what of it is this thread's.
template <int V, bool ByChannel>
struct TilePlace {
  static constexpr int kColumns = ByChannel ? 1 : V;  // of a thread

  int n, channel;  // of the block: its sample, where it is of one, and its first channel, or plane of all samples
  int left, begin, end, top, bottom;  // the first column that is read; the tile itself
  int column, slot;                   // the thread among those along the columns, and among those along the channels

  __device__ __forceinline__ explicit TilePlace(const AdjointArguments& a) {
    const int64_t block = blockIdx.x, inner = ByChannel ? a.groups : a.across, tile = quotient(block, inner);
    const int64_t outer = ByChannel ? a.across : a.groups, line = quotient(tile, outer);
    const int64_t group = ByChannel ? block - tile * inner : tile - line * outer;
    const int tile_column = int(ByChannel ? tile - line * outer : block - tile * inner);
    n = int(quotient(line, a.down));
    channel = int(group) * a.channels * (ByChannel ? V : 1);
    begin = tile_column * a.core;
    end = begin + a.core < a.w ? begin + a.core : a.w;
    left = begin - a.margin;
    top = int(line - int64_t(n) * a.down) * a.rows;
    bottom = top + a.rows < a.h ? top + a.rows : a.h;
    const int thread = int(threadIdx.x);
    column = ByChannel ? thread / a.channels : thread % a.columns;
    slot = ByChannel ? thread % a.channels : thread / a.columns;
  }
};

template <int V, bool ByChannel>
__device__ __forceinline__ void find_facts(const AdjointArguments& a, const AdjointBranch& branch,
                                           const TilePlace<V, ByChannel>& place, int (&facts)[kFacts]) {
  facts[kRow] = first_from(branch.h, a.h, place.top);
  facts[kRowEnd] = first_from(branch.h, a.h, place.bottom);
  facts[kColumn] = first_from(branch.w, a.w, place.begin);
  facts[kColumnEnd] = first_from(branch.w, a.w, place.end);
  facts[kReach] = a.h;
  facts[kReachEnd] = 0;
  if (facts[kRow] == facts[kRowEnd]) return;
  const Aligned aligned{branch.h, a.h};
  facts[kReach] = int(aligned.begin(facts[kRow]));
  facts[kReachEnd] = int(aligned.end(facts[kRowEnd] - 1));
  // Of a branch larger than the plane the first row may get nothing, and the walk must not begin beyond it.
  if (aligned.below(facts[kReach]) > facts[kRow]) --facts[kReach];
}

// Add up a row of sums along the columns, into the elements that the block owns of row i of a branch.
template <class T, int V>
__device__ __forceinline__ void gather_channels(const AdjointArguments& a, const AdjointBranch& branch,
                                                const TilePlace<V, true>& place, int column, int end, int i,
                                                const SumRow<Acc<T>, V>& sums) {
  using A = Acc<T>;
  constexpr int G = V < 4 ? V : 4;  // channels at a time
  const int parts = a.channels * (V / G), part = int(threadIdx.x) % parts, slot = part / (V / G);
  const int first = part % (V / G) * G;
  const int c = place.channel + slot * V + first;
  if (c >= a.c) return;
  const Strides& s = branch.tensor.strides;
  T* const row = element<T>(branch.tensor, place.n, c) + i * s.h;
  for (int j = column + int(threadIdx.x) / parts; j < end; j += kThreads / parts) {
    A totals[G] = {};
    for_weights<A>(branch.w, a.w, branch.across, j, [&](int x, A weight) {
      for (int e = 0; e < G; ++e) totals[e] += weight * sums.read((x - place.left) * a.channels + slot, first + e);
    });
    if (branch.packed) {
      Pack<T, G> pack;
      for (int e = 0; e < G; ++e) pack[e] = narrow<T>(totals[e]);
      store_pack(row + j * s.w, pack);
    } else {
      for (int e = 0; e < G; ++e) row[j * s.w + e * s.c] = narrow<T>(totals[e]);
    }
  }
}

template <class T, int V>
__device__ __forceinline__ void gather_columns(const AdjointArguments& a, const AdjointBranch& branch,
                                               const TilePlace<V, false>& place, int column, int end, int i,
                                               const SumRow<Acc<T>, V>& sums) {
  using A = Acc<T>;
  const int plane = place.channel + place.slot, n = plane / int(a.c);
  if (n >= a.n) return;
  const Strides& s = branch.tensor.strides;
  T* const row = element<T>(branch.tensor, n, plane - n * int(a.c)) + i * s.h;
  const int count = int(divided_up(end - column, a.columns));  // neighbours, of a thread
  const int first = column + place.column * count;
  for (int j = first; j < first + count && j < end; ++j) {
    A total = 0;
    for_weights<A>(branch.w, a.w, branch.across, j, [&](int x, A weight) {
      const int at = x - place.left;
      total += weight * sums.read(place.slot * a.columns + at / V, at % V);
    });
    row[j * s.w] = narrow<T>(total);
  }
}

// A pack as the words that it was loaded in: where it is kept for long, its halves would each take a register.
template <class T, int V>
using Words = Pack<uint32_t, V * int(sizeof(T)) / 4>;

template <class T, int V>
__device__ __forceinline__ Pack<T, V> unpacked(const Words<T, V>& words) {
  Pack<T, V> pack;
  __builtin_memcpy(&pack, &words, sizeof pack);
  return pack;
}

// Element i of a few registers.
template <int Size>
__device__ __forceinline__ int pick(const int (&values)[Size], int i) {
  int value = values[0];
  IRNEXT_UNROLL
  for (int k = 1; k < Size; ++k) value = i == k ? values[k] : value;
  return value;
}

// Rows that three branches' sums of eight columns or channels leave registers for: where the compiler pairs registers
// it needs more of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kAheadOfMost = 1;
#else
constexpr int kAheadOfMost = 2;
#endif

// Bytes of shared memory: two rows of sums for each branch, then what the block owns.
template <class A, int V, int Count>
constexpr int kSumRows = 2 * Count * SumRow<A, V>::kSize * int(sizeof(A));
template <class A, int V, int Count>
constexpr int kAdjointShared = kSumRows<A, V, Count> + Count * kFacts * int(sizeof(int));

template <class T, int V, bool ByChannel, int Count>
__global__ void __launch_bounds__(kThreads, 2) gather_tiles(AdjointArguments a) {
  using A = Acc<T>;
  constexpr int kAhead = V < 8 ? 3 : Count < 3 ? 2 : kAheadOfMost;  // rows that are loaded before they are needed
  const TilePlace<V, ByChannel> place(a);
  const int thread = int(threadIdx.x);

  Shared<int> facts = shared_array<int>(kSumRows<A, V, Count>, Count * kFacts);
  if (thread < Count) {
    int values[kFacts];
    find_facts(a, a.branches[thread], place, values);
    for (int k = 0; k < kFacts; ++k) facts[thread * kFacts + k] = values[k];
  }
  __syncthreads();
  const auto fact = [&](int b, Fact k) { return int(facts[b * kFacts + k]); };
  int row = a.h, end = 0;
  for (int b = 0; b < Count; ++b) {
    row = fact(b, kReach) < row ? fact(b, kReach) : row;
    end = fact(b, kReachEnd) > end ? fact(b, kReachEnd) : end;
  }
  if (row >= end) return;
  Position positions[Count];
  IRNEXT_UNROLL
  for (int b = 0; b < Count; ++b) positions[b] = Position(a.branches[b].down, row);

  const int x = place.left + place.column * place.kColumns;
  const int unit = place.channel + place.slot * (ByChannel ? V : 1);
  const int n = ByChannel ? place.n : unit / int(a.c), c = ByChannel ? unit : unit - n * int(a.c);
  // Beyond the tensor anything may be read: no element of a branch takes it.
  const bool exists = x >= 0 && x < a.w && n < a.n && c < a.c;
  const T* const from = exists ? element<T>(a.grad, n, c) + x * a.grad.strides.w : element<T>(a.grad, 0, 0);
  const auto load = [&](int y) {
    const T* const at = from + (y < end ? y : end - 1) * a.grad.strides.h;
    return load_pack<uint32_t>(reinterpret_cast<const uint32_t*>(at));
  };
  Words<T, V> ahead[kAhead];
  IRNEXT_UNROLL
  for (int k = 0; k < kAhead; ++k) ahead[k] = load(row + k);
  A above[Count][V] = {}, below[Count][V] = {};
  int turn = 0;  // of two sets of rows in shared memory: one is written while the other is still read

  IRNEXT_NO_UNROLL
  for (; row < end; ++row) {
    const Pack<T, V> raw = unpacked<T, V>(ahead[0]);
    int passed[Count];  // rows of the branches from here to before their new positions are complete
    IRNEXT_UNROLL
    for (int b = 0; b < Count; ++b) {
      const Steps& down = a.branches[b].down;
      const A share = positions[b].template share<A>(down);
      for (int e = 0; e < V; ++e) {
        const A value = widen(raw[e]);
        above[b][e] += (1 - share) * value;
        below[b][e] += share * value;
      }
      passed[b] = positions[b].below;
      positions[b].advance(down);
      const int least = row + 1 == end ? fact(b, kRowEnd) : 0;  // after the last row all is complete
      positions[b].below = least > positions[b].below ? least : positions[b].below;
    }
    IRNEXT_UNROLL
    for (int k = 1; k < kAhead; ++k) ahead[k - 1] = ahead[k];
    ahead[kAhead - 1] = load(row + kAhead);
    for (bool pending = true; pending;) {
      int stored = 0;  // a bit for each branch
      pending = false;
      IRNEXT_UNROLL
      for (int b = 0; b < Count; ++b) {
        if (passed[b] >= positions[b].below) continue;
        if (passed[b] >= fact(b, kRow) && passed[b] < fact(b, kRowEnd)) {
          SumRow<A, V>(turn * Count + b).write(thread, above[b]);
          stored |= 1 << b;
        }
        for (int e = 0; e < V; ++e) above[b][e] = below[b][e], below[b][e] = 0;
      }
      if (stored) {
        __syncthreads();
        IRNEXT_NO_UNROLL
        for (int b = 0; b < Count; ++b) {
          if (!(stored >> b & 1)) continue;
          const SumRow<A, V> sums(turn * Count + b);
          const int i = pick(passed, b);
          if constexpr (ByChannel)
            gather_channels<T, V>(a, a.branches[b], place, fact(b, kColumn), fact(b, kColumnEnd), i, sums);
          else
            gather_columns<T, V>(a, a.branches[b], place, fact(b, kColumn), fact(b, kColumnEnd), i, sums);
        }
        turn ^= 1;
      }
      IRNEXT_UNROLL
      for (int b = 0; b < Count; ++b)
        if (passed[b] < positions[b].below) pending |= ++passed[b] < positions[b].below;
    }
  }
}

// ---- any layout, any branches ----

struct GatherArguments {
  int64_t n, c;
  int h, w;
  Tensor grad;
  bool channels_first;  // of neighbouring lanes, neighbours take neighbouring channels, else neighbouring columns
  int count;
  struct Part {
    Branch branch;
    int64_t warps;
  } parts[kMostLevels];
};

constexpr int kGatherTeam = 8, kGatherTeams = kWarp / kGatherTeam;

// Eight threads to an element of a branch, which share the columns. Every branch has warps of its own.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) gather_elements(GatherArguments a) {
  using A = Acc<T>;
  int64_t warp = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  int number = 0;
  while (number < a.count && warp >= a.parts[number].warps) warp -= a.parts[number++].warps;
  if (number == a.count) return;
  const Branch& branch = a.parts[number].branch;
  const int lane = int(threadIdx.x) % kWarp, slot = lane / kGatherTeams;
  const int64_t item = warp * kGatherTeams + lane % kGatherTeams;
  const int64_t inner = a.channels_first ? a.c : branch.w, middle = a.channels_first ? branch.w : branch.h;
  const int64_t outer = a.channels_first ? branch.h : a.c;
  const int64_t line = quotient(item, inner), block = quotient(line, middle), n = quotient(block, outer);
  const int64_t p = item - line * inner, q = line - block * middle, r = block - n * outer;
  const int64_t c = a.channels_first ? p : r, i = a.channels_first ? r : q, j = a.channels_first ? q : p;
  A total = 0;
  if (n < a.n) {
    const Aligned down{branch.h, a.h}, across{branch.w, a.w};
    const Strides& s = a.grad.strides;
    const T* const from = element<T>(a.grad, n, c);
    const int64_t end = across.end(j), first = across.begin(j) + slot;
    for (int64_t y = down.begin(i); y < down.end(i); ++y) {
      A sum = 0;
      for (int64_t x = first; x < end; x += kGatherTeam)
        sum += across.template weight<A>(j, x) * A(widen(from[y * s.h + x * s.w]));
      total += down.template weight<A>(i, y) * sum;
    }
  }
  for (int distance = kGatherTeams; distance < kWarp; distance *= 2)
    total += __shfl_xor_sync(kWholeWarp, total, distance);
  const Strides& s = branch.tensor.strides;
  if (n < a.n && slot == 0) element<T>(branch.tensor, n, c)[i * s.h + j * s.w] = narrow<T>(total);
}

}  // namespace irnext::cuda
