// The few numbers of one local attention between its logits and its filter (Eq. 3-7 as published):
// A = activation(logits), kernel = l (1 + s) A + (1 + h) [centre tap], bias = -l s m, and the gradients.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace irnext::cpu {

enum class Activation : int { tanh, sigmoid, softmax };

struct FilterShape {
  int64_t n, c, groups, taps;
  Activation activation;
};

// logits and attention (n, groups, taps).
template <class A>
void activate(const FilterShape& s, const A* logits, A* attention) {
  for (int64_t row = 0; row < s.n * s.groups; ++row, logits += s.taps, attention += s.taps) {
    if (s.activation == Activation::tanh) {
      for (int64_t t = 0; t < s.taps; ++t) attention[t] = std::tanh(logits[t]);
    } else if (s.activation == Activation::sigmoid) {
      for (int64_t t = 0; t < s.taps; ++t) attention[t] = 1 / (1 + std::exp(-logits[t]));
    } else {
      A largest = logits[0], total = 0;
      for (int64_t t = 1; t < s.taps; ++t) largest = std::fmax(largest, logits[t]);
      for (int64_t t = 0; t < s.taps; ++t) total += attention[t] = std::exp(logits[t] - largest);
      for (int64_t t = 0; t < s.taps; ++t) attention[t] /= total;
    }
  }
}

// mean, bias (n, c); low, inner, high (c); kernel (n, c, taps).
template <class A>
void modulated_filter(const FilterShape& s, const A* logits, const A* mean, const A* low, const A* inner,
                      const A* high, A* kernel, A* bias) {
  std::vector<A> attention(s.n * s.groups * s.taps);
  activate(s, logits, attention.data());
  const int64_t shared = s.c / s.groups;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c) {
      const int64_t plane = n * s.c + c;
      const A* taps = &attention[(n * s.groups + c / shared) * s.taps];
      const A scale = low[c] * (1 + inner[c]);
      for (int64_t t = 0; t < s.taps; ++t) kernel[plane * s.taps + t] = scale * taps[t];
      kernel[plane * s.taps + s.taps / 2] += 1 + high[c];
      bias[plane] = -low[c] * inner[c] * mean[plane];
    }
}

// From the gradients of kernel and bias those of all inputs, in the inputs' shapes.
template <class A>
void modulated_filter_backward(const FilterShape& s, const A* dkernel, const A* dbias, const A* logits, const A* mean,
                               const A* low, const A* inner, A* dlogits, A* dmean, A* dlow, A* dinner, A* dhigh) {
  std::vector<A> attention(s.n * s.groups * s.taps);
  activate(s, logits, attention.data());
  const int64_t shared = s.c / s.groups;
  for (int64_t c = 0; c < s.c; ++c) dlow[c] = dinner[c] = dhigh[c] = 0;
  for (int64_t i = 0; i < s.n * s.groups * s.taps; ++i) dlogits[i] = 0;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c) {
      const int64_t plane = n * s.c + c, group = (n * s.groups + c / shared) * s.taps;
      const A* gradient = dkernel + plane * s.taps;
      const A scale = low[c] * (1 + inner[c]), offset = mean[plane] * dbias[plane];
      A response = 0;
      for (int64_t t = 0; t < s.taps; ++t) {
        response += attention[group + t] * gradient[t];
        dlogits[group + t] += scale * gradient[t];
      }
      dlow[c] += (1 + inner[c]) * response - inner[c] * offset;
      dinner[c] += low[c] * (response - offset);
      dhigh[c] += gradient[s.taps / 2];
      dmean[plane] = -low[c] * inner[c] * dbias[plane];
    }
  for (int64_t row = 0; row < s.n * s.groups; ++row) {
    const A* a = &attention[row * s.taps];
    A* d = dlogits + row * s.taps;
    switch (s.activation) {
      case Activation::tanh:
        for (int64_t t = 0; t < s.taps; ++t) d[t] *= 1 - a[t] * a[t];
        break;
      case Activation::sigmoid:
        for (int64_t t = 0; t < s.taps; ++t) d[t] *= a[t] * (1 - a[t]);
        break;
      case Activation::softmax: {
        A along = 0;
        for (int64_t t = 0; t < s.taps; ++t) along += a[t] * d[t];
        for (int64_t t = 0; t < s.taps; ++t) d[t] = a[t] * (d[t] - along);
      }
    }
  }
}

}  // namespace irnext::cpu
