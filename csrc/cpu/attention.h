// The few numbers of a local attention between its means and its filter (Eq. 3-7 as published), and their
// gradients: A = activation(BN(W m)), kernel = l (1 + s) A + (1 + h) [centre tap], bias = -l s m.
// Arrays are dense: mean (n, c), logits and attention (n, groups * taps), kernel (n, c, taps).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "irnext/tensor.h"

namespace irnext::cpu {

struct AttentionShape {
  int64_t c, groups, taps;
  Activation activation;
  bool training;  // normalise by the statistics of the batch
  double eps;

  int64_t logits() const { return groups * taps; }
};

template <class A>
struct AttentionParameters {
  const A *weight;                   // W (logits, c)
  const A *norm_weight, *norm_bias;  // (logits)
  const A *low, *inner, *high;       // l, s, h (c)
};

// Gradients of the parameters: sums over the samples, which are added in their order.
template <class A>
struct AttentionGradients {
  A *weight, *norm_weight, *norm_bias, *low, *inner, *high;
};

// Summed in S.
template <class S, class A>
S dot(const A* a, const A* b, int64_t count) {
  constexpr int64_t lanes = 16;
  S sums[lanes] = {}, total = 0;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) sums[k] += S(a[i + k]) * S(b[i + k]);
  for (; i < count; ++i) sums[i % lanes] += S(a[i]) * S(b[i]);
  for (int64_t k = 0; k < lanes; ++k) total += sums[k];
  return total;
}

template <class A>
void add_multiple(A factor, const A* __restrict__ from, int64_t count, A* __restrict__ to) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// The mean and the biased variance of logit o over the batch.
struct Statistics {
  double mean, variance;
};
inline Statistics batch_statistics(int64_t n, int64_t outputs, int64_t o, const double* logits) {
  double total = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) total += logits[i * outputs + o];
  const double mean = total / double(n);
  for (int64_t i = 0; i < n; ++i) {
    const double deviation = logits[i * outputs + o] - mean;
    squares += deviation * deviation;
  }
  return {mean, squares / double(n)};
}

// In place: logits become attention.
template <class A>
void activate(const AttentionShape& s, int64_t n, A* logits) {
  for (int64_t row = 0; row < n * s.groups; ++row, logits += s.taps) {
    if (s.activation == Activation::tanh) {
      for (int64_t t = 0; t < s.taps; ++t) logits[t] = std::tanh(logits[t]);
    } else if (s.activation == Activation::sigmoid) {
      for (int64_t t = 0; t < s.taps; ++t) logits[t] = 1 / (1 + std::exp(-logits[t]));
    } else {
      A largest = logits[0], total = 0;
      for (int64_t t = 1; t < s.taps; ++t) largest = std::fmax(largest, logits[t]);
      for (int64_t t = 0; t < s.taps; ++t) total += logits[t] = std::exp(logits[t] - largest);
      for (int64_t t = 0; t < s.taps; ++t) logits[t] /= total;
    }
  }
}

