// Local means by running sums, a row at a time. A window slides down the rows: the sums of its columns gain
// the row that enters and lose the one that leaves; along the row they are summed up in the same way. All
// running sums are in double, so that what enters and leaves cancels.
//
// The adjoint is of the same kind: rows and columns of the border are added to those they show, and then
// each window ends, rather than begins, at the pixel.
#pragma once

#include "memory.h"

namespace {

// The rows that a sliding window holds. For the adjoint `row` counts the valid places, each of which stands
// for all rows that show it.
template <bool Adjoint>
class SlidingWindow {
 public:
  explicit SlidingWindow(const Box& box) : box_(box) {}

  void restart() { at_ = kNowhere; }

  // Go to the window that row p shows. Calls clear(), add(begin, end) for rows to be added, remove(begin,
  // end) or, where one row replaces another, exchange(entering, leaving). False where nothing changes.
  template <class Clear, class Add, class Remove, class Exchange>
  bool move_to(int64_t p, const Clear& clear, const Add& add, const Remove& remove, const Exchange& exchange) {
    const int64_t count = Adjoint ? box_.valid() : box_.size;
    const int64_t first = Adjoint ? p - box_.width + 1 : box_.valid_place(p), last = first + box_.width - 1;
    if (first == at_) return false;
    const bool next = at_ != kNowhere && first == at_ + 1;
    at_ = first;
    if (!next) {
      clear();
      add(begin(largest(first, 0)), end(least(last, count - 1)));
      return true;
    }
    const bool enters = last < count, leaves = first > 0;
    if (enters && leaves && end(last) - begin(last) == 1 && end(first - 1) - begin(first - 1) == 1) {
      exchange(begin(last), begin(first - 1));
    } else {
      if (enters) add(begin(last), end(last));
      if (leaves) remove(begin(first - 1), end(first - 1));
    }
    return enters || leaves;
  }

 private:
  static constexpr int64_t kNowhere = INT64_MIN;
  int64_t begin(int64_t row) const { return Adjoint ? box_.shown_begin(row) : row; }
  int64_t end(int64_t row) const { return Adjoint ? box_.shown_end(row) : row + 1; }

  Box box_;
  int64_t at_ = kNowhere;
};

// sums[lane] += sign * value[lane], and the same with the difference of two.
template <class A>
IRNEXT_INLINE void add_wide(const Vec<A>& value, double sign, double* sums) {
  WideVec<A> wide;
  std::memcpy(&wide, sums, sizeof wide);
  wide += sign * __builtin_convertvector(value, WideVec<A>);
  std::memcpy(sums, &wide, sizeof wide);
}
template <class A>
IRNEXT_INLINE void exchange_wide(const Vec<A>& entering, const Vec<A>& leaving, double* sums) {
  WideVec<A> wide;
  std::memcpy(&wide, sums, sizeof wide);
  wide += __builtin_convertvector(entering, WideVec<A>) - __builtin_convertvector(leaving, WideVec<A>);
  std::memcpy(sums, &wide, sizeof wide);
}

// out[i] = shift + factor * (start + sum over j <= i of entering[j] - leaving[j]). Works on whole vectors:
// up to one more of them is read and written past `count`.
template <class A>
void running_sums(double start, const double* entering, const double* leaving, int64_t count, double factor,
                  double shift, A* out) {
  typedef A Narrow __attribute__((vector_size(kLanes<double> * sizeof(A))));
  Vec<double> carried = splat(start);
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    const Vec<double> sums = carried + prefix_sums(load(entering + i) - load(leaving + i));
    const Narrow values = __builtin_convertvector(sums * factor + shift, Narrow);
    std::memcpy(out + i, &values, sizeof values);
    carried = splat(double(sums[kLanes<double> - 1]));
  }
}

// Of one plane: vectors hold columns.
template <class T, bool Adjoint>
class LocalMeanRows {
 public:
  using A = Acc<T>;

  LocalMeanRows(const Tensor& tensor, int64_t height, int64_t width, const Window& window)
      : tensor_(tensor),
        down_{height, window.rows},
        along_{width, window.columns},
        rows_(down_),
        sums_(window ? width + kSlack : 0),
        folded_(window && Adjoint ? 2 * window.columns + width + kSlack : 0),
        values_(window ? width + kSlack : 0) {}

  // Begin a plane: rows will be shift + factor * means.
  void start(int64_t n, int64_t c, double factor, double shift) {
    plane_ = at<T>(tensor_, n, c, 0);
    factor_ = factor / (double(down_.width) * double(along_.width));
    shift_ = shift;
    rows_.restart();
  }

