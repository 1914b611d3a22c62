// Means over a window, replicate-padded back to size, and their adjoint.
#pragma once

#include "irnext/cuda/operators.h"

namespace irnext::cuda {

struct LocalMeanCall {
  int64_t n, c, h, w;
  int64_t rows, columns;  // the window, within the plane
  bool adjoint;
  Tensor x, y;
  Tensor between;  // workspace of x's sizes, wide (double for f64, else float)
};
// Two launches: along the rows' index, then along the columns'.
cudaError_t local_mean(const LocalMeanCall&, cudaStream_t);

}  // namespace irnext::cuda
