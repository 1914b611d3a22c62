// The kernels for one instruction set: picks the element type and the algorithm.
//
// Two algorithms, chosen by where neighbouring elements lie: along rows (rows.h) or, where a vector can
// hold the same pixel of several channels, along the channels (channels_last.h). Compiled once per
// instruction set: see setup.py.
#include "kernels.h"

#include "channels_last.h"
#include "local_mean.h"
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

}  // namespace

#define IRNEXT_STRING(name) #name
#define IRNEXT_TABLE(isa) \
  extern const Kernels kernels_##isa; \
  const Kernels kernels_##isa = {IRNEXT_STRING(isa),    kVectorBytes, ::spatial_mean, ::local_mean<false>, \
                                 ::local_mean<true>, ::forward,    ::backward};
#define IRNEXT_EXPAND(isa) IRNEXT_TABLE(isa)

namespace irnext::cpu {
IRNEXT_EXPAND(IRNEXT_ISA)
}
