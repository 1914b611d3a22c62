"""conv2d_bias_act: a convolution of stride 1 that keeps the size, with all that follows it, in one pass.

An implicit product of matrices: pixels x (taps and input channels) x output channels, for channels_last.
A program makes a few rows of pixels, each with sums of its own, so that an input row, once loaded, serves
every output row that it reaches: with B_H rows, (B_H + 2) / B_H x 3 loads of x instead of 9 for 3 x 3
taps. The concatenation of two inputs is only walked through, never made.

What bounds it, counted for a picture of 1280 x 720 in bfloat16 (M = million, G = billion) against data
sheets: 32 to 32 channels read and write 59 MB each for 17 G operations, 144 a byte, less than the 200 to 300
at which an H200 or H100 is as busy with products as with its memory. So the loads saved count, and that bias,
GELU and sum, and z where it is kept, are no passes of 118 or 177 MB of their own. 64 to 64 channels at half
the size, 288 a byte, are about at that balance; 128 to 128 at a quarter, 576 a byte, are bound by products.

A residual block is two launches, not one: the second filter would read the first's result shifted by a
column either way, and Triton moves a tile's rows between threads by `tl.gather` alone, one number at a time
through shared memory. For a row of 128 pixels and 32 channels two shifts take 512 loads and stores of whole
warps, beside products of 1100 cycles at an H100's peak, and halos of both filters are computed twice. What
it would save is the result between, 118 of 295 MB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configuration import choose_convolution
from .gelu import gelu
from .launch import cdiv, launch, number_types

SIZES = (1, 3)  # rows and columns of filters
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def convolve(
    p_y, p_z, p_weight, p_bias, p_residual, sources,
    n_h, n_w, n_k,
    s_wk, s_wc, s_wh, s_ww, s_rn, s_rk, s_rh, s_rw, s_yn, s_yh, s_yw,
    KH: tl.constexpr, KW: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    B_H: tl.constexpr, B_W: tl.constexpr, B_C: tl.constexpr, B_K: tl.constexpr,
):  # fmt: skip
    """z = the filtered sources + bias, y = GELU(z) + residual; tiles of B_H x B_W pixels, B_K channels.

    Sources lie side by side along channels: each a pointer, its channels, and its strides, but that of
    channels, which is 1. z, where it is kept, has y's layout. WIDEN is for Triton's interpreter, which
    multiplies the bits of bfloat16 as if they were integers.
    """
    i = tl.program_id(0)
    tiles_k, tiles_w = tl.cdiv(n_k, B_K), tl.cdiv(n_w, B_W)
    n_tiles = tl.cdiv(n_h, B_H) * tiles_w
    i_k, i = i % tiles_k, i // tiles_k
    i_tile, i_n = i % n_tiles, (i // n_tiles).to(INDEX)
    first_h = (i_tile // tiles_w) * B_H + tl.arange(0, 1)[:, None]
    o_w = (i_tile % tiles_w) * B_W + tl.arange(0, B_W)[:, None]
    o_k = i_k * B_K + tl.arange(0, B_K)[None, :]

    sums = (tl.zeros([B_W, B_K], ACC),) * B_H
    p_taps = p_weight + o_k * s_wk
    for i_source in tl.static_range(len(sources)):
        p_x, n_c, s_n, s_h, s_w = sources[i_source]
        p_plane = p_x + i_n * s_n
        for step in range(tl.cdiv(n_c, B_C) * KW):
            first_c, k_w = (step // KW) * B_C, step % KW
            i_c = first_c + tl.arange(0, B_C)
            i_w = o_w + (k_w - KW // 2)
            m_x = (i_w >= 0) & (i_w < n_w) & (i_c < n_c)[None, :]
            m_weight = (i_c < n_c)[:, None] & (o_k < n_k)
            p_column = p_plane + i_w.to(INDEX) * s_w + i_c[None, :]
            weights, rows, totals = (), (), ()  # grown by +: Triton has no lists
            for k_h in tl.static_range(KH):
                p_tap = p_taps + k_h * s_wh + k_w * s_ww + i_c[:, None] * s_wc
                weight = tl.load(p_tap, mask=m_weight, other=0.0)
                weights = weights + (weight.to(ACC) if WIDEN else weight,)  # noqa: RUF005
            for r in tl.static_range(B_H + KH - 1):
                i_h = first_h + r - KH // 2
                m_row = m_x & (i_h >= 0) & (i_h < n_h)
                p_row = p_column + i_h.to(INDEX) * s_h
                row = tl.load(p_row, mask=m_row, other=0.0)
                rows = rows + (row.to(ACC) if WIDEN else row,)  # noqa: RUF005
            for r in tl.static_range(B_H):
                total = sums[r]
                for k_h in tl.static_range(KH):
                    total = tl.dot(rows[r + k_h], weights[k_h], total, input_precision=PRECISION)
                totals = totals + (total,)  # noqa: RUF005
            sums = totals
        p_taps += n_c * s_wc

    m_k = o_k < n_k
    if BIAS:
        bias = tl.load(p_bias + o_k, mask=m_k, other=0.0).to(ACC)
    for r in tl.static_range(B_H):
        o_h = first_h + r
        m = (o_h < n_h) & (o_w < n_w) & m_k
        o_y = i_n * s_yn + o_h.to(INDEX) * s_yh + o_w.to(INDEX) * s_yw + o_k
        y = sums[r]
        if BIAS:
            y += bias
        if KEEP:
            tl.store(p_z + o_y, y.to(p_z.dtype.element_ty), mask=m)
        if GELU:
            y = gelu(y)
        if RESIDUAL:
            o_residual = i_n * s_rn + o_h.to(INDEX) * s_rh + o_w.to(INDEX) * s_rw
            y += tl.load(p_residual + o_residual + o_k.to(INDEX) * s_rk, mask=m, other=0.0).to(ACC)
        tl.store(p_y + o_y, y.to(p_y.dtype.element_ty), mask=m)


def can_serve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    other: Tensor | None = None,
) -> bool:
    """Whether the kernel computes this convolution, of x or of x and `other` side by side.

    Filters of one or three rows and columns; one of the types float32, float16 and bfloat16 for all;
    inputs whose channels are neighbours in memory. It is fast where channels are multiples of 16.
    """
    tensors = [t for t in (x, weight, bias, residual, other) if t is not None]
    return (
        x.dtype in DTYPES
        and all(t.dtype == x.dtype and t.device == x.device for t in tensors)
        and all(size in SIZES for size in weight.shape[2:])
        and all(t.stride(1) == 1 or t.shape[1] == 1 for t in (x, other) if t is not None)
    )


def _precision(x: Tensor) -> str:
    """How tensor cores multiply float32: rounded to TF32 where PyTorch's convolutions may be, else in
    three products of two parts each, nearly as exact as float32's own."""
    if x.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _check(sources: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    n, _, h, w = sources[0].shape
    k, c = weight.shape[:2]
    fits = sum(source.shape[1] for source in sources) == c
    fits &= all((len(source), *source.shape[2:]) == (n, h, w) for source in sources)
    fits &= bias is None or bias.shape == (k,)
    fits &= residual is None or residual.shape == (n, k, h, w)
    if not fits:
        shapes = [tuple(t.shape) for t in (*sources, bias, residual) if t is not None]
        raise RuntimeError(f"a weight {tuple(weight.shape)} does not fit {', '.join(map(str, shapes))}")
    if not all(can_serve(source, weight, bias, residual) for source in sources):
        raise RuntimeError("the kernel serves channels_last, filters of sides 1 and 3, and one type for all")


def _convolve(
    sources: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    _check(sources, weight, bias, residual)
    x = sources[0]
    n, _, h, w = x.shape
    k, _, kh, kw = weight.shape
    y = torch.empty((n, k, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    z = torch.empty_like(y) if keep else y.new_empty(0)
    weight = weight.contiguous(memory_format=torch.channels_last)
    config = choose_convolution(x, kh * kw, k)
    added = y if residual is None else residual
    launch(
        convolve,
        n * cdiv(h, config.rows) * cdiv(w, config.columns) * cdiv(k, config.outputs),
        y, z if keep else y, weight, y if bias is None else bias.contiguous(), added,
        tuple((s, s.shape[1], s.stride(0), *s.stride()[2:]) for s in sources),
        h, w, k, *weight.stride(), *added.stride(), y.stride(0), *y.stride()[2:],
        KH=kh, KW=kw, BIAS=bias is not None, GELU=activation == "gelu", RESIDUAL=residual is not None,
        KEEP=keep, PRECISION=_precision(x), WIDEN=x.device.type == "cpu", **number_types(*sources, y, added),
        B_H=config.rows, B_W=config.columns, B_C=config.channels, B_K=config.outputs,
        warps=config.warps, stages=config.stages,
    )  # fmt: skip
    return y, z


def conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """activation(conv2d(x, weight) + bias) + residual, and, where it is kept, what was activated.

    Args:
        x: (N, C, H, W), channels_last; float32, float16 or bfloat16.
        weight: (K, C, kh, kw), sides 1 or 3; copied where it is not channels_last.
        bias: (K), or None.
        activation: "gelu", or None.
        residual: (N, K, H, W) of any strides, or None; added last.
        keep: whether to write z = conv2d(x, weight) + bias.

    Returns:
        y (N, K, H, W) and z alike, empty unless kept; in x's type, channels_last. Sums are taken, and
        everything is added, in float32. Products of float32 are rounded to TF32 where those of
        PyTorch's convolutions are: where torch.backends.cudnn.allow_tf32 is set.

    Raises:
        RuntimeError: what does not fit, or what `can_serve` refuses.
    """
    return _convolve((x,), weight, bias, activation, residual, keep)


def conv2d_bias_act_pair(
    x: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """`conv2d_bias_act` of x and `other` side by side along their channels, without copying them there."""
    return _convolve((x, other), weight, bias, activation, residual, keep)
