"""How close a restored picture is to the clean one.

Metrics of one name differ between papers by up to 0.1 in SSIM and 1.3 dB in PSNR, so each function
states its protocol, and reports should print it beside the number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(prediction: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; protocol `irnext-rgb`.

    10 log10(1 / mse) over all three colours, the prediction clamped to [0, 1] and not rounded to
    8 bits, averaged over the pictures. Equal pictures give infinity.

    Args:
        prediction, target: (3, H, W) or (N, 3, H, W), in [0, 1].
    """
    prediction, target = _pair(prediction, target)
    return (-10 * (prediction - target).square().mean((1, 2, 3)).log10()).mean().item()


def ssim(prediction: Tensor, target: Tensor) -> float:
    """Structural similarity; protocol `ssim-rgb`: per colour, full resolution, valid region.

    Means, variances and the covariance under an 11x11 Gaussian window of sigma 1.5, K1 = 0.01,
    K2 = 0.03, dynamic range 1; averaged over the positions where the whole window fits, the
    colours and the pictures. The prediction is clamped to [0, 1] and not rounded. (The paper's
    dehazing SSIM shrinks both pictures first and comes out higher.)

    Args:
        prediction, target: (3, H, W) or (N, 3, H, W), in [0, 1], H and W at least 11.
    """
    prediction, target = _pair(prediction, target)
    if min(target.shape[2:]) < WINDOW:
        raise ValueError(
            f"pictures are {tuple(target.shape[2:])}: SSIM needs at least {WINDOW}x{WINDOW} pixels"
        )
    mean_p, mean_t = _window_mean(prediction), _window_mean(target)
    variance_p = _window_mean(prediction.square()) - mean_p.square()
    variance_t = _window_mean(target.square()) - mean_t.square()
    covariance = _window_mean(prediction * target) - mean_p * mean_t
    luminance = (2 * mean_p * mean_t + K1**2) / (mean_p.square() + mean_t.square() + K1**2)
    structure = (2 * covariance + K2**2) / (variance_p + variance_t + K2**2)
    return (luminance * structure).mean().item()


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, 3, H, W) float64, the prediction clamped; errors where they do not go together."""
    if prediction.shape != target.shape or target.ndim not in (3, 4) or target.shape[-3] != 3:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: both must be "
            "(3, H, W) or (N, 3, H, W) of one size"
        )
    if not (prediction.is_floating_point() and target.is_floating_point()):
        raise TypeError(f"pictures must hold floats in [0, 1], got {prediction.dtype} and {target.dtype}")
    shape = (-1, *target.shape[-3:])
    return prediction.detach().double().clamp(0, 1).reshape(shape), target.detach().double().reshape(shape)


def _window_mean(x: Tensor) -> Tensor:
    """The Gaussian-weighted mean of x (N, C, H, W) around every pixel where the window fits."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = (-offset.square() / (2 * SIGMA**2)).exp()
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    rows = F.conv2d(x, weights.transpose(2, 3), groups=x.shape[1])
    return F.conv2d(rows, weights, groups=x.shape[1])
