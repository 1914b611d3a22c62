// Tensors in buffers of exactly the size that they need, sums to compare with, and schedules to run under.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "irnext/cuda/execution.h"

using namespace irnext;
using namespace irnext::cuda;

const char* const kSchedules[] = {"forward", "reverse", "shuffled:3"};
const Type kTypes[] = {Type::f32, Type::f64, Type::f16, Type::bf16};
const char* const kTypeNames[] = {"f32", "f64", "f16", "bf16"};

// The largest relative error of rounding to the type, and of adding up in it.
inline double rounding(Type type) {
  return type == Type::f64 ? 0x1p-53 : type == Type::f32 ? 0x1p-24 : type == Type::f16 ? 0x1p-11 : 0x1p-8;
}
inline double summing(Type type) { return 16 * rounding(accumulation_type(type)); }

inline double read(const void* data, Type type, int64_t i) { return read_number<double>(data, type, i); }
inline void write(void* data, Type type, int64_t i, double value) {
  by_type(type, [&](auto element) {
    using T = decltype(element);
    static_cast<T*>(data)[i] = narrow<T>(Acc<T>(value));
  });
}

// Memory that holds `count` elements and nothing more, every byte 0xff (NaN) at first.
class Buffer {
 public:
  Buffer(int64_t count, Type type) : bytes_(size_t(count * element_size(type))), data_(new unsigned char[bytes_]) {
    std::memset(data_.get(), 0xff, bytes_);
  }
  void* data() const { return data_.get(); }
  std::vector<unsigned char> copy() const { return {data_.get(), data_.get() + bytes_}; }

 private:
  size_t bytes_;
  std::unique_ptr<unsigned char[]> data_;
};

enum class Layout { contiguous, channels_last, sliced, transposed, shifted, broadcast };
const char* const kLayoutNames[] = {"contiguous", "channels_last", "sliced", "transposed", "shifted", "broadcast"};

struct Sizes {
  int64_t n, c, h, w;
  int64_t count() const { return n * c * h * w; }
};

// A 4-dimensional tensor in a buffer of its own.
class Array {
 public:
  Array(const Sizes& sizes, Type type, Layout layout) : sizes_(sizes), tensor_{nullptr, type, {}} {
    const auto [n, c, h, w] = sizes;
    Strides& s = tensor_.strides;
    int64_t before = 0;
    s = {c * h * w, h * w, w, 1};
    if (layout == Layout::channels_last) s = {c * h * w, 1, w * c, c};
    if (layout == Layout::transposed) s = {c * h * w, h * w, 1, h};
    if (layout == Layout::sliced) s = {c * h * (w + 3), h * (w + 3), w + 3, 1}, before = 1;
    if (layout == Layout::shifted) before = 1;
    if (layout == Layout::broadcast) s = {0, c > 1 ? 1 : 0, 0, 0};
    length_ = before;
    if (sizes.count() > 0) length_ += (n - 1) * s.n + (c - 1) * s.c + (h - 1) * s.h + (w - 1) * s.w + 1;
    buffer_ = std::make_unique<Buffer>(length_, type);
    tensor_.data = static_cast<char*>(buffer_->data()) + before * element_size(type);
  }

  const Tensor& tensor() const { return tensor_; }
  int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    const Strides& s = tensor_.strides;
    return n * s.n + c * s.c + h * s.h + w * s.w;
  }
  double at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return read(tensor_.data, tensor_.type, offset(n, c, h, w));
  }
  template <class Body>
  void for_each(const Body& body) const {
    for (int64_t n = 0; n < sizes_.n; ++n)
      for (int64_t c = 0; c < sizes_.c; ++c)
        for (int64_t h = 0; h < sizes_.h; ++h)
          for (int64_t w = 0; w < sizes_.w; ++w) body(n, c, h, w);
  }
  void fill(Random* random, double mean = 0) {
    for_each([&](auto... i) { write(tensor_.data, tensor_.type, offset(i...), mean + random->number()); });
  }
  std::vector<unsigned char> bytes() const { return buffer_->copy(); }

  // Whether all that does not belong to the tensor is as it was.
  bool surroundings_untouched() const {
    std::vector<unsigned char> all = buffer_->copy();
    const int64_t size = element_size(tensor_.type);
    const int64_t base = static_cast<char*>(tensor_.data) - static_cast<char*>(buffer_->data());
    for_each([&](auto... i) { std::memset(all.data() + base + offset(i...) * size, 0xff, size_t(size)); });
    for (const unsigned char byte : all)
      if (byte != 0xff) return false;
    return true;
  }

 private:
  Sizes sizes_;
  Tensor tensor_;
  int64_t length_;
  std::unique_ptr<Buffer> buffer_;
};

// A contiguous array of one dimension.
struct Vector {
  Type type;
  int64_t count;
  Buffer buffer;
  Vector(int64_t count, Type type) : type(type), count(count), buffer(count, type) {}
  void* data() const { return buffer.data(); }
  double at(int64_t i) const { return read(buffer.data(), type, i); }
  void fill(Random* random) {
    for (int64_t i = 0; i < count; ++i) write(buffer.data(), type, i, random->number());
  }
};

// Exact enough sums, with the sum of magnitudes that bounds what rounding can do to others.
struct Sum {
  long double value = 0, magnitude = 0;
  void add(long double term) { value += term, magnitude += std::fabs(term); }
};

inline void check_close(double found, const Sum& expected, Type type, bool rounded, const std::string& what) {
  const double value = double(expected.value), magnitude = double(expected.magnitude);
  const double allowed = (rounded ? rounding(type) * std::fabs(value) : 0) + summing(type) * (magnitude + 0x1p-10) +
                         (type == Type::f16 ? 0x1p-24 : 0);
  check(std::fabs(found - value) <= allowed, what + ": " + std::to_string(found) + " for " + std::to_string(value));
}

inline void succeed(cudaError_t error, const std::string& what) {
  check(error == cudaSuccess, what + ": " + cudaGetErrorString(error));
}

// Run body under every schedule; body returns the bytes that it computed.
template <class Body>
void under_every_schedule(const std::string& what, const Body& body) {
  std::vector<unsigned char> first;
  for (const char* schedule : kSchedules) {
    host::set_schedule(schedule);
    const std::vector<unsigned char> found = body(what + ", " + schedule);
    if (schedule == kSchedules[0])
      first = found;
    else
      check(found == first, what + " depends on the schedule " + schedule);
  }
  host::set_schedule("forward");
}

// One of the first `count` layouts, mostly one of the first two.
inline Layout random_layout(Random* random, int count) {
  const int layout = random->below(count + 6);
  return Layout(layout < count ? layout : layout % 2);
}
