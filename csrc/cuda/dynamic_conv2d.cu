// dynamic_conv2d forward.
#include "irnext/cuda/dynamic_conv2d_filter.cuh"

namespace irnext::cuda {

cudaError_t filter(const FilterCall& call, cudaStream_t stream) {
  FilterArguments arguments = {};
  arguments.shape = call.shape;
  arguments.from = call.x;
  arguments.to = call.y;
  arguments.kernel = call.kernel;
  arguments.kernel_type = call.kernel_type;
  arguments.offset = call.offset;
  return by_type(call.x.type, [&](auto element) { return launch_filter<decltype(element), false>(arguments, stream); });
}

}  // namespace irnext::cuda
