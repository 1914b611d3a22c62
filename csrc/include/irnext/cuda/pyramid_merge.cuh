// x + up-sampled branches, then GELU or its gradient, in one pass: the sum is computed again for the gradient, since
// that reads the small branches instead of a plane that had to be written and read.
//
// A thread walks down a tile of a few columns of one plane, or of a few channels of one column. Of each branch it
// holds the two rows above and below, interpolated along the row already: most steps down then cost two
// multiplications per branch, and a branch's row is read once per tile. Positions are stepped through in integers.
#pragma once

#include "irnext/cuda/dynamic_conv2d_tiles.cuh"
#include "irnext/cuda/gelu.cuh"
#include "irnext/cuda/pyramid.h"
#include "irnext/pyramid.h"

namespace irnext::cuda {

constexpr int kMergeRows = 16;      // of the tallest tile
constexpr int kMergedBranches = 3;  // at most, where tiles are walked

// One dimension of an up-sampling, as Aligned says: from a position to the next it is `whole` elements and
// `rest / unit` of one farther on. Kernels find it in constant memory: registers are scarce.
struct Steps {
  uint32_t unit, whole, rest;
  float inverse;
  double wide_inverse;  // both of unit

  Steps() = default;
  Steps(int64_t small, int64_t large) : unit(large > 1 ? uint32_t(large - 1) : 1) {
    const uint32_t step = large > 1 ? uint32_t(small - 1) : 0;
    whole = step / unit;
    rest = step % unit;
    wide_inverse = 1.0 / unit;
    inverse = float(wide_inverse);
  }
};

// A position: beside element `below` and the next, which has the share rest / unit.
struct Position {
  int below;
  uint32_t rest;

  Position() = default;
  __device__ __forceinline__ Position(int below, uint32_t rest) : below(below), rest(rest) {}
  __device__ __forceinline__ Position(const Steps& steps, int64_t p) {
    const int64_t rests = p * steps.rest, carried = quotient(rests, steps.unit);
    below = int(p * steps.whole + carried);
    rest = uint32_t(rests - carried * steps.unit);
  }
  template <class A>
  __device__ __forceinline__ A share(const Steps& steps) const {
    if constexpr (sizeof(A) == 8) return A(rest) * steps.wide_inverse;
    return A(rest) * steps.inverse;
  }
  __device__ __forceinline__ void advance(const Steps& steps) {
    rest += steps.rest;
    const bool wraps = rest >= steps.unit;
    below += int(steps.whole) + wraps;
    rest -= wraps ? steps.unit : 0;
  }
};

struct MergedBranch {
  int h, w;
  Tensor tensor;
  Steps down, across;
};

struct MergeArguments {
  int64_t n, c;
  int h, w;
  bool gelu;
  Tensor x, grad, y;
  int count;
  MergedBranch branches[kMostLevels];
  RowTiles tiles;
  int64_t leads;  // packs side by side: of columns in a plane, or of channels and columns in a sample
  int64_t items;
};

// Two neighbours of a branch's row, mixed.
template <class A, class T>
__device__ __forceinline__ A mix(A share, T left, T right) {
  return (1 - share) * widen(left) + share * widen(right);
}

// One branch as a thread that walks down its tile sees it.
template <class T, int V, bool ByChannel>
class BranchRows {
 public:
  using A = Acc<T>;

  __device__ __forceinline__ void begin(const MergedBranch& branch, int64_t n, int64_t c, int x, int row) {
    down_ = Position(branch.down, row);
    across_ = Position(branch.across, x);
    data_ = element<T>(branch.tensor, n, c) + across_.below * branch.tensor.strides.w;
    read(branch, down_.below, above_);
    read(branch, down_.below + 1, below_);
  }

  __device__ __forceinline__ void add(const MergedBranch& branch, A (&sums)[V]) const {
    const A share = down_.template share<A>(branch.down);
    for (int e = 0; e < V; ++e) sums[e] += (1 - share) * above_[e] + share * below_[e];
  }

  __device__ __forceinline__ void advance(const MergedBranch& branch) {
    const int before = down_.below;
    down_.advance(branch.down);
    const int row = down_.below;
    if (row == before) return;
    if (row == before + 1)
      for (int e = 0; e < V; ++e) above_[e] = below_[e];
    else
      read(branch, row, above_);
    read(branch, row + 1, below_);
  }