  // Row y, with slack of one vector; consecutive rows are quickest.
  const A* row(int64_t y) {
    const bool changed = rows_.move_to(
        y, [&] { std::memset(sums_.get(), 0, along_.size * sizeof(double)); },
        [&](int64_t begin, int64_t end) { add(begin, end, 1); },
        [&](int64_t begin, int64_t end) { add(begin, end, -1); },
        [&](int64_t entering, int64_t leaving) { exchange(source(entering), source(leaving)); });
    if (changed) Adjoint ? write_adjoint() : write();
    return values_.get();
  }

 private:
  static constexpr int64_t kSlack = 2 * kLanes<float>;

  const T* source(int64_t y) const { return plane_ + y * tensor_.strides.h; }

  void add(int64_t begin, int64_t end, double sign) {
    const int64_t stride = tensor_.strides.w;
    for (int64_t y = begin; y < end; ++y) {
      const T* row = source(y);
      int64_t x = 0;
      if (stride == 1)
        for (; x + kLanes<A> <= along_.size; x += kLanes<A>)
          add_wide<A>(load(row + x), sign, &sums_[x]);
      for (; x < along_.size; ++x) sums_[x] += sign * double(widen(row[x * stride]));
    }
  }

  void exchange(const T* entering, const T* leaving) {
    const int64_t stride = tensor_.strides.w;
    int64_t x = 0;
    if (stride == 1)
      for (; x + kLanes<A> <= along_.size; x += kLanes<A>)
        exchange_wide<A>(load(entering + x), load(leaving + x), &sums_[x]);
    for (; x < along_.size; ++x) sums_[x] += double(widen(entering[x * stride])) - double(widen(leaving[x * stride]));
  }

  void write() {
    A* first = values_.get() + along_.before();
    const int64_t valid = along_.valid();
    double start = 0;
    for (int64_t x = 0; x < along_.width; ++x) start += sums_[x];
    *first = A(start * factor_ + shift_);
    running_sums(start, &sums_[along_.width], sums_.get(), valid - 1, factor_, shift_, first + 1);
    for (int64_t x = 0; x < along_.before(); ++x) values_[x] = *first;
    for (int64_t x = along_.before() + valid; x < along_.size; ++x) values_[x] = first[valid - 1];
  }

  void write_adjoint() {
    double* folded = &folded_[along_.width];  // zeros on either side
    const int64_t valid = along_.valid();
    for (int64_t place = 0; place < valid; ++place) folded[place] = sums_[place + along_.before()];
    for (const int64_t place : {int64_t(0), valid - 1}) {
      double total = 0;
      for (int64_t x = along_.shown_begin(place); x < along_.shown_end(place); ++x) total += sums_[x];
      folded[place] = total;
    }
    running_sums(0, folded, folded_.get(), along_.size, factor_, shift_, values_.get());
  }

  const Tensor tensor_;
  Box down_, along_;
  SlidingWindow<Adjoint> rows_;
  const T* plane_ = nullptr;
  double factor_ = 0, shift_ = 0;
  Scratch<double> sums_, folded_;
  Scratch<A> values_;
};

// Of neighbouring channels, at most `channels`: vectors hold channels of one pixel.
template <class T, bool Adjoint>
class LocalMeanPixels {
 public:
  using A = Acc<T>;
  using W = WideVec<A>;

  LocalMeanPixels(const Tensor& tensor, int64_t channels, int64_t height, int64_t width, const Window& window)
      : tensor_(tensor),
        down_{height, window.rows},
        along_{width, window.columns},
        rows_(down_),
        step_(window ? round_up(channels, kLanes<A>) : 0),
        sums_(step_ / kLanes<A> * width),
        folded_(window && Adjoint ? along_.valid() : 0),
        factors_(step_),
        shifts_(step_),
        values_(step_ * width) {}

  // Begin a band; a null pointer stands for factors of one or shifts of zero.
  void start(const Band& band, const A* factors, const A* shifts) {
    plane_ = at<T>(tensor_, band.n, band.c, 0);
    channels_ = band.channels;
    const double area = double(down_.width) * double(along_.width);
    for (int64_t c = 0; c < channels_; ++c) {
      factors_[c] = (factors ? double(factors[c]) : 1) / area;
      shifts_[c] = shifts ? double(shifts[c]) : 0;
    }
    rows_.restart();
  }

