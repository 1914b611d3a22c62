// What the Winograd kernels share: the transforms of one dimension, and where a tile's numbers stand.
#pragma once

#include "memory.h"
#include "winograd.h"

namespace {

using V = Vec<float>;
constexpr int64_t kBlock = kWinogradBlock, kWidth = kLanes<float>;

// ---- the transforms of one dimension ----

template <int M>
struct Transform;

template <>
struct Transform<2> {
  static IRNEXT_INLINE void input(const V* d, V* out) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }
  static IRNEXT_INLINE void output(const V* sum, V* y) {
    y[0] = sum[0] + sum[1] + sum[2];
    y[1] = sum[1] - sum[2] - sum[3];
  }
};

template <>
struct Transform<4> {
  static constexpr float near = kNear, far = kFar, near2 = kNear2, far2 = kFar2;

  static IRNEXT_INLINE void input(const V* d, V* out) {
    const V even_near = d[4] - far2 * d[2], odd_near = near * (d[3] - far2 * d[1]);
    const V even_far = d[4] - near2 * d[2], odd_far = far * (d[3] - near2 * d[1]);
    out[0] = near2 * far2 * d[0] - (near2 + far2) * d[2] + d[4];
    out[1] = even_near + odd_near;
    out[2] = even_near - odd_near;
    out[3] = even_far + odd_far;
    out[4] = even_far - odd_far;
    out[5] = near2 * far2 * d[1] - (near2 + far2) * d[3] + d[5];
  }
  static IRNEXT_INLINE void output(const V* sum, V* y) {
    const V even_near = sum[1] + sum[2], odd_near = sum[1] - sum[2];
    const V even_far = sum[3] + sum[4], odd_far = sum[3] - sum[4];
    y[0] = sum[0] + even_near + even_far;
    y[1] = near * odd_near + far * odd_far;
    y[2] = near2 * even_near + far2 * even_far;
    y[3] = near * near2 * odd_near + far * far2 * odd_far + sum[5];
  }
  // The adjoint of output: what the gradient of results says about the sums.
  static IRNEXT_INLINE void output_adjoint(const V* y, V* sum) {
    const V even_near = y[0] + near2 * y[2], odd_near = near * (y[1] + near2 * y[3]);
    const V even_far = y[0] + far2 * y[2], odd_far = far * (y[1] + far2 * y[3]);
    sum[0] = y[0];
    sum[1] = even_near + odd_near;
    sum[2] = even_near - odd_near;
    sum[3] = even_far + odd_far;
    sum[4] = even_far - odd_far;
    sum[5] = y[3];
  }
};

// ---- tiles ----

// Where a tile stands: its sample and its first row and column.
struct Place {
  int64_t n, row, column;

  template <class Call>
  Place(const Call& call, int64_t index) {
    const int64_t across = call.across(), down = call.down();
    n = index / (across * down);
    row = index / across % down * call.m;
    column = index % across * call.m;
  }
};

// The numbers between the steps: at every point, blocks of channels, in these tiles, in these channels.
struct Layout {
  int64_t tiles, plane;

  // Planes a power of two apart would fall on the same lines of the cache.
  Layout(int64_t tiles, int64_t channels) : tiles(tiles), plane(tiles * channels + kBlock) {}
  int64_t at(int64_t channel, int64_t tile) const {
    return channel / kBlock * kBlock * tiles + tile * kBlock + channel % kBlock;
  }
};

template <class T, int M, class Call>
void transform_input(const Call& call, const Place& place, const T* zeros, const Layout& layout,
                     int64_t tile, float* to) {
  constexpr int A = M + 2;
  const T* pixels[A][A];
  for (int i = 0; i < A; ++i)
    for (int j = 0; j < A; ++j) {
      const int64_t y = place.row + i - 1, x = place.column + j - 1;
      const bool inside = y >= 0 && y < call.h && x >= 0 && x < call.w;
      pixels[i][j] = inside ? at<T>(call.x, place.n, 0, y) + x * call.x.strides.w : zeros;
    }
  for (int64_t c = 0; c < call.c; c += kWidth) {
    V rows[A][A];
    for (int i = 0; i < A; ++i) {
      V d[A];
      for (int j = 0; j < A; ++j) d[j] = load(pixels[i][j] + c);
      Transform<M>::input(d, rows[i]);
    }
    float* point = to + layout.at(c, tile);
    for (int j = 0; j < A; ++j) {
      V d[A], out[A];
      for (int i = 0; i < A; ++i) d[i] = rows[i][j];
      Transform<M>::input(d, out);
      for (int i = 0; i < A; ++i) store(out[i], point + (i * A + j) * layout.plane);
    }
  }
}

}  // namespace
