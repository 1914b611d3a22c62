// The gradient of merge_pyramid with respect to x.
#include "irnext/cuda/pyramid_merge.cuh"

namespace irnext::cuda {

cudaError_t merge_input_gradient(const MergeCall& call, cudaStream_t stream) {
  return launch_merge<true>(call, stream);
}

}  // namespace irnext::cuda
