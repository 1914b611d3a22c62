// Every function of operators.h against loops in double or wider, over random shapes, types, layouts and borders, on
// buffers of exactly the size that the tensors need, under three schedules, which must agree to the last bit.
#include <memory>
#include <vector>

#include "irnext/cuda/operators.h"
#include "tensors.h"

namespace {

// The offset of one call and what it adds.
struct RandomOffset {
  std::unique_ptr<Vector> plane, scale;
  std::unique_ptr<Array> tensor;
  bool along_h = false, along_w = false;
  Offset offset;
  int64_t channels;

  RandomOffset(Random* random, const Sizes& sizes, Type type) : channels(sizes.c) {
    const int kind = random->below(8);
    if (kind == 0 || kind > 4) {
      plane = std::make_unique<Vector>(sizes.n * sizes.c, accumulation_type(type));
      plane->fill(random);
      offset.plane = plane->data();
    }
    if (kind == 0 || kind == 7) return;
    along_h = kind % 2 == 1, along_w = kind != 1;
    const Type own = random->below(2) ? type : kTypes[random->below(4)];
    const Sizes shown = {sizes.n, sizes.c, along_h ? sizes.h : 1, along_w ? sizes.w : 1};
    tensor = std::make_unique<Array>(shown, own, Layout(random->below(5)));
    tensor->fill(random);
    offset.tensor = tensor->tensor();
    if (!along_h) offset.tensor.strides.h = 0;
    if (!along_w) offset.tensor.strides.w = 0;
    if (random->below(2)) {
      scale = std::make_unique<Vector>(sizes.n * sizes.c, accumulation_type(type));
      scale->fill(random);
      offset.scale = scale->data();
    }
  }

  void add(int64_t n, int64_t c, int64_t h, int64_t w, Sum* sum) const {
    if (plane) sum->add(plane->at(n * channels + c));
    if (tensor)
      sum->add(tensor->at(n, c, along_h ? h : 0, along_w ? w : 0) * (scale ? scale->at(n * channels + c) : 1));
  }
};

struct Case {
  DynamicConvShape shape;
  Type type;
  Layout from, to;
  std::string name;
  Sizes sizes() const { return {shape.n, shape.c, shape.h, shape.w}; }
};

Case random_case(Random* random) {
  static const Sizes kSizes[] = {{1, 4, 8, 8},  {2, 6, 9, 13},  {1, 8, 17, 40}, {1, 3, 23, 5},  {2, 8, 12, 8},
                                 {0, 4, 8, 8},  {1, 2, 2, 2},   {1, 16, 3, 64}, {3, 5, 1, 7},   {1, 40, 5, 6},
                                 {1, 4, 33, 8}, {2, 1, 20, 16}, {1, 4, 0, 8},   {1, 136, 4, 8}, {1, 2, 70, 72},
                                 {9, 3, 4, 8},  {1, 8, 40, 16}, {1, 1, 1, 1},   {2, 8, 16, 1}};
  static const int kSides[][2] = {{3, 3}, {3, 3}, {3, 3}, {3, 3}, {1, 5}, {5, 1}, {5, 5}, {1, 1}, {3, 1}, {7, 3}};
  static const Padding kPaddings[] = {Padding::reflect, Padding::zeros, Padding::replicate};
  for (;;) {
    const Sizes& size = kSizes[random->below(int(sizeof kSizes / sizeof *kSizes))];
    const int* sides = kSides[random->below(10)];
    const int64_t dilation = random->below(3) ? 1 : 1 + random->below(4);
    const int padding = random->below(3), type = random->below(4);
    const int64_t groups = random->below(2) ? size.c : size.c % 2 == 0 && random->below(2) ? size.c / 2 : 1;
    const DynamicConvShape s = {size.n,   size.c,   size.h,   size.w,            groups,
                                sides[0], sides[1], dilation, kPaddings[padding]};
    if (s.padding == Padding::reflect && (s.reach_h() >= s.h || s.reach_w() >= s.w)) continue;
    if (s.padding == Padding::replicate && s.h * s.w == 0) continue;
    const Layout from = random_layout(random, 6);
    const bool same = random->below(3) > 0 && from != Layout::broadcast;
    const Layout to = same ? from : random_layout(random, 5);
    std::string name = std::string(kTypeNames[type]) + " " + std::to_string(s.n) + "x" + std::to_string(s.c) + "x" +
                       std::to_string(s.h) + "x" + std::to_string(s.w) + " taps " + std::to_string(s.kh) + "x" +
                       std::to_string(s.kw) + " dilation " + std::to_string(dilation) + " groups " +
                       std::to_string(groups) + " padding " + std::to_string(padding) + " " +
                       kLayoutNames[int(from)] + " to " + kLayoutNames[int(to)];
    return {s, kTypes[type], from, to, name};
  }
}

// Call body(tap, row, column) for every tap that shows (h, w) an element of the plane.
template <class Body>
void for_taps(const DynamicConvShape& s, int64_t h, int64_t w, const Body& body) {
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; j < s.kw; ++j) {
      const int64_t row = source_index(h + i * s.dilation - s.reach_h(), s.h, s.padding);
      const int64_t column = source_index(w + j * s.dilation - s.reach_w(), s.w, s.padding);
      if (row >= 0 && column >= 0) body(i * s.kw + j, row, column);
    }
}