 private:
  // A row of the branch at the thread's columns. Beyond the last row and column no weight falls: the last do as well.
  __device__ __forceinline__ void read(const MergedBranch& branch, int row, A (&values)[V]) const {
    const Strides& s = branch.tensor.strides;
    const T* const from = data_ + (row < branch.h ? row : branch.h - 1) * s.h;
    if constexpr (ByChannel) {
      const Pack<T, V> left = load_pack<T, V>(from);
      const Pack<T, V> right = load_pack<T, V>(from + (across_.below + 1 < branch.w ? s.w : 0));
      const A share = across_.template share<A>(branch.across);
      for (int e = 0; e < V; ++e) values[e] = mix(share, left[e], right[e]);
    } else {
      Position across = across_;
      keep_in_place(across.rest);
      IRNEXT_UNROLL
      for (int e = 0; e < V; ++e) {
        const T* const at = from + (across.below - across_.below) * s.w;
        values[e] = mix(across.template share<A>(branch.across), at[0], at[across.below + 1 < branch.w ? s.w : 0]);
        across.advance(branch.across);
      }
    }
  }

  // What is computed from the value is computed here, not ahead of the loop, where it would take many registers.
  static __device__ __forceinline__ void keep_in_place(uint32_t& value) {
#if !defined(IRNEXT_CUDA_HOST)
    asm volatile("" : "+r"(value));
#else
    (void)value;
#endif
  }

  const T* data_;  // of the row's element beside the first column
  Position down_, across_;
  A above_[V], below_[V];
};

// What becomes of the sum: y, or with the gradient of y that of x.
template <bool Gradient, class A>
__device__ __forceinline__ A finish_sum(bool activated, A sum, A grad) {
  if constexpr (Gradient) return grad * gelu_slope(sum);
  return activated ? gelu(sum) : sum;
}

template <class T, int V, bool ByChannel, int Capacity, bool Gradient>
__global__ void __launch_bounds__(kThreads, 2) merge_tiles(MergeArguments a) {
  using A = Acc<T>;
  constexpr int kBatch = Gradient || (V == 8 && !ByChannel) ? 1 : 2;  // rows whose loads are under way together
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const int64_t tile_number = quotient(item, a.leads), unit = quotient(tile_number, a.tiles.count());
  const int64_t lead = item - tile_number * a.leads;
  const RowRange range = a.tiles[tile_number - unit * a.tiles.count()];
  const int64_t n = ByChannel ? unit : quotient(unit, a.c);
  const int x = int(ByChannel ? quotient(lead, a.c / V) : lead * V);
  const int64_t c = ByChannel ? (lead - x * (a.c / V)) * V : unit - n * a.c;
  BranchRows<T, V, ByChannel> branches[Capacity];
  IRNEXT_UNROLL
  for (int b = 0; b < Capacity; ++b)
    if (b < a.count) branches[b].begin(a.branches[b], n, c, x, range.first);
  const T* const from = element<T>(a.x, n, c) + x * a.x.strides.w;
  const T* const grad = Gradient ? element<T>(a.grad, n, c) + x * a.grad.strides.w : nullptr;
  T* const to = element<T>(a.y, n, c) + x * a.y.strides.w;
  IRNEXT_NO_UNROLL
  for (int row = range.first; row < range.end; row += kBatch) {
    Pack<T, V> raw[kBatch], gradients[kBatch];
    IRNEXT_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      raw[k] = gradients[k] = {};
      if (row + k < range.end) {
        raw[k] = load_pack<T, V>(from + (row + k) * a.x.strides.h);
        if constexpr (Gradient) gradients[k] = load_pack<T, V>(grad + (row + k) * a.grad.strides.h);
      }
    }
    IRNEXT_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      if (row + k >= range.end) return;
      A sums[V];
      for (int e = 0; e < V; ++e) sums[e] = widen(raw[k][e]);
      IRNEXT_UNROLL
      for (int b = 0; b < Capacity; ++b) {
        if (b >= a.count) continue;
        if (row + k > range.first) branches[b].advance(a.branches[b]);
        branches[b].add(a.branches[b], sums);
      }
      Pack<T, V> pack;
      for (int e = 0; e < V; ++e) pack[e] = narrow<T>(finish_sum<Gradient>(a.gelu, sums[e], A(widen(gradients[k][e]))));
      store_pack(to + (row + k) * a.y.strides.h, pack);
    }
  }
}

