"""A photograph in one degradation, and what a model makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.clean import eight_bit
from ..metrics import psnr, ssim
from ..restoration import restore


@dataclass(frozen=True)
class Case:
    """A degraded picture and the restored one, (H, W, 3) uint8.

    `psnr` (dB, protocol irnext-rgb) and `ssim` (ssim-rgb) are pairs, before and after; the restored
    picture is measured before it is rounded, as the protocols say.
    """

    name: str
    degraded: np.ndarray
    restored: np.ndarray
    psnr: tuple[float, float]
    ssim: tuple[float, float]

    @property
    def gain(self) -> float:
        """In dB."""
        return self.psnr[1] - self.psnr[0]


def solve(name: str, model: nn.Module, degraded: np.ndarray, clean: np.ndarray) -> Case:
    """The case of a degraded picture, (H, W, 3) uint8 as `clean`, restored by `model`."""
    before = degraded.astype(np.float32) / 255
    after = restore(model, before)
    target = _channels_first(clean.astype(np.float32) / 255)
    scores = {
        metric: tuple(metric(_channels_first(picture), target) for picture in (before, after))
        for metric in (psnr, ssim)
    }
    return Case(name, degraded, eight_bit(after), scores[psnr], scores[ssim])


def _channels_first(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)
