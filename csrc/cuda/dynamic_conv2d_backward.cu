// dynamic_conv2d backward: the sums that every other gradient follows from, and the gradient of x.
#include "irnext/cuda/dynamic_conv2d_filter.cuh"
#include "irnext/cuda/dynamic_conv2d_sums.cuh"

namespace irnext::cuda {

namespace {

SumsPlan plan(const Device& device, const DynamicConvShape& s, const Tensor& x, const Tensor& grad, bool taps) {
  return taps ? plan_tap_sums(device, s, x, grad) : plan_plane_sums(device, s.n, s.c, s.h, s.w, grad);
}

}  // namespace

int64_t sum_splits(const Device& device, const DynamicConvShape& shape, const Tensor& x, const Tensor& grad) {
  return plan(device, shape, x, grad, true).splits;
}

cudaError_t filter_sums(const SumsCall& call, cudaStream_t stream) {
  if (!countable(call.shape)) return cudaErrorInvalidValue;
  if (!call.tap_partial && !call.grad_partial) return cudaSuccess;
  Device device;
  const cudaError_t error = current_device(&device);
  if (error != cudaSuccess) return error;
  SumsArguments arguments = {};
  arguments.shape = call.shape;
  arguments.x = call.x;
  arguments.grad = call.grad;
  arguments.plan = plan(device, call.shape, call.x, call.grad, call.tap_partial != nullptr);
  arguments.plan.splits = call.splits;
  arguments.items_per_split = divided_up(arguments.plan.items, call.splits);
  arguments.tap_partial = call.tap_partial;
  arguments.grad_partial = call.grad_partial;
  if (!call.tap_partial) return launch_plane_sums(arguments, stream);
  return by_type(call.grad.type, [&](auto element) { return launch_tap_sums<decltype(element)>(arguments, stream); });
}

cudaError_t finish_sums(const SumsCall& call, void* dkernel, void* grad_sum, cudaStream_t stream) {
  const DynamicConvShape& s = call.shape;
  const int64_t planes = s.n * s.c, taps = s.taps();
  FinishJob of_taps = {call.tap_partial, dkernel, planes, taps, s.c / s.groups, s.n * s.groups * taps, 1};
  FinishJob of_grad = {call.grad_partial, grad_sum, planes, 1, 1, planes, 1};
  if (!dkernel) of_taps.outputs = 0;
  if (!grad_sum) of_grad.outputs = 0;
  return finish(of_taps, of_grad, call.splits, call.grad.type, stream);
}

cudaError_t filter_input_gradient(const InputCall& call, cudaStream_t stream) {
  FilterArguments arguments = {};
  arguments.shape = call.shape;
  arguments.from = call.grad;
  arguments.to = call.dx;
  arguments.kernel = call.kernel;
  arguments.kernel_type = call.kernel_type;
  arguments.offset = call.offset;
  return by_type(call.grad.type,
                 [&](auto element) { return launch_filter<decltype(element), true>(arguments, stream); });
}

}  // namespace irnext::cuda
