// Up-sampling of several branches to one plane, their sum and its GELU, in one pass over x, and the gradients in
// one pass over x and its gradient.
//
// Up-sampling is separable. Where vectors hold columns, each row of a branch is expanded to the width of x, once, and
// the rows of x blend two such; where they hold channels, a row of x blends two rows of the branch and expands the
// result on the fly. The gradients do the same backwards.
//
// The gradient of a branch is gathered: a task sums up rows of the branch over its rows of x. A row that other tasks
// add to as well goes to memory of the task's own; these parts are added, in the order of tasks, when all are done.
#pragma once

#include <memory>
#include <vector>

#include "gelu.h"
#include "pyramid_pixels.h"

namespace {

template <class A>
const A* shares(const Branch& branch) {
  return static_cast<const A*>(branch.share);
}

// ---- up-sampling ----

// The row of a branch (with one more number, and a vector of slack) expanded to the columns of x.
template <class A>
void expand(const Branch& branch, const A* row, A* out) {
  constexpr int64_t lanes = kLanes<A>;
  const int32_t* below = branch.below;
  const A* share = shares<A>(branch);
  const int64_t width = branch.columns.large;
  const auto one = [&](int64_t x) { out[x] = (1 - share[x]) * row[below[x]] + share[x] * row[below[x] + 1]; };
  int64_t x = 0;
#if !defined(__clang__)  // which has no shuffle by indices that it does not know
  typedef std::conditional_t<sizeof(A) == 8, int64_t, int32_t> Place __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Column __attribute__((vector_size(lanes * sizeof(int32_t))));
  for (; x + lanes <= width; x += lanes) {
    const int32_t first = below[x];
    if (below[x + lanes - 1] + 1 - first < lanes) {  // what these columns show fits into one vector
      Column columns;
      std::memcpy(&columns, below + x, sizeof columns);
      const Place places = __builtin_convertvector(columns - first, Place);
      const Vec<A> numbers = load(row + first), right = load(share + x);
      store((1 - right) * __builtin_shuffle(numbers, places) + right * __builtin_shuffle(numbers, places + 1), out + x);
    } else {
      for (int64_t i = x; i < x + lanes; ++i) one(i);
    }
  }
#endif
  for (; x < width; ++x) one(x);
}

// One branch, up-sampled to a row of x. View is what the inner loop needs of it.
template <class P, bool Single = P::kSingle>
class UpsampledRow;

template <class P>
class UpsampledRow<P, true> {
 public:
  using T = typename P::Element;
  using A = typename P::A;

  struct View {
    const A *upper, *lower;
    A upper_weight, lower_weight;
    IRNEXT_INLINE Vec<A> at(int64_t x, int64_t, int64_t) const {
      return upper_weight * load(upper + x) + lower_weight * load(lower + x);
    }
  };

  UpsampledRow(const P& pixels, const Branch& branch)
      : branch_(branch),
        step_(pixels.numbers(branch.columns.large)),
        row_(pixels.numbers(branch.columns.small + 1)),
        expanded_(2 * step_) {}

  // Begin a plane.
  void start(const Band& band) {
    plane_ = at<T>(branch_.branch, band.n, band.c, 0);
    held_[0] = held_[1] = -1;
  }

  View view(int64_t y) {
    const int64_t j = branch_.rows.below(y);
    const A share = branch_.rows.share<A>(y);
    const A* upper = expanded(j);
    return {upper, share ? expanded(j + 1) : upper, 1 - share, share};
  }

 private:
  const A* expanded(int64_t j) {
    A* out = &expanded_[j % 2 * step_];
    if (held_[j % 2] != j) {
      held_[j % 2] = j;
      widen_row(plane_ + j * branch_.branch.strides.h, branch_.branch.strides.w, branch_.columns.small, row_.get());
      expand(branch_, row_.get(), out);
    }
    return out;
  }

