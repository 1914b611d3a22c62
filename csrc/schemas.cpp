// The schemas of all operators that have compiled kernels, so that these also work from C++ without
// Python. They stand in irnext/ops/registration.py as well, for installations without this library; a
// test holds the two together. Compiled once for every namespace of operators.
#include <torch/csrc/stable/library.h>

#ifndef IRNEXT_NAMESPACE
#define IRNEXT_NAMESPACE irnext
#endif
#define IRNEXT_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)  // expands the name first

IRNEXT_LIBRARY(IRNEXT_NAMESPACE, m) {
  m.def(
      "dynamic_conv2d(Tensor x, Tensor kernel, Tensor? bias=None, int dilation=1, "
      "str padding_mode=\"reflect\") -> Tensor");
  m.def(
      "dynamic_conv2d_backward(Tensor grad, Tensor x, Tensor kernel, int dilation, str padding_mode, "
      "bool need_x, bool need_kernel, bool need_sum) -> (Tensor, Tensor, Tensor)");
  m.def("spatial_mean(Tensor x) -> Tensor");
  m.def("local_mean(Tensor x, SymInt[2] window) -> Tensor");
  m.def("local_mean_backward(Tensor grad, SymInt[2] window) -> Tensor");
  m.def(
      "local_attention(Tensor x, Tensor weight, Tensor norm_weight, Tensor norm_bias, Tensor? running_mean, "
      "Tensor? running_var, Tensor low, Tensor inner, Tensor high, int[2] kernel_size, bool training, float eps, "
      "str activation, SymInt[2]? window) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "local_attention_backward(Tensor grad, Tensor x, Tensor mean, Tensor weight, Tensor norm_weight, "
      "Tensor norm_bias, Tensor logit_mean, Tensor logit_var, Tensor low, Tensor inner, Tensor high, "
      "int[2] kernel_size, bool training, float eps, str activation, SymInt[2]? window) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "update_statistics(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) batches, Tensor mean, "
      "Tensor var, SymInt count, float? momentum) -> ()");
  m.def("pool_pyramid(Tensor x, int[] rates) -> Tensor[]");
  m.def("pool_pyramid_backward(Tensor[] grads, int[] rates, SymInt[2] size) -> Tensor");
  m.def("merge_pyramid(Tensor x, Tensor[] branches, str? activation=\"gelu\") -> Tensor");
  m.def(
      "merge_pyramid_backward(Tensor grad, Tensor x, Tensor[] branches, str? activation) -> (Tensor, Tensor[])");
  m.def(
      "fused_conv2d(Tensor x, Tensor weight, Tensor? bias, str? activation, Tensor? residual, bool keep) "
      "-> (Tensor, Tensor)");
  m.def(
      "conv2d_backward(Tensor grad, Tensor x, Tensor weight, bool need_x, bool need_weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");
}
