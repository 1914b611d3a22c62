// Counts the instructions of the CPU kernels, for benchmarks/instructions.py: `instructions SET [KERNEL...]`.
//
// Every kernel is called once and its results are compared with plain loops in double; if they are right, a second
// call is counted by callgrind, which writes a part of its own for it, called as the line that is printed begins:
//   KERNEL <tab> LAYOUT <tab> TYPE <tab> error <tab> allowed error
// Inputs are fixed, one thread computes, and pictures are aligned, so that counts are the same in every run.
// Operators of several steps (local_attention, winograd_weight_gradient) take them as their bindings do.
#if !__has_include(<valgrind/callgrind.h>)
#error "valgrind/callgrind.h is missing: install the headers of valgrind"
#endif
#include <valgrind/callgrind.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "winograd.h"

namespace {

using namespace irnext;
using namespace irnext::cpu;

// One picture (1, kC, kH, kW), whose width fills no whole number of vectors, in two bands of rows.
constexpr int64_t kC = 32, kH = 32, kW = 44, kPlane = kH * kW, kBands = 2;
constexpr int64_t kGroups = 8, kSide = 3, kTaps = kSide * kSide, kCentre = kTaps / 2;
constexpr int64_t kMeanChannels = 16;  // side by side in memory, of a task that forms local means
constexpr int64_t kRates[] = {2, 4, 8};
constexpr Window kWindow{12, 14};

// How results are held: the layout and the type.
struct Form {
  bool channels_last;
  Type type;

  std::string name() const {
    return std::string(channels_last ? "channels_last" : "contiguous") + "\t" +
           (type == Type::f32 ? "float32" : "bfloat16");
  }
  // Rounding of one result, and what sums in float may lose, as shares of the largest result.
  double allowed() const { return type == Type::f32 ? kSums : 0x1p-7; }
  static constexpr double kSums = 1e-5;
};

// ---- numbers ----

// The same in [-1, 1) in every run.
double random_number() {
  static uint64_t state = 88172645463325252u;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return double(state >> 11) * 0x1p-52 - 1;
}

std::vector<float> random_numbers(int64_t count) {
  std::vector<float> numbers(count);
  for (float& number : numbers) number = float(random_number());
  return numbers;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bfloat16(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float number;
  std::memcpy(&number, &bits, 4);
  return number;
}

// A tensor (1, c, h, w) of one form.
class Picture {
 public:
  // All NaN, so that what a kernel leaves out is not right by chance.
  explicit Picture(const Form& form, int64_t c = kC, int64_t h = kH, int64_t w = kW)
      : c(c), h(h), w(w), form_(form), data_(std::aligned_alloc(64, (c * h * w * 4 + 63) / 64 * 64), std::free) {
    each([&](int64_t i, int64_t y, int64_t x) { set(i, y, x, std::numeric_limits<float>::quiet_NaN()); });
  }
  static Picture random(const Form& form, int64_t c = kC, int64_t h = kH, int64_t w = kW) {
    Picture picture(form, c, h, w);
    picture.each([&](int64_t i, int64_t y, int64_t x) { picture.set(i, y, x, float(random_number())); });
    return picture;
  }

  double at(int64_t i, int64_t y, int64_t x) const {
    const int64_t place = offset(i, y, x);
    if (form_.type == Type::f32) return static_cast<const float*>(data_.get())[place];
    return from_bfloat16(static_cast<const uint16_t*>(data_.get())[place]);
  }
  Tensor view() const {
    if (form_.channels_last) return {data_.get(), form_.type, {c * h * w, 1, w * c, c}};
    return {data_.get(), form_.type, {c * h * w, h * w, w, 1}};
  }
  // body(channel, row, column) for every element.
  template <class Body>
  void each(const Body& body) const {
    for (int64_t i = 0; i < c; ++i)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) body(i, y, x);
  }

  const int64_t c, h, w;

 private:
  int64_t offset(int64_t i, int64_t y, int64_t x) const {
    return form_.channels_last ? (y * w + x) * c + i : (i * h + y) * w + x;
  }
  void set(int64_t i, int64_t y, int64_t x, float value) {
    const int64_t place = offset(i, y, x);
    if (form_.type == Type::f32)
      static_cast<float*>(data_.get())[place] = value;
    else
      static_cast<uint16_t*>(data_.get())[place] = to_bfloat16(value);
  }

  Form form_;
  std::unique_ptr<void, void (*)(void*)> data_;
};

// Expected results (c, h, w).
class Expected {
 public:
  explicit Expected(int64_t c = kC, int64_t h = kH, int64_t w = kW) : h_(h), w_(w), values_(c * h * w) {}
  double& at(int64_t i, int64_t y, int64_t x) { return values_[(i * h_ + y) * w_ + x]; }

