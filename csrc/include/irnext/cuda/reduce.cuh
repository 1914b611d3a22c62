// Sums over tensors in two stages: teams of threads add up parts of planes, then a second kernel adds up the parts.
// Everything is added in an order that follows from the shape and the device alone.
#pragma once

#include "irnext/cuda/dynamic_conv2d_tiles.cuh"

namespace irnext::cuda {

// A block is one or several teams. A team adds up one part of one plane, or of `inner` planes whose elements lie
// side by side in memory (channels_last); `slots` threads share a plane's items. Both are powers of two, and a team
// is part of a warp or the whole block.
struct Teams {
  int inner, slots;

  __host__ __device__ int size() const { return inner * slots; }
  __host__ __device__ int count() const { return kThreads / size(); }
};

// How a sum over the planes of a tensor is cut up. `units` are planes, or sets of `inner` planes.
struct SumsPlan {
  bool by_channel;
  int pack;
  RowTiles tiles;
  Teams teams;
  int64_t units, columns, items;  // an item is a tile of one column (or pack of columns): `columns` to a row of tiles
  int64_t splits;
};

inline SumsPlan plan_sums(const Device& device, int64_t n, int64_t c, int64_t h, int64_t w, int64_t dilation,
                          bool by_channel, int pack, int most_rows) {
  constexpr int kMostItems = 8;  // of a thread, so that sums in float stay short
  constexpr int kBlocks = 4;     // to a multiprocessor: with more, adding up their sums would take longer
  SumsPlan plan;
  plan.by_channel = by_channel;
  plan.pack = pack;
  const int64_t packs = by_channel ? divided_up(c, pack) : 1;
  const int inner = power_of_two_at_least(packs < kWarp ? packs : kWarp);
  plan.columns = by_channel ? w : w / pack;
  plan.units = by_channel ? n * divided_up(packs, inner) : n * c;
  plan.tiles = choose_tiles(device, n * (by_channel ? packs : c) * plan.columns, h, dilation, most_rows);
  plan.items = plan.columns * plan.tiles.count();
  const bool whole_block = inner > 1 || plan.items >= 4 * kWarp;
  plan.teams = {inner, whole_block ? kThreads / inner : power_of_two_at_least(plan.items < kWarp ? plan.items : kWarp)};
  const int64_t wanted = divided_up(int64_t(device.multiprocessors) * kBlocks, plan.units > 0 ? plan.units : 1);
  const int64_t most = whole_block ? divided_up(plan.items, plan.teams.slots) : 1;
  const int64_t least = divided_up(plan.items, int64_t(plan.teams.slots) * kMostItems);
  plan.splits = wanted < least ? least : wanted < most ? wanted : most;
  if (plan.splits < 1) plan.splits = 1;
  return plan;
}

struct SumsArguments {
  DynamicConvShape shape;
  Tensor x, grad;
  SumsPlan plan;
  int64_t items_per_split;
  int chunks;  // of taps, each added up by blocks of its own
  void* tap_partial;
  void* grad_partial;
};

// What this thread adds up: items first, first + slots, ... below `end`, of plane (n, c) and its neighbours.
struct Share {
  int64_t split, n, c, first, end;

  __device__ __forceinline__ Share(const SumsArguments& a, int64_t block) : split(0), n(0), c(0), first(0), end(0) {
    const SumsPlan& plan = a.plan;
    const int thread = int(threadIdx.x), size = plan.teams.size();
    const int64_t team = block * plan.teams.count() + thread / size;
    const int64_t unit = quotient(team, plan.splits);
    split = team - unit * plan.splits;
    const int64_t sets = plan.by_channel ? divided_up(divided_up(a.shape.c, plan.pack), plan.teams.inner) : a.shape.c;
    n = quotient(unit, sets);
    c = unit - n * sets;
    if (plan.by_channel) c = (c * plan.teams.inner + thread % plan.teams.inner) * plan.pack;
    const int64_t begin = split * a.items_per_split, stop = begin + a.items_per_split;
    first = begin + thread % size / plan.teams.inner;
    end = n < a.shape.n && c < a.shape.c ? (stop < plan.items ? stop : plan.items) : 0;
  }

