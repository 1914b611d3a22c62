// The filter and its transpose. The transpose is the same filter with flipped taps on a gradient that is zero
// outside its plane; what it would put into the margins is added to where the border rule took them from.
#pragma once

#include "irnext/cuda/dynamic_conv2d_tiles.cuh"

namespace irnext::cuda {

// What the filter, or its transpose, finds in the margins.
template <bool Transpose>
__device__ __forceinline__ Padding margin_padding(const DynamicConvShape& s) {
  return Transpose ? Padding::zeros : s.padding;
}

struct FilterArguments {
  DynamicConvShape shape;
  Tensor from, to;
  const void* kernel;
  Type kernel_type;
  Offset offset;
  bool offset_packed;  // offset.tensor is of the element type and made of the same packs
  RowTiles tiles;
  int64_t leads;  // packs side by side: of columns in a plane, or of channels and columns in a sample
  int64_t items;
};

// scale * tensor at one element.
template <class A>
__device__ __forceinline__ A offset_at(const Offset& offset, int64_t n, int64_t c, int64_t channels, int64_t h,
                                       int64_t w) {
  const Strides& s = offset.tensor.strides;
  const A value = read_number<A>(offset.tensor.data, offset.tensor.type, n * s.n + c * s.c + h * s.h + w * s.w);
  return offset.scale ? value * static_cast<const A*>(offset.scale)[n * channels + c] : value;
}

template <class A>
__device__ __forceinline__ A plane_offset(const Offset& offset, int64_t plane) {
  return offset.plane ? static_cast<const A*>(offset.plane)[plane] : A(0);
}

// Tap t of a plane's kernel; the transpose uses them from the last to the first.
template <class A, bool Transpose>
__device__ __forceinline__ A tap_of(const FilterArguments& a, int64_t n, int64_t c, int t) {
  const int taps = int(a.shape.taps()), group = int(c) / (int(a.shape.c) / int(a.shape.groups));
  return read_number<A>(a.kernel, a.kernel_type,
                        (n * a.shape.groups + group) * taps + (Transpose ? taps - 1 - t : t));
}

// What a column's taps become when the margins of a 3x3 transpose are folded back into the plane. Taps are
// (3 rows, 3 columns), `Stride` apart.
template <int Stride, class A>
__device__ __forceinline__ void fold_columns(A* taps, int64_t x, const DynamicConvShape& s) {
  // Margin column -1 holds taps[2] * u[0], margin column w holds taps[0] * u[w - 1].
  const bool shown_left = x == source_index(-1, s.w, s.padding), shown_right = x == source_index(s.w, s.w, s.padding);
  IRNEXT_UNROLL
  for (int i = 0; i < 3; ++i) {
    A &left = taps[3 * i * Stride], &middle = taps[(3 * i + 1) * Stride], &right = taps[(3 * i + 2) * Stride];
    const A into_left = shown_left ? right : A(0), into_right = shown_right ? left : A(0);
    const bool replicate = s.padding == Padding::replicate;  // else u[0] is the left neighbour, u[w - 1] the right
    middle += replicate ? into_left + into_right : A(0);
    left += replicate ? A(0) : into_left;
    right += replicate ? A(0) : into_right;
  }
}

// Filters V columns of one plane. OffsetTensor tells whether the offset has a tensor: where it has none, the
// registers are better used.
template <class T, int V, bool Transpose, bool OffsetTensor>
class RowLane {
 public:
  using Window = RowWindow<T, V>;
  using A = Acc<T>;
  static constexpr bool kWide = sizeof(T) == 8 || (sizeof(T) == 2 && Transpose);  // needs more registers
  static constexpr int kBatch = sizeof(T) == 2 ? 2 : 4, kBlocks = OffsetTensor || kWide ? 2 : 3;
  static constexpr bool kTranspose = Transpose;

  __device__ __forceinline__ RowLane(const FilterArguments& a, int64_t plane, int64_t lead)
      : a_(a),
        plane_(plane),
        n_(quotient(plane, a.shape.c)),
        c_(plane - n_ * a.shape.c),
        x_(int(lead) * V),
        window_(a.from, a.shape, margin_padding<Transpose>(a.shape), n_, c_, x_),
        to_(element<T>(a.to, n_, c_) + x_ * a.to.strides.w),
        constant_(plane_offset<A>(a.offset, plane)) {
    for (int t = 0; t < 9; ++t) taps_[t] = tap_of<A, Transpose>(a, n_, c_, t);
    if constexpr (Transpose && V == 1) fold_columns<1>(taps_, x_, a.shape);
  }

