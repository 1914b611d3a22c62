"""Validation: how well the weights restore pictures that they were not trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Pairs
from ..distributed import Process, all_mean, any_rank, unsynchronised
from ..metrics import psnr
from ..restoration import restore
from ..restoration.inference import can_be_optimized

HIGHEST = 100.0  # dB, which equal pictures count as: infinity would hide all others

Sample = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]


def spread(count: int, wanted: int | None) -> list[int]:
    """The indices of `wanted` of `count` things, spread evenly; all of them for None."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


def validate(
    model: nn.Module,
    pairs: Pairs,
    chosen: list[int],
    process: Process,
    samples: int,
    sample: Sample,
    stopped: Callable[[], bool],
) -> float | None:
    """Mean PSNR in dB (protocol `irnext-rgb`) of the chosen pairs, which the processes share.

    Pictures are restored whole, and not rounded. The main process gives the first `samples` that fall to
    it to `sample`: name, degraded, restored and clean, each (H, W, 3) uint8. None where `stopped` became
    true in any process.
    """
    values = []
    for index in chosen[process.rank :: process.world_size]:
        if stopped():
            break
        degraded, clean = pairs.read(index)
        picture, target = (torch.tensor(array).permute(2, 0, 1) / 255 for array in (degraded, clean))
        restored = _restored(model, picture)
        if process.is_main and len(values) < samples:
            shown = (restored * 255).round().byte().permute(1, 2, 0).numpy()
            sample(pairs.name(index), degraded, shown, clean)
        values.append(min(psnr(restored, target), HIGHEST))
    if any_rank(stopped()):
        return None
    return all_mean(sum(values)) / all_mean(len(values))


def _restored(model: nn.Module, picture: Tensor) -> Tensor:
    """The restored picture, (3, H, W): in bands, which is exact and slower, where memory is short."""
    with unsynchronised(model):
        try:
            return restore(model, picture)
        except MemoryError:
            if not can_be_optimized(model):
                raise
        return restore(model, picture, max_memory="auto")
