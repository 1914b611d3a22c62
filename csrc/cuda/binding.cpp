// The operators on CUDA tensors, through PyTorch's stable ABI; those of the pyramids are in pyramid_binding.cpp.
// Nothing here synchronises, and all memory comes from PyTorch: calls can be captured into CUDA graphs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "binding/arguments.h"
#include "binding/cuda.h"
#include "irnext/cuda/attention.h"
#include "irnext/cuda/local_mean.h"

namespace {

using namespace irnext::binding;
using irnext::Activation;
using irnext::DynamicConvShape;
using irnext::Padding;
using irnext::Tensor;
using irnext::Type;
using irnext::Window;
namespace cuda = irnext::cuda;

// A contiguous tensor beside x, of the type that sums of x are taken in.
stable::Tensor wide_empty(const stable::Tensor& x, std::initializer_list<int64_t> sizes) {
  return stable::new_empty(x, sizes, wide_type(x));
}

// Several arrays of such numbers in one allocation, each aligned for vector accesses.
class Workspace {
 public:
  Workspace(const stable::Tensor& x, std::initializer_list<int64_t> counts)
      : size_(wide_type(x) == ScalarType::Double ? 8 : 4) {
    int64_t total = 0;
    for (const int64_t count : counts) {
      offsets_.push_back(total);
      total += (count + 3) / 4 * 4;
    }
    memory_ = wide_empty(x, {total});
  }

  void* operator[](int i) const { return static_cast<char*>(memory_.data_ptr()) + offsets_[i] * size_; }

