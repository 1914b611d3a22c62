"""Sources of clean pictures: photographs, dead-leaves images, and mixtures of them.

A source has `len(clean)`, `clean.name(i)`, unique and path-like, and `clean.read(i)`, (H, W, 3) uint8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .. import images
from .dead_leaves import dead_leaves


class Pictures(Protocol):
    """A source of clean pictures."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> np.ndarray: ...


class Memory:
    """Pictures kept once they were made, as long as they fit into `limit` bytes."""

    def __init__(self, limit: int):
        self.free = limit
        self.kept: dict[int, np.ndarray] = {}

    def get(self, index: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """Picture `index`, a copy of the kept one or what `make(index)` returns."""
        if index in self.kept:
            return self.kept[index].copy()
        picture = make(index)
        if picture.nbytes <= self.free:
            self.free -= picture.nbytes
            self.kept[index] = picture.copy()
        return picture


class CleanPictures:
    """The pictures of a folder and its subfolders, or the given files, as (H, W, 3) uint8 RGB.

    Grey becomes three equal channels, transparency is left out, 16 bits are rounded to 8. Decoded
    pictures are kept up to `memory` bytes, in each worker of a loader.

    Raises:
        FileNotFoundError: the folder or a file does not exist.
        ValueError: there is no picture, or, on reading, the file, which is named, cannot be decoded.
    """

    def __init__(self, source: str | os.PathLike | Iterable[str | os.PathLike], memory: int = 2**29):
        if isinstance(source, str | os.PathLike):
            self.folder, self.files = Path(source), _pictures_in(Path(source))
        else:
            self.files = [Path(file) for file in source]
            self.folder = _common_folder(self.files)
        self._memory = Memory(memory)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file's path below the folder that all have in common."""
        return self.files[index].relative_to(self.folder).as_posix()

    def read(self, index: int) -> np.ndarray:
        """Picture `index`: (H, W, 3) uint8."""
        return self._memory.get(range(len(self))[index], self._decode)

    def _decode(self, index: int) -> np.ndarray:
        path = self.files[index]
        image = images.read(path)
        try:
            return eight_bit(images.colour(images.simplify(image)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of clean pictures")
    pictures = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in images.READ_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not pictures:
        raise ValueError(f"{folder}: holds no pictures (looked for {', '.join(images.READ_SUFFIXES)})")
    return pictures


def _common_folder(files: list[Path]) -> Path:
    if not files:
        raise ValueError("no clean pictures were given: at least one is needed")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such picture")
    return Path(os.path.commonpath([file.parent for file in files]))


class DeadLeaves:
    """Dead-leaves images; image i is always the same.

    Args:
        count: number of images.
        size: of each, h = w or (h, w), in pixels.
        seed: of the images, from 0.
        memory: bytes up to which images are kept once they were drawn, in each worker of a loader.
    """

    def __init__(self, count: int, size: int | tuple[int, int] = 256, seed: int = 0, memory: int = 2**29):
        if count < 1:
            raise ValueError(f"count is {count}: it must be at least 1")
        self.count, self.size, self.seed = count, checked_size("size", size), checked_seed(seed)
        self._memory = Memory(memory)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Such as leaves-00012."""
        return f"leaves-{range(self.count)[index]:05d}"

    def read(self, index: int) -> np.ndarray:
        """Image `index`: (h, w, 3) uint8."""
        return self._memory.get(range(self.count)[index], self._draw)

    def _draw(self, index: int) -> np.ndarray:
        return eight_bit(dead_leaves(np.random.default_rng([self.seed, index]), *self.size))


class Mixture:
    """Several sources of clean pictures as one, one after the other.

    Args:
        sources: by name, which becomes the first folder of their pictures' names.
        shares: how often `draw` takes each source, in proportion; by default its number of pictures.
    """

    def __init__(self, sources: dict[str, Pictures], shares: Sequence[float] | None = None):
        if not sources or not all(len(source) for source in sources.values()):
            raise ValueError(f"the sources {list(sources)} must be at least one, and none of them empty")
        self.names, self.sources = list(sources), list(sources.values())
        lengths = [len(source) for source in self.sources]
        self.ends = np.cumsum(lengths)
        weights = np.array(lengths if shares is None else shares, dtype=float)
        if len(weights) != len(lengths) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise ValueError(f"shares is {shares}: one number from 0 for each of {', '.join(self.names)}")
        self.shares = weights / weights.sum()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, index: int) -> str:
        """The source's name, a slash, and the picture's name in it."""
        source, index = self._locate(index)
        return f"{self.names[source]}/{self.sources[source].name(index)}"

    def read(self, index: int) -> np.ndarray:
        """Picture `index`: (H, W, 3) uint8."""
        source, index = self._locate(index)
        return self.sources[source].read(index)

    def draw(self, rng: np.random.Generator) -> int:
        """The index of a random picture: a source by its share, then any picture of it."""
        source = rng.choice(len(self.sources), p=self.shares)
        length = len(self.sources[source])
        return int(self.ends[source]) - length + int(rng.integers(length))

    def _locate(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]
        source = int(np.searchsorted(self.ends, index, side="right"))
        return source, index - int(self.ends[source]) + len(self.sources[source])


def checked_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """`size`, h = w or (h, w), as (h, w); ValueError, naming the setting `name`, where it is none."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"{name} is {size}: it must be a size or (height, width) of at least 1")
    return height, width


def checked_seed(seed: int) -> int:
    """`seed`, where it is at least 0; ValueError otherwise."""
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must be at least 0")
    return seed


def eight_bit(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) floats in [0, 1] as uint8."""
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
