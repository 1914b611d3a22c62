"""Sums over planes in two stages of fixed order: partial sums per program, then their sum."""

import triton
import triton.language as tl

from .indexing import load_inside, tile_channels, tile_columns, tile_rows


@triton.jit
def plane_sums(
    p_x, p_partial,
    n_n, n_c, n_h, n_w, tiles_per_split, n_splits,
    s_n, s_c, s_h, s_w,
    INDEX: tl.constexpr, ACC: tl.constexpr, B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """p_partial[split, n, c] = sum of x over the tiles of one split of the plane."""
    i = tl.program_id(0)
    i_split, i_plane = i % n_splits, i // n_splits
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_c = tile_channels(i_c, B_C)
    p_plane = p_x + i_n.to(INDEX) * s_n + o_c.to(INDEX) * s_c
    n_tiles = tl.cdiv(n_h, B_H) * tl.cdiv(n_w, B_W)
    total = tl.zeros([B_H, B_W, B_C], ACC)
    first = i_split * tiles_per_split
    for i_tile in range(first, tl.minimum(first + tiles_per_split, n_tiles)):
        o_h, o_w = tile_rows(i_tile, n_w, B_H, B_W), tile_columns(i_tile, n_w, B_W)
        total += load_inside(p_plane, o_h, o_w, o_c < n_c, n_h, n_w, s_h, s_w, INDEX, ACC)
    sums = tl.sum(tl.reshape(total, [B_H * B_W, B_C]), 0)
    o = i_c * B_C + tl.arange(0, B_C)
    i_row = i_split.to(INDEX) * n_n + i_n
    tl.store(p_partial + i_row * n_c + o, sums, mask=o < n_c)


@triton.jit
def sum_splits(
    p_partial, p_out,
    n_out, n_splits, s_out, first, divisor,
    INDEX: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """p_out[i] = sum over splits of p_partial[split, i, first] / divisor, with rows of s_out numbers."""
    o = tl.program_id(0).to(INDEX) * B + tl.arange(0, B)
    m = o < n_out
    total = tl.zeros([B], ACC)
    for i_split in range(n_splits):
        total += tl.load(p_partial + (i_split * tl.cast(n_out, INDEX) + o) * s_out + first, mask=m, other=0.0)
    tl.store(p_out + o, total / divisor, mask=m)


@triton.jit
def sum_groups(
    p_partial, p_out,
    n_n, n_c, n_groups, n_splits, s_row, first,
    TAPS: tl.constexpr, ALL_TAPS: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_K: tl.constexpr, B_T: tl.constexpr,
):  # fmt: skip
    """p_out[n, g, first + t] = sum over splits and the channels of g of p_partial[split, n, c, t]."""
    i_row = tl.program_id(0)
    i_n, i_g = i_row // n_groups, i_row % n_groups
    n_shared = n_c // n_groups
    o_t, o_k = tl.arange(0, B_T)[None, :], tl.arange(0, B_K)[:, None]
    total = tl.zeros([B_K, B_T], ACC)
    for start in range(0, n_splits * n_shared, B_K):
        k = start + o_k
        i_split, i_c = k // n_shared, i_g * n_shared + k % n_shared
        offsets = ((i_split.to(INDEX) * n_n + i_n) * n_c + i_c) * s_row + o_t
        m = (k < n_splits * n_shared) & (o_t < TAPS)
        total += tl.load(p_partial + offsets, mask=m, other=0.0)
    o = tl.arange(0, B_T)
    tl.store(p_out + i_row.to(INDEX) * ALL_TAPS + first + o, tl.sum(total, 0), mask=o < TAPS)
