// What the sections of the driver share: counting failures, random numbers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

inline int64_t failures = 0, checks = 0;

inline void check(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  uint64_t next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_;
  }
  int below(int count) { return int((next() >> 11) % uint64_t(count)); }
  double number() { return double(next() >> 11) / double(uint64_t(1) << 52) - 1; }  // in [-1, 1)

 private:
  uint64_t state_;
};

void check_conversions();
void print_schedule();
void check_shim();
void check_operators(int cases);
void check_addressing();
void check_pyramids(int cases);
