// The algorithm along rows, for any strides: every row is widened once into a padded ring of rows, then
// filtered without a thought for borders or types.
//
// The gradient of x is the same filter with flipped taps on the extended plane, whose margin is then
// folded back by the border rule.
#pragma once

#include "local_mean.h"
#include "memory.h"

namespace {

// Short rows are widened several at a time: reading a row just written, at another offset, would wait
// until its stores have left the processor.
constexpr int64_t kAhead = 1024;
constexpr int64_t kInPlaceReach = 4;  // columns of a margin that are worth adding one by one

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
  LocalMeanRows<T, false> means(call.x, s.h, s.w, call.window);
  Scratch<A> bias_row(s.w);
  Scratch<T> strided_row(s.w);
  Scratch<const A*> rows(s.kh);
  const Strides& b = call.bias.strides;
  const bool has_bias = call.bias.data != nullptr, bias_varies = has_bias && b.w != 0;
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    const A* taps = static_cast<const A*>(call.kernel) + (band.n * s.groups + s.group(band.c)) * s.taps();
    if (call.window) means.start(band.n, band.c, double(static_cast<const A*>(call.window_gain)[band.c]), 0);
    ring.start(band);
    for (int64_t y = band.begin; y < band.end; ++y) {
      ring.advance_to(y);
      for (int64_t i = 0; i < s.kh; ++i) rows[i] = ring.slot(y + i * s.dilation - s.reach_h());
      if (has_bias && (y == band.begin || b.h != 0))
        read_bias(call.bias, band.n * b.n + band.c * b.c + y * b.h, b.w, bias_varies ? s.w : 1, bias_row.get());
      const A* init_row = call.window ? means.row(y) : bias_varies ? bias_row.get() : nullptr;
      T* out = at<T>(call.y, band.n, band.c, y);
      T* dense = call.y.strides.w == 1 ? out : strided_row.get();
      filter_row<false>(dense, rows.get(), taps, s.kh, s.kw, s.dilation, s.w, bias_row[0], init_row);
      if (dense != out)
        for (int64_t x = 0; x < s.w; ++x) out[x * call.y.strides.w] = dense[x];
    }
  }
}

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

// to[i] = from[i] + shift + addend[i], which may be null. Reads `from` and `addend` up to the next whole vector.
template <class T>
IRNEXT_INLINE void add_and_narrow(Acc<T>* from, Acc<T> shift, const Acc<T>* addend, int64_t count, T* to,
                                  int64_t stride) {
  using A = Acc<T>;
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    Vec<A> sum = load(from + i) + splat(shift);
    if (addend) sum += load(addend + i);
    store(sum, from + i);
  }
  narrow_row(from, count, to, stride);
}

template <class T>
void backward_rows(const BackwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const DynamicConvShape& s = call.shape;
  const int64_t rh = s.reach_h(), rw = s.reach_w(), taps = s.taps(), wide = s.w + 2 * rw;
  const bool want_dx = call.dx.data != nullptr, want_taps = call.tap_sums != nullptr;
  const bool want_sum = call.grad_sums != nullptr;
  RowRing<T> grads(call.grad, s.h, s.w, rh, 2 * rw, Padding::zeros);
  const bool in_place = s.kh == 3 && s.kw == 3 && call.x.strides.w == 1 && rw <= least(s.w - 1, kInPlaceReach) &&
                        s.padding != Padding::zeros;
  const bool use_ring = want_taps && !in_place;
  LocalMeanRows<T, false> means(call.x, s.h, s.w, want_sum ? call.window : Window{});
  LocalMeanRows<T, true> mean_adjoints(call.grad, s.h, s.w, want_dx ? call.window : Window{});
  RowRing<T> inputs(call.x, s.h, s.w, use_ring ? rh : 0, use_ring ? rw : 0, s.padding);
  const int64_t extended_length = round_up(wide, kLanes<A>) + kLanes<A>;  // slack for add_and_narrow
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
    A shift = call.shift ? static_cast<const A*>(call.shift)[band.n * s.c + band.c] : A(0);
    if (call.window && want_sum) means.start(band.n, band.c, 1, 0);
    if (call.window && want_dx) {
      mean_adjoints.start(band.n, band.c, double(static_cast<const A*>(call.window_gain)[band.c]), double(shift));
      shift = 0;
    }
    const auto finish = [&](int64_t y) {
      A* extended = extended_rows.get() + y % 2 * extended_length;
      margins.fold(extended + rw);
      T* out = at<T>(call.dx, band.n, band.c, y);
      if (call.shift || call.window)
        add_and_narrow(extended + rw, shift, call.window ? mean_adjoints.row(y) : nullptr, s.w, out, call.dx.strides.w);
      else
        narrow_row(extended + rw, s.w, out, call.dx.strides.w);
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
      if (want_sum && call.window) {
        const A* mean = means.row(y);
        for (int64_t i = 0; i < s.w; i += kLanes<A>) lanes[taps] += load(u + i) * load(mean + i);
      } else if (want_sum) {
        for (int64_t i = 0; i < s.w; i += kLanes<A>) lanes[taps] += load(u + i);
      }
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

}  // namespace