  const Branch& branch_;
  const T* plane_ = nullptr;
  int64_t step_, held_[2] = {-1, -1};
  Scratch<A> row_, expanded_;
};

template <class P>
class UpsampledRow<P, false> {
 public:
  using T = typename P::Element;
  using A = typename P::A;

  struct View {
    const A* row;
    const int32_t* below;
    const A* share;
    IRNEXT_INLINE Vec<A> at(int64_t x, int64_t c, int64_t step) const {
      const A *left = row + below[x] * step + c, right_weight = share[x];
      return (1 - right_weight) * load(left) + right_weight * load(left + step);
    }
  };

  UpsampledRow(const P& pixels, const Branch& branch)
      : pixels_(pixels), branch_(branch), row_(pixels.numbers(branch.columns.small + 1)) {}

  void start(const Band& band) { band_ = &band; }

  View view(int64_t y) {
    const int64_t j = branch_.rows.below(y), width = branch_.columns.small, stride = branch_.branch.strides.w;
    const A share = branch_.rows.share<A>(y);
    const T* upper = at<T>(branch_.branch, band_->n, band_->c, j);
    const T* lower = share ? upper + branch_.branch.strides.h : upper;
    pixels_.each(*band_, width, [&](int64_t x, int64_t c, int64_t count) {
      store((1 - share) * P::read(upper, stride, x, c, count) + share * P::read(lower, stride, x, c, count),
            &row_[x * pixels_.step() + c]);
    });
    return {row_.get(), branch_.below, shares<A>(branch_)};
  }

 private:
  const P& pixels_;
  const Branch& branch_;
  const Band* band_ = nullptr;
  Scratch<A> row_;
};

// ---- the sum ----

// Rows of x + the branches.
template <class P>
class MergedRows {
 public:
  using T = typename P::Element;
  using A = typename P::A;

  MergedRows(const P& pixels, const MergeCall& call) : pixels_(pixels), call_(call), views_(call.count) {
    for (int64_t b = 0; b < call.count; ++b) branches_.emplace_back(new UpsampledRow<P>(pixels, call.branches[b]));
  }

  // Begin a band, which must last as long as it is used.
  void start(const Band& band) {
    band_ = &band;
    for (auto& branch : branches_) branch->start(band);
  }

  // Call body(pixel, channel, count, sum) for each vector of row y.
  template <class Body>
  IRNEXT_INLINE void row(int64_t y, const Body& body) {
    for (size_t b = 0; b < branches_.size(); ++b) views_[b] = branches_[b]->view(y);
    const T* from = at<T>(call_.x, band_->n, band_->c, y);
    const int64_t stride = call_.x.strides.w, step = pixels_.step(), branches = call_.count;
    const View* views = views_.data();
    pixels_.each(*band_, call_.w, [&](int64_t x, int64_t c, int64_t count) {
      Vec<A> sum = P::read(from, stride, x, c, count);
      for (int64_t b = 0; b < branches; ++b) sum += views[b].at(x, c, step);
      body(x, c, count, sum);
    });
  }

 private:
  using View = typename UpsampledRow<P>::View;

  const P& pixels_;
  const MergeCall& call_;
  const Band* band_ = nullptr;
  std::vector<std::unique_ptr<UpsampledRow<P>>> branches_;
  std::vector<View> views_;
};

template <class P>
void merge(const P& pixels, const MergeCall& call, int64_t begin, int64_t end) {
  using T = typename P::Element;
  MergedRows<P> merged(pixels, call);
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    merged.start(band);
    for (int64_t y = band.begin; y < band.end; ++y) {
      T* to = at<T>(call.y, band.n, band.c, y);
      merged.row(y, [&](int64_t x, int64_t c, int64_t count, const auto& sum) {
        P::write(call.gelu ? gelu(sum) : sum, to, call.y.strides.w, x, c, count);
      });
    }
  }
}

// ---- the gradients of the branches ----

