"""Every operator in plain PyTorch: the definition that all backends are held to.

Each function takes any floating type and is differentiable any number of
times. Half-precision input is summed in float32 and rounded once, at the end
(`conv2d_bias_act` rounds after the convolution too, as PyTorch does). Arguments
are not checked here; `irnext.ops` does that for every backend.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .recompute import gelu


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """A context without autocast; nothing where there is none, as exported programs would hold it."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


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


def centre_tap(attention: Tensor) -> Tensor:
    """The filter (1, 1, kh, kw) that changes nothing, in the type and on the device of `attention`."""
    centre = torch.zeros_like(attention[:1, :1])
    centre[..., centre.shape[2] // 2, centre.shape[3] // 2] = 1
    return centre


def line_means(x: Tensor, axis: int) -> Tensor:
    """The mean of every row (axis 3) or column (axis 2) of x: (N, C, H, 1) or (N, C, 1, W).

    In float32, or float64 for float64.
    """
    dtype = accumulation_dtype(x.dtype)
    if x.is_contiguous(memory_format=torch.channels_last):  # in its own order PyTorch takes a fraction
        return x.permute(0, 2, 3, 1).mean(axis - 1, keepdim=True, dtype=dtype).permute(0, 3, 1, 2)
    return x.mean(axis, keepdim=True, dtype=dtype)


def modulated_filter(attention: Tensor, low: Tensor, inner: Tensor, high: Tensor) -> Tensor:
    """l (1 + s) A + (1 + h) [centre tap]: (N, C, kh, kw) from A (N, G, kh, kw) and the gains (C)."""
    scale = (low * (1 + inner))[:, None, None]
    spread = per_channel(attention, len(low))
    return scale * spread + (1 + high)[:, None, None] * centre_tap(attention)


def _box_sum(x: Tensor, size: int, dim: int) -> Tensor:
    """Sums of `size` neighbours along `dim`, valid positions only, by running sums."""
    total = F.pad(x.movedim(dim, -1).cumsum(-1), (1, 0))
    return (total[..., size:] - total[..., :-size]).movedim(-1, dim)


def _window_of(x: Tensor, window: Sequence[int]) -> tuple[int, int, int, int]:
    """Rows and columns of the window within x's plane, and how many of its rows and columns come first."""
    rows, columns = min(window[0], x.shape[2]), min(window[1], x.shape[3])
    return rows, columns, (rows - 1) // 2, (columns - 1) // 2


def local_mean(x: Tensor, window: Sequence[int]) -> Tensor:
    """See `irnext.ops.local_mean`. Running sums are float64, so differences of them are exact enough."""
    rows, columns, top, left = _window_of(x, window)
    mean = _box_sum(_box_sum(x.double(), rows, 2), columns, 3) / (rows * columns)
    return F.pad(mean, (left, columns - 1 - left, top, rows - 1 - top), "replicate").to(x.dtype)


def _fold(grad: Tensor, before: int, after: int, dim: int) -> Tensor:
    """The adjoint of replicating the border of `dim`: its outer `before` and `after` go to the border."""
    first, inner, last = grad.split((before, grad.shape[dim] - before - after, after), dim)
    inner = inner.clone()
    inner.narrow(dim, 0, 1).add_(first.sum(dim, keepdim=True))
    inner.narrow(dim, -1, 1).add_(last.sum(dim, keepdim=True))
    return inner


def local_mean_backward(grad: Tensor, window: Sequence[int]) -> Tensor:
    """The adjoint of `local_mean`: the gradient of its input, of grad's shape and type."""
    rows, columns, top, left = _window_of(grad, window)
    valid = _fold(_fold(grad.double(), top, rows - 1 - top, 2), left, columns - 1 - left, 3)
    spread = F.pad(valid, (columns - 1, columns - 1, rows - 1, rows - 1))
    return (_box_sum(_box_sum(spread, rows, 2), columns, 3) / (rows * columns)).to(grad.dtype)


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
    operators=None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `irnext.ops.local_attention`: the definition, made of the operators of a backend.

    `operators` holds `spatial_mean`, `local_mean` and `dynamic_conv2d`; by default those of this
    module. Returns y and, without gradients, the plane means (N, C) and the batch mean and biased
    variance of the logits, (G * T) each, or empty tensors where running statistics are used.
    """
    if operators is None:
        operators = sys.modules[__name__]
    low, inner, high = low.flatten(), inner.flatten(), high.flatten()
    rows, columns = kernel_size
    mean = operators.spatial_mean(x)
    with full_precision(x.device.type):
        logits = F.linear(mean, weight.flatten(1))
    if training:
        logit_var, logit_mean = torch.var_mean(logits.detach(), 0, correction=0)
        logits = F.batch_norm(logits, None, None, norm_weight, norm_bias, True, 0, eps)
    else:
        logit_mean, logit_var = mean.new_empty(0), mean.new_empty(0)
        logits = F.batch_norm(logits, running_mean, running_var, norm_weight, norm_bias, False, 0, eps)
    groups = weight.shape[0] // (rows * columns)
    attention = activate(logits.view(mean.shape[0], groups, rows, columns), activation)
    kernel = modulated_filter(attention, low, inner, high)
    if window is None:
        bias = -low * inner * mean
    else:
        bias = -(low * inner)[:, None, None] * operators.local_mean(x, window)
    return operators.dynamic_conv2d(x, kernel, bias), mean.detach(), logit_mean, logit_var


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
    """Gradients of y for x, weight (G * T, C), norm_weight, norm_bias (G * T), low, inner and high (C).

    `mean` is what the forward returned, `logit_mean` and `logit_var` the statistics it normalised
    with. This definition computes all three anew.
    """
    with torch.enable_grad():
        gains = low.flatten(), inner.flatten(), high.flatten()
        wanted = (x, weight.flatten(1), norm_weight, norm_bias, *gains)
        x, weight, norm_weight, norm_bias, *gains = wanted = [t.detach().requires_grad_() for t in wanted]
        statistics = (None, None) if training else (logit_mean, logit_var)
        options = (kernel_size, training, eps, activation, window)
        y = local_attention(x, weight, norm_weight, norm_bias, *statistics, *gains, *options)[0]
        dx, *rest = torch.autograd.grad(y, wanted, grad)
    return torch.empty_like(x).copy_(dx).detach(), *rest


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
    batches.add_(1)
    factor = 1 / batches.to(mean.dtype) if momentum is None else momentum
    running_mean.add_((mean - running_mean) * factor)
    running_var.add_((var * (count / (count - 1)) - running_var) * factor)


def pool_pyramid(x: Tensor, rates: Sequence[int]) -> list[Tensor]:
    """See `irnext.ops.pool_pyramid`."""
    return [F.avg_pool2d(x, rate) for rate in rates]


def pool_pyramid_backward(grads: list[Tensor], rates: Sequence[int], size: Sequence[int]) -> Tensor:
    """The adjoint of `pool_pyramid` for a plane of `size`: every pooled gradient spread over its window.

    `size` are rows and columns; those that no window covers get zero.
    """
    total = 0
    for grad, rate in zip(grads, rates, strict=True):
        spread = grad.to(accumulation_dtype(grad.dtype)) / rate**2
        for dim in (2, 3):
            spread = spread.repeat_interleave(rate, dim, output_size=spread.shape[dim] * rate)
        total = total + pad_end(spread, size)
    return total.to(grads[0].dtype)


def pad_end(x: Tensor, size: Sequence[int]) -> Tensor:
    """x with zeros below and to the right, up to `size` (rows, columns)."""
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


def merge_pyramid(x: Tensor, branches: list[Tensor], activation: str | None = "gelu") -> Tensor:
    """See `irnext.ops.merge_pyramid`."""
    total = x.to(accumulation_dtype(x.dtype))
    for branch in branches:
        branch = branch.to(total.dtype)
        total = total + F.interpolate(branch, x.shape[2:], mode="bilinear", align_corners=True)
    return (total if activation is None else gelu(total)).to(x.dtype)


def merge_pyramid_backward(
    grad: Tensor, x: Tensor, branches: list[Tensor], activation: str | None
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the branches, in their shapes and types.

    Without activation the gradient of x is `grad` itself, and an empty tensor stands for it.
    """
    wide = accumulation_dtype(x.dtype)
    grad, size = grad.to(wide), x.shape[2:]
    if activation is not None:
        total = merge_pyramid(x.to(wide), [branch.to(wide) for branch in branches], None)
        grad = torch.ops.aten.gelu_backward(grad, total)
    dx = x.new_empty(0) if activation is None else torch.empty_like(x).copy_(grad)
    adjoint = torch.ops.aten.upsample_bilinear2d_backward
    dbranches = [adjoint(grad, size, branch.shape, True) for branch in branches]
    return dx, [torch.empty_like(branch).copy_(d) for branch, d in zip(branches, dbranches, strict=True)]


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


def fused_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """`conv2d_bias_act` in channels_last, and where `keep` what came before activation and residual.

    The second result is empty otherwise.
    """
    z = conv2d_bias_act(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    y = F.gelu(z) if activation == "gelu" else z.clone()  # results must not share memory
    y = y if residual is None else y + residual
    kept = z.contiguous(memory_format=torch.channels_last) if keep else x.new_empty(0)
    return y.contiguous(memory_format=torch.channels_last), kept


def conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of a convolution that keeps the size; empty where not needed.

    That of x is channels_last, that of the weight in the weight's type, that of the bias in the type
    sums are taken in.
    """
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    geometry = ([1, 1], padding, [1, 1], False, [0, 0], 1)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, *geometry, [need_x, need_weight, False]
    )
    wide = accumulation_dtype(x.dtype)
    return (
        dx.contiguous(memory_format=torch.channels_last) if need_x else x.new_empty(0),
        dweight.to(weight.dtype).contiguous() if need_weight else weight.new_empty(0),
        grad.sum((0, 2, 3), dtype=wide) if need_bias else x.new_empty(0, dtype=wide),
    )
