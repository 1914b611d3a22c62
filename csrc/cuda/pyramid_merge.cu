// merge_pyramid.
#include "irnext/cuda/pyramid_merge.cuh"

namespace irnext::cuda {

cudaError_t merge_pyramid(const MergeCall& call, cudaStream_t stream) { return launch_merge<false>(call, stream); }

}  // namespace irnext::cuda
