// Planes and rows that begin beyond 2^31 elements: tensors with enormous strides, whose pages nobody touches.
#include <sys/mman.h>

#include <cmath>

#include "check.h"
#include "irnext/cuda/operators.h"
#include "irnext/cuda/pyramid.h"

using namespace irnext;
using namespace irnext::cuda;

namespace {

// Address space for `count` halves; memory only where it is used.
class Space {
 public:
  explicit Space(int64_t count) : bytes_(size_t(count) * sizeof(half)) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) data_ = nullptr;
  }
  Space(const Space&) = delete;
  Space& operator=(const Space&) = delete;
  ~Space() {
    if (data_) munmap(data_, bytes_);
  }
  half* data() const { return static_cast<half*>(data_); }

 private:
  size_t bytes_;
  void* data_;
};

constexpr int64_t kC = 2, kH = 6, kW = 8, kFar = (int64_t(1) << 29) + 64;

void check_strides(const char* name, const Strides& strides, int64_t kh, int64_t kw) {
  const DynamicConvShape s = {1, kC, kH, kW, 1, kh, kw, 1, Padding::reflect};
  const int64_t span = (kC - 1) * strides.c + (kH - 1) * strides.h + (kW - 1) * strides.w + 1;
  check(span > INT32_MAX, "the test needs larger strides");
  const Space from(span), to(span);
  if (!from.data() || !to.data()) {
    std::printf("%s: no address space of %lld elements here, not checked\n", name, (long long)span);
    return;
  }
  const auto at = [&](int64_t c, int64_t h, int64_t w) { return c * strides.c + h * strides.h + w * strides.w; };
  const auto value = [](int64_t c, int64_t h, int64_t w) { return float((c * 7 + h * 5 + w * 3) % 11); };
  for (int64_t c = 0; c < kC; ++c)
    for (int64_t h = 0; h < kH; ++h)
      for (int64_t w = 0; w < kW; ++w) from.data()[at(c, h, w)] = narrow<half>(value(c, h, w));
  const Tensor x = {from.data(), Type::f16, strides}, y = {to.data(), Type::f16, strides};
  float taps[25];
  for (int64_t t = 0; t < s.taps(); ++t) taps[t] = float(t % 4) - 1;

  const auto succeed = [&](cudaError_t error) {
    check(error == cudaSuccess, std::string(name) + ": " + cudaGetErrorString(error));
  };
  succeed(filter({s, x, y, taps, Type::f32, {}}, cudaStream_t{}));
  float sums[kC * 25] = {};
  for (int64_t c = 0; c < kC; ++c)
    for (int64_t h = 0; h < kH; ++h)
      for (int64_t w = 0; w < kW; ++w) {
        float expected = 0;
        for (int64_t i = 0; i < kh; ++i)
          for (int64_t j = 0; j < kw; ++j) {
            const int64_t row = source_index(h + i - kh / 2, kH, s.padding);
            const int64_t column = source_index(w + j - kw / 2, kW, s.padding);
            expected += taps[i * kw + j] * value(c, row, column);
            sums[c * kh * kw + i * kw + j] += value(c, h, w) * value(c, row, column);
          }
        check(widen(to.data()[at(c, h, w)]) == expected, std::string(name) + ": filter");
      }

  float partial[kC * 25], grad_partial[kC];
  succeed(filter_sums({s, x, x, 1, partial, grad_partial}, cudaStream_t{}));
  for (int64_t i = 0; i < kC * s.taps(); ++i) check(partial[i] == sums[i], std::string(name) + ": sums");
  succeed(mean_partials({1, kC, kH, kW, x, 1, grad_partial}, cudaStream_t{}));
  float total = 0;
  for (int64_t h = 0; h < kH; ++h)
    for (int64_t w = 0; w < kW; ++w) total += value(1, h, w);
  check(grad_partial[1] == total, std::string(name) + ": mean");

  // The transpose of a filter that only copies leaves the numbers where they are.
  float copies[25] = {};
  copies[s.taps() / 2] = 1;
  succeed(filter_input_gradient({s, x, y, copies, Type::f32, {}}, cudaStream_t{}));
  for (int64_t h = 0; h < kH; ++h)
    for (int64_t w = 0; w < kW; ++w)
      check(widen(to.data()[at(1, h, w)]) == value(1, h, w), std::string(name) + ": gradient");
}

