// The CPU kernels' interface: plain pointers and ranges of tasks, no PyTorch.
//
// kernels.cpp is compiled once per instruction set; kernels() picks one table at run time.
// A task writes only what is its own, tasks follow from the shape alone, and their partial sums
// are added in task order: results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "irnext/geometry.h"
#include "irnext/pyramid.h"
#include "irnext/tensor.h"
#include "irnext/window.h"

namespace irnext::cpu {

// The rows of all planes, cut into equal bands: task i is band i % bands of unit i / bands. A unit is a
// plane (rows of one channel are filtered together) or, where channels lie side by side in memory, a
// block of a sample's channels, the last of which may have fewer.
struct Tasks {
  bool channels_last;
  int64_t block;               // channels of a unit
  int64_t units, bands, rows;  // `rows` rows to a band, the last may have fewer
  int64_t count() const { return units * bands; }
};

struct MeanCall {
  int64_t n, c, h, w;
  Tensor x;
  double* partial;  // (units, bands, block): sums
  Tasks tasks;
};

// y = the local mean of x, or its adjoint.
struct LocalMeanCall {
  int64_t n, c, h, w;
  Tensor x, y;
  Window window;
  Tasks tasks;
};

// y = the filter's response + bias + window_gain * local mean of x.
struct ForwardCall {
  DynamicConvShape shape;
  Tensor x, y;
  const void* kernel;  // (n, groups, kh, kw), contiguous
  Tensor bias;         // data may be null
  Window window;       // may be none; then there is no bias
  const void* window_gain;  // (c)
  Tasks tasks;
};

// dx = the adjoint filter of grad + shift + window_gain * adjoint local mean of grad.
struct BackwardCall {
  DynamicConvShape shape;
  Tensor x, grad, dx;  // data of dx is null where it is not wanted, of x where sums are not
  const void* kernel;
  double* tap_sums;   // (units, bands, taps, block): sums of grad * shifted x; may be null
  double* grad_sums;  // (units, bands, block): sums of grad, with a window of grad * local mean of x; may be null
  Window window;      // may be none
  const void* window_gain;  // (c)
  const void* shift;        // (n, c); may be null
  Tasks tasks;
};

// One pool of a pyramid, (n, c, h / rate, w / rate). Rates stand in chains, each a multiple of the one before.
struct PoolLevel {
  int64_t rate;
  bool first;  // of its chain
  Tensor pool;
};

// The pools of x, of one chain, or in the adjoint x as the sum of what it takes part in, of all.
struct PoolCall {
  int64_t n, c, h, w;
  Tensor x;
  const PoolLevel* levels;
  int64_t count;
  Tasks tasks;  // for the pools their rows are a multiple of the last rate
};

// A branch of a merge, where the columns of x fall in it, and its gradient.
struct Branch {
  Tensor branch, gradient;
  Aligned rows, columns;
  const int32_t* below;  // (w of x): columns.below
  const void* share;     // (w of x): columns.share
  const int32_t* first;  // (w + 1): columns.first; for the gradient
  void* partial;         // (tasks, 4, w, padded block): sums that tasks share, as merge_backward writes them
};

// y = activation(x + the branches, up-sampled), or the gradients: dx as y, whose data is null without activation.
struct MergeCall {
  int64_t n, c, h, w;
  Tensor x, grad, y;
  const Branch* branches;
  int64_t count;
  bool gelu;
  Tasks tasks;
};

struct Kernels {
  const char* name;
  int64_t vector_bytes;
  void (*spatial_mean)(const MeanCall&, int64_t begin, int64_t end);
  void (*local_mean)(const LocalMeanCall&, int64_t begin, int64_t end);
  void (*local_mean_backward)(const LocalMeanCall&, int64_t begin, int64_t end);
  void (*forward)(const ForwardCall&, int64_t begin, int64_t end);
  void (*backward)(const BackwardCall&, int64_t begin, int64_t end);
  void (*pool_pyramid)(const PoolCall&, int64_t begin, int64_t end);
  void (*pool_pyramid_backward)(const PoolCall&, int64_t begin, int64_t end);
  void (*merge_pyramid)(const MergeCall&, int64_t begin, int64_t end);
  void (*merge_pyramid_backward)(const MergeCall&, int64_t begin, int64_t end);
  // After all tasks of merge_pyramid_backward: the rows of branches that several of them, or none, added to.
  void (*merge_pyramid_backward_shared)(const MergeCall&, int64_t begin, int64_t end);
};

const Kernels& kernels();

// Choose the instruction set by name ("baseline", "avx2", "avx512"); false if the CPU lacks it.
bool select_kernels(const char* name);

}  // namespace irnext::cpu
