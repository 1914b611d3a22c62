// The local attention of a small image in one launch, in evaluation. The blocks of a sample share its channels:
// each keeps its planes in shared memory between taking their means and filtering them, so that x is read once
// and y written once. Where the device has clusters the blocks exchange their means, otherwise each takes all.
#pragma once

#include "irnext/cuda/attention_filter.cuh"

namespace irnext::cuda {

constexpr int kSmallThreads = 512, kSmallWarps = kSmallThreads / 32;

// Where a block's arrays lie in its shared memory, in bytes.
struct SmallLayout {
  int64_t planes, taps, bias, means, attention, scratch, total;

  // `channels` are a block's; `pack` of them at most move together.
  IRNEXT_HOST_DEVICE SmallLayout(const AttentionShape& s, int64_t channels, int64_t element, int64_t wide,
                                 int64_t pack) {
    const auto after = [](int64_t end) { return (end + 15) / 16 * 16; };
    const int64_t shared = s.c / s.groups, groups = (channels - 1) / shared + 2;
    planes = 0;
    taps = after(channels * s.h * s.w * element);
    bias = after(taps + s.taps() * channels * wide);
    means = after(bias + channels * wide);
    attention = after(means + s.c * wide);
    scratch = after(attention + groups * s.taps() * wide);
    total = scratch + kSmallThreads * (pack + 1) * wide;
  }
};

template <class T>
struct SmallArguments {
  AttentionShape s;
  Parameters<Acc<T>> p;
  Tensor x, y;
  Acc<T>* mean;
  int blocks, channels;  // to a sample; to a block
  bool exchange;         // the blocks of a sample are a cluster
  int rows;              // rows that a thread filters before it moves on
};

// Elements that move together: 16 bytes along a row, whose taps are shared. Channels have taps of their own, so that
// only a few leave room for the rest in the registers.
template <class T, bool ChannelsLast>
constexpr int kSmallPack = ChannelsLast ? (sizeof(T) == 8 ? 2 : 4) : 16 / int(sizeof(T));

// One block's channels, and how their planes lie in shared memory: packs of columns, plane by plane, or packs of
// channels, pixel by pixel.
template <class T, int P, bool ChannelsLast>
struct SmallPlanes {
  int n, c0, channels, h, w;
  int across;  // packs in a row, or of channels in a pixel
  Shared<Pack<T, P>> cells;

  __device__ SmallPlanes(const SmallArguments<T>& a, const SmallLayout& layout, int rank)
      : n(int(blockIdx.x) / a.blocks),
        c0(rank * a.channels),
        channels(int(a.s.c) - c0 < a.channels ? int(a.s.c) - c0 : a.channels),
        h(int(a.s.h)),
        w(int(a.s.w)),
        across((ChannelsLast ? channels : w) / P),
        cells(shared_array<Pack<T, P>>(int(layout.planes), a.channels * h * w / P)) {
    if (channels < 0) channels = across = 0;
  }

  // The pack that holds pixel (y, x) of channel c: the number of its cell, and its place in memory.
  __device__ int cell(int c, int y, int x) const {
    return ChannelsLast ? (y * w + x) * across + c / P : (c * h + y) * across + x / P;
  }
  __device__ T* place(const Tensor& tensor, int c, int y, int x) const {
    const Strides& s = tensor.strides;
    return static_cast<T*>(tensor.data) + n * s.n + (c0 + c) * s.c + y * s.h + x * s.w;
  }
};

// ---- the means ----

// Reads packs first, first + step, ... below count, several in flight; keep(i, pack) takes each.
template <class T, int P, class Place, class Keep>
__device__ void read_packs(int first, int step, int count, const Place& place, const Keep& keep) {
  constexpr int kInFlight = sizeof(Pack<T, P>) < 16 ? 8 : 4;
  for (int i = first; i < count; i += kInFlight * step) {
    Pack<T, P> packs[kInFlight];
    IRNEXT_UNROLL
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * step < count) packs[k] = load_pack<T, P>(place(i + k * step));
    IRNEXT_UNROLL
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * step < count) keep(i + k * step, packs[k]);
  }
}

