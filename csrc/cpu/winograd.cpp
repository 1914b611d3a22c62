// The 3 x 3 convolution by Winograd's algorithm for one instruction set. Compiled once per set: see setup.py.
//
// A task takes a few tiles through three steps, so that what lies between them stays in cache: transform the
// tiles' pixels, multiply - at each of the (m + 2)^2 points a product of matrices, tiles x inputs by
// inputs x outputs -, and transform the sums to results.
#include "gelu.h"
#include "winograd_gradient.h"
#include "winograd_transform.h"

#ifndef IRNEXT_ISA
#define IRNEXT_ISA baseline
#endif

namespace {

// Tiles and vectors of outputs whose sums are held in registers together: 32 or 16 registers' worth.
constexpr int kTiles = kVectorBytes == 64 ? 12 : 6, kVectors = 2;

// ---- the three steps ----

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
  const auto pixel = [&](const Tensor& tensor) -> T* {
    return tensor.data ? at<T>(tensor, place.n, 0, place.row) + place.column * tensor.strides.w : nullptr;
  };
  T *y = pixel(call.y), *z = pixel(call.z);
  const T* residual = pixel(call.residual);
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
        if (z) {  // the activation is of what is kept, so that it can be computed again
          T* kept = z + i * call.z.strides.h + j * call.z.strides.w + k;
          store(result, kept);
          result = load(kept);
        }
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
  extern const WinogradKernels winograd_##isa; \
  const WinogradKernels winograd_##isa{::winograd, ::sum_weight_gradients, ::finish_weight_gradient};
#define IRNEXT_EXPAND(isa) IRNEXT_KERNEL(isa)

namespace irnext::cpu {
IRNEXT_EXPAND(IRNEXT_ISA)
}