void check_filter(const Case& test, Random* random, bool transpose) {
  const DynamicConvShape& s = test.shape;
  const std::string name = (transpose ? "gradient " : "filter ") + test.name;
  Array from(test.sizes(), test.type, test.from);
  from.fill(random);
  Vector kernel(s.n * s.groups * s.taps(), random->below(2) ? test.type : accumulation_type(test.type));
  kernel.fill(random);
  const RandomOffset offset(random, test.sizes(), test.type);

  std::vector<Sum> expected(size_t(test.sizes().count()));
  const auto expect = [&](int64_t n, int64_t c, int64_t h, int64_t w) -> Sum& {
    return expected[size_t(((n * s.c + c) * s.h + h) * s.w + w)];
  };
  from.for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
    offset.add(n, c, h, w, &expect(n, c, h, w));
    for_taps(s, h, w, [&](int64_t tap, int64_t row, int64_t column) {
      const double weight = kernel.at((n * s.groups + s.group(c)) * s.taps() + tap);
      if (transpose)
        expect(n, c, row, column).add(weight * from.at(n, c, h, w));
      else
        expect(n, c, h, w).add(weight * from.at(n, c, row, column));
    });
  });

  under_every_schedule(name, [&](const std::string& what) {
    const Array to(test.sizes(), test.type, test.to);
    const int64_t before = launches();
    succeed(transpose ? filter_input_gradient({s, from.tensor(), to.tensor(), kernel.data(), kernel.type,
                                               offset.offset}, cudaStream_t{})
                      : filter({s, from.tensor(), to.tensor(), kernel.data(), kernel.type, offset.offset},
                               cudaStream_t{}),
            what);
    check(launches() - before == (test.sizes().count() > 0 ? 1 : 0), what + ": launches");
    to.for_each([&](auto... i) { check_close(to.at(i...), expect(i...), test.type, true, what); });
    check(to.surroundings_untouched(), what + " writes beyond the tensor");
    return to.bytes();
  });
}