// Pools and branches of half the sides, with the same strides as the plane.
void check_pyramid_strides(const char* name, const Strides& strides) {
  const int64_t span = (kC - 1) * strides.c + (kH - 1) * strides.h + (kW - 1) * strides.w + 1;
  const Space plane(span), small(span), result(span);
  if (!plane.data() || !small.data() || !result.data()) return;  // already told
  const auto at = [&](int64_t c, int64_t h, int64_t w) { return c * strides.c + h * strides.h + w * strides.w; };
  const auto value = [](int64_t c, int64_t h, int64_t w) { return float((c * 7 + h * 5 + w * 3) % 11); };
  const auto expect = [&](const half* found, float expected, const char* what) {
    check(std::fabs(widen(*found) - expected) < 0.02f, std::string(name) + ": " + what);
  };
  const auto succeed = [&](cudaError_t error) {
    check(error == cudaSuccess, std::string(name) + ": " + cudaGetErrorString(error));
  };
  for (int64_t c = 0; c < kC; ++c)
    for (int64_t h = 0; h < kH; ++h)
      for (int64_t w = 0; w < kW; ++w) plane.data()[at(c, h, w)] = narrow<half>(value(c, h, w));
  const Tensor x = {plane.data(), Type::f16, strides}, y = {result.data(), Type::f16, strides};
  const Tensor pool = {small.data(), Type::f16, strides};
  for (const int64_t rate : {2, 3}) {  // by tiles and by windows
    succeed(pool_pyramid({1, kC, kH, kW, x, 1, {rate}, {pool}}, cudaStream_t{}));
    succeed(pool_pyramid_backward({1, kC, kH, kW, y, 1, {rate}, {pool}}, cudaStream_t{}));
    for (int64_t c = 0; c < kC; ++c)
      for (int64_t h = 0; h < kH / rate; ++h)
        for (int64_t w = 0; w < kW / rate; ++w) {
          float mean = 0;
          for (int64_t i = 0; i < rate * rate; ++i)
            mean += value(c, h * rate + i / rate, w * rate + i % rate) / float(rate * rate);
          expect(small.data() + at(c, h, w), mean, "pool");
          expect(result.data() + at(c, h * rate + 1, w * rate + 1), mean / float(rate * rate), "its adjoint");
        }
  }
  const Branch branch = {kH / 2, kW / 2, pool};
  for (int64_t c = 0; c < kC; ++c)
    for (int64_t h = 0; h < branch.h; ++h)
      for (int64_t w = 0; w < branch.w; ++w) small.data()[at(c, h, w)] = narrow<half>(float(c) + 3);
  succeed(merge_pyramid({1, kC, kH, kW, false, x, y, {}, 1, {branch}}, cudaStream_t{}));
  for (int64_t c = 0; c < kC; ++c)
    for (int64_t h = 0; h < kH; ++h)
      for (int64_t w = 0; w < kW; ++w)
        expect(result.data() + at(c, h, w), value(c, h, w) + float(c) + 3, "merge of a constant");
  // What a branch receives of a gradient is in all what there is of it.
  succeed(merge_branch_gradients({1, kC, kH, kW, x, 1, {branch}}, cudaStream_t{}));
  for (int64_t c = 0; c < kC; ++c) {
    float given = 0, received = 0;
    for (int64_t h = 0; h < kH; ++h)
      for (int64_t w = 0; w < kW; ++w) given += value(c, h, w);
    for (int64_t h = 0; h < branch.h; ++h)
      for (int64_t w = 0; w < branch.w; ++w) received += widen(small.data()[at(c, h, w)]);
    check(std::fabs(given - received) < 0.2f, std::string(name) + ": the gradient of a branch");
  }
}

}  // namespace

void check_addressing() {
  const struct {
    const char* name;
    Strides strides;
  } kCases[] = {{"far rows", {0, kH * kFar, kFar, 1}},
                {"far columns", {0, kW * kFar, 8, kFar}},
                {"far rows of channels", {0, 1, kFar, 8}},
                {"far planes", {0, 5 * kFar, kW, 1}}};
  for (const auto& [name, strides] : kCases) {
    for (const int64_t side : {3, 5}) check_strides(name, strides, side, side);
    check_pyramid_strides(name, strides);
  }
}
