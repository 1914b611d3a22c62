// The first stage of spatial_mean, and of a gradient's sums where nothing else is wanted: sums over parts of planes.
#pragma once

#include "irnext/cuda/reduce.cuh"

namespace irnext::cuda {

template <class T, int V, bool ByChannel>
__global__ void __launch_bounds__(kThreads, 4) plane_sums(SumsArguments a) {
  using A = Acc<T>;
  constexpr int kAhead = 4;  // rows whose loads are under way together
  const SumsPlan& plan = a.plan;
  const Share share(a, blockIdx.x);
  A sums[V] = {};
  for (int64_t item = share.first; item < share.end; item += plan.teams.slots) {
    const int64_t tile = quotient(item, plan.columns);
    const int64_t x = (item - tile * plan.columns) * (ByChannel ? 1 : V);
    const RowRange range = plan.tiles[tile];
    const T* const column = element<T>(a.grad, share.n, share.c) + x * a.grad.strides.w;
    for (int row = range.first; row < range.end; row += kAhead) {
      Pack<T, V> packs[kAhead];
      IRNEXT_UNROLL
      for (int k = 0; k < kAhead; ++k)
        packs[k] = row + k < range.end ? load_pack<T, V>(column + (row + k) * a.grad.strides.h) : Pack<T, V>{};
      IRNEXT_UNROLL
      for (int k = 0; k < kAhead; ++k)
        for (int e = 0; e < V; ++e) sums[e] += widen(packs[k][e]);
    }
  }
  constexpr int N = ByChannel ? V : 1;
  A values[N] = {};
  for (int e = 0; e < V; ++e) values[ByChannel ? e : 0] += sums[e];
  Shared<A> scratch = shared_array<A>(0, team_scratch<N, A>(plan.teams) / int(sizeof(A)));
  team_sums(values, plan.teams, scratch, [&](int e, A total) {
    if (share.exists(a)) static_cast<A*>(a.grad_partial)[share.plane(a) + e] = total;
  });
}

}  // namespace irnext::cuda
