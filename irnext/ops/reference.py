"""Every operator in plain PyTorch: the definition that all backends are held to.

Each function takes any floating type and is differentiable any number of
times. Half-precision input is summed in float32 and rounded once, at the end
(`conv2d_bias_act` rounds after the convolution too, as PyTorch does). Arguments
are not checked here; `irnext.ops` does that for every backend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .recompute import gelu


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(kernel: Tensor, channels: int) -> Tensor:
    """(N, G, kh, kw) to (N, C, kh, kw): channel c takes the kernel of group c // (C / G)."""
    groups = kernel.shape[1]
    if groups == channels:
        return kernel
    return kernel.repeat_interleave(channels // groups, dim=1, output_size=channels)


def pad(x: Tensor, rows: int, columns: int, padding_mode: str) -> Tensor:
    """Extend the plane by `rows` above and below and `columns` left and right."""
    if rows == columns == 0:
        return x
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return F.pad(x, (columns, columns, rows, rows), mode)


def dynamic_conv2d(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    padding_mode: str = "reflect",
) -> Tensor:
    """See `irnext.ops.dynamic_conv2d`: the sum over the taps of weighted, shifted copies of x."""
    height, width = x.shape[2:]
    kh, kw = kernel.shape[2:]
    wide = accumulation_dtype(x.dtype)
    weights = per_channel(kernel.to(wide), x.shape[1])[..., None, None]
    padded = pad(x.to(wide), dilation * (kh // 2), dilation * (kw // 2), padding_mode)
    y = 0
    for i in range(kh):
        for j in range(kw):
            rows = padded.narrow(2, i * dilation, height)
            y = y + weights[:, :, i, j] * rows.narrow(3, j * dilation, width)
    if bias is not None:
        y = y + (bias[..., None, None] if bias.ndim == 2 else bias).to(wide)
    return y.to(x.dtype)


def spatial_mean(x: Tensor) -> Tensor:
    """See `irnext.ops.spatial_mean`."""
    return x.mean((2, 3), dtype=accumulation_dtype(x.dtype))


def activate(logits: Tensor, activation: str) -> Tensor:
    """Attention weights from their logits (N, G, kh, kw): tanh, sigmoid, or softmax over the taps."""
    if activation == "softmax":
        return logits.flatten(2).softmax(-1).view_as(logits)
    return logits.tanh() if activation == "tanh" else logits.sigmoid()


def modulated_filter(
    logits: Tensor, mean: Tensor, low: Tensor, inner: Tensor, high: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """See `irnext.ops.modulated_filter`."""
    low, inner, high = low.flatten(), inner.flatten(), high.flatten()
    _, groups, rows, columns = logits.shape
    attention = activate(logits, activation).repeat_interleave(len(low) // groups, 1)
    centre = logits.new_zeros(rows, columns)
    centre[rows // 2, columns // 2] = 1
    kernel = (low * (1 + inner))[:, None, None] * attention + (1 + high)[:, None, None] * centre
    return kernel, -low * inner * mean


def modulated_filter_backward(
    grad_kernel: Tensor,
    grad_bias: Tensor,
    logits: Tensor,
    mean: Tensor,
    low: Tensor,
    inner: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `modulated_filter` for logits and mean, in their shapes, and low, inner, high: (C)."""
    n, groups, rows, columns = logits.shape
    flat_low, flat_inner = low.flatten(), inner.flatten()
    attention = activate(logits, activation)
    by_group = grad_kernel.reshape(n, groups, -1, rows, columns)
    response = (attention[:, :, None] * by_group).sum((-2, -1)).flatten(1)  # (N, C)
    offset = mean * grad_bias
    d = ((flat_low * (1 + flat_inner)).view(groups, -1, 1, 1) * by_group).sum(2)
    if activation == "softmax":
        d = attention * (d - (attention * d).sum((-2, -1), keepdim=True))
    else:
        d = d * (1 - attention**2 if activation == "tanh" else attention * (1 - attention))
    return (
        d,
        -flat_low * flat_inner * grad_bias,
        ((1 + flat_inner) * response - flat_inner * offset).sum(0),
        (flat_low * (response - offset)).sum(0),
        grad_kernel[..., rows // 2, columns // 2].sum(0),
    )


def _box_sum(x: Tensor, size: int, dim: int) -> Tensor:
    """Sums of `size` neighbours along `dim`, valid positions only, by running sums."""
    total = F.pad(x.movedim(dim, -1).cumsum(-1), (1, 0))
    return (total[..., size:] - total[..., :-size]).movedim(-1, dim)


def local_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """See `irnext.ops.local_mean`. Running sums are float64, so differences of them are exact enough."""
    height, width = x.shape[2:]
    rows, columns = min(window[0], height), min(window[1], width)
    mean = _box_sum(_box_sum(x.double(), rows, 2), columns, 3) / (rows * columns)
    top, left = (rows - 1) // 2, (columns - 1) // 2
    return F.pad(mean, (left, columns - 1 - left, top, rows - 1 - top), "replicate").to(x.dtype)


def pool_pyramid(x: Tensor, rates: list[int]) -> list[Tensor]:
    """See `irnext.ops.pool_pyramid`."""
    return [F.avg_pool2d(x, rate) for rate in rates]


def merge_pyramid(x: Tensor, branches: list[Tensor]) -> Tensor:
    """See `irnext.ops.merge_pyramid`."""
    total = x.to(accumulation_dtype(x.dtype))
    for branch in branches:
        branch = branch.to(total.dtype)
        total = total + F.interpolate(branch, x.shape[2:], mode="bilinear", align_corners=True)
    return gelu(total).to(x.dtype)


def conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See `irnext.ops.conv2d_bias_act`."""
    y = F.conv2d(x, weight, bias, padding=[weight.shape[2] // 2, weight.shape[3] // 2])
    if activation == "gelu":
        y = gelu(y)
    return y if residual is None else y + residual
