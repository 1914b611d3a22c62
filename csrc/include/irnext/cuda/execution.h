// The execution model that the kernels are written in. The only header that knows whether it is nvcc's (CUDA's
// own) or, with IRNEXT_CUDA_HOST, a C++ compiler's (the emulation in host/). A C++ compiler that only calls what nvcc
// compiles sees the host's part. Kernels reach shared memory, clusters, half types, vector
// accesses and launches through what stands here, so that one source serves both.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "irnext/tensor.h"

#if !defined(IRNEXT_CUDA_HOST)
#if defined(__CUDACC__)
#include <cooperative_groups.h>
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define IRNEXT_UNROLL _Pragma("unroll")
#define IRNEXT_UNROLL_4 _Pragma("unroll 4")
#define IRNEXT_NO_UNROLL _Pragma("unroll 1")
#else
#include "irnext/cuda/host/shim.h"
#define IRNEXT_UNROLL
#define IRNEXT_UNROLL_4
#define IRNEXT_NO_UNROLL
#endif

namespace irnext::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// ---- element types ----

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// What elements of T are computed and summed in.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(half value) {
#if !defined(IRNEXT_CUDA_HOST)
  return __half2float(__ushort_as_half(value.bits));
#else
  return host::half_to_float(value.bits);
#endif
}
__device__ __forceinline__ float widen(bfloat16 value) {
#if !defined(IRNEXT_CUDA_HOST)
  return __bfloat162float(__ushort_as_bfloat16(value.bits));
#else
  return host::bfloat16_to_float(value.bits);
#endif
}

// Rounds to nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(Acc<T> value) {
  if constexpr (std::is_same_v<T, half>) {
#if !defined(IRNEXT_CUDA_HOST)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    return {host::float_to_half(value)};
#endif
  } else if constexpr (std::is_same_v<T, bfloat16>) {
#if !defined(IRNEXT_CUDA_HOST)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    return {host::float_to_bfloat16(value)};
#endif
  } else {
    return value;
  }
}

// Call body(T{}) with the C++ type of `type`.
template <class Body>
auto by_type(Type type, const Body& body) {
  switch (type) {
    case Type::f64: return body(double{});
    case Type::f16: return body(half{});
    case Type::bf16: return body(bfloat16{});
    default: return body(float{});
  }
}

constexpr int64_t element_size(Type type) {
  return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2;
}
// The type that elements of `type` are summed in.
constexpr Type accumulation_type(Type type) { return type == Type::f64 ? Type::f64 : Type::f32; }

// Element `index` of an array whose type is known at run time only.
template <class A>
__device__ __forceinline__ A read_number(const void* data, Type type, int64_t index) {
  switch (type) {
    case Type::f64: return A(static_cast<const double*>(data)[index]);
    case Type::f16: return A(widen(static_cast<const half*>(data)[index]));
    case Type::bf16: return A(widen(static_cast<const bfloat16*>(data)[index]));
    default: return A(static_cast<const float*>(data)[index]);
  }
}

// ---- vector accesses ----

// V neighbouring elements, moved by one instruction; 16 bytes unless told otherwise.
template <class T, int V = 16 / int(sizeof(T))>
struct alignas(sizeof(T) * V) Pack {
  T data[V];
  __device__ __forceinline__ T& operator[](int i) { return data[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};

#if !defined(IRNEXT_CUDA_HOST)
template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
#endif

// `from` must be aligned to the pack's size.
template <class T, int V = 16 / int(sizeof(T))>
__device__ __forceinline__ Pack<T, V> load_pack(const T* from) {
  Pack<T, V> pack;
#if !defined(IRNEXT_CUDA_HOST)
  using W = typename Word<int(sizeof(pack))>::type;
  *reinterpret_cast<W*>(&pack) = *reinterpret_cast<const W*>(from);
#else
  host::copy_aligned(&pack, from, from, sizeof pack);
#endif
  return pack;
}

template <class T, int V>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, V>& pack) {
#if !defined(IRNEXT_CUDA_HOST)
  using W = typename Word<int(sizeof(pack))>::type;
  *reinterpret_cast<W*>(to) = *reinterpret_cast<const W*>(&pack);
#else
  host::copy_aligned(to, &pack, to, sizeof pack);
#endif
}

// Whether packs of `count` neighbours along w (or along c) tile the tensor of these sizes, all of them aligned.
inline bool packs_along_w(const Tensor& tensor, int64_t n, int64_t c, int64_t h, int64_t w, int64_t count) {
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride % count == 0; };
  const Strides& s = tensor.strides;
  return (count == 1 || s.w == 1) && w % count == 0 && fits(n, s.n) && fits(c, s.c) && fits(h, s.h) &&
         reinterpret_cast<uintptr_t>(tensor.data) % uintptr_t(count * element_size(tensor.type)) == 0;
}
inline bool packs_along_c(const Tensor& tensor, int64_t n, int64_t c, int64_t h, int64_t w, int64_t count) {
  const Strides& s = tensor.strides;
  return packs_along_w({tensor.data, tensor.type, {s.n, s.w, s.h, s.c}}, n, w, h, c, count);
}

// ---- shared memory and clusters ----

#if defined(__CUDACC__) || defined(IRNEXT_CUDA_HOST)