 private:
  int64_t h_, w_;
  std::vector<double> values_;
};

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The largest difference over the largest expected value; infinite where a result is no number.
class Error {
 public:
  void add(double found, double expected) {
    const double difference = std::fabs(found - expected);
    worst_ = std::isfinite(difference) ? std::fmax(worst_, difference) : kInfinity;
    largest_ = std::fmax(largest_, std::fabs(expected));
  }
  double relative() const { return worst_ / largest_; }

 private:
  double worst_ = 0, largest_ = 0;
};

double error_of(const Picture& found, Expected& expected) {
  Error error;
  found.each([&](int64_t i, int64_t y, int64_t x) { error.add(found.at(i, y, x), expected.at(i, y, x)); });
  return error.relative();
}

template <class A>
double error_of(const std::vector<A>& found, const std::vector<double>& expected) {
  Error error;
  for (size_t i = 0; i < expected.size(); ++i) error.add(double(found[i]), expected[i]);
  return error.relative();
}

// ---- measuring ----

std::set<std::string> wanted;  // kernels; all where it is empty
bool all_right = true;

// `error` compares the results of `run` with what they should be.
void measure(const std::string& kernel, const Form& form, double allowed, const std::function<void()>& run,
             const std::function<double()>& error) {
  if (!wanted.empty() && !wanted.count(kernel)) return;
  run();
  const double found = error();
  const std::string name = kernel + "\t" + form.name();
  std::printf("%s\t%.3g\t%.3g\n", name.c_str(), found, allowed);
  if (!(found <= allowed)) {
    all_right = false;
    return;
  }
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
  run();
  CALLGRIND_DUMP_STATS_AT(name.c_str());
  CALLGRIND_STOP_INSTRUMENTATION;
}

Tasks tasks_of(const Form& form, int64_t block = kC) {
  const int64_t channels = form.channels_last ? block : 1;
  return {form.channels_last, channels, kC / channels, kBands, kH / kBands};
}

Tasks mean_tasks(const Form& form, const Window& window) { return tasks_of(form, window ? kMeanChannels : kC); }

// The tasks' partial sums, `width` a channel, added up: (kC, width).
std::vector<double> add_up(const Tasks& tasks, int64_t width, const std::vector<double>& partial) {
  std::vector<double> sums(kC * width);
  for (int64_t c = 0; c < kC; ++c)
    for (int64_t i = 0; i < width; ++i)
      for (int64_t band = 0; band < tasks.bands; ++band)
        sums[c * width + i] +=
            partial[((c / tasks.block * tasks.bands + band) * width + i) * tasks.block + c % tasks.block];
  return sums;
}

std::vector<double> partials(const Tasks& tasks, int64_t width) {
  return std::vector<double>(tasks.count() * width * tasks.block);
}

// ---- what the results should be ----

std::vector<double> plane_means(const Picture& x) {
  std::vector<double> means(x.c);
  x.each([&](int64_t i, int64_t y, int64_t column) { means[i] += x.at(i, y, column) / double(x.h * x.w); });
  return means;
}

// Calls body(tap, row, column) with where the taps of a pixel lie, by reflection.
template <class Body>
void for_taps(int64_t y, int64_t x, const Body& body) {
  for (int64_t t = 0; t < kTaps; ++t)
    body(t, source_index(y + t / kSide - 1, kH, Padding::reflect),
         source_index(x + t % kSide - 1, kW, Padding::reflect));
}

// Calls body(row, column) for the window around a pixel, which stays in the plane.
template <class Body>
void for_window(int64_t y, int64_t x, const Body& body) {
  const int64_t top = std::clamp<int64_t>(y - (kWindow.rows - 1) / 2, 0, kH - kWindow.rows);
  const int64_t left = std::clamp<int64_t>(x - (kWindow.columns - 1) / 2, 0, kW - kWindow.columns);
  for (int64_t row = top; row < top + kWindow.rows; ++row)
    for (int64_t column = left; column < left + kWindow.columns; ++column) body(row, column);
}

constexpr double kWindowArea = kWindow.rows * kWindow.columns;

Expected local_means(const Picture& from) {
  Expected to;
  from.each([&](int64_t i, int64_t y, int64_t x) {
    for_window(y, x, [&](int64_t row, int64_t column) { to.at(i, y, x) += from.at(i, row, column) / kWindowArea; });
  });
  return to;
}

Expected local_means_adjoint(const Picture& from) {
  Expected to;
  from.each([&](int64_t i, int64_t y, int64_t x) {
    for_window(y, x, [&](int64_t row, int64_t column) { to.at(i, row, column) += from.at(i, y, x) / kWindowArea; });
  });
  return to;
}

// kernel (kC, kTaps).
Expected filtered(const Picture& x, const std::vector<double>& kernel) {
  Expected to;
  x.each([&](int64_t i, int64_t y, int64_t column) {
    for_taps(y, column, [&](int64_t t, int64_t from_y, int64_t from_x) {
      to.at(i, y, column) += kernel[i * kTaps + t] * x.at(i, from_y, from_x);
    });
  });
  return to;
}

Expected filtered_adjoint(const Picture& grad, const std::vector<double>& kernel) {
  Expected to;
  grad.each([&](int64_t i, int64_t y, int64_t x) {
    for_taps(y, x, [&](int64_t t, int64_t to_y, int64_t to_x) {
      to.at(i, to_y, to_x) += kernel[i * kTaps + t] * grad.at(i, y, x);
    });
  });
  return to;
}

// The sums of grad * shifted x, (kC, kTaps).
std::vector<double> tap_sums_of(const Picture& grad, const Picture& x) {
  std::vector<double> sums(kC * kTaps);
  grad.each([&](int64_t i, int64_t y, int64_t column) {
    for_taps(y, column, [&](int64_t t, int64_t from_y, int64_t from_x) {
      sums[i * kTaps + t] += grad.at(i, y, column) * x.at(i, from_y, from_x);
    });
  });
  return sums;
}

double gelu(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }
double gelu_derivative(double x) {
  return 0.5 * std::erfc(-x * std::sqrt(0.5)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
}

// ---- means ----

void measure_spatial_mean(const Form& form) {
  const Picture x = Picture::random(form);
  const Tasks tasks = tasks_of(form);
  std::vector<double> partial = partials(tasks, 1);
  const MeanCall call{1, kC, kH, kW, x.view(), partial.data(), tasks};
  measure("spatial_mean", form, Form::kSums, [&] { kernels().spatial_mean(call, 0, tasks.count()); }, [&] {
    std::vector<double> sums = plane_means(x);
    for (double& sum : sums) sum *= kPlane;
    return error_of(add_up(tasks, 1, partial), sums);
  });
}

void measure_local_mean(const Form& form) {
  const Picture x = Picture::random(form), y(form);
  const Tasks tasks = mean_tasks(form, kWindow);
  const LocalMeanCall call{1, kC, kH, kW, x.view(), y.view(), kWindow, tasks};
  measure("local_mean", form, form.allowed(), [&] { kernels().local_mean(call, 0, tasks.count()); }, [&] {
    Expected expected = local_means(x);
    return error_of(y, expected);
  });
  measure("local_mean_backward", form, form.allowed(),
          [&] { kernels().local_mean_backward(call, 0, tasks.count()); }, [&] {
            Expected expected = local_means_adjoint(x);
            return error_of(y, expected);
          });
}

// ---- dynamic_conv2d ----

DynamicConvShape filter_shape(int64_t groups) {
  return {1, kC, kH, kW, groups, kSide, kSide, 1, Padding::reflect};
}

// The kernels (groups, kTaps) of every channel.
std::vector<double> per_channel(const std::vector<float>& kernel, int64_t groups) {
  std::vector<double> all(kC * kTaps);
  for (int64_t i = 0; i < kC * kTaps; ++i) all[i] = kernel[i / kTaps / (kC / groups) * kTaps + i % kTaps];
  return all;
}

void measure_dynamic_conv2d(const Form& form) {
  const Picture x = Picture::random(form), grad = Picture::random(form), y(form), dx(form);
  const std::vector<float> kernel = random_numbers(kGroups * kTaps);
  std::vector<float> bias = random_numbers(kC);
  const std::vector<double> taps = per_channel(kernel, kGroups);
  const Tasks tasks = tasks_of(form);
  const ForwardCall forward{filter_shape(kGroups), x.view(), y.view(), kernel.data(),
                            {bias.data(), Type::f32, {kC, 1, 0, 0}}, {}, nullptr, tasks};
  measure("dynamic_conv2d", form, form.allowed(), [&] { kernels().forward(forward, 0, tasks.count()); }, [&] {
    Expected expected = filtered(x, taps);
    x.each([&](int64_t i, int64_t row, int64_t column) { expected.at(i, row, column) += bias[i]; });
    return error_of(y, expected);
  });

  std::vector<double> tap_partials = partials(tasks, kTaps), grad_partials = partials(tasks, 1);
  const BackwardCall backward{filter_shape(kGroups), x.view(), grad.view(), dx.view(), kernel.data(),
                              tap_partials.data(), grad_partials.data(), {}, nullptr, nullptr, tasks};
  measure("dynamic_conv2d_backward", form, form.allowed(), [&] { kernels().backward(backward, 0, tasks.count()); },
          [&] {
            Expected expected = filtered_adjoint(grad, taps);
            std::vector<double> sums = plane_means(grad);
            for (double& sum : sums) sum *= kPlane;
            return std::max({error_of(dx, expected),
                             error_of(add_up(tasks, kTaps, tap_partials), tap_sums_of(grad, x)),
                             error_of(add_up(tasks, 1, grad_partials), sums)});
          });
}

// ---- local_attention ----

// The parameters of a local attention in eval mode, tanh, and the steps that the operator takes.
struct LocalAttention {
  static constexpr int64_t kLogits = kGroups * kTaps;
  static constexpr AttentionShape kShape{kC, kGroups, kTaps, Activation::tanh, false, 1e-5};

  const Form form;
  const Window window;  // or none
  const Picture x = Picture::random(form), grad = Picture::random(form), y{form}, dx{form};
  const std::vector<float> weight = random_numbers(kLogits * kC), norm_weight = random_numbers(kLogits);
  const std::vector<float> norm_bias = random_numbers(kLogits), running_mean = random_numbers(kLogits);
  const std::vector<float> running_var = std::vector<float>(kLogits, 0.75f);
  const std::vector<float> low = random_numbers(kC), inner = random_numbers(kC), high = random_numbers(kC);
  const AttentionParameters<float> parameters{weight.data(), norm_weight.data(), norm_bias.data(),
                                              low.data(),    inner.data(),       high.data()};
  std::vector<float> mean = std::vector<float>(kC);
  std::vector<float> dweight{}, dnorm_weight{}, dnorm_bias{}, dlow{}, dinner{}, dhigh{};

  std::vector<float> gains() const {
    std::vector<float> gains(kC);
    for (int64_t c = 0; c < kC; ++c) gains[c] = -low[c] * inner[c];
    return gains;
  }

  void forward() {
    const Tasks mean_of = tasks_of(form), tasks = mean_tasks(form, window);
    std::vector<double> partial = partials(mean_of, 1);
    kernels().spatial_mean({1, kC, kH, kW, x.view(), partial.data(), mean_of}, 0, mean_of.count());
    const std::vector<double> sums = add_up(mean_of, 1, partial);
    for (int64_t c = 0; c < kC; ++c) mean[c] = float(sums[c] / kPlane);
    const Prediction<float> prediction(kShape, parameters, 1, mean.data(), running_mean.data(), running_var.data());
    std::vector<float> kernel(kC * kTaps), bias(kC);
    prediction.filter(kernel.data(), bias.data());
    const Tensor offset{window ? nullptr : bias.data(), Type::f32, {kC, 1, 0, 0}};
    kernels().forward({filter_shape(kC), x.view(), y.view(), kernel.data(), offset, window, gains().data(), tasks}, 0,
                      tasks.count());
  }

  // After forward(): two passes, the first for the sums, the second for dx.
  void backward() {
    const Tensor nothing{nullptr, form.type, {}};
    const Tasks tasks = mean_tasks(form, window);
    const std::vector<float> gain = gains();
    const Prediction<float> prediction(kShape, parameters, 1, mean.data(), running_mean.data(), running_var.data());
    std::vector<float> kernel(kC * kTaps), dmean(kC);
    prediction.filter(kernel.data(), nullptr);
    std::vector<double> tap_partials = partials(tasks, kTaps), low_partials = partials(tasks, 1);
    kernels().backward({filter_shape(kC), x.view(), grad.view(), nothing, kernel.data(), tap_partials.data(),
                        low_partials.data(), window, nullptr, nullptr, tasks},
                       0, tasks.count());
    std::vector<double> low_sums = add_up(tasks, 1, low_partials);
    for (int64_t c = 0; c < kC && !window; ++c) {
      dmean[c] = float(gain[c] * low_sums[c]);
      low_sums[c] *= mean[c];
    }
    dweight.assign(kLogits * kC, 0);
    for (std::vector<float>* sums : {&dnorm_weight, &dnorm_bias}) sums->assign(kLogits, 0);
    for (std::vector<float>* sums : {&dlow, &dinner, &dhigh}) sums->assign(kC, 0);
    prediction.backward(add_up(tasks, kTaps, tap_partials).data(), low_sums.data(),
                        {dweight.data(), dnorm_weight.data(), dnorm_bias.data(), dlow.data(), dinner.data(),
                         dhigh.data()},
                        dmean.data());
    for (float& shift : dmean) shift /= kPlane;
    kernels().backward({filter_shape(kC), nothing, grad.view(), dx.view(), kernel.data(), nullptr, nullptr, window,
                        gain.data(), dmean.data(), tasks},
                       0, tasks.count());
  }
};

// What a local attention should give: y = l ((1 + s) L - s m) + (1 + h) x, where L is x filtered by the attention
// and m the mean over the plane or the window.
struct ExpectedAttention {
  const LocalAttention& a;
  const std::vector<double> means = plane_means(a.x);
  std::vector<double> slope = std::vector<double>(LocalAttention::kLogits);    // of the logits before tanh
  std::vector<double> attention = std::vector<double>(LocalAttention::kLogits);
  Expected low_pass = a.window ? local_means(a.x) : Expected();

  explicit ExpectedAttention(const LocalAttention& a) : a(a) {
    for (int64_t o = 0; o < LocalAttention::kLogits; ++o) {
      double logit = 0;
      for (int64_t c = 0; c < kC; ++c) logit += double(a.weight[o * kC + c]) * means[c];
      slope[o] = a.norm_weight[o] / std::sqrt(a.running_var[o] + LocalAttention::kShape.eps);
      attention[o] = std::tanh((logit - a.running_mean[o]) * slope[o] + a.norm_bias[o]);
    }
    if (!a.window) a.x.each([&](int64_t c, int64_t y, int64_t x) { low_pass.at(c, y, x) = means[c]; });
  }

  double attention_of(int64_t c, int64_t t) const { return attention[c / (kC / kGroups) * kTaps + t]; }

  // (kC, kTaps) of factor(c) * A, and `centre` (c) more at the centre.
  template <class Factor, class Centre>
  std::vector<double> filter(const Factor& factor, const Centre& centre) const {
    std::vector<double> kernel(kC * kTaps);
    for (int64_t c = 0; c < kC; ++c)
      for (int64_t t = 0; t < kTaps; ++t)
        kernel[c * kTaps + t] = factor(c) * attention_of(c, t) + (t == kCentre ? centre(c) : 0);
    return kernel;
  }
  std::vector<double> whole_filter() const {
    return filter([&](int64_t c) { return a.low[c] * (1.0 + a.inner[c]); }, [&](int64_t c) { return 1.0 + a.high[c]; });
  }

  double forward_error() {
    Expected y = filtered(a.x, whole_filter());
    a.x.each([&](int64_t c, int64_t row, int64_t x) {
      y.at(c, row, x) -= double(a.low[c]) * a.inner[c] * low_pass.at(c, row, x);
    });
    return error_of(a.y, y);
  }

  double backward_error() {
    std::vector<double> dlow(kC), dinner(kC), dhigh(kC), dm(kC), dnorm_weight(LocalAttention::kLogits);
    std::vector<double> dnorm_bias(LocalAttention::kLogits), dweight(LocalAttention::kLogits * kC);
    Expected response = filtered(a.x, filter([](int64_t) { return 1.0; }, [](int64_t) { return 0.0; }));
    Expected dx = filtered_adjoint(a.grad, whole_filter());
    Expected spread = a.window ? local_means_adjoint(a.grad) : Expected();
    a.x.each([&](int64_t c, int64_t y, int64_t x) {
      const double u = a.grad.at(c, y, x), l = response.at(c, y, x), m = low_pass.at(c, y, x);
      dlow[c] += u * ((1.0 + a.inner[c]) * l - a.inner[c] * m);
      dinner[c] += u * a.low[c] * (l - m);
      dhigh[c] += u * a.x.at(c, y, x);
      if (a.window)
        dx.at(c, y, x) -= double(a.low[c]) * a.inner[c] * spread.at(c, y, x);
      else
        dm[c] -= double(a.low[c]) * a.inner[c] * u;
    });
    const std::vector<double> tap_sums = tap_sums_of(a.grad, a.x);
    for (int64_t o = 0; o < LocalAttention::kLogits; ++o) {
      double dattention = 0;
      for (int64_t c = o / kTaps * (kC / kGroups); c < (o / kTaps + 1) * (kC / kGroups); ++c)
        dattention += a.low[c] * (1.0 + a.inner[c]) * tap_sums[c * kTaps + o % kTaps];
      const double dlogit = dattention * (1 - attention[o] * attention[o]);
      dnorm_bias[o] = dlogit;
      dnorm_weight[o] = dlogit * (std::atanh(attention[o]) - a.norm_bias[o]) / a.norm_weight[o];
      for (int64_t c = 0; c < kC; ++c) {
        dweight[o * kC + c] = dlogit * slope[o] * means[c];
        dm[c] += dlogit * slope[o] * a.weight[o * kC + c];
      }
    }
    a.x.each([&](int64_t c, int64_t y, int64_t x) { dx.at(c, y, x) += dm[c] / kPlane; });
    return std::max({error_of(a.dx, dx), error_of(a.dweight, dweight), error_of(a.dnorm_weight, dnorm_weight),
                     error_of(a.dnorm_bias, dnorm_bias), error_of(a.dlow, dlow), error_of(a.dinner, dinner),
                     error_of(a.dhigh, dhigh)});
  }
};

void measure_local_attention(const Form& form, const Window& window) {
  const std::string name = window ? "local_attention_window" : "local_attention";
  LocalAttention attention{form, window};
  measure(name, form, form.allowed(), [&] { attention.forward(); },
          [&] { return ExpectedAttention(attention).forward_error(); });
  attention.forward();
  measure(name + "_backward", form, form.allowed(), [&] { attention.backward(); },
          [&] { return ExpectedAttention(attention).backward_error(); });
}

// ---- pyramids ----

std::vector<Picture> small_pictures(const Form& form, bool random) {
  std::vector<Picture> pictures;
  for (const int64_t rate : kRates)
    pictures.push_back(random ? Picture::random(form, kC, kH / rate, kW / rate)
                              : Picture(form, kC, kH / rate, kW / rate));
  return pictures;
}

std::vector<PoolLevel> levels_of(const std::vector<Picture>& pools) {
  std::vector<PoolLevel> levels;
  for (size_t i = 0; i < pools.size(); ++i) levels.push_back({kRates[i], i == 0, pools[i].view()});
  return levels;
}

void measure_pool_pyramid(const Form& form) {
  const Tasks tasks = tasks_of(form);
  const Picture x = Picture::random(form), dx(form);
  const std::vector<Picture> pools = small_pictures(form, false), grads = small_pictures(form, true);
  const std::vector<PoolLevel> to = levels_of(pools), from = levels_of(grads);
  const PoolCall forward{1, kC, kH, kW, x.view(), to.data(), int64_t(to.size()), tasks};
  measure("pool_pyramid", form, form.allowed(), [&] { kernels().pool_pyramid(forward, 0, tasks.count()); }, [&] {
    double worst = 0;
    for (size_t i = 0; i < pools.size(); ++i) {
      const int64_t rate = kRates[i];
      Expected expected(kC, kH / rate, kW / rate);
      pools[i].each([&](int64_t c, int64_t row, int64_t column) {
        for (int64_t k = 0; k < rate * rate; ++k)
          expected.at(c, row, column) +=
              x.at(c, row * rate + k / rate, column * rate + k % rate) / double(rate * rate);
      });
      worst = std::fmax(worst, error_of(pools[i], expected));
    }
    return worst;
  });
  const PoolCall backward{1, kC, kH, kW, dx.view(), from.data(), int64_t(from.size()), tasks};
  measure("pool_pyramid_backward", form, form.allowed(),
          [&] { kernels().pool_pyramid_backward(backward, 0, tasks.count()); }, [&] {
            Expected expected;
            dx.each([&](int64_t c, int64_t row, int64_t column) {
              for (size_t i = 0; i < grads.size(); ++i) {
                const int64_t rate = kRates[i], y = row / rate, left = column / rate;
                if (y < grads[i].h && left < grads[i].w)
                  expected.at(c, row, column) += grads[i].at(c, y, left) / double(rate * rate);
              }
            });
            return error_of(dx, expected);
          });
}

// Calls body(row, column, weight) with the pixels of a branch that make up pixel (y, x), up-sampled bilinearly with
// corner on corner.
template <class Body>
void for_corners(const Picture& branch, int64_t y, int64_t x, const Body& body) {
  const double down = double(y) * double(branch.h - 1) / double(kH - 1);
  const double right = double(x) * double(branch.w - 1) / double(kW - 1);
  const int64_t row = std::min(int64_t(down), branch.h - 2), column = std::min(int64_t(right), branch.w - 2);
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 2; ++j)
      body(row + i, column + j,
           (i ? down - double(row) : 1 - down + double(row)) *
               (j ? right - double(column) : 1 - right + double(column)));
}

// The columns of x in a branch, as the kernels look them up.
struct ColumnTable {
  std::vector<int32_t> below, first;
  std::vector<float> share;
  std::vector<float> partial;  // of the tasks