  __device__ __forceinline__ bool exists(const SumsArguments& a) const { return n < a.shape.n && c < a.shape.c; }
  // Where this part of plane (n, c) stands in the partial sums.
  __device__ __forceinline__ int64_t plane(const SumsArguments& a) const {
    return (split * a.shape.n + n) * a.shape.c + c;
  }
};

// Add up N values over the slots of each team, and call write(i, total) for each sum, in a thread whose share is of
// the plane that the sum belongs to. `scratch` is of team_scratch bytes.
template <int N, class A, class Write>
__device__ __forceinline__ void team_sums(A (&values)[N], const Teams& teams, Shared<A> scratch, const Write& write) {
  const int thread = int(threadIdx.x), size = teams.size(), in_warp = size < kWarp ? size : kWarp;
  IRNEXT_NO_UNROLL
  for (int distance = teams.inner; distance < in_warp; distance *= 2) {
    IRNEXT_UNROLL
    for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(kWholeWarp, values[i], distance);
  }
  if (size > kWarp) {
    const int warp = thread / kWarp, lane = thread % kWarp;
    if (lane < teams.inner) {
      IRNEXT_UNROLL
      for (int i = 0; i < N; ++i) scratch[(warp * N + i) * teams.inner + lane] = values[i];
    }
    __syncthreads();
    for (int output = thread; output < N * teams.inner; output += kThreads) {
      A total = 0;
      for (int w = 0; w < kThreads / kWarp; ++w) total += A(scratch[w * N * teams.inner + output]);
      write(output / teams.inner, total);
    }
  } else if (thread % size < teams.inner) {
    IRNEXT_UNROLL
    for (int i = 0; i < N; ++i) write(i, values[i]);
  }
}

// Bytes of shared memory that team_sums needs.
template <int N, class A>
__host__ __device__ int team_scratch(const Teams& teams) {
  return teams.size() > kWarp ? kThreads / kWarp * N * teams.inner * int(sizeof(A)) : 0;
}

inline cudaError_t sums_grid(const SumsArguments& a, LaunchConfig* config) {
  const int64_t blocks = divided_up(a.plan.units * a.plan.splits, a.plan.teams.count());
  return grid_of(blocks * a.chunks, kThreads, config);
}

// Sums of `tensor` only: the mean's, and of a gradient where nothing else is wanted.
inline SumsPlan plan_plane_sums(const Device& device, int64_t n, int64_t c, int64_t h, int64_t w,
                                const Tensor& tensor) {
  const bool by_channel = channels_adjacent(tensor, c);
  const int pack = int(16 / element_size(tensor.type));
  const bool packs = by_channel ? c % pack == 0 && packs_along_c(tensor, n, c, h, w, pack)
                                : packs_along_w(tensor, n, c, h, w, pack);
  return plan_sums(device, n, c, h, w, 1, by_channel, packs ? pack : 1, kMostRows);
}

cudaError_t launch_plane_sums(SumsArguments arguments, cudaStream_t stream);

// ---- the second stage ----

// out[o] = the sum over splits, and over the `shared` neighbouring planes that share a kernel, of partial sums.
struct FinishJob {
  const void* partial;  // (splits, planes, width)
  void* out;            // (planes / shared, width)
  int64_t planes, width, shared, outputs;
  double divisor;
};

struct FinishArguments {
  FinishJob first, second;
  int64_t splits, first_blocks;  // of the first job; the second's follow
};

constexpr int kFinishSlices = kThreads / kWarp;  // warps, each adding up a part for the same outputs

template <class A>
__global__ void __launch_bounds__(kThreads) finish_kernel(FinishArguments a) {
  const bool second = blockIdx.x >= a.first_blocks;
  const FinishJob job = second ? a.second : a.first;
  const int64_t block = blockIdx.x - (second ? a.first_blocks : 0);
  const int lane = int(threadIdx.x) % kWarp, slice = int(threadIdx.x) / kWarp;
  const int64_t output = block * kWarp + lane;
  Shared<double> scratch = shared_array<double>(0, kThreads);
  double sum = 0;
  if (output < job.outputs) {
    const int64_t row = quotient(output, job.width), tap = output - row * job.width, terms = a.splits * job.shared;
    IRNEXT_UNROLL_4  // so that four loads are under way
    for (int64_t k = slice; k < terms; k += kFinishSlices) {
      const int64_t split = quotient(k, job.shared), plane = row * job.shared + k - split * job.shared;
      sum += double(static_cast<const A*>(job.partial)[(split * job.planes + plane) * job.width + tap]);
    }
  }
  scratch[int(threadIdx.x)] = sum;
  __syncthreads();
  if (slice > 0 || output >= job.outputs) return;
  double total = 0;
  for (int s = 0; s < kFinishSlices; ++s) total += double(scratch[s * kWarp + lane]);
  static_cast<A*>(job.out)[output] = A(total / job.divisor);
}

// Either job may have no outputs.
inline cudaError_t finish(const FinishJob& first, const FinishJob& second, int64_t splits, Type type,
                          cudaStream_t stream) {
  FinishArguments arguments = {first, second, splits, divided_up(first.outputs, kWarp)};
  LaunchConfig config;
  const cudaError_t error = grid_of(arguments.first_blocks + divided_up(second.outputs, kWarp), kThreads, &config);
  if (error != cudaSuccess) return error;
  config.shared_bytes = kThreads * sizeof(double);
  return type == Type::f64 ? launch(&finish_kernel<double>, config, stream, arguments)
                           : launch(&finish_kernel<float>, config, stream, arguments);
}

}  // namespace irnext::cuda