 private:
  int64_t size_;
  std::vector<int64_t> offsets_;
  stable::Tensor memory_;
};

// ---- means ----

stable::Tensor spatial_mean(const stable::Tensor& x) {
  const Tensor input = view(x, "x");
  const Execution execution(x);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  const int64_t splits = cuda::mean_splits(execution.device(), n, c, h, w, input);
  stable::Tensor mean = wide_empty(x, {n, c});
  const Workspace workspace(x, {splits * n * c});
  const cuda::MeanCall call{n, c, h, w, input, splits, workspace[0]};
  check(cuda::mean_partials(call, execution.stream()), "spatial_mean");
  check(cuda::finish_mean(call, mean.data_ptr(), execution.stream()), "spatial_mean");
  return mean;
}

// A tensor of x's sizes and layout but wide.
stable::Tensor wide_like(const stable::Tensor& x) {
  if (wide_type(x) == x.scalar_type()) return stable::empty_like(x);
  const bool channels_last = channels_adjacent(x);
  return stable::empty(x.sizes(), wide_type(x), std::nullopt, x.device(), std::nullopt,
                       channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                     : torch::headeronly::MemoryFormat::Contiguous);
}

// The window mean of x, or its adjoint, in x's layout.
stable::Tensor window_mean(const Execution& execution, const stable::Tensor& x, const Window& window, bool adjoint) {
  stable::Tensor y = stable::empty_like(x);
  const stable::Tensor between = wide_like(x);
  check(cuda::local_mean({x.size(0), x.size(1), x.size(2), x.size(3), window.rows, window.columns, adjoint,
                          view(x, "x"), view(y, "y"), view(between, "between")},
                         execution.stream()),
        "local_mean");
  return y;
}

stable::Tensor local_mean(const stable::Tensor& x, Sizes window) {
  const Window sizes = window_of(x, window);
  return window_mean(Execution(x), x, sizes, false);
}

stable::Tensor local_mean_backward(const stable::Tensor& grad, Sizes window) {
  const Window sizes = window_of(grad, window);
  return window_mean(Execution(grad), grad, sizes, true);
}

// ---- dynamic_conv2d ----

stable::Tensor dynamic_conv2d(const stable::Tensor& x, const stable::Tensor& kernel,
                              const std::optional<stable::Tensor>& bias, int64_t dilation,
                              std::string padding_mode) {
  const DynamicConvShape s = shape_of(x, kernel, dilation, padding_mode);
  if (bias) check_beside(*bias, x, "bias");
  const Execution execution(x);
  const stable::Tensor weights = dense(kernel);
  stable::Tensor y = stable::empty_like(x);
  cuda::FilterCall call{s, view(x, "x"), view(y, "y"), weights.data_ptr(), type_of(kernel, "kernel"), {}};
  call.offset.tensor = bias_view(bias, s);
  check(cuda::filter(call, execution.stream()), "dynamic_conv2d");
  return y;
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor> dynamic_conv2d_backward(
    const stable::Tensor& grad, const stable::Tensor& x, const stable::Tensor& kernel, int64_t dilation,
    std::string padding_mode, bool need_x, bool need_kernel, bool need_sum) {
  const DynamicConvShape s = shape_of(x, kernel, dilation, padding_mode);
  check_gradient(grad, x);
  const Execution execution(x);
  const Tensor input = view(x, "x"), gradient = view(grad, "grad");
  stable::Tensor dx = need_x ? stable::empty_like(x) : stable::new_empty(x, {0});
  stable::Tensor dkernel = stable::new_empty(kernel, {0});
  stable::Tensor grad_sum = need_sum ? wide_empty(x, {s.n, s.c}) : wide_empty(x, {0});
  if (need_kernel || need_sum) {
    const int64_t splits = cuda::sum_splits(execution.device(), s, input, gradient);
    const Workspace workspace(x, {need_kernel ? splits * s.n * s.c * s.taps() : 0, need_sum ? splits * s.n * s.c : 0});
    if (need_kernel) dkernel = wide_empty(x, {s.n, s.groups, s.kh, s.kw});
    const cuda::SumsCall call{s, input, gradient, splits, need_kernel ? workspace[0] : nullptr,
                              need_sum ? workspace[1] : nullptr};
    check(cuda::filter_sums(call, execution.stream()), "dynamic_conv2d_backward");
    check(cuda::finish_sums(call, need_kernel ? dkernel.data_ptr() : nullptr, need_sum ? grad_sum.data_ptr() : nullptr,
                            execution.stream()),
          "dynamic_conv2d_backward");
    if (need_kernel && kernel.scalar_type() != dkernel.scalar_type())
      dkernel = stable::to(dkernel, kernel.scalar_type());
  }
  if (need_x) {
    const stable::Tensor weights = dense(kernel);
    check(cuda::filter_input_gradient({s, gradient, view(dx, "dx"), weights.data_ptr(), type_of(kernel, "kernel"), {}},
                                      execution.stream()),
          "dynamic_conv2d_backward");
  }
  return {dx, dkernel, grad_sum};
}

// ---- local_attention ----

// The parameters, dense and of the right sizes, held while their data is used.
class Parameters {
 public:
  Parameters(const stable::Tensor& x, const Attention& a, const stable::Tensor& weight,
             const stable::Tensor& norm_weight, const stable::Tensor& norm_bias, const stable::Tensor& low,
             const stable::Tensor& inner, const stable::Tensor& high)
      : weight_(numbers(weight, a.logits() * a.filter.c, x, "weight")),
        norm_weight_(numbers(norm_weight, a.logits(), x, "norm_weight")),
        norm_bias_(numbers(norm_bias, a.logits(), x, "norm_bias")),
        low_(numbers(low, a.filter.c, x, "low")),
        inner_(numbers(inner, a.filter.c, x, "inner")),
        high_(numbers(high, a.filter.c, x, "high")) {}

  cuda::AttentionParameters view(const void* logit_mean, const void* logit_var) const {
    return {weight_.data_ptr(), norm_weight_.data_ptr(), norm_bias_.data_ptr(), logit_mean, logit_var,
            low_.data_ptr(),    inner_.data_ptr(),       high_.data_ptr()};
  }

 private:
  stable::Tensor weight_, norm_weight_, norm_bias_, low_, inner_, high_;
};

cuda::AttentionShape attention_shape(const Attention& a, bool training, double eps) {
  const DynamicConvShape& s = a.filter;
  STD_TORCH_CHECK(s.c > 0, "x has no channels");
  STD_TORCH_CHECK(!training || s.n > 1, "statistics of a batch need more than one sample");
  return {s.n, s.c, s.h, s.w, s.groups, s.kh, s.kw, a.activation, training, bool(a.window), eps};
}

// The predicted filter: one for each channel.
DynamicConvShape per_channel(DynamicConvShape s) {
  s.groups = s.c;
  return s;
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor> local_attention(
    const stable::Tensor& x, const stable::Tensor& weight, const stable::Tensor& norm_weight,
    const stable::Tensor& norm_bias, const std::optional<stable::Tensor>& running_mean,
    const std::optional<stable::Tensor>& running_var, const stable::Tensor& low, const stable::Tensor& inner,
    const stable::Tensor& high, Sizes kernel_size, bool training, double eps, std::string activation,
    std::optional<Sizes> window) {
  const Attention a = attention_of(x, weight, kernel_size, activation, window);
  const cuda::AttentionShape s = attention_shape(a, training, eps);
  STD_TORCH_CHECK(training || (running_mean && running_var), "running statistics are needed in evaluation");
  const Execution execution(x);
  const Parameters parameters(x, a, weight, norm_weight, norm_bias, low, inner, high);
  const Tensor input = view(x, "x");
  const Type wide = cuda::accumulation_type(input.type);
  stable::Tensor y = stable::empty_like(x), mean = wide_empty(x, {s.n, s.c});
  stable::Tensor batch_mean = wide_empty(x, {training ? a.logits() : 0}), batch_var = stable::empty_like(batch_mean);
  const stable::Tensor logit_mean = training ? batch_mean : numbers(*running_mean, a.logits(), x, "running_mean");
  const stable::Tensor logit_var = training ? batch_var : numbers(*running_var, a.logits(), x, "running_var");
  const cuda::AttentionParameters p = parameters.view(logit_mean.data_ptr(), logit_var.data_ptr());

  const cuda::AttentionPlan plan = cuda::plan_attention(execution.device(), s, input);
  if (plan.blocks > 0) {
    check(cuda::small_attention({s, p, input, view(y, "y"), mean.data_ptr()}, plan, execution.stream()),
          "local_attention");
    return {y, mean, batch_mean, batch_var};
  }
  const int64_t planes = s.n * s.c, splits = cuda::mean_splits(execution.device(), s.n, s.c, s.h, s.w, input);
  const Workspace workspace(x, {splits * planes, s.n * a.logits(), planes * s.taps(), planes});
  void *const partial = workspace[0], *const kernel = workspace[2], *const offset = workspace[3];
  check(cuda::mean_partials({s.n, s.c, s.h, s.w, input, splits, partial}, execution.stream()), "local_attention");
  check(cuda::predict_filter({s, p, wide, splits, partial, workspace[1], mean.data_ptr(), kernel, offset,
                              batch_mean.data_ptr(), batch_var.data_ptr()},
                             execution.stream()),
        "local_attention");
  cuda::FilterCall call{per_channel(a.filter), input, view(y, "y"), kernel, wide, {}};
  stable::Tensor low_pass;
  if (a.window) {
    low_pass = window_mean(execution, x, a.window, false);
    call.offset.tensor = view(low_pass, "local mean");
    call.offset.scale = offset;
  } else {
    call.offset.plane = offset;
  }
  check(cuda::filter(call, execution.stream()), "local_attention");
  return {y, mean, batch_mean, batch_var};
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
  const cuda::AttentionShape s = attention_shape(a, training, eps);
  check_gradient(grad, x);
  const Execution execution(x);
  const Parameters parameters(x, a, weight, norm_weight, norm_bias, low, inner, high);
  const stable::Tensor means = numbers(mean, s.n * s.c, x, "mean");
  const stable::Tensor centre = numbers(logit_mean, a.logits(), x, "logit_mean");
  const stable::Tensor spread = numbers(logit_var, a.logits(), x, "logit_var");
  const Tensor input = view(x, "x"), gradient = view(grad, "grad");
  const Type wide = cuda::accumulation_type(input.type);
  stable::Tensor dx = stable::empty_like(x), dweight = wide_empty(x, {a.logits(), s.c});
  stable::Tensor dnorm_weight = wide_empty(x, {a.logits()}), dnorm_bias = wide_empty(x, {a.logits()});
  stable::Tensor dlow = wide_empty(x, {s.c}), dinner = wide_empty(x, {s.c}), dhigh = wide_empty(x, {s.c});

  // With a window, sum grad * local_mean(x) = sum local_mean^T(grad) * x, and dx needs the latter's first factor too.
  stable::Tensor spread_grad;
  DynamicConvShape product = per_channel(a.filter);
  product.kh = product.kw = 1;
  if (a.window) spread_grad = window_mean(execution, grad, a.window, true);
  const DynamicConvShape filter = per_channel(a.filter);
  const int64_t planes = s.n * s.c, splits = cuda::sum_splits(execution.device(), filter, input, gradient);
  const int64_t offset_splits =
      a.window ? cuda::sum_splits(execution.device(), product, input, view(spread_grad, "grad")) : splits;
  const Workspace workspace(x, {splits * planes * s.taps(), offset_splits * planes, 3 * s.n * a.logits(),
                                planes * s.taps(), planes, planes});
  void *const taps = workspace[0], *const offsets = workspace[1], *const kernel = workspace[3];
  void *const scale = workspace[4], *const plane = workspace[5];
  check(cuda::filter_sums({filter, input, gradient, splits, taps, a.window ? nullptr : offsets}, execution.stream()),
        "local_attention_backward");
  if (a.window)
    check(cuda::filter_sums({product, input, view(spread_grad, "grad"), offset_splits, offsets, nullptr},
                            execution.stream()),
          "local_attention_backward");
  check(cuda::predict_filter_backward(
            {s, parameters.view(centre.data_ptr(), spread.data_ptr()), wide, means.data_ptr(), splits, offset_splits,
             taps, offsets, workspace[2], kernel, scale, plane, dweight.data_ptr(), dnorm_weight.data_ptr(),
             dnorm_bias.data_ptr(), dlow.data_ptr(), dinner.data_ptr(), dhigh.data_ptr()},
            execution.device(), execution.stream()),
        "local_attention_backward");
  cuda::InputCall call{filter, gradient, view(dx, "dx"), kernel, wide, {}};
  call.offset.plane = plane;
  if (a.window) {
    call.offset.tensor = view(spread_grad, "grad");
    call.offset.scale = scale;
  }
  check(cuda::filter_input_gradient(call, execution.stream()), "local_attention_backward");
  return {dx, dweight, dnorm_weight, dnorm_bias, dlow, dinner, dhigh};
}

void update_statistics(const stable::Tensor& running_mean, const stable::Tensor& running_var,
                       const stable::Tensor& batches, const stable::Tensor& mean, const stable::Tensor& var,
                       int64_t count, std::optional<double> momentum) {
  const int64_t size = mean.numel();
  STD_TORCH_CHECK(batches.scalar_type() == ScalarType::Long && batches.numel() == 1,
                  "batches must be one int64 number");
  STD_TORCH_CHECK(count > 1, "statistics of a batch need more than one sample");
  for (const stable::Tensor* running : {&running_mean, &running_var})
    STD_TORCH_CHECK(running->dim() == 1 && running->numel() == size &&
                        running->scalar_type() == running_mean.scalar_type(),
                    "running_mean and running_var must hold ", size, " numbers of one type");
  for (const stable::Tensor* tensor : {&running_var, &batches, &mean, &var})
    check_beside(*tensor, running_mean, "every argument");
  const Execution execution(running_mean);
  const stable::Tensor means = dense(mean), variances = numbers(var, size, mean, "var");
  STD_TORCH_CHECK(wide_type(mean) == mean.scalar_type(), "mean must be float32 or float64");
  check(cuda::update_statistics({size, count, type_of(mean, "mean"), type_of(running_mean, "running_mean"),
                                 means.data_ptr(), variances.data_ptr(), running_mean.data_ptr(),
                                 running_var.data_ptr(), running_mean.stride(0), running_var.stride(0),
                                 static_cast<int64_t*>(batches.data_ptr()), !momentum, momentum.value_or(0)},
                                execution.stream()),
        "update_statistics");
}

// ---- what the kernels do, for tests and reports ----

// Kernel launches since the library was loaded.
int64_t launches() { return cuda::launches(); }

// How the attention with 3x3 filters of such an x is launched in evaluation, and why.
std::string attention_plan(int64_t n, int64_t c, int64_t h, int64_t w, int64_t groups, std::string dtype,
                           bool channels_last) {
  const Type type = dtype == "float64"   ? Type::f64
                    : dtype == "float32" ? Type::f32
                    : dtype == "float16" ? Type::f16
                                         : Type::bf16;
  STD_TORCH_CHECK(type != Type::bf16 || dtype == "bfloat16", "unknown dtype '", dtype, "'");
  STD_TORCH_CHECK(groups > 0 && c > 0 && c % groups == 0, groups, " groups do not divide ", c, " channels");
  const cuda::AttentionShape s{n, c, h, w, groups, 3, 3, Activation::tanh, false, false, 0};
  const Tensor x = channels_last ? Tensor{nullptr, type, {h * w * c, 1, w * c, c}}
                                 : Tensor{nullptr, type, {c * h * w, h * w, w, 1}};
  return cuda::plan_attention(device_facts(), s, x).reason;
}

#if defined(IRNEXT_CUDA_HOST)
void schedule(std::string order) {
  STD_TORCH_CHECK(cuda::host::set_schedule(order), "unknown order '", order, "': choose forward, reverse or shuffled");
}

// The device to pretend to be.
void device(int64_t capability, int64_t shared_per_block) {
  cuda::host::device_facts().capability = int(capability);
  cuda::host::device_facts().shared_per_block = int(shared_per_block);
}
#endif

}  // namespace

IRNEXT_CUDA_FRAGMENT(IRNEXT_CUDA_NAMESPACE, m) {
  m.def("launches() -> int");
  m.def("attention_plan(int n, int c, int h, int w, int groups, str dtype, bool channels_last) -> str");
#if defined(IRNEXT_CUDA_HOST)
  m.def("schedule(str order) -> ()");
  m.def("device(int capability, int shared_per_block) -> ()");
#endif
}

IRNEXT_CUDA_IMPL(IRNEXT_CUDA_NAMESPACE, IRNEXT_CUDA_KEY, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&dynamic_conv2d));
  m.impl("dynamic_conv2d_backward", TORCH_BOX(&dynamic_conv2d_backward));
  m.impl("spatial_mean", TORCH_BOX(&spatial_mean));
  m.impl("local_mean", TORCH_BOX(&local_mean));
  m.impl("local_mean_backward", TORCH_BOX(&local_mean_backward));
  m.impl("local_attention", TORCH_BOX(&local_attention));
  m.impl("local_attention_backward", TORCH_BOX(&local_attention_backward));
  m.impl("update_statistics", TORCH_BOX(&update_statistics));
}

IRNEXT_CUDA_IMPL(IRNEXT_CUDA_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("launches", TORCH_BOX(&launches));
  m.impl("attention_plan", TORCH_BOX(&attention_plan));
#if defined(IRNEXT_CUDA_HOST)
  m.impl("schedule", TORCH_BOX(&schedule));
  m.impl("device", TORCH_BOX(&device));
#endif
}
