// Average pools of several rates at once. Rates that divide one another form a chain, and each row of a coarser pool
// is summed up from rows of the next finer one while these are in cache: x is read once for each chain. The adjoint
// goes the other way and adds the gradients of coarser pools to those of the finer.
#pragma once

#include <memory>
#include <vector>

#include "pyramid_pixels.h"

namespace {

template <class A>
using Lanes = std::make_integer_sequence<int, int(kLanes<A>)>;

// Lanes First, First + 2, ... of two vectors side by side.
template <int First, class A, int... Lane>
IRNEXT_INLINE Vec<A> every_other(const Vec<A>& a, const Vec<A>& b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (First + 2 * Lane)...);
#else
  typedef std::conditional_t<sizeof(A) == 8, int64_t, int32_t> Index __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Index{(First + 2 * Lane)...});
#endif
}

// Lanes First, First, First + 1, First + 1, ...
template <int First, class A, int... Lane>
IRNEXT_INLINE Vec<A> doubled(const Vec<A>& a, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, a, (First + Lane / 2)...);
#else
  typedef std::conditional_t<sizeof(A) == 8, int64_t, int32_t> Index __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, Index{(First + Lane / 2)...});
#endif
}

// The sums of neighbouring lanes of two vectors side by side.
template <class A>
IRNEXT_INLINE Vec<A> pair_sums(const Vec<A>& a, const Vec<A>& b) {
  return every_other<0, A>(a, b, Lanes<A>()) + every_other<1, A>(a, b, Lanes<A>());
}

// ---- between a row and one k times as fine, in scratch memory ----

// to[i] (+)= the sum of from[i * k] ... from[i * k + k - 1] for i < count; `from` may be overwritten.
template <bool Add, class A>
void fold(A* from, int64_t count, int64_t k, A* to) {
  constexpr int64_t lanes = kLanes<A>;
  for (; k > 2 && k % 2 == 0; k /= 2) fold<false>(from, count * (k / 2), 2, from);
  int64_t i = 0;
  if (k == 2)
    for (; i + lanes <= count; i += lanes) {
      const Vec<A> sum = pair_sums<A>(load(from + 2 * i), load(from + 2 * i + lanes));
      store(Add ? load(to + i) + sum : sum, to + i);
    }
  for (; i < count; ++i) {
    A sum = Add ? to[i] : A(0);
    for (int64_t j = 0; j < k; ++j) sum += from[i * k + j];
    to[i] = sum;
  }
}

// to[i * k] ... to[i * k + k - 1] += from[i] for i < count.
template <class A>
void spread(const A* from, int64_t count, int64_t k, A* to) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t i = 0;
  if (k == 2)
    for (; i + lanes <= count; i += lanes) {
      const Vec<A> value = load(from + i);
      A* pair = to + 2 * i;
      store(load(pair) + doubled<0, A>(value, Lanes<A>()), pair);
      store(load(pair + lanes) + doubled<int(lanes) / 2, A>(value, Lanes<A>()), pair + lanes);
    }
  for (; i < count; ++i)
    for (int64_t j = 0; j < k; ++j) to[i * k + j] += from[i];
}

// The same with pixels of `step` numbers, whole vectors.
template <bool Add, class A>
void fold_pixels(const A* from, int64_t count, int64_t k, int64_t step, A* to) {
  for (int64_t i = 0; i < count; ++i, to += step, from += k * step)
    for (int64_t c = 0; c < step; c += kLanes<A>) {
      Vec<A> sum = Add ? load(to + c) : Vec<A>{};
      for (int64_t j = 0; j < k; ++j) sum += load(from + j * step + c);
      store(sum, to + c);
    }
}

template <class A>
void spread_pixels(const A* from, int64_t count, int64_t k, int64_t step, A* to) {
  for (int64_t i = 0; i < count; ++i, to += k * step, from += step)
    for (int64_t c = 0; c < step; c += kLanes<A>) {
      const Vec<A> value = load(from + c);
      for (int64_t j = 0; j < k; ++j) store(load(to + j * step + c) + value, to + j * step + c);
    }
}