// Reads the channels of `planes`, keeps them in shared memory if `own`, and writes their means. A warp to a plane.
template <class T, int P>
__device__ void read_planes(const SmallArguments<T>& a, SmallPlanes<T, P, false> planes, bool own,
                            Shared<Acc<T>> means, Shared<Acc<T>>) {
  using A = Acc<T>;
  for (int c = threadIdx.x / 32; c < planes.channels; c += kSmallWarps) {
    const int first = planes.cell(c, 0, 0);
    A sum = 0;
    read_packs<T, P>(
        threadIdx.x % 32, 32, planes.h * planes.across,
        [&](int i) { return planes.place(a.x, c, i / planes.across, i % planes.across * P); },
        [&](int i, const Pack<T, P>& pack) {
          if (own) planes.cells[first + i] = pack;
          A few = 0;
          for (int k = 0; k < P; ++k) few += widen(pack[k]);
          sum += few;
        });
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) means[planes.c0 + c] = sum / A(planes.h * planes.w);
  }
  __syncthreads();
}

// The same where channels lie side by side: a thread to a pack of channels and every few pixels, then a warp to a
// channel adds the threads' sums.
template <class T, int P>
__device__ void read_planes(const SmallArguments<T>& a, SmallPlanes<T, P, true> planes, bool own,
                            Shared<Acc<T>> means, Shared<Acc<T>> scratch) {
  using A = Acc<T>;
  const int pixels = planes.h * planes.w, thread = int(threadIdx.x);
  for (int begin = 0; begin < planes.across; begin += kSmallThreads) {
    const int width = planes.across - begin < kSmallThreads ? planes.across - begin : kSmallThreads;
    const int walkers = kSmallThreads / width, walker = thread / width, row = width * P + 1;
    const int c = (begin + thread % width) * P;
    if (walker < walkers) {
      A sums[P] = {};
      read_packs<T, P>(
          walker, walkers, pixels, [&](int i) { return planes.place(a.x, c, i / planes.w, i % planes.w); },
          [&](int i, const Pack<T, P>& pack) {
            if (own) planes.cells[i * planes.across + c / P] = pack;
            for (int k = 0; k < P; ++k) sums[k] += widen(pack[k]);
          });
      for (int k = 0; k < P; ++k) scratch[walker * row + thread % width * P + k] = sums[k];
    }
    __syncthreads();
    for (int i = thread / 32; i < width * P; i += kSmallWarps) {
      const A sum = warp_total<A>(walkers, [&](int64_t k) { return A(scratch[int(k) * row + i]); });
      if (thread % 32 == 0) means[planes.c0 + begin * P + i] = sum / A(pixels);
    }
    __syncthreads();
  }
}

// ---- the filters of a block's channels ----

template <class T, int V>
__device__ void small_filters(const SmallArguments<T>& a, int c0, int channels, Shared<Acc<T>> means,
                              Shared<Acc<T>> attention, Shared<Pack<Acc<T>, V>> taps_of, Shared<Acc<T>> bias) {
  using A = Acc<T>;
  const AttentionShape& s = a.s;
  const int taps = int(s.taps()), shared = int(s.c / s.groups), warp = threadIdx.x / 32;
  const int first = c0 / shared, groups = (c0 + channels - 1) / shared - first + 1;
  const Norm<A> norm{a.p.logit_mean, a.p.logit_var, a.p.norm_weight, a.p.norm_bias, A(s.eps)};
  for (int i = warp; i < groups * taps; i += kSmallWarps) {
    const int64_t row = first * taps + i;
    const A* weights = a.p.weight + row * s.c;
    const A logit = warp_total<A>(s.c, [&](int64_t c) { return A(means[int(c)]) * weights[c]; });
    if (threadIdx.x % 32 == 0) attention[i] = norm(row, logit);
  }
  __syncthreads();
  for (int group = warp; group < groups; group += kSmallWarps)
    activate_by_warp<A>(
        s.activation, taps, [&](int t) { return A(attention[group * taps + t]); },
        [&](int t, A value) { attention[group * taps + t] = value; });
  __syncthreads();
  const int packs = channels / V;
  for (int i = threadIdx.x; i < taps * packs; i += kSmallThreads) {
    const int t = i / packs;
    Pack<A, V> pack;
    for (int k = 0; k < V; ++k) {
      const int c = c0 + i % packs * V + k;
      const A value = a.p.low[c] * (1 + a.p.inner[c]) * A(attention[(c / shared - first) * taps + t]);
      pack[k] = t == taps / 2 ? value + (1 + a.p.high[c]) : value;
    }
    taps_of[i] = pack;
  }
  for (int i = threadIdx.x; i < channels; i += kSmallThreads)
    bias[i] = -a.p.low[c0 + i] * a.p.inner[c0 + i] * A(means[c0 + i]);
  __syncthreads();
}

