// The geometry of local means: a window that fits into the plane, and the border that repeats the
// outermost means. Knows nothing of PyTorch.
#pragma once

#include "irnext/geometry.h"

namespace irnext {

// Rows and columns of a window, no larger than the plane; none where the mean is the whole plane's.
struct Window {
  int64_t rows = 0, columns = 0;
  IRNEXT_HOST_DEVICE explicit operator bool() const { return rows > 0; }
};

// One dimension of a local mean: `width` neighbours fit at `valid()` places of `size`, and the places
// before and after show the first and the last of these.
struct Box {
  int64_t size, width;

  IRNEXT_HOST_DEVICE int64_t valid() const { return size - width + 1; }
  IRNEXT_HOST_DEVICE int64_t before() const { return (width - 1) / 2; }
  // The valid place that position p shows; it covers positions valid_place(p) ... + width - 1.
  IRNEXT_HOST_DEVICE int64_t valid_place(int64_t p) const {
    const int64_t place = p - before(), last = valid() - 1;
    return place < 0 ? 0 : place > last ? last : place;
  }
  // The positions that show a valid place, for the adjoint: from begin up to end.
  IRNEXT_HOST_DEVICE int64_t shown_begin(int64_t place) const { return place == 0 ? 0 : place + before(); }
  IRNEXT_HOST_DEVICE int64_t shown_end(int64_t place) const {
    return place == valid() - 1 ? size : place + before() + 1;
  }
};

}  // namespace irnext
