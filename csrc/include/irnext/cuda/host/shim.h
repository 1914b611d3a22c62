// The names of CUDA that the kernels use, for a C++ compiler, and the emulation behind them: the threads of a
// cluster of blocks are fibers that run one after the other, each until it reaches a barrier or a shuffle. What CUDA
// leaves undefined (races, missing barriers, accesses out of bounds, lanes that disagree) ends the launch with an
// error instead. The order in which threads and blocks run can be chosen; results must not depend on it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "irnext/cuda/host/conversion.h"
#include "irnext/cuda/host/fiber.h"
#include "irnext/cuda/host/race.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace irnext::cuda::host {

// ---- what a test can set ----

struct DeviceFacts {
  int multiprocessors = 132, capability = 90, shared_per_block = 227 * 1024;
};
inline DeviceFacts& device_facts() {
  static DeviceFacts facts;
  return facts;
}

enum class Order { forward, reverse, shuffled };
struct Schedule {
  Order order = Order::forward;
  uint64_t seed = 1;
};

// "forward", "reverse", "shuffled" or "shuffled:SEED"; false where it is none of them.
inline bool parse_schedule(const std::string& text, Schedule* schedule) {
  if (text == "forward" || text == "reverse") {
    schedule->order = text == "forward" ? Order::forward : Order::reverse;
    return true;
  }
  const std::string name = "shuffled";
  if (text.compare(0, name.size(), name) != 0) return false;
  if (text.size() > name.size() && text[name.size()] != ':') return false;
  schedule->order = Order::shuffled;
  if (text.size() > name.size()) schedule->seed = std::strtoull(text.c_str() + name.size() + 1, nullptr, 10) | 1;
  return true;
}

// The environment variable IRNEXT_HOST_SCHEDULE is where it starts.
inline Schedule& schedule() {
  static Schedule chosen = [] {
    Schedule schedule;
    if (const char* text = std::getenv("IRNEXT_HOST_SCHEDULE")) parse_schedule(text, &schedule);
    return schedule;
  }();
  return chosen;
}
inline bool set_schedule(const std::string& text) { return parse_schedule(text, &schedule()); }

// ---- errors ----

inline thread_local std::string last_error;

struct Failure {
  std::string message;
};

// End the launch.
[[noreturn]] inline void fail(std::string message) { throw Failure{std::move(message)}; }

// ---- threads, warps, blocks ----

enum class Wait { nothing, warp, block, cluster, end };
enum class WarpOperation { barrier, shuffle_xor, shuffle_down, shuffle_up, shuffle };

inline const char* name_of(Wait wait) {
  switch (wait) {
    case Wait::warp: return "a shuffle or __syncwarp";
    case Wait::block: return "__syncthreads";
    case Wait::cluster: return "cluster_sync";
    default: return "nothing";
  }
}

constexpr unsigned kLanes = 32;
constexpr size_t kMostExchanged = 16;  // bytes

struct Thread {
  Context context;
  dim3 index;
  unsigned block = 0;  // in the cluster
  Wait wait = Wait::nothing;
  unsigned exchanges = 0;
  // Two, in turn: a lane may have offered its next value before another has taken this one.
  alignas(kMostExchanged) unsigned char offered[2][kMostExchanged] = {};
};

struct Warp {
  unsigned arrived = 0, width = 0;
  WarpOperation operation = WarpOperation::barrier;
  uint64_t time = 0;  // of its last __syncwarp
};

struct Block {
  dim3 index;
  unsigned arrived = 0;
  bool ended = false;
  uint64_t time = 0;  // of its last __syncthreads
  std::unique_ptr<unsigned char[]> memory;
  std::unique_ptr<Shadow> shadow;
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  int cluster;
};

