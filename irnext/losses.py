"""The training loss (Eq. 8-10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DualDomainLoss(nn.Module):
    """L1 distance of the pictures plus `frequency_weight` times that of their spectra (Eq. 8-10).

    Both terms are summed, unweighted, over the scales; each is a mean: over pixels, and over the
    real and imaginary parts of the unnormalised 2-D Fourier transform. Targets are down-sampled
    bilinearly (align_corners=False), every scale straight from the full one. Everything is computed
    in float32 (float64 for float64), whatever the outputs' type.
    """

    def __init__(self, frequency_weight: float = 0.1):
        super().__init__()
        self.frequency_weight = frequency_weight

    def forward(self, outputs: list[Tensor], target: Tensor) -> Tensor:
        """The loss of `outputs`, one (N, C, h, w) per scale, against `target` (N, C, H, W)."""
        spatial, frequency = self.parts(outputs, target)
        return spatial + self.frequency_weight * frequency

    def parts(self, outputs: list[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial (Eq. 8) and the frequency term (Eq. 9), each a scalar."""
        if not outputs:
            raise ValueError("outputs is empty: it must hold one picture per scale")
        spatial, frequency = [], []
        with torch.autocast(target.device.type, enabled=False):
            wide = torch.float64 if target.dtype == torch.float64 else torch.float32
            target = target.to(wide)
            for output in outputs:
                if output.shape[:2] != target.shape[:2]:
                    raise ValueError(
                        f"an output has shape {tuple(output.shape)}, the target {tuple(target.shape)}: "
                        "N and C must agree"
                    )
                scaled = target
                if output.shape[2:] != target.shape[2:]:
                    scaled = F.interpolate(target, output.shape[2:], mode="bilinear", align_corners=False)
                output = output.to(wide)
                spatial.append((output - scaled).abs().mean())
                # The transform is linear: one transform of the difference gives the same distance.
                spectrum = torch.fft.fft2(output - scaled)
                frequency.append(torch.view_as_real(spectrum).abs().mean())
        return sum(spatial), sum(frequency)