template <bool Add, class P, class A>
IRNEXT_INLINE void fold_row(const P& pixels, A* from, int64_t count, int64_t k, A* to) {
  if constexpr (P::kSingle)
    fold<Add>(from, count, k, to);
  else
    fold_pixels<Add>(from, count, k, pixels.step(), to);
}

template <class P, class A>
IRNEXT_INLINE void spread_row(const P& pixels, const A* from, int64_t count, int64_t k, A* to) {
  if constexpr (P::kSingle)
    spread(from, count, k, to);
  else
    spread_pixels(from, count, k, pixels.step(), to);
}

// ---- the pools ----

// A row of every level in scratch memory.
template <class P>
class PoolRows {
 public:
  using T = typename P::Element;
  using A = typename P::A;

  PoolRows(const P& pixels, const PoolCall& call) : pixels_(pixels), call_(call) {
    for (int64_t l = 0; l < call.count; ++l) rows_.emplace_back(new Scratch<A>(pixels.numbers(width(l))));
  }

  int64_t rate(int64_t l) const { return call_.levels[l].rate; }
  int64_t width(int64_t l) const { return call_.w / rate(l); }
  A scale(int64_t l) const { return A(1) / (A(rate(l)) * A(rate(l))); }
  // How many pixels of the level before it, or of x, one pixel of the level covers in a row.
  int64_t factor(int64_t l) const { return call_.levels[l].first ? rate(l) : rate(l) / rate(l - 1); }
  A* row(int64_t l) { return rows_[l]->get(); }

  // The level's row becomes row j of its gradient, scaled; zeros below the last.
  void read(int64_t l, const Band& band, int64_t j) {
    const Tensor& pool = call_.levels[l].pool;
    if (j == call_.h / rate(l)) {
      std::memset(row(l), 0, width(l) * pixels_.step() * sizeof(A));
      return;
    }
    const T* from = at<T>(pool, band.n, band.c, j);
    const A factor = scale(l);
    A* to = row(l);
    pixels_.each(band, width(l), [&](int64_t x, int64_t c, int64_t count) {
      store(P::read(from, pool.strides.w, x, c, count) * factor, to + x * pixels_.step() + c);
    });
  }

  // Row j of the pool becomes the level's row, scaled.
  void write(int64_t l, const Band& band, int64_t j) {
    const Tensor& pool = call_.levels[l].pool;
    const A factor = scale(l), *from = row(l);
    T* to = at<T>(pool, band.n, band.c, j);
    pixels_.each(band, width(l), [&](int64_t x, int64_t c, int64_t count) {
      P::write(load(from + x * pixels_.step() + c) * factor, to, pool.strides.w, x, c, count);
    });
  }

 private:
  const P& pixels_;
  const PoolCall& call_;
  std::vector<std::unique_ptr<Scratch<A>>> rows_;
};

// Rows of sums over windows of x, to scratch memory.
template <class P>
class WindowSums {
 public:
  using T = typename P::Element;
  using A = typename P::A;

  WindowSums(const P& pixels, const PoolCall& call)
      : pixels_(pixels),
        call_(call),
        rate_(call.levels[0].rate),
        windows_(largest(kNumbers / rate_, 1)),
        columns_(P::kSingle ? pixels.numbers(windows_ * rate_) : 0) {}

  // The windows that begin at row y.
  void row(const Band& band, int64_t y, A* to) {
    const T* from = at<T>(call_.x, band.n, band.c, y);
    if (rate_ == 2)
      row(band, from, std::integral_constant<int64_t, 2>(), to);
    else
      row(band, from, rate_, to);
  }

 private:
  static constexpr int64_t kNumbers = 4096;  // stay in the innermost cache

  template <class Rate>
  void row(const Band& band, const T* from, Rate rate, A* to) {
    const Strides& strides = call_.x.strides;
    const int64_t width = call_.w / rate;
    if constexpr (P::kSingle) {
      for (int64_t x = 0; x < width; x += windows_)
        sum_columns(from + x * rate * strides.w, least(windows_, width - x), rate, to + x);
    } else {
      pixels_.each(band, width, [&](int64_t x, int64_t c, int64_t count) {
        const T* corner = from + x * rate * strides.w;
        Vec<A> sum{};
        for (int64_t i = 0; i < rate; ++i)
          for (int64_t j = 0; j < rate; ++j) sum += P::read(corner + i * strides.h, strides.w, j, c, count);
        store(sum, to + x * pixels_.step() + c);
      });
    }
  }

