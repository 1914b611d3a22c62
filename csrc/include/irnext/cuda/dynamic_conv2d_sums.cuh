// The first stage of dynamic_conv2d's backward: per plane and tap, sums of the gradient times the shifted input.
#pragma once

#include "irnext/cuda/reduce.cuh"

namespace irnext::cuda {

// 3x3 taps. A row of x meets three rows of the gradient, which stay in registers as the thread walks down its tile.
template <class Window>
__global__ void __launch_bounds__(kThreads, 2) tap_sums(SumsArguments a) {
  using T = typename Window::Element;
  using A = Acc<T>;
  constexpr int V = Window::kElements, B = Window::kByChannel && sizeof(T) > 2 ? 1 : 2;
  constexpr int S = Window::kByChannel ? V : 1, N = 10 * S;  // 9 taps and the gradient itself
  const SumsPlan& plan = a.plan;
  const DynamicConvShape& s = a.shape;
  const Share share(a, blockIdx.x);
  A sums[N] = {};
  for (int64_t item = share.first; item < share.end; item += plan.teams.slots) {
    const int64_t tile = quotient(item, plan.columns);
    const int64_t column = (item - tile * plan.columns) * (Window::kByChannel ? 1 : V);
    const RowRange range = plan.tiles[tile];
    const Window window(a.x, s, s.padding, share.n, share.c, column);
    const T* const grad = element<T>(a.grad, share.n, share.c) + column * a.grad.strides.w;
    A above[V] = {}, here[V] = {}, below[V];
    IRNEXT_NO_UNROLL
    for (int j = range.first - 1; j <= range.end; j += B) {
      typename Window::Raw raw[B];
      Pack<T, V> next[B];
      IRNEXT_UNROLL
      for (int b = 0; b < B; ++b) {
        raw[b] = window.load(j + b <= range.end ? range.source<Window>(j + b, s, s.padding) : -1);
        next[b] = {};
        if (j + b + 1 < range.end)
          next[b] = load_pack<T, V>(grad + range.row<Window>(j + b + 1, s) * a.grad.strides.h);
      }
      IRNEXT_UNROLL
      for (int b = 0; b < B; ++b) {
        const typename Window::Values values = window.widened(raw[b]);
        IRNEXT_UNROLL
        for (int e = 0; e < V; ++e) {
          below[e] = widen(next[b][e]);
          const int at = Window::kByChannel ? e : 0;
          IRNEXT_UNROLL
          for (int t = 0; t < 3; ++t) {
            sums[t * S + at] += below[e] * values.at(t, e);
            sums[(3 + t) * S + at] += here[e] * values.at(t, e);
            sums[(6 + t) * S + at] += above[e] * values.at(t, e);
          }
          sums[9 * S + at] += below[e];
          above[e] = here[e];
          here[e] = below[e];
        }
      }
    }
  }
  Shared<A> scratch = shared_array<A>(0, team_scratch<N, A>(plan.teams) / int(sizeof(A)));
  team_sums(sums, plan.teams, scratch, [&](int i, A total) {
    if (!share.exists(a)) return;
    const int64_t plane = share.plane(a) + i % S;
    if (i / S < 9)
      static_cast<A*>(a.tap_partial)[plane * 9 + i / S] = total;
    else if (a.grad_partial)
      static_cast<A*>(a.grad_partial)[plane] = total;
  });
}

// Filters of any size, a few taps at a time. Items are elements.
template <class T, int Taps>
__global__ void __launch_bounds__(kThreads, 3) some_tap_sums(SumsArguments a) {
  using A = Acc<T>;
  const SumsPlan& plan = a.plan;
  const DynamicConvShape& s = a.shape;
  const int64_t blocks = gridDim.x / a.chunks, chunk = quotient(blockIdx.x, blocks);
  const Share share(a, blockIdx.x - chunk * blocks);
  const int first = int(chunk) * Taps, taps = int(s.taps());
  A sums[Taps + 1] = {};  // and the gradient itself
  const T* const x = element<T>(a.x, share.n, share.c);
  const T* const grad = element<T>(a.grad, share.n, share.c);
  for (int64_t item = share.first; item < share.end; item += plan.teams.slots) {
    const int64_t row = quotient(item, s.w), column = item - row * s.w;
    const A u = widen(grad[row * a.grad.strides.h + column * a.grad.strides.w]);
    sums[Taps] += u;
    IRNEXT_UNROLL
    for (int k = 0; k < Taps; ++k) {
      if (first + k >= taps) continue;
      const int i = (first + k) / int(s.kw), j = first + k - i * int(s.kw);
      const int64_t y = source_index(row + i * s.dilation - s.reach_h(), s.h, s.padding);
      const int64_t z = source_index(column + j * s.dilation - s.reach_w(), s.w, s.padding);
      if (y >= 0 && z >= 0) sums[k] += u * widen(x[y * a.x.strides.h + z * a.x.strides.w]);
    }
  }
  Shared<A> scratch = shared_array<A>(0, team_scratch<Taps + 1, A>(plan.teams) / int(sizeof(A)));
  team_sums(sums, plan.teams, scratch, [&](int i, A total) {
    if (!share.exists(a)) return;
    if (i < Taps && first + i < taps)
      static_cast<A*>(a.tap_partial)[share.plane(a) * taps + first + i] = total;
    else if (i == Taps && chunk == 0 && a.grad_partial)
      static_cast<A*>(a.grad_partial)[share.plane(a)] = total;
  });
}

inline bool is_3x3(const DynamicConvShape& s) { return s.kh == 3 && s.kw == 3; }

inline SumsPlan plan_tap_sums(const Device& device, const DynamicConvShape& s, const Tensor& x, const Tensor& grad) {
  const bool by_channel = channels_adjacent(x, s.c) && channels_adjacent(grad, s.c);
  if (!is_3x3(s)) return plan_sums(device, s.n, s.c, s.h, s.w, 1, by_channel, 1, 1);
  const int pack = by_channel ? (x.type == Type::f64 ? 2 : 4) : int(16 / element_size(x.type));
  const auto packs = [&](const Tensor& tensor) {
    return by_channel ? s.c % pack == 0 && packs_along_c(tensor, s.n, s.c, s.h, s.w, pack)
                      : s.dilation == 1 && packs_along_w(tensor, s.n, s.c, s.h, s.w, pack);
  };
  return plan_sums(device, s.n, s.c, s.h, s.w, s.dilation, by_channel, packs(x) && packs(grad) ? pack : 1, kMostRows);
}

template <class Window>
cudaError_t launch_3x3_sums(const SumsArguments& a, LaunchConfig config, cudaStream_t stream) {
  constexpr int S = Window::kByChannel ? Window::kElements : 1;
  config.shared_bytes = size_t(team_scratch<10 * S, Acc<typename Window::Element>>(a.plan.teams));
  return launch(&tap_sums<Window>, config, stream, a);
}

template <class T, int Taps>
cudaError_t launch_some_tap_sums(SumsArguments a, cudaStream_t stream) {
  a.chunks = int(divided_up(a.shape.taps(), Taps));
  LaunchConfig config;
  const cudaError_t error = sums_grid(a, &config);
  if (error != cudaSuccess) return error;
  config.shared_bytes = size_t(team_scratch<Taps + 1, Acc<T>>(a.plan.teams));
  return launch(&some_tap_sums<T, Taps>, config, stream, a);
}

template <class T>
cudaError_t launch_tap_sums(SumsArguments a, cudaStream_t stream) {
  if (a.shape.taps() == 1) return launch_some_tap_sums<T, 1>(a, stream);
  if (!is_3x3(a.shape)) return launch_some_tap_sums<T, 8>(a, stream);
  a.chunks = 1;
  LaunchConfig config;
  const cudaError_t error = sums_grid(a, &config);
  if (error != cudaSuccess) return error;
  const bool packed = a.plan.pack > 1;
  if (a.plan.by_channel)
    return packed ? launch_3x3_sums<ChannelWindow<T, kChannelPack<T>>>(a, config, stream)
                  : launch_3x3_sums<ChannelWindow<T, 1>>(a, config, stream);
  return packed ? launch_3x3_sums<RowWindow<T, kRowPack<T>>>(a, config, stream)
                : launch_3x3_sums<RowWindow<T, 1>>(a, config, stream);
}

}  // namespace irnext::cuda
