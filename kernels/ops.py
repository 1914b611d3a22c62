"""The operators with the signatures of their schemas, made of launches of the Triton kernels.

Arguments are checked by `irnext.ops`, and here as far as memory outside a tensor would be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .box import box_pass
from .configuration import Config, choose, layout_of, power_of_two
from .filter import NO_BIAS, PIXEL_BIAS, PLANE_BIAS, SCALED_BIAS, filter_planes
from .filter_backward import filter_sums, filter_transposed
from .indexing import PADDINGS
from .launch import cdiv, count_tiles, launch, number_types, tile_of, wide_dtype
from .plane_sums import plane_sums, sum_groups, sum_splits
from .predict import ACTIVATIONS, predict_filter
from .predict_backward import predict_filter_backward, projection_backward
from .pyramid import merge_pyramid, merge_pyramid_backward, pool_pyramid, pool_pyramid_backward
from .statistics import update_running_statistics

MOST_TAPS = 32  # sums that one program keeps in registers
PREDICT_ELEMENTS = 2048  # numbers in the largest tile of the small kernels; backward, twice as many


def _splits(x: Tensor, config: Config) -> tuple[int, int]:
    """Tiles per split and splits per plane for about `config.programs` programs."""
    tiles, planes = count_tiles(x, config)
    wanted = min(max(config.programs // max(planes, 1), 1), max(tiles, 1))
    per_split = max(cdiv(tiles, wanted), 1)
    return per_split, max(cdiv(tiles, per_split), 1)


# ---- means ---------------------------------------------------------------------------------------


def _partial_sums(x: Tensor) -> Tensor:
    """Sums of x over parts of its planes: (splits, N, C), for x that is not empty."""
    config = choose("spatial_mean", x)
    per_split, splits = _splits(x, config)
    partial = x.new_empty((splits, *x.shape[:2]), dtype=wide_dtype(x))
    launch(
        plane_sums,
        splits * count_tiles(x, config)[1],
        x, partial, *x.shape, per_split, splits, *x.stride(),
        **number_types(x, partial), **tile_of(config),
    )  # fmt: skip
    return partial


def _sum_splits(partial: Tensor, column: int, divisor: int) -> Tensor:
    """The sum of partial (splits, N, C, columns) over its splits, of one column, / divisor: (N, C)."""
    splits, n, c, columns = partial.shape
    total = partial.new_empty(n, c)
    types = number_types(partial)
    launch(
        sum_splits, cdiv(n * c, 128), partial, total, n * c, splits, columns, column, divisor, B=128, **types
    )
    return total


def spatial_mean(x: Tensor) -> Tensor:
    """The mean of every plane of x (N, C, H, W): (N, C) in float32, or float64 for float64."""
    if not x.numel():
        return x.new_full(x.shape[:2], float("nan"), dtype=wide_dtype(x))
    return _sum_splits(_partial_sums(x)[..., None], 0, x.shape[2] * x.shape[3])


def _box_pass(x: Tensor, y: Tensor, dim: int, window: int, adjoint: bool) -> None:
    """y = the mean of x over `window` numbers along `dim`, or the adjoint of that."""
    channels = layout_of(x) == "channels"
    other = 1 if channels else 5 - dim  # the axis that neighbours lie along
    outer = [d for d in range(4) if d not in (dim, other)]
    axis = 0 if channels or dim == 2 else 1
    order = [*outer, other, dim]
    size = [x.shape[d] for d in order]
    length = min(256 if axis else 64, power_of_two(window + 1) // 2)
    across = min(max(2048 // length, 1) if axis else 32, power_of_two(size[2]))
    launch(
        box_pass,
        size[0] * size[1] * cdiv(size[2], across) * cdiv(size[3], length),
        x, y, *size[1:], window,
        *(x.stride(d) for d in order), *(y.stride(d) for d in order),
        AXIS=axis, ADJOINT=adjoint, B_L=length, B_V=across, B_M=length, warps=8, **number_types(x, y),
    )  # fmt: skip


def _box(x: Tensor, window: Sequence[int], adjoint: bool) -> Tensor:
    y = torch.empty_like(x)
    sizes = {dim: min(window[dim - 2], x.shape[dim]) for dim in (2, 3)}
    passes = [dim for dim in (2, 3) if sizes[dim] > 1]
    if not x.numel() or not passes:
        return y.copy_(x)
    if adjoint:
        passes.reverse()
    between = torch.empty_like(x, dtype=wide_dtype(x)) if len(passes) == 2 else y
    for source, target, dim in zip((x, between), (between, y)[-len(passes) :], passes, strict=False):
        _box_pass(source, target, dim, sizes[dim], adjoint)
    return y


def local_mean(x: Tensor, window: Sequence[int]) -> Tensor:
    """The mean over a window around every pixel of x, replicated to the border; in x's type and layout."""
    return _box(x, window, False)


