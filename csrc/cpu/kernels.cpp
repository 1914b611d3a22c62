// dynamic_conv2d and spatial_mean for one instruction set.
//
// Two algorithms, chosen by where neighbouring elements lie:
//   rows           along a row, any strides: every row is widened once into a padded ring of rows,
//                  then filtered without a thought for borders or types;
//   channels_last  along the channels: a vector holds the same pixel of several channels.
// The gradient of x is the same filter with flipped taps on the extended plane, whose margin is
// then folded back by the border rule. Compiled once per instruction set: see setup.py.
#include "kernels.h"

#include <cstdlib>
#include <new>

#include "vec.h"

#ifndef IRNEXT_ISA
#define IRNEXT_ISA baseline
#endif

namespace {

using namespace irnext;
using namespace irnext::cpu;

// Short rows are widened several at a time: reading a row just written, at another offset, would wait
// until its stores have left the processor.
constexpr int64_t kAhead = 1024;
constexpr int64_t kInPlaceReach = 4;  // columns of a margin that are worth adding one by one
constexpr int64_t kFlush = 512;  // elements summed in lanes of float before they go to double

IRNEXT_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
IRNEXT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
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
    const int64_t bytes = round_up(size * int64_t(sizeof(A)) + 1, 64);
    data_ = static_cast<A*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
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

template <class A, class T>
void read_as(const T* from, int64_t stride, int64_t count, A* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = A(widen(from[i * stride]));
}

// A row of the bias, whose type need not be x's.
template <class A>
void read_bias_row(const Tensor& bias, int64_t n, int64_t c, int64_t h, int64_t stride, int64_t count, A* to) {
  switch (bias.type) {
    case Type::f32: return read_as<A>(at<float>(bias, n, c, h), stride, count, to);
    case Type::f64: return read_as<A>(at<double>(bias, n, c, h), stride, count, to);
    case Type::f16: return read_as<A>(at<half>(bias, n, c, h), stride, count, to);
    case Type::bf16: return read_as<A>(at<bfloat16>(bias, n, c, h), stride, count, to);
  }
}

// Where task `index` stands.
struct Band {
  int64_t n, c, begin, end;

  Band(const Tasks& tasks, int64_t index, int64_t channels, int64_t height) {
    const int64_t unit = index / tasks.bands;
    n = tasks.channels_last ? unit : unit / channels;
    c = tasks.channels_last ? 0 : unit % channels;
    begin = index % tasks.bands * tasks.rows;
    end = least(begin + tasks.rows, height);
  }
};

// ---- the rows algorithm ----

// Where the border rule takes the `margin` columns on either side of a row from, nearest first; none
// where they are zero.
class Margins {
 public:
  Margins(int64_t width, int64_t margin, Padding padding)
      : count_(padding == Padding::zeros ? 0 : margin), width_(width), sources_(2 * count_) {
    for (int64_t i = 0; i < count_; ++i) {
      sources_[2 * i] = source_index(-1 - i, width, padding);
      sources_[2 * i + 1] = source_index(width + i, width, padding);
    }
  }

  // Fill the margins of a row whose column 0 is row[0].
  template <class A>
  IRNEXT_INLINE void extend(A* row) {
    for (int64_t i = 0; i < count_; ++i) {
      row[-1 - i] = row[sources_[2 * i]];
      row[width_ + i] = row[sources_[2 * i + 1]];
    }
  }

  // The adjoint: add the margins to where they came from.
  template <class A>
  IRNEXT_INLINE void fold(A* row) {
    for (int64_t i = 0; i < count_; ++i) {
      row[sources_[2 * i]] += row[-1 - i];
      row[sources_[2 * i + 1]] += row[width_ + i];
    }
  }

 private:
  int64_t count_, width_;
  Scratch<int64_t> sources_;
};

// The last rows of one extended plane, widened and padded by `margin` columns on either side. The
// plane is extended by `reach` rows above and below; rows outside it are zero.
template <class T>
class RowRing {
 public:
  using A = Acc<T>;

  RowRing(const Tensor& tensor, int64_t height, int64_t width, int64_t reach, int64_t margin, Padding padding)
      : tensor_(tensor),
        height_(height),
        width_(width),
        reach_(reach),
        margin_(margin),
        lead_(round_up(margin, kLanes<A>)),
        ahead_(least(kAhead / (width + 1), 7)),
        mask_(power_of_two_at_least(2 * reach + 1 + ahead_) - 1),
        length_(round_up(lead_ + width + margin + kLanes<A>, kLanes<A>)),
        padding_(padding),
        margins_(width, margin, padding),
        rows_((mask_ + 1) * length_) {}

