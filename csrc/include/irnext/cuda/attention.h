// The local attention beside its passes over the image: the few numbers between the passes, and a small
// image in one launch. Like operators.h: nothing allocates or synchronises. "Wide" is the accumulation type,
// double for f64 and float for all others; all wide arrays are contiguous.
#pragma once

#include "irnext/cuda/operators.h"

namespace irnext::cuda {

struct AttentionShape {
  int64_t n, c, h, w, groups, kh, kw;
  Activation activation;
  bool training;  // normalise the logits by the batch's statistics
  bool window;    // subtract the local mean instead of the plane's
  double eps;

  IRNEXT_HOST_DEVICE int64_t taps() const { return kh * kw; }
  IRNEXT_HOST_DEVICE int64_t logits() const { return groups * taps(); }
};

// Wide.
struct AttentionParameters {
  const void* weight;                       // (groups * taps, c)
  const void *norm_weight, *norm_bias;      // (groups * taps)
  const void *logit_mean, *logit_var;       // (groups * taps); not read by predict_filter in training
  const void *low, *inner, *high;           // (c)
};

// From the partial sums of mean_partials to the filter.
struct PredictCall {
  AttentionShape shape;
  AttentionParameters parameters;
  Type wide;
  int64_t splits;
  const void* partial;             // (splits, n, c): sums of the planes
  void* logits;                    // workspace (n, groups * taps)
  void *mean, *kernel, *offset;    // (n, c), (n, c, taps), (n, c): the bias -l s m, or with a window its scale -l s
  void *batch_mean, *batch_var;    // (groups * taps), written in training
};
cudaError_t predict_filter(const PredictCall&, cudaStream_t);

// From the sums of filter_sums to the parameters' gradients and to what the input's gradient needs.
struct PredictGradientCall {
  AttentionShape shape;
  AttentionParameters parameters;
  Type wide;
  const void* mean;                // (n, c)
  int64_t splits, offset_splits;
  void* tap_partial;               // (splits, n, c, taps): its first split is overwritten
  void* offset_partial;            // (offset_splits, n, c): sums of grad, with a window of grad * local mean; likewise
  void* workspace;                 // 3 (n, groups * taps)
  void *kernel, *scale, *plane;    // (n, c, taps); (n, c) -l s, only with a window; (n, c) added to all of dx
  void *dweight, *dnorm_weight, *dnorm_bias, *dlow, *dinner, *dhigh;
};
// One launch where a cluster can hold a block for every few groups, else two.
cudaError_t predict_filter_backward(const PredictGradientCall&, const Device&, cudaStream_t);

// The compute capability whose instructions the kernels use on the current device: below the device's own where
// they were compiled for an older one, and then without clusters.
cudaError_t compiled_capability(int* capability);

// How the attention of one shape is launched in evaluation.
struct AttentionPlan {
  int blocks;          // that share a sample in the one launch; 0: separate launches
  bool clusters;       // the blocks exchange their means; otherwise each computes all of them
  size_t shared_bytes;
  const char* reason;
};
AttentionPlan plan_attention(const Device&, const AttentionShape&, const Tensor& x);

struct SmallAttentionCall {
  AttentionShape shape;
  AttentionParameters parameters;
  Tensor x, y;
  void* mean;  // (n, c), wide
};
// Needs plan.blocks > 0.
cudaError_t small_attention(const SmallAttentionCall&, const AttentionPlan&, cudaStream_t);

// running += factor (batch - running), the variance made unbiased; computed in the batch's type.
struct StatisticsCall {
  int64_t numbers, count;  // `count` samples made the batch's statistics
  Type wide, running;
  const void *mean, *var;  // wide
  void *running_mean, *running_var;
  int64_t mean_stride, var_stride;  // of the running ones
  int64_t* batches;
  bool cumulative;  // factor is 1 / batches, else momentum
  double momentum;
};
cudaError_t update_statistics(const StatisticsCall&, cudaStream_t);

}  // namespace irnext::cuda