def local_mean_backward(grad: Tensor, window: Sequence[int]) -> Tensor:
    """The adjoint of `local_mean`."""
    return _box(grad, window, True)


# ---- the filter ----------------------------------------------------------------------------------


def _check_filter(x: Tensor, kernel: Tensor, dilation: int, padding_mode: str) -> None:
    n, c, h, w = x.shape
    kn, groups, kh, kw = kernel.shape
    if kn != n or groups < 1 or c % groups or not kh % 2 or not kw % 2 or dilation < 1:
        raise RuntimeError(f"a kernel {tuple(kernel.shape)} does not fit x {tuple(x.shape)}")
    if padding_mode == "reflect" and (kh // 2 * dilation >= h or kw // 2 * dilation >= w):
        raise RuntimeError(f"a reflected border must be smaller than the plane, which is {h}x{w}")


def _bias(bias: Tensor | None, scale: Tensor | None, x: Tensor) -> tuple[int, Tensor, Tensor, tuple]:
    """The kind of bias, its two pointers and its strides along x's axes; x stands for what is not there."""
    if bias is None:
        return NO_BIAS.value, x, x, (0, 0, 0, 0)
    if bias.ndim == 2:
        return PLANE_BIAS.value, bias.contiguous(), x, (0, 0, 0, 0)
    kind = PIXEL_BIAS if scale is None else SCALED_BIAS
    bias = bias.expand(x.shape)
    return kind.value, bias, x if scale is None else scale, bias.stride()


def _filter(
    x: Tensor, kernel: Tensor, bias: Tensor | None, scale: Tensor | None, dilation: int, padding_mode: str
) -> Tensor:
    """The filter of x; with a scale (N, C) the bias (N, C, H, W) is multiplied by it."""
    y = torch.empty_like(x)
    if not x.numel():
        return y
    groups, kh, kw = kernel.shape[1:]
    config = choose("filter", x, kh * kw)
    tiles, planes = count_tiles(x, config)
    kind, bias, scale, bias_strides = _bias(bias, scale, x)
    launch(
        filter_planes,
        tiles * planes,
        x, kernel.contiguous(), bias, scale, y, *x.shape[1:], groups, dilation,
        *x.stride(), *bias_strides, *y.stride(),
        KH=kh, KW=kw, PADDING=PADDINGS[padding_mode], BIAS=kind,
        **number_types(x, y, bias), **tile_of(config),
    )  # fmt: skip
    return y


def dynamic_conv2d(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    padding_mode: str = "reflect",
) -> Tensor:
    """See `irnext.ops.dynamic_conv2d`."""
    _check_filter(x, kernel, dilation, padding_mode)
    return _filter(x, kernel, bias, None, dilation, padding_mode)


def _filter_sums(
    grad: Tensor, x: Tensor, v: Tensor | None, size: tuple, first: int, taps: int, dilation: int, mode: str
) -> Tensor:
    """(splits, N, C, taps + 1): sums of grad x at taps from `first` on; last of grad, or of x v."""
    config = choose("filter_sums", x, taps)
    per_split, splits = _splits(x, config)
    partial = x.new_empty((splits, *x.shape[:2], taps + 1), dtype=wide_dtype(x))
    other = grad if v is None else v
    launch(
        filter_sums,
        splits * count_tiles(x, config)[1],
        grad, x, other, partial, *x.shape, dilation, per_split, splits,
        *grad.stride(), *x.stride(), *other.stride(),
        KH=size[0], KW=size[1], FIRST=first, TAPS=taps, WITH_V=v is not None, PADDING=PADDINGS[mode],
        **number_types(x, grad, other, partial), **tile_of(config),
    )  # fmt: skip
    return partial


def _kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, dilation: int, padding_mode: str
) -> tuple[Tensor, Tensor]:
    """The gradient of the kernel, and the first launch's partial sums with those of grad last."""
    n, c = x.shape[:2]
    groups, kh, kw = kernel.shape[1:]
    dkernel = torch.empty_like(kernel, memory_format=torch.contiguous_format)
    wide = dkernel if dkernel.dtype == wide_dtype(x) else torch.empty_like(dkernel, dtype=wide_dtype(x))
    partials = []
    for first in range(0, kh * kw, MOST_TAPS):
        taps = min(MOST_TAPS, kh * kw - first)
        partial = _filter_sums(grad, x, None, (kh, kw), first, taps, dilation, padding_mode)
        partials.append(partial)
        launch(
            sum_groups,
            n * groups,
            partial, wide, n, c, groups, len(partial), taps + 1, first,
            TAPS=taps, ALL_TAPS=kh * kw, B_K=32, B_T=power_of_two(taps), **number_types(partial),
        )  # fmt: skip
    return dkernel if wide is dkernel else dkernel.copy_(wide), partials[0]


