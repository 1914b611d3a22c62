// spatial_mean.
#include "irnext/cuda/spatial_mean.cuh"

namespace irnext::cuda {

cudaError_t launch_plane_sums(SumsArguments a, cudaStream_t stream) {
  const SumsPlan& plan = a.plan;
  a.chunks = 1;
  LaunchConfig config;
  const cudaError_t error = sums_grid(a, &config);
  if (error != cudaSuccess) return error;
  return by_type(a.grad.type, [&](auto number) {
    using T = decltype(number);
    using A = Acc<T>;
    constexpr int V = 16 / int(sizeof(T));
    if (plan.by_channel) {
      config.shared_bytes = size_t(plan.pack > 1 ? team_scratch<V, A>(plan.teams) : team_scratch<1, A>(plan.teams));
      return plan.pack > 1 ? launch(&plane_sums<T, V, true>, config, stream, a)
                           : launch(&plane_sums<T, 1, true>, config, stream, a);
    }
    config.shared_bytes = size_t(team_scratch<1, A>(plan.teams));
    return plan.pack > 1 ? launch(&plane_sums<T, V, false>, config, stream, a)
                         : launch(&plane_sums<T, 1, false>, config, stream, a);
  });
}

int64_t mean_splits(const Device& device, int64_t n, int64_t c, int64_t h, int64_t w, const Tensor& x) {
  return plan_plane_sums(device, n, c, h, w, x).splits;
}

cudaError_t mean_partials(const MeanCall& call, cudaStream_t stream) {
  if (!countable(call.n, call.c, call.h, call.w)) return cudaErrorInvalidValue;
  Device device;
  const cudaError_t error = current_device(&device);
  if (error != cudaSuccess) return error;
  SumsArguments arguments = {};
  arguments.shape.n = call.n;
  arguments.shape.c = call.c;
  arguments.grad = call.x;
  arguments.plan = plan_plane_sums(device, call.n, call.c, call.h, call.w, call.x);
  arguments.plan.splits = call.splits;
  arguments.items_per_split = divided_up(arguments.plan.items, call.splits);
  arguments.grad_partial = call.partial;
  return launch_plane_sums(arguments, stream);
}

cudaError_t finish_mean(const MeanCall& call, void* mean, cudaStream_t stream) {
  const int64_t planes = call.n * call.c;
  const FinishJob job = {call.partial, mean, planes, 1, 1, planes, double(call.h * call.w)};
  return finish(job, {}, call.splits, call.x.type, stream);
}

}  // namespace irnext::cuda