// What the means of some samples predict, with what the gradients need of it.
template <class A>
class Prediction {
 public:
  // In training the samples are the batch, and the statistics its own: a batch of few samples can have a
  // variance that is small beside the logits, so there all is in double. Else they are given.
  Prediction(const AttentionShape& s, const AttentionParameters<A>& p, int64_t n, const A* mean,
             const A* logit_mean, const A* logit_variance)
      : s_(s), p_(p), n_(n), mean_(mean), attention_(n * s.logits()), normal_(n * s.logits()), scale_(s.logits()) {
    const int64_t outputs = s.logits();
    std::vector<double> logits(n * outputs);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t o = 0; o < outputs; ++o) {
        const A *m = mean + i * s.c, *w = p.weight + o * s.c;
        logits[i * outputs + o] = s.training ? dot<double>(m, w, s.c) : double(dot<A>(m, w, s.c));
      }
    for (int64_t o = 0; o < outputs; ++o) {
      const Statistics found = s.training ? batch_statistics(n, outputs, o, logits.data())
                                          : Statistics{double(logit_mean[o]), double(logit_variance[o])};
      if (s.training) statistics_.push_back(found);
      const double deviation = 1 / std::sqrt(found.variance + s.eps);
      scale_[o] = A(double(p.norm_weight[o]) * deviation);
      for (int64_t i = 0; i < n; ++i) {
        const double normal = (logits[i * outputs + o] - found.mean) * deviation;
        normal_[i * outputs + o] = A(normal);
        attention_[i * outputs + o] = A(normal * double(p.norm_weight[o]) + double(p.norm_bias[o]));
      }
    }
    activate(s, n, attention_.data());
  }

  // Of the batch, in training.
  const std::vector<Statistics>& statistics() const { return statistics_; }

  // kernel (n, c, taps); bias (n, c) may be null.
  void filter(A* kernel, A* bias) const {
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t c = 0; c < s_.c; ++c, kernel += s_.taps) {
        const A* taps = attention(i, c);
        const A scale = p_.low[c] * (1 + p_.inner[c]);
        for (int64_t t = 0; t < s_.taps; ++t) kernel[t] = scale * taps[t];
        kernel[s_.taps / 2] += 1 + p_.high[c];
        if (bias) bias[i * s_.c + c] = -p_.low[c] * p_.inner[c] * mean_[i * s_.c + c];
      }
  }

  // From the sums that the filter's gradient consists of: `tap_sums` (n, c, taps) of grad * shifted x, and
  // `low_sums` (n, c) of grad * the low-pass term m, which is `grad_sums` * mean where m is the plane's mean.
  // Adds to the parameters' gradients, and gives the mean's own, without that of the low-pass term.
  void backward(const double* tap_sums, const double* low_sums, const AttentionGradients<A>& g, A* dmean) const {
    const int64_t outputs = s_.logits();
    std::vector<A> dlogits(n_ * outputs);
    for (int64_t i = 0; i < n_; ++i) {
      std::vector<double> dattention(outputs);
      for (int64_t c = 0; c < s_.c; ++c) {
        const int64_t plane = i * s_.c + c;
        const double l = double(p_.low[c]), one_plus_s = 1 + double(p_.inner[c]), low_sum = low_sums[plane];
        const double* sums = tap_sums + plane * s_.taps;
        const A* taps = attention(i, c);
        double* group = &dattention[c / (s_.c / s_.groups) * s_.taps];
        double response = 0;
        for (int64_t t = 0; t < s_.taps; ++t) {
          response += double(taps[t]) * sums[t];
          group[t] += l * one_plus_s * sums[t];
        }
        g.low[c] += A(one_plus_s * response - double(p_.inner[c]) * low_sum);
        g.inner[c] += A(l * (response - low_sum));
        g.high[c] += A(sums[s_.taps / 2]);
      }
      through_activation(&attention_[i * outputs], dattention.data(), &dlogits[i * outputs]);
    }
    through_normalisation(dlogits.data(), g);
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t o = 0; o < outputs; ++o) {
        const A d = dlogits[i * outputs + o];
        add_multiple(d, mean_ + i * s_.c, s_.c, g.weight + o * s_.c);
        add_multiple(d, p_.weight + o * s_.c, s_.c, dmean + i * s_.c);
      }
  }

 private:
  const A* attention(int64_t i, int64_t c) const {
    return &attention_[i * s_.logits() + c / (s_.c / s_.groups) * s_.taps];
  }

  void through_activation(const A* attention, const double* dattention, A* dlogits) const {
    for (int64_t group = 0; group < s_.groups; ++group) {
      double along = 0;
      if (s_.activation == Activation::softmax)
        for (int64_t t = 0; t < s_.taps; ++t) along += double(attention[t]) * dattention[t];
      for (int64_t t = 0; t < s_.taps; ++t) {
        const double a = double(attention[t]), d = dattention[t];
        switch (s_.activation) {
          case Activation::tanh: dlogits[t] = A(d * (1 - a * a)); break;
          case Activation::sigmoid: dlogits[t] = A(d * a * (1 - a)); break;
          case Activation::softmax: dlogits[t] = A(a * (d - along)); break;
        }
      }
      attention += s_.taps;
      dattention += s_.taps;
      dlogits += s_.taps;
    }
  }

  // From the gradient of BN(z) that of z, in place.
  void through_normalisation(A* d, const AttentionGradients<A>& g) const {
    const int64_t outputs = s_.logits();
    for (int64_t o = 0; o < outputs; ++o) {
      double along = 0, total = 0;
      for (int64_t i = 0; i < n_; ++i) {
        along += double(d[i * outputs + o]) * double(normal_[i * outputs + o]);
        total += double(d[i * outputs + o]);
      }
      g.norm_weight[o] += A(along);
      g.norm_bias[o] += A(total);
      const double mean = s_.training ? total / double(n_) : 0, slope = s_.training ? along / double(n_) : 0;
      for (int64_t i = 0; i < n_; ++i) {
        A& here = d[i * outputs + o];
        here = A(double(scale_[o]) * (double(here) - mean - double(normal_[i * outputs + o]) * slope));
      }
    }
  }

  const AttentionShape s_;
  const AttentionParameters<A> p_;
  const int64_t n_;
  const A* mean_;
  std::vector<A> attention_, normal_, scale_;  // normal: the logits before BN's weight and bias
  std::vector<Statistics> statistics_;
};

// running += momentum * (batch - running), the variance made unbiased for `count` samples.
template <class R, class B>
void update_running(R* running, int64_t stride, const B* batch, int64_t size, double momentum, double correction) {
  for (int64_t i = 0; i < size; ++i) {
    R& value = running[i * stride];
    value = R(double(value) + momentum * (correction * double(batch[i]) - double(value)));
  }
}

}  // namespace irnext::cpu
