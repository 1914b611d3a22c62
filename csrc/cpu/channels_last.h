// The algorithm for channels_last: channels lie side by side in memory, a vector holds one pixel of several.
#pragma once

#include "local_mean.h"
#include "memory.h"

namespace {

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

// The kernels of a band's channels as (taps, padded channels), flipped for the gradient.
template <class A>
void spread_kernel(const DynamicConvShape& s, const void* kernel, const Band& band, bool flip, int64_t stride,
                   A* out) {
  const A* from = static_cast<const A*>(kernel) + band.n * s.groups * s.taps();
  for (int64_t c = 0; c < band.channels; ++c) {
    const A* taps = from + s.group(band.c + c) * s.taps();
    for (int64_t t = 0; t < s.taps(); ++t) out[t * stride + c] = taps[flip ? s.taps() - 1 - t : t];
  }
}

// What a sum over taps begins with: a vector of channels for each pixel, or (step 0) one for all of them.
template <class A>
struct Init {
  const A* values;
  int64_t step;
  IRNEXT_INLINE Vec<A> pixel(int64_t x, int64_t c) const { return load(values + x * step + c); }
};

// out[x] = init[x] + sum over taps of taps[t] * rows[i][x + j * dilation], for x in [begin, end), one block of
// channels; column 0 of rows is that of the first tap. Three columns stay in registers.
template <bool Varies, class T>
void filter_pixels_3x3(T* out, int64_t out_step, const T* const* rows, int64_t step, const Acc<T>* taps,
                       int64_t tap_stride, int64_t begin, int64_t end, const Acc<T>* init, int64_t init_step) {
  using V = Vec<Acc<T>>;
  V k[9], left[3], middle[3], right[3];
  for (int t = 0; t < 9; ++t) k[t] = load(taps + t * tap_stride);
  for (int i = 0; i < 3; ++i) {
    left[i] = load(rows[i] + begin * step);
    middle[i] = load(rows[i] + (begin + 1) * step);
  }
  const V first = load(init);
  for (int64_t x = begin; x < end; ++x) {
    V sum = Varies ? load(init + x * init_step) : first;
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
IRNEXT_INLINE void filter_pixels_3x3(T* out, int64_t out_step, const T* const* rows, int64_t step, const Acc<T>* taps,
                                     int64_t tap_stride, int64_t begin, int64_t end, const Acc<T>* init,
                                     int64_t init_step) {
  if (init_step)
    filter_pixels_3x3<true>(out, out_step, rows, step, taps, tap_stride, begin, end, init, init_step);
  else
    filter_pixels_3x3<false>(out, out_step, rows, step, taps, tap_stride, begin, end, init, init_step);
}

template <class T>
void forward_channels_last(const ForwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using V = Vec<A>;
  const DynamicConvShape& s = call.shape;
  const int64_t padded = round_up(call.tasks.block, kLanes<A>), rh = s.reach_h(), rw = s.reach_w();
  const int64_t step = call.x.strides.w, out_step = call.y.strides.w;
  const Strides& b = call.bias.strides;
  const bool has_bias = call.bias.data != nullptr, bias_varies = has_bias && b.w != 0;
  Scratch<A> taps(s.taps() * padded), bias(bias_varies ? s.w * padded : padded);
  LocalMeanPixels<T, false> means(call.x, call.tasks.block, s.h, s.w, call.window);
  Scratch<const T*> rows(s.kh), block_rows(s.kh);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    spread_kernel(s, call.kernel, band, false, padded, taps.get());
    if (call.window) means.start(band, static_cast<const A*>(call.window_gain) + band.c, nullptr);
    for (int64_t y = band.begin; y < band.end; ++y) {
      if (has_bias && (y == band.begin || b.h != 0)) {
        const int64_t offset = band.n * b.n + band.c * b.c + y * b.h;
        for (int64_t x = 0; x < (bias_varies ? s.w : 1); ++x)
          read_bias(call.bias, offset + x * b.w, b.c, band.channels, &bias[x * padded]);
      }
      const Init<A> init = call.window ? Init<A>{means.row(y), means.step()}
                                       : Init<A>{bias.get(), bias_varies ? padded : 0};
      bool whole = true;
      for (int64_t i = 0; i < s.kh; ++i) {
        const int64_t source = source_index(y + i * s.dilation - rh, s.h, s.padding);
        rows[i] = source < 0 ? nullptr : at<T>(call.x, band.n, band.c, source);
        whole &= source >= 0;
      }
      T* out_row = at<T>(call.y, band.n, band.c, y);
      const auto pixel = [&](int64_t x, int64_t c, int64_t count) {
        V sum = init.pixel(x, c);
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
      for_blocks<A>(band.channels, [&](int64_t c, int64_t count, int64_t) {
        const bool fast = whole && count == kLanes<A> && s.w > 2 * rw;
        const int64_t inner_end = fast ? s.w - rw : 0, inner_begin = fast ? rw : 0;
        for (int64_t x = 0; x < inner_begin; ++x) pixel(x, c, count);
        if (fast && s.kh == 3 && s.kw == 3 && s.dilation == 1) {
          for (int64_t i = 0; i < 3; ++i) block_rows[i] = rows[i] + c;
          filter_pixels_3x3(out_row + out_step + c, out_step, block_rows.get(), step, &taps[c], padded, 0, s.w - 2,
                            init.values + init.step + c, init.step);
        } else if (fast) {
          for (int64_t x = inner_begin; x < inner_end; ++x) {
            V sum = init.pixel(x, c);
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

// Sums of u * shifted x over one row, one block of channels: sums[t * stride + lane] +=, but for the `known`
// first lanes.
template <class T>
void correlate_pixels(const DynamicConvShape& s, const T* u, int64_t u_step, const T* const* rows, int64_t step,
                      int64_t c, int64_t count, int64_t known, int64_t stride, double* sums) {
  using V = Vec<Acc<T>>;
  const int64_t rw = s.reach_w();
  const auto add = [&](int64_t t, const V& value) {
    for (int64_t lane = known; lane < count; ++lane) sums[t * stride + c + lane] += double(value[lane]);
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

// sums[channel] += the pixels of one row, times `weights` where they are given; in lanes of float for no
// longer than kFlush pixels.
template <class T>
void sum_pixels(const T* row, int64_t step, int64_t width, int64_t channels, const Init<Acc<T>>& weights,
                double* sums) {
  using A = Acc<T>;
  for_blocks<A>(channels, [&](int64_t c, int64_t count, int64_t known) {
    for (int64_t begin = 0; begin < width; begin += kFlush) {
      Vec<A> sum = {};
      const int64_t end = least(begin + kFlush, width);
      if (weights.values)
        for (int64_t x = begin; x < end; ++x) sum += load_block(row + x * step + c, count) * weights.pixel(x, c);
      else
        for (int64_t x = begin; x < end; ++x) sum += load_block(row + x * step + c, count);
      for (int64_t lane = known; lane < count; ++lane) sums[c + lane] += double(sum[lane]);
    }
  });
}

template <class T>
void backward_channels_last(const BackwardCall& call, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using V = Vec<A>;
  const DynamicConvShape& s = call.shape;
  const int64_t block = call.tasks.block, padded = round_up(block, kLanes<A>), taps = s.taps();
  const int64_t rh = s.reach_h(), rw = s.reach_w(), step = call.grad.strides.w;
  const bool want_dx = call.dx.data != nullptr, want_taps = call.tap_sums != nullptr;
  const bool want_sum = call.grad_sums != nullptr;
  Scratch<A> flipped(taps * padded), shifts(padded);
  Scratch<const T*> rows(s.kh), block_rows(s.kh);
  Scratch<Pair> row_pairs((2 * rh + 1) * s.kh), column_pairs((2 * rw + 1) * s.kw);
  LocalMeanPixels<T, false> means(call.x, block, s.h, s.w, want_sum ? call.window : Window{});
  LocalMeanPixels<T, true> mean_adjoints(call.grad, block, s.h, s.w, want_dx ? call.window : Window{});
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, s.c, s.h);
    spread_kernel(s, call.kernel, band, true, padded, flipped.get());
    double* tap_sums = want_taps ? call.tap_sums + task * taps * block : nullptr;
    double* grad_sums = want_sum ? call.grad_sums + task * block : nullptr;
    if (tap_sums) std::memset(tap_sums, 0, taps * block * sizeof(double));
    if (grad_sums) std::memset(grad_sums, 0, block * sizeof(double));
    if (call.shift) {
      const A* from = static_cast<const A*>(call.shift) + band.n * s.c + band.c;
      for (int64_t c = 0; c < band.channels; ++c) shifts[c] = from[c];
    }
    if (call.window && want_sum) means.start(band, nullptr, nullptr);
    if (call.window && want_dx)
      mean_adjoints.start(band, static_cast<const A*>(call.window_gain) + band.c, shifts.get());
    for (int64_t y = band.begin; y < band.end; ++y) {
      const T* u = at<T>(call.grad, band.n, band.c, y);
      if (want_taps) {
        for (int64_t i = 0; i < s.kh; ++i) {
          const int64_t source = source_index(y + i * s.dilation - rh, s.h, s.padding);
          rows[i] = source < 0 ? nullptr : at<T>(call.x, band.n, band.c, source);
        }
        for_blocks<A>(band.channels, [&](int64_t c, int64_t count, int64_t known) {
          correlate_pixels(s, u, step, rows.get(), call.x.strides.w, c, count, known, block, tap_sums);
        });
      }
      if (want_sum)
        sum_pixels(u, step, s.w, band.channels,
                   call.window ? Init<A>{means.row(y), means.step()} : Init<A>{nullptr, 0}, grad_sums);
      if (!want_dx) continue;
      const Init<A> init = call.window ? Init<A>{mean_adjoints.row(y), mean_adjoints.step()}
                                       : Init<A>{shifts.get(), 0};
      const int64_t row_count = adjoint_pairs(y, s.h, s.kh, s.dilation, s.padding, row_pairs.get());
      const bool inner_row = is_inner(y, s.h, rh);
      if (inner_row)
        for (int64_t i = 0; i < s.kh; ++i) rows[i] = at<T>(call.grad, band.n, band.c, y + i * s.dilation - rh);
      T* out_row = at<T>(call.dx, band.n, band.c, y);
      const int64_t out_step = call.dx.strides.w;
      const auto edge_pixel = [&](int64_t x) {
        const int64_t columns = adjoint_pairs(x, s.w, s.kw, s.dilation, s.padding, column_pairs.get());
        for_blocks<A>(band.channels, [&](int64_t c, int64_t count, int64_t) {
          V sum = init.pixel(x, c);
          for (int64_t a = 0; a < row_count; ++a) {
            const T* row = at<T>(call.grad, band.n, band.c, row_pairs[a].q) + c;
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
      for_blocks<A>(fast ? band.channels : 0, [&](int64_t c, int64_t count, int64_t) {
        if (s.kh == 3 && s.kw == 3 && s.dilation == 1 && count == kLanes<A>) {
          for (int64_t i = 0; i < 3; ++i) block_rows[i] = rows[i] + c;
          filter_pixels_3x3(out_row + out_step + c, out_step, block_rows.get(), step, &flipped[c], padded, 1,
                            s.w - 3, init.values + init.step + c, init.step);
          return;
        }
        for (int64_t x = inner_begin; x < inner_end; ++x) {
          V sum = init.pixel(x, c);
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
void mean_channels_last(const MeanCall& call, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    double* sums = call.partial + task * call.tasks.block;
    std::memset(sums, 0, call.tasks.block * sizeof(double));
    for (int64_t y = band.begin; y < band.end; ++y)
      sum_pixels(at<T>(call.x, band.n, band.c, y), call.x.strides.w, call.w, band.channels, Init<Acc<T>>{nullptr, 0},
                 sums);
  }
}

}  // namespace