// The adjoint of expanding a row: to[i] = the sum of what it had a share in. `to` has one pixel more.
template <class A>
void contract(const Branch& branch, const A* from, A* to) {
  const A* share = shares<A>(branch);
  A carried = 0;
  for (int64_t i = 0; i < branch.columns.small; ++i) {
    A left = carried, right = 0;
    for (int64_t x = branch.first[i]; x < branch.first[i + 1]; ++x) {
      left += (1 - share[x]) * from[x];
      right += share[x] * from[x];
    }
    to[i] = left;
    carried = right;
  }
}

// The same with pixels of `step` numbers.
template <class A>
void contract_pixels(const Branch& branch, int64_t step, const A* from, A* to) {
  const A* share = shares<A>(branch);
  std::memset(to, 0, step * sizeof(A));
  for (int64_t i = 0; i < branch.columns.small; ++i, to += step)
    for (int64_t c = 0; c < step; c += kLanes<A>) {
      Vec<A> left = load(to + c), right{};
      for (int64_t x = branch.first[i]; x < branch.first[i + 1]; ++x) {
        const Vec<A> value = load(from + x * step + c);
        left += (1 - share[x]) * value;
        right += share[x] * value;
      }
      store(left, to + c);
      store(right, to + step + c);
    }
}

// Where a task keeps row j of a branch's gradient, if it shares it: at most the first two and the last two of
// the rows it adds to.
template <class P>
typename P::A* shared_row(const P& pixels, const MergeCall& call, const Branch& branch, int64_t task, int64_t j) {
  const Band band(call.tasks, task, call.c, call.h);
  const int64_t from_first = j - branch.rows.below(band.begin), from_last = j - branch.rows.below(band.end - 1);
  const int64_t place = from_first < 2 ? from_first : 2 + from_last;
  return static_cast<typename P::A*>(branch.partial) + (task * 4 + place) * branch.columns.small * pixels.step();
}

template <class P>
void write_row(const P& pixels, const Branch& branch, const Band& band, int64_t j, const typename P::A* row) {
  using T = typename P::Element;
  T* to = at<T>(branch.gradient, band.n, band.c, j);
  pixels.each(band, branch.columns.small, [&](int64_t x, int64_t c, int64_t count) {
    P::write(load(row + x * pixels.step() + c), to, branch.gradient.strides.w, x, c, count);
  });
}

// The gradient of one branch from rows of x's gradient, which come in order.
template <class P>
class BranchGradient {
 public:
  using A = typename P::A;

  BranchGradient(const P& pixels, const MergeCall& call, const Branch& branch)
      : pixels_(pixels),
        call_(call),
        branch_(branch),
        numbers_((P::kSingle ? branch.columns.large : branch.columns.small) * pixels.step()),
        contracted_(pixels.numbers(branch.columns.small + 1)),
        sums_(2 * numbers_ + kLanes<A>) {}

  // Row y of x's gradient.
  void add(int64_t task, int64_t y, const A* row) {
    const int64_t j = branch_.rows.below(y);
    const A share = branch_.rows.share<A>(y);
    if constexpr (!P::kSingle) {
      contract_pixels(branch_, pixels_.step(), row, contracted_.get());
      row = contracted_.get();
    }
    accumulate(task, j, 1 - share, row);
    if (share) accumulate(task, j + 1, share, row);
  }

  // After the last row of a task.
  void finish(int64_t task) {
    for (int place : {0, 1}) put(task, place);
  }

 private:
  void accumulate(int64_t task, int64_t j, A weight, const A* row) {
    const int place = j % 2;
    const bool begins = held_[place] != j;
    if (begins) put(task, place);
    held_[place] = j;
    A* sums = &sums_[place * numbers_];
    for (int64_t i = 0; i < numbers_; ++i) sums[i] = weight * row[i] + (begins ? A(0) : sums[i]);
  }