// One element to a thread, of any layout and with any number of branches. Items are counted along the channels
// first where those of x lie side by side: the leads are then all of a sample's columns and channels.
template <class T, bool Gradient>
__global__ void __launch_bounds__(kThreads, 3) merge_elements(MergeArguments a) {
  using A = Acc<T>;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const bool by_channel = a.leads != a.w;
  const int64_t line = quotient(item, a.leads), unit = quotient(line, a.h), lead = item - line * a.leads;
  const int64_t y = line - unit * a.h, n = by_channel ? unit : quotient(unit, a.c);
  const int64_t x = by_channel ? quotient(lead, a.c) : lead, c = by_channel ? lead - x * a.c : unit - n * a.c;
  A sum = widen(element<T>(a.x, n, c)[y * a.x.strides.h + x * a.x.strides.w]);
  IRNEXT_NO_UNROLL
  for (int b = 0; b < a.count; ++b) {
    const MergedBranch& branch = a.branches[b];
    const Strides& s = branch.tensor.strides;
    const Position down(branch.down, y), across(branch.across, x);
    const T* const at = element<T>(branch.tensor, n, c) + down.below * s.h + across.below * s.w;
    const int64_t below = down.below + 1 < branch.h ? s.h : 0, right = across.below + 1 < branch.w ? s.w : 0;
    const A share = across.share<A>(branch.across), share_below = down.share<A>(branch.down);
    sum += (1 - share_below) * mix(share, at[0], at[right]) + share_below * mix(share, at[below], at[below + right]);
  }
  A grad = 0;
  if constexpr (Gradient) grad = widen(element<T>(a.grad, n, c)[y * a.grad.strides.h + x * a.grad.strides.w]);
  element<T>(a.y, n, c)[y * a.y.strides.h + x * a.y.strides.w] = narrow<T>(finish_sum<Gradient>(a.gelu, sum, grad));
}

// ---- launching ----

// Whether tiles of packs can be walked.
inline bool merges_by_tiles(const MergeCall& call, bool gradient, bool by_channel) {
  const int64_t pack = 16 / element_size(call.x.type);
  const auto packs = [&](const Tensor& tensor, int64_t h, int64_t w) {
    return by_channel ? packs_along_c(tensor, call.n, call.c, h, w, pack)
                      : packs_along_w(tensor, call.n, call.c, h, w, pack);
  };
  if (call.count > kMergedBranches || !packs(call.x, call.h, call.w) || !packs(call.y, call.h, call.w)) return false;
  if (gradient && !packs(call.grad, call.h, call.w)) return false;
  for (int b = 0; by_channel && b < call.count; ++b)
    if (!packs(call.branches[b].tensor, call.branches[b].h, call.branches[b].w)) return false;
  return true;
}

template <class T, int V, bool ByChannel, bool Gradient>
cudaError_t launch_merge_tiles(const MergeArguments& a, const LaunchConfig& config, cudaStream_t stream) {
  return a.count <= 1 ? launch(&merge_tiles<T, V, ByChannel, 1, Gradient>, config, stream, a)
                      : launch(&merge_tiles<T, V, ByChannel, kMergedBranches, Gradient>, config, stream, a);
}

template <bool Gradient>
cudaError_t launch_merge(const MergeCall& call, cudaStream_t stream) {
  if (!countable(call.n, call.c, call.h, call.w) || call.count > kMostLevels) return cudaErrorInvalidValue;
  Device device;
  cudaError_t error = current_device(&device);
  if (error != cudaSuccess) return error;
  MergeArguments a = {call.n, call.c, int(call.h), int(call.w), call.gelu, call.x, call.grad, call.y, call.count,
                      {},     {},     0,           0};
  for (int b = 0; b < call.count; ++b) {
    const Branch& branch = call.branches[b];
    a.branches[b] = {int(branch.h), int(branch.w), branch.tensor, Steps(branch.h, call.h), Steps(branch.w, call.w)};
  }
  const bool by_channel = channels_adjacent(call.x, call.c), tiles = merges_by_tiles(call, Gradient, by_channel);
  const int64_t pack = tiles ? 16 / element_size(call.x.type) : 1, units = by_channel ? call.n : call.n * call.c;
  a.leads = by_channel ? call.c / pack * call.w : call.w / pack;
  a.tiles = choose_tiles(device, units * a.leads, call.h, 1, kMergeRows);
  a.items = units * a.leads * (tiles ? a.tiles.count() : call.h);
  LaunchConfig config;
  error = grid_of(divided_up(a.items, kThreads), kThreads, &config);
  if (error != cudaSuccess) return error;
  return by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / int(sizeof(T));
    if (!tiles) return launch(&merge_elements<T, Gradient>, config, stream, a);
    return by_channel ? launch_merge_tiles<T, V, true, Gradient>(a, config, stream)
                      : launch_merge_tiles<T, V, false, Gradient>(a, config, stream);
  });
}

}  // namespace irnext::cuda
