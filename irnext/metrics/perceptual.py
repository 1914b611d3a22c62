"""LPIPS by the package of its authors, which is optional (it brings torchvision)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def lpips(prediction: Tensor, target: Tensor) -> float:
    """LPIPS 0.1 with AlexNet of two pictures (3, H, W) in [0, 1].

    Its network computes in float32 and wants [-1, 1], hence normalize=True.
    """
    with torch.no_grad():
        distance = _network(target.device)(target[None].float(), prediction[None].float(), normalize=True)
    return distance.item()


@functools.cache
def _network(device: torch.device) -> Callable[..., Tensor]:
    import lpips as package

    return package.LPIPS(net="alex", version="0.1", verbose=False).to(device).eval()