#if defined(__CUDACC__)

// An array in shared memory. Read its elements into variables of type T: on the host [] yields a proxy.
template <class T>
class Shared {
 public:
  __device__ __forceinline__ explicit Shared(T* data) : data_(data) {}
  __device__ __forceinline__ T& operator[](int i) const { return data_[i]; }
  __device__ __forceinline__ T* data() const { return data_; }

 private:
  T* data_;
};

extern __shared__ __align__(16) unsigned char irnext_dynamic_shared[];

// `count` elements of the block's dynamic shared memory, from a byte offset that suits T's alignment.
template <class T>
__device__ __forceinline__ Shared<T> shared_array(int byte_offset, int) {
  return Shared<T>(reinterpret_cast<T*>(irnext_dynamic_shared + byte_offset));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ int cluster_rank() { return int(cooperative_groups::this_cluster().block_rank()); }
__device__ __forceinline__ int cluster_size() { return int(cooperative_groups::this_cluster().num_blocks()); }
__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }
// The same array in another block of the cluster.
template <class T>
__device__ __forceinline__ Shared<T> cluster_shared(Shared<T> array, int rank) {
  return Shared<T>(cooperative_groups::this_cluster().map_shared_rank(array.data(), rank));
}
#else  // no clusters: every block is its own
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ int cluster_size() { return 1; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
template <class T>
__device__ __forceinline__ Shared<T> cluster_shared(Shared<T> array, int) {
  return array;
}
#endif

#else

using host::cluster_rank;
using host::cluster_shared;
using host::cluster_size;
using host::cluster_sync;
using host::Shared;
using host::shared_array;

#endif

// ---- reductions, in an order that depends on nothing but the block's size ----

// This thread's number in its block.
__device__ __forceinline__ int thread_number() {
  return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

// The sum over the warp, in every lane.
template <class A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

// The sum over the block, in every thread. `scratch` holds one number for each warp and may be used again at once.
// The block is whole warps, and all its threads call this.
template <class A>
__device__ __forceinline__ A block_sum(A value, Shared<A> scratch) {
  const int thread = thread_number(), warps = int(blockDim.x * blockDim.y * blockDim.z) / kWarp;
  value = warp_sum(value);
  __syncthreads();  // the sum before may still be being read
  if (thread % kWarp == 0) scratch[thread / kWarp] = value;
  __syncthreads();
  A total = 0;
  for (int warp = 0; warp < warps; ++warp) total += A(scratch[warp]);
  return total;
}

#endif

// ---- launches ----

// What the choice of a plan depends on.
struct Device {
  int multiprocessors;
  int capability;  // 90 for compute capability 9.0
  int shared_per_block;
};

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
  int cluster = 1;  // blocks to a cluster, along x
};

inline std::atomic<int64_t> launch_counter{0};

// Launches since the library was loaded.
inline int64_t launches() { return launch_counter.load(std::memory_order_relaxed); }

#if !defined(IRNEXT_CUDA_HOST)

inline cudaError_t query_device(int id, Device* device) {
  cudaError_t error = cudaSuccess;
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, id);
  };
  int major = 0, minor = 0;
  ask(&device->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&device->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  device->capability = 10 * major + minor;
  return error;
}

// Asked before every launch, so each thread remembers the device it asked about last.
inline cudaError_t current_device(Device* device) {
  static thread_local int known = -1;
  static thread_local Device facts;
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess && id != known) {
    error = query_device(id, &facts);
    known = error == cudaSuccess ? id : -1;
  }
  *device = facts;
  return error;
}

template <class Arguments>
cudaError_t start(void (*kernel)(Arguments), const LaunchConfig& config, cudaStream_t stream,
                  const Arguments& arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (config.shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(config.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = config.grid;
  launch.blockDim = config.block;
  launch.dynamicSmemBytes = config.shared_bytes;
  launch.stream = stream;
  launch.attrs = &cluster;
  launch.numAttrs = config.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&launch, kernel, arguments);
}

#else

inline cudaError_t current_device(Device* device) {
  const host::DeviceFacts& facts = host::device_facts();
  *device = {facts.multiprocessors, facts.capability, facts.shared_per_block};
  return cudaSuccess;
}

template <class Arguments>
cudaError_t start(void (*kernel)(Arguments), const LaunchConfig& config, cudaStream_t, const Arguments& arguments) {
  const Arguments copy = arguments;  // kernels take their arguments by value
  return host::run({config.grid, config.block, config.shared_bytes, config.cluster}, [&] { kernel(copy); });
}

#endif

// Launch a kernel that takes one struct. An empty grid launches nothing.
template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), const LaunchConfig& config, cudaStream_t stream,
                   const Arguments& arguments) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return cudaSuccess;
  launch_counter.fetch_add(1, std::memory_order_relaxed);
  return start(kernel, config, stream, arguments);
}

// A one-dimensional grid of blocks of `threads`, or an error where the device cannot number them.
inline cudaError_t grid_of(int64_t blocks, int threads, LaunchConfig* config) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  config->grid = dim3(unsigned(blocks));
  config->block = dim3(unsigned(threads));
  return cudaSuccess;
}

}  // namespace irnext::cuda
