// Every function of pyramid.h against loops in double or wider, over random shapes, rates, branches, types and layouts,
// on buffers of exactly the size that the tensors need, under three schedules, which must agree to the last bit.
#include <memory>
#include <vector>

#include "irnext/cuda/pyramid.h"
#include "irnext/pyramid.h"
#include "tensors.h"

namespace {

using Arrays = std::vector<std::unique_ptr<Array>>;

struct Plane {
  Sizes sizes;
  Type type;
  std::string name;
};

Plane random_plane(Random* random) {
  static const Sizes kSizes[] = {{1, 8, 16, 16}, {2, 6, 9, 13},  {1, 16, 17, 40}, {1, 3, 23, 5},  {2, 8, 12, 8},
                                 {0, 4, 8, 8},   {1, 2, 2, 2},   {1, 16, 3, 64},  {3, 5, 1, 7},   {1, 40, 5, 72},
                                 {1, 4, 33, 8},  {2, 1, 20, 16}, {1, 136, 4, 8},  {1, 2, 70, 72}, {9, 3, 4, 8},
                                 {1, 8, 40, 16}, {1, 1, 1, 1},   {2, 8, 16, 1},   {1, 8, 90, 4},  {1, 32, 20, 80}};
  Sizes size = kSizes[random->below(int(sizeof kSizes / sizeof *kSizes))];
  if (random->below(4) == 0) size = {1, 8, 1 + random->below(3), 65 + random->below(200)};  // several tiles wide
  const int type = random->below(4);
  return {size, kTypes[type],
          std::string(kTypeNames[type]) + " " + std::to_string(size.n) + "x" + std::to_string(size.c) + "x" +
              std::to_string(size.h) + "x" + std::to_string(size.w)};
}

// A layout that is mostly `usual`.
Layout some_layout(Random* random, Layout usual) { return random->below(5) ? usual : random_layout(random, 5); }

size_t place(const Sizes& s, int64_t n, int64_t c, int64_t h, int64_t w) {
  return size_t(((n * s.c + c) * s.h + h) * s.w + w);
}

// Check what was computed into `arrays` and append its bytes.
void check_arrays(const Arrays& arrays, const std::vector<std::vector<Sum>>& expected, const std::vector<Sizes>& sizes,
                  Type type, const std::string& what, std::vector<unsigned char>* found) {
  for (size_t i = 0; i < arrays.size(); ++i) {
    arrays[i]->for_each([&](auto... at) {
      check_close(arrays[i]->at(at...), expected[i][place(sizes[i], at...)], type, true, what);
    });
    check(arrays[i]->surroundings_untouched(), what + " writes beyond the tensor");
    const std::vector<unsigned char> bytes = arrays[i]->bytes();
    found->insert(found->end(), bytes.begin(), bytes.end());
  }
}

// ---- pools ----

std::vector<int64_t> random_rates(Random* random, const Sizes& sizes) {
  const int64_t most = sizes.h < sizes.w ? sizes.h : sizes.w;
  std::vector<int64_t> rates;
  if (random->below(3) > 0) {
    for (const int64_t rate : {8, 4, 2})
      if (rate <= most && random->below(4)) rates.push_back(rate);
  } else {
    for (int i = random->below(5); i >= 0; --i) rates.push_back(1 + random->below(int(most)));
  }
  return rates;
}

void check_pools(const Plane& plane, Random* random) {
  const Sizes& s = plane.sizes;
  const Layout layout = random_layout(random, 6);
  const std::vector<int64_t> rates = random_rates(random, s);
  const int count = int(rates.size());
  std::vector<Sizes> sizes;
  std::vector<Layout> layouts;
  std::vector<std::vector<Sum>> pooled;
  Array x(s, plane.type, layout);
  x.fill(random, 1);
  std::vector<Sum> spread(static_cast<size_t>(s.count()));
  Arrays grads;
  PoolCall call = {s.n, s.c, s.h, s.w, x.tensor(), count, {}, {}};
  for (int k = 0; k < count; ++k) {
    const int64_t rate = call.rates[k] = rates[size_t(k)];
    sizes.push_back({s.n, s.c, s.h / rate, s.w / rate});
    layouts.push_back(some_layout(random, layout == Layout::broadcast ? Layout::contiguous : layout));
    pooled.emplace_back(size_t(sizes.back().count()));
    grads.push_back(std::make_unique<Array>(sizes.back(), plane.type, layouts.back()));
    grads.back()->fill(random);
    x.for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
      if (h / rate >= s.h / rate || w / rate >= s.w / rate) return;
      const double area = double(rate * rate);
      pooled.back()[place(sizes.back(), n, c, h / rate, w / rate)].add(x.at(n, c, h, w) / area);
      spread[place(s, n, c, h, w)].add(grads.back()->at(n, c, h / rate, w / rate) / area);
    });
  }
  under_every_schedule("pools of " + plane.name + " " + kLayoutNames[int(layout)], [&](const std::string& what) {
    Arrays pools;
    for (int k = 0; k < count; ++k) {
      pools.push_back(std::make_unique<Array>(sizes[size_t(k)], plane.type, layouts[size_t(k)]));
      call.pools[k] = pools.back()->tensor();
    }
    const int64_t before = launches();
    succeed(pool_pyramid(call, cudaStream_t{}), what);
    check(launches() - before == (s.count() > 0 && count > 0 ? 1 : 0), what + ": launches");
    std::vector<unsigned char> found;
    check_arrays(pools, pooled, sizes, plane.type, what, &found);
    return found;
  });
  const Layout to = layout == Layout::broadcast ? Layout::channels_last : layout;
  under_every_schedule("adjoint of the pools of " + plane.name, [&](const std::string& what) {
    Arrays dx;
    dx.push_back(std::make_unique<Array>(s, plane.type, to));
    PoolCall adjoint = call;
    adjoint.x = dx[0]->tensor();
    for (int k = 0; k < count; ++k) adjoint.pools[k] = grads[size_t(k)]->tensor();
    const int64_t before = launches();
    succeed(pool_pyramid_backward(adjoint, cudaStream_t{}), what);
    check(launches() - before == (s.count() > 0 ? 1 : 0), what + ": launches");
    std::vector<unsigned char> found;
    check_arrays(dx, {spread}, {s}, plane.type, what, &found);
    return found;
  });
}