  void start(const Band& band) {
    plane_ = at<T>(tensor_, band.n, band.c, 0);
    next_ = band.begin - reach_;
    end_ = band.end + reach_;
  }

  // Make rows y - reach ... y + reach available.
  void advance_to(int64_t y) {
    if (next_ > y + reach_) return;
    for (const int64_t stop = least(y + reach_ + ahead_ + 1, end_); next_ < stop; ++next_)
      fill(slot(next_), source_index(next_, height_, padding_));
  }

  // The extended row y; its first element is column -margin. Column 0 is aligned.
  A* slot(int64_t y) { return rows_.get() + ((y + reach_) & mask_) * length_ + lead_ - margin_; }

 private:
  IRNEXT_INLINE void fill(A* row, int64_t source) {
    if (source < 0) {
      std::memset(row, 0, (width_ + 2 * margin_) * sizeof(A));
      return;
    }
    widen_row(plane_ + source * tensor_.strides.h, tensor_.strides.w, width_, row + margin_);
    margins_.extend(row + margin_);
  }

  const Tensor tensor_;
  const T* plane_ = nullptr;
  int64_t height_, width_, reach_, margin_, lead_, ahead_, mask_, length_, next_ = 0, end_ = 0;
  Padding padding_;
  Margins margins_;
  Scratch<A> rows_;
};

// out[i] = init + sum over a, b of taps[a * kw + b] * rows[a][i + b * dilation]. init is a row where
// one is given. KH and KW are the filter's sides, or 0 where they are known at run time only. Slack
// tells that `out` and the row of init may be used up to the next whole vector.
template <int KH, int KW, bool Slack, class T>
IRNEXT_INLINE void filter_row(T* out, const Acc<T>* const* rows, const Acc<T>* taps, int64_t kh, int64_t kw,
                              int64_t dilation, int64_t count, Acc<T> init, const Acc<T>* init_row) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  if constexpr (KH > 0) kh = KH;
  if constexpr (KW > 0) kw = KW;
  // Copies that stay in registers: for all the compiler knows, `out` could overwrite the originals.
  Vec<A> weights[KH > 0 ? KH * KW : 1];
  const A* starts[KH > 0 ? KH * KW : 1];
  if constexpr (KH > 0)
    for (int t = 0; t < KH * KW; ++t) {
      weights[t] = splat(taps[t]);
      starts[t] = rows[t / KW] + t % KW * dilation;
    }
  for (int64_t i = 0; i < count; i += lanes) {
    Vec<A> sum;
    if (init_row == nullptr)
      sum = splat(init);
    else
      sum = Slack || i + lanes <= count ? load(init_row + i) : load(init_row + i, count - i);
    if constexpr (KH > 0) {
#pragma GCC unroll 9
      for (int t = 0; t < KH * KW; ++t) sum += weights[t] * load(starts[t] + i);
    } else {
      for (int64_t a = 0; a < kh; ++a)
        for (int64_t b = 0; b < kw; ++b) sum += taps[a * kw + b] * load(rows[a] + i + b * dilation);
    }
    if (Slack || i + lanes <= count)
      store(sum, out + i);
    else
      store(sum, out + i, count - i);
  }
}

template <bool Slack, class T>
IRNEXT_INLINE void filter_row(T* out, const Acc<T>* const* rows, const Acc<T>* taps, int64_t kh, int64_t kw,
                              int64_t dilation, int64_t count, Acc<T> init, const Acc<T>* init_row) {
  if (kh == 3 && kw == 3)
    filter_row<3, 3, Slack>(out, rows, taps, kh, kw, dilation, count, init, init_row);
  else
    filter_row<0, 0, Slack>(out, rows, taps, kh, kw, dilation, count, init, init_row);
}