  ColumnTable(const Aligned& columns, const Tasks& tasks) {
    for (int64_t x = 0; x < columns.large; ++x) {
      below.push_back(int32_t(columns.below(x)));
      share.push_back(columns.share<float>(x));
    }
    for (int64_t i = 0; i <= columns.small; ++i) first.push_back(int32_t(columns.first(i)));
    partial.resize(tasks.count() * 4 * columns.small * tasks.block);
  }
};

void measure_merge_pyramid(const Form& form) {
  const Tasks tasks = tasks_of(form);
  const Picture x = Picture::random(form), grad = Picture::random(form), y(form), dx(form);
  const std::vector<Picture> branches = small_pictures(form, true), gradients = small_pictures(form, false);
  std::vector<ColumnTable> tables;
  std::vector<Branch> views;
  for (const Picture& branch : branches) tables.emplace_back(Aligned{branch.w, kW}, tasks);
  for (size_t i = 0; i < branches.size(); ++i)
    views.push_back({branches[i].view(), gradients[i].view(), {branches[i].h, kH}, {branches[i].w, kW},
                     tables[i].below.data(), tables[i].share.data(), tables[i].first.data(),
                     tables[i].partial.data()});

  Expected sum;  // before the activation
  x.each([&](int64_t c, int64_t row, int64_t column) {
    sum.at(c, row, column) = x.at(c, row, column);
    for (const Picture& branch : branches)
      for_corners(branch, row, column, [&](int64_t i, int64_t j, double weight) {
        if (weight) sum.at(c, row, column) += weight * branch.at(c, i, j);
      });
  });
  MergeCall call{1, kC, kH, kW, x.view(), {nullptr, form.type, {}}, y.view(), views.data(), int64_t(views.size()), true,
                 tasks};
  measure("merge_pyramid", form, form.allowed(), [&] { kernels().merge_pyramid(call, 0, tasks.count()); }, [&] {
    Expected expected;
    x.each([&](int64_t c, int64_t i, int64_t j) { expected.at(c, i, j) = gelu(sum.at(c, i, j)); });
    return error_of(y, expected);
  });

  call.grad = grad.view();
  call.y = dx.view();
  const auto run = [&] {
    kernels().merge_pyramid_backward(call, 0, tasks.count());
    kernels().merge_pyramid_backward_shared(call, 0, tasks.count());
  };
  measure("merge_pyramid_backward", form, form.allowed(), run, [&] {
    Expected expected;
    x.each([&](int64_t c, int64_t i, int64_t j) {
      expected.at(c, i, j) = grad.at(c, i, j) * gelu_derivative(sum.at(c, i, j));
    });
    double worst = error_of(dx, expected);
    for (const Picture& gradient : gradients) {
      Expected of_branch(kC, gradient.h, gradient.w);
      x.each([&](int64_t c, int64_t row, int64_t column) {
        for_corners(gradient, row, column, [&](int64_t i, int64_t j, double weight) {
          of_branch.at(c, i, j) += weight * expected.at(c, row, column);
        });
      });
      worst = std::fmax(worst, error_of(gradient, of_branch));
    }
    return worst;
  });
}

// ---- Winograd ----

// Calls body(tap, row, column) with where the taps of a pixel lie that are inside the plane.
template <class Body>
void for_taps_inside(int64_t y, int64_t x, const Body& body) {
  for (int64_t t = 0; t < 9; ++t) {
    const int64_t row = y + t / 3 - 1, column = x + t % 3 - 1;
    if (row >= 0 && row < kH && column >= 0 && column < kW) body(t, row, column);
  }
}

// G g G^T of the filters (outputs, inputs, 3, 3), as WinogradCall takes it for tiles of 4 x 4.
std::vector<float> packed(const std::vector<float>& weight) {
  std::vector<float> all(36 * kC * kC);
  for (int64_t o = 0; o < kC; ++o)
    for (int64_t c = 0; c < kC; ++c)
      for (int64_t i = 0; i < 6; ++i)
        for (int64_t j = 0; j < 6; ++j) {
          double value = 0;
          for (int64_t t = 0; t < 9; ++t)
            value += kFilterTransform4[i][t / 3] * kFilterTransform4[j][t % 3] * double(weight[(o * kC + c) * 9 + t]);
          const int64_t block = o / kWinogradBlock, blocks = kC / kWinogradBlock;
          all[(((i * 6 + j) * blocks + block) * kC + c) * kWinogradBlock + o % kWinogradBlock] = float(value);
        }
  return all;
}

void measure_winograd(const Form& form) {
  if (!form.channels_last) return;
  const Picture x = Picture::random(form), residual = Picture::random(form), grad = Picture::random(form), y(form);
  const std::vector<float> weight = random_numbers(kC * kC * 9), bias = random_numbers(kC), points = packed(weight);
  const WinogradCall call{1, kC, kH, kW, kC, 4, x.view(), y.view(), residual.view(), {}, points.data(), bias.data(),
                          true, 24};
  measure("winograd", form, form.allowed(), [&] { winograd().convolve(call, 0, call.count()); }, [&] {
    Expected expected;
    x.each([&](int64_t o, int64_t row, int64_t column) {
      double sum = bias[o];
      for_taps_inside(row, column, [&](int64_t t, int64_t from_y, int64_t from_x) {
        for (int64_t c = 0; c < kC; ++c) sum += double(weight[(o * kC + c) * 9 + t]) * x.at(c, from_y, from_x);
      });
      expected.at(o, row, column) = residual.at(o, row, column) + gelu(sum);
    });
    return error_of(y, expected);
  });

  constexpr int64_t parts = 2;
  std::vector<float> sums(parts * 36 * kC * kC), totals(parts * kC), dweight(kC * kC * 9);
  const WinogradGradientCall gradient{1, kC, kH, kW, kC, x.view(), grad.view(), sums.data(), totals.data(),
                                      dweight.data(), parts, kC, 24};
  const auto run = [&] {
    winograd().sum_weight_gradients(gradient, 0, gradient.parts * gradient.slices());
    winograd().finish_weight_gradient(gradient, 0, kC);
  };
  measure("winograd_weight_gradient", form, Form::kSums, run, [&] {
    std::vector<double> expected(kC * kC * 9), of_bias(kC), bias_sums(kC);
    grad.each([&](int64_t o, int64_t row, int64_t column) {
      const double u = grad.at(o, row, column);
      of_bias[o] += u;
      for_taps_inside(row, column, [&](int64_t t, int64_t from_y, int64_t from_x) {
        for (int64_t c = 0; c < kC; ++c) expected[(o * kC + c) * 9 + t] += u * x.at(c, from_y, from_x);
      });
    });
    for (int64_t i = 0; i < parts * kC; ++i) bias_sums[i % kC] += totals[i];
    return std::fmax(error_of(dweight, expected), error_of(bias_sums, of_bias));
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || !select_kernels(arguments[1])) {
    std::fprintf(stderr, "this machine cannot run the instruction set '%s'\n", count < 2 ? "" : arguments[1]);
    return 2;
  }
  wanted.insert(arguments + 2, arguments + count);
  std::printf("%lld\t%lld\t%lld\n", (long long)kC, (long long)kH, (long long)kW);
  for (const Type type : {Type::f32, Type::bf16})
    for (const bool channels_last : {false, true}) {
      const Form form{channels_last, type};
      measure_spatial_mean(form);
      measure_local_mean(form);
      measure_dynamic_conv2d(form);
      measure_local_attention(form, {});
      measure_local_attention(form, kWindow);
      measure_pool_pyramid(form);
      measure_merge_pyramid(form);
      measure_winograd(form);
    }
  return all_right ? 0 : 1;
}
