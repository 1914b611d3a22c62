// The exact GELU and its slope. In float by a fit of its own: erff would take twice as long, and with half types the
// activation is what a merge spends most of its time on.
#pragma once

#include <cmath>

#include "irnext/cuda/execution.h"

namespace irnext::cuda {

// Subnormal results are zero.
__device__ __forceinline__ float fast_exp2(float x) {
#if !defined(IRNEXT_CUDA_HOST)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// The standard normal distribution function: its tail beyond |z| is 2^q(|z|), with a polynomial q fitted on [0, 6] to
// the logarithm. The error is at most 7e-8, also times z; beyond 6 the polynomial falls without end.
__device__ __forceinline__ float normal_cdf(float z) {
  const float t = fabsf(z);
  float q = -1.3947661728e-06f;
  q = q * t + 2.2756876206e-05f;
  q = q * t - 1.1071288463e-04f;
  q = q * t - 3.0931743095e-04f;
  q = q * t + 7.2735431604e-03f;
  q = q * t - 5.2629735321e-02f;
  q = q * t - 4.5916822553e-01f;
  q = q * t - 1.1511095762f;
  q = q * t - 9.9999994040e-01f;
  const float tail = fast_exp2(q);
  return z > 0 ? 1 - tail : tail;
}
__device__ __forceinline__ double normal_cdf(double z) { return 0.5 * erfc(-0.70710678118654752440 * z); }

__device__ __forceinline__ float normal_density(float z) {
  return fast_exp2(-0.72134752044f * z * z - 1.32574806474f);  // log2(e) / 2, log2(2 pi) / 2
}
__device__ __forceinline__ double normal_density(double z) { return 0.39894228040143267794 * exp(-0.5 * z * z); }

template <class A>
__device__ __forceinline__ A gelu(A z) {
  return z * normal_cdf(z);
}

template <class A>
__device__ __forceinline__ A gelu_slope(A z) {
  return normal_cdf(z) + z * normal_density(z);
}

}  // namespace irnext::cuda