template <class T>
void forward_rows(const ForwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const DynamicConvShape& s = call.shape;
  RowRing<T> ring(call.x, s.h, s.w, s.reach_h(), s.reach_w(), s.padding);
  Scratch<A> bias_row(s.w);
  Scratch<T> strided_row(s.w);
  Scratch<const A*> rows(s.kh);
  const bool has_bias = call.bias.data != nullptr, bias_varies = has_bias && call.bias.strides.w != 0;
  const bool bias_by_row = has_bias && (bias_varies || call.bias.strides.h != 0);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    const A* taps = static_cast<const A*>(call.kernel) + (band.n * s.groups + s.group(band.c)) * s.taps();
    if (has_bias) read_bias_row(call.bias, band.n, band.c, 0, 0, 1, bias_row.get());
    ring.start(band);
    for (int64_t y = band.begin; y < band.end; ++y) {
      ring.advance_to(y);
      for (int64_t i = 0; i < s.kh; ++i) rows[i] = ring.slot(y + i * s.dilation - s.reach_h());
      if (bias_by_row)
        read_bias_row(call.bias, band.n, band.c, y, call.bias.strides.w, bias_varies ? s.w : 1, bias_row.get());
      T* out = at<T>(call.y, band.n, band.c, y);
      T* dense = call.y.strides.w == 1 ? out : strided_row.get();
      filter_row<false>(dense, rows.get(), taps, s.kh, s.kw, s.dilation, s.w, bias_row[0],
                        bias_varies ? bias_row.get() : nullptr);
      if (dense != out)
        for (int64_t x = 0; x < s.w; ++x) out[x * call.y.strides.w] = dense[x];
    }
  }
}

// Whether p gets one contribution from every tap and none through the border.
IRNEXT_INLINE bool is_inner(int64_t p, int64_t size, int64_t reach) { return p > reach && p < size - 1 - reach; }

// sums[a * kw + b] += u[i] * rows[a][i + b * dilation], summed over i; u is zero past `count`.
template <class A>
void correlate_row(Vec<A>* sums, const A* u, const A* const* rows, int64_t kh, int64_t kw, int64_t dilation,
                   int64_t count) {
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t a = 0; a < kh; ++a)
    for (int64_t b = 0; b < kw; ++b) {
      Vec<A> local = {};
      for (int64_t i = 0; i < count; i += lanes) local += load(u + i) * load(rows[a] + i + b * dilation);
      sums[a * kw + b] += local;
    }
}

// The same for a 3x3 filter, straight from the rows of x: it is the gradient that is shifted, whose
// margins are zero, and the few columns that the border rule shows are added one by one, to `edges`.
template <class T>
IRNEXT_INLINE void correlate_row_in_place(Vec<Acc<T>>* sums, double* edges, const Acc<T>* u, const T* const* rows,
                                          int64_t dilation, int64_t width, Padding padding) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  Vec<A> local[9] = {};
  for (int64_t i = 0; i < width; i += lanes) {
    const Vec<A> grads[3] = {load(u + i + dilation), load(u + i), load(u + i - dilation)};
#pragma GCC unroll 3
    for (int a = 0; a < 3; ++a) {
      const Vec<A> x = i + lanes <= width ? load(rows[a] + i) : load(rows[a] + i, width - i);
      for (int b = 0; b < 3; ++b) local[3 * a + b] += grads[b] * x;
    }
  }
  for (int64_t i = 0; i < dilation; ++i) {
    const int64_t left = source_index(i - dilation, width, padding);
    const int64_t right = source_index(width + i, width, padding);
    for (int a = 0; a < 3; ++a) {
      edges[3 * a] += double(u[i] * widen(rows[a][left]));
      edges[3 * a + 2] += double(u[width - dilation + i] * widen(rows[a][right]));
    }
  }
  for (int t = 0; t < 9; ++t) sums[t] += local[t];
}

// Move sums from lanes of A to lanes of double, where they can go on without losing digits.
template <class A>
IRNEXT_INLINE void flush(Vec<A>* lanes, int64_t count, WideVec<A>* totals) {
  for (int64_t t = 0; t < count; ++t) {
    totals[t] += __builtin_convertvector(lanes[t], WideVec<A>);
    lanes[t] = Vec<A>{};
  }
}

// The sum over the lanes, which are cleared.
template <class A>
IRNEXT_INLINE double take_total(WideVec<A>* lanes) {
  double total = 0;
  for (int i = 0; i < kLanes<A>; ++i) total += (*lanes)[i];
  *lanes = WideVec<A>{};
  return total;
}

