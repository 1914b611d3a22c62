"""dynamic_conv2d: every sample filtered with kernels of its own."""

import triton
import triton.language as tl

from .indexing import load_inside, source_index, tile_channels, tile_columns, tile_rows

NO_BIAS = tl.constexpr(0)
PLANE_BIAS = tl.constexpr(1)
PIXEL_BIAS = tl.constexpr(2)
SCALED_BIAS = tl.constexpr(3)


@triton.jit
def bias_tile(
    p_bias, p_scale, i_n, o_c, o_h, o_w, n_c, n_h, n_w, s_n, s_c, s_h, s_w,
    BIAS: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What is added to a tile: a number per plane, a number per pixel, or the latter times the former."""
    m_c = o_c < n_c
    o_plane = i_n.to(INDEX) * n_c + o_c
    if BIAS == PLANE_BIAS:
        bias = tl.load(p_bias + o_plane, mask=m_c, other=0.0).to(ACC)
    else:
        p_plane = p_bias + i_n.to(INDEX) * s_n + o_c.to(INDEX) * s_c
        bias = load_inside(p_plane, o_h, o_w, m_c, n_h, n_w, s_h, s_w, INDEX, ACC)
        if BIAS == SCALED_BIAS:
            bias *= tl.load(p_scale + o_plane, mask=m_c, other=0.0)
    return bias


@triton.jit
def filter_planes(
    p_x, p_kernel, p_bias, p_scale, p_y,
    n_c, n_h, n_w, n_groups, dilation,
    s_xn, s_xc, s_xh, s_xw, s_bn, s_bc, s_bh, s_bw, s_yn, s_yc, s_yh, s_yw,
    KH: tl.constexpr, KW: tl.constexpr, PADDING: tl.constexpr, BIAS: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """y = sum over taps of kernel[n, g, tap] * shifted x + bias, one tile per program."""
    i = tl.program_id(0)
    n_tiles = tl.cdiv(n_h, B_H) * tl.cdiv(n_w, B_W)
    i_tile, i_plane = i % n_tiles, i // n_tiles
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_h, o_w = tile_rows(i_tile, n_w, B_H, B_W), tile_columns(i_tile, n_w, B_W)
    o_c = tile_channels(i_c, B_C)
    m_c = o_c < n_c
    p_plane = p_x + i_n.to(INDEX) * s_xn + o_c.to(INDEX) * s_xc
    p_taps = p_kernel + (i_n.to(INDEX) * n_groups + o_c // (n_c // n_groups)) * (KH * KW)
    y = tl.zeros([B_H, B_W, B_C], ACC)
    for k_h in tl.static_range(KH):
        i_h = source_index(o_h + (k_h - KH // 2) * dilation, n_h, PADDING)
        for k_w in tl.static_range(KW):
            i_w = source_index(o_w + (k_w - KW // 2) * dilation, n_w, PADDING)
            weight = tl.load(p_taps + (k_h * KW + k_w), mask=m_c, other=0.0).to(ACC)
            y += weight * load_inside(p_plane, i_h, i_w, m_c, n_h, n_w, s_xh, s_xw, INDEX, ACC)
    if BIAS != NO_BIAS:
        y += bias_tile(
            p_bias, p_scale, i_n, o_c, o_h, o_w, n_c, n_h, n_w, s_bn, s_bc, s_bh, s_bw, BIAS, INDEX, ACC
        )
    p_out = p_y + i_n.to(INDEX) * s_yn + o_c.to(INDEX) * s_yc
    p_out += o_h.to(INDEX) * s_yh + o_w.to(INDEX) * s_yw
    tl.store(p_out, y.to(p_y.dtype.element_ty), mask=(o_h < n_h) & (o_w < n_w) & m_c)