  // Row held_[place] of the branch is complete, as far as this task is concerned.
  void put(int64_t task, int place) {
    const int64_t j = held_[place];
    if (j < 0) return;
    held_[place] = -1;
    const A* row = &sums_[place * numbers_];
    if constexpr (P::kSingle) {
      contract(branch_, row, contracted_.get());
      row = contracted_.get();
    }
    const Band band(call_.tasks, task, call_.c, call_.h);
    if (branch_.rows.begin(j) >= band.begin && branch_.rows.end(j) <= band.end)
      write_row(pixels_, branch_, band, j, row);
    else
      std::memcpy(shared_row(pixels_, call_, branch_, task, j), row,
                  branch_.columns.small * pixels_.step() * sizeof(A));
  }

  const P& pixels_;
  const MergeCall& call_;
  const Branch& branch_;
  int64_t numbers_, held_[2] = {-1, -1};
  Scratch<A> contracted_, sums_;
};

template <class P>
void merge_backward(const P& pixels, const MergeCall& call, int64_t begin, int64_t end) {
  using T = typename P::Element;
  using A = typename P::A;
  MergedRows<P> merged(pixels, call);
  std::vector<std::unique_ptr<BranchGradient<P>>> gradients;
  for (int64_t b = 0; b < call.count; ++b)
    gradients.emplace_back(new BranchGradient<P>(pixels, call, call.branches[b]));
  Scratch<A> row(pixels.numbers(call.w));
  for (int64_t task = begin; task < end; ++task) {
    const Band band(call.tasks, task, call.c, call.h);
    merged.start(band);
    for (int64_t y = band.begin; y < band.end; ++y) {
      const T* grad = at<T>(call.grad, band.n, band.c, y);
      if (call.gelu) {
        T* dx = at<T>(call.y, band.n, band.c, y);
        merged.row(y, [&](int64_t x, int64_t c, int64_t count, const auto& sum) {
          const Vec<A> value = P::read(grad, call.grad.strides.w, x, c, count) * gelu_derivative(sum);
          P::write(value, dx, call.y.strides.w, x, c, count);
          store(value, &row[x * pixels.step() + c]);
        });
      } else {
        pixels.each(band, call.w, [&](int64_t x, int64_t c, int64_t count) {
          store(P::read(grad, call.grad.strides.w, x, c, count), &row[x * pixels.step() + c]);
        });
      }
      for (auto& gradient : gradients) gradient->add(task, y, row.get());
    }
    for (auto& gradient : gradients) gradient->finish(task);
  }
}

// The rows of the branches' gradients that begin in a task's rows of x and that several tasks, or none, added to.
template <class P>
void add_shared_rows(const P& pixels, const MergeCall& call, int64_t begin, int64_t end) {
  using A = typename P::A;
  for (int64_t b = 0; b < call.count; ++b) {
    const Branch& branch = call.branches[b];
    const int64_t numbers = branch.columns.small * pixels.step();
    Scratch<A> sum(pixels.numbers(branch.columns.small));
    for (int64_t task = begin; task < end; ++task) {
      const Band band(call.tasks, task, call.c, call.h);
      const bool last_band = band.end == call.h;
      for (int64_t j = band.begin ? branch.rows.below(band.begin - 1) + 1 : 0; j < branch.rows.small; ++j) {
        const int64_t from = branch.rows.begin(j), to = branch.rows.end(j);
        if (from < band.begin) continue;
        if (from >= band.end && !last_band) break;
        if (from < to && to <= band.end) continue;  // the task's own
        std::memset(sum.get(), 0, numbers * sizeof(A));
        const int64_t tasks = from < to ? (to - 1) / call.tasks.rows - from / call.tasks.rows + 1 : 0;
        for (int64_t i = 0; i < tasks; ++i) {
          const A* part = shared_row(pixels, call, branch, task + i, j);
          for (int64_t k = 0; k < numbers; ++k) sum[k] += part[k];
        }
        write_row(pixels, branch, band, j, sum.get());
      }
    }
  }
}

}  // namespace