// The cluster that is running: the fibers of all threads of all its blocks.
class Cluster {
 public:
  Cluster(const Launch& launch, const std::function<void()>& kernel, Stacks* stacks)
      : launch_(launch),
        kernel_(kernel),
        stacks_(stacks),
        block_threads_(launch.block.x * launch.block.y * launch.block.z),
        block_warps_((block_threads_ + kLanes - 1) / kLanes),
        blocks_(launch.cluster),
        warps_(launch.cluster * block_warps_),
        threads_(launch.cluster * block_threads_),
        turns_(threads_.size()) {
    for (size_t i = 0; i < turns_.size(); ++i) turns_[i] = unsigned(i);
    for (Block& block : blocks_) block.memory.reset(new unsigned char[launch.shared_bytes + 1]);
  }

  // Run blocks `first`, `first` + 1, ... of the grid; false, with error() set, where they break a rule.
  bool run(uint64_t first, void (*entry)()) {
    clock_ = 1;
    arrived_ = 0;
    time_ = 0;
    for (unsigned b = 0; b < blocks_.size(); ++b) {
      Block& block = blocks_[b];
      const uint64_t index = first + b;
      block.index = dim3(unsigned(index % launch_.grid.x), unsigned(index / launch_.grid.x % launch_.grid.y),
                         unsigned(index / launch_.grid.x / launch_.grid.y));
      block.arrived = 0;
      block.ended = false;
      block.time = 0;
      std::memset(block.memory.get(), 0xff, launch_.shared_bytes);  // NaN in every type
      block.shadow = std::make_unique<Shadow>(launch_.shared_bytes);
    }
    for (Warp& warp : warps_) warp = Warp{};
    for (unsigned t = 0; t < threads_.size(); ++t) {
      Thread& thread = threads_[t];
      const unsigned index = t % block_threads_;
      thread.block = t / block_threads_;
      thread.index = dim3(index % launch_.block.x, index / launch_.block.x % launch_.block.y,
                          index / launch_.block.x / launch_.block.y);
      thread.wait = Wait::nothing;
      prepare(&thread.context, stacks_->get(t), entry);
    }
    gridDim = launch_.grid;
    blockDim = launch_.block;
    for (size_t ended = 0; ended < threads_.size();) {
      reorder();
      bool progress = false;
      for (const unsigned t : turns_) {
        if (threads_[t].wait != Wait::nothing) continue;
        resume(t);
        if (!error_.empty()) return false;
        progress = true;
        if (threads_[t].wait == Wait::end) {
          ++ended;
          blocks_[threads_[t].block].ended = true;
        }
      }
      if (!progress) {
        explain_deadlock();
        return false;
      }
    }
    return true;
  }

  const std::string& error() const { return error_; }

  // ---- called by the running thread ----

  void thread_main() {
    entered(&scheduler_);
    try {
      kernel_();
    } catch (const Failure& failure) {
      error_ = failure.message + " (" + describe(running_) + ")";
    } catch (const std::exception& exception) {
      error_ = exception.what();
    }
    threads_[running_].wait = Wait::end;
    switch_context(&threads_[running_].context, &scheduler_, true);
  }

  void block_barrier() {
    Block& block = blocks_[threads_[running_].block];
    if (++block.arrived < block_threads_) return pause(Wait::block);
    block.arrived = 0;
    block.time = ++clock_;
    const unsigned begin = threads_[running_].block * block_threads_;
    for (unsigned t = begin; t < begin + block_threads_; ++t) threads_[t].wait = Wait::nothing;
  }

  void cluster_barrier() {
    if (++arrived_ < threads_.size()) return pause(Wait::cluster);
    arrived_ = 0;
    time_ = ++clock_;
    for (Thread& thread : threads_) thread.wait = Wait::nothing;
  }