// ---- filtering from shared memory ----

// Three by three, packs of columns: a thread walks down the rows of a strip, holding the three it needs.
template <class T, int P>
__device__ void filter_planes(const SmallArguments<T>& a, SmallPlanes<T, P, false> planes,
                              Shared<Pack<Acc<T>, 1>> taps_of, Shared<Acc<T>> bias) {
  using A = Acc<T>;
  const int across = planes.across, strips = (planes.h + a.rows - 1) / a.rows;
  for (int item = threadIdx.x; item < planes.channels * strips * across; item += kSmallThreads) {
    const int column = item % across, strip = item / across % strips, c = item / across / strips;
    const int begin = strip * a.rows, end = begin + a.rows < planes.h ? begin + a.rows : planes.h;
    A taps[9], rows[3][P + 2];
    for (int t = 0; t < 9; ++t) {
      const Pack<A, 1> tap = taps_of[t * planes.channels + c];
      taps[t] = tap[0];
    }
    const auto read = [&](A* row, int y) {
      const int cell = planes.cell(c, int(source_index(y, planes.h, Padding::reflect)), column * P);
      const Pack<T, P> middle = planes.cells[cell];
      for (int k = 0; k < P; ++k) row[k + 1] = widen(middle[k]);
      row[0] = row[2], row[P + 1] = row[P - 1];
      if (column > 0) {
        const Pack<T, P> left = planes.cells[cell - 1];
        row[0] = widen(left[P - 1]);
      }
      if (column + 1 < across) {
        const Pack<T, P> right = planes.cells[cell + 1];
        row[P + 1] = widen(right[0]);
      }
    };
    read(rows[0], begin - 1);
    read(rows[1], begin);
    const A offset = bias[c];
    for (int y = begin; y < end; ++y) {
      read(rows[2], y + 1);
      Pack<T, P> out;
      IRNEXT_UNROLL
      for (int k = 0; k < P; ++k) {
        A sum = offset;
        IRNEXT_UNROLL
        for (int i = 0; i < 3; ++i)
          IRNEXT_UNROLL
          for (int j = 0; j < 3; ++j) sum += taps[3 * i + j] * rows[i][k + j];
        out[k] = narrow<T>(sum);
      }
      store_pack(planes.place(a.y, c, y, column * P), out);
      IRNEXT_UNROLL
      for (int k = 0; k < P + 2; ++k) rows[0][k] = rows[1][k], rows[1][k] = rows[2][k];
    }
  }
}

// Three by three, packs of channels.
template <class T, int P>
__device__ void filter_planes(const SmallArguments<T>& a, SmallPlanes<T, P, true> planes,
                              Shared<Pack<Acc<T>, P>> taps_of, Shared<Acc<T>> bias) {
  using A = Acc<T>;
  const int across = planes.across, strips = (planes.h + a.rows - 1) / a.rows;
  for (int item = threadIdx.x; item < strips * planes.w * across; item += kSmallThreads) {
    const int c = item % across * P, x = item / across % planes.w, strip = item / across / planes.w;
    const int begin = strip * a.rows, end = begin + a.rows < planes.h ? begin + a.rows : planes.h;
    int columns[3];
    for (int j = 0; j < 3; ++j) columns[j] = int(source_index(x + j - 1, planes.w, Padding::reflect));
    Pack<T, P> rows[3][3];
    const auto read = [&](Pack<T, P>* row, int y) {
      const int source = int(source_index(y, planes.h, Padding::reflect));
      IRNEXT_UNROLL
      for (int j = 0; j < 3; ++j) row[j] = planes.cells[planes.cell(c, source, columns[j])];
    };
    read(rows[0], begin - 1);
    read(rows[1], begin);
    for (int y = begin; y < end; ++y) {
      read(rows[2], y + 1);
      A sums[P];
      IRNEXT_UNROLL
      for (int k = 0; k < P; ++k) sums[k] = bias[c + k];
      IRNEXT_UNROLL
      for (int t = 0; t < 9; ++t) {
        const Pack<A, P> taps = taps_of[(t * planes.channels + c) / P];
        IRNEXT_UNROLL
        for (int k = 0; k < P; ++k) sums[k] += taps[k] * widen(rows[t / 3][t % 3][k]);
      }
      Pack<T, P> out;
      IRNEXT_UNROLL
      for (int k = 0; k < P; ++k) out[k] = narrow<T>(sums[k]);
      store_pack(planes.place(a.y, c, y, x), out);
      IRNEXT_UNROLL
      for (int j = 0; j < 3; ++j) rows[0][j] = rows[1][j], rows[1][j] = rows[2][j];
    }
  }
}

