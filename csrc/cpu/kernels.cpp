// The kernels for one instruction set: picks the element type and the algorithm.
//
// Two algorithms, chosen by where neighbouring elements lie: along rows (rows.h) or, where a vector can
// hold the same pixel of several channels, along the channels (channels_last.h). Compiled once per
// instruction set: see setup.py.
#include "kernels.h"

#include "channels_last.h"
#include "local_mean.h"
#include "pyramid_merge.h"
#include "pyramid_pool.h"
#include "rows.h"

#ifndef IRNEXT_ISA
#define IRNEXT_ISA baseline
#endif

namespace {

void spatial_mean(const MeanCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? mean_channels_last<T>(call, begin, end) : mean_rows<T>(call, begin, end);
  });
}

template <bool Adjoint>
void local_mean(const LocalMeanCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? local_mean_channels_last<Adjoint, T>(call, begin, end)
                             : local_mean_rows<Adjoint, T>(call, begin, end);
  });
}

void forward(const ForwardCall& call, int64_t begin, int64_t end) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? forward_channels_last<T>(call, begin, end) : forward_rows<T>(call, begin, end);
  });
}

void backward(const BackwardCall& call, int64_t begin, int64_t end) {
  by_type(call.grad.type, [&](auto element) {
    using T = decltype(element);
    call.tasks.channels_last ? backward_channels_last<T>(call, begin, end) : backward_rows<T>(call, begin, end);
  });
}

bool columns_adjacent(const PoolCall& call) {
  bool adjacent = call.x.strides.w == 1;
  for (int64_t l = 0; l < call.count; ++l) adjacent &= call.levels[l].pool.strides.w == 1;
  return adjacent;
}

bool columns_adjacent(const MergeCall& call) {
  bool adjacent = call.x.strides.w == 1;
  for (const Tensor* tensor : {&call.grad, &call.y}) adjacent &= !tensor->data || tensor->strides.w == 1;
  for (int64_t b = 0; b < call.count; ++b)
    adjacent &= !call.branches[b].gradient.data || call.branches[b].gradient.strides.w == 1;
  return adjacent;
}

// Call body with the kind of pixels that the tensors of a pyramid have.
template <class Call, class Body>
void by_pixels(const Call& call, const Body& body) {
  by_type(call.x.type, [&](auto element) {
    using T = decltype(element);
    if (call.tasks.channels_last)
      body(ChannelPixels<T>(call.tasks));
    else if (columns_adjacent(call))
      body(SinglePixels<T, true>());
    else
      body(SinglePixels<T, false>());
  });
}

void pool_pyramid(const PoolCall& call, int64_t begin, int64_t end) {
  by_pixels(call, [&](const auto& pixels) { average_pools(pixels, call, begin, end); });
}

void pool_pyramid_backward(const PoolCall& call, int64_t begin, int64_t end) {
  by_pixels(call, [&](const auto& pixels) { average_pools_adjoint(pixels, call, begin, end); });
}

void merge_pyramid(const MergeCall& call, int64_t begin, int64_t end) {
  by_pixels(call, [&](const auto& pixels) { merge(pixels, call, begin, end); });
}

void merge_pyramid_backward(const MergeCall& call, int64_t begin, int64_t end) {
  by_pixels(call, [&](const auto& pixels) { merge_backward(pixels, call, begin, end); });
}

void merge_pyramid_backward_shared(const MergeCall& call, int64_t begin, int64_t end) {
  by_pixels(call, [&](const auto& pixels) { add_shared_rows(pixels, call, begin, end); });
}

}  // namespace

#define IRNEXT_STRING(name) #name
#define IRNEXT_TABLE(isa) \
  extern const Kernels kernels_##isa; \
  const Kernels kernels_##isa = {IRNEXT_STRING(isa), \
                                 kVectorBytes, \
                                 ::spatial_mean, \
                                 ::local_mean<false>, \
                                 ::local_mean<true>, \
                                 ::forward, \
                                 ::backward, \
                                 ::pool_pyramid, \
                                 ::pool_pyramid_backward, \
                                 ::merge_pyramid, \
                                 ::merge_pyramid_backward, \
                                 ::merge_pyramid_backward_shared};
#define IRNEXT_EXPAND(isa) IRNEXT_TABLE(isa)

namespace irnext::cpu {
IRNEXT_EXPAND(IRNEXT_ISA)
}