  void warp_barrier(unsigned mask, WarpOperation operation, unsigned width) {
    if (mask != 0xffffffffu) fail("a warp operation of some lanes only");
    if (block_threads_ % kLanes != 0) fail("a warp operation in a block that is not made of whole warps");
    Warp& warp = warps_[warp_of(running_)];
    if (warp.arrived > 0 && (warp.operation != operation || warp.width != width))
      fail("the lanes of a warp do different operations");
    warp.operation = operation;
    warp.width = width;
    if (++warp.arrived < kLanes) return pause(Wait::warp);
    warp.arrived = 0;
    if (operation == WarpOperation::barrier) warp.time = ++clock_;
    const unsigned begin = running_ / kLanes * kLanes;
    for (unsigned t = begin; t < begin + kLanes; ++t) threads_[t].wait = Wait::nothing;
  }

  // Offer `mine` to the other lanes and take the value of lane `source` into `theirs`.
  void exchange(unsigned mask, WarpOperation operation, unsigned width, const void* mine, void* theirs, size_t bytes,
                unsigned source) {
    Thread& self = threads_[running_];
    const unsigned slot = self.exchanges++ % 2;
    std::memcpy(self.offered[slot], mine, bytes);
    warp_barrier(mask, operation, width);
    std::memcpy(theirs, threads_[running_ / kLanes * kLanes + source].offered[slot], bytes);
  }

  unsigned lane() const { return running_ % block_threads_ % kLanes; }
  int rank() const { return int(threads_[running_].block); }
  int size() const { return int(blocks_.size()); }
  size_t shared_bytes() const { return launch_.shared_bytes; }
  unsigned char* memory(int rank) { return blocks_[rank].memory.get(); }

  void check_read(int rank, size_t offset, size_t bytes) {
    check_alive(rank);
    report(blocks_[rank].shadow->read(offset, bytes, barriers(), clock_), offset);
  }
  void check_write(int rank, size_t offset, size_t bytes) {
    check_alive(rank);
    report(blocks_[rank].shadow->write(offset, bytes, barriers(), clock_), offset);
  }

 private:
  unsigned warp_of(unsigned t) const { return t / block_threads_ * block_warps_ + t % block_threads_ / kLanes; }

  void pause(Wait wait) {
    threads_[running_].wait = wait;
    switch_context(&threads_[running_].context, &scheduler_);
  }

  void resume(unsigned t) {
    running_ = t;
    threadIdx = threads_[t].index;
    blockIdx = blocks_[threads_[t].block].index;
    switch_context(&scheduler_, &threads_[t].context);
  }

  // Who runs first in the next round.
  void reorder() {
    const Schedule& chosen = schedule();
    const size_t count = turns_.size();
    if (chosen.order == Order::shuffled) {
      if (state_ == 0) state_ = chosen.seed;
      for (size_t i = count; i > 1; --i) {
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        std::swap(turns_[i - 1], turns_[state_ % i]);
      }
    } else if ((chosen.order == Order::reverse) != (turns_.front() > turns_.back())) {
      for (size_t i = 0; i < count; ++i) turns_[i] = unsigned(chosen.order == Order::reverse ? count - 1 - i : i);
    }
  }

