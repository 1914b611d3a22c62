"""PSNR and SSIM in float64, and the windows that the kinds of SSIM differ by."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window
UNIFORM = 7  # side of scikit-image's default window
K1, K2 = 0.01, 0.03


def psnr(prediction: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the PSNR of protocol `irnext-rgb`.

    10 log10(1 / mse) over all three colours, the prediction clamped to [0, 1] and not rounded to
    8 bits, averaged over the pictures. Equal pictures give infinity.

    Args:
        prediction, target: floats (3, H, W) or (N, 3, H, W), in [0, 1].

    Raises:
        ValueError: other shapes, or shapes that differ.
        TypeError: other than floats.
    """
    prediction, target = _pair(prediction, target)
    return torch.stack([decibels(p, t, 1) for p, t in zip(prediction, target, strict=True)]).mean().item()


def ssim(prediction: Tensor, target: Tensor) -> float:
    """Structural similarity; protocol `ssim-rgb`: per colour, full resolution, valid region.

    Means, variances and the covariance under an 11x11 Gaussian window of sigma 1.5, K1 = 0.01,
    K2 = 0.03, dynamic range 1; averaged over the positions where the whole window fits, the
    colours and the pictures. The prediction is clamped to [0, 1] and not rounded. (The paper's
    dehazing SSIM shrinks both pictures first and comes out higher.)

    Args:
        prediction, target: floats (3, H, W) or (N, 3, H, W), in [0, 1], H and W at least 11.

    Raises:
        ValueError: other shapes, or shapes that differ.
        TypeError: other than floats.
    """
    prediction, target = _pair(prediction, target)
    return ssim_map(prediction, target, gaussian_mean, 1).mean().item()


def decibels(prediction: Tensor, target: Tensor, peak: float) -> Tensor:
    """PSNR over everything that two tensors of one shape hold, a scalar."""
    return 10 * (peak**2 / (prediction - target).square().mean()).log10()


def ssim_map(
    prediction: Tensor,
    target: Tensor,
    mean: Callable[[Tensor], Tensor],
    peak: float,
    sample: float = 1,
) -> Tensor:
    """SSIM at every position for which `mean` has a value.

    Args:
        prediction, target: of one shape, in [0, peak].
        mean: the weighted mean around every pixel.
        sample: what variances and the covariance are multiplied by: n / (n - 1) for the unbiased
            estimate of a window of n pixels.
    """
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mean_p, mean_t = mean(prediction), mean(target)
    variances = sample * (mean(prediction.square() + target.square()) - mean_p.square() - mean_t.square())
    covariance = sample * (mean(prediction * target) - mean_p * mean_t)
    luminance = (2 * mean_p * mean_t + c1) / (mean_p.square() + mean_t.square() + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def gaussian_mean(x: Tensor) -> Tensor:
    """The 11x11 Gaussian mean over the last two axes, where the whole window fits."""
    return _valid_mean(x, gaussian_weights())


def uniform_mean(x: Tensor) -> Tensor:
    """The 7x7 mean over the last two axes, where the whole window fits."""
    return _valid_mean(x, [1 / UNIFORM] * UNIFORM)


def gaussian_mean_3d(x: Tensor) -> Tensor:
    """The 11x11x11 Gaussian mean of a (colour, row, column) volume, its borders replicated."""
    weights, margin = gaussian_weights(), WINDOW // 2
    depth = len(x)
    mixing = x.new_zeros(depth, depth)  # of the few colours, the replicated ones taken with the outer
    for plane in range(depth):
        for tap, weight in enumerate(weights):
            mixing[plane, min(max(plane + tap - margin, 0), depth - 1)] += weight
    mixed = torch.einsum("pq,qhw->phw", mixing, x)
    return gaussian_mean(F.pad(mixed[None], (margin,) * 4, "replicate")[0])


def gaussian_weights() -> list[float]:
    """The eleven weights of the Gaussian window along one axis; they sum to 1."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    return (-offsets.square() / (2 * SIGMA**2)).softmax(0).tolist()


def _valid_mean(x: Tensor, weights: list[float]) -> Tensor:
    if min(x.shape[-2:]) < len(weights):
        side = len(weights)
        raise ValueError(f"pictures are {tuple(x.shape[-2:])}: SSIM needs at least {side}x{side} pixels")
    # Plane by plane, to stay in the caches: much faster than a convolution in float64.
    planes = x.reshape(-1, *x.shape[-2:])
    means = torch.stack([_correlate(_correlate(plane, weights, 1), weights, 0) for plane in planes])
    return means.reshape(*x.shape[:-2], *means.shape[-2:])


def _correlate(plane: Tensor, weights: list[float], axis: int) -> Tensor:
    """Sums of neighbours along one axis, weighted, where all of them exist."""
    length = plane.shape[axis] - len(weights) + 1
    total = plane.narrow(axis, 0, length) * weights[0]
    for offset, weight in enumerate(weights[1:], 1):
        total.add_(plane.narrow(axis, offset, length), alpha=weight)
    return total


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, 3, H, W) float64, the prediction clamped; errors where they do not go together."""
    if prediction.shape != target.shape or target.ndim not in (3, 4) or target.shape[-3] != 3:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: both must be "
            "(3, H, W) or (N, 3, H, W) of one size"
        )
    if not (prediction.is_floating_point() and target.is_floating_point()):
        raise TypeError(f"pictures must hold floats in [0, 1], got {prediction.dtype} and {target.dtype}")
    if not target.numel():
        raise ValueError(f"pictures are {tuple(target.shape)}: there is nothing to compare")
    shape = (-1, *target.shape[-3:])
    return prediction.detach().double().clamp(0, 1).reshape(shape), target.detach().double().reshape(shape)
