// New tensors for CPU operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>

namespace irnext::cpu {

// A contiguous tensor of at most four dimensions, of float or double, by the quickest way there is: for small results
// that are made often.
inline torch::stable::Tensor small_empty(std::initializer_list<int64_t> sizes, torch::headeronly::ScalarType type) {
  int64_t strides[4], stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.begin(), strides,
      type == torch::headeronly::ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
      aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace irnext::cpu
