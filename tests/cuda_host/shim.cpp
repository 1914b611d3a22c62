// The emulation itself: what correct kernels compute, and that it finds what is wrong with others.
#include <vector>

#include "check.h"
#include "irnext/cuda/execution.h"

using namespace irnext::cuda;

namespace {

struct Arguments {
  float* out;
  int variant;
};

using Kernel = void (*)(Arguments);
const char* const kSchedules[] = {"forward", "reverse", "shuffled:1", "shuffled:7"};

cudaError_t run(Kernel kernel, Arguments arguments, unsigned blocks, unsigned threads, size_t shared, int cluster = 1) {
  return launch(kernel, LaunchConfig{dim3(blocks), dim3(threads), shared, cluster}, cudaStream_t{}, arguments);
}

// Under every schedule the kernel must fail, with a message that has `expected` in it.
void check_fails(const char* what, const std::string& expected, Kernel kernel, unsigned threads, size_t shared,
                 int cluster = 1, unsigned blocks = 2) {
  std::vector<float> out(4096);
  for (const char* schedule : kSchedules) {
    host::set_schedule(schedule);
    const cudaError_t error = run(kernel, {out.data(), 0}, blocks, threads, shared, cluster);
    const std::string message = cudaGetErrorString(error);
    check(error != cudaSuccess && message.find(expected) != std::string::npos,
          std::string(what) + " under " + schedule + ": '" + message + "'");
  }
  host::set_schedule("forward");
}

void check_passes(const char* what, Kernel kernel, unsigned blocks, unsigned threads, size_t shared, int cluster,
                  const std::vector<float>& expected) {
  for (const char* schedule : kSchedules) {
    host::set_schedule(schedule);
    std::vector<float> out(expected.size(), -1);
    const cudaError_t error = run(kernel, {out.data(), 0}, blocks, threads, shared, cluster);
    check(error == cudaSuccess, std::string(what) + " under " + schedule + ": " + cudaGetErrorString(error));
    check(out == expected, std::string(what) + " under " + schedule + " computes something else");
  }
  host::set_schedule("forward");
}

// ---- correct kernels ----

__global__ void reverses(Arguments a) {
  Shared<float> shared = shared_array<float>(0, int(blockDim.x));
  const int t = int(threadIdx.x), count = int(blockDim.x);
  shared[t] = float(t);
  __syncthreads();
  const float mirrored = shared[count - 1 - t];
  __syncthreads();
  shared[t] = mirrored + 1;
  a.out[blockIdx.x * blockDim.x + threadIdx.x] = shared[t];
}

__global__ void sums(Arguments a) {
  Shared<float> scratch = shared_array<float>(0, int(blockDim.x) / kWarp);
  float total = 0;
  for (int i = 0; i < 3; ++i) total = block_sum(float(threadIdx.x) + total, scratch);
  if (threadIdx.x == 0) a.out[blockIdx.x] = total;
}

__global__ void shuffles(Arguments a) {
  const int lane = int(threadIdx.x) % kWarp;
  const int all = __shfl_sync(kWholeWarp, lane, 5) + 100 * __shfl_sync(kWholeWarp, lane, 3, 8);
  const int down = __shfl_down_sync(kWholeWarp, lane, 4), up = __shfl_up_sync(kWholeWarp, lane, 4);
  const int across = __shfl_xor_sync(kWholeWarp, lane, 3);
  const bool good = all == 5 + 100 * (lane / 8 * 8 + 3) && down == (lane < 28 ? lane + 4 : lane) &&
                    up == (lane >= 4 ? lane - 4 : lane) && across == (lane ^ 3);
  a.out[blockIdx.x * blockDim.x + threadIdx.x] = good ? 1 : 0;
}

__global__ void exchanges_in_the_cluster(Arguments a) {
  Shared<float> mine = shared_array<float>(0, 1);
  if (threadIdx.x == 0) mine[0] = float(blockIdx.x);
  cluster_sync();
  float total = 0;
  for (int rank = 0; rank < cluster_size(); ++rank) total += float(cluster_shared(mine, rank)[0]);
  cluster_sync();
  if (threadIdx.x == 0) a.out[blockIdx.x] = total + 100 * float(cluster_rank());
}

__global__ void hands_over_in_a_warp(Arguments a) {
  Shared<float> shared = shared_array<float>(0, int(blockDim.x));
  const int t = int(threadIdx.x);
  shared[t] = float(t);
  __syncwarp();
  a.out[blockIdx.x * blockDim.x + threadIdx.x] = shared[t ^ 1];
}

// ---- kernels with one mistake each ----

__global__ void writes_one_place(Arguments) { shared_array<float>(0, 1)[0] = float(threadIdx.x); }

__global__ void misses_a_barrier(Arguments a) {
  Shared<float> shared = shared_array<float>(0, int(blockDim.x));
  const int t = int(threadIdx.x), count = int(blockDim.x);
  shared[t] = float(t);
  __syncthreads();
  const float mirrored = shared[count - 1 - t];
  shared[t] = mirrored;  // others may not have read it yet
  a.out[blockIdx.x * blockDim.x + threadIdx.x] = mirrored;
}

__global__ void takes_a_warp_barrier_for_a_block_barrier(Arguments a) {
  Shared<float> shared = shared_array<float>(0, int(blockDim.x));
  const int t = int(threadIdx.x);
  shared[t] = float(t);
  __syncwarp();
  a.out[t] = shared[(t + kWarp) % int(blockDim.x)];
}

__global__ void takes_a_shuffle_for_a_barrier(Arguments a) {
  Shared<float> shared = shared_array<float>(0, int(blockDim.x));
  const int t = int(threadIdx.x);
  shared[t] = 1;
  const float other = __shfl_xor_sync(kWholeWarp, 1.0f, 1);
  a.out[t] = float(shared[t ^ 1]) + other;
}

__global__ void leaves_the_array(Arguments) {
  Shared<float> shared = shared_array<float>(0, int(blockDim.x));
  shared[int(threadIdx.x) + 1] = 0;
}

__global__ void asks_for_too_long_an_array(Arguments) { shared_array<float>(0, 1024)[int(threadIdx.x)] = 0; }

__global__ void misaligns_an_array(Arguments) { shared_array<double>(4, 1); }

__global__ void reads_what_nobody_wrote(Arguments a) {
  a.out[threadIdx.x] = shared_array<float>(0, int(blockDim.x))[int(threadIdx.x)];
}

__global__ void leaves_others_at_a_barrier(Arguments) {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

__global__ void leaves_others_at_a_shuffle(Arguments a) {
  if (threadIdx.x == 3) return;
  a.out[threadIdx.x] = warp_sum(1.0f);
}

__global__ void shuffles_differently(Arguments a) {
  a.out[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(kWholeWarp, 1.0f, 1) : __shfl_down_sync(kWholeWarp, 1.0f, 1);
}

__global__ void waits_at_two_barriers(Arguments a) {
  if (threadIdx.x < kWarp)
    __syncthreads();
  else
    a.out[threadIdx.x] = warp_sum(1.0f), cluster_sync();
}

__global__ void shuffles_half_a_warp(Arguments a) {
  a.out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1);
}

__global__ void loads_a_misaligned_pack(Arguments a) { a.out[0] = load_pack<float>(a.out + 1)[0]; }

__global__ void reads_the_cluster_too_early(Arguments a) {
  Shared<float> mine = shared_array<float>(0, 1);
  if (threadIdx.x == 0) mine[0] = 1;
  __syncthreads();
  a.out[blockIdx.x] = cluster_shared(mine, 1 - cluster_rank())[0];
  cluster_sync();
}

__global__ void leaves_the_cluster_too_early(Arguments a) {
  Shared<float> mine = shared_array<float>(0, 1);
  if (threadIdx.x == 0) mine[0] = 1;
  cluster_sync();
  if (cluster_rank() == 1) return;
  for (int i = 0; i < 3; ++i) __syncthreads();  // until the other block has ended
  a.out[blockIdx.x] = cluster_shared(mine, 1)[0];
}

__global__ void asks_for_a_block_beyond_the_cluster(Arguments a) {
  Shared<float> mine = shared_array<float>(0, 1);
  a.out[blockIdx.x] = cluster_shared(mine, cluster_size())[0];
}

__global__ void depends_on_the_order(Arguments a) {
  a.out[0] = float(threadIdx.x);  // global memory is not watched: only the schedule shows it
}

__global__ void does_nothing(Arguments) {}

}  // namespace

void print_schedule() {
  const host::Schedule& chosen = host::schedule();
  if (chosen.order == host::Order::shuffled)
    std::printf("shuffled:%llu\n", (unsigned long long)chosen.seed);
  else
    std::printf(chosen.order == host::Order::forward ? "forward\n" : "reverse\n");
}

void check_shim() {
  std::vector<float> reversed, ones(128, 1), handed;
  for (int block = 0; block < 2; ++block)
    for (int t = 0; t < 64; ++t) reversed.push_back(float(64 - t)), handed.push_back(float(t ^ 1));
  check_passes("reverses", reverses, 2, 64, 256, 1, reversed);
  check_passes("shuffles", shuffles, 2, 64, 0, 1, ones);
  check_passes("hands_over_in_a_warp", hands_over_in_a_warp, 2, 64, 256, 1, handed);
  const float once = 96 * 95 / 2, twice = once + 96 * once, thrice = once + 96 * twice;
  check_passes("sums", sums, 2, 96, 12, 1, {thrice, thrice});
  check_passes("exchanges_in_the_cluster", exchanges_in_the_cluster, 4, 32, 4, 2, {1, 101, 5, 105});

  check_fails("a race", "race", writes_one_place, 64, 4);
  check_fails("a missing barrier", "race", misses_a_barrier, 64, 256);
  check_fails("a barrier of a warp", "", takes_a_warp_barrier_for_a_block_barrier, 64, 256);
  check_fails("a shuffle for a barrier", "race", takes_a_shuffle_for_a_barrier, 64, 256);
  check_fails("an index too large", "element 64 of a shared array of 64", leaves_the_array, 64, 512);
  check_fails("an array too long", "beyond the block's 256 bytes", asks_for_too_long_an_array, 64, 256);
  check_fails("a misaligned array", "misaligned", misaligns_an_array, 32, 64);
  check_fails("an uninitialised read", "nobody wrote", reads_what_nobody_wrote, 64, 256);
  check_fails("an exit before a barrier", "has ended", leaves_others_at_a_barrier, 64, 0);
  check_fails("an exit before a shuffle", "has ended", leaves_others_at_a_shuffle, 64, 0);
  check_fails("different shuffles", "different operations", shuffles_differently, 32, 0);
  check_fails("two barriers", "waits at", waits_at_two_barriers, 64, 0);
  check_fails("half a warp", "some lanes only", shuffles_half_a_warp, 32, 0);
  check_fails("a block of 33 threads", "whole warps", shuffles_differently, 33, 0);
  check_fails("a misaligned pack", "misaligned", loads_a_misaligned_pack, 1, 0);
  check_fails("a cluster read too early", "", reads_the_cluster_too_early, 32, 4, 2);
  check_fails("a cluster left too early", "has ended", leaves_the_cluster_too_early, 32, 4, 2);
  check_fails("a block beyond the cluster", "smaller cluster", asks_for_a_block_beyond_the_cluster, 32, 4, 2);
  check_fails("too many threads", "1 to 1024", does_nothing, 1025, 0);
  check_fails("too much shared memory", "too much", does_nothing, 32, 228 * 1024);
  check_fails("an uneven grid", "fill the grid", does_nothing, 32, 0, 2, 3);
  host::device_facts().capability = 80;
  check_fails("clusters on an older device", "clusters", does_nothing, 32, 0, 2);
  host::device_facts().capability = 90;

  float first = -1, last = -1;
  host::set_schedule("forward");
  run(depends_on_the_order, {&first, 0}, 1, 64, 0);
  host::set_schedule("reverse");
  run(depends_on_the_order, {&last, 0}, 1, 64, 0);
  check(first == 63 && last == 0, "the schedule does not show a race in global memory");
  host::set_schedule("forward");
  check(!host::set_schedule("sideways"), "a schedule of no known name");

  const int64_t before = launches();
  run(does_nothing, {nullptr, 0}, 0, 32, 0);
  check(launches() == before, "an empty grid counts as a launch");
  run(does_nothing, {nullptr, 0}, 1, 32, 0);
  check(launches() == before + 1, "launches are not counted");
}
