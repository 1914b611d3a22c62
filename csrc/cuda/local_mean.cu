#include "irnext/cuda/local_mean.cuh"

namespace irnext::cuda {

namespace {

// Not below the window: a segment's first sum costs no more than the rest of it.
constexpr int64_t kLeastSegment = 64;

template <class T>
Lines<T> lines_of(const Tensor& tensor, bool along_h) {
  const Strides& s = tensor.strides;
  return {static_cast<T*>(tensor.data), s.n, s.c, along_h ? s.h : s.w, along_h ? s.w : s.h};
}

// The window mean along one dimension, from `in` to `out`.
template <class In, class Out>
cudaError_t along(const LocalMeanCall& call, bool along_h, const Tensor& in, const Tensor& out, cudaStream_t stream) {
  const Box box{along_h ? call.h : call.w, along_h ? call.rows : call.columns};
  SweepArguments<In, Out> a{{box, call.adjoint},
                          call.n,
                          call.c,
                          along_h ? call.w : call.h,
                          call.c > 1 && in.strides.c < in.strides.w,
                          box.width > kLeastSegment ? box.width : kLeastSegment,
                          lines_of<const In>(in, along_h),
                          lines_of<Out>(out, along_h)};
  const int64_t lines = a.n * a.c * a.across;
  LaunchConfig config;
  const int64_t line_bytes = (box.size + 1) * int64_t(sizeof(double));
  if (!along_h && !a.channels_first && line_bytes <= kRowBytes) {
    const int64_t fitting = kRowBytes / line_bytes, warps = fitting < kLocalMeanWarps ? fitting : kLocalMeanWarps;
    config.shared_bytes = size_t(warps * line_bytes);
    const cudaError_t error = grid_of((lines + warps - 1) / warps, int(warps) * 32, &config);
    return error == cudaSuccess ? launch(scan_kernel<In, Out>, config, stream, a) : error;
  }
  const int64_t items = (box.size + a.segment - 1) / a.segment * lines;
  const cudaError_t error =
      grid_of((items + kLocalMeanThreads - 1) / kLocalMeanThreads, kLocalMeanThreads, &config);
  return error == cudaSuccess ? launch(march_kernel<In, Out>, config, stream, a) : error;
}

}  // namespace

cudaError_t local_mean(const LocalMeanCall& call, cudaStream_t stream) {
  if (call.n * call.c * call.h * call.w == 0) return cudaSuccess;
  return by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    const cudaError_t error = along<T, Acc<T>>(call, true, call.x, call.between, stream);
    return error == cudaSuccess ? along<Acc<T>, T>(call, false, call.between, call.y, stream) : error;
  });
}

}  // namespace irnext::cuda