def _filter_transposed(
    grad: Tensor,
    dx: Tensor,
    kernel: Tensor,
    plane: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    dilation: int,
    padding_mode: str,
) -> Tensor:
    """dx, the filter's adjoint for grad + plane (N, C) + scale (N, C) * bias."""
    groups, kh, kw = kernel.shape[1:]
    config = choose("filter_transposed", dx, kh * kw)
    tiles, planes = count_tiles(dx, config)
    kind, bias, scale, bias_strides = _bias(bias, scale, grad)
    launch(
        filter_transposed,
        tiles * planes,
        grad, kernel.contiguous(), bias, scale, grad if plane is None else plane, dx,
        *dx.shape[1:], groups, dilation, *grad.stride(), *bias_strides, *dx.stride(),
        KH=kh, KW=kw, PADDING=PADDINGS[padding_mode], BIAS=kind, PLANE=plane is not None,
        **number_types(grad, dx, bias), **tile_of(config),
    )  # fmt: skip
    return dx


def dynamic_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    dilation: int,
    padding_mode: str,
    need_x: bool,
    need_kernel: bool,
    need_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and the kernel in their types, and the sums of grad over planes (N, C).

    What is not needed is empty.
    """
    _check_filter(x, kernel, dilation, padding_mode)
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    dkernel = kernel.new_empty(0)
    total = x.new_empty(0, dtype=wide_dtype(x))
    if not x.numel():
        dkernel = kernel.new_zeros(kernel.shape) if need_kernel else dkernel
        total = x.new_zeros(x.shape[:2], dtype=wide_dtype(x)) if need_sum else total
        return dx, dkernel, total
    if need_x:
        _filter_transposed(grad, dx, kernel, None, None, None, dilation, padding_mode)
    if need_kernel:
        dkernel, partial = _kernel_gradient(grad, x, kernel, dilation, padding_mode)
        if need_sum:
            total = _sum_splits(partial, partial.shape[3] - 1, 1)
    elif need_sum:
        total = _sum_splits(_partial_sums(grad)[..., None], 0, 1)
    return dx, dkernel, total


# ---- local attention -----------------------------------------------------------------------------


def _block(n: int, most: int) -> int:
    return max(min(power_of_two(n), most), 1)


def _check_attention(x: Tensor, weight: Tensor, kernel_size: Sequence[int]) -> tuple[int, int]:
    """The number of taps and of groups."""
    taps = kernel_size[0] * kernel_size[1]
    groups = weight.shape[0] // taps
    fits = weight.shape[0] == groups * taps and groups and x.shape[1] % groups == 0
    if not fits or weight.numel() != weight.shape[0] * x.shape[1]:
        raise RuntimeError(f"a weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
    return taps, groups


def local_attention(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    low: Tensor,
    inner: Tensor,
    high: Tensor,
    kernel_size: Sequence[int],
    training: bool,
    eps: float,
    activation: str,
    window: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `irnext.ops.local_attention`: y, the plane means, the batch's logit means and variances."""
    taps, groups = _check_attention(x, weight, kernel_size)
    n, c, h, w = x.shape
    mean = x.new_empty(n, c, dtype=wide_dtype(x))
    kernel = mean.new_empty(n, c, *kernel_size)
    _check_filter(x, kernel, 1, "reflect")
    logit_mean, logit_var = (mean.new_empty(weight.shape[0] if training else 0) for _ in range(2))
    if not x.numel():
        return torch.empty_like(x), mean, logit_mean, logit_var
    partial = _partial_sums(x)
    bias = mean.new_empty(n, c)
    mu, var = (logit_mean, logit_var) if training else (running_mean, running_var)
    b_t = power_of_two(taps)
    b_n = _block(n, min(16, PREDICT_ELEMENTS // b_t))
    launch(
        predict_filter,
        groups if training else groups * cdiv(n, b_n),
        partial, weight.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(),
        mu.contiguous(), var.contiguous(), low.contiguous(), inner.contiguous(), high.contiguous(),
        mean, kernel, bias, mean.new_empty(n, weight.shape[0]) if training else mean,
        n, c, groups, len(partial), h * w,
        EPS=eps, ACTIVATION=ACTIVATIONS[activation], CENTRE=taps // 2, TAPS=taps,
        TRAINING=training, LOCAL=window is not None, ACC=number_types(x)["ACC"],
        B_N=b_n, B_T=b_t, B_K=_block(c, max(PREDICT_ELEMENTS // (b_n * b_t), 1)),
    )  # fmt: skip
    if window is None:
        y = _filter(x, kernel, bias, None, 1, "reflect")
    else:
        y = _filter(x, kernel, local_mean(x, window), bias, 1, "reflect")
    return y, mean, logit_mean, logit_var


def local_attention_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    logit_mean: Tensor,
    logit_var: Tensor,
    low: Tensor,
    inner: Tensor,
    high: Tensor,
    kernel_size: Sequence[int],
    training: bool,
    eps: float,
    activation: str,
    window: Sequence[int] | None,
) -> tuple[Tensor, ...]:
    """The gradients of x, weight (G * T, C), norm_weight, norm_bias (G * T), low, inner and high (C)."""
    taps, groups = _check_attention(x, weight, kernel_size)
    n, c, h, w = x.shape
    logits = weight.shape[0]
    kernel = mean.new_empty(n, c, *kernel_size)
    _check_filter(x, kernel, 1, "reflect")
    shapes = [(logits, c), logits, logits, c, c, c]
    dx = torch.empty_like(x)
    if not x.numel():
        return dx, *(mean.new_zeros(shape) for shape in shapes)
    dweight, dnorm_weight, dnorm_bias, dlow, dinner, dhigh = (mean.new_empty(shape) for shape in shapes)
    spread = None if window is None else local_mean_backward(grad, window)
    sums = _sums_of_all_taps(grad, x, spread, kernel_size)
    scale, plane, dz = mean.new_empty(n, c), mean.new_empty(n, c), mean.new_empty(n, logits)
    mean, weight = mean.contiguous(), weight.contiguous()
    b_g, b_t = power_of_two(c // groups), power_of_two(taps)
    b_n = _block(n, max(2 * PREDICT_ELEMENTS // (b_g * b_t), 1))
    launch(
        predict_filter_backward,
        groups,
        sums, mean, weight, norm_weight.contiguous(), norm_bias.contiguous(),
        logit_mean.contiguous(), logit_var.contiguous(),
        low.contiguous(), inner.contiguous(), high.contiguous(),
        kernel, scale, plane, dz, torch.empty_like(dz) if training else dz,
        dnorm_weight, dnorm_bias, dlow, dinner, dhigh,
        n, c, groups, len(sums),
        EPS=eps, ACTIVATION=ACTIVATIONS[activation], CENTRE=taps // 2, TAPS=taps,
        TRAINING=training, LOCAL=window is not None, ACC=number_types(x)["ACC"],
        B_N=b_n, B_G=b_g, B_T=b_t, B_K=_block(c, max(2 * PREDICT_ELEMENTS // (b_n * b_t), 1)),
        warps=min(max(b_n * b_g * b_t // 512, 4), 16),
    )  # fmt: skip
    block = 16
    launch(
        projection_backward,
        (cdiv(logits, block) + cdiv(n, block)) * cdiv(c, block),
        dz, mean, weight, plane, dweight, n, c, logits, h * w,
        ACC=number_types(x)["ACC"], B_I=block, B_J=block, B_K=16,
    )  # fmt: skip
    _filter_transposed(grad, dx, kernel, plane, spread, None if spread is None else scale, 1, "reflect")
    return dx, dweight, dnorm_weight, dnorm_bias, dlow, dinner, dhigh


def _sums_of_all_taps(grad: Tensor, x: Tensor, v: Tensor | None, size: Sequence[int]) -> Tensor:
    """(splits, N, C, T + 1) partial sums, whatever the number of taps."""
    taps = size[0] * size[1]
    parts = [
        _filter_sums(grad, x, v, tuple(size), first, min(MOST_TAPS, taps - first), 1, "reflect")
        for first in range(0, taps, MOST_TAPS)
    ]
    if len(parts) == 1:
        return parts[0]
    # Parts of fewer taps may have other splits; few filters are that large.
    sums = [part.sum(0, keepdim=True) for part in parts]
    return torch.cat((*(part[..., :-1] for part in sums), sums[0][..., -1:]), 3)


def update_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float | None,
) -> None:
    """See `irnext.ops.update_statistics`."""
    dense = running_mean.contiguous(), running_var.contiguous()
    launch(
        update_running_statistics,
        1,
        *dense, batches, mean.contiguous(), var.contiguous(), mean.numel(), count,
        MOMENTUM=momentum, ACC=number_types(mean)["ACC"], B=_block(mean.numel(), 1024),
    )  # fmt: skip
    for running, updated in zip((running_mean, running_var), dense, strict=True):
        if updated is not running:
            running.copy_(updated)


OPERATORS: dict[str, Callable] = {
    "dynamic_conv2d": dynamic_conv2d,
    "dynamic_conv2d_backward": dynamic_conv2d_backward,
    "spatial_mean": spatial_mean,
    "local_mean": local_mean,
    "local_mean_backward": local_mean_backward,
    "local_attention": local_attention,
    "local_attention_backward": local_attention_backward,
    "update_statistics": update_statistics,
    "pool_pyramid": pool_pyramid,
    "pool_pyramid_backward": pool_pyramid_backward,
    "merge_pyramid": merge_pyramid,
    "merge_pyramid_backward": merge_pyramid_backward,
}
