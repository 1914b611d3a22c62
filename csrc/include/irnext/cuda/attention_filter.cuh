// The local attention between its passes over the image: kernels on a few numbers, one block for each group.
// Blocks of kFilterThreads threads; every sum is taken in an order that depends on the shape alone.
#pragma once

#include <math.h>

#include "irnext/cuda/attention.h"
#include "irnext/cuda/execution.h"

namespace irnext::cuda {

constexpr int kFilterThreads = 256, kFilterWarps = kFilterThreads / 32;
constexpr int kTileBytes = 32768;  // of shared memory, for plane means
constexpr int kClusterMost = 8;    // the largest size that every device with clusters has

template <class A>
struct Parameters {
  const A *weight, *norm_weight, *norm_bias, *logit_mean, *logit_var, *low, *inner, *high;

  explicit Parameters(const AttentionParameters& p)
      : weight(static_cast<const A*>(p.weight)),
        norm_weight(static_cast<const A*>(p.norm_weight)),
        norm_bias(static_cast<const A*>(p.norm_bias)),
        logit_mean(static_cast<const A*>(p.logit_mean)),
        logit_var(static_cast<const A*>(p.logit_var)),
        low(static_cast<const A*>(p.low)),
        inner(static_cast<const A*>(p.inner)),
        high(static_cast<const A*>(p.high)) {}
};

// The sum of term(0), ..., term(count - 1), block by block: rounding errors do not grow with the count.
template <class A, class Term>
__device__ A blocked_sum(int64_t count, const Term& term) {
  constexpr int64_t kBlock = 32;
  A total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    A sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += term(i);
    total += sum;
  }
  return total;
}

// The same by the lanes of a warp together; all lanes have the result.
template <class A, class Term>
__device__ A warp_total(int64_t count, const Term& term) {
  const int64_t lane = threadIdx.x % 32;
  return warp_sum(blocked_sum<A>((count - lane + 31) / 32, [&](int64_t i) { return term(lane + 32 * i); }));
}