// Any filter, element by element.
template <class T, bool ChannelsLast>
__device__ void filter_elements(const SmallArguments<T>& a, SmallPlanes<T, 1, ChannelsLast> planes,
                                Shared<Pack<Acc<T>, 1>> taps_of, Shared<Acc<T>> bias) {
  using A = Acc<T>;
  const int pixels = planes.h * planes.w, kh = int(a.s.kh), kw = int(a.s.kw);
  for (int item = threadIdx.x; item < planes.channels * pixels; item += kSmallThreads) {
    const int c = ChannelsLast ? item % planes.channels : item / pixels;
    const int pixel = ChannelsLast ? item / planes.channels : item % pixels;
    const int y = pixel / planes.w, x = pixel % planes.w;
    A sum = bias[c];
    for (int i = 0; i < kh; ++i) {
      const int row = int(source_index(y + i - kh / 2, planes.h, Padding::reflect));
      for (int j = 0; j < kw; ++j) {
        const int column = int(source_index(x + j - kw / 2, planes.w, Padding::reflect));
        const Pack<A, 1> tap = taps_of[(i * kw + j) * planes.channels + c];
        const Pack<T, 1> value = planes.cells[planes.cell(c, row, column)];
        sum += tap[0] * widen(value[0]);
      }
    }
    *planes.place(a.y, c, y, x) = narrow<T>(sum);
  }
}

// P > 1 packs need whole packs everywhere, and a 3x3 filter.
template <class T, int P, bool ChannelsLast>
__global__ void __launch_bounds__(kSmallThreads, 1) small_attention_kernel(SmallArguments<T> a) {
  using A = Acc<T>;
  using Planes = SmallPlanes<T, P, ChannelsLast>;
  constexpr int V = ChannelsLast ? P : 1;  // channels whose taps are read together
  const SmallLayout layout(a.s, a.channels, sizeof(T), sizeof(A), kSmallPack<T, true>);
  const int rank = int(blockIdx.x) % a.blocks, c = int(a.s.c), taps = int(a.s.taps());
  Shared<A> means = shared_array<A>(int(layout.means), c);
  Shared<A> scratch = shared_array<A>(int(layout.scratch), kSmallThreads * (kSmallPack<T, true> + 1));
  const Planes planes(a, layout, rank);
  if (a.exchange) {
    read_planes(a, planes, true, means, scratch);
    cluster_sync();
    for (int i = threadIdx.x; i < c; i += kSmallThreads)
      if (i / a.channels != rank) means[i] = A(cluster_shared(means, i / a.channels)[i]);
    cluster_sync();  // also: no block ends while another reads from it
  } else {
    for (int part = 0; part < a.blocks; ++part)
      read_planes(a, Planes(a, layout, part), part == rank, means, scratch);
  }
  for (int i = threadIdx.x; i < planes.channels; i += kSmallThreads)
    a.mean[int64_t(planes.n) * c + planes.c0 + i] = A(means[planes.c0 + i]);
  if (planes.channels == 0) return;
  Shared<Pack<A, V>> taps_of = shared_array<Pack<A, V>>(int(layout.taps), taps * a.channels / V);
  Shared<A> bias = shared_array<A>(int(layout.bias), a.channels);
  const int64_t shared = a.s.c / a.s.groups, groups = (a.channels - 1) / shared + 2;
  Shared<A> attention = shared_array<A>(int(layout.attention), int(groups) * taps);
  small_filters<T, V>(a, planes.c0, planes.channels, means, attention, taps_of, bias);
  if constexpr (P == 1)
    filter_elements(a, planes, taps_of, bias);
  else
    filter_planes(a, planes, taps_of, bias);
}

}  // namespace irnext::cuda
