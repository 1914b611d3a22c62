// The operators' schemas, and their kernels for CPU tensors, through PyTorch's stable ABI: one
// build serves every PyTorch from 2.11 on. Schemas stand in irnext/ops/registration.py as well,
// for installations without this library; a test holds the two together.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "modulated_filter.h"

namespace {

namespace stable = torch::stable;
using irnext::DynamicConvShape;
using irnext::Padding;
using irnext::Strides;
using irnext::cpu::Tasks;
using irnext::cpu::Type;
using torch::headeronly::ScalarType;

// Enough tasks for the largest machines, none smaller than what is worth a thread.
constexpr int64_t kTasks = 256, kTaskElements = 16384;
constexpr int64_t kMostReach = 1024;  // as in irnext/ops/__init__.py

Type type_of(const stable::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::Half: return Type::f16;
    case ScalarType::BFloat16: return Type::bf16;
    default:
      STD_TORCH_CHECK(false, name, " must be float64, float32, float16 or bfloat16");
      return Type::f32;
  }
}

Padding padding_of(const std::string& mode) {
  if (mode == "reflect") return Padding::reflect;
  if (mode == "replicate") return Padding::replicate;
  STD_TORCH_CHECK(mode == "zeros", "unknown padding_mode '", mode, "': choose reflect, zeros or replicate");
  return Padding::zeros;
}

Strides strides_of(const stable::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

irnext::cpu::Tensor view(const stable::Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must be (N, C, H, W)");
  return {tensor.data_ptr(), type_of(tensor, name), strides_of(tensor)};
}

bool channels_adjacent(const stable::Tensor& tensor) { return tensor.stride(1) == 1 && tensor.size(1) > 1; }

Tasks cut(int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
  const int64_t units = channels_last ? n : n * c, elements = (channels_last ? c : 1) * h * w;
  const int64_t wanted = (kTasks + units - 1) / std::max<int64_t>(units, 1);
  const int64_t most = std::max<int64_t>(std::min(h, elements / kTaskElements), 1);
  const int64_t rows = std::max<int64_t>((h + std::min(wanted, most) - 1) / std::min(wanted, most), 1);
  return {channels_last, units, (h + rows - 1) / rows, rows};
}

template <class Call>
void run(void (*kernel)(const Call&, int64_t, int64_t), const Call& call, int64_t elements) {
  const int64_t tasks = call.tasks.count();
  if (tasks == 0 || elements == 0) return;
  const int64_t grain = std::max<int64_t>(2 * kTaskElements * tasks / elements, 1);
  stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

stable::Tensor dense(const stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : stable::contiguous(tensor);
}

// The small tensors: contiguous, in the type sums are taken in.
stable::Tensor widened(const stable::Tensor& tensor, ScalarType wide) {
  return dense(tensor.scalar_type() == wide ? tensor : stable::to(tensor, wide));
}

// A contiguous tensor on the CPU, by the quickest way there is: for small results that are made often.
stable::Tensor small_empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t strides[4], stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.begin(), strides,
      type == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
      aoti_torch_device_type_cpu(), 0, &handle));
  return stable::Tensor(handle);
}

ScalarType wide_type(const stable::Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

DynamicConvShape shape_of(const stable::Tensor& x, const stable::Tensor& kernel, int64_t dilation,
                          const std::string& padding_mode) {
  STD_TORCH_CHECK(x.dim() == 4 && kernel.dim() == 4, "x must be (N, C, H, W) and kernel (N, G or C, kh, kw)");
  const DynamicConvShape s{x.size(0),      x.size(1),      x.size(2), x.size(3), kernel.size(1),
                           kernel.size(2), kernel.size(3), dilation,  padding_of(padding_mode)};
  STD_TORCH_CHECK(kernel.size(0) == s.n, "kernel is for ", kernel.size(0), " samples but x has ", s.n);
  STD_TORCH_CHECK(s.groups > 0 && s.c % s.groups == 0, "kernel has ", s.groups, " groups for ", s.c, " channels");
  STD_TORCH_CHECK(s.kh % 2 == 1 && s.kw % 2 == 1 && dilation > 0, "kernel must be odd and dilation positive");
  STD_TORCH_CHECK(dilation <= kMostReach && s.reach_h() <= kMostReach && s.reach_w() <= kMostReach,
                  "the filter reaches farther than ", kMostReach, " pixels");
  STD_TORCH_CHECK(s.padding != Padding::reflect || (s.reach_h() < s.h && s.reach_w() < s.w),
                  "reflect padding of ", s.reach_h(), " rows and ", s.reach_w(),
                  " columns must be smaller than the plane, which is ", s.h, "x", s.w);
  return s;
}

// ---- spatial_mean ----

// Adds the tasks' partial sums in a fixed order: out[plane * width + i], `width` numbers a plane.
template <class Write>
void add_partials(const Tasks& tasks, int64_t planes, int64_t width, const double* partial, const Write& write) {
  const int64_t channels = tasks.channels_last ? planes / std::max<int64_t>(tasks.units, 1) : 1;
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int64_t unit = plane / channels, channel = plane % channels;
    for (int64_t i = 0; i < width; ++i) {
      double total = 0;
      for (int64_t band = 0; band < tasks.bands; ++band)
        total += partial[((unit * tasks.bands + band) * width + i) * channels + channel];
      write(plane, i, total);
    }
  }
}

