"""Random crops of pairs, for training."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset


class Pairs(Protocol):
    """A source of pairs: pictures are (H, W, 3) uint8, input and target of one size."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


class TrainingCrops(Dataset):
    """One random crop of each pair, a different one in every epoch: `crops[epoch, index]`.

    All randomness of an item comes from (seed, epoch, index), so the number of workers, the order of the
    items and an interrupted training change nothing.

    Args:
        pairs: the source of pairs.
        patch: height and width of the crops, or the side of square ones. Smaller pictures are padded by
            reflection at the bottom and on the right.
        seed: of everything random.
        flip: mirror every other crop horizontally, the one augmentation of the paper.

    Raises ValueError for a patch without pixels.
    """

    def __init__(self, pairs: Pairs, patch: int | tuple[int, int], seed: int, *, flip: bool = True) -> None:
        self.height, self.width = (patch, patch) if isinstance(patch, int) else patch
        if min(self.height, self.width) < 1:
            raise ValueError(f"a patch of {self.height}x{self.width} pixels: at least 1x1 is needed")
        self.pairs, self.seed, self.flip = pairs, seed, flip

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and target, (3, height, width) uint8. Raises what `pairs.read` does."""
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        input, target = self.pairs.read(index)
        top = rng.integers(max(input.shape[0] - self.height, 0) + 1)
        left = rng.integers(max(input.shape[1] - self.width, 0) + 1)
        mirrored = self.flip and rng.random() < 0.5
        return self._crop(input, top, left, mirrored), self._crop(target, top, left, mirrored)

    def _crop(self, picture: np.ndarray, top: int, left: int, mirrored: bool) -> torch.Tensor:
        crop = picture[top : top + self.height, left : left + self.width]
        missing = self.height - crop.shape[0], self.width - crop.shape[1]
        if any(missing):
            crop = np.pad(crop, ((0, missing[0]), (0, missing[1]), (0, 0)), "reflect")
        if mirrored:
            crop = crop[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
