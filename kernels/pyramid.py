"""pool_pyramid, merge_pyramid and their gradients: planes at several sizes, each read and written once.

Average pools of rates 2, 4 and 8 come from one read of x, coarse sums from finer ones. The merge keeps,
of every branch, the two rows around the current one, already stretched to x's width, while a program
walks down its tile: a branch at a rate-th of x's size is read about four times in rate rows, not four
times in each. Its gradient gathers, first along rows and then along columns, so no two programs add to
one number. Positions are quotients of integers, exact in planes of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configuration import choose, layout_of, power_of_two
from .gelu import gelu, gelu_derivative
from .indexing import load_inside, tile_channels, tile_columns, tile_rows
from .launch import LARGEST_INT32, cdiv, count_tiles, launch, number_types, tile_of, wide_dtype

LARGEST_WINDOW = 8  # the sums of larger windows would fill the registers of a thread


# ---- average pools -------------------------------------------------------------------------------


@triton.jit
def store_means(
    p, sums, i_n, i_h, i_w, o_c, n_c, n_h, n_w, RATE, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr
):
    """Write the means of windows (i_h, i_w) to a dense tensor (N, n_c, n_h, n_w)."""
    m = (i_h < n_h) & (i_w < n_w) & (o_c < n_c)
    if CHANNELS_LAST:
        o = ((i_n.to(INDEX) * n_h + i_h) * n_w + i_w) * n_c + o_c
    else:
        o = ((i_n.to(INDEX) * n_c + o_c) * n_h + i_h) * n_w + i_w
    tl.store(p + o, (sums / (RATE * RATE)).to(p.dtype.element_ty), mask=m)


@triton.jit
def window_sums(
    p_x, outputs, i_n, i_h, i_w, o_c, n_c, n_h, n_w, s_h, s_w,
    RATE: tl.constexpr, RATES: tl.constexpr, CHANNELS_LAST: tl.constexpr, JOINED: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, B_W: tl.constexpr,
):  # fmt: skip
    """The sums over windows of RATE x RATE, made of the sums over their quarters; writes the means.

    The windows are in rows i_h [B_P, 1, 1] and columns i_w [1, B_Q, 1]. JOINED, they are all that
    begin in the B_W pixels from i_w on: sums over pairs of neighbours stay in a thread, which reads
    several. RATES has the bits of the rates to write.
    """
    o_w = i_w // RATE + tl.arange(0, B_W // RATE)[None, :, None] if JOINED else i_w
    if RATE == 1:
        sums = load_inside(p_x, i_h, o_w, o_c < n_c, n_h, n_w, s_h, s_w, INDEX, ACC)
    else:
        for k in tl.static_range(2):
            row = window_sums(
                p_x, outputs, i_n, 2 * i_h + k, i_w if JOINED else 2 * i_w, o_c, n_c, n_h, n_w, s_h, s_w,
                RATE // 2, RATES, CHANNELS_LAST, JOINED, INDEX, ACC, B_W,
            )  # fmt: skip
            if not JOINED:
                row += window_sums(
                    p_x, outputs, i_n, 2 * i_h + k, 2 * i_w + 1, o_c, n_c, n_h, n_w, s_h, s_w,
                    RATE // 2, RATES, CHANNELS_LAST, JOINED, INDEX, ACC, B_W,
                )  # fmt: skip
            sums = row if k == 0 else sums + row
        if JOINED:
            sums = tl.sum(tl.reshape(sums, [sums.shape[0], B_W // RATE, 2, 1]), 2)
        if RATES & RATE:
            store_means(
                outputs[RATE // 4], sums, i_n, i_h, o_w, o_c, n_c, n_h // RATE, n_w // RATE,
                RATE, CHANNELS_LAST, INDEX,
            )  # fmt: skip
    return sums


@triton.jit
def pool_windows(
    p_x, outputs,
    n_c, n_h, n_w, s_n, s_c, s_h, s_w,
    RATE: tl.constexpr, RATES: tl.constexpr, CHANNELS_LAST: tl.constexpr, JOINED: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """outputs[k] = the means of x over windows of 2^(k + 1), where RATES has that bit; RATE is the largest.

    A program has B_H x B_W of the largest windows.
    """
    i = tl.program_id(0)
    tiles_w = tl.cdiv(n_w, B_W * RATE)
    n_tiles = tl.cdiv(n_h, B_H * RATE) * tiles_w
    i_tile, i_plane = i % n_tiles, i // n_tiles
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_c = tile_channels(i_c, B_C)
    i_h = (i_tile // tiles_w) * B_H + tl.arange(0, B_H)[:, None, None]
    i_w = (i_tile % tiles_w) * B_W
    i_w = i_w * RATE if JOINED else i_w + tl.arange(0, B_W)[None, :, None]
    window_sums(
        p_x + i_n.to(INDEX) * s_n + o_c.to(INDEX) * s_c, outputs, i_n, i_h, i_w, o_c,
        n_c, n_h, n_w, s_h, s_w, RATE, RATES, CHANNELS_LAST, JOINED, INDEX, ACC, B_W * RATE,
    )  # fmt: skip


@triton.jit
def pool_planes(
    p_x, p_y,
    n_c, n_h, n_w, rate, s_n, s_c, s_h, s_w,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """y (N, n_c, n_h, n_w) = the means of x over windows of rate x rate, any rate."""
    i = tl.program_id(0)
    n_tiles = tl.cdiv(n_h, B_H) * tl.cdiv(n_w, B_W)
    i_tile, i_plane = i % n_tiles, i // n_tiles
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_h, o_w = tile_rows(i_tile, n_w, B_H, B_W), tile_columns(i_tile, n_w, B_W)
    o_c = tile_channels(i_c, B_C)
    p_plane = p_x + i_n.to(INDEX) * s_n + o_c.to(INDEX) * s_c
    sums = tl.zeros([B_H, B_W, B_C], ACC)
    for k_h in range(rate):
        for k_w in range(rate):
            # Windows outside y are not stored, and all others lie within x.
            i_h, i_w = o_h * rate + k_h, o_w * rate + k_w
            sums += load_inside(p_plane, i_h, i_w, o_c < n_c, n_h * rate, n_w * rate, s_h, s_w, INDEX, ACC)
    store_means(p_y, sums, i_n, o_h, o_w, o_c, n_c, n_h, n_w, rate, CHANNELS_LAST, INDEX)


@triton.jit
def spread_pools(
    p_dx, pools,
    n_c, n_h, n_w, s_n, s_c, s_h, s_w,
    INDEX: tl.constexpr, ACC: tl.constexpr, B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """dx = the sum of the pools' gradients / rate^2, each spread over its windows.

    A pool is its gradient's pointer, its rate and its strides.
    """
    i = tl.program_id(0)
    n_tiles = tl.cdiv(n_h, B_H) * tl.cdiv(n_w, B_W)
    i_tile, i_plane = i % n_tiles, i // n_tiles
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_h, o_w = tile_rows(i_tile, n_w, B_H, B_W), tile_columns(i_tile, n_w, B_W)
    o_c = tile_channels(i_c, B_C)
    dx = tl.zeros([B_H, B_W, B_C], ACC)
    for k in tl.static_range(len(pools)):
        p, rate, s_pn, s_pc, s_ph, s_pw = pools[k]
        p_plane = p + i_n.to(INDEX) * s_pn + o_c.to(INDEX) * s_pc
        mean = load_inside(
            p_plane, o_h // rate, o_w // rate, o_c < n_c, n_h // rate, n_w // rate, s_ph, s_pw, INDEX, ACC
        )
        dx += mean / tl.cast(rate * rate, ACC)
    p_out = p_dx + i_n.to(INDEX) * s_n + o_c.to(INDEX) * s_c
    p_out += o_h.to(INDEX) * s_h + o_w.to(INDEX) * s_w
    tl.store(p_out, dx.to(p_dx.dtype.element_ty), mask=(o_h < n_h) & (o_w < n_w) & (o_c < n_c))


# ---- the merge -----------------------------------------------------------------------------------


@triton.jit
def stretched_position(i, n_from, n_to, INDEX: tl.constexpr, ACC: tl.constexpr):
    """Where i of n_to lies among n_from, first on first and last on last: the one before, and how far on."""
    steps = tl.maximum(n_to - 1, 1)
    i = tl.cast(i, INDEX) * (n_from - 1)
    return i // steps, (i % steps).to(ACC) / tl.cast(steps, ACC)


@triton.jit
def stretched_row(p_row, o_left, o_right, t, m, ACC: tl.constexpr):
    """A row of a branch at x's columns."""
    left = tl.load(p_row + o_left, mask=m, other=0.0).to(ACC)
    right = tl.load(p_row + o_right, mask=m, other=0.0).to(ACC)
    return (1 - t) * left + t * right


