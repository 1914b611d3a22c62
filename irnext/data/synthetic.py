"""Training and test pairs made of clean pictures and a degradation: no data set is needed.

The clean pictures come from a source such as `CleanPictures`, `DeadLeaves` or a `Mixture` of them.
`SyntheticPairs` degrades whole pictures, each always in the same way; `SyntheticCrops` gives random
crops for training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .clean import CleanPictures, DeadLeaves, Mixture, Pictures, checked_seed, checked_size, eight_bit
from .degradations import DEGRADATIONS

__all__ = [
    "DEGRADATIONS",
    "Augmentation",
    "CleanPictures",
    "DeadLeaves",
    "Mixture",
    "Pictures",
    "SyntheticCrops",
    "SyntheticPairs",
]


class Degradation(Protocol):
    """What `irnext.data.degradations` offers; pictures are (H, W, 3) floats in [0, 1]."""

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


class SyntheticPairs:
    """Whole clean pictures, degraded; picture i is always degraded in the same way.

    Args:
        clean: source of clean pictures.
        degradation: such as `Haze()`.
        seed: of the degradations, from 0.
    """

    def __init__(self, clean: Pictures, degradation: Degradation, seed: int = 0):
        self.clean, self.degradation, self.seed = clean, degradation, checked_seed(seed)

    def __len__(self) -> int:
        return len(self.clean)

    def name(self, index: int) -> str:
        """The clean picture's name."""
        return self.clean.name(index)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture `index`, degraded and clean: (H, W, 3) uint8 each."""
        index = range(len(self))[index]
        target = self.clean.read(index)
        return _degrade(self.degradation, target, np.random.default_rng([self.seed, index])), target


@dataclass(frozen=True)
class Augmentation:
    """How a random crop is taken from a clean picture: a few pictures must stand for many.

    Args:
        shrink: by how much a crop is scaled down at most; as far as the picture allows by default.
        flips: mirror half of the crops.
        turns: turn the crops by 0, 1, 2 or 3 quarters.
        channels: put the colour channels in any order.
        gamma: largest natural logarithm of the exponent that darkens or brightens.
    """

    shrink: float = math.inf
    flips: bool = True
    turns: bool = True
    channels: bool = True
    gamma: float = 0.5

    def __post_init__(self):
        if not self.shrink >= 1:
            raise ValueError(f"shrink is {self.shrink}: it must be at least 1, which keeps the scale")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma is {self.gamma}: it must be at least 0, which keeps the brightness")

    def crop(self, picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """A random crop (h, w, 3) of `picture` (H, W, 3), both uint8; reflected where that is smaller."""
        turns = int(rng.integers(4)) if self.turns else 0
        height, width = size if turns % 2 == 0 else size[::-1]
        picture = _reflected(picture, height, width)
        largest = min(self.shrink, picture.shape[0] / height, picture.shape[1] / width)
        scale = rng.uniform(1, largest)
        source = min(round(scale * height), picture.shape[0]), min(round(scale * width), picture.shape[1])
        top, left = (
            int(rng.integers(have - need + 1)) for have, need in zip(picture.shape, source, strict=False)
        )
        crop = picture[top : top + source[0], left : left + source[1]]
        if source != (height, width):
            crop = np.asarray(Image.fromarray(crop).resize((width, height), Image.Resampling.BILINEAR))
        if self.flips and rng.random() < 0.5:
            crop = crop[:, ::-1]
        crop = np.rot90(crop, turns)
        if self.channels:
            crop = crop[..., rng.permutation(3)]
        exponent = np.exp(rng.uniform(-self.gamma, self.gamma))
        return np.rint(255 * np.linspace(0, 1, 256) ** exponent).astype(np.uint8)[crop]


def _reflected(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture, extended by reflection below and to the right to at least height x width."""
    missing = max(height - picture.shape[0], 0), max(width - picture.shape[1], 0)
    if not any(missing):
        return picture
    return np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), "reflect")


class SyntheticCrops(Dataset):
    """Random crops of clean pictures, freshly degraded: `crops[epoch, index]` -> (input, target).

    Both are (3, h, w) uint8. Everything random comes from (seed, epoch, index), so that neither the
    number of workers nor a resumed training changes anything.

    Args:
        clean: source of clean pictures.
        degradation: such as `Haze()`.
        patch: size of the crops, h = w or (h, w).
        seed: from 0.
        length: crops in an epoch, of pictures drawn at random (a `Mixture` by its shares); by default
            one of each picture.
        augmentation: how the clean crops are taken.
    """

    def __init__(
        self,
        clean: Pictures,
        degradation: Degradation,
        patch: int | tuple[int, int],
        seed: int = 0,
        length: int | None = None,
        augmentation: Augmentation | None = None,
    ):
        self.clean, self.degradation, self.seed = clean, degradation, checked_seed(seed)
        self.patch = checked_size("patch", patch)
        if length is not None and length < 1:
            raise ValueError(f"length is {length}: it must be at least 1")
        if not len(clean):
            raise ValueError("there are no clean pictures: at least one is needed")
        self.length = length
        self.augmentation = augmentation or Augmentation()

    def __len__(self) -> int:
        return self.length or len(self.clean)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        if not (epoch >= 0 and 0 <= index < len(self)):
            raise IndexError(f"epoch {epoch}, crop {index}: must be from 0, and below {len(self)} crops")
        rng = np.random.default_rng([self.seed, epoch, index])
        picture = self.clean.read(self._draw(rng) if self.length else index)
        target = self.augmentation.crop(picture, self.patch, rng)
        return _tensor(_degrade(self.degradation, target, rng)), _tensor(target)

    def _draw(self, rng: np.random.Generator) -> int:
        if isinstance(self.clean, Mixture):
            return self.clean.draw(rng)
        return int(rng.integers(len(self.clean)))


def _degrade(degradation: Degradation, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clean picture (H, W, 3), degraded and rounded: both uint8."""
    return eight_bit(degradation.degrade(target.astype(np.float32) / 255, rng))


def _tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) as a contiguous tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
