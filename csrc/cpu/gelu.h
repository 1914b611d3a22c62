// The exact GELU, x Phi(x), and its derivative, Phi(x) + x phi(x), of vectors.
#pragma once

#include <cmath>
#include <initializer_list>

#include "vec.h"

namespace {

// ---- float ----

// Beyond this Phi is 0 or 1 in float.
constexpr float kPhiEnd = 5.6f;

// Phi(x) - 1/2 = x P(x^2) / Q(x^2): a minimax fit on |x| <= kPhiEnd.
IRNEXT_INLINE Vec<float> centred_phi(const Vec<float>& x) {
  const Vec<float> t = x * x;
  Vec<float> p = 1.077396911e-10f * t - 2.153269909e-8f;
  for (float coefficient : {3.192379095e-6f, 1.698447874e-4f, 4.511301016e-3f, 3.596762057e-2f, 3.989422573e-1f})
    p = p * t + coefficient;
  Vec<float> q = 6.173680291e-5f * t + 1.831208931e-3f;
  for (float coefficient : {2.911448865e-2f, 2.568231854e-1f, 1.0f}) q = q * t + coefficient;
  return x * p / q;
}

IRNEXT_INLINE Vec<float> gelu(const Vec<float>& x) {
  const Vec<float> inside = x * (0.5f + centred_phi(x));
  return x > kPhiEnd ? x : x < -kPhiEnd ? Vec<float>{} : inside;
}

// exp(x) for x in [-80, 0].
IRNEXT_INLINE Vec<float> exp_of_negative(const Vec<float>& x) {
  constexpr float log2e = 1.44269504f, ln2_high = 0x1.62e4p-1f, ln2_low = 1.42860677e-6f;
  constexpr float integer = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
  const Vec<float> shifted = x * log2e + integer, n = shifted - integer;
  const Vec<float> r = x - n * ln2_high - n * ln2_low;
  Vec<float> p = 0.00139337324f * r + 0.00836323574f;
  for (float coefficient : {0.041666463f, 0.166665763f, 0.5f}) p = p * r + coefficient;
  const Vec<float> power = 1.0f + r + r * r * p;
  BitVec bits, exponent;
  std::memcpy(&bits, &power, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  Vec<float> result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

IRNEXT_INLINE Vec<float> gelu_derivative(const Vec<float>& x) {
  constexpr float end = 12, density = 0.398942280f;  // phi(end) is nothing; 1 / sqrt(2 pi)
  const Vec<float> phi = x > kPhiEnd ? splat(1.0f) : x < -kPhiEnd ? Vec<float>{} : 0.5f + centred_phi(x);
  const Vec<float> near = x > end ? splat(end) : x < -end ? splat(-end) : x;
  return phi + near * density * exp_of_negative(-0.5f * near * near);
}

// ---- double ----

inline double phi(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752); }

IRNEXT_INLINE Vec<double> gelu(const Vec<double>& x) {
  Vec<double> y;
  for (int i = 0; i < kLanes<double>; ++i) y[i] = x[i] * phi(x[i]);
  return y;
}

IRNEXT_INLINE Vec<double> gelu_derivative(const Vec<double>& x) {
  Vec<double> y;
  for (int i = 0; i < kLanes<double>; ++i)
    y[i] = phi(x[i]) + x[i] * 0.39894228040143268 * std::exp(-0.5 * x[i] * x[i]);
  return y;
}

}  // namespace
