// The 3 x 3 convolution by Winograd's algorithm for one instruction set. Compiled once per set: see setup.py.
//
// A task takes a few tiles through three steps, so that what lies between them stays in cache: transform the
// tiles' pixels, multiply - at each of the (m + 2)^2 points a product of matrices, tiles x inputs by
// inputs x outputs -, and transform the sums to results.
#include "winograd.h"

#include "memory.h"

#ifndef IRNEXT_ISA
#define IRNEXT_ISA baseline
#endif

namespace {

using V = Vec<float>;
constexpr int64_t kBlock = kWinogradBlock, kWidth = kLanes<float>;
// Tiles and vectors of outputs whose sums are held in registers together: 32 or 16 registers' worth.
constexpr int kTiles = kVectorBytes == 64 ? 12 : 6, kVectors = 2;

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
};

// ---- exact GELU ----

// x Phi(x), with Phi(x) - 1/2 = x P(x^2) / Q(x^2): a minimax fit on |x| <= 5.6, beyond which Phi is 0 or 1 in float.
IRNEXT_INLINE V gelu(const V& x) {
  constexpr float end = 5.6f;
  const V t = x * x;
  V p = 1.077396911e-10f * t - 2.153269909e-8f;
  for (float coefficient : {3.192379095e-6f, 1.698447874e-4f, 4.511301016e-3f, 3.596762057e-2f, 3.989422573e-1f})
    p = p * t + coefficient;
  V q = 6.173680291e-5f * t + 1.831208931e-3f;
  for (float coefficient : {2.911448865e-2f, 2.568231854e-1f, 1.0f}) q = q * t + coefficient;
  const V inside = x * (0.5f + x * p / q);
  return x > end ? x : x < -end ? V{} : inside;
}

// ---- the three steps ----

// Where a tile stands: its sample and its first row and column.
struct Place {
  int64_t n, row, column;

  Place(const WinogradCall& call, int64_t index) {
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

template <class T, int M>
void transform_input(const WinogradCall& call, const Place& place, const T* zeros, const Layout& layout,
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

// Vectors of outputs lie `weight_step` and `to_step` apart.
struct Product {
  int64_t inputs, from_step, weight_step, to_step;
};

template <int Tiles, int Vectors>
IRNEXT_INLINE void multiply(const Product& product, const float* from, const float* weight, float* to) {
  V sum[Tiles][Vectors] = {};
  for (int64_t c = 0; c < product.inputs; c += kBlock, from += product.from_step)
    for (int64_t i = 0; i < kBlock; ++i, weight += kBlock) {
      V w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = load(weight + v * product.weight_step);
#pragma GCC unroll 12
      for (int t = 0; t < Tiles; ++t)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[t][v] += from[t * kBlock + i] * w[v];
    }
#pragma GCC unroll 12
  for (int t = 0; t < Tiles; ++t)
    for (int v = 0; v < Vectors; ++v) store(sum[t][v], to + t * kBlock + v * product.to_step);
}

template <int Vectors, int Tiles = kTiles>
void multiply_some(int64_t tiles, const Product& product, const float* from, const float* weight, float* to) {
  if (tiles == Tiles)
    multiply<Tiles, Vectors>(product, from, weight, to);
  else if constexpr (Tiles > 1)
    multiply_some<Vectors, Tiles - 1>(tiles, product, from, weight, to);
}

// At one point: the sums over the inputs for all tiles and outputs.
void multiply_all(int64_t tiles, int64_t inputs, int64_t outputs, const Layout& before, const Layout& after,
                  const float* from, const float* weight, float* to) {
  constexpr bool wide = kWidth >= kBlock;  // the next vector is in the next block
  const Product product{inputs, before.tiles * kBlock, wide ? inputs * kBlock : kWidth,
                        wide ? after.tiles * kBlock : kWidth};
  const int64_t parts = (tiles + kTiles - 1) / kTiles;  // of nearly the same number of tiles
  for (int64_t k = 0; k < outputs; k += kVectors * kWidth) {
    const float* w = weight + k / kBlock * kBlock * inputs + k % kBlock;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = tiles * part / parts, some = tiles * (part + 1) / parts - first;
      const float* a = from + before.at(0, first);
      float* y = to + after.at(k, first);
      if (k + kWidth < outputs)
        multiply_some<kVectors>(some, product, a, w, y);
      else
        multiply_some<1>(some, product, a, w, y);
    }
  }
}

template <class T, int M>
void transform_output(const WinogradCall& call, const Place& place, const Layout& layout, int64_t tile,
                      const float* from) {
  constexpr int A = M + 2;
  const int64_t height = least(M, call.h - place.row), width = least(M, call.w - place.column);
  T* y = at<T>(call.y, place.n, 0, place.row) + place.column * call.y.strides.w;
  const T* residual = nullptr;
  if (call.residual.data)
    residual = at<T>(call.residual, place.n, 0, place.row) + place.column * call.residual.strides.w;
  for (int64_t k = 0; k < call.outputs; k += kWidth) {
    const float* point = from + layout.at(k, tile);
    V rows[A][M];
    for (int i = 0; i < A; ++i) {
      V sum[A];
      for (int j = 0; j < A; ++j) sum[j] = load(point + (i * A + j) * layout.plane);
      Transform<M>::output(sum, rows[i]);
    }
    const V bias = load(call.bias + k);
    for (int j = 0; j < width; ++j) {
      V sum[A], results[M];
      for (int i = 0; i < A; ++i) sum[i] = rows[i][j];
      Transform<M>::output(sum, results);
      for (int i = 0; i < height; ++i) {
        V result = results[i] + bias;
        if (call.gelu) result = gelu(result);
        if (residual) result += load(residual + i * call.residual.strides.h + j * call.residual.strides.w + k);
        store(result, y + i * call.y.strides.h + j * call.y.strides.w + k);
      }
    }
  }
}

template <class T, int M>
void convolve(const WinogradCall& call, int64_t begin, int64_t end) {
  constexpr int64_t points = (M + 2) * (M + 2);
  const int64_t all = call.n * call.down() * call.across();
  const Layout before(call.tiles, call.c), after(call.tiles, call.outputs);
  Scratch<float> transformed(points * before.plane), sums(points * after.plane);
  Scratch<T> zeros(call.c);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task * call.tiles, tiles = least(call.tiles, all - first);
    for (int64_t i = 0; i < tiles; ++i)
      transform_input<T, M>(call, Place(call, first + i), zeros.get(), before, i, transformed.get());
    for (int64_t point = 0; point < points; ++point)
      multiply_all(tiles, call.c, call.outputs, before, after, transformed.get() + point * before.plane,
                   call.weight + point * call.c * call.outputs, sums.get() + point * after.plane);
    for (int64_t i = 0; i < tiles; ++i)
      transform_output<T, M>(call, Place(call, first + i), after, i, sums.get());
  }
}

void winograd(const WinogradCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    if constexpr (!std::is_same_v<T, double>)
      call.m == 2 ? convolve<T, 2>(call, begin, end) : convolve<T, 4>(call, begin, end);
  });
}

}  // namespace

#define IRNEXT_KERNEL(isa) \
  extern const WinogradKernel winograd_##isa; \
  const WinogradKernel winograd_##isa = ::winograd;
#define IRNEXT_EXPAND(isa) IRNEXT_KERNEL(isa)

namespace irnext::cpu {
IRNEXT_EXPAND(IRNEXT_ISA)
}