void write_number(const stable::Tensor& out, int64_t index, double value) {
  if (out.scalar_type() == ScalarType::Double)
    static_cast<double*>(out.data_ptr())[index] = value;
  else
    static_cast<float*>(out.data_ptr())[index] = static_cast<float>(value);
}

stable::Tensor spatial_mean(const stable::Tensor& x) {
  const irnext::cpu::Tensor input = view(x, "x");
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  stable::Tensor mean = small_empty({n, c}, wide_type(x));
  const Tasks tasks = cut(n, c, h, w, channels_adjacent(x));
  std::vector<double> partial(tasks.count() * (tasks.channels_last ? c : 1));
  run(irnext::cpu::kernels().spatial_mean, {n, c, h, w, input, partial.data(), tasks}, x.numel());
  add_partials(tasks, n * c, 1, partial.data(),
               [&](int64_t plane, int64_t, double total) { write_number(mean, plane, total / double(h * w)); });
  return mean;
}

// ---- dynamic_conv2d ----

irnext::cpu::Tensor bias_view(const std::optional<stable::Tensor>& bias, const DynamicConvShape& s) {
  if (!bias) return {nullptr, Type::f32, {0, 0, 0, 0}};
  const auto sizes = bias->sizes();
  const bool flat = bias->dim() == 2;
  STD_TORCH_CHECK((flat || bias->dim() == 4) && sizes[0] == s.n && sizes[1] == s.c &&
                      (flat || ((sizes[2] == s.h || sizes[2] == 1) && (sizes[3] == s.w || sizes[3] == 1))),
                  "bias must be (N, C), (N, C, H, 1), (N, C, 1, W) or (N, C, H, W)");
  const int64_t along_h = flat || sizes[2] == 1 ? 0 : bias->stride(2);
  const int64_t along_w = flat || sizes[3] == 1 ? 0 : bias->stride(3);
  return {bias->data_ptr(), type_of(*bias, "bias"), {bias->stride(0), bias->stride(1), along_h, along_w}};
}