  std::string describe(unsigned t) const {
    const Thread& thread = threads_[t];
    const dim3 &i = thread.index, &b = blocks_[thread.block].index;
    const auto text = [](const dim3& d) {
      return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z);
    };
    return "thread " + text(i) + " of block " + text(b);
  }

  void explain_deadlock() {
    unsigned waiting = 0;
    while (threads_[waiting].wait == Wait::end) ++waiting;
    const Wait wait = threads_[waiting].wait;
    unsigned other = 0;
    while (other < threads_.size() && threads_[other].wait == wait) ++other;
    error_ = describe(waiting) + " waits at " + name_of(wait);
    if (other == threads_.size()) return;
    const Wait why = threads_[other].wait;
    error_ += ", " + describe(other) + (why == Wait::end ? " has ended" : std::string(" waits at ") + name_of(why));
  }

  Barriers barriers() const {
    const unsigned b = threads_[running_].block, block_begin = b * block_threads_;
    const unsigned warp_begin = block_begin + (running_ - block_begin) / kLanes * kLanes;
    return {running_,
            warp_begin,
            warp_begin + kLanes,
            block_begin,
            block_begin + block_threads_,
            warps_[warp_of(running_)].time,
            blocks_[b].time,
            time_};
  }

  void check_alive(int rank) const {
    if (rank != this->rank() && blocks_[rank].ended) fail("shared memory of a block that has ended");
  }

  static void report(Conflict conflict, size_t offset) {
    if (conflict == Conflict::race) fail("a race in shared memory at byte " + std::to_string(offset));
    if (conflict == Conflict::unwritten)
      fail("shared memory that nobody wrote is read at byte " + std::to_string(offset));
  }

  Launch launch_;
  const std::function<void()>& kernel_;
  Stacks* stacks_;
  unsigned block_threads_, block_warps_;
  std::vector<Block> blocks_;
  std::vector<Warp> warps_;
  std::vector<Thread> threads_;
  std::vector<unsigned> turns_;
  Context scheduler_;
  unsigned running_ = 0, arrived_ = 0;
  uint64_t clock_ = 1, time_ = 0, state_ = 0;
  std::string error_;
};

inline thread_local Cluster* running_cluster = nullptr;

inline cudaError_t refuse(const std::string& message, cudaError_t error = cudaErrorInvalidConfiguration) {
  last_error = message;
  return error;
}

// Run a kernel over the whole grid.
inline cudaError_t run(const Launch& launch, const std::function<void()>& kernel) {
  const DeviceFacts& facts = device_facts();
  const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  if (threads == 0 || threads > 1024 || launch.block.z > 64) return refuse("a block has 1 to 1024 threads");
  if (launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535)
    return refuse("the grid is too large");
  if (launch.shared_bytes > size_t(facts.shared_per_block)) return refuse("too much shared memory");
  if (launch.cluster < 1 || launch.cluster > 8 || (launch.cluster > 1 && facts.capability < 90))
    return refuse("this device has no clusters of that size");
  if (launch.grid.x % unsigned(launch.cluster) != 0) return refuse("clusters do not fill the grid");

  static thread_local Stacks stacks;
  const uint64_t clusters = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z / unsigned(launch.cluster);
  Cluster cluster(launch, kernel, &stacks);
  running_cluster = &cluster;
  const Schedule& chosen = schedule();
  bool good = true;
  for (uint64_t i = 0; i < clusters && good; ++i) {
    uint64_t turn = i;
    if (chosen.order == Order::reverse) turn = clusters - 1 - i;
    // A prime stride that does not divide their number visits every cluster once.
    constexpr uint64_t kPrime = 2147483629;
    if (chosen.order == Order::shuffled && clusters % kPrime != 0) turn = (i * kPrime + chosen.seed) % clusters;
    good = cluster.run(turn * unsigned(launch.cluster), [] { running_cluster->thread_main(); });
  }
  running_cluster = nullptr;
  return good ? cudaSuccess : refuse(cluster.error(), cudaErrorLaunchFailure);
}

// ---- clusters and shared memory, as the kernels see them ----

inline int cluster_rank() { return running_cluster->rank(); }
inline int cluster_size() { return running_cluster->size(); }
inline void cluster_sync() { running_cluster->cluster_barrier(); }

// One element: reads and writes are checked.
template <class T>
class Element {
 public:
  Element(int rank, size_t offset) : rank_(rank), offset_(offset) {}
  Element(const Element&) = default;

  operator T() const {
    running_cluster->check_read(rank_, offset_, sizeof(T));
    T value;
    std::memcpy(&value, running_cluster->memory(rank_) + offset_, sizeof(T));
    return value;
  }
  Element& operator=(const T& value) {
    running_cluster->check_write(rank_, offset_, sizeof(T));
    std::memcpy(running_cluster->memory(rank_) + offset_, &value, sizeof(T));
    return *this;
  }
  Element& operator=(const Element& other) { return *this = T(other); }
  Element& operator+=(const T& value) { return *this = T(T(*this) + value); }
  Element& operator-=(const T& value) { return *this = T(T(*this) - value); }
  Element& operator*=(const T& value) { return *this = T(T(*this) * value); }

