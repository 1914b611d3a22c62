// The interface of the 3 x 3 convolution by Winograd's algorithm: stride 1, a border of one zero, channels
// side by side in memory. No PyTorch.
//
// F(m x m, 3 x 3) computes m x m pixels, a tile, from the (m + 2) x (m + 2) around them with one product for
// each of those instead of nine for each result: y = A^T [(G g G^T) * (B^T d B)] A for a filter g and pixels d.
// The rows of G, B^T and A^T belong to points where polynomials are evaluated. For m = 4 the usual points
// 0, +-1, +-2 lose a digit; 0, +-5/8, +-3/2 hardly any, and their products, too, are exact in float.
#pragma once

#include <cstdint>

#include "irnext/tensor.h"

namespace irnext::cpu {

// Channels that lie side by side in packed weights; inputs and outputs are multiples of it.
constexpr int64_t kWinogradBlock = 16;

// The points, their squares, and what a filter's value at a point and at its negative is multiplied by.
constexpr double kNear = 0.625, kFar = 1.5;
constexpr double kNear2 = kNear * kNear, kFar2 = kFar * kFar;
constexpr double kNearShare = 1 / (2 * kNear2 * (kNear2 - kFar2)), kFarShare = 1 / (2 * kFar2 * (kFar2 - kNear2));

// G, the last row of which belongs to infinity.
constexpr double kFilterTransform2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
constexpr double kFilterTransform4[6][3] = {{1 / (kNear2 * kFar2), 0, 0},
                                            {kNearShare, kNearShare * kNear, kNearShare * kNear2},
                                            {kNearShare, kNearShare * -kNear, kNearShare * kNear2},
                                            {kFarShare, kFarShare * kFar, kFarShare * kFar2},
                                            {kFarShare, kFarShare * -kFar, kFarShare * kFar2},
                                            {0, 0, 1}};

// z = convolution of x + bias, y = residual + activation(z). Task i computes tiles i * tiles ... of the samples' tiles,
// row by row. Element types are f32, bf16 or f16; sums are taken in float.
struct WinogradCall {
  int64_t n, c, h, w, outputs;
  int64_t m;  // 2 or 4
  Tensor x, y, residual, z;  // channels adjacent; data of the residual and of z may be null
  const float* weight;    // ((m + 2)^2, outputs / block, c, block): G g G^T
  const float* bias;      // (outputs)
  bool gelu;              // the exact one, else none
  int64_t tiles;          // of a task
  int64_t across() const { return (w + m - 1) / m; }
  int64_t down() const { return (h + m - 1) / m; }
  int64_t count() const { return (n * down() * across() + tiles - 1) / tiles; }
};

// The gradient of the weights (outputs, c, 3, 3) and of the bias (outputs) from that of the results, with tiles of
// 4 x 4. Sums are taken in parts of the tiles, for slices of the outputs: task i is part i / slices, slice i % slices.
struct WinogradGradientCall {
  int64_t n, c, h, w, outputs;
  Tensor x, grad;  // channels adjacent
  float* sums;     // (parts, slices, 36, c, slice)
  float* totals;   // (parts, outputs): sums of grad
  float* weight;   // (outputs, c, 3, 3)
  int64_t parts;
  int64_t slice;  // outputs of a slice, a multiple of the block that divides all outputs
  int64_t tiles;  // that lie in cache together
  static constexpr int64_t m = 4;
  int64_t across() const { return (w + m - 1) / m; }
  int64_t down() const { return (h + m - 1) / m; }
  int64_t slices() const { return outputs / slice; }
};

struct WinogradKernels {
  void (*convolve)(const WinogradCall&, int64_t begin, int64_t end);
  void (*sum_weight_gradients)(const WinogradGradientCall&, int64_t begin, int64_t end);  // of tasks
  void (*finish_weight_gradient)(const WinogradGradientCall&, int64_t begin, int64_t end);  // of inputs
};

// The kernels for the instruction set in use.
const WinogradKernels& winograd();

}  // namespace irnext::cpu
