// The geometry of the pyramids: branches of any size up-sampled to one plane, bilinearly, with their corner
// pixels on its corners. Knows nothing of PyTorch.
#pragma once

#include "irnext/geometry.h"

namespace irnext {

// One dimension of an up-sampling. Position p of `large` lies at p * (small - 1) / (large - 1) of `small`, or at 0
// where `large` is 1: between element below(p) and the next one, which has the weight share(p). Integers, so that
// nothing is lost on large planes; sides are below 2^31.
struct Aligned {
  int64_t small, large;

  IRNEXT_HOST_DEVICE int64_t below(int64_t p) const { return large > 1 ? p * (small - 1) / (large - 1) : 0; }
  template <class A>
  IRNEXT_HOST_DEVICE A share(int64_t p) const {
    return large > 1 ? A(p * (small - 1) % (large - 1)) / A(large - 1) : A(0);
  }

  // The first position p with below(p) >= i, or `large` where there is none.
  IRNEXT_HOST_DEVICE int64_t first(int64_t i) const {
    if (i == 0) return 0;
    return i < small && large > 1 ? (i * (large - 1) + small - 2) / (small - 1) : large;
  }

  // The positions that element i has a weight at: from begin up to end, none where they are equal.
  IRNEXT_HOST_DEVICE int64_t begin(int64_t i) const {
    if (i == 0) return 0;
    return large > 1 ? (i - 1) * (large - 1) / (small - 1) + 1 : large;
  }
  IRNEXT_HOST_DEVICE int64_t end(int64_t i) const {
    if (small == 1 || large == 1 || i == small - 1) return large;
    return ((i + 1) * (large - 1) + small - 2) / (small - 1);
  }
  // Its weight at one of them.
  template <class A>
  IRNEXT_HOST_DEVICE A weight(int64_t i, int64_t p) const {
    return below(p) == i ? A(1) - share<A>(p) : share<A>(p);
  }
};

}  // namespace irnext