 private:
  int rank_;
  size_t offset_;
};

template <class T>
class Shared {
 public:
  Shared(int rank, size_t offset, int count) : rank_(rank), count_(count), offset_(offset) {}

  Element<T> operator[](int i) const {
    if (i < 0 || i >= count_)
      fail("element " + std::to_string(i) + " of a shared array of " + std::to_string(count_));
    return Element<T>(rank_, offset_ + size_t(i) * sizeof(T));
  }

  Shared in_block(int rank) const {
    if (rank < 0 || rank >= cluster_size()) fail("block " + std::to_string(rank) + " of a smaller cluster");
    return Shared(rank, offset_, count_);
  }

 private:
  int rank_, count_;
  size_t offset_;
};

template <class T>
Shared<T> shared_array(int byte_offset, int count) {
  static_assert(sizeof(T) % kGranule == 0, "smaller elements are not watched one by one");
  if (byte_offset < 0 || count < 0 || size_t(byte_offset) % alignof(T) != 0 ||
      size_t(byte_offset) + size_t(count) * sizeof(T) > running_cluster->shared_bytes())
    fail("a shared array of " + std::to_string(count) + " elements from byte " + std::to_string(byte_offset) +
         ", misaligned or beyond the block's " + std::to_string(running_cluster->shared_bytes()) + " bytes");
  return Shared<T>(cluster_rank(), size_t(byte_offset), count);
}

template <class T>
Shared<T> cluster_shared(Shared<T> array, int rank) {
  return array.in_block(rank);
}

// Copy one vector; `device_address` is the side that the device needs aligned.
inline void copy_aligned(void* to, const void* from, const void* device_address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(device_address) % bytes != 0) fail("a misaligned vector access");
  std::memcpy(to, from, bytes);
}

template <class T>
T exchange(unsigned mask, WarpOperation operation, int width, T value, unsigned source) {
  static_assert(sizeof(T) <= kMostExchanged);
  T found;
  running_cluster->exchange(mask, operation, unsigned(width), &value, &found, sizeof(T), source);
  return found;
}

// The lane that a shuffle names, or the lane itself where that lies outside its part of `width` lanes.
inline unsigned source_lane(int lane, int width) {
  const int self = int(running_cluster->lane()), begin = self / width * width;
  return unsigned(lane >= begin && lane < begin + width ? lane : self);
}

}  // namespace irnext::cuda::host

// ---- CUDA's own names ----

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : irnext::cuda::host::last_error.c_str();
}

inline void __syncthreads() { irnext::cuda::host::running_cluster->block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  irnext::cuda::host::running_cluster->warp_barrier(mask, irnext::cuda::host::WarpOperation::barrier, 32);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  namespace host = irnext::cuda::host;
  const int lane = int(host::running_cluster->lane()) ^ lane_mask;
  return host::exchange(mask, host::WarpOperation::shuffle_xor, width, value, host::source_lane(lane, width));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  namespace host = irnext::cuda::host;
  const int lane = int(host::running_cluster->lane() + distance);
  return host::exchange(mask, host::WarpOperation::shuffle_down, width, value, host::source_lane(lane, width));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  namespace host = irnext::cuda::host;
  const int lane = int(host::running_cluster->lane()) - int(distance);
  return host::exchange(mask, host::WarpOperation::shuffle_up, width, value, host::source_lane(lane, width));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  namespace host = irnext::cuda::host;
  const int begin = int(host::running_cluster->lane()) / width * width;
  return host::exchange(mask, host::WarpOperation::shuffle, width, value, unsigned(begin + lane % width));
}
