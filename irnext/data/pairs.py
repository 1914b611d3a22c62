"""Pairs of degraded and clean pictures in folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from .discovery import Found, Pair, existing_folder, find
from .specifications import CUSTOM, DATASETS, SPLITS, Split
from .trees import Tree


class PairedFolder:
    """Pairs of pictures on disk: a source of pairs for training and evaluation.

    Args:
        pairs: their names and files.
        unpaired: pictures without a counterpart, for the record.
        task, dataset, layout, split: what they are, for the record.
        crop_target: crop larger ground truth at its centre to the input's size.
        allow_truncated: read the missing part of cut-off files as grey instead of raising.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        unpaired: Sequence[Path] = (),
        *,
        task: str = "custom",
        dataset: str = "custom",
        layout: str = "folder pair",
        split: Split = "train",
        crop_target: bool = False,
        allow_truncated: bool = False,
    ) -> None:
        self.pairs, self.unpaired = list(pairs), list(unpaired)
        self.task, self.dataset, self.layout, self.split = task, dataset, layout, split
        self.crop_target, self.allow_truncated = crop_target, allow_truncated

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"<{len(self)} {self.split} pairs of {self.dataset}, {self.layout} layout>"

    def name(self, index: int) -> str:
        """A unique name, path-like, without suffix."""
        return self.pairs[index].name

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The degraded picture and the ground truth, both (H, W, 3) uint8 RGB.

        Raises OSError for a file that cannot be opened, and ValueError, naming the file, for one that cannot
        be decoded and for sizes that differ.
        """
        _, input_file, target_file = self.pairs[index]
        input = read_picture(input_file, self.allow_truncated)
        target = read_picture(target_file, self.allow_truncated)
        if self.crop_target:
            target = _centre_crop(target, *input.shape[:2])
        if input.shape != target.shape:
            raise ValueError(
                f"{input_file} has {_size(input)} pixels and its ground truth {target_file} has "
                f"{_size(target)}: they must be of one size"
            )
        return input, target


def open_pairs(
    task: str,
    path: str | os.PathLike,
    split: Split,
    *,
    layout: str | None = None,
    input_folder: str | os.PathLike | None = None,
    target_folder: str | os.PathLike | None = None,
    allow_truncated: bool = False,
) -> PairedFolder:
    """The pairs of a data set on disk, whose layout is found out (`irnext data check PATH` shows it).

    A set without validation pictures is validated on its test pictures, as published code does. A plain pair
    of folders has no splits: it serves for training and testing alike.

    Args:
        task: a key of `specifications.DATASETS` (gopro, its, sots-indoor, ...), or custom for any folders.
        path: the data set's root, a folder in it, or the folder that holds it.
        split: train, validation or test.
        layout: a layout by its name, where a folder has several.
        input_folder, target_folder: for custom, the two folders, absolute or relative to `path`.
        allow_truncated: read the missing part of cut-off files as grey, as published code does for OTS.

    Raises ValueError for an unknown task, split or layout and for a path that is another data set or could be
    two, and FileNotFoundError, with what was looked for, where there are no pairs.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS)}")
    if task not in DATASETS and task != CUSTOM.key:
        raise ValueError(f"unknown data set {task!r}: use {', '.join((*DATASETS, CUSTOM.key))}")
    if (input_folder is None) != (target_folder is None):
        raise ValueError("input_folder and target_folder belong together: give both or none")
    if input_folder is not None:
        if task != CUSTOM.key:
            raise ValueError(f"input_folder and target_folder are for the task custom, not for {task}")
        root = existing_folder(path)
        return _explicit(root / input_folder, root / target_folder, split, allow_truncated)
    found = find(CUSTOM if task == CUSTOM.key else DATASETS[task], path, layout)
    return open_found(found, task, split, allow_truncated)


