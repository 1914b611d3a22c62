// Window means by running sums, one dimension at a time. Sums are double whatever the type: differences of running
// sums are then exact enough, and there are few of them beside the memory traffic.
#pragma once

#include "irnext/cuda/local_mean.h"
#include "irnext/window.h"

namespace irnext::cuda {

constexpr int kLocalMeanThreads = 256, kLocalMeanWarps = kLocalMeanThreads / 32;
constexpr int64_t kRowBytes = 48 * 1024;  // of shared memory, for the running sums of whole rows

// The inputs that one output of a window mean along a dimension, or of its adjoint, is the sum of over the width:
// first(i) to last(i). Both bounds grow with i.
struct Sweep {
  Box box;
  bool adjoint;

  IRNEXT_HOST_DEVICE int64_t first(int64_t i) const {
    if (!adjoint) return box.valid_place(i);
    return box.shown_begin(i < box.width ? 0 : i - box.width + 1);
  }
  IRNEXT_HOST_DEVICE int64_t last(int64_t i) const {
    if (!adjoint) return box.valid_place(i) + box.width - 1;
    return box.shown_end(i < box.valid() ? i : box.valid() - 1) - 1;
  }
  // From output to output of [steady_begin, steady_end), and to the first, both bounds move by one.
  IRNEXT_HOST_DEVICE int64_t steady_begin() const { return 1 + (adjoint ? box.width : box.before()); }
  IRNEXT_HOST_DEVICE int64_t steady_end() const { return adjoint ? box.valid() - 1 : box.before() + box.valid(); }
};

// Element (n, c, i, j) of a tensor: i along the window's dimension, j across it.
template <class T>
struct Lines {
  T* data;
  int64_t n, c, along, across;

  __device__ T* line(int64_t sample, int64_t channel, int64_t j) const {
    return data + sample * n + channel * c + j * across;
  }
};

template <class In, class Out>
struct SweepArguments {
  Sweep sweep;
  int64_t n, c, across;
  bool channels_first;  // of a warp's lanes, neighbours take neighbouring channels, else neighbouring j
  int64_t segment;      // outputs of one running sum
  Lines<const In> in;
  Lines<Out> out;
};

// A thread to a segment of a line: the sum moves along with the window.
template <class In, class Out>
__global__ void __launch_bounds__(kLocalMeanThreads, 3) march_kernel(SweepArguments<In, Out> a) {
  constexpr int kAhead = 4;  // outputs whose inputs are in flight together
  const int64_t lines = a.n * a.c * a.across, item = int64_t(blockIdx.x) * kLocalMeanThreads + threadIdx.x;
  const int64_t begin = item / lines * a.segment;
  if (begin >= a.sweep.box.size) return;
  const int64_t end = begin + a.segment < a.sweep.box.size ? begin + a.segment : a.sweep.box.size;
  const int64_t line = item % lines, rest = a.channels_first ? line / a.c : line / a.across;
  const int64_t c = a.channels_first ? line % a.c : rest % a.c;
  const int64_t j = a.channels_first ? rest % a.across : line % a.across;
  const int64_t n = rest / (a.channels_first ? a.across : a.c);
  const In* const in = a.in.line(n, c, j);
  Out* const out = a.out.line(n, c, j);
  const auto read = [&](int64_t i) { return double(widen(in[i * a.in.along])); };
  const double share = 1.0 / double(a.sweep.box.width);
  const auto write = [&](int64_t i, double sum) { out[i * a.out.along] = narrow<Out>(Acc<Out>(sum * share)); };

  int64_t first = a.sweep.first(begin), last = a.sweep.last(begin);
  double sum = 0;
  for (int64_t i = first; i <= last; ++i) sum += read(i);
  write(begin, sum);
  const int64_t steady_begin = a.sweep.steady_begin(), swept = a.sweep.steady_end();
  const int64_t steady_end = swept < end ? swept : end;
  for (int64_t i = begin + 1; i < end;) {
    if (i >= steady_begin && i + kAhead <= steady_end) {
      double change[kAhead];
      IRNEXT_UNROLL
      for (int k = 0; k < kAhead; ++k) change[k] = read(last + 1 + k) - read(first + k);
      IRNEXT_UNROLL
      for (int k = 0; k < kAhead; ++k) write(i + k, sum += change[k]);
      first += kAhead, last += kAhead, i += kAhead;
    } else {
      while (last < a.sweep.last(i)) sum += read(++last);
      while (first < a.sweep.first(i)) sum -= read(first++);
      write(i++, sum);
    }
  }
}

// A warp to a line whose elements lie side by side: its running sums in shared memory, then their differences.
template <class In, class Out>
__global__ void __launch_bounds__(kLocalMeanThreads, 4) scan_kernel(SweepArguments<In, Out> a) {
  const int warps = int(blockDim.x) / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int size = int(a.sweep.box.size);
  const int64_t line = int64_t(blockIdx.x) * warps + warp, j = line % a.across, plane = line / a.across;
  if (plane >= a.n * a.c) return;
  const In* const in = a.in.line(plane / a.c, plane % a.c, j);
  Out* const out = a.out.line(plane / a.c, plane % a.c, j);
  Shared<double> sums = shared_array<double>(warp * (size + 1) * int(sizeof(double)), size + 1);
  for (int i = lane; i < size; i += 32) sums[i + 1] = double(widen(in[i * a.in.along]));
  __syncwarp();
  const int run = (size + 31) / 32 | 1;  // odd: the lanes' elements lie in different banks
  const int begin = lane * run < size ? lane * run : size, end = begin + run < size ? begin + run : size;
  double total = 0;
  for (int i = begin; i < end; ++i) total += double(sums[i + 1]);
  double before = total;
  for (int distance = 1; distance < 32; distance *= 2) {
    const double other = __shfl_sync(kWholeWarp, before, lane < distance ? lane : lane - distance);
    if (lane >= distance) before += other;
  }
  before -= total;
  if (lane == 0) sums[0] = 0.0;
  for (int i = begin; i < end; ++i) sums[i + 1] = before += double(sums[i + 1]);
  __syncwarp();
  const double share = 1.0 / double(a.sweep.box.width);
  for (int i = lane; i < size; i += 32) {
    const double sum = double(sums[int(a.sweep.last(i)) + 1]) - double(sums[int(a.sweep.first(i))]);
    out[i * a.out.along] = narrow<Out>(Acc<Out>(sum * share));
  }
}

}  // namespace irnext::cuda
