// The operators for CPU tensors, through PyTorch's stable ABI: one build serves every PyTorch from 2.11 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "allocate.h"
#include "attention.h"
#include "binding/arguments.h"
#include "tasks.h"

namespace {

using namespace irnext::binding;
using irnext::DynamicConvShape;
using irnext::Tensor;
using irnext::Window;
using irnext::cpu::AttentionGradients;
using irnext::cpu::AttentionParameters;
using irnext::cpu::AttentionShape;
using irnext::cpu::Prediction;
using irnext::cpu::Tasks;
using irnext::cpu::along_channels;
using irnext::cpu::kTaskElements;
using irnext::cpu::kTasks;
using irnext::cpu::run;
using irnext::cpu::small_empty;

// Channels of a task that forms local means: what it keeps of a row must stay in cache.
constexpr int64_t kMeanChannels = 16;
// Samples that are read twice are taken together up to this size, so that they are still in cache.
constexpr int64_t kCachedElements = 1 << 18;

Tasks cut(int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, const Window& window) {
  int64_t blocks = c;
  if (channels_last) blocks = window ? std::max<int64_t>(c / kMeanChannels, 1) : 1;
  const int64_t block = channels_last ? (c + blocks - 1) / blocks : 1;
  const int64_t units = n * (channels_last ? (c + block - 1) / block : c);
  const int64_t wanted = (kTasks + units - 1) / std::max<int64_t>(units, 1);
  // A band's first local mean takes a whole window.
  const int64_t most =
      std::max<int64_t>(std::min(h / std::max<int64_t>(2 * window.rows, 1), block * h * w / kTaskElements), 1);
  const int64_t rows = std::max<int64_t>((h + std::min(wanted, most) - 1) / std::min(wanted, most), 1);
  return {channels_last, block, units, (h + rows - 1) / rows, rows};
}

// Adds the tasks' partial sums in a fixed order and calls write(plane, i, total), `width` numbers a plane.
template <class Write>
void add_partials(const Tasks& tasks, int64_t n, int64_t c, int64_t width, const double* partial, const Write& write) {
  const int64_t blocks = c ? (c + tasks.block - 1) / tasks.block : 0;
  for (int64_t plane = 0; plane < n * c; ++plane) {
    const int64_t unit = plane / c * blocks + plane % c / tasks.block, channel = plane % c % tasks.block;
    for (int64_t i = 0; i < width; ++i) {
      double total = 0;
      for (int64_t band = 0; band < tasks.bands; ++band)
        total += partial[((unit * tasks.bands + band) * width + i) * tasks.block + channel];
      write(plane, i, total);
    }
  }
}

// Call body with a number of the type that sums of `like` are taken in.
template <class Body>
void by_accumulator(const stable::Tensor& like, const Body& body) {
  if (like.scalar_type() == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

template <class A>
A* data(const stable::Tensor& tensor) {
  return static_cast<A*>(tensor.data_ptr());
}

// The gradient in a layout that goes with x: broadcast ones, as of a sum, and such as differ are copied.
stable::Tensor matched(const stable::Tensor& grad, const stable::Tensor& x) {
  check_gradient(grad, x);
  if (grad.numel() == 0 || (channels_adjacent(grad) == channels_adjacent(x) && grad.stride(3) != 0)) return grad;
  stable::Tensor copy = stable::empty_like(x);
  stable::copy_(copy, grad);
  return copy;
}

// Sample `first` on.
Tensor samples(Tensor tensor, int64_t first) {
  const int64_t size = tensor.type == irnext::Type::f64 ? 8 : tensor.type == irnext::Type::f32 ? 4 : 2;
  if (tensor.data) tensor.data = static_cast<char*>(tensor.data) + first * tensor.strides.n * size;
  return tensor;
}

// ---- means ----

// The means of planes (n, c) of x, as A.
template <class A>
void plane_means(const Tensor& x, const DynamicConvShape& s, bool channels_last, A* mean) {
  const Tasks tasks = cut(s.n, s.c, s.h, s.w, channels_last, {});
  std::vector<double> partial(tasks.count() * tasks.block);
  run(irnext::cpu::kernels().spatial_mean, {s.n, s.c, s.h, s.w, x, partial.data(), tasks}, s.n * s.c * s.h * s.w);
  add_partials(tasks, s.n, s.c, 1, partial.data(),
               [&](int64_t plane, int64_t, double total) { mean[plane] = A(total / double(s.h * s.w)); });
}

stable::Tensor spatial_mean(const stable::Tensor& x) {
  const Tensor input = view(x, "x");
  stable::Tensor mean = small_empty({x.size(0), x.size(1)}, wide_type(x));
  const DynamicConvShape s{x.size(0), x.size(1), x.size(2), x.size(3), 1, 1, 1, 1, irnext::Padding::zeros};
  by_accumulator(mean, [&](auto number) {
    plane_means(input, s, along_channels(x), data<decltype(number)>(mean));
  });
  return mean;
}

using LocalMeanKernel = void (*)(const irnext::cpu::LocalMeanCall&, int64_t, int64_t);

stable::Tensor box_filtered(LocalMeanKernel kernel, const stable::Tensor& x, const Sizes& sizes) {
  const Tensor input = view(x, "x");
  const Window window = window_of(x, sizes);
  stable::Tensor y = stable::empty_like(x);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  const Tasks tasks = cut(n, c, h, w, along_channels(x) && along_channels(y), window);
  run(kernel, {n, c, h, w, input, view(y, "y"), window, tasks}, x.numel());
  return y;
}

stable::Tensor local_mean(const stable::Tensor& x, Sizes window) {
  return box_filtered(irnext::cpu::kernels().local_mean, x, window);
}

stable::Tensor local_mean_backward(const stable::Tensor& grad, Sizes window) {
  return box_filtered(irnext::cpu::kernels().local_mean_backward, grad, window);
}

// ---- dynamic_conv2d ----

stable::Tensor dynamic_conv2d(const stable::Tensor& x, const stable::Tensor& kernel,
                              const std::optional<stable::Tensor>& bias, int64_t dilation,
                              std::string padding_mode) {
  const DynamicConvShape s = shape_of(x, kernel, dilation, padding_mode);
  const Tensor input = view(x, "x"), offset = bias_view(bias, s);
  const stable::Tensor weights = widened(kernel, wide_type(x));
  stable::Tensor y = stable::empty_like(x);
  const Tasks tasks = cut(s.n, s.c, s.h, s.w, along_channels(x) && along_channels(y), {});
  run(irnext::cpu::kernels().forward, {s, input, view(y, "y"), weights.data_ptr(), offset, {}, nullptr, tasks},
      x.numel());
  return y;
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor> dynamic_conv2d_backward(
    const stable::Tensor& grad, const stable::Tensor& x, const stable::Tensor& kernel, int64_t dilation,
    std::string padding_mode, bool need_x, bool need_kernel, bool need_sum) {
  const DynamicConvShape s = shape_of(x, kernel, dilation, padding_mode);
  const stable::Tensor u = matched(grad, x);
  const ScalarType wide = wide_type(x);
  const stable::Tensor weights = widened(kernel, wide);
  stable::Tensor dx = need_x ? stable::empty_like(x) : stable::new_empty(x, {0});
  const bool channels_last = along_channels(x) && along_channels(u) && (!need_x || along_channels(dx));
  const Tasks tasks = cut(s.n, s.c, s.h, s.w, channels_last, {});
  std::vector<double> tap_sums(need_kernel ? tasks.count() * s.taps() * tasks.block : 0);
  std::vector<double> grad_sums(need_sum ? tasks.count() * tasks.block : 0);
  run(irnext::cpu::kernels().backward,
      {s, view(x, "x"), view(u, "grad"), need_x ? view(dx, "dx") : nothing(), weights.data_ptr(),
       need_kernel ? tap_sums.data() : nullptr, need_sum ? grad_sums.data() : nullptr, {}, nullptr, nullptr, tasks},
      x.numel());

  stable::Tensor dkernel, grad_sum = small_empty({0}, wide);
  if (need_kernel) {
    std::vector<double> sums(s.n * s.groups * s.taps());
    const int64_t shared = s.c / s.groups;  // planes that share a kernel
    add_partials(tasks, s.n, s.c, s.taps(), tap_sums.data(),
                 [&](int64_t plane, int64_t tap, double total) { sums[plane / shared * s.taps() + tap] += total; });
    dkernel = small_empty({s.n, s.groups, s.kh, s.kw}, wide);
    by_accumulator(dkernel, [&](auto number) { std::copy(sums.begin(), sums.end(), data<decltype(number)>(dkernel)); });
    if (kernel.scalar_type() != wide) dkernel = stable::to(dkernel, kernel.scalar_type());
  } else {
    dkernel = stable::new_empty(kernel, {0});
  }
  if (need_sum) {
    grad_sum = small_empty({s.n, s.c}, wide);
    by_accumulator(grad_sum, [&](auto number) {
      using A = decltype(number);
      add_partials(tasks, s.n, s.c, 1, grad_sums.data(),
                   [&](int64_t plane, int64_t, double total) { data<A>(grad_sum)[plane] = A(total); });
    });
  }
  return {dx, dkernel, grad_sum};
}

// ---- local_attention ----

// The parameters, dense and of the right size, held while their data is used.
struct Parameters {
  stable::Tensor weight, norm_weight, norm_bias, low, inner, high;

  template <class A>
  AttentionParameters<A> view() const {
    return {data<A>(weight), data<A>(norm_weight), data<A>(norm_bias), data<A>(low), data<A>(inner), data<A>(high)};
  }
};

// How many samples to take at a time: all where their statistics are needed, else what stays in cache.
int64_t samples_together(const DynamicConvShape& s, bool training) {
  if (training) return std::max<int64_t>(s.n, 1);
  return std::max<int64_t>(kCachedElements / std::max<int64_t>(s.c * s.h * s.w, 1), 1);
}

// The factors of the local mean, -l s.
template <class A>
std::vector<A> window_gains(const AttentionParameters<A>& p, int64_t c) {
  std::vector<A> gains(c);
  for (int64_t i = 0; i < c; ++i) gains[i] = -p.low[i] * p.inner[i];
  return gains;
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor> local_attention(
    const stable::Tensor& x, const stable::Tensor& weight, const stable::Tensor& norm_weight,
    const stable::Tensor& norm_bias, const std::optional<stable::Tensor>& running_mean,
    const std::optional<stable::Tensor>& running_var, const stable::Tensor& low, const stable::Tensor& inner,
    const stable::Tensor& high, Sizes kernel_size, bool training, double eps, std::string activation,
    std::optional<Sizes> window) {
  const Attention a = attention_of(x, weight, kernel_size, activation, window);
  const DynamicConvShape& s = a.filter;
  const AttentionShape small{s.c, s.groups, s.taps(), a.activation, training, eps};
  const int64_t outputs = a.logits();
  const Parameters parameters{numbers(weight, outputs * s.c, x, "weight"),
                              numbers(norm_weight, outputs, x, "norm_weight"),
                              numbers(norm_bias, outputs, x, "norm_bias"),
                              numbers(low, s.c, x, "low"),
                              numbers(inner, s.c, x, "inner"),
                              numbers(high, s.c, x, "high")};
  STD_TORCH_CHECK(training || (running_mean && running_var), "running statistics are needed in eval mode");
  const ScalarType wide = wide_type(x);
  const stable::Tensor logit_mean =
      training ? small_empty({outputs}, wide) : numbers(*running_mean, outputs, x, "running_mean");
  const stable::Tensor logit_var =
      training ? small_empty({outputs}, wide) : numbers(*running_var, outputs, x, "running_var");
  const Tensor input = view(x, "x");
  stable::Tensor y = stable::empty_like(x), mean = small_empty({s.n, s.c}, wide);
  const Tensor output = view(y, "y");
  const bool channels_last = along_channels(x), all_channels_last = channels_last && along_channels(y);
  by_accumulator(mean, [&](auto number) {
    using A = decltype(number);
    const AttentionParameters<A> p = parameters.view<A>();
    const int64_t together = samples_together(s, training);
    const std::vector<A> gains = a.window ? window_gains(p, s.c) : std::vector<A>();
    DynamicConvShape part = s;
    part.groups = s.c;
    for (int64_t first = 0; first < s.n; first += together) {
      part.n = std::min(together, s.n - first);
      const Tensor from = samples(input, first);
      A* means = data<A>(mean) + first * s.c;
      plane_means(from, part, channels_last, means);
      const Prediction<A> prediction(small, p, part.n, means, data<A>(logit_mean), data<A>(logit_var));
      for (size_t o = 0; o < prediction.statistics().size(); ++o) {
        data<A>(logit_mean)[o] = A(prediction.statistics()[o].mean);
        data<A>(logit_var)[o] = A(prediction.statistics()[o].variance);
      }
      std::vector<A> kernel(part.n * s.c * s.taps()), bias(a.window ? 0 : part.n * s.c);
      prediction.filter(kernel.data(), a.window ? nullptr : bias.data());
      const Tensor offset = a.window ? nothing() : Tensor{bias.data(), type_of(mean, "mean"), {s.c, 1, 0, 0}};
      run(irnext::cpu::kernels().forward,
          {part, from, samples(output, first), kernel.data(), offset, a.window, gains.data(),
           cut(part.n, s.c, s.h, s.w, all_channels_last, a.window)},
          part.n * s.c * s.h * s.w);
    }
  });
  if (training) return {y, mean, logit_mean, logit_var};
  return {y, mean, small_empty({0}, wide), small_empty({0}, wide)};
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor,
           stable::Tensor>
local_attention_backward(const stable::Tensor& grad, const stable::Tensor& x, const stable::Tensor& mean,
                         const stable::Tensor& weight, const stable::Tensor& norm_weight,
                         const stable::Tensor& norm_bias, const stable::Tensor& logit_mean,
                         const stable::Tensor& logit_var, const stable::Tensor& low, const stable::Tensor& inner,
                         const stable::Tensor& high, Sizes kernel_size, bool training, double eps,
                         std::string activation, std::optional<Sizes> window) {
  const Attention a = attention_of(x, weight, kernel_size, activation, window);
  const DynamicConvShape& s = a.filter;
  const AttentionShape small{s.c, s.groups, s.taps(), a.activation, training, eps};
  const int64_t outputs = a.logits(), plane = s.h * s.w;
  const Parameters parameters{numbers(weight, outputs * s.c, x, "weight"),
                              numbers(norm_weight, outputs, x, "norm_weight"),
                              numbers(norm_bias, outputs, x, "norm_bias"),
                              numbers(low, s.c, x, "low"),
                              numbers(inner, s.c, x, "inner"),
                              numbers(high, s.c, x, "high")};
  const stable::Tensor means = numbers(mean, s.n * s.c, x, "mean");
  const stable::Tensor center = numbers(logit_mean, outputs, x, "logit_mean");
  const stable::Tensor spread = numbers(logit_var, outputs, x, "logit_var");
  const stable::Tensor u = matched(grad, x);
  const Tensor input = view(x, "x"), gradient = view(u, "grad");
  const ScalarType wide = wide_type(x);
  stable::Tensor dx = stable::empty_like(x);
  const Tensor output = view(dx, "dx");
  const bool sums_last = along_channels(x) && along_channels(u);
  const bool all_channels_last = along_channels(u) && along_channels(dx);
  stable::Tensor dweight = small_empty({outputs, s.c}, wide);
  stable::Tensor dnorm_weight = small_empty({outputs}, wide), dnorm_bias = small_empty({outputs}, wide);
  stable::Tensor dlow = small_empty({s.c}, wide), dinner = small_empty({s.c}, wide), dhigh = small_empty({s.c}, wide);
  by_accumulator(dlow, [&](auto number) {
    using A = decltype(number);
    const AttentionParameters<A> p = parameters.view<A>();
    for (const stable::Tensor* zeroed : {&dweight, &dnorm_weight, &dnorm_bias, &dlow, &dinner, &dhigh})
      std::fill_n(data<A>(*zeroed), zeroed->numel(), A(0));
    const AttentionGradients<A> gradients{data<A>(dweight), data<A>(dnorm_weight), data<A>(dnorm_bias),
                                          data<A>(dlow),    data<A>(dinner),       data<A>(dhigh)};
    const int64_t together = samples_together(s, training);
    const std::vector<A> gains = window_gains(p, s.c);
    DynamicConvShape part = s;
    part.groups = s.c;
    for (int64_t first = 0; first < s.n; first += together) {
      part.n = std::min(together, s.n - first);
      const int64_t planes = part.n * s.c, elements = planes * plane;
      const A* m = data<A>(means) + first * s.c;
      const Prediction<A> prediction(small, p, part.n, m, data<A>(center), data<A>(spread));
      std::vector<A> kernel(planes * s.taps()), dmean(planes);
      prediction.filter(kernel.data(), nullptr);

      const Tasks tasks = cut(part.n, s.c, s.h, s.w, sums_last, a.window);
      std::vector<double> tap_partials(tasks.count() * s.taps() * tasks.block), partials(tasks.count() * tasks.block);
      const Tensor from = samples(gradient, first);
      run(irnext::cpu::kernels().backward,
          {part, samples(input, first), from, nothing(), kernel.data(), tap_partials.data(), partials.data(), a.window,
           nullptr, nullptr, tasks},
          elements);
      std::vector<double> tap_sums(planes * s.taps()), low_sums(planes);
      add_partials(tasks, part.n, s.c, s.taps(), tap_partials.data(),
                   [&](int64_t i, int64_t tap, double total) { tap_sums[i * s.taps() + tap] = total; });
      add_partials(tasks, part.n, s.c, 1, partials.data(), [&](int64_t i, int64_t, double total) {
        low_sums[i] = a.window ? total : double(m[i]) * total;
        if (!a.window) dmean[i] = A(double(gains[i % s.c]) * total);
      });
      prediction.backward(tap_sums.data(), low_sums.data(), gradients, dmean.data());

      for (A& shift : dmean) shift = A(double(shift) / double(plane));
      run(irnext::cpu::kernels().backward,
          {part, nothing(), from, samples(output, first), kernel.data(), nullptr, nullptr, a.window, gains.data(),
           dmean.data(), cut(part.n, s.c, s.h, s.w, all_channels_last, a.window)},
          elements);
    }
  });
  return {dx, dweight, dnorm_weight, dnorm_bias, dlow, dinner, dhigh};
}

// ---- update_statistics ----

void check_running(const stable::Tensor& running, const stable::Tensor& batch, const char* name) {
  STD_TORCH_CHECK(running.dim() == 1 && batch.dim() == 1 && running.numel() == batch.numel(), name,
                  " must hold ", batch.numel(), " numbers");
  type_of(running, name);
  type_of(batch, name);
}

void update_running(const stable::Tensor& running, const stable::Tensor& batch, double momentum, double correction) {
  const bool narrow = running.element_size() == 2;
  stable::Tensor held = narrow ? stable::to(running, ScalarType::Float) : running;
  const stable::Tensor found = widened(batch, wide_type(batch));
  by_accumulator(held, [&](auto to) {
    by_accumulator(found, [&](auto from) {
      irnext::cpu::update_running(data<decltype(to)>(held), held.stride(0), data<decltype(from)>(found),
                                  found.numel(), momentum, correction);
    });
  });
  if (narrow) {
    stable::Tensor target = running;
    stable::copy_(target, held);
  }
}

void update_statistics(const stable::Tensor& running_mean, const stable::Tensor& running_var,
                       const stable::Tensor& batches, const stable::Tensor& mean, const stable::Tensor& var,
                       int64_t count, std::optional<double> momentum) {
  check_running(running_mean, mean, "running_mean");
  check_running(running_var, var, "running_var");
  STD_TORCH_CHECK(batches.scalar_type() == ScalarType::Long && batches.numel() == 1,
                  "batches must be one int64 number");
  STD_TORCH_CHECK(count > 1, "statistics of a batch need more than one sample");
  const int64_t seen = ++*data<int64_t>(batches);
  const double share = momentum ? *momentum : 1 / double(seen);
  update_running(running_mean, mean, share, 1);
  update_running(running_var, var, share, double(count) / double(count - 1));
}

std::string cpu_instructions(std::string select) {
  STD_TORCH_CHECK(select.empty() || irnext::cpu::select_kernels(select.c_str()),
                  "this machine cannot run the instruction set '", select, "'");
  return irnext::cpu::kernels().name;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(irnext, m) { m.def("cpu_instructions(str select=\"\") -> str"); }

STABLE_TORCH_LIBRARY_IMPL(irnext, CPU, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&dynamic_conv2d));
  m.impl("dynamic_conv2d_backward", TORCH_BOX(&dynamic_conv2d_backward));
  m.impl("spatial_mean", TORCH_BOX(&spatial_mean));
  m.impl("local_mean", TORCH_BOX(&local_mean));
  m.impl("local_mean_backward", TORCH_BOX(&local_mean_backward));
  m.impl("local_attention", TORCH_BOX(&local_attention));
  m.impl("local_attention_backward", TORCH_BOX(&local_attention_backward));
  m.impl("update_statistics", TORCH_BOX(&update_statistics));
}

STABLE_TORCH_LIBRARY_IMPL(irnext, CompositeExplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&cpu_instructions));
}