  // Row y: pixels of step() channels each.
  const A* row(int64_t y) {
    bool changed = rows_.move_to(
        y, [&] { std::memset(static_cast<void*>(sums_.get()), 0, step_ * along_.size * sizeof(double)); },
        [&](int64_t begin, int64_t end) { add(begin, end, 1); },
        [&](int64_t begin, int64_t end) { add(begin, end, -1); },
        [&](int64_t entering, int64_t leaving) { exchange(source(entering), source(leaving)); });
    if (changed) write();
    return values_.get();
  }

  int64_t step() const { return step_; }

 private:
  const T* source(int64_t y) const { return plane_ + y * tensor_.strides.h; }

  // Call body(first channel, channels, sums of the row's pixels) for each vector of channels.
  template <class Body>
  IRNEXT_INLINE void each_vector(const Body& body) {
    W* sums = sums_.get();
    for_blocks<A>(channels_, [&](int64_t c, int64_t count, int64_t) {
      body(c, count, sums);
      sums += along_.size;
    });
  }

  void add(int64_t begin, int64_t end, double sign) {
    const int64_t step = tensor_.strides.w;
    each_vector([&](int64_t c, int64_t count, W* sums) {
      for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < along_.size; ++x)
          add_wide<A>(load_block(source(y) + x * step + c, count), sign, reinterpret_cast<double*>(sums + x));
    });
  }

  void exchange(const T* entering, const T* leaving) {
    const int64_t step = tensor_.strides.w;
    each_vector([&](int64_t c, int64_t count, W* sums) {
      for (int64_t x = 0; x < along_.size; ++x)
        exchange_wide<A>(load_block(entering + x * step + c, count), load_block(leaving + x * step + c, count),
                         reinterpret_cast<double*>(sums + x));
    });
  }

  void write() {
    each_vector([&](int64_t c, int64_t, const W* sums) {
      W factor, shift;
      std::memcpy(&factor, &factors_[c], sizeof factor);
      std::memcpy(&shift, &shifts_[c], sizeof shift);
      const auto put = [&](int64_t x, const W& sum) {
        store(__builtin_convertvector(sum * factor + shift, Vec<A>), &values_[x * step_ + c]);
      };
      const int64_t width = along_.width, valid = along_.valid(), before = along_.before();
      W sum{};
      if constexpr (Adjoint) {
        for (int64_t place = 0; place < valid; ++place) {
          folded_[place] = W{};
          for (int64_t x = along_.shown_begin(place); x < along_.shown_end(place); ++x) folded_[place] += sums[x];
        }
        for (int64_t x = 0; x < along_.size; ++x) {
          if (x < valid) sum += folded_[x];
          if (x >= width) sum -= folded_[x - width];
          put(x, sum);
        }
      } else {
        for (int64_t x = 0; x < width; ++x) sum += sums[x];
        for (int64_t x = 0; x <= before; ++x) put(x, sum);
        for (int64_t place = 1; place < valid; ++place) {
          sum += sums[place + width - 1] - sums[place - 1];
          put(place + before, sum);
        }
        for (int64_t x = before + valid; x < along_.size; ++x) put(x, sum);
      }
    });
  }

  const Tensor tensor_;
  Box down_, along_;
  SlidingWindow<Adjoint> rows_;
  const T* plane_ = nullptr;
  int64_t channels_ = 0, step_;
  Scratch<W> sums_, folded_;
  Scratch<double> factors_, shifts_;
  Scratch<A> values_;
};

template <bool Adjoint, class T>
void local_mean_rows(const LocalMeanCall& call, int64_t begin, int64_t end) {
  LocalMeanRows<T, Adjoint> means(call.x, call.h, call.w, call.window);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    means.start(band.n, band.c, 1, 0);
    for (int64_t y = band.begin; y < band.end; ++y)
      narrow_row(means.row(y), call.w, at<T>(call.y, band.n, band.c, y), call.y.strides.w);
  }
}

template <bool Adjoint, class T>
void local_mean_channels_last(const LocalMeanCall& call, int64_t begin, int64_t end) {
  LocalMeanPixels<T, Adjoint> means(call.x, call.tasks.block, call.h, call.w, call.window);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    means.start(band, nullptr, nullptr);
    for (int64_t y = band.begin; y < band.end; ++y) {
      const Acc<T>* row = means.row(y);
      T* out = at<T>(call.y, band.n, band.c, y);
      for_blocks<Acc<T>>(band.channels, [&](int64_t c, int64_t count, int64_t) {
        for (int64_t x = 0; x < call.w; ++x)
          store_block(load(row + x * means.step() + c), out + x * call.y.strides.w + c, count);
      });
    }
  }
}

}  // namespace
