// pool_pyramid and merge_pyramid on the device, and their gradients. Like operators.h: plain pointers, any strides,
// nothing allocates or synchronises. One call is one launch unless said otherwise; where there is nothing to write,
// none.
#pragma once

#include "irnext/cuda/execution.h"

namespace irnext::cuda {

constexpr int kMostLevels = 16;  // of a pyramid

// ---- pool_pyramid ----

struct PoolCall {
  int64_t n, c, h, w;
  Tensor x;
  int count;
  int64_t rates[kMostLevels];
  Tensor pools[kMostLevels];  // (n, c, h / rate, w / rate), of x's type
};

cudaError_t pool_pyramid(const PoolCall&, cudaStream_t);
// The adjoint: x is written, from gradients of the pools.
cudaError_t pool_pyramid_backward(const PoolCall&, cudaStream_t);

// ---- merge_pyramid ----

// A plane of n x c that is up-sampled to that of x: see Aligned.
struct Branch {
  int64_t h, w;
  Tensor tensor;  // of x's type
};

struct MergeCall {
  int64_t n, c, h, w;
  bool gelu;
  Tensor x, y;
  Tensor grad;  // read by merge_input_gradient only
  int count;
  Branch branches[kMostLevels];
};

// y = x + the branches up-sampled, and of that GELU.
cudaError_t merge_pyramid(const MergeCall&, cudaStream_t);
// y = grad times the slope of GELU at that sum, which is computed again.
cudaError_t merge_input_gradient(const MergeCall&, cudaStream_t);

// The adjoint of the up-samplings: branches are written, gathered from the gradient of the sum.
struct AdjointCall {
  int64_t n, c, h, w;
  Tensor grad;
  int count;
  Branch branches[kMostLevels];
};

// A launch for every three branches.
cudaError_t merge_branch_gradients(const AdjointCall&, cudaStream_t);

}  // namespace irnext::cuda
