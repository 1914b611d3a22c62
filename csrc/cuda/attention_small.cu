#include "irnext/cuda/attention_small.cuh"

namespace irnext::cuda {

namespace {

// A block's planes up to this size keep it busy no longer than exchanging means with another would take.
constexpr int64_t kComfortableBytes = 32 * 1024;
// Without clusters every block of a sample reads all of it; larger samples are not worth that.
constexpr int64_t kRereadBytes = 256 * 1024;

bool channels_adjacent(const Tensor& tensor, int64_t channels) { return channels > 1 && tensor.strides.c == 1; }

int64_t channel_pack(Type type) { return type == Type::f64 ? kSmallPack<double, true> : kSmallPack<float, true>; }

// The channels of each of `blocks`: whole packs where channels lie side by side and make up whole packs.
int64_t channels_of(const AttentionShape& s, const Tensor& x, int64_t blocks) {
  const int64_t pack = channel_pack(x.type), even = (s.c + blocks - 1) / blocks;
  return channels_adjacent(x, s.c) && s.c % pack == 0 ? (even + pack - 1) / pack * pack : even;
}

SmallLayout layout_of(const AttentionShape& s, const Tensor& x, int64_t blocks) {
  const int64_t element = element_size(x.type), wide = element_size(accumulation_type(x.type));
  return SmallLayout(s, channels_of(s, x, blocks), element, wide, channel_pack(x.type));
}

template <class T, int P, bool ChannelsLast>
cudaError_t start_small(const SmallAttentionCall& call, const AttentionPlan& plan, cudaStream_t stream) {
  const AttentionShape& s = call.shape;
  const int64_t channels = channels_of(s, call.x, plan.blocks);
  const int64_t across = ChannelsLast ? channels / P * s.w : channels * s.w / P;
  // Enough items for every thread of the block, if the rows allow it.
  const int64_t strips = (kSmallThreads + across - 1) / across;
  const int64_t rows = strips < s.h ? (s.h + strips - 1) / strips : 1;
  const SmallArguments<T> arguments{s,
                                    Parameters<Acc<T>>(call.parameters),
                                    call.x,
                                    call.y,
                                    static_cast<Acc<T>*>(call.mean),
                                    plan.blocks,
                                    int(channels),
                                    plan.clusters,
                                    int(rows)};
  LaunchConfig config;
  const cudaError_t error = grid_of(s.n * plan.blocks, kSmallThreads, &config);
  if (error != cudaSuccess) return error;
  config.shared_bytes = plan.shared_bytes;
  config.cluster = plan.clusters ? plan.blocks : 1;
  return launch(small_attention_kernel<T, P, ChannelsLast>, config, stream, arguments);
}

}  // namespace

AttentionPlan plan_attention(const Device& device, const AttentionShape& s, const Tensor& x) {
  const auto separately = [](const char* reason) { return AttentionPlan{0, false, 0, reason}; };
  if (s.training) return separately("separate launches: the batch's statistics couple its samples");
  if (s.window) return separately("separate launches: the local mean takes passes of its own");
  const bool clusters = device.capability >= 90;
  const int64_t sample = s.c * s.h * s.w * element_size(x.type);
  int blocks = 0;
  for (int candidate = 1; candidate <= kClusterMost && candidate <= s.c; candidate *= 2) {
    if (layout_of(s, x, candidate).total > device.shared_per_block) continue;
    blocks = candidate;
    if (channels_of(s, x, candidate) * s.h * s.w * element_size(x.type) <= kComfortableBytes) break;
  }
  if (blocks == 0) return separately("separate launches: a sample exceeds the shared memory of eight blocks");
  if (blocks > 1 && !clusters && sample > kRereadBytes)
    return separately("separate launches: a sample exceeds 256 KiB and the device has no clusters");
  return {blocks, clusters && blocks > 1, size_t(layout_of(s, x, blocks).total),
          blocks == 1 ? "one launch: a block holds a sample"
          : clusters  ? "one launch: a cluster holds a sample and exchanges its means"
                      : "one launch: each block of a sample takes all of its means"};
}

cudaError_t small_attention(const SmallAttentionCall& call, const AttentionPlan& plan, cudaStream_t stream) {
  const AttentionShape& s = call.shape;
  return by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    const bool three = s.kh == 3 && s.kw == 3;
    if (channels_adjacent(call.x, s.c)) {
      constexpr int P = kSmallPack<T, true>;
      const bool packs = three && packs_along_c(call.x, s.n, s.c, s.h, s.w, P) &&
                         packs_along_c(call.y, s.n, s.c, s.h, s.w, P);
      return packs ? start_small<T, P, true>(call, plan, stream) : start_small<T, 1, true>(call, plan, stream);
    }
    constexpr int P = kSmallPack<T, false>;
    const bool packs = three && packs_along_w(call.x, s.n, s.c, s.h, s.w, P) &&
                       packs_along_w(call.y, s.n, s.c, s.h, s.w, P);
    return packs ? start_small<T, P, false>(call, plan, stream) : start_small<T, 1, false>(call, plan, stream);
  });
}

}  // namespace irnext::cuda
