// What is known about every element of shared memory: who wrote and read it last, and when. Two accesses by
// different threads, one of them a write, must have a barrier of both threads between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace irnext::cuda::host {

constexpr int kGranule = 2;  // bytes watched together: the smallest element

// Whose access it was, and the launch's clock, which every barrier advances. Time 0 is never.
struct Access {
  uint32_t thread = 0;  // in the cluster
  uint64_t time = 0;
};

// When the accessing thread last passed a barrier with whom.
struct Barriers {
  uint32_t thread, warp_begin, warp_end, block_begin, block_end;  // threads in its warp and block
  uint64_t warp, block, cluster;

  bool follows(const Access& earlier) const {
    const uint32_t other = earlier.thread;
    return earlier.time == 0 || other == thread || earlier.time < cluster ||
           (other >= block_begin && other < block_end && earlier.time < block) ||
           (other >= warp_begin && other < warp_end && earlier.time < warp);
  }
};

enum class Conflict { none, unwritten, race };

// The shadow of one block's shared memory. Of the reads since the last write it remembers two, in different warps
// where there are such, which is enough for kernels whose threads do the same.
class Shadow {
 public:
  explicit Shadow(size_t bytes) : granules_((bytes + kGranule - 1) / kGranule) {}

  Conflict read(size_t offset, size_t bytes, const Barriers& self, uint64_t now) {
    Conflict found = Conflict::none;
    for (size_t i = offset / kGranule; i * kGranule < offset + bytes; ++i) {
      Granule& granule = granules_[i];
      if (granule.write.time == 0) return Conflict::unwritten;
      if (!self.follows(granule.write)) found = Conflict::race;
      const Access access{self.thread, now};
      if (self.follows(granule.reads[0]))
        granule.reads[0] = access;
      else if (self.follows(granule.reads[1]) || in_warp(self, granule.reads[0]) < in_warp(self, granule.reads[1]))
        granule.reads[1] = access;
    }
    return found;
  }

  Conflict write(size_t offset, size_t bytes, const Barriers& self, uint64_t now) {
    Conflict found = Conflict::none;
    for (size_t i = offset / kGranule; i * kGranule < offset + bytes; ++i) {
      Granule& granule = granules_[i];
      if (!self.follows(granule.write) || !self.follows(granule.reads[0]) || !self.follows(granule.reads[1]))
        found = Conflict::race;
      granule = {{self.thread, now}, {}};
    }
    return found;
  }

 private:
  struct Granule {
    Access write, reads[2];
  };
  static bool in_warp(const Barriers& self, const Access& access) {
    return access.thread >= self.warp_begin && access.thread < self.warp_end;
  }

  std::vector<Granule> granules_;
};

}  // namespace irnext::cuda::host
