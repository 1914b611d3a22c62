"""The running statistics of a batch normalisation, updated in one launch."""

import triton
import triton.language as tl


@triton.jit
def update_running_statistics(
    p_running_mean, p_running_var, p_batches, p_mean, p_var,
    n, count,
    MOMENTUM: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """running += factor * (batch's - running), the factor MOMENTUM, or 1 / batches where that is None.

    One program, so that every update reads the number of batches before it is written.
    """
    batches = tl.load(p_batches) + 1
    factor = 1 / batches.to(ACC) if MOMENTUM is None else MOMENTUM
    unbiased = tl.cast(count, ACC) / tl.cast(count - 1, ACC)
    for start in range(0, n, B):
        o = start + tl.arange(0, B)
        m = o < n
        running = tl.load(p_running_mean + o, mask=m, other=0.0)
        running += factor * (tl.load(p_mean + o, mask=m, other=0.0) - running)
        tl.store(p_running_mean + o, running, mask=m)
        running = tl.load(p_running_var + o, mask=m, other=0.0)
        running += factor * (unbiased * tl.load(p_var + o, mask=m, other=0.0) - running)
        tl.store(p_running_var + o, running, mask=m)
    tl.debug_barrier()
    tl.store(p_batches, batches)