  __device__ __forceinline__ const Window& window() const { return window_; }

  __device__ __forceinline__ void begin(A (&sums)[V]) const {
    for (int e = 0; e < V; ++e) sums[e] = constant_;
  }

  // Add what tap row i makes of a row.
  __device__ __forceinline__ void add(A (&sums)[V], int i, const typename Window::Values& row) const {
    const A* const taps = taps_ + 3 * i;
    for (int e = 0; e < V; ++e) sums[e] += taps[0] * row.at(0, e) + taps[1] * row.at(1, e) + taps[2] * row.at(2, e);
    if constexpr (Transpose && V > 1) {
      if (a_.shape.padding == Padding::zeros) return;
      const bool reflect = a_.shape.padding == Padding::reflect;
      if (!window_.has_left()) {
        const A margin = taps[2] * row.at(1, 0);
        sums[0] += reflect ? A(0) : margin;
        sums[1] += reflect ? margin : A(0);
      }
      if (!window_.has_right()) {
        const A margin = taps[0] * row.at(1, V - 1);
        sums[V - 1] += reflect ? A(0) : margin;
        sums[V - 2] += reflect ? margin : A(0);
      }
    }
  }

  __device__ __forceinline__ void store(int64_t row, A (&sums)[V]) const {
    if constexpr (OffsetTensor) add_offset(row, sums);
    Pack<T, V> pack;
    for (int e = 0; e < V; ++e) pack[e] = narrow<T>(sums[e]);
    store_pack(to_ + row * a_.to.strides.h, pack);
  }

 private:
  __device__ __forceinline__ void add_offset(int64_t row, A (&sums)[V]) const {
    if (a_.offset_packed) {
      const Strides& s = a_.offset.tensor.strides;
      const Pack<T, V> pack = load_pack<T, V>(element<T>(a_.offset.tensor, n_, c_) + row * s.h + x_ * s.w);
      const A scale = a_.offset.scale ? static_cast<const A*>(a_.offset.scale)[plane_] : A(1);
      for (int e = 0; e < V; ++e) sums[e] += scale * widen(pack[e]);
    } else {
      for (int e = 0; e < V; ++e) sums[e] += offset_at<A>(a_.offset, n_, c_, a_.shape.c, row, x_ + e);
    }
  }

  const FilterArguments& a_;
  int64_t plane_, n_, c_;
  int x_;
  Window window_;
  T* to_;
  A constant_, taps_[9];
};

// Filters V channels of one column.
template <class T, int V, bool Transpose, bool OffsetTensor>
class ChannelLane {
 public:
  using Window = ChannelWindow<T, V>;
  using A = Acc<T>;
  static constexpr int kBatch = OffsetTensor ? 1 : 2, kBlocks = 2;
  static constexpr bool kTranspose = Transpose;

  __device__ __forceinline__ ChannelLane(const FilterArguments& a, int64_t sample, int64_t lead)
      : a_(a),
        n_(sample),
        x_(int(quotient(lead, a.shape.c / V))),
        c_(int(lead - x_ * (a.shape.c / V)) * V),
        window_(a.from, a.shape, margin_padding<Transpose>(a.shape), n_, c_, x_),
        to_(element<T>(a.to, n_, c_) + x_ * a.to.strides.w) {
    for (int t = 0; t < 9; ++t)
      for (int e = 0; e < V; ++e) taps_[t * V + e] = tap_of<A, Transpose>(a, n_, c_ + e, t);
    if constexpr (Transpose)
      for (int e = 0; e < V; ++e) fold_columns<V>(taps_ + e, x_, a.shape);
  }

  __device__ __forceinline__ const Window& window() const { return window_; }

  __device__ __forceinline__ void begin(A (&sums)[V]) const {
    for (int e = 0; e < V; ++e) sums[e] = 0;
  }

  __device__ __forceinline__ void add(A (&sums)[V], int i, const typename Window::Values& row) const {
    for (int j = 0; j < 3; ++j)
      for (int e = 0; e < V; ++e) sums[e] += taps_[(3 * i + j) * V + e] * row.at(j, e);
  }

