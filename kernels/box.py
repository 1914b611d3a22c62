"""local_mean and its adjoint as two passes of running windows, without running sums that drift.

With replicated borders the mean of a window of k is that of the axis continued with period k: moving
the window by one outside the plane drops and adds the same number. The adjoint sums what lies in the
window of a gradient whose replicated border rows were added to the row they repeat.

A program makes B_L neighbouring outputs, B_L <= k, from three parts of their windows: what is left of
the stretch common to all of them (a suffix sum), that stretch (one sum), what is right of it (a prefix
sum). No sum has more than k terms.
"""

import triton
import triton.language as tl


@triton.jit
def border_sum(p_x, first, last, o_v, m_v, s_l, INDEX: tl.constexpr, ACC: tl.constexpr):
    """The sum of rows first .. last - 1."""
    total = tl.zeros(o_v.shape, ACC)
    for i in range(first, last):
        total += tl.load(p_x + o_v + tl.cast(i, INDEX) * s_l, mask=m_v, other=0.0).to(ACC)
    return total


@triton.jit
def load_extended(
    p_x, i, o_v, m_v, head, tail, n_l, n_window, n_before, s_l,
    ADJOINT: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x at indices i of its continuation: periodic, or (adjoint) folded onto the valid positions."""
    if ADJOINT:
        n_valid = n_l - n_window + 1
        m = (i >= 0) & (i < n_valid)
        x = tl.load(p_x + o_v + (i + n_before).to(INDEX) * s_l, mask=m & m_v, other=0.0).to(ACC)
        return x + tl.where(i == 0, head, 0.0) + tl.where(i == n_valid - 1, tail, 0.0)
    else:
        i = tl.where(i < 0, i + n_window, i)
        i = tl.where(i >= n_l, i - n_window, i)
        m = (i >= 0) & (i < n_l)
        return tl.load(p_x + o_v + i.to(INDEX) * s_l, mask=m & m_v, other=0.0).to(ACC)


@triton.jit
def box_pass(
    p_x, p_y,
    n_1, n_v, n_l, n_window,
    s_x0, s_x1, s_xv, s_xl, s_y0, s_y1, s_yv, s_yl,
    AXIS: tl.constexpr, ADJOINT: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_L: tl.constexpr, B_V: tl.constexpr, B_M: tl.constexpr,
):  # fmt: skip
    """y = the mean over a window of n_window along axis l, [B_L outputs x B_V neighbours]."""
    i = tl.program_id(0)
    tiles_l, tiles_v = tl.cdiv(n_l, B_L), tl.cdiv(n_v, B_V)
    i_l, i = i % tiles_l, i // tiles_l
    i_v, i = i % tiles_v, i // tiles_v
    i_1, i_0 = (i % n_1).to(INDEX), (i // n_1).to(INDEX)
    p_x += i_0 * s_x0 + i_1 * s_x1
    p_y += i_0 * s_y0 + i_1 * s_y1
    # Axis l is AXIS of every tile, so that the axis with neighbours in memory can be the last.
    o_l = tl.expand_dims(tl.arange(0, B_L), 1 - AXIS)
    o_m = tl.expand_dims(tl.arange(0, B_M), 1 - AXIS)
    v = tl.expand_dims(i_v * B_V + tl.arange(0, B_V), AXIS)
    m_v = v < n_v
    o_xv = v.to(INDEX) * s_xv
    n_before = (n_window - 1) // 2
    first = i_l * B_L - n_before
    head = tl.zeros(v.shape, ACC)
    tail = tl.zeros(v.shape, ACC)
    if ADJOINT:
        first = i_l * B_L - n_window + 1
        last_valid = n_l - n_window
        if first <= 0:
            head += border_sum(p_x, 0, n_before, o_xv, m_v, s_xl, INDEX, ACC)
        if first + n_window + B_L > last_valid:
            tail += border_sum(p_x, n_before + last_valid + 1, n_l, o_xv, m_v, s_xl, INDEX, ACC)
    left = load_extended(
        p_x, first + o_l, o_xv, m_v, head, tail, n_l, n_window, n_before, s_xl, ADJOINT, INDEX, ACC
    )
    # The last output of the tile has its window one short of the right part's last number.
    right = load_extended(
        p_x, first + n_window + o_l - 1, o_xv, m_v, head, tail, n_l, n_window, n_before, s_xl,
        ADJOINT, INDEX, ACC,
    )  # fmt: skip
    right = tl.where(o_l > 0, right, 0.0)
    common = tl.zeros(v.shape, ACC)
    for start in range(B_L, n_window, B_M):
        middle = load_extended(
            p_x, first + start + o_m, o_xv, m_v, head, tail, n_l, n_window, n_before, s_xl,
            ADJOINT, INDEX, ACC,
        )  # fmt: skip
        inside = start + o_m < n_window
        common += tl.expand_dims(tl.sum(tl.where(inside, middle, 0.0), AXIS), AXIS)
    y = tl.cumsum(left, AXIS, reverse=True) + common + tl.cumsum(right, AXIS)
    i_out = i_l * B_L + o_l
    p_out = p_y + i_out.to(INDEX) * s_yl + v.to(INDEX) * s_yv
    tl.store(p_out, (y / n_window).to(p_y.dtype.element_ty), mask=(i_out < n_l) & m_v)