template <class T>
void backward_rows(const BackwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const DynamicConvShape& s = call.shape;
  const int64_t rh = s.reach_h(), rw = s.reach_w(), taps = s.taps(), wide = s.w + 2 * rw;
  const bool want_dx = call.dx.data != nullptr, want_taps = call.tap_sums != nullptr;
  RowRing<T> grads(call.grad, s.h, s.w, rh, 2 * rw, Padding::zeros);
  const bool in_place = s.kh == 3 && s.kw == 3 && call.x.strides.w == 1 && rw <= least(s.w - 1, kInPlaceReach) &&
                        s.padding != Padding::zeros;
  const bool use_ring = want_taps && !in_place;
  RowRing<T> inputs(call.x, s.h, s.w, use_ring ? rh : 0, use_ring ? rw : 0, s.padding);
  const int64_t extended_length = round_up(wide, kLanes<A>);
  Margins margins(s.w, rw, s.padding);
  Scratch<A> extended_rows(2 * extended_length), flipped(taps);
  Scratch<const A*> rows(s.kh);
  Scratch<A> nothing(extended_length + 2 * rw + kLanes<A>);  // a row outside the plane
  Scratch<Vec<A>> lanes(taps + 1);  // the last one sums the gradient itself
  Scratch<WideVec<A>> totals(taps + 1);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    const A* kernel = static_cast<const A*>(call.kernel) + (band.n * s.groups + s.group(band.c)) * taps;
    for (int64_t t = 0; t < taps; ++t) flipped[t] = kernel[taps - 1 - t];
    const bool want_sum = call.grad_sums != nullptr;
    const auto finish = [&](int64_t y) {
      A* extended = extended_rows.get() + y % 2 * extended_length;
      margins.fold(extended + rw);
      narrow_row(extended + rw, s.w, at<T>(call.dx, band.n, band.c, y), call.dx.strides.w);
    };
    int64_t summed = 0;
    double edges[9] = {};
    grads.start(band);
    if (use_ring) inputs.start(band);
    for (int64_t y = band.begin; y < band.end; ++y) {
      grads.advance_to(y);
      const A* u = grads.slot(y) + 2 * rw;
      if (want_taps && in_place) {
        const T* sources[3];
        for (int64_t i = 0; i < 3; ++i)
          sources[i] = at<T>(call.x, band.n, band.c, source_index(y + (i - 1) * s.dilation, s.h, s.padding));
        correlate_row_in_place(lanes.get(), edges, u, sources, s.dilation, s.w, s.padding);
      } else if (want_taps) {
        inputs.advance_to(y);
        for (int64_t i = 0; i < s.kh; ++i) rows[i] = inputs.slot(y + i * s.dilation - rh);
        correlate_row(lanes.get(), u, rows.get(), s.kh, s.kw, s.dilation, s.w);
      }
      if (want_sum)
        for (int64_t i = 0; i < s.w; i += kLanes<A>) lanes[taps] += load(u + i);
      summed += s.w;
      if (summed > kFlush || y + 1 == band.end) {
        flush<A>(lanes.get(), taps + 1, totals.get());
        summed = 0;
      }
      if (!want_dx) continue;
      // A row is folded and stored when the next one has been computed: see kAhead.
      A* extended = extended_rows.get() + y % 2 * extended_length;
      for (int64_t i = 0; i < s.kh; ++i) rows[i] = grads.slot(y + i * s.dilation - rh);
      filter_row<true>(extended, rows.get(), flipped.get(), s.kh, s.kw, s.dilation, wide, A(0), (const A*)nullptr);
      for (int64_t margin = 0; margin < 2 * rh && !is_inner(y, s.h, rh); ++margin) {
        const int64_t shown = margin < rh ? margin - rh : s.h + margin - rh;  // a row of the margins
        if (source_index(shown, s.h, s.padding) != y) continue;
        for (int64_t i = 0; i < s.kh; ++i) {
          const int64_t q = shown + i * s.dilation - rh;
          rows[i] = q >= 0 && q < s.h ? grads.slot(q) : nothing.get();
        }
        filter_row<true>(extended, rows.get(), flipped.get(), s.kh, s.kw, s.dilation, wide, A(0), (const A*)extended);
      }
      if (y > band.begin) finish(y - 1);
    }
    if (want_dx && band.begin < band.end) finish(band.end - 1);
    for (int64_t t = 0; want_taps && t < taps; ++t)
      call.tap_sums[task * taps + t] = take_total<A>(&totals[t]) + (in_place ? edges[t] : 0);
    if (want_sum) call.grad_sums[task] = take_total<A>(&totals[taps]);
  }
}

// ---- the channels_last algorithm ----