stable::Tensor dynamic_conv2d(const stable::Tensor& x, const stable::Tensor& kernel,
                              const std::optional<stable::Tensor>& bias, int64_t dilation,
                              std::string padding_mode) {
  const DynamicConvShape s = shape_of(x, kernel, dilation, padding_mode);
  const irnext::cpu::Tensor input = view(x, "x"), offset = bias_view(bias, s);
  const stable::Tensor weights = widened(kernel, wide_type(x));
  stable::Tensor y = stable::empty_like(x);
  const Tasks tasks = cut(s.n, s.c, s.h, s.w, channels_adjacent(x) && channels_adjacent(y));
  run(irnext::cpu::kernels().forward, {s, input, view(y, "y"), weights.data_ptr(), offset, tasks}, x.numel());
  return y;
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor> dynamic_conv2d_backward(
    const stable::Tensor& grad, const stable::Tensor& x, const stable::Tensor& kernel, int64_t dilation,
    std::string padding_mode, bool need_x, bool need_kernel, bool need_sum) {
  const DynamicConvShape s = shape_of(x, kernel, dilation, padding_mode);
  STD_TORCH_CHECK(grad.dim() == 4 && std::equal(grad.sizes().begin(), grad.sizes().end(), x.sizes().begin()) &&
                      grad.scalar_type() == x.scalar_type(),
                  "grad must have the shape and type of x");
  const ScalarType wide = wide_type(x);
  const stable::Tensor weights = widened(kernel, wide);
  stable::Tensor dx = need_x ? stable::empty_like(x) : stable::new_empty(x, {0});
  const bool channels_last =
      channels_adjacent(x) && channels_adjacent(grad) && (!need_x || channels_adjacent(dx));
  const Tasks tasks = cut(s.n, s.c, s.h, s.w, channels_last);
  const int64_t channels = channels_last ? s.c : 1;
  std::vector<double> tap_sums(need_kernel ? tasks.count() * s.taps() * channels : 0);
  std::vector<double> grad_sums(need_sum ? tasks.count() * channels : 0);
  const irnext::cpu::Tensor nothing{nullptr, Type::f32, {0, 0, 0, 0}};
  run(irnext::cpu::kernels().backward,
      {s, view(x, "x"), view(grad, "grad"), need_x ? view(dx, "dx") : nothing, weights.data_ptr(),
       need_kernel ? tap_sums.data() : nullptr, need_sum ? grad_sums.data() : nullptr, tasks},
      x.numel());

  stable::Tensor dkernel, grad_sum = small_empty({0}, wide);
  if (need_kernel) {
    std::vector<double> sums(s.n * s.groups * s.taps());
    const int64_t shared = s.c / s.groups;  // planes that share a kernel
    add_partials(tasks, s.n * s.c, s.taps(), tap_sums.data(),
                 [&](int64_t plane, int64_t tap, double total) { sums[plane / shared * s.taps() + tap] += total; });
    dkernel = small_empty({s.n, s.groups, s.kh, s.kw}, wide);
    for (size_t i = 0; i < sums.size(); ++i) write_number(dkernel, int64_t(i), sums[i]);
    if (kernel.scalar_type() != wide) dkernel = stable::to(dkernel, kernel.scalar_type());
  } else {
    dkernel = stable::new_empty(kernel, {0});
  }
  if (need_sum) {
    grad_sum = small_empty({s.n, s.c}, wide);
    add_partials(tasks, s.n * s.c, 1, grad_sums.data(),
                 [&](int64_t plane, int64_t, double total) { write_number(grad_sum, plane, total); });
  }
  return {dx, dkernel, grad_sum};
}

// ---- modulated_filter ----

using irnext::cpu::Activation;
using irnext::cpu::FilterShape;

FilterShape filter_shape(const stable::Tensor& logits, const stable::Tensor& mean, const stable::Tensor& low,
                         const stable::Tensor& inner, const stable::Tensor& high, const std::string& activation) {
  STD_TORCH_CHECK(logits.dim() == 4 && mean.dim() == 2 && logits.size(0) == mean.size(0),
                  "logits must be (N, G, kh, kw) and mean (N, C)");
  const int64_t n = logits.size(0), c = mean.size(1), groups = logits.size(1);
  const int64_t taps = logits.size(2) * logits.size(3);
  STD_TORCH_CHECK(taps % 2 == 1, "both sides of the filter must be odd");
  STD_TORCH_CHECK(groups > 0 && c % groups == 0 && taps > 0, "groups must divide the channels");
  for (const stable::Tensor* gain : {&low, &inner, &high})
    STD_TORCH_CHECK(gain->numel() == c, "low, inner and high must have one value for each of the ", c, " channels");
  for (const stable::Tensor* tensor : {&mean, &low, &inner, &high})
    STD_TORCH_CHECK(tensor->scalar_type() == logits.scalar_type() && wide_type(*tensor) == tensor->scalar_type(),
                    "logits, mean, low, inner and high must be of one type, float32 or float64");
  STD_TORCH_CHECK(activation == "tanh" || activation == "sigmoid" || activation == "softmax",
                  "unknown activation '", activation, "': choose tanh, sigmoid or softmax");
  return {n, c, groups, taps,
          activation == "tanh"      ? Activation::tanh
          : activation == "sigmoid" ? Activation::sigmoid
                                    : Activation::softmax};
}

// Call body with a number of the type that `like` holds.
template <class Body>
void by_accumulator(const stable::Tensor& like, const Body& body) {
  if (like.scalar_type() == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

std::tuple<stable::Tensor, stable::Tensor> modulated_filter(const stable::Tensor& logits, const stable::Tensor& mean,
                                                            const stable::Tensor& low, const stable::Tensor& inner,
                                                            const stable::Tensor& high, std::string activation) {
  const FilterShape s = filter_shape(logits, mean, low, inner, high, activation);
  stable::Tensor kernel = small_empty({s.n, s.c, logits.size(2), logits.size(3)}, logits.scalar_type());
  stable::Tensor bias = small_empty({s.n, s.c}, logits.scalar_type());
  const stable::Tensor inputs[] = {dense(logits), dense(mean), dense(low),
                                   dense(inner), dense(high)};
  by_accumulator(logits, [&](auto number) {
    using A = decltype(number);
    const auto data = [](const stable::Tensor& tensor) { return static_cast<A*>(tensor.data_ptr()); };
    irnext::cpu::modulated_filter<A>(s, data(inputs[0]), data(inputs[1]), data(inputs[2]), data(inputs[3]),
                                     data(inputs[4]), data(kernel), data(bias));
  });
  return {kernel, bias};
}

std::tuple<stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor, stable::Tensor> modulated_filter_backward(
    const stable::Tensor& grad_kernel, const stable::Tensor& grad_bias, const stable::Tensor& logits,
    const stable::Tensor& mean, const stable::Tensor& low, const stable::Tensor& inner, std::string activation) {
  const FilterShape s = filter_shape(logits, mean, low, inner, low, activation);
  STD_TORCH_CHECK(grad_kernel.numel() == s.n * s.c * s.taps && grad_bias.numel() == s.n * s.c &&
                      grad_kernel.scalar_type() == logits.scalar_type() &&
                      grad_bias.scalar_type() == logits.scalar_type(),
                  "the gradients must have the shapes and type of kernel and bias");
  const stable::Tensor inputs[] = {dense(grad_kernel), dense(grad_bias),
                                   dense(logits),      dense(mean),
                                   dense(low),         dense(inner)};
  stable::Tensor dlogits = small_empty({s.n, s.groups, logits.size(2), logits.size(3)}, logits.scalar_type());
  stable::Tensor dmean = small_empty({s.n, s.c}, logits.scalar_type());
  stable::Tensor dlow = small_empty({s.c}, logits.scalar_type()), dinner = small_empty({s.c}, logits.scalar_type());
  stable::Tensor dhigh = small_empty({s.c}, logits.scalar_type());
  by_accumulator(logits, [&](auto number) {
    using A = decltype(number);
    const auto data = [](const stable::Tensor& tensor) { return static_cast<A*>(tensor.data_ptr()); };
    irnext::cpu::modulated_filter_backward<A>(s, data(inputs[0]), data(inputs[1]), data(inputs[2]), data(inputs[3]),
                                              data(inputs[4]), data(inputs[5]), data(dlogits), data(dmean),
                                              data(dlow), data(dinner), data(dhigh));
  });
  return {dlogits, dmean, dlow, dinner, dhigh};
}

std::string cpu_instructions(std::string select) {
  STD_TORCH_CHECK(select.empty() || irnext::cpu::select_kernels(select.c_str()),
                  "this machine cannot run the instruction set '", select, "'");
  return irnext::cpu::kernels().name;
}

}  // namespace

STABLE_TORCH_LIBRARY(irnext, m) {
  m.def(
      "dynamic_conv2d(Tensor x, Tensor kernel, Tensor? bias=None, int dilation=1, "
      "str padding_mode=\"reflect\") -> Tensor");
  m.def(
      "dynamic_conv2d_backward(Tensor grad, Tensor x, Tensor kernel, int dilation, str padding_mode, "
      "bool need_x, bool need_kernel, bool need_sum) -> (Tensor, Tensor, Tensor)");
  m.def("spatial_mean(Tensor x) -> Tensor");
  m.def(
      "modulated_filter(Tensor logits, Tensor mean, Tensor low, Tensor inner, Tensor high, str activation) "
      "-> (Tensor, Tensor)");
  m.def(
      "modulated_filter_backward(Tensor grad_kernel, Tensor grad_bias, Tensor logits, Tensor mean, Tensor low, "
      "Tensor inner, str activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cpu_instructions(str select=\"\") -> str");
}

STABLE_TORCH_LIBRARY_IMPL(irnext, CPU, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&dynamic_conv2d));
  m.impl("dynamic_conv2d_backward", TORCH_BOX(&dynamic_conv2d_backward));
  m.impl("spatial_mean", TORCH_BOX(&spatial_mean));
  m.impl("modulated_filter", TORCH_BOX(&modulated_filter));
  m.impl("modulated_filter_backward", TORCH_BOX(&modulated_filter_backward));
}

STABLE_TORCH_LIBRARY_IMPL(irnext, CompositeExplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&cpu_instructions));
}
