#include "irnext/cuda/attention_filter.cuh"

namespace irnext::cuda {

namespace {

template <class Body>
cudaError_t by_wide(Type wide, const Body& body) {
  return wide == Type::f64 ? body(double{}) : body(float{});
}

// Groups that one block of a cluster may have to take in turn.
constexpr int64_t kMostTurns = 2;

}  // namespace

cudaError_t compiled_capability(int* capability) {
#if defined(IRNEXT_CUDA_HOST)
  Device device;
  const cudaError_t error = current_device(&device);
  *capability = device.capability;
#else
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, predict_filter_kernel<float>);
  *capability = attributes.ptxVersion;
#endif
  return error;
}

cudaError_t predict_filter(const PredictCall& call, cudaStream_t stream) {
  if (call.shape.n == 0) return cudaSuccess;
  LaunchConfig config;
  config.shared_bytes = kTileBytes;
  const int64_t blocks = call.shape.groups * (call.shape.training ? 1 : call.shape.n);
  const cudaError_t error = grid_of(blocks, kFilterThreads, &config);
  if (error != cudaSuccess) return error;
  return by_wide(call.wide, [&](auto number) {
    using A = decltype(number);
    const PredictArguments<A> arguments{call.shape,
                                        Parameters<A>(call.parameters),
                                        call.splits,
                                        static_cast<const A*>(call.partial),
                                        static_cast<A*>(call.logits),
                                        static_cast<A*>(call.mean),
                                        static_cast<A*>(call.kernel),
                                        static_cast<A*>(call.offset),
                                        static_cast<A*>(call.batch_mean),
                                        static_cast<A*>(call.batch_var)};
    return launch(predict_filter_kernel<A>, config, stream, arguments);
  });
}

cudaError_t predict_filter_backward(const PredictGradientCall& call, const Device& device, cudaStream_t stream) {
  const AttentionShape& s = call.shape;
  return by_wide(call.wide, [&](auto number) {
    using A = decltype(number);
    const int64_t rows = s.n * s.logits(), planes = s.n * s.c;
    A* const workspace = static_cast<A*>(call.workspace);
    const PredictGradientArguments<A> arguments{s,
                                                Parameters<A>(call.parameters),
                                                call.splits,
                                                call.offset_splits,
                                                static_cast<const A*>(call.mean),
                                                static_cast<A*>(call.tap_partial),
                                                static_cast<A*>(call.offset_partial),
                                                workspace,
                                                workspace + rows,
                                                workspace + 2 * rows,
                                                static_cast<A*>(call.kernel),
                                                static_cast<A*>(call.scale),
                                                static_cast<A*>(call.plane),
                                                static_cast<A*>(call.dweight),
                                                static_cast<A*>(call.dnorm_weight),
                                                static_cast<A*>(call.dnorm_bias),
                                                static_cast<A*>(call.dlow),
                                                static_cast<A*>(call.dinner),
                                                static_cast<A*>(call.dhigh)};
    LaunchConfig config;
    config.shared_bytes = kTileBytes;
    if (device.capability >= 90 && s.groups <= kMostTurns * kClusterMost) {
      while (2 * config.cluster <= kClusterMost && 2 * config.cluster <= s.groups) config.cluster *= 2;
      const cudaError_t error = grid_of(config.cluster, kFilterThreads, &config);
      return error == cudaSuccess ? launch(predict_filter_backward_kernel<A>, config, stream, arguments) : error;
    }
    cudaError_t error = grid_of(s.groups, kFilterThreads, &config);
    if (error == cudaSuccess) error = launch(group_gradients_kernel<A>, config, stream, arguments);
    config.shared_bytes = 0;
    if (error == cudaSuccess) error = grid_of((planes + kFilterThreads - 1) / kFilterThreads, kFilterThreads, &config);
    return error == cudaSuccess ? launch(plane_gradients_kernel<A>, config, stream, arguments) : error;
  });
}

cudaError_t update_statistics(const StatisticsCall& call, cudaStream_t stream) {
  LaunchConfig config;
  const cudaError_t error = grid_of(1, kFilterThreads, &config);
  if (error != cudaSuccess) return error;
  return by_wide(call.wide, [&](auto number) {
    return by_type(call.running, [&](auto element) {
      using A = decltype(number);
      using T = decltype(element);
      const StatisticsArguments<T, A> arguments{call.numbers,
                                                static_cast<const A*>(call.mean),
                                                static_cast<const A*>(call.var),
                                                static_cast<T*>(call.running_mean),
                                                static_cast<T*>(call.running_var),
                                                call.mean_stride,
                                                call.var_stride,
                                                call.batches,
                                                call.cumulative,
                                                A(call.momentum),
                                                A(double(call.count) / double(call.count - 1))};
      return launch(update_statistics_kernel<T, A>, config, stream, arguments);
    });
  });
}

}  // namespace irnext::cuda
