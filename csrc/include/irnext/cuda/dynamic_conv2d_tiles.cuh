// How threads share the rows of a tensor: a thread owns some neighbouring elements (a pack of columns of one plane,
// or of channels of one pixel) and walks down a tile of rows that lie `dilation` apart, so that every row it needs
// is loaded once.
#pragma once

#include "irnext/cuda/execution.h"
#include "irnext/cuda/operators.h"

namespace irnext::cuda {

constexpr int kThreads = 256;
constexpr int kMostRows = 14;  // of a tile; with the row above and below that is four batches of four

// Elements to a pack: 16 bytes along a row, where the taps are shared. Channels have taps of their own, so that
// only four of them (two of doubles) leave room for the rest in the registers.
template <class T>
constexpr int kRowPack = 16 / int(sizeof(T));
template <class T>
constexpr int kChannelPack = sizeof(T) == 8 ? 2 : 4;

__device__ __forceinline__ int64_t quotient(int64_t value, int64_t by) {
  // The short division is several times faster, and nearly always enough.
  if (((value | by) >> 32) == 0) return uint32_t(value) / uint32_t(by);
  return value / by;
}

__host__ __device__ inline int64_t divided_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

inline int power_of_two_at_least(int64_t value) {
  int power = 1;
  while (power < value) power *= 2;
  return power;
}

// Rows phase + j * dilation of a plane, for j in [first, end).
struct RowRange {
  int phase, first, end;

  template <class Window>
  __device__ __forceinline__ int row(int j, const DynamicConvShape& s) const {
    return Window::kDilated ? phase + j * int(s.dilation) : j;
  }
  // The row that row j of the extended plane shows, or -1.
  template <class Window>
  __device__ __forceinline__ int source(int j, const DynamicConvShape& s, Padding padding) const {
    return int(source_index(row<Window>(j, s), int(s.h), padding));
  }
};

// All tiles of a plane, phase by phase.
struct RowTiles {
  int height, dilation, phases, per_phase, rows;

  RowTiles() = default;
  RowTiles(int64_t height, int64_t dilation, int rows)
      : height(int(height)),
        dilation(int(dilation)),
        phases(int(dilation < height ? dilation : height)),
        per_phase(int(divided_up(divided_up(height, dilation), rows))),
        rows(rows) {}

  __host__ __device__ int64_t count() const { return int64_t(phases) * per_phase; }
  __device__ RowRange operator[](int64_t tile) const {
    const int phase = int(quotient(tile, per_phase)), first = int(tile - int64_t(phase) * per_phase) * rows;
    const int in_phase = (height - phase + dilation - 1) / dilation;
    return {phase, first, first + rows < in_phase ? first + rows : in_phase};
  }
};

// Tall tiles load fewer rows twice, but a small tensor needs short ones to occupy the device.
inline RowTiles choose_tiles(const Device& device, int64_t columns, int64_t height, int64_t dilation,
                             int most_rows = kMostRows) {
  const int64_t wanted = int64_t(device.multiprocessors) * 1024;
  int rows = most_rows;
  while (rows > 2 && columns * divided_up(height, rows) < wanted) rows = (rows + 2) / 2 - 2;
  return RowTiles(height, dilation, rows);
}

// Where the rows algorithm and where the channels algorithm finds neighbours.
inline bool channels_adjacent(const Tensor& tensor, int64_t c) { return c > 1 && tensor.strides.c == 1; }

// Rows and columns are counted in int; offsets are not.
inline bool countable(int64_t n, int64_t c, int64_t h, int64_t w) {
  return n <= INT32_MAX && c <= INT32_MAX && h <= INT32_MAX - 4096 && w <= INT32_MAX - 4096;
}
inline bool countable(const DynamicConvShape& s) { return countable(s.n, s.c, s.h, s.w); }

template <class T>
__device__ __forceinline__ T* element(const Tensor& tensor, int64_t n, int64_t c) {
  return static_cast<T*>(tensor.data) + n * tensor.strides.n + c * tensor.strides.c;
}

// V columns of one plane with the neighbours that three columns of taps need: columns `dilation` away, which is 1
// where V > 1. load(-1) is a row of zeros.
template <class T, int V>
class RowWindow {
 public:
  using Element = T;
  static constexpr int kElements = V;
  static constexpr bool kByChannel = false, kDilated = V == 1;
  struct Raw {
    Pack<T, V> middle;
    T left, right;
  };
  struct Values {
    Acc<T> values[V + 2];
    // What tap column j meets for element e.
    __device__ __forceinline__ Acc<T> at(int j, int e) const { return values[e + j]; }
  };

