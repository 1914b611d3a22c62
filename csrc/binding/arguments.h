// From PyTorch's tensors, through its stable ABI, to the shapes and views that kernels take. Whatever would
// make a kernel read or write outside memory is refused here; irnext/ops/__init__.py explains more to users.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "irnext/geometry.h"
#include "irnext/pyramid.h"
#include "irnext/tensor.h"
#include "irnext/window.h"

namespace irnext::binding {

namespace stable = torch::stable;
using torch::headeronly::ScalarType;
using Sizes = std::vector<int64_t>;

constexpr int64_t kMostReach = 1024;  // as in irnext/ops/__init__.py

inline Type type_of(const stable::Tensor& tensor, const char* name) {
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

inline Padding padding_of(const std::string& mode) {
  if (mode == "reflect") return Padding::reflect;
  if (mode == "replicate") return Padding::replicate;
  STD_TORCH_CHECK(mode == "zeros", "unknown padding_mode '", mode, "': choose reflect, zeros or replicate");
  return Padding::zeros;
}

inline Activation activation_of(const std::string& name) {
  if (name == "tanh") return Activation::tanh;
  if (name == "sigmoid") return Activation::sigmoid;
  STD_TORCH_CHECK(name == "softmax", "unknown activation '", name, "': choose tanh, sigmoid or softmax");
  return Activation::softmax;
}

inline Strides strides_of(const stable::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// The view of a tensor that is not there.
inline Tensor nothing() { return {nullptr, Type::f32, {0, 0, 0, 0}}; }

inline Tensor view(const stable::Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must be (N, C, H, W)");
  return {tensor.data_ptr(), type_of(tensor, name), strides_of(tensor)};
}

inline bool channels_adjacent(const stable::Tensor& tensor) { return tensor.stride(1) == 1 && tensor.size(1) > 1; }

// The type that sums are taken in, and kernels, means and parameters are given in.
inline ScalarType wide_type(const stable::Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline stable::Tensor dense(const stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : stable::contiguous(tensor);
}

inline stable::Tensor widened(const stable::Tensor& tensor, ScalarType wide) {
  return dense(tensor.scalar_type() == wide ? tensor : stable::to(tensor, wide));
}

inline void check_beside(const stable::Tensor& tensor, const stable::Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() == x.is_cpu() && tensor.get_device_index() == x.get_device_index(), name,
                  " must be on the device of x");
}

// ---- dynamic_conv2d ----

inline void check_filter(const DynamicConvShape& s) {
  STD_TORCH_CHECK(s.groups > 0 && s.c % s.groups == 0, s.groups, " groups do not divide ", s.c, " channels");
  STD_TORCH_CHECK(s.kh > 0 && s.kw > 0 && s.kh % 2 == 1 && s.kw % 2 == 1 && s.dilation > 0,
                  "kernel must be odd and dilation positive");
  STD_TORCH_CHECK(s.dilation <= kMostReach && s.kh <= 2 * kMostReach + 1 && s.kw <= 2 * kMostReach + 1 &&
                      s.reach_h() <= kMostReach && s.reach_w() <= kMostReach,
                  "the filter reaches farther than ", kMostReach, " pixels");
  STD_TORCH_CHECK(s.padding != Padding::reflect || (s.reach_h() < s.h && s.reach_w() < s.w),
                  "reflect padding of ", s.reach_h(), " rows and ", s.reach_w(),
                  " columns must be smaller than the plane, which is ", s.h, "x", s.w);
}

inline DynamicConvShape shape_of(const stable::Tensor& x, const stable::Tensor& kernel, int64_t dilation,
                                 const std::string& padding_mode) {
  STD_TORCH_CHECK(x.dim() == 4 && kernel.dim() == 4, "x must be (N, C, H, W) and kernel (N, G or C, kh, kw)");
  const DynamicConvShape s{x.size(0),      x.size(1),      x.size(2), x.size(3), kernel.size(1),
                           kernel.size(2), kernel.size(3), dilation,  padding_of(padding_mode)};
  STD_TORCH_CHECK(kernel.size(0) == s.n, "kernel is for ", kernel.size(0), " samples but x has ", s.n);
  check_beside(kernel, x, "kernel");
  check_filter(s);
  return s;
}

inline Tensor bias_view(const std::optional<stable::Tensor>& bias, const DynamicConvShape& s) {
  if (!bias) return nothing();
  const auto sizes = bias->sizes();
  const bool flat = bias->dim() == 2;
  STD_TORCH_CHECK((flat || bias->dim() == 4) && sizes[0] == s.n && sizes[1] == s.c &&
                      (flat || ((sizes[2] == s.h || sizes[2] == 1) && (sizes[3] == s.w || sizes[3] == 1))),
                  "bias must be (N, C), (N, C, H, 1), (N, C, 1, W) or (N, C, H, W)");
  const int64_t along_h = flat || sizes[2] == 1 ? 0 : bias->stride(2);
  const int64_t along_w = flat || sizes[3] == 1 ? 0 : bias->stride(3);
  return {bias->data_ptr(), type_of(*bias, "bias"), {bias->stride(0), bias->stride(1), along_h, along_w}};
}

inline void check_gradient(const stable::Tensor& grad, const stable::Tensor& x) {
  STD_TORCH_CHECK(grad.dim() == 4 && std::equal(grad.sizes().begin(), grad.sizes().end(), x.sizes().begin()) &&
                      grad.scalar_type() == x.scalar_type(),
                  "grad must have the shape and type of x");
  check_beside(grad, x, "grad");
}

// ---- local means ----

inline Window window_of(const stable::Tensor& x, const Sizes& window) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be (N, C, H, W)");
  STD_TORCH_CHECK(window.size() == 2 && window[0] > 0 && window[1] > 0, "window must be two positive sizes");
  return {std::min(window[0], x.size(2)), std::min(window[1], x.size(3))};
}

// ---- local attention ----

struct Attention {
  DynamicConvShape filter;  // the filter that it predicts and applies
  Activation activation;
  Window window;

  int64_t logits() const { return filter.groups * filter.taps(); }  // of one sample
};

inline Attention attention_of(const stable::Tensor& x, const stable::Tensor& weight, const Sizes& kernel_size,
                              const std::string& activation, const std::optional<Sizes>& window) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be (N, C, H, W)");
  STD_TORCH_CHECK(kernel_size.size() == 2 && kernel_size[0] > 0 && kernel_size[1] > 0 &&
                      std::max(kernel_size[0], kernel_size[1]) <= 2 * kMostReach + 1,
                  "kernel_size must be two positive sizes");
  const int64_t taps = kernel_size[0] * kernel_size[1], channels = x.size(1);
  STD_TORCH_CHECK(weight.dim() >= 2 && weight.size(0) % taps == 0 && weight.size(1) == channels &&
                      weight.numel() == weight.size(0) * channels,
                  "weight must be (G * kh * kw, C) or (G * kh * kw, C, 1, 1)");
  const DynamicConvShape filter{x.size(0),      channels,       x.size(2), x.size(3), weight.size(0) / taps,
                                kernel_size[0], kernel_size[1], 1,         Padding::reflect};
  check_filter(filter);
  return {filter, activation_of(activation), window ? window_of(x, *window) : Window{}};
}

// A small tensor beside x: `count` numbers in the type that sums of x are taken in, contiguous.
inline stable::Tensor numbers(const stable::Tensor& tensor, int64_t count, const stable::Tensor& x,
                              const char* name) {
  STD_TORCH_CHECK(tensor.numel() == count, name, " must hold ", count, " numbers");
  STD_TORCH_CHECK(tensor.scalar_type() == wide_type(x), name, " must be ",
                  wide_type(x) == ScalarType::Double ? "float64" : "float32");
  check_beside(tensor, x, name);
  return dense(tensor);
}

// ---- pyramids ----

constexpr int64_t kLongestSide = INT32_MAX;  // products of two sides fit into 64 bits

// A new tensor of the samples, channels and type of `like`: channels_last where the channels of `like` lie side by
// side, else contiguous.
inline stable::Tensor empty_plane(const stable::Tensor& like, int64_t h, int64_t w) {
  using torch::headeronly::MemoryFormat;
  const Sizes sizes{like.size(0), like.size(1), h, w};
  return stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                       channels_adjacent(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline void check_sides(int64_t h, int64_t w, const char* name) {
  STD_TORCH_CHECK(h <= kLongestSide && w <= kLongestSide, name, " is ", h, "x", w, ": a side may have at most ",
                  kLongestSide, " pixels");
}

inline void check_rates(const Sizes& rates, int64_t h, int64_t w) {
  check_sides(h, w, "the plane");
  for (const int64_t rate : rates)
    STD_TORCH_CHECK(rate >= 1 && rate <= h && rate <= w, "rate ", rate,
                    " must be between 1 and the sides of the plane, ", h, "x", w);
}

// The gradients of the pools of a plane of `size`, one for each rate.
inline void check_pools(const std::vector<stable::Tensor>& grads, const Sizes& rates, const Sizes& size) {
  STD_TORCH_CHECK(!grads.empty() && grads.size() == rates.size(), "there must be a gradient for each of ",
                  rates.size(), " rates, at least one, got ", grads.size());
  STD_TORCH_CHECK(size.size() == 2, "size must be rows and columns");
  check_rates(rates, size[0], size[1]);
  const stable::Tensor& first = grads[0];
  STD_TORCH_CHECK(first.dim() == 4, "gradients must be (N, C, h, w)");
  for (size_t i = 0; i < grads.size(); ++i) {
    const stable::Tensor& grad = grads[i];
    const int64_t h = size[0] / rates[i], w = size[1] / rates[i];
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == first.size(0) && grad.size(1) == first.size(1) &&
                        grad.size(2) == h && grad.size(3) == w && grad.scalar_type() == first.scalar_type(),
                    "gradient ", i, " must be (", first.size(0), ", ", first.size(1), ", ", h, ", ", w,
                    ") in the type of the first");
    check_beside(grad, first, "every gradient");
  }
}

// Whether "gelu" is the activation; none is the other one there is.
inline bool gelu_of(const std::optional<std::string>& activation) {
  STD_TORCH_CHECK(!activation || *activation == "gelu", "unknown activation '", activation.value_or(""),
                  "': choose gelu or none");
  return activation.has_value();
}

inline void check_branches(const stable::Tensor& x, const std::vector<stable::Tensor>& branches) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be (N, C, H, W)");
  check_sides(x.size(2), x.size(3), "x");
  for (size_t i = 0; i < branches.size(); ++i) {
    const stable::Tensor& branch = branches[i];
    STD_TORCH_CHECK(branch.dim() == 4 && branch.size(0) == x.size(0) && branch.size(1) == x.size(1) &&
                        branch.size(2) > 0 && branch.size(3) > 0 && branch.scalar_type() == x.scalar_type(),
                    "branch ", i, " must be (", x.size(0), ", ", x.size(1), ", h, w) with pixels, in the type of x");
    check_sides(branch.size(2), branch.size(3), "a branch");
    check_beside(branch, x, "every branch");
  }
}

}  // namespace irnext::binding
