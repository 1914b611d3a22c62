"""The training loss (Eq. 8-10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DualDomainLoss(nn.Module):
    """L1 distance of the pictures plus `frequency_weight` times that of their spectra (Eq. 8-10).

    Both terms are summed, unweighted, over the scales; each is a mean: over pixels, and over the
    real and imaginary parts of the unnormalised 2-D Fourier transform. Targets are down-sampled
    bilinearly (align_corners=False), every scale straight from the full one. Everything is computed
    in float32 (float64 for float64), whatever the outputs' type, also under autocast.

    The transform is linear, so only that of the difference is taken: a target is never transformed, and
    there is nothing of it to keep between steps. The difference is real, so half of its spectrum is
    enough.
    """

    def __init__(self, frequency_weight: float = 0.1):
        super().__init__()
        self.frequency_weight = frequency_weight

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of `outputs`, one (N, C, h, w) per scale, against `target` (N, C, H, W)."""
        spatial, frequency = self.parts(outputs, target)
        return spatial + self.frequency_weight * frequency

    def parts(self, outputs: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial (Eq. 8) and the frequency term (Eq. 9), each a scalar.

        Raises ValueError where there is no output, the batch is empty, or N and C do not agree.
        """
        if not outputs:
            raise ValueError("outputs is empty: it must hold one picture per scale")
        if not target.numel():
            raise ValueError(f"the target has shape {tuple(target.shape)}: a mean needs at least one pixel")
        spatial, frequency = [], []
        with torch.autocast(target.device.type, enabled=False):
            target = target.to(torch.promote_types(target.dtype, torch.float32))
            for output in outputs:
                difference = output.to(target.dtype) - _scaled_to(target, output)
                spatial.append(difference.abs().mean())
                frequency.append(mean_spectrum(difference))
        return sum(spatial), sum(frequency)


def _scaled_to(target: Tensor, output: Tensor) -> Tensor:
    """The target at the output's size."""
    if output.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"an output has shape {tuple(output.shape)}, the target {tuple(target.shape)}: N and C must agree"
        )
    if output.shape[2:] == target.shape[2:]:
        return target
    return F.interpolate(target, output.shape[2:], mode="bilinear", align_corners=False)


def mean_spectrum(x: Tensor) -> Tensor:
    """The mean magnitude of the real and of the imaginary parts of the 2-D Fourier transforms of real x.

    That is `torch.view_as_real(torch.fft.fft2(x)).abs().mean()`, at half the cost: column W - k of a
    real picture's spectrum holds the conjugates of column k, so that columns 0 to W // 2 hold all
    magnitudes, those that are their own partners once and the others twice.

    Args:
        x: (..., H, W), float32 or float64.
    """
    magnitudes = torch.view_as_real(torch.fft.rfft2(x)).abs()
    total = 2 * magnitudes.sum() - magnitudes[..., 0, :].sum()
    if x.shape[-1] % 2 == 0:
        total = total - magnitudes[..., -1, :].sum()
    return total / (2 * x.numel())