// Call body(first channel, channels) for blocks of one vector of channels; the last may be narrower.
template <class A, class Body>
IRNEXT_INLINE void for_blocks(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) body(c, kLanes<A>);
  if (c < channels) body(c, channels - c);
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

// Element q of the plane met tap i for the result at a position that the border rule maps to p.
struct Pair {
  int64_t q, i;
};

// All pairs that contribute to the gradient at p, along one dimension; at most `(2 reach + 1) * k`.
int64_t adjoint_pairs(int64_t p, int64_t size, int64_t k, int64_t dilation, Padding padding, Pair* out) {
  const int64_t reach = k / 2 * dilation;
  int64_t count = 0;
  for (int64_t s = -reach; s < size + reach; ++s) {
    if (s == 0) s = p;  // within the plane only p itself shows p
    if (s > p && s < size) s = size;
    if (s >= size + reach || source_index(s, size, padding) != p) continue;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t q = s - i * dilation + reach;
      if (q >= 0 && q < size) out[count++] = {q, i};
    }
  }
  return count;
}

// One sample's kernels as (taps, padded channels), flipped for the gradient.
template <class A>
void spread_kernel(const DynamicConvShape& s, const void* kernel, int64_t n, bool flip, int64_t stride, A* out) {
  const A* from = static_cast<const A*>(kernel) + n * s.groups * s.taps();
  for (int64_t t = 0; t < s.taps(); ++t)
    for (int64_t c = 0; c < s.c; ++c)
      out[t * stride + c] = from[s.group(c) * s.taps() + (flip ? s.taps() - 1 - t : t)];
}

// out[x] = sum over taps of taps[t] * rows[i][x + j * dilation], for x in [begin, end), one block of
// channels; column 0 of rows is that of the first tap. Three columns stay in registers.
template <class T>
void filter_pixels_3x3(T* out, int64_t out_step, const T* const* rows, int64_t step, const Acc<T>* taps,
                       int64_t tap_stride, int64_t begin, int64_t end, Vec<Acc<T>> init) {
  using V = Vec<Acc<T>>;
  V k[9], left[3], middle[3], right[3];
  for (int t = 0; t < 9; ++t) k[t] = load(taps + t * tap_stride);
  for (int i = 0; i < 3; ++i) {
    left[i] = load(rows[i] + begin * step);
    middle[i] = load(rows[i] + (begin + 1) * step);
  }
  for (int64_t x = begin; x < end; ++x) {
    V sum = init;
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      right[i] = load(rows[i] + (x + 2) * step);
      sum += k[3 * i] * left[i] + k[3 * i + 1] * middle[i] + k[3 * i + 2] * right[i];
      left[i] = middle[i];
      middle[i] = right[i];
    }
    store(sum, out + x * out_step);
  }
}

