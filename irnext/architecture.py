"""What the package must know of a network to find its weights in files and to run it on pictures."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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
    minimum_size: int = 1
    scale: int = 1
    result_index: ClassVar[int] = -1
    half_types: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16)
    tiling: ClassVar[str] = ""

    @classmethod
    def least_side(cls, **settings) -> int:
        """`minimum_size` of a model made with these settings."""
        return cls.minimum_size

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike, **options) -> Self:
        """The model in a folder or on the Hugging Face hub; see `irnext.hub.from_pretrained`.

        Called on a class of one architecture it takes no other.
        """
        from . import hub

        return hub.from_pretrained(name_or_folder, cls, **options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the model to a folder; see `irnext.hub.save_pretrained`."""
        from . import hub

        hub.save_pretrained(self, folder)

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Upload the model to the Hugging Face hub; see `irnext.hub.push_to_hub`."""
        from . import hub

        return hub.push_to_hub(self, repo_id, **options)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x must be (N, 3, H, W), got {tuple(x.shape)}")
        if min(x.shape[2:]) < self.minimum_size or any(side % self.size_multiple for side in x.shape[2:]):
            raise ValueError(
                f"x is {tuple(x.shape)}: H and W must be multiples of {self.size_multiple} and at least "
                f"{self.minimum_size} (irnext.restore pads pictures of any size)"
            )


def check_settings(settings: Mapping[str, Any], build: Callable[..., nn.Module], name: str) -> None:
    """Raise ValueError for settings that `build`, called `name`, does not take, or of another type.

    The types are those of the defaults; lists go for tuples, and whole numbers for floats.
    """
    allowed = inspect.signature(build).parameters
    if unknown := [setting for setting in settings if setting not in allowed]:
        raise ValueError(f"unknown settings {', '.join(unknown)}: {name} has {', '.join(allowed)}")
    for setting, value in settings.items():
        wanted = type(allowed[setting].default)
        fitting = {tuple: (tuple, list), float: (float, int)}.get(wanted, wanted)
        if not isinstance(value, fitting) or isinstance(value, bool) != (wanted is bool):
            raise ValueError(f"the setting {setting} is {value!r}: it must be of type {wanted.__name__}")


def majority(values: Iterable) -> Any:
    """What most of some values are, so that a damaged entry does not decide a setting."""
    return Counter(values).most_common(1)[0][0]


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
        landmarks: entries, by our names, that the model has with any settings; * is any part of a name.
        settings: gives all settings from the shapes of a file's entries, by our names, and the settings
            already known, which go first; raises ValueError where the two cannot go together.
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
