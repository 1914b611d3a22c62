"""The gradients of dynamic_conv2d: sums over planes for the kernel, the transposed filter for x."""

import triton
import triton.language as tl

from .filter import NO_BIAS, bias_tile
from .indexing import (
    REFLECT,
    ZEROS,
    load_inside,
    source_index,
    tile_channels,
    tile_columns,
    tile_rows,
)


@triton.jit
def filter_sums(
    p_u, p_x, p_v, p_partial,
    n_n, n_c, n_h, n_w, dilation, tiles_per_split, n_splits,
    s_un, s_uc, s_uh, s_uw, s_xn, s_xc, s_xh, s_xw, s_vn, s_vc, s_vh, s_vw,
    KW: tl.constexpr, KH: tl.constexpr, FIRST: tl.constexpr, TAPS: tl.constexpr, WITH_V: tl.constexpr,
    PADDING: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """p_partial[split, n, c, t] = sum of u * x shifted by tap FIRST + t; last the sum of u, or of x * v."""
    i = tl.program_id(0)
    i_split, i_plane = i % n_splits, i // n_splits
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_c = tile_channels(i_c, B_C)
    m_c = o_c < n_c
    p_uplane = p_u + i_n.to(INDEX) * s_un + o_c.to(INDEX) * s_uc
    p_xplane = p_x + i_n.to(INDEX) * s_xn + o_c.to(INDEX) * s_xc
    n_tiles = tl.cdiv(n_h, B_H) * tl.cdiv(n_w, B_W)
    totals = (tl.zeros([B_H, B_W, B_C], ACC),) * (TAPS + 1)
    first = i_split * tiles_per_split
    for i_tile in range(first, tl.minimum(first + tiles_per_split, n_tiles)):
        o_h, o_w = tile_rows(i_tile, n_w, B_H, B_W), tile_columns(i_tile, n_w, B_W)
        u = load_inside(p_uplane, o_h, o_w, m_c, n_h, n_w, s_uh, s_uw, INDEX, ACC)
        sums = ()  # grown by +: Triton has no starred expressions
        for t in tl.static_range(TAPS):
            i_h = source_index(o_h + ((FIRST + t) // KW - KH // 2) * dilation, n_h, PADDING)
            i_w = source_index(o_w + ((FIRST + t) % KW - KW // 2) * dilation, n_w, PADDING)
            x = load_inside(p_xplane, i_h, i_w, m_c, n_h, n_w, s_xh, s_xw, INDEX, ACC)
            sums = sums + (totals[t] + u * x,)  # noqa: RUF005
        if WITH_V:
            p_vplane = p_v + i_n.to(INDEX) * s_vn + o_c.to(INDEX) * s_vc
            x = load_inside(p_xplane, o_h, o_w, m_c, n_h, n_w, s_xh, s_xw, INDEX, ACC)
            last = x * load_inside(p_vplane, o_h, o_w, m_c, n_h, n_w, s_vh, s_vw, INDEX, ACC)
        else:
            last = u
        totals = sums + (totals[TAPS] + last,)  # noqa: RUF005
    o = i_c * B_C + tl.arange(0, B_C)
    p_row = p_partial + ((i_split.to(INDEX) * n_n + i_n) * n_c + o) * (TAPS + 1)
    for t in tl.static_range(TAPS + 1):
        tl.store(p_row + t, tl.sum(tl.reshape(totals[t], [B_H * B_W, B_C]), 0), mask=o < n_c)


@triton.jit
def mirrored(o, n, i_step, dilation, TAP: tl.constexpr, PADDING: tl.constexpr):
    """Where u met x's row (or column) o through the border, at tap TAP != 0 rows from the centre.

    Outside [0, n) if nowhere. Reflection shows rows 1, 2, ... a second time outside the plane;
    replication shows the border row once for each row that the tap reaches outside, and
    i_step = 0, 1, ... counts these.
    """
    if PADDING == REFLECT and TAP < 0:
        i = tl.where(o > 0, -o - TAP * dilation, -1)
    elif PADDING == REFLECT:
        i = tl.where(o < n - 1, 2 * (n - 1) - o - TAP * dilation, n)
    elif TAP < 0:
        i = tl.where(o == 0, i_step, -1)
    else:
        i = tl.where(o == n - 1, n - 1 - i_step, n)
    return i


@triton.jit
def mirrored_steps(dilation, TAP: tl.constexpr, PADDING: tl.constexpr):
    """How many sources `mirrored` has for tap TAP."""
    if TAP == 0:
        steps = 0
    elif PADDING == REFLECT:
        steps = 1
    elif TAP < 0:
        steps = -TAP * dilation
    else:
        steps = TAP * dilation
    return steps


@triton.jit
def transposed_row(
    p_u, p_taps, i_h, o_w, dilation, m_c, n_h, n_w, s_h, s_w,
    KW: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, B_H: tl.constexpr, B_W: tl.constexpr,
    B_C: tl.constexpr,
):  # fmt: skip
    """A row of taps over u in rows i_h, at the columns that met columns o_w inside the plane."""
    dx = tl.zeros([B_H, B_W, B_C], ACC)
    for k_w in tl.static_range(KW):
        weight = tl.load(p_taps + k_w, mask=m_c, other=0.0).to(ACC)
        i_w = o_w - (k_w - KW // 2) * dilation
        dx += weight * load_inside(p_u, i_h, i_w, m_c, n_h, n_w, s_h, s_w, INDEX, ACC)
    return dx


@triton.jit
def transposed_row_mirrored(
    p_u, p_taps, i_h, o_w, dilation, m_c, n_h, n_w, s_h, s_w,
    KW: tl.constexpr, PADDING: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """The same at the columns that met columns o_w through the left or right border."""
    dx = tl.zeros([B_H, B_W, B_C], ACC)
    for k_w in tl.static_range(KW):
        weight = tl.load(p_taps + k_w, mask=m_c, other=0.0).to(ACC)
        for i_step in range(mirrored_steps(dilation, k_w - KW // 2, PADDING)):
            i_w = mirrored(o_w, n_w, i_step, dilation, k_w - KW // 2, PADDING)
            dx += weight * load_inside(p_u, i_h, i_w, m_c, n_h, n_w, s_h, s_w, INDEX, ACC)
    return dx


@triton.jit
def filter_transposed(
    p_u, p_kernel, p_bias, p_scale, p_plane, p_dx,
    n_c, n_h, n_w, n_groups, dilation,
    s_un, s_uc, s_uh, s_uw, s_bn, s_bc, s_bh, s_bw, s_yn, s_yc, s_yh, s_yw,
    KH: tl.constexpr, KW: tl.constexpr, PADDING: tl.constexpr, BIAS: tl.constexpr, PLANE: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """dx = transposed filter of u, the border folded back, + a number per plane + a scaled tensor."""
    i = tl.program_id(0)
    n_tiles = tl.cdiv(n_h, B_H) * tl.cdiv(n_w, B_W)
    i_tile, i_plane = i % n_tiles, i // n_tiles
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_h, o_w = tile_rows(i_tile, n_w, B_H, B_W), tile_columns(i_tile, n_w, B_W)
    o_c = tile_channels(i_c, B_C)
    m_c = o_c < n_c
    p_uplane = p_u + i_n.to(INDEX) * s_un + o_c.to(INDEX) * s_uc
    p_taps = p_kernel + (i_n.to(INDEX) * n_groups + o_c // (n_c // n_groups)) * (KH * KW)
    dx = tl.zeros([B_H, B_W, B_C], ACC)
    for k_h in tl.static_range(KH):
        dx += transposed_row(
            p_uplane, p_taps + k_h * KW, o_h - (k_h - KH // 2) * dilation, o_w, dilation,
            m_c, n_h, n_w, s_uh, s_uw, KW, INDEX, ACC, B_H, B_W, B_C,
        )  # fmt: skip
    # Only tiles that touch a border pay for folding it.
    if PADDING != ZEROS and KW > 1:
        first = (i_tile % tl.cdiv(n_w, B_W)) * B_W
        if (first <= KW // 2 * dilation) | (first + B_W >= n_w - KW // 2 * dilation):
            for k_h in tl.static_range(KH):
                dx += transposed_row_mirrored(
                    p_uplane, p_taps + k_h * KW, o_h - (k_h - KH // 2) * dilation, o_w, dilation,
                    m_c, n_h, n_w, s_uh, s_uw, KW, PADDING, INDEX, ACC, B_H, B_W, B_C,
                )  # fmt: skip
    if PADDING != ZEROS and KH > 1:
        first = (i_tile // tl.cdiv(n_w, B_W)) * B_H
        if (first <= KH // 2 * dilation) | (first + B_H >= n_h - KH // 2 * dilation):
            for k_h in tl.static_range(KH):
                for i_step in range(mirrored_steps(dilation, k_h - KH // 2, PADDING)):
                    i_h = mirrored(o_h, n_h, i_step, dilation, k_h - KH // 2, PADDING)
                    dx += transposed_row(
                        p_uplane, p_taps + k_h * KW, i_h, o_w, dilation,
                        m_c, n_h, n_w, s_uh, s_uw, KW, INDEX, ACC, B_H, B_W, B_C,
                    )  # fmt: skip
                    dx += transposed_row_mirrored(
                        p_uplane, p_taps + k_h * KW, i_h, o_w, dilation,
                        m_c, n_h, n_w, s_uh, s_uw, KW, PADDING, INDEX, ACC, B_H, B_W, B_C,
                    )  # fmt: skip
    if PLANE:
        dx += tl.load(p_plane + i_n.to(INDEX) * n_c + o_c, mask=m_c, other=0.0)
    if BIAS != NO_BIAS:
        dx += bias_tile(
            p_bias, p_scale, i_n, o_c, o_h, o_w, n_c, n_h, n_w, s_bn, s_bc, s_bh, s_bw, BIAS, INDEX, ACC
        )
    p_out = p_dx + i_n.to(INDEX) * s_yn + o_c.to(INDEX) * s_yc
    p_out += o_h.to(INDEX) * s_yh + o_w.to(INDEX) * s_yw
    tl.store(p_out, dx.to(p_dx.dtype.element_ty), mask=(o_h < n_h) & (o_w < n_w) & m_c)