  __device__ __forceinline__ void store(int64_t row, A (&sums)[V]) const {
    const int64_t plane = n_ * a_.shape.c + c_;
    if (a_.offset.plane)
      for (int e = 0; e < V; ++e) sums[e] += plane_offset<A>(a_.offset, plane + e);
    if constexpr (OffsetTensor) add_offset(row, plane, sums);
    Pack<T, V> pack;
    for (int e = 0; e < V; ++e) pack[e] = narrow<T>(sums[e]);
    store_pack(to_ + row * a_.to.strides.h, pack);
  }

 private:
  __device__ __forceinline__ void add_offset(int64_t row, int64_t plane, A (&sums)[V]) const {
    if (a_.offset_packed) {
      const Strides& s = a_.offset.tensor.strides;
      const Pack<T, V> pack = load_pack<T, V>(element<T>(a_.offset.tensor, n_, c_) + row * s.h + x_ * s.w);
      for (int e = 0; e < V; ++e)
        sums[e] += (a_.offset.scale ? static_cast<const A*>(a_.offset.scale)[plane + e] : A(1)) * widen(pack[e]);
    } else {
      for (int e = 0; e < V; ++e) sums[e] += offset_at<A>(a_.offset, n_, c_ + e, a_.shape.c, row, x_);
    }
  }

  const FilterArguments& a_;
  int64_t n_;
  int x_, c_;
  Window window_;
  T* to_;
  A taps_[9 * V];
};

// Walk down the tile. A row adds to three rows of the result: the one above it, its own, the one below.
template <class Lane>
__device__ __forceinline__ void walk(const Lane& lane, const FilterArguments& a, const RowRange& range) {
  using Window = typename Lane::Window;
  using A = typename Lane::A;
  constexpr int V = Window::kElements, B = Lane::kBatch;
  const DynamicConvShape& s = a.shape;
  const Padding padding = margin_padding<Lane::kTranspose>(s);
  A above[V], here[V], below[V];
  lane.begin(above);
  lane.begin(here);
  IRNEXT_NO_UNROLL
  for (int j = range.first - 1; j <= range.end; j += B) {
    typename Window::Raw raw[B];
    IRNEXT_UNROLL
    for (int b = 0; b < B; ++b)
      raw[b] = lane.window().load(j + b <= range.end ? range.source<Window>(j + b, s, padding) : -1);
    IRNEXT_UNROLL
    for (int b = 0; b < B; ++b) {
      const int row = j + b;
      const typename Window::Values values = lane.window().widened(raw[b]);
      lane.begin(below);
      lane.add(above, 2, values);
      lane.add(here, 1, values);
      lane.add(below, 0, values);
      if constexpr (Lane::kTranspose) {  // of tiles without dilation only
        if (s.padding == Padding::reflect) {
          if (row == 0) lane.add(below, 2, values);
          if (row == s.h - 1) lane.add(above, 0, values);
        } else if (s.padding == Padding::replicate) {
          if (row == 0) lane.add(here, 2, values);
          if (row == s.h - 1) lane.add(here, 0, values);
        }
      }
      if (row > range.first && row <= range.end) lane.store(range.row<Window>(row - 1, s), above);
      for (int e = 0; e < V; ++e) above[e] = here[e], here[e] = below[e];
    }
  }
}

template <class Lane>
__global__ void __launch_bounds__(kThreads, Lane::kBlocks) filter_tiles(FilterArguments a) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const int64_t tile_number = quotient(item, a.leads), unit = quotient(tile_number, a.tiles.count());
  const Lane lane(a, unit, item - tile_number * a.leads);
  walk(lane, a, a.tiles[tile_number - unit * a.tiles.count()]);
}

// ---- filters of any size ----

constexpr int kColumnRows = 4;  // of one column to a thread, which share each tap it reads

// The places of the extended dimension, from `first` to `last`, that show p: itself, and those of the margin before
// (side 1) and after (side 2).
struct Places {
  int64_t first, last;

  __device__ __forceinline__ Places(int side, int64_t p, int64_t size, int64_t reach, Padding padding)
      : first(0), last(-1) {
    const int64_t mirrored = side == 1 ? -p : 2 * (size - 1) - p;
    if (side == 0)
      first = last = p;
    else if (padding == Padding::replicate && p == (side == 1 ? 0 : size - 1))
      first = side == 1 ? -reach : size, last = first + reach - 1;
    else if (padding == Padding::reflect && (side == 1 ? mirrored < 0 && -mirrored <= reach
                                                       : mirrored >= size && mirrored < size + reach))
      first = last = mirrored;
  }
};

