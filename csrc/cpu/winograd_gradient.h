// The gradient of the weights of the 3 x 3 convolution, by Winograd's algorithm.
//
// Since y = A^T [(G g G^T) * (B^T d B)] A is linear in g, its adjoint gives the gradient of g from that of y, u:
// G^T [sum over the tiles of (A u A^T) * (B^T d B)] G. At each point the sum over tiles is a product of matrices,
// inputs x tiles by tiles x outputs.
#pragma once

#include "winograd_transform.h"

namespace {

// Inputs whose sums are held in registers together, for two vectors of outputs.
constexpr int kInputs = kVectorBytes == 64 ? 8 : 4;

// A u A^T of one tile for a slice of outputs; `total` gets the sums of u, for the bias.
template <class T>
void transform_gradient(const WinogradGradientCall& call, const Place& place, int64_t first, const T* zeros,
                        const Layout& layout, int64_t tile, float* to, float* total) {
  constexpr int M = 4, A = 6;
  const T* pixels[M][M];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < M; ++j) {
      const int64_t y = place.row + i, x = place.column + j;
      const bool inside = y < call.h && x < call.w;
      pixels[i][j] = inside ? at<T>(call.grad, place.n, first, y) + x * call.grad.strides.w : zeros;
    }
  for (int64_t k = 0; k < call.slice; k += kWidth) {
    V rows[M][A], sum = load(total + k);
    for (int i = 0; i < M; ++i) {
      V u[M];
      for (int j = 0; j < M; ++j) u[j] = load(pixels[i][j] + k);
      sum += (u[0] + u[1]) + (u[2] + u[3]);
      Transform<M>::output_adjoint(u, rows[i]);
    }
    store(sum, total + k);
    float* point = to + layout.at(k, tile);
    for (int j = 0; j < A; ++j) {
      V u[M], out[A];
      for (int i = 0; i < M; ++i) u[i] = rows[i][j];
      Transform<M>::output_adjoint(u, out);
      for (int i = 0; i < A; ++i) store(out[i], point + (i * A + j) * layout.plane);
    }
  }
}

// Add to the sums (inputs, slice) of one point what some tiles say, for kInputs inputs and Vectors of outputs.
template <int Vectors>
IRNEXT_INLINE void add_products(int64_t tiles, const float* pixels, const float* gradient, int64_t vector_step,
                                float* to, int64_t row) {
  V sum[kInputs][Vectors] = {};
  for (int64_t t = 0; t < tiles; ++t, pixels += kBlock, gradient += kBlock) {
    V u[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) u[v] = load(gradient + v * vector_step);
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[i][v] += pixels[i] * u[v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kInputs; ++i)
    for (int v = 0; v < Vectors; ++v) {
      float* place = to + i * row + v * kWidth;
      store(load(place) + sum[i][v], place);
    }
}

template <class T>
void sum_weight_gradient(const WinogradGradientCall& call, int64_t begin, int64_t end) {
  constexpr int64_t points = 36;
  constexpr bool wide = kWidth >= kBlock;  // the next vector is in the next block
  const int64_t all = call.n * call.down() * call.across();
  const Layout inputs(call.tiles, call.c), outputs(call.tiles, call.slice);
  const int64_t vector_step = wide ? call.tiles * kBlock : kWidth;
  Scratch<float> pixels(points * inputs.plane), gradient(points * outputs.plane);
  Scratch<float> some(call.slice);  // summed apart: a long sum of short ones loses less
  Scratch<T> zeros(largest(call.c, call.slice));
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / call.slices(), first = task % call.slices() * call.slice;
    float* sums = call.sums + task * points * call.c * call.slice;
    float* total = call.totals + part * call.outputs + first;
    std::memset(sums, 0, points * call.c * call.slice * sizeof(float));
    std::memset(total, 0, call.slice * sizeof(float));
    const int64_t stop = all * (part + 1) / call.parts;
    for (int64_t tile = all * part / call.parts; tile < stop; tile += call.tiles) {
      const int64_t tiles = least(call.tiles, stop - tile);
      for (int64_t i = 0; i < tiles; ++i) {
        const Place place(call, tile + i);
        transform_input<T, 4>(call, place, zeros.get(), inputs, i, pixels.get());
        transform_gradient<T>(call, place, first, zeros.get(), outputs, i, gradient.get(), some.get());
      }
      for (int64_t k = 0; k < call.slice; ++k) total[k] += std::exchange(some[k], 0.0f);
      for (int64_t point = 0; point < points; ++point)
        for (int64_t c = 0; c < call.c; c += kInputs) {
          const float* d = pixels.get() + point * inputs.plane + inputs.at(c, 0);
          float* to = sums + (point * call.c + c) * call.slice;
          int64_t k = 0;
          for (; k + 2 * kWidth <= call.slice; k += 2 * kWidth)
            add_products<2>(tiles, d, gradient.get() + point * outputs.plane + outputs.at(k, 0), vector_step, to + k,
                            call.slice);
          if (k < call.slice)
            add_products<1>(tiles, d, gradient.get() + point * outputs.plane + outputs.at(k, 0), vector_step, to + k,
                            call.slice);
        }
    }
  }
}

void sum_weight_gradients(const WinogradGradientCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    if constexpr (!std::is_same_v<T, double>) sum_weight_gradient<T>(call, begin, end);
  });
}

// The gradient of inputs begin ... end, from all parts' sums: G^T S G. The first part's take in the others'.
void finish_weight_gradient(const WinogradGradientCall& call, int64_t begin, int64_t end) {
  constexpr int A = 6;
  const int64_t part_step = call.slices() * A * A * call.c * call.slice, some = (end - begin) * call.slice;
  for (int64_t rows = 0; rows < call.slices() * A * A; ++rows) {
    float* to = call.sums + (rows * call.c + begin) * call.slice;
    for (int64_t part = 1; part < call.parts; ++part)
      for (int64_t i = 0; i < some; i += kWidth) store(load(to + i) + load(to + part * part_step + i), to + i);
  }
  for (int64_t c = begin; c < end; ++c)
    for (int64_t k = 0; k < call.outputs; k += kWidth) {
      const float* sums = call.sums + (k / call.slice * A * A * call.c + c) * call.slice + k % call.slice;
      V rows[A][3] = {};
      for (int i = 0; i < A; ++i)
        for (int j = 0; j < A; ++j) {
          const V sum = load(sums + (i * A + j) * call.c * call.slice);
          for (int v = 0; v < 3; ++v) rows[i][v] += float(kFilterTransform4[j][v]) * sum;
        }
      for (int u = 0; u < 3; ++u)
        for (int v = 0; v < 3; ++v) {
          V sum = {};
          for (int i = 0; i < A; ++i) sum += float(kFilterTransform4[i][u]) * rows[i][v];
          float lanes[kWidth];
          store(sum, lanes);
          for (int64_t lane = 0; lane < kWidth; ++lane)
            call.weight[((k + lane) * call.c + c) * 9 + u * 3 + v] = lanes[lane];
        }
    }
}

}  // namespace
