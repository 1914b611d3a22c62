// How the pyramids see the rows of a unit: as pixels of one number each, where a unit is a plane and a vector holds
// neighbouring columns, or of its channels, where these lie side by side and a vector holds some of one pixel's.
#pragma once

#include "memory.h"

namespace {

// Several channels of a pixel, which fill a vector at least. In rows of scratch memory a pixel takes step() numbers;
// those beyond its channels stay zero.
template <class T>
class ChannelPixels {
 public:
  using Element = T;
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr bool kSingle = false;

  explicit ChannelPixels(const Tasks& tasks) : step_(round_up(tasks.block, kLanes<A>)) {}

  int64_t step() const { return step_; }
  int64_t numbers(int64_t pixels) const { return pixels * step_; }  // of a row in scratch memory

  // Call body(pixel, first channel, channels) for every vector of a row.
  template <class Body>
  IRNEXT_INLINE void each(const Band& band, int64_t width, const Body& body) const {
    for (int64_t x = 0; x < width; ++x)
      for_blocks<A>(band.channels, [&](int64_t c, int64_t count, int64_t) { body(x, c, count); });
  }
  static IRNEXT_INLINE V read(const T* row, int64_t stride, int64_t x, int64_t c, int64_t count) {
    return load_block(row + x * stride + c, count);
  }
  static IRNEXT_INLINE void write(const V& value, T* row, int64_t stride, int64_t x, int64_t c, int64_t count) {
    store_block(value, row + x * stride + c, count);
  }

 private:
  int64_t step_;
};

// One number of a pixel; where Adjacent, columns lie side by side in all tensors. Rows of scratch memory have a
// vector of slack.
template <class T, bool Adjacent>
class SinglePixels {
 public:
  using Element = T;
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr bool kSingle = true;

  static constexpr int64_t step() { return 1; }
  static constexpr int64_t numbers(int64_t pixels) { return pixels + kLanes<A>; }

  // Call body(first pixel, 0, pixels) for every vector of a row.
  template <class Body>
  IRNEXT_INLINE void each(const Band&, int64_t width, const Body& body) const {
    int64_t x = 0;
    for (; x + kLanes<A> <= width; x += kLanes<A>) body(x, 0, kLanes<A>);
    if (x < width) body(x, 0, width - x);
  }
  static IRNEXT_INLINE V read(const T* row, int64_t stride, int64_t x, int64_t, int64_t count) {
    if constexpr (Adjacent) return load_block(row + x, count);
    V value{};
    for (int64_t i = 0; i < count; ++i) value[i] = widen(row[(x + i) * stride]);
    return value;
  }
  static IRNEXT_INLINE void write(const V& value, T* row, int64_t stride, int64_t x, int64_t, int64_t count) {
    if constexpr (Adjacent) return store_block(value, row + x, count);
    for (int64_t i = 0; i < count; ++i) narrow(value[i], row + (x + i) * stride);
  }
};

}  // namespace
