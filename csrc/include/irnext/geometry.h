// What every implementation of the operators agrees on: shapes, strides, border rules.
// Knows nothing of PyTorch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define IRNEXT_HOST_DEVICE __host__ __device__
#else
#define IRNEXT_HOST_DEVICE
#endif

namespace irnext {

enum class Padding : int { reflect, zeros, replicate };

// Element strides of an (N, C, H, W) tensor; zero along dimensions it is broadcast along.
struct Strides {
  int64_t n, c, h, w;
};

// The row or column that index i of the extended plane shows: i is in [-reach, size + reach).
// Negative where the extension is zero. Reflection needs reach < size and does not repeat the border.
IRNEXT_HOST_DEVICE inline int64_t source_index(int64_t i, int64_t size, Padding padding) {
  if (i >= 0 && i < size) return i;
  switch (padding) {
    case Padding::reflect: return i < 0 ? -i : 2 * (size - 1) - i;
    case Padding::replicate: return i < 0 ? 0 : size - 1;
    default: return -1;
  }
}

// One dynamic_conv2d: y[n,c] = sum over taps of kernel[n,g(c),t] * shifted x[n,c] + bias.
struct DynamicConvShape {
  int64_t n, c, h, w;
  int64_t groups;  // kernels per sample; divides c
  int64_t kh, kw, dilation;
  Padding padding;

  IRNEXT_HOST_DEVICE int64_t taps() const { return kh * kw; }
  IRNEXT_HOST_DEVICE int64_t reach_h() const { return kh / 2 * dilation; }
  IRNEXT_HOST_DEVICE int64_t reach_w() const { return kw / 2 * dilation; }
  IRNEXT_HOST_DEVICE int64_t group(int64_t channel) const { return channel / (c / groups); }
};

}  // namespace irnext
