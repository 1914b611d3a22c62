"""What the package must know of a network to find its weights in files and to run it on pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .published import PublishedNames

State = dict[str, Tensor]


class RestorationModel(PublishedNames):
    """A network from pictures (N, 3, H, W) to restored ones, and what it takes.

    `forward` returns the restored pictures (N, 3, scale * H, scale * W), or a list of outputs of which
    one is that, all of which a training compares with the target.

    Attributes:
        settings: the arguments it was made with, as JSON can hold them.
        size_multiple, minimum_size: what H and W must be a multiple of, and their minimum.
        scale: how many times as many pixels the result has along a side.
        result_index: which of the outputs is the restored picture.
        half_types: the types that it computes in under autocast with results close to float32's.
        tiling: how results in tiles differ from those of the whole picture, in a few words.
    """

    settings: dict[str, Any]
    size_multiple: ClassVar[int] = 1
    minimum_size: ClassVar[int] = 1
    scale: int = 1
    result_index: ClassVar[int] = -1
    half_types: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16)
    tiling: ClassVar[str] = ""

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x must be (N, 3, H, W), got {tuple(x.shape)}")
        if min(x.shape[2:]) < self.minimum_size or any(side % self.size_multiple for side in x.shape[2:]):
            raise ValueError(
                f"x is {tuple(x.shape)}: H and W must be multiples of {self.size_multiple} and at least "
                f"{self.minimum_size} (irnext.restore pads pictures of any size)"
            )


def unchanged(value: Any) -> Any:
    """The same."""
    return value


def nothing(value: Any) -> None:
    """None."""


@dataclass(frozen=True)
class Architecture:
    """What `irnext.load` must know of a model to find it in a file.

    Attributes:
        name: as files of ours name it.
        build: makes the model from its settings.
        landmarks: entries, by our names, that the model has with any settings.
        settings: gives all settings from the shapes of the entries, by our names, and the settings already
            known, which go first; raises ValueError where the two cannot go together.
        our_name: our name of a published entry, or of ours.
        tidy: a state dict by its file's names with all entries of the model and no others, where published
            files have too many or too few.
        assumed: what neither weights nor published files tell of a model with these settings, in a sentence.
    """

    name: str
    build: Callable[..., nn.Module]
    landmarks: tuple[str, ...]
    settings: Callable[[dict[str, torch.Size], dict[str, Any]], dict[str, Any]]
    our_name: Callable[[str], str] = unchanged
    tidy: Callable[[State], State] = unchanged
    assumed: Callable[[dict[str, Any]], str | None] = nothing