void check_sums(const Case& test, Random* random) {
  const DynamicConvShape& s = test.shape;
  Array x(test.sizes(), test.type, test.from), grad(test.sizes(), test.type, test.to);
  x.fill(random, 0.5);
  grad.fill(random, 0.5);
  const bool with_taps = random->below(5) > 0, with_grad = !with_taps || random->below(3) > 0;
  const Type wide = accumulation_type(test.type);
  const int64_t planes = s.n * s.c, kernels = s.n * s.groups * s.taps();
  Device device;
  succeed(current_device(&device), "device");
  const int64_t planned = sum_splits(device, s, x.tensor(), grad.tensor());
  const int64_t splits = random->below(4) ? planned : 1 + random->below(5);

  std::vector<Sum> taps(static_cast<size_t>(kernels)), sums(static_cast<size_t>(planes));
  grad.for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
    const double u = grad.at(n, c, h, w);
    sums[size_t(n * s.c + c)].add(u);
    for_taps(s, h, w, [&](int64_t tap, int64_t row, int64_t column) {
      taps[size_t((n * s.groups + s.group(c)) * s.taps() + tap)].add(u * x.at(n, c, row, column));
    });
  });

  under_every_schedule("sums " + test.name + " splits " + std::to_string(splits), [&](const std::string& what) {
    const Vector tap_partial(with_taps ? splits * planes * s.taps() : 0, wide);
    const Vector grad_partial(with_grad ? splits * planes : 0, wide);
    const Vector dkernel(kernels, wide), grad_sum(planes, wide);
    const SumsCall call = {s,
                           x.tensor(),
                           grad.tensor(),
                           splits,
                           with_taps ? tap_partial.data() : nullptr,
                           with_grad ? grad_partial.data() : nullptr};
    const int64_t before = launches();
    succeed(filter_sums(call, cudaStream_t{}), what);
    succeed(finish_sums(call, with_taps ? dkernel.data() : nullptr, with_grad ? grad_sum.data() : nullptr,
                        cudaStream_t{}),
            what);
    check(launches() - before == (planes > 0 ? 2 : 0), what + ": launches");
    for (int64_t i = 0; with_taps && i < kernels; ++i)
      check_close(dkernel.at(i), taps[size_t(i)], test.type, false, what + ": dkernel");
    for (int64_t i = 0; with_grad && i < planes; ++i)
      check_close(grad_sum.at(i), sums[size_t(i)], test.type, false, what + ": grad_sum");
    std::vector<unsigned char> found = dkernel.buffer.copy(), rest = grad_sum.buffer.copy();
    found.insert(found.end(), rest.begin(), rest.end());
    return found;
  });
}

void check_mean(const Case& test, Random* random) {
  const Sizes size = test.sizes();
  Array x(size, test.type, test.from);
  x.fill(random, 3);
  const Type wide = accumulation_type(test.type);
  Device device;
  succeed(current_device(&device), "device");
  const int64_t splits = mean_splits(device, size.n, size.c, size.h, size.w, x.tensor());
  under_every_schedule("mean " + test.name, [&](const std::string& what) {
    const Vector partial(splits * size.n * size.c, wide), mean(size.n * size.c, wide);
    const MeanCall call = {size.n, size.c, size.h, size.w, x.tensor(), splits, partial.data()};
    succeed(mean_partials(call, cudaStream_t{}), what);
    succeed(finish_mean(call, mean.data(), cudaStream_t{}), what);
    for (int64_t plane = 0; plane < size.n * size.c; ++plane) {
      Sum sum;
      for (int64_t h = 0; h < size.h; ++h)
        for (int64_t w = 0; w < size.w; ++w)
          sum.add(x.at(plane / size.c, plane % size.c, h, w) / double(size.h * size.w));
      if (size.h * size.w == 0)
        check(std::isnan(mean.at(plane)), what + ": the mean of nothing");
      else
        check_close(mean.at(plane), sum, test.type, false, what);
    }
    return mean.buffer.copy();
  });
}

}  // namespace

void check_operators(int cases) {
  static const int kMultiprocessors[] = {1, 4, 132};
  for (int i = 0; i < cases; ++i) {
    Random random{uint64_t(i) + 1};
    host::device_facts().multiprocessors = kMultiprocessors[random.below(3)];
    const Case test = random_case(&random);
    check_filter(test, &random, false);
    check_filter(test, &random, true);
    check_sums(test, &random);
    check_mean(test, &random);
  }
  host::device_facts() = {};
}