// ---- merges ----

// Call body(row, column, weight) for the four elements of a branch beside (h, w) of the plane.
template <class Body>
void for_corners(const Sizes& plane, int64_t rows, int64_t columns, int64_t h, int64_t w, const Body& body) {
  const Aligned down{rows, plane.h}, across{columns, plane.w};
  const double below = down.share<double>(h), right = across.share<double>(w);
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t row = down.below(h) + i, column = across.below(w) + j;
      if (row < rows && column < columns) body(row, column, (i ? below : 1 - below) * (j ? right : 1 - right));
    }
}

void check_merge(const Plane& plane, Random* random) {
  const Sizes& s = plane.sizes;
  const Layout layout = random_layout(random, 5);
  const bool gelu = random->below(2);
  Array x(s, plane.type, layout), grad(s, plane.type, random->below(8) ? layout : random_layout(random, 6));
  x.fill(random);
  grad.fill(random);
  MergeCall call = {s.n, s.c, s.h, s.w, gelu, x.tensor(), {}, grad.tensor(), random->below(6), {}};
  AdjointCall adjoint = {s.n, s.c, s.h, s.w, grad.tensor(), call.count, {}};
  std::vector<Sizes> sizes;
  std::vector<Layout> layouts;
  std::vector<std::vector<Sum>> gathered;
  Arrays branches;
  std::vector<Sum> sums(static_cast<size_t>(s.count()));
  x.for_each([&](auto... at) { sums[place(s, at...)].add(x.at(at...)); });
  for (int b = 0; b < call.count; ++b) {
    const int rate = 1 << (1 + random->below(3));
    const bool usual = random->below(3) > 0;
    const int64_t odd = random->below(4) ? 1 + random->below(12) : 2 * s.h - 1;  // half its elements get nothing
    const int64_t h = usual ? (s.h + rate - 1) / rate : odd;
    const int64_t w = usual ? (s.w + rate - 1) / rate : 1 + random->below(12);
    sizes.push_back({s.n, s.c, h, w});
    layouts.push_back(some_layout(random, layout));
    gathered.emplace_back(size_t(sizes.back().count()));
    branches.push_back(std::make_unique<Array>(sizes.back(), plane.type, layouts.back()));
    branches.back()->fill(random);
    call.branches[b] = {h, w, branches.back()->tensor()};
    x.for_each([&](int64_t n, int64_t c, int64_t i, int64_t j) {
      for_corners(s, h, w, i, j, [&](int64_t row, int64_t column, double weight) {
        sums[place(s, n, c, i, j)].add(weight * branches.back()->at(n, c, row, column));
        gathered.back()[place(sizes.back(), n, c, row, column)].add(weight * grad.at(n, c, i, j));
      });
    });
  }
  std::vector<Sum> results, slopes;
  x.for_each([&](auto... at) {
    const long double z = sums[place(s, at...)].value, cdf = std::erfc(-z / std::sqrt(2.0L)) / 2;
    const long double density = std::exp(-z * z / 2) / std::sqrt(2 * std::acos(-1.0L));
    // The magnitudes allow for what rounding the sum does to the result.
    const long double spread = sums[place(s, at...)].magnitude + 1, u = grad.at(at...);
    results.push_back(gelu ? Sum{z * cdf, 2 * spread} : sums[place(s, at...)]);
    slopes.push_back({u * (cdf + z * density), 2 * spread * std::fabs(u)});
  });

  const std::string name = plane.name + " " + kLayoutNames[int(layout)] + " branches " + std::to_string(call.count);
  for (const bool gradient : {false, true})
    under_every_schedule((gradient ? "merge's gradient " : "merge ") + name, [&](const std::string& what) {
      Arrays y;
      y.push_back(std::make_unique<Array>(s, plane.type, layout));
      call.y = y[0]->tensor();
      const int64_t before = launches();
      succeed(gradient ? merge_input_gradient(call, cudaStream_t{}) : merge_pyramid(call, cudaStream_t{}), what);
      check(launches() - before == (s.count() > 0 ? 1 : 0), what + ": launches");
      std::vector<unsigned char> found;
      check_arrays(y, {gradient ? slopes : results}, {s}, plane.type, what, &found);
      return found;
    });
  under_every_schedule("branches' gradients " + name, [&](const std::string& what) {
    Arrays gradients;
    for (int b = 0; b < call.count; ++b) {
      gradients.push_back(std::make_unique<Array>(sizes[size_t(b)], plane.type, layouts[size_t(b)]));
      adjoint.branches[b] = {sizes[size_t(b)].h, sizes[size_t(b)].w, gradients.back()->tensor()};
    }
    const int64_t before = launches();
    succeed(merge_branch_gradients(adjoint, cudaStream_t{}), what);
    check(launches() - before == (s.n * s.c > 0 ? (call.count + 2) / 3 : 0), what + ": launches");
    std::vector<unsigned char> found;
    check_arrays(gradients, gathered, sizes, plane.type, what, &found);
    return found;
  });
}

}  // namespace

void check_pyramids(int cases) {
  static const int kMultiprocessors[] = {1, 4, 132};
  for (int i = 0; i < cases; ++i) {
    Random random{uint64_t(i) + 1};
    host::device_facts().multiprocessors = kMultiprocessors[random.below(3)];
    const Plane plane = random_plane(&random);
    check_pools(plane, &random);
    check_merge(plane, &random);
  }
  host::device_facts() = {};
}
