// A tensor as the kernels see it: a pointer, an element type, strides. Knows nothing of PyTorch.
#pragma once

#include "irnext/geometry.h"

namespace irnext {

// Sums are taken, and kernels, partial sums and means are held, in double for f64, else in float.
enum class Type : int { f32, f64, f16, bf16 };

struct Tensor {
  void* data;
  Type type;
  Strides strides;
};

enum class Activation : int { tanh, sigmoid, softmax };

}  // namespace irnext