  // A few windows. Pairs of columns are added while they are in registers, where they do not fall apart.
  template <class Rate>
  void sum_columns(const T* from, int64_t windows, Rate rate, A* to) {
    constexpr int64_t lanes = kLanes<A>;
    const Strides& strides = call_.x.strides;
    const int64_t count = windows * rate;
    const auto column = [&](int64_t x, int64_t count) {
      Vec<A> sum = P::read(from, strides.w, x, 0, count);
      for (int64_t i = 1; i < rate; ++i) sum += P::read(from + i * strides.h, strides.w, x, 0, count);
      return sum;
    };
    int64_t x = 0;
    if (rate % 2) {
      for (; x + lanes <= count; x += lanes) store(column(x, lanes), &columns_[x]);
      store(column(x, count - x), &columns_[x]);
      fold<false>(columns_.get(), windows, rate, to);
    } else {
      A* half = rate == 2 ? to : columns_.get();
      for (; x + 2 * lanes <= count; x += 2 * lanes)
        store(pair_sums<A>(column(x, lanes), column(x + lanes, lanes)), half + x / 2);
      const int64_t first = least(lanes, count - x);
      store(pair_sums<A>(column(x, first), column(x + first, count - x - first)), half + x / 2);
      if (rate > 2) fold<false>(columns_.get(), windows, rate / 2, to);
    }
  }

  const P& pixels_;
  const PoolCall& call_;
  int64_t rate_, windows_;
  Scratch<A> columns_;
};

// The levels are one chain, and the rows of a task a multiple of its last rate.
template <class P>
void average_pools(const P& pixels, const PoolCall& call, int64_t begin, int64_t end) {
  PoolRows<P> rows(pixels, call);
  WindowSums<P> sums(pixels, call);
  const int64_t rate = rows.rate(0);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    for (int64_t y = band.begin; y + rate <= band.end; y += rate) {
      sums.row(band, y, rows.row(0));
      for (int64_t l = 0, j = y / rate;; ++l) {  // row j of level l is complete
        rows.write(l, band, j);
        if (l + 1 == call.count) break;
        const int64_t k = rows.factor(l + 1), width = rows.width(l + 1);
        if (j % k)
          fold_row<true>(pixels, rows.row(l), width, k, rows.row(l + 1));
        else
          fold_row<false>(pixels, rows.row(l), width, k, rows.row(l + 1));
        if ((j + 1) % k) break;
        j /= k;
      }
    }
  }
}

template <class P>
void average_pools_adjoint(const P& pixels, const PoolCall& call, int64_t begin, int64_t end) {
  using T = typename P::Element;
  using A = typename P::A;
  PoolRows<P> rows(pixels, call);
  Scratch<A> total(pixels.numbers(call.w));
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    for (int64_t y = band.begin; y < band.end; ++y) {
      bool changes = y == band.begin;
      for (int64_t l = 0; l < call.count; ++l) changes |= y % rows.rate(l) == 0;
      if (changes) {
        std::memset(total.get(), 0, call.w * pixels.step() * sizeof(A));
        for (int64_t l = 0; l < call.count; ++l) rows.read(l, band, y / rows.rate(l));
        for (int64_t l = call.count - 1; l >= 0; --l)
          spread_row(pixels, rows.row(l), rows.width(l), rows.factor(l),
                     call.levels[l].first ? total.get() : rows.row(l - 1));
      }
      T* to = at<T>(call.x, band.n, band.c, y);
      pixels.each(band, call.w, [&](int64_t x, int64_t c, int64_t count) {
        P::write(load(&total[x * pixels.step() + c]), to, call.x.strides.w, x, c, count);
      });
    }
  }
}

}  // namespace