template <class T>
void forward_channels_last(const ForwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using V = Vec<A>;
  const DynamicConvShape& s = call.shape;
  const int64_t padded = round_up(s.c, kLanes<A>), rh = s.reach_h(), rw = s.reach_w();
  const int64_t step = call.x.strides.w, out_step = call.y.strides.w;
  Scratch<A> taps(s.taps() * padded), bias(padded);
  Scratch<const T*> rows(s.kh), block_rows(s.kh);
  const bool has_bias = call.bias.data != nullptr;
  const bool bias_varies = has_bias && (call.bias.strides.h != 0 || call.bias.strides.w != 0);
  int64_t spread_for = -1;
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    if (spread_for != band.n) {
      spread_kernel(s, call.kernel, band.n, false, padded, taps.get());
      if (has_bias) read_bias_row(call.bias, band.n, 0, 0, call.bias.strides.c, s.c, bias.get());
      spread_for = band.n;
    }
    for (int64_t y = band.begin; y < band.end; ++y) {
      bool whole = !bias_varies;
      for (int64_t i = 0; i < s.kh; ++i) {
        const int64_t source = source_index(y + i * s.dilation - rh, s.h, s.padding);
        rows[i] = source < 0 ? nullptr : at<T>(call.x, band.n, 0, source);
        whole &= source >= 0;
      }
      T* out_row = at<T>(call.y, band.n, 0, y);
      const auto pixel = [&](int64_t x, int64_t c, int64_t count) {
        if (bias_varies) {
          Tensor here = call.bias;
          const int64_t size = here.type == Type::f64 ? 8 : here.type == Type::f32 ? 4 : 2;
          here.data = static_cast<char*>(here.data) + x * here.strides.w * size;
          read_bias_row(here, band.n, c, y, here.strides.c, count, bias.get() + c);
        }
        V sum = load(&bias[c]);
        for (int64_t i = 0; i < s.kh; ++i) {
          if (!rows[i]) continue;
          for (int64_t j = 0; j < s.kw; ++j) {
            const int64_t column = source_index(x + j * s.dilation - rw, s.w, s.padding);
            if (column >= 0)
              sum += load(&taps[(i * s.kw + j) * padded + c]) * load_block(rows[i] + column * step + c, count);
          }
        }
        store_block(sum, out_row + x * out_step + c, count);
      };
      for_blocks<A>(s.c, [&](int64_t c, int64_t count) {
        const bool fast = whole && count == kLanes<A> && s.w > 2 * rw;
        const int64_t inner_end = fast ? s.w - rw : 0, inner_begin = fast ? rw : 0;
        for (int64_t x = 0; x < inner_begin; ++x) pixel(x, c, count);
        if (fast && s.kh == 3 && s.kw == 3 && s.dilation == 1) {
          for (int64_t i = 0; i < 3; ++i) block_rows[i] = rows[i] + c;
          filter_pixels_3x3(out_row + out_step + c, out_step, block_rows.get(), step, &taps[c], padded, 0, s.w - 2,
                            load(&bias[c]));
        } else if (fast) {
          for (int64_t x = inner_begin; x < inner_end; ++x) {
            V sum = load(&bias[c]);
            for (int64_t i = 0; i < s.kh; ++i)
              for (int64_t j = 0; j < s.kw; ++j)
                sum += load(&taps[(i * s.kw + j) * padded + c]) *
                       load(rows[i] + (x + j * s.dilation - rw) * step + c);
            store(sum, out_row + x * out_step + c);
          }
        }
        for (int64_t x = inner_end; x < s.w; ++x) pixel(x, c, count);
      });
    }
  }
}

// Sums of u * shifted x over pixels [begin, end) of a row, one whole block of channels, for a 3x3 filter
// without dilation.
template <class T>
__attribute__((noinline)) void correlate_pixels_3x3(const T* u, int64_t u_step, const T* const* rows, int64_t step,
                                                    int64_t begin, int64_t end, int64_t width, Padding padding,
                                                    Vec<Acc<T>>* sums) {
  using V = Vec<Acc<T>>;
  const int64_t before = source_index(begin - 1, width, padding), after = source_index(width, width, padding);
  const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2];
  V s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{};
  V left0{}, left1{}, left2{};
  V middle0 = load(r0 + begin * step), middle1 = load(r1 + begin * step), middle2 = load(r2 + begin * step);
  if (before >= 0) left0 = load(r0 + before * step), left1 = load(r1 + before * step), left2 = load(r2 + before * step);
  for (int64_t x = begin; x < end; ++x) {
    const V grad = load(u + x * u_step);
    const int64_t column = x + 1 < width ? x + 1 : after;
    V right0{}, right1{}, right2{};
    if (column >= 0)
      right0 = load(r0 + column * step), right1 = load(r1 + column * step), right2 = load(r2 + column * step);
    s0 += grad * left0, s1 += grad * middle0, s2 += grad * right0;
    s3 += grad * left1, s4 += grad * middle1, s5 += grad * right1;
    s6 += grad * left2, s7 += grad * middle2, s8 += grad * right2;
    left0 = middle0, left1 = middle1, left2 = middle2;
    middle0 = right0, middle1 = right1, middle2 = right2;
  }
  const V all[9] = {s0, s1, s2, s3, s4, s5, s6, s7, s8};
  for (int t = 0; t < 9; ++t) sums[t] = all[t];
}