template <class A>
__device__ A warp_largest(A value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// Writes activation(logit(t)) for the taps of one filter by write(t, value); one warp.
template <class A, class Logit, class Write>
__device__ void activate_by_warp(Activation activation, int taps, const Logit& logit, const Write& write) {
  const int lane = threadIdx.x % 32;
  if (activation == Activation::softmax) {
    A largest = -INFINITY;
    for (int t = lane; t < taps; t += 32) {
      const A value = logit(t);
      largest = value > largest ? value : largest;
    }
    largest = warp_largest(largest);
    A total = 0;
    for (int t = lane; t < taps; t += 32) total += exp(logit(t) - largest);
    total = warp_sum(total);
    for (int t = lane; t < taps; t += 32) write(t, exp(logit(t) - largest) / total);
  } else {
    for (int t = lane; t < taps; t += 32)
      write(t, activation == Activation::tanh ? tanh(logit(t)) : A(1) / (A(1) + exp(-logit(t))));
  }
}

// One group's part of the plane means' product with `weight`: logits[n, group, t] of samples [begin, end).
// mean(n, c) is called once for each number by each group.
template <class A, class Mean>
__device__ void project(const AttentionShape& s, int64_t group, int64_t begin, int64_t end, const A* weight,
                        const Mean& mean, A* logits) {
  constexpr int64_t kNumbers = kTileBytes / sizeof(A);
  Shared<A> tile = shared_array<A>(0, kNumbers);
  const int64_t warp = threadIdx.x / 32, taps = s.taps();
  const int64_t width = s.c < kNumbers ? s.c : kNumbers, chunk = kNumbers / width;
  for (int64_t c0 = 0; c0 < s.c; c0 += width) {
    const int channels = int(width < s.c - c0 ? width : s.c - c0);
    for (int64_t n0 = begin; n0 < end; n0 += chunk) {
      const int samples = int(chunk < end - n0 ? chunk : end - n0);
      for (int i = threadIdx.x; i < samples * channels; i += kFilterThreads)
        tile[i] = mean(n0 + i / channels, c0 + i % channels);
      __syncthreads();
      for (int64_t i = warp; i < samples * taps; i += kFilterWarps) {
        const int64_t n = i / taps, row = group * taps + i % taps;
        const A* weights = weight + row * s.c + c0;
        const A sum =
            warp_total<A>(channels, [&](int64_t c) { return A(tile[int(n * channels + c)]) * weights[c]; });
        if (threadIdx.x % 32 == 0) {
          A& logit = logits[(n0 + n) * s.logits() + row];
          logit = c0 == 0 ? sum : logit + sum;
        }
      }
      __syncthreads();
    }
  }
}

// BatchNorm of logit number j.
template <class A>
struct Norm {
  const A *mean, *var, *weight, *bias;
  A eps;

  __device__ A inverse_deviation(int64_t j) const { return A(1) / sqrt(var[j] + eps); }
  __device__ A standard(int64_t j, A logit) const { return (logit - mean[j]) * inverse_deviation(j); }
  __device__ A operator()(int64_t j, A logit) const { return standard(j, logit) * weight[j] + bias[j]; }
};

// attention[n, group, t] of samples [begin, end) from the logits before BatchNorm; both (n, groups * taps),
// and may be one array.
template <class A>
__device__ void attend(const AttentionShape& s, int64_t group, int64_t begin, int64_t end, const Norm<A>& norm,
                       const A* logits, A* attention) {
  const int64_t first = group * s.taps();
  for (int64_t n = begin + threadIdx.x / 32; n < end; n += kFilterWarps) {
    const A* row = logits + n * s.logits() + first;
    A* out = attention + n * s.logits() + first;
    activate_by_warp<A>(
        s.activation, int(s.taps()), [&](int t) { return norm(first + t, row[t]); },
        [&](int t, A value) { out[t] = value; });
  }
  __syncthreads();
}

// kernel[n, c, t] = l (1 + s) attention + (1 + h) [centre] for the group's channels.
template <class A>
__device__ void modulate(const AttentionShape& s, int64_t group, int64_t begin, int64_t end, const Parameters<A>& p,
                         const A* attention, A* kernel) {
  const int64_t shared = s.c / s.groups, taps = s.taps(), numbers = shared * taps;
  for (int64_t i = threadIdx.x; i < (end - begin) * numbers; i += kFilterThreads) {
    const int64_t n = begin + i / numbers, c = group * shared + i % numbers / taps, t = i % taps;
    const A value = p.low[c] * (1 + p.inner[c]) * attention[n * s.logits() + group * taps + t];
    kernel[(n * s.c + c) * taps + t] = t == taps / 2 ? value + (1 + p.high[c]) : value;
  }
}

// ---- forward ----

template <class A>
struct PredictArguments {
  AttentionShape s;
  Parameters<A> p;
  int64_t splits;
  const A* partial;
  A *logits, *mean, *kernel, *offset, *batch_mean, *batch_var;
};

// The batch's mean and biased variance of the group's logits.
template <class A>
__device__ void batch_statistics(const PredictArguments<A>& a, int64_t group) {
  const AttentionShape& s = a.s;
  for (int64_t j = group * s.taps() + threadIdx.x / 32; j < (group + 1) * s.taps(); j += kFilterWarps) {
    const A* logit = a.logits + j;
    const A mean = warp_total<A>(s.n, [&](int64_t n) { return logit[n * s.logits()]; }) / A(s.n);
    const A var = warp_total<A>(s.n, [&](int64_t n) {
                    const A difference = logit[n * s.logits()] - mean;
                    return difference * difference;
                  }) / A(s.n);
    if (threadIdx.x % 32 == 0) {
      a.batch_mean[j] = mean;
      a.batch_var[j] = var;
    }
  }
  __syncthreads();
}

// One block: one group, and in evaluation one sample.
template <class A>
__global__ void __launch_bounds__(kFilterThreads, 1) predict_filter_kernel(PredictArguments<A> a) {
  const AttentionShape& s = a.s;
  const int64_t group = blockIdx.x % s.groups, sample = blockIdx.x / s.groups;
  const int64_t begin = s.training ? 0 : sample, end = s.training ? s.n : sample + 1;
  const int64_t shared = s.c / s.groups;
  const A pixels = A(s.h * s.w);
  project(
      s, group, begin, end, a.p.weight,
      [&](int64_t n, int64_t c) {
        const A* sums = a.partial + n * s.c + c;
        const A mean = blocked_sum<A>(a.splits, [&](int64_t i) { return sums[i * s.n * s.c]; }) / pixels;
        if (c / shared == group) a.mean[n * s.c + c] = mean;
        return mean;
      },
      a.logits);
  if (s.training) batch_statistics(a, group);
  const Norm<A> norm{s.training ? a.batch_mean : a.p.logit_mean, s.training ? a.batch_var : a.p.logit_var,
                     a.p.norm_weight, a.p.norm_bias, A(s.eps)};
  attend(s, group, begin, end, norm, a.logits, a.logits);
  modulate(s, group, begin, end, a.p, a.logits, a.kernel);
  for (int64_t i = threadIdx.x; i < (end - begin) * shared; i += kFilterThreads) {
    const int64_t c = group * shared + i % shared, plane = (begin + i / shared) * s.c + c;
    const A scale = -a.p.low[c] * a.p.inner[c];
    a.offset[plane] = s.window ? scale : scale * a.mean[plane];
  }
}

// ---- backward ----

template <class A>
struct PredictGradientArguments {
  AttentionShape s;
  Parameters<A> p;
  int64_t splits, offset_splits;
  const A* mean;
  A *tap_sums, *offset_sums;                // after finish_sums_of the first split holds the sums
  A *logits, *attention, *gradient;         // (n, groups * taps); gradient: of attention, then of the logits
  A *kernel, *scale, *plane;
  A *dweight, *dnorm_weight, *dnorm_bias, *dlow, *dinner, *dhigh;
};

// Adds up the splits of (splits, n, c, width) partial sums of the group's channels, into the first.
template <class A>
__device__ void finish_sums_of(const AttentionShape& s, int64_t group, int64_t splits, int64_t width, A* partial) {
  if (splits == 1) return;
  const int64_t shared = s.c / s.groups, row = shared * width, stride = s.n * s.c * width;
  for (int64_t i = threadIdx.x; i < s.n * row; i += kFilterThreads) {
    A* sums = partial + (i / row * s.groups + group) * row + i % row;
    *sums = blocked_sum<A>(splits, [&](int64_t split) { return sums[split * stride]; });
  }
  __syncthreads();
}

// dlow, dinner and dhigh of the group's channels; a warp for each.
template <class A>
__device__ void gain_gradients(const PredictGradientArguments<A>& a, int64_t group) {
  const AttentionShape& s = a.s;
  const int64_t shared = s.c / s.groups, taps = s.taps();
  for (int64_t c = group * shared + threadIdx.x / 32; c < (group + 1) * shared; c += kFilterWarps) {
    const A response = warp_total<A>(s.n, [&](int64_t n) {
      const A* attention = a.attention + n * s.logits() + group * taps;
      const A* sums = a.tap_sums + (n * s.c + c) * taps;
      return blocked_sum<A>(taps, [&](int64_t t) { return attention[t] * sums[t]; });
    });
    const A offset = warp_total<A>(s.n, [&](int64_t n) {
      const A sum = a.offset_sums[n * s.c + c];
      return s.window ? sum : sum * a.mean[n * s.c + c];
    });
    const A centre = warp_total<A>(s.n, [&](int64_t n) { return a.tap_sums[(n * s.c + c) * taps + taps / 2]; });
    if (threadIdx.x % 32 == 0) {
      a.dlow[c] = (1 + a.p.inner[c]) * response - a.p.inner[c] * offset;
      a.dinner[c] = a.p.low[c] * (response - offset);
      a.dhigh[c] = centre;
    }
  }
}

// The gradient of the group's attention, then through the activation; a warp for each sample.
template <class A>
__device__ void activation_gradients(const PredictGradientArguments<A>& a, int64_t group) {
  const AttentionShape& s = a.s;
  const int64_t shared = s.c / s.groups, taps = s.taps(), lane = threadIdx.x % 32;
  for (int64_t n = threadIdx.x / 32; n < s.n; n += kFilterWarps) {
    const int64_t row = n * s.logits() + group * taps;
    A along = 0;
    for (int64_t t = lane; t < taps; t += 32) {
      const A gradient = blocked_sum<A>(shared, [&](int64_t i) {
        const int64_t c = group * shared + i;
        return a.p.low[c] * (1 + a.p.inner[c]) * a.tap_sums[(n * s.c + c) * taps + t];
      });
      a.gradient[row + t] = gradient;
      along += a.attention[row + t] * gradient;
    }
    along = warp_sum(along);
    for (int64_t t = lane; t < taps; t += 32) {
      const A value = a.attention[row + t], gradient = a.gradient[row + t];
      a.gradient[row + t] = s.activation == Activation::tanh      ? gradient * (1 - value * value)
                            : s.activation == Activation::sigmoid ? gradient * (value * (1 - value))
                                                                  : value * (gradient - along);
    }
  }
  __syncthreads();
}

// Through the group's BatchNorm: dnorm_weight, dnorm_bias, and the gradient of the logits before it.
template <class A>
__device__ void norm_gradients(const PredictGradientArguments<A>& a, int64_t group, const Norm<A>& norm) {
  const AttentionShape& s = a.s;
  const int64_t width = s.logits();
  for (int64_t j = group * s.taps() + threadIdx.x / 32; j < (group + 1) * s.taps(); j += kFilterWarps) {
    const A *logit = a.logits + j, inverse = norm.inverse_deviation(j);
    A* gradient = a.gradient + j;
    const A sum = warp_total<A>(s.n, [&](int64_t n) { return gradient[n * width]; });
    const A product = warp_total<A>(
        s.n, [&](int64_t n) { return gradient[n * width] * norm.standard(j, logit[n * width]); });
    if (threadIdx.x % 32 == 0) {
      a.dnorm_bias[j] = sum;
      a.dnorm_weight[j] = product;
    }
    for (int64_t n = threadIdx.x % 32; n < s.n; n += 32) {
      A value = gradient[n * width];
      if (s.training) value -= sum / A(s.n) + norm.standard(j, logit[n * width]) * (product / A(s.n));
      gradient[n * width] = value * norm.weight[j] * inverse;
    }
  }
  __syncthreads();
}

template <class A>
__device__ void group_gradients(const PredictGradientArguments<A>& a, int64_t group) {
  const AttentionShape& s = a.s;
  const int64_t shared = s.c / s.groups, taps = s.taps();
  project(s, group, 0, s.n, a.p.weight, [&](int64_t n, int64_t c) { return a.mean[n * s.c + c]; }, a.logits);
  const Norm<A> norm{a.p.logit_mean, a.p.logit_var, a.p.norm_weight, a.p.norm_bias, A(s.eps)};
  attend(s, group, 0, s.n, norm, a.logits, a.attention);
  modulate(s, group, 0, s.n, a.p, a.attention, a.kernel);
  finish_sums_of(s, group, a.splits, taps, a.tap_sums);
  finish_sums_of(s, group, a.offset_splits, 1, a.offset_sums);
  gain_gradients(a, group);
  activation_gradients(a, group);
  norm_gradients(a, group, norm);
  for (int64_t i = threadIdx.x; i < taps * s.c; i += kFilterThreads) {
    const int64_t j = group * taps + i / s.c, c = i % s.c;
    a.dweight[j * s.c + c] =
        blocked_sum<A>(s.n, [&](int64_t n) { return a.gradient[n * s.logits() + j] * a.mean[n * s.c + c]; });
  }
  if (s.window)
    for (int64_t i = threadIdx.x; i < s.n * shared; i += kFilterThreads) {
      const int64_t c = group * shared + i % shared;
      a.scale[i / shared * s.c + c] = -a.p.low[c] * a.p.inner[c];
    }
}

// The constant that each plane of dx receives through its mean, for planes `first`, `first + step`, ...; needs the
// gradients of all groups.
template <class A>
__device__ void plane_gradients(const PredictGradientArguments<A>& a, int64_t first, int64_t step) {
  const AttentionShape& s = a.s;
  for (int64_t plane = first; plane < s.n * s.c; plane += step) {
    const int64_t n = plane / s.c, c = plane % s.c;
    A sum = blocked_sum<A>(
        s.logits(), [&](int64_t j) { return a.gradient[n * s.logits() + j] * a.p.weight[j * s.c + c]; });
    if (!s.window) sum -= a.p.low[c] * a.p.inner[c] * a.offset_sums[plane];
    a.plane[plane] = sum / A(s.h * s.w);
  }
}

// One cluster does it all: its blocks take the groups in turn.
template <class A>
__global__ void __launch_bounds__(kFilterThreads, 1) predict_filter_backward_kernel(PredictGradientArguments<A> a) {
  for (int64_t group = cluster_rank(); group < a.s.groups; group += cluster_size()) group_gradients(a, group);
  cluster_sync();
  plane_gradients(a, int64_t(cluster_rank()) * kFilterThreads + threadIdx.x, int64_t(cluster_size()) * kFilterThreads);
}

// Without clusters: a block for each group, then any number of blocks.
template <class A>
__global__ void __launch_bounds__(kFilterThreads, 1) group_gradients_kernel(PredictGradientArguments<A> a) {
  group_gradients(a, blockIdx.x);
}

template <class A>
__global__ void __launch_bounds__(kFilterThreads, 1) plane_gradients_kernel(PredictGradientArguments<A> a) {
  plane_gradients(a, int64_t(blockIdx.x) * kFilterThreads + threadIdx.x, int64_t(gridDim.x) * kFilterThreads);
}

// ---- running statistics ----

template <class T, class A>
struct StatisticsArguments {
  int64_t numbers;
  const A *mean, *var;
  T *running_mean, *running_var;
  int64_t mean_stride, var_stride;
  int64_t* batches;
  bool cumulative;
  A momentum, unbiased;
};

template <class T, class A>
__global__ void __launch_bounds__(kFilterThreads, 1) update_statistics_kernel(StatisticsArguments<T, A> a) {
  const int64_t batches = *a.batches + 1;
  const A factor = a.cumulative ? A(1) / A(batches) : a.momentum;
  const auto update = [&](T& running, A batch) {
    const A before = A(widen(running));
    running = narrow<T>(Acc<T>(before + factor * (batch - before)));
  };
  for (int64_t i = threadIdx.x; i < a.numbers; i += kFilterThreads) {
    update(a.running_mean[i * a.mean_stride], a.mean[i]);
    update(a.running_var[i * a.var_stride], a.var[i] * a.unbiased);
  }
  __syncthreads();  // all have read the number of batches
  if (threadIdx.x == 0) *a.batches = batches;
}

}  // namespace irnext::cuda
