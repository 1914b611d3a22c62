// dynamic_conv2d and spatial_mean on the device: plain pointers, no PyTorch. Nothing here allocates or
// synchronises; results do not depend on how blocks are scheduled. An empty batch launches nothing.
//
// "Accumulation type" is double where x is f64, else float. Unless said otherwise arrays are contiguous.
#pragma once

#include "irnext/cuda/execution.h"

namespace irnext::cuda {

// What is added to every element: plane[n,c] + scale[n,c] * tensor[n,c,h,w].
struct Offset {
  const void* plane = nullptr;  // (n, c), accumulation type; may be null
  Tensor tensor = {};           // any type and strides (zero where broadcast); data may be null
  const void* scale = nullptr;  // (n, c), accumulation type; null stands for ones
};

// ---- spatial_mean ----

struct MeanCall {
  int64_t n, c, h, w;
  Tensor x;
  int64_t splits;  // as mean_splits says
  void* partial;   // (splits, n, c), accumulation type: sums over parts of each plane
};

int64_t mean_splits(const Device& device, int64_t n, int64_t c, int64_t h, int64_t w, const Tensor& x);
cudaError_t mean_partials(const MeanCall& call, cudaStream_t stream);
// Writes mean (n, c), accumulation type.
cudaError_t finish_mean(const MeanCall& call, void* mean, cudaStream_t stream);

// ---- dynamic_conv2d ----

struct FilterCall {
  DynamicConvShape shape;
  Tensor x, y;         // of one type, any strides
  const void* kernel;  // (n, groups, kh, kw)
  Type kernel_type;
  Offset offset;
};

cudaError_t filter(const FilterCall& call, cudaStream_t stream);

// ---- its backward: first the sums, then the gradient of x ----

struct SumsCall {
  DynamicConvShape shape;
  Tensor x, grad;      // of one type, any strides
  int64_t splits;      // as sum_splits says
  void* tap_partial;   // (splits, n, c, taps), accumulation type: sums of grad * shifted x; may be null
  void* grad_partial;  // (splits, n, c), accumulation type: sums of grad; may be null
};

int64_t sum_splits(const Device& device, const DynamicConvShape& shape, const Tensor& x, const Tensor& grad);
cudaError_t filter_sums(const SumsCall& call, cudaStream_t stream);
// Writes dkernel (n, groups, taps) and grad_sum (n, c), accumulation type; either may be null.
cudaError_t finish_sums(const SumsCall& call, void* dkernel, void* grad_sum, cudaStream_t stream);

struct InputCall {
  DynamicConvShape shape;
  Tensor grad, dx;     // of one type, any strides
  const void* kernel;  // (n, groups, kh, kw)
  Type kernel_type;
  Offset offset;
};

// dx = the transposed filter of grad with the border folded back, plus the offset.
cudaError_t filter_input_gradient(const InputCall& call, cudaStream_t stream);

}  // namespace irnext::cuda