// Sums of u * shifted x over one row, one block of channels: sums[t * stride + lane] +=
template <class T>
void correlate_pixels(const DynamicConvShape& s, const T* u, int64_t u_step, const T* const* rows, int64_t step,
                      int64_t c, int64_t count, int64_t stride, double* sums) {
  using V = Vec<Acc<T>>;
  const int64_t rw = s.reach_w();
  const auto add = [&](int64_t t, const V& value) {
    for (int64_t lane = 0; lane < count; ++lane) sums[t * stride + c + lane] += double(value[lane]);
  };
  if (s.kh == 3 && s.kw == 3 && s.dilation == 1 && count == kLanes<Acc<T>> && rows[0] && rows[2]) {
    const T* const block[3] = {rows[0] + c, rows[1] + c, rows[2] + c};
    for (int64_t begin = 0; begin < s.w; begin += kFlush) {
      V found[9];
      const int64_t end = least(begin + kFlush, s.w);
      correlate_pixels_3x3(u + c, u_step, block, step, begin, end, s.w, s.padding, found);
      for (int t = 0; t < 9; ++t) add(t, found[t]);
    }
    return;
  }
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; rows[i] && j < s.kw; ++j) {
      for (int64_t begin = 0; begin < s.w; begin += kFlush) {
        V sum = {};
        for (int64_t x = begin; x < least(begin + kFlush, s.w); ++x) {
          const int64_t column = source_index(x + j * s.dilation - rw, s.w, s.padding);
          if (column >= 0)
            sum += load_block(u + x * u_step + c, count) * load_block(rows[i] + column * step + c, count);
        }
        add(i * s.kw + j, sum);
      }
    }
}

// sums[channel] += the pixels of one row, in lanes of float for no longer than kFlush pixels.
template <class T>
void sum_pixels(const T* row, int64_t step, int64_t width, int64_t channels, double* sums) {
  using A = Acc<T>;
  for_blocks<A>(channels, [&](int64_t c, int64_t count) {
    for (int64_t begin = 0; begin < width; begin += kFlush) {
      Vec<A> sum = {};
      for (int64_t x = begin; x < least(begin + kFlush, width); ++x) sum += load_block(row + x * step + c, count);
      for (int64_t lane = 0; lane < count; ++lane) sums[c + lane] += double(sum[lane]);
    }
  });
}

template <class T>
void backward_channels_last(const BackwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using V = Vec<A>;
  const DynamicConvShape& s = call.shape;
  const int64_t padded = round_up(s.c, kLanes<A>), rh = s.reach_h(), rw = s.reach_w(), taps = s.taps();
  const int64_t step = call.grad.strides.w;
  const bool want_dx = call.dx.data != nullptr, want_taps = call.tap_sums != nullptr;
  Scratch<A> flipped(taps * padded);
  Scratch<const T*> rows(s.kh), block_rows(s.kh);
  Scratch<Pair> row_pairs((2 * rh + 1) * s.kh), column_pairs((2 * rw + 1) * s.kw);
  int64_t spread_for = -1;
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    if (spread_for != band.n) {
      spread_kernel(s, call.kernel, band.n, true, padded, flipped.get());
      spread_for = band.n;
    }
    double* tap_sums = want_taps ? call.tap_sums + task * taps * s.c : nullptr;
    double* grad_sums = call.grad_sums ? call.grad_sums + task * s.c : nullptr;
    if (tap_sums) std::memset(tap_sums, 0, taps * s.c * sizeof(double));
    if (grad_sums) std::memset(grad_sums, 0, s.c * sizeof(double));
    for (int64_t y = band.begin; y < band.end; ++y) {
      const T* u = at<T>(call.grad, band.n, 0, y);
      if (want_taps) {
        for (int64_t i = 0; i < s.kh; ++i) {
          const int64_t source = source_index(y + i * s.dilation - rh, s.h, s.padding);
          rows[i] = source < 0 ? nullptr : at<T>(call.x, band.n, 0, source);
        }
        for_blocks<A>(s.c, [&](int64_t c, int64_t count) {
          correlate_pixels(s, u, step, rows.get(), call.x.strides.w, c, count, s.c, tap_sums);
        });
      }
      if (grad_sums)
        sum_pixels(u, step, s.w, s.c, grad_sums);
      if (!want_dx) continue;
      const int64_t row_count = adjoint_pairs(y, s.h, s.kh, s.dilation, s.padding, row_pairs.get());
      const bool inner_row = is_inner(y, s.h, rh);
      if (inner_row)
        for (int64_t i = 0; i < s.kh; ++i) rows[i] = at<T>(call.grad, band.n, 0, y + i * s.dilation - rh);
      T* out_row = at<T>(call.dx, band.n, 0, y);
      const int64_t out_step = call.dx.strides.w;
      const auto edge_pixel = [&](int64_t x) {
        const int64_t columns = adjoint_pairs(x, s.w, s.kw, s.dilation, s.padding, column_pairs.get());
        for_blocks<A>(s.c, [&](int64_t c, int64_t count) {
          V sum = {};
          for (int64_t a = 0; a < row_count; ++a) {
            const T* row = at<T>(call.grad, band.n, 0, row_pairs[a].q) + c;
            for (int64_t b = 0; b < columns; ++b) {
              const int64_t tap = taps - 1 - (row_pairs[a].i * s.kw + column_pairs[b].i);
              sum += load(&flipped[tap * padded + c]) * load_block(row + column_pairs[b].q * step, count);
            }
          }
          store_block(sum, out_row + x * out_step + c, count);
        });
      };
      const bool fast = inner_row && s.w > 2 * rw + 2;
      const int64_t inner_begin = fast ? rw + 1 : 0, inner_end = fast ? s.w - 1 - rw : 0;
      for (int64_t x = 0; x < inner_begin; ++x) edge_pixel(x);
      for_blocks<A>(fast ? s.c : 0, [&](int64_t c, int64_t count) {
        if (s.kh == 3 && s.kw == 3 && s.dilation == 1 && count == kLanes<A>) {
          for (int64_t i = 0; i < 3; ++i) block_rows[i] = rows[i] + c;
          filter_pixels_3x3(out_row + out_step + c, out_step, block_rows.get(), step, &flipped[c], padded, 1,
                            s.w - 3, V{});
          return;
        }
        for (int64_t x = inner_begin; x < inner_end; ++x) {
          V sum = {};
          for (int64_t i = 0; i < s.kh; ++i)
            for (int64_t j = 0; j < s.kw; ++j)
              sum += load(&flipped[(i * s.kw + j) * padded + c]) *
                     load_block(rows[i] + (x + j * s.dilation - rw) * step + c, count);
          store_block(sum, out_row + x * out_step + c, count);
        }
      });
      for (int64_t x = inner_end; x < s.w; ++x) edge_pixel(x);
    }
  }
}