def open_found(found: Found, task: str, split: Split, allow_truncated: bool = False) -> PairedFolder:
    """The pairs of a split of a recognised data set. Raises as `open_pairs` does."""
    there = found.splits
    tests_apart = found.layout.test != found.layout.train
    taken = "test" if split == "validation" and split not in there and tests_apart else split
    if taken not in there:
        looked = ", ".join(source.forms[0].input for source in found.layout.sources(taken))
        raise FileNotFoundError(
            f"{found.tree.root}: {found.dataset.title}, {found.layout.name} layout, with "
            f"{' and '.join(there)} pairs, but no {split} pairs"
            + (f": looked for {looked}" if looked else "")
        )
    pairing = found.pairing(taken)
    if found.dataset is CUSTOM:
        _check_one_folder(found, pairing.pairs)
    return PairedFolder(
        pairing.pairs,
        pairing.unpaired,
        task=task,
        dataset=found.dataset.title,
        layout=found.layout.name,
        split=split,
        crop_target=any(source.crop_target for source in found.layout.sources(taken)),
        allow_truncated=allow_truncated,
    )


def _check_one_folder(found: Found, pairs: Sequence[Pair]) -> None:
    """Raise ValueError where several folders could be the inputs, or the ground truth, of custom pairs."""
    for folders in ({pair.input.parent for pair in pairs}, {pair.target.parent for pair in pairs}):
        if len(folders) > 1:
            names = " and ".join(sorted(folder.name for folder in folders))
            raise ValueError(
                f"{found.tree.root}: {names} could be meant alike: keep one of them, or give input_folder "
                "and target_folder"
            )


def _explicit(inputs: Path, targets: Path, split: Split, allow_truncated: bool) -> PairedFolder:
    """Pairs of the same name in two folders, wherever they are, or with the target's up to the first "_"."""
    input_tree, target_tree = Tree(existing_folder(inputs)), Tree(existing_folder(targets))
    pairs, unpaired, used = [], [], set()
    for path, fields in input_tree.walk("{name}"):
        stems = dict.fromkeys((fields["name"], fields["name"].split("_")[0]))
        target = next(filter(None, (target_tree.picture(stem, Path(path).suffix) for stem in stems)), None)
        if target is None:
            unpaired.append(inputs / path)
        else:
            pairs.append(Pair(fields["name"], inputs / path, targets / target))
            used.add(target)
    if not pairs:
        raise FileNotFoundError(f"no picture in {inputs} has one of its name in {targets}")
    unpaired += (targets / path for path, _ in target_tree.walk("{name}") if path not in used)
    return PairedFolder(pairs, unpaired, split=split, allow_truncated=allow_truncated)


def read_picture(path: str | os.PathLike, allow_truncated: bool = False) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB, as published evaluations see it.

    Of 16 bits per channel the high byte is taken (DPDD); grey becomes three equal channels and alpha is
    dropped. An EXIF orientation is not applied: the pictures of a pair correspond as they are stored, and
    published loaders do not apply it either. Raises OSError for a file that cannot be opened, and ValueError,
    naming it, for one that cannot be decoded.
    """
    with open(path, "rb") as file, _truncated_files(allow_truncated):
        try:
            image = Image.open(file)
            image.load()
        except Image.UnidentifiedImageError:
            raise ValueError(f"{path}: not a picture in a format that can be read") from None
        except Exception as error:  # decoders of broken files raise anything
            raise ValueError(f"{path}: the picture cannot be decoded: {error}") from error
    if image.mode in ("F", "I"):
        raise ValueError(f"{path}: a grey picture of 32 bits per pixel: pictures of 8 or 16 bits are needed")
    if image.mode.startswith("I;16"):  # Pillow clips these to 255; it takes the high byte of 16-bit colour
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def _truncated_files(allowed: bool) -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = allowed
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _centre_crop(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture that is at least as large, else the picture."""
    top, left = picture.shape[0] - height, picture.shape[1] - width
    if top < 0 or left < 0:
        return picture
    return picture[top // 2 : top // 2 + height, left // 2 : left // 2 + width]


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
