"""Lists of the pictures of a test set that are averaged separately, such as DPDD's indoor and outdoor."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..images import READ_SUFFIXES


def read_subset(path: str | os.PathLike, names: list[str]) -> list[int]:
    """Indices into the names of a test set from a file that lists some of its pictures.

    Args:
        path: .npy with numbers from 1, in the order of `names` (as Restormer's lists of DPDD are, the
            names sorted), or a text file with one name per line, with or without folder and suffix.
        names: of all pictures, path-like, without suffix.

    Raises:
        OSError: no such file.
        ValueError: another content, or a name that the set has not, or has more than once.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return _numbers(path, len(names))
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it must be a text file with one name per line, or .npy") from None
    return [_index(line.strip(), names, path) for line in lines if line.strip()]


def _numbers(path: Path, count: int) -> list[int]:
    try:
        numbers = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: no list of numbers: {error}") from None
    whole = numbers.dtype.kind in "iu"
    if not whole or (numbers.size and not 1 <= numbers.min() <= numbers.max() <= count):
        raise ValueError(f"{path}: it must hold whole numbers from 1 to {count}")
    return [int(number) - 1 for number in numbers.ravel()]


def _index(line: str, names: list[str], path: Path) -> int:
    """The one picture of this name, or else with this last part of its name."""
    wanted = Path(line)
    if wanted.suffix.lower() in READ_SUFFIXES:
        wanted = wanted.with_suffix("")
    found = [i for i, name in enumerate(names) if Path(name) == wanted]
    found = found or [i for i, name in enumerate(names) if Path(name).name == wanted.name]
    if len(found) != 1:
        raise ValueError(f"{path}: {line}: {len(found)} pictures of the set have this name, not one")
    return found[0]