// Call body(q, i) for every element q of the gradient that met tap i for a place that shows p, along one dimension.
template <class Body>
__device__ __forceinline__ void for_adjoint_pairs(int64_t p, int64_t size, int64_t taps, int64_t dilation,
                                                  Padding padding, const Body& body) {
  const int64_t reach = taps / 2 * dilation;
  IRNEXT_NO_UNROLL
  for (int side = 0; side < 3; ++side) {
    const Places places(side, p, size, reach, padding);
    if (places.first > places.last) continue;
    IRNEXT_NO_UNROLL
    for (int64_t i = 0; i < taps; ++i) {
      const int64_t shift = reach - i * dilation;
      const int64_t begin = places.first + shift > 0 ? places.first + shift : 0;
      const int64_t end = places.last + shift < size - 1 ? places.last + shift : size - 1;
      IRNEXT_NO_UNROLL
      for (int64_t q = begin; q <= end; ++q) body(q, i);
    }
  }
}

// One column of the filter's result, `count` rows from row `first`.
template <class T>
__device__ __forceinline__ void filter_column(const FilterArguments& a, int64_t n, int64_t c, int64_t x,
                                              int64_t first, int count, Acc<T> (&sums)[kColumnRows]) {
  using A = Acc<T>;
  const DynamicConvShape& s = a.shape;
  const T* const plane = element<T>(a.from, n, c);
  for (int i = 0; i < s.kh; ++i) {
    int64_t rows[kColumnRows];
    IRNEXT_UNROLL
    for (int r = 0; r < kColumnRows; ++r)
      rows[r] = r < count ? source_index(first + r + i * s.dilation - s.reach_h(), s.h, s.padding) : -1;
    for (int j = 0; j < s.kw; ++j) {
      const int64_t column = source_index(x + j * s.dilation - s.reach_w(), s.w, s.padding);
      if (column < 0) continue;
      const A tap = tap_of<A, false>(a, n, c, i * int(s.kw) + j);
      const T* const from = plane + column * a.from.strides.w;
      IRNEXT_UNROLL
      for (int r = 0; r < kColumnRows; ++r)
        if (rows[r] >= 0) sums[r] += tap * widen(from[rows[r] * a.from.strides.h]);
    }
  }
}

// One element of the transpose.
template <class T>
__device__ __forceinline__ Acc<T> transposed_at(const FilterArguments& a, int64_t n, int64_t c, int64_t y, int64_t x) {
  const DynamicConvShape& s = a.shape;
  const T* const plane = element<T>(a.from, n, c);
  Acc<T> sum = 0;
  for_adjoint_pairs(y, s.h, s.kh, s.dilation, s.padding, [&](int64_t row, int64_t i) {
    for_adjoint_pairs(x, s.w, s.kw, s.dilation, s.padding, [&](int64_t column, int64_t j) {
      sum += tap_of<Acc<T>, false>(a, n, c, int(i * s.kw + j)) *
             widen(plane[row * a.from.strides.h + column * a.from.strides.w]);
    });
  });
  return sum;
}

template <class T>
__device__ __forceinline__ void store_element(const FilterArguments& a, int64_t n, int64_t c, int64_t y, int64_t x,
                                              Acc<T> sum) {
  sum += plane_offset<Acc<T>>(a.offset, n * a.shape.c + c);
  if (a.offset.tensor.data) sum += offset_at<Acc<T>>(a.offset, n, c, a.shape.c, y, x);
  element<T>(a.to, n, c)[y * a.to.strides.h + x * a.to.strides.w] = narrow<T>(sum);
}

