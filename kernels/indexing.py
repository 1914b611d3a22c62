"""What all kernels over planes share: where a tile lies, and what the border shows.

A tile is (rows, columns, channels) of one sample, [B_H, B_W, B_C]; either its columns or its channels
are neighbours in memory, and strides say which, so one kernel serves every layout.
Names: p_ pointer, b_ block, o_ offsets, m_ mask, i_ index, n_ size, s_ stride.
"""

import triton
import triton.language as tl

REFLECT = tl.constexpr(0)
ZEROS = tl.constexpr(1)
REPLICATE = tl.constexpr(2)
PADDINGS = {"reflect": 0, "zeros": 1, "replicate": 2}


@triton.jit
def tile_rows(i_tile, n_w, B_H: tl.constexpr, B_W: tl.constexpr):
    """The rows [B_H, 1, 1] of tile i_tile of a plane, numbered row by row."""
    return (i_tile // tl.cdiv(n_w, B_W)) * B_H + tl.arange(0, B_H)[:, None, None]


@triton.jit
def tile_columns(i_tile, n_w, B_W: tl.constexpr):
    """The columns [1, B_W, 1] of tile i_tile of a plane."""
    return (i_tile % tl.cdiv(n_w, B_W)) * B_W + tl.arange(0, B_W)[None, :, None]


@triton.jit
def tile_channels(i_tile, B_C: tl.constexpr):
    """The channels [1, 1, B_C] of channel tile i_tile."""
    return i_tile * B_C + tl.arange(0, B_C)[None, None, :]


@triton.jit
def source_index(i, n, PADDING: tl.constexpr):
    """The row or column that index i of the extended plane shows; outside [0, n) where that is zero."""
    if PADDING == REFLECT:
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= n, 2 * (n - 1) - i, i)
    elif PADDING == REPLICATE:
        i = tl.minimum(tl.maximum(i, 0), n - 1)
    return i


@triton.jit
def load_inside(p, i_h, i_w, m_c, n_h, n_w, s_h, s_w, INDEX: tl.constexpr, ACC: tl.constexpr):
    """Values at rows i_h and columns i_w of the planes at p [1, 1, B_C], zero outside them."""
    m = (i_h >= 0) & (i_h < n_h) & (i_w >= 0) & (i_w < n_w) & m_c
    return tl.load(p + i_h.to(INDEX) * s_h + i_w.to(INDEX) * s_w, mask=m, other=0.0).to(ACC)