// ---- the plane mean ----

template <class T>
void mean_rows(const MeanCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    Vec<A> sums[4] = {};
    WideVec<A> totals[4] = {};
    double total = 0;
    int64_t summed = 0;
    for (int64_t y = band.begin; y < band.end; ++y) {
      const T* row = at<T>(call.x, band.n, band.c, y);
      int64_t x = 0;
      if (call.x.strides.w == 1) {
        for (; x + 4 * lanes <= call.w; x += 4 * lanes)
          for (int k = 0; k < 4; ++k) sums[k] += load(row + x + k * lanes);
        for (; x + lanes <= call.w; x += lanes) sums[0] += load(row + x);
      }
      for (; x < call.w; ++x) total += double(widen(row[x * call.x.strides.w]));
      summed += call.w;
      if (summed > 4 * kFlush || y + 1 == band.end) {
        flush<A>(sums, 4, totals);
        summed = 0;
      }
    }
    for (int k = 0; k < 4; ++k) total += take_total<A>(totals + k);
    call.partial[task] = total;
  }
}

template <class T>
void mean_channels_last(const MeanCall& call, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    double* sums = call.partial + task * call.c;
    std::memset(sums, 0, call.c * sizeof(double));
    for (int64_t y = band.begin; y < band.end; ++y) {
      const T* row = at<T>(call.x, band.n, 0, y);
      sum_pixels(row, call.x.strides.w, call.w, call.c, sums);
    }
  }
}

// ---- choice of element type and algorithm ----

template <class Body>
void by_type(Type type, const Body& body) {
  switch (type) {
    case Type::f32: return body(float{});
    case Type::f64: return body(double{});
    case Type::f16: return body(half{});
    case Type::bf16: return body(bfloat16{});
  }
}

void spatial_mean(const MeanCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? mean_channels_last<T>(call, begin, end) : mean_rows<T>(call, begin, end);
  });
}

void forward(const ForwardCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? forward_channels_last<T>(call, begin, end) : forward_rows<T>(call, begin, end);
  });
}

void backward(const BackwardCall& call, int64_t begin, int64_t end) {
  by_type(call.grad.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? backward_channels_last<T>(call, begin, end) : backward_rows<T>(call, begin, end);
  });
}

}  // namespace

#define IRNEXT_STRING(name) #name
#define IRNEXT_TABLE(isa) \
  extern const Kernels kernels_##isa; \
  const Kernels kernels_##isa = {IRNEXT_STRING(isa), ::spatial_mean, ::forward, ::backward};
#define IRNEXT_EXPAND(isa) IRNEXT_TABLE(isa)

namespace irnext::cpu {
IRNEXT_EXPAND(IRNEXT_ISA)
}