// Items are columns of a few rows; the dimension that lies side by side in memory is counted first.
template <class T, bool Transpose>
__global__ void __launch_bounds__(kThreads, 3) filter_columns(FilterArguments a) {
  const DynamicConvShape& s = a.shape;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const bool by_channel = a.to.strides.c == 1;
  int64_t rest = item;
  const auto take = [&](int64_t count) {
    const int64_t all = rest;
    rest = quotient(all, count);
    return all - rest * count;
  };
  int64_t c = 0;
  if (by_channel) c = take(s.c);
  const int64_t x = take(s.w), first = take(divided_up(s.h, kColumnRows)) * kColumnRows;
  if (!by_channel) c = take(s.c);
  const int64_t n = rest;
  const int count = int(s.h - first < kColumnRows ? s.h - first : kColumnRows);
  if constexpr (Transpose) {
    IRNEXT_NO_UNROLL
    for (int r = 0; r < count; ++r) store_element<T>(a, n, c, first + r, x, transposed_at<T>(a, n, c, first + r, x));
  } else {
    Acc<T> sums[kColumnRows] = {};
    filter_column<T>(a, n, c, x, first, count, sums);
    IRNEXT_UNROLL
    for (int r = 0; r < kColumnRows; ++r)
      if (r < count) store_element<T>(a, n, c, first + r, x, sums[r]);
  }
}

// ---- the choice of a kernel ----

template <class T, bool Transpose>
cudaError_t launch_columns(FilterArguments a, cudaStream_t stream) {
  const DynamicConvShape& s = a.shape;
  a.items = s.n * s.c * s.w * divided_up(s.h, kColumnRows);
  LaunchConfig config;
  const cudaError_t error = grid_of(divided_up(a.items, kThreads), kThreads, &config);
  return error == cudaSuccess ? launch(&filter_columns<T, Transpose>, config, stream, a) : error;
}

template <class Lane>
cudaError_t launch_tiles(FilterArguments a, const Device& device, int64_t units, int64_t leads, cudaStream_t stream) {
  const DynamicConvShape& s = a.shape;
  a.tiles = choose_tiles(device, units * leads, s.h, s.dilation);
  a.leads = leads;
  a.items = units * leads * a.tiles.count();
  LaunchConfig config;
  const cudaError_t error = grid_of(divided_up(a.items, kThreads), kThreads, &config);
  return error == cudaSuccess ? launch(&filter_tiles<Lane>, config, stream, a) : error;
}

template <class T, bool Transpose, bool OffsetTensor>
cudaError_t launch_3x3(FilterArguments a, const Device& device, cudaStream_t stream) {
  const DynamicConvShape& s = a.shape;
  const bool same_type = a.offset.tensor.type == a.from.type;
  if (channels_adjacent(a.from, s.c) && channels_adjacent(a.to, s.c)) {
    constexpr int V = kChannelPack<T>;
    const auto packs = [&](const Tensor& tensor) { return packs_along_c(tensor, s.n, s.c, s.h, s.w, V); };
    if (packs(a.from) && packs(a.to)) {
      a.offset_packed = same_type && packs(a.offset.tensor);
      return launch_tiles<ChannelLane<T, V, Transpose, OffsetTensor>>(a, device, s.n, s.c / V * s.w, stream);
    }
    a.offset_packed = same_type;
    return launch_tiles<ChannelLane<T, 1, Transpose, OffsetTensor>>(a, device, s.n, s.c * s.w, stream);
  }
  constexpr int V = kRowPack<T>;
  const auto packs = [&](const Tensor& tensor) { return packs_along_w(tensor, s.n, s.c, s.h, s.w, V); };
  if (s.dilation == 1 && packs(a.from) && packs(a.to)) {
    a.offset_packed = same_type && packs(a.offset.tensor);
    return launch_tiles<RowLane<T, V, Transpose, OffsetTensor>>(a, device, s.n * s.c, s.w / V, stream);
  }
  a.offset_packed = same_type;
  return launch_tiles<RowLane<T, 1, Transpose, OffsetTensor>>(a, device, s.n * s.c, s.w, stream);
}

template <class T, bool Transpose>
cudaError_t launch_filter(const FilterArguments& a, cudaStream_t stream) {
  const DynamicConvShape& s = a.shape;
  if (!countable(s)) return cudaErrorInvalidValue;
  if (s.n * s.c * s.h * s.w == 0) return cudaSuccess;
  Device device;
  const cudaError_t error = current_device(&device);
  if (error != cudaSuccess) return error;
  if (s.kh != 3 || s.kw != 3 || (Transpose && s.dilation > 1)) return launch_columns<T, Transpose>(a, stream);
  return a.offset.tensor.data ? launch_3x3<T, Transpose, true>(a, device, stream)
                              : launch_3x3<T, Transpose, false>(a, device, stream);
}

}  // namespace irnext::cuda
