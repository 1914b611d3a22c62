"""The evaluation protocols of the field's tables: one function each, computed in float64.

A protocol takes a prediction, floats (3, H, W) that count as clamped to [0, 1], and a target of the
same shape, uint8 or floats in [0, 1], both on one device. It returns its metrics by name, "psnr" in dB.
Pictures of one call are one picture of the set; tables average over these.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import alignment, perceptual
from .similarity import UNIFORM, decibels, gaussian_mean, gaussian_mean_3d, ssim_map, uniform_mean

# The luma of ITU-R BT.601 in 16 to 235, of colours in [0, 1].
LUMA, LUMA_OFFSET = (65.481, 128.553, 24.966), 16
PADDING = 32  # the published evaluation pads to multiples of this
POOLED_SIDE = 256


class Metric(NamedTuple):
    """A metric's name and the protocol it is computed by."""

    protocol: str
    name: str


class Protocol(NamedTuple):
    """What computes a protocol, and the optional package it needs, with the extra that installs it."""

    compute: Callable[[Tensor, Tensor], dict[str, float]]
    package: str | None = None
    extra: str | None = None


def irnext_rgb(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """IRNeXt's published evaluation (dehazing, motion, desnowing): PSNR and pooled SSIM, RGB, not rounded.

    PSNR: peak 1 over the three colours. SSIM: see `pooled_ssim`.
    """
    prediction, target = unit_values(prediction, target)
    return {"psnr": decibels(prediction, target, 1).item(), "ssim": pooled_ssim(prediction, target)}


def irnext_rgb_saved(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """`irnext_rgb` of the picture that the published evaluation saves: 8 bits, halves rounded up."""
    return irnext_rgb(saved_levels(prediction), target)


def ssim_rgb(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """SSIM at full resolution, RGB, not rounded: per colour, 11x11 Gaussian window, valid region."""
    return {"ssim": ssim_map(*unit_values(prediction, target), gaussian_mean, 1).mean().item()}


def gopro_matlab(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """MATLAB's psnr and ssim of 8-bit RGB files: the GoPro tables of MPRNet, Restormer and Stripformer.

    Both are rounded to uint8, peak 255. The SSIM takes the picture for a volume: an 11x11x11 Gaussian
    window of sigma 1.5 over rows, columns and colours, all borders replicated.
    """
    prediction, target = levels(prediction), levels(target)
    similarity = ssim_map(prediction, target, gaussian_mean_3d, 255)
    return {"psnr": decibels(prediction, target, 255).item(), "ssim": similarity.mean().item()}


def derain_y(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR and SSIM of luma by MATLAB: the deraining tables of MPRNet, Restormer and IRNeXt.

    Both are rounded to uint8, then rgb2ycbcr's Y, which is rounded to integers of 16 to 235 itself;
    the peak is 255 all the same. SSIM: 11x11 Gaussian window of sigma 1.5, valid region.
    """
    return _luma_scores(luma(levels(prediction)).round(), luma(levels(target)).round())


def dpdd(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR, SSIM and mean absolute error of DPDD: the defocus tables of Restormer and IRNeXt; RGB.

    The prediction is not rounded, peak 1. SSIM: scikit-image's default, a uniform 7x7 window with
    unbiased variances, per colour, over the valid region. Equal pictures give an infinite PSNR, where
    the published script writes 100.
    """
    prediction, target = unit_values(prediction, target)
    similarity = ssim_map(prediction, target, uniform_mean, 1, sample=UNIFORM**2 / (UNIFORM**2 - 1))
    return {
        "psnr": decibels(prediction, target, 1).item(),
        "ssim": similarity.mean().item(),
        "mae": (prediction - target).abs().mean().item(),
    }


def lpips_alex(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """LPIPS 0.1 with AlexNet, as in the DPDD tables; RGB, not rounded. Lower is closer."""
    return {"lpips": perceptual.lpips(*unit_values(prediction, target))}


def rsblur(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """RSBlur's PSNR and SSIM after alignment (see `alignment.aligned_scores`), clipped after the warp."""
    return alignment.aligned_scores(levels(prediction) / 255, levels(target) / 255, clip=True)


def realblur(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """RealBlur's PSNR and SSIM after alignment (see `alignment.aligned_scores`), without clipping."""
    return alignment.aligned_scores(levels(prediction) / 255, levels(target) / 255, clip=False)


def basicsr(prediction: Tensor, target: Tensor, crop_border: int = 0) -> dict[str, float]:
    """BasicSR's PSNR and SSIM of RGB, rounded to uint8, peak 255.

    SSIM: per colour, 11x11 Gaussian window of sigma 1.5, valid region.

    Args:
        crop_border: pixels left out along every edge, 0 in the tables of the five tasks.
    """
    prediction, target = (_cropped(levels(x), crop_border) for x in (prediction, target))
    similarity = ssim_map(prediction, target, gaussian_mean, 255)
    return {"psnr": decibels(prediction, target, 255).item(), "ssim": similarity.mean().item()}


def basicsr_y(prediction: Tensor, target: Tensor, crop_border: int = 0) -> dict[str, float]:
    """BasicSR's PSNR and SSIM of luma: rounded to uint8, then Y in 16 to 235, which is not rounded.

    The peak is 255. SSIM: 11x11 Gaussian window of sigma 1.5, valid region.

    Args:
        crop_border: pixels left out along every edge.
    """
    return _luma_scores(*(_cropped(luma(levels(x)), crop_border) for x in (prediction, target)))


PROTOCOLS = {
    "irnext-rgb": Protocol(irnext_rgb),
    "irnext-rgb-saved": Protocol(irnext_rgb_saved),
    "ssim-rgb": Protocol(ssim_rgb),
    "gopro-matlab": Protocol(gopro_matlab),
    "derain-y": Protocol(derain_y),
    "dpdd": Protocol(dpdd),
    "lpips-alex": Protocol(lpips_alex, "lpips", "lpips"),
    "rsblur": Protocol(rsblur, "cv2", "align"),
    "realblur": Protocol(realblur, "cv2", "align"),
    "basicsr": Protocol(basicsr),
    "basicsr-y": Protocol(basicsr_y),
}


def require(names: Sequence[str]) -> None:
    """Raise ValueError for an unknown protocol, and ImportError where one lacks its package."""
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}: choose among {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[name]
        if protocol.package is None:
            continue
        try:
            importlib.import_module(protocol.package)
        except ImportError as error:
            raise ImportError(
                f"protocol {name} needs {protocol.package} ({error}): "
                f"pip install 'irnext[{protocol.extra}]', or choose another --protocol"
            ) from None


def measure(names: Sequence[str], prediction: Tensor, target: Tensor) -> dict[Metric, float]:
    """Every metric of the protocols named, in their order.

    Raises ValueError for pictures that are not both (3, H, W) of one size, are too small for a
    window, or cannot be aligned; and what `require` raises.
    """
    require(names)
    if prediction.shape != target.shape or target.ndim != 3 or target.shape[0] != 3:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: both must be "
            "(3, H, W) of one size"
        )
    if not prediction.is_floating_point():
        raise TypeError(f"the prediction is {prediction.dtype}: it must hold floats in [0, 1]")
    return {
        Metric(name, metric): value
        for name in names
        for metric, value in PROTOCOLS[name].compute(prediction.detach(), target.detach()).items()
    }


def unit_values(*pictures: Tensor) -> list[Tensor]:
    """Float64 in [0, 1]: uint8 divided by 255 in float32, as it is loaded; the rest clamped, not rounded."""
    return [(x.float() / 255 if _is_8_bit(x) else x.clamp(0, 1)).double() for x in pictures]


def levels(x: Tensor) -> Tensor:
    """Float64 of integers in [0, 255], as a uint8 file holds; halves go to the even one."""
    return x.double() if _is_8_bit(x) else (x.double().clamp(0, 1) * 255).round()


def saved_levels(x: Tensor) -> Tensor:
    """Floats in [0, 1] as the uint8 of the file that the published evaluation saves: halves go up."""
    return (x.double().clamp(0, 1) * 255 + 0.5).byte()


def luma(x: Tensor) -> Tensor:
    """Y of BT.601, (H, W) in [16, 235], of (3, H, W) in [0, 255]; MATLAB's and BasicSR's coefficients."""
    red, green, blue = (weight * colour for weight, colour in zip(LUMA, x, strict=True))
    return (red + green + blue) / 255 + LUMA_OFFSET


def pooled_ssim(prediction: Tensor, target: Tensor) -> float:
    """The SSIM of IRNeXt's published dehazing and desnowing evaluation, which shrinks both pictures.

    Adaptive average pools to (H // d, W // d), d = max(1, round(min(H, W) / 256)), then an 11x11
    Gaussian window, valid region, dynamic range 1. H and W are not the picture's size but that of the
    padded input, and one step of 32 beyond it where the picture's is a multiple of 32 already: with
    d = 1 the pools enlarge the pictures a little. All that is part of the published numbers.

    Args:
        prediction, target: float64 (3, h, w) in [0, 1].
    """
    height, width = ((side + PADDING) // PADDING * PADDING for side in target.shape[1:])
    ratio = max(1, round(min(height, width) / POOLED_SIDE))
    size = (int(height / ratio), int(width / ratio))
    pooled = (F.adaptive_avg_pool2d(x, size) for x in (prediction, target))
    return ssim_map(*pooled, gaussian_mean, 1).mean().item()


def _is_8_bit(x: Tensor) -> bool:
    if not (x.is_floating_point() or x.dtype == torch.uint8):
        raise TypeError(f"the picture is {x.dtype}: it must be uint8, or floats in [0, 1]")
    return x.dtype == torch.uint8


def _luma_scores(prediction: Tensor, target: Tensor) -> dict[str, float]:
    similarity = ssim_map(prediction, target, gaussian_mean, 255)
    return {"psnr": decibels(prediction, target, 255).item(), "ssim": similarity.mean().item()}


def _cropped(x: Tensor, border: int) -> Tensor:
    height, width = x.shape[-2:]
    if border < 0 or 2 * border >= min(height, width):
        raise ValueError(
            f"crop_border is {border}: it must be at least 0 and leave something of {height}x{width}"
        )
    return x[..., border : height - border, border : width - border]