  __device__ __forceinline__ RowWindow(const Tensor& tensor, const DynamicConvShape& s, Padding padding, int64_t n,
                                       int64_t c, int64_t x)
      : data_(element<T>(tensor, n, c) + x * tensor.strides.w), stride_(tensor.strides.h), padding_(padding) {
    if constexpr (V > 1) {
      has_left_ = x > 0;
      has_right_ = x + V < s.w;
    } else {
      const int64_t left = source_index(x - s.dilation, s.w, padding);
      const int64_t right = source_index(x + s.dilation, s.w, padding);
      has_left_ = left >= 0;
      has_right_ = right >= 0;
      left_ = (left - x) * tensor.strides.w;
      right_ = (right - x) * tensor.strides.w;
    }
  }

  __device__ __forceinline__ bool has_left() const { return has_left_; }
  __device__ __forceinline__ bool has_right() const { return has_right_; }

  __device__ __forceinline__ Raw load(int row) const {
    if (row < 0) return {};
    const T* const from = data_ + row * stride_;
    if constexpr (V > 1) return {load_pack<T, V>(from), has_left_ ? from[-1] : T{}, has_right_ ? from[V] : T{}};
    return {load_pack<T, V>(from), has_left_ ? from[left_] : T{}, has_right_ ? from[right_] : T{}};
  }

  __device__ __forceinline__ Values widened(const Raw& raw) const {
    Values window;
    Acc<T>(&values)[V + 2] = window.values;
    for (int e = 0; e < V; ++e) values[e + 1] = widen(raw.middle[e]);
    values[0] = widen(raw.left);
    values[V + 1] = widen(raw.right);
    if constexpr (V > 1) {  // the border shows columns that the pack itself holds
      if (!has_left_ && padding_ != Padding::zeros) values[0] = padding_ == Padding::reflect ? values[2] : values[1];
      if (!has_right_ && padding_ != Padding::zeros)
        values[V + 1] = padding_ == Padding::reflect ? values[V - 1] : values[V];
    }
    return window;
  }

 private:
  const T* data_;
  int64_t stride_, left_, right_;
  Padding padding_;
  bool has_left_, has_right_;
};

// V channels of one column, and of the columns `dilation` to its left and right.
template <class T, int V>
class ChannelWindow {
 public:
  using Element = T;
  static constexpr int kElements = V;
  static constexpr bool kByChannel = true, kDilated = true;
  struct Raw {
    Pack<T, V> columns[3];
  };
  struct Values {
    Acc<T> values[3][V];
    __device__ __forceinline__ Acc<T> at(int j, int e) const { return values[j][e]; }
  };

  __device__ __forceinline__ ChannelWindow(const Tensor& tensor, const DynamicConvShape& s, Padding padding, int64_t n,
                                           int64_t c, int64_t x)
      : data_(element<T>(tensor, n, c) + x * tensor.strides.w), stride_(tensor.strides.h) {
    const int64_t left = source_index(x - s.dilation, s.w, padding), right = source_index(x + s.dilation, s.w, padding);
    has_left_ = left >= 0;
    has_right_ = right >= 0;
    left_ = (left - x) * tensor.strides.w;
    right_ = (right - x) * tensor.strides.w;
  }

  __device__ __forceinline__ Raw load(int row) const {
    Raw raw = {};
    if (row < 0) return raw;
    const T* const from = data_ + row * stride_;
    if (has_left_) raw.columns[0] = load_pack<T, V>(from + left_);
    raw.columns[1] = load_pack<T, V>(from);
    if (has_right_) raw.columns[2] = load_pack<T, V>(from + right_);
    return raw;
  }

  __device__ __forceinline__ Values widened(const Raw& raw) const {
    Values window;
    for (int j = 0; j < 3; ++j)
      for (int e = 0; e < V; ++e) window.values[j][e] = widen(raw.columns[j][e]);
    return window;
  }

 private:
  const T* data_;
  int64_t stride_, left_, right_;
  bool has_left_, has_right_;
};

}  // namespace irnext::cuda
