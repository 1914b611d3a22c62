// The CPU kernels' interface: plain pointers and ranges of tasks, no PyTorch.
//
// kernels.cpp is compiled once per instruction set; kernels() picks one table at run time.
// A task writes only what is its own, tasks follow from the shape alone, and their partial sums
// are added in task order: results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "irnext/geometry.h"

namespace irnext::cpu {

enum class Type : int { f32, f64, f16, bf16 };

// Sums are taken, and kernels, partial sums and means are given, in double for f64, else in float.
constexpr bool is_double(Type type) { return type == Type::f64; }

struct Tensor {
  void* data;
  Type type;
  Strides strides;
};

// The rows of all planes, cut into equal bands: task i is band i % bands of unit i / bands. A unit
// is a plane (rows of one channel are filtered together) or, where channels lie side by side in
// memory, a sample.
struct Tasks {
  bool channels_last;
  int64_t units, bands, rows;  // `rows` rows to a band, the last may have fewer
  int64_t count() const { return units * bands; }
};

struct MeanCall {
  int64_t n, c, h, w;
  Tensor x;
  double* partial;  // (units, bands, 1 or c): sums
  Tasks tasks;
};

struct ForwardCall {
  DynamicConvShape shape;
  Tensor x, y;
  const void* kernel;  // (n, groups, kh, kw), contiguous
  Tensor bias;         // data may be null
  Tasks tasks;
};

struct BackwardCall {
  DynamicConvShape shape;
  Tensor x, grad, dx;  // data of dx is null where it is not wanted, of x where sums are not
  const void* kernel;
  double* tap_sums;   // (units, bands, taps * (1 or c)): sums of grad * shifted x; may be null
  double* grad_sums;  // (units, bands, 1 or c): sums of grad; may be null
  Tasks tasks;
};

struct Kernels {
  const char* name;
  void (*spatial_mean)(const MeanCall&, int64_t begin, int64_t end);
  void (*forward)(const ForwardCall&, int64_t begin, int64_t end);
  void (*backward)(const BackwardCall&, int64_t begin, int64_t end);
};

const Kernels& kernels();

// Choose the instruction set by name ("baseline", "avx2", "avx512"); false if the CPU lacks it.
bool select_kernels(const char* name);

}  // namespace irnext::cpu
