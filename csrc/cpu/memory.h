// Where a task stands, scratch memory, and rows in and out of it.
#pragma once

#include <cstdlib>
#include <new>
#include <type_traits>

#include "kernels.h"
#include "vec.h"

namespace {

using namespace irnext;
using namespace irnext::cpu;

constexpr int64_t kFlush = 512;  // elements summed in lanes of float before they go to double

IRNEXT_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
IRNEXT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
IRNEXT_INLINE int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
IRNEXT_INLINE int64_t power_of_two_at_least(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

// Zeroed, aligned scratch memory.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t size) {
    constexpr int64_t alignment = alignof(A) > 64 ? alignof(A) : 64;
    const int64_t bytes = round_up(size * int64_t(sizeof(A)) + 1, alignment);
    data_ = static_cast<A*>(std::aligned_alloc(alignment, bytes));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() { return data_; }
  A& operator[](int64_t i) { return data_[i]; }

 private:
  A* data_;
};

template <class T>
IRNEXT_INLINE T* at(const Tensor& tensor, int64_t n, int64_t c, int64_t h) {
  const Strides& s = tensor.strides;
  return static_cast<T*>(tensor.data) + n * s.n + c * s.c + h * s.h;
}

template <class T>
IRNEXT_INLINE void widen_row(const T* from, int64_t stride, int64_t count, Acc<T>* to) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  int64_t i = 0;
  if (stride == 1)
    for (; i + lanes <= count; i += lanes) store(load(from + i), to + i);
  for (; i < count; ++i) to[i] = widen(from[i * stride]);
}

template <class T>
IRNEXT_INLINE void narrow_row(const Acc<T>* from, int64_t count, T* to, int64_t stride) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  int64_t i = 0;
  if (stride == 1)
    for (; i + lanes <= count; i += lanes) store(load(from + i), to + i);
  for (; i < count; ++i) narrow(from[i], to + i * stride);
}

// Call body with an element of `type`.
template <class Body>
IRNEXT_INLINE void by_type(Type type, const Body& body) {
  switch (type) {
    case Type::f32: return body(float{});
    case Type::f64: return body(double{});
    case Type::f16: return body(half{});
    case Type::bf16: return body(bfloat16{});
  }
}

// Numbers of the bias, whose type need not be x's, `stride` apart.
template <class A>
void read_bias(const Tensor& bias, int64_t offset, int64_t stride, int64_t count, A* to) {
  by_type(bias.type, [&](auto element) {
    using T = decltype(element);
    const T* from = static_cast<const T*>(bias.data) + offset;
    if constexpr (std::is_same_v<Acc<T>, A>)
      widen_row(from, stride, count, to);
    else
      for (int64_t i = 0; i < count; ++i) to[i] = A(widen(from[i * stride]));
  });
}

// Where task `index` stands.
struct Band {
  int64_t n, c, channels, begin, end;

  Band(const Tasks& tasks, int64_t index, int64_t all_channels, int64_t height) {
    const int64_t unit = index / tasks.bands, blocks = (all_channels + tasks.block - 1) / tasks.block;
    n = unit / blocks;
    c = unit % blocks * tasks.block;
    channels = least(tasks.block, all_channels - c);
    begin = index % tasks.bands * tasks.rows;
    end = least(begin + tasks.rows, height);
  }
};

// Whether row or column p of the gradient gets one contribution from every tap and none through the border.
IRNEXT_INLINE bool is_inner(int64_t p, int64_t size, int64_t reach) { return p > reach && p < size - 1 - reach; }

// Call body(first channel, channels, known) for blocks of one vector of channels. The last block is a
// whole one too where there are enough channels: then it repeats the `known` first of its channels.
template <class A, class Body>
IRNEXT_INLINE void for_blocks(int64_t channels, const Body& body) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) body(c, lanes, int64_t(0));
  if (c < channels && channels > lanes)
    body(channels - lanes, lanes, lanes - (channels - c));
  else if (c < channels)
    body(c, channels - c, int64_t(0));
}

template <class T>
IRNEXT_INLINE Vec<Acc<T>> load_block(const T* from, int64_t count) {
  return count == kLanes<Acc<T>> ? load(from) : load(from, count);
}
template <class T>
IRNEXT_INLINE void store_block(const Vec<Acc<T>>& value, T* to, int64_t count) {
  if (count == kLanes<Acc<T>>)
    store(value, to);
  else
    store(value, to, count);
}

}  // namespace