@triton.jit
def rows_around(held, upper, lower, i_h, n_h, s_h, p_plane, o_left, o_right, t, m, ACC: tl.constexpr):
    """Stretched rows i_h and i_h + 1 of a branch; those at hand, if `held` is i_h."""
    if i_h != held:
        upper = stretched_row(p_plane + i_h * s_h, o_left, o_right, t, m, ACC)
        lower = stretched_row(p_plane + tl.minimum(i_h + 1, n_h - 1) * s_h, o_left, o_right, t, m, ACC)
    return upper, lower


@triton.jit
def merge_planes(
    p_x, p_grad, p_y, branches,
    n_c, n_h, n_w,
    s_xn, s_xc, s_xh, s_xw, s_gn, s_gc, s_gh, s_gw, s_yn, s_yc, s_yh, s_yw,
    GELU: tl.constexpr, GRADIENT: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr,
):  # fmt: skip
    """y = GELU(x + the branches stretched to x's size), without GELU, or grad times GELU's derivative.

    A branch is its pointer, its rows and columns, and its strides.
    """
    i = tl.program_id(0)
    tiles_w = tl.cdiv(n_w, B_W)
    n_tiles = tl.cdiv(n_h, B_H) * tiles_w
    i_tile, i_plane = i % n_tiles, i // n_tiles
    i_c, i_n = i_plane % tl.cdiv(n_c, B_C), i_plane // tl.cdiv(n_c, B_C)
    o_w = (i_tile % tiles_w) * B_W + tl.arange(0, B_W)[:, None]
    o_c = i_c * B_C + tl.arange(0, B_C)[None, :]
    m = (o_w < n_w) & (o_c < n_c)
    p_x += i_n.to(INDEX) * s_xn + o_c.to(INDEX) * s_xc + o_w.to(INDEX) * s_xw
    p_grad += i_n.to(INDEX) * s_gn + o_c.to(INDEX) * s_gc + o_w.to(INDEX) * s_gw
    p_y += i_n.to(INDEX) * s_yn + o_c.to(INDEX) * s_yc + o_w.to(INDEX) * s_yw

    # Of every branch: where its columns are, and the rows at hand. (Grown by +: Triton has no lists.)
    planes, lefts, rights, shares = (), (), (), ()
    held, uppers, lowers = (), (), ()
    for k in tl.static_range(len(branches)):
        p, _, n_bw, s_bn, s_bc, _, s_bw = branches[k]
        i_w, t = stretched_position(o_w, n_bw, n_w, INDEX, ACC)
        planes = planes + (p + i_n.to(INDEX) * s_bn + o_c.to(INDEX) * s_bc,)  # noqa: RUF005
        lefts = lefts + (i_w * s_bw,)  # noqa: RUF005
        rights = rights + (tl.minimum(i_w + 1, n_bw - 1) * s_bw,)  # noqa: RUF005
        shares = shares + (t,)  # noqa: RUF005
        held = held + (tl.cast(-1, INDEX),)  # noqa: RUF005
        uppers = uppers + (tl.zeros([B_W, B_C], ACC),)  # noqa: RUF005
        lowers = lowers + (tl.zeros([B_W, B_C], ACC),)  # noqa: RUF005

    first = (i_tile // tiles_w) * B_H
    for o_h in range(first, tl.minimum(first + B_H, n_h)):
        total = tl.load(p_x + tl.cast(o_h, INDEX) * s_xh, mask=m, other=0.0).to(ACC)
        if GRADIENT:
            grad = tl.load(p_grad + tl.cast(o_h, INDEX) * s_gh, mask=m, other=0.0).to(ACC)
        rows, above, below = (), (), ()
        for k in tl.static_range(len(branches)):
            n_bh, s_bh = branches[k][1], branches[k][5]
            i_h, share = stretched_position(o_h, n_bh, n_h, INDEX, ACC)
            upper, lower = rows_around(
                held[k], uppers[k], lowers[k], i_h, n_bh, s_bh, planes[k], lefts[k], rights[k], shares[k],
                m, ACC,
            )  # fmt: skip
            total += (1 - share) * upper + share * lower
            rows = rows + (i_h,)  # noqa: RUF005
            above, below = above + (upper,), below + (lower,)  # noqa: RUF005
        held, uppers, lowers = rows, above, below
        if GRADIENT:
            y = grad * gelu_derivative(total)
        elif GELU:
            y = gelu(total)
        else:
            y = total
        tl.store(p_y + tl.cast(o_h, INDEX) * s_yh, y.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def stretch_adjoint(
    p_u, p_d,
    n_1, n_v, n_l, n_b, n_taps,
    s_u0, s_u1, s_uv, s_ul, s_d0, s_d1, s_dv, s_dl,
    AXIS: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, B_B: tl.constexpr, B_V: tl.constexpr,
):  # fmt: skip
    """d = the adjoint, applied to u, of stretching n_b numbers to n_l along axis l.

    Number j gets max(0, 1 - |l (n_b - 1) / (n_l - 1) - j|) of u at every l; n_taps of these, from the
    first on, may be more than zero.
    """
    i = tl.program_id(0)
    tiles_b, tiles_v = tl.cdiv(n_b, B_B), tl.cdiv(n_v, B_V)
    i_b, i = i % tiles_b, i // tiles_b
    i_v, i = i % tiles_v, i // tiles_v
    i_1, i_0 = (i % n_1).to(INDEX), (i // n_1).to(INDEX)
    # Axis l is AXIS of every tile, so that the axis with neighbours in memory can be the last.
    j = (i_b * B_B + tl.expand_dims(tl.arange(0, B_B), 1 - AXIS)).to(INDEX)
    v = i_v * B_V + tl.expand_dims(tl.arange(0, B_V), AXIS)
    m = (j < n_b) & (v < n_v)
    p_u += i_0 * s_u0 + i_1 * s_u1 + v.to(INDEX) * s_uv
    p_d += i_0 * s_d0 + i_1 * s_d1 + v.to(INDEX) * s_dv + j * s_dl
    steps = tl.maximum(n_l - 1, 1)
    first = tl.where(j > 0, (j - 1) * steps // tl.maximum(n_b - 1, 1) + 1, 0)
    d = tl.zeros(m.shape, ACC)
    for tap in range(n_taps):
        i_l = first + tap
        weight = tl.maximum(steps - tl.abs(i_l * (n_b - 1) - j * steps), 0).to(ACC) / tl.cast(steps, ACC)
        d += weight * tl.load(p_u + i_l * s_ul, mask=m & (i_l < n_l), other=0.0).to(ACC)
    tl.store(p_d, d.to(p_d.dtype.element_ty), mask=m)


# ---- launches ------------------------------------------------------------------------------------


def _is_channels_last(x: Tensor) -> bool:
    """Whether dense tensors made of x are channels_last: its channels lie side by side."""
    return x.shape[1] > 1 and x.stride(1) == 1


def _empty_plane(x: Tensor, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """A dense tensor of x's samples and channels, in x's type if no other is given."""
    layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    size = (*x.shape[:2], height, width)
    return torch.empty(size, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def _pool_windows(x: Tensor, pools: dict[int, Tensor]) -> None:
    """Write the pools of x, whose rates are 2, 4 or 8, in one read of x."""
    largest = max(pools)
    config = choose("pool_pyramid", x)
    n, c, h, w = x.shape
    joined = layout_of(x) == "rows"
    # The tile is meant for the largest windows; of smaller ones a thread takes as many, or as wide a row.
    rows = max(config.rows // LARGEST_WINDOW, 1)
    columns = max(config.columns // (largest if joined else LARGEST_WINDOW), 1)
    outputs = tuple(pools.get(2 ** (k + 1), x) for k in range(largest.bit_length() - 1))
    launch(
        pool_windows,
        n * cdiv(c, config.channels) * cdiv(h, rows * largest) * cdiv(w, columns * largest),
        x, outputs, *x.shape[1:], *x.stride(),
        RATE=largest, RATES=sum(pools), CHANNELS_LAST=_is_channels_last(x),
        JOINED=joined,
        **number_types(x, *pools.values()),
        **(tile_of(config) | {"B_H": rows, "B_W": columns}),
    )  # fmt: skip


def pool_pyramid(x: Tensor, rates: Sequence[int]) -> list[Tensor]:
    """See `irnext.ops.pool_pyramid`."""
    if any(rate < 1 for rate in rates):
        raise RuntimeError(f"rates are {tuple(rates)}: they must be at least 1")
    pools = [_empty_plane(x, x.shape[2] // rate, x.shape[3] // rate) for rate in rates]
    together = {}
    for rate, pool in zip(rates, pools, strict=True):
        if rate in (2, 4, LARGEST_WINDOW) and rate not in together and pool.numel():
            together[rate] = pool
            continue
        config = choose("pool", pool)
        tiles, planes = count_tiles(pool, config)
        launch(
            pool_planes,
            tiles * planes,
            x, pool, *pool.shape[1:], rate, *x.stride(),
            CHANNELS_LAST=_is_channels_last(x), **number_types(x, pool), **tile_of(config),
        )  # fmt: skip
    if together:
        _pool_windows(x, together)
    return pools


def pool_pyramid_backward(grads: list[Tensor], rates: Sequence[int], size: Sequence[int]) -> Tensor:
    """The adjoint of `pool_pyramid` for a plane of `size` (rows, columns)."""
    for grad, rate in zip(grads, rates, strict=True):
        expected = (*grads[0].shape[:2], size[0] // rate, size[1] // rate)
        if tuple(grad.shape) != expected:
            raise RuntimeError(f"a gradient has shape {tuple(grad.shape)}: for rate {rate} it is {expected}")
    dx = _empty_plane(grads[0], *size)
    config = choose("pool", dx)
    tiles, planes = count_tiles(dx, config)
    pools = tuple((grad, rate, *grad.stride()) for grad, rate in zip(grads, rates, strict=True))
    launch(
        spread_pools,
        tiles * planes,
        dx, pools, *dx.shape[1:], *dx.stride(), **number_types(dx, *grads), **tile_of(config),
    )  # fmt: skip
    return dx


def _check_merge(x: Tensor, branches: Sequence[Tensor]) -> None:
    for branch in branches:
        if branch.shape[:2] != x.shape[:2] or min(branch.shape[2:]) < 1:
            raise RuntimeError(f"a branch {tuple(branch.shape)} does not fit x {tuple(x.shape)}")


def _positions_are_large(x: Tensor, branches: Sequence[Tensor]) -> bool:
    """Whether the numerator of some position does not fit into 32 bits."""
    return any(x.shape[d] * branch.shape[d] > LARGEST_INT32 for branch in branches for d in (2, 3))


def _merge(x: Tensor, grad: Tensor | None, branches: Sequence[Tensor], activation: str | None) -> Tensor:
    """The merge of x and the branches, or, with grad, grad times the derivative of its activation."""
    y = torch.empty_like(x)
    config = choose("merge_pyramid", x)
    tiles, planes = count_tiles(x, config)
    other = x if grad is None else grad
    launch(
        merge_planes,
        tiles * planes,
        x, other, y, tuple((b, *b.shape[2:], *b.stride()) for b in branches), *x.shape[1:],
        *x.stride(), *other.stride(), *y.stride(),
        GELU=activation == "gelu", GRADIENT=grad is not None,
        **number_types(x, other, y, *branches, large=_positions_are_large(x, branches)),
        **tile_of(config),
    )  # fmt: skip
    return y


def merge_pyramid(x: Tensor, branches: list[Tensor], activation: str | None = "gelu") -> Tensor:
    """See `irnext.ops.merge_pyramid`."""
    _check_merge(x, branches)
    return _merge(x, None, branches, activation)


def _stretch_adjoint(u: Tensor, d: Tensor, dim: int, large: bool) -> None:
    """d = the adjoint, applied to u, of stretching along `dim`."""
    channels = layout_of(u) == "channels"
    other = 1 if channels else 5 - dim  # the axis that neighbours lie along
    order = [*(k for k in range(4) if k not in (dim, other)), other, dim]
    size, to, length = [d.shape[k] for k in order], u.shape[dim], d.shape[dim]
    across = min(64, power_of_two(size[2]))
    along = min(1024 // across, power_of_two(length))
    taps = to if length == 1 else cdiv(2 * max(to - 1, 1), length - 1)
    launch(
        stretch_adjoint,
        size[0] * size[1] * cdiv(size[2], across) * cdiv(length, along),
        u, d, *size[1:3], to, length, taps,
        *(u.stride(k) for k in order), *(d.stride(k) for k in order),
        AXIS=0 if channels or dim == 2 else 1, B_B=along, B_V=across,
        **number_types(u, d, large=large),
    )  # fmt: skip


def merge_pyramid_backward(
    grad: Tensor, x: Tensor, branches: list[Tensor], activation: str | None
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x (empty without activation, where it is grad) and of the branches."""
    _check_merge(x, branches)
    if grad.shape != x.shape:
        raise RuntimeError(f"a gradient {tuple(grad.shape)} does not fit x {tuple(x.shape)}")
    dx = x.new_empty(0) if activation is None else _merge(x, grad, branches, activation)
    total = grad if activation is None else dx
    large = _positions_are_large(x, branches)
    dbranches = [torch.empty_like(branch) for branch in branches]
    for d in dbranches:
        rows = _empty_plane(total, d.shape[2], x.shape[3], wide_dtype(x))
        _stretch_adjoint(total, rows, 2, large)
        _stretch_adjoint(rows, d, 3, large)
    return dx, dbranches
