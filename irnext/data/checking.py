"""What a data set on disk is, in a sentence, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .discovery import Found
from .pairs import PairedFolder, open_found
from .specifications import Split

_SAMPLE = 16  # pairs of each split whose headers are read


@dataclass(frozen=True)
class Report:
    """A recognised data set: `summary` is one line; `problems` are files and pairs that cannot be used."""

    summary: str
    unpaired: list[Path]
    problems: list[str]


def check(found: Found, deep: bool = False, progress: Callable[..., Iterable] | None = None) -> Report:
    """Count the pairs of a recognised data set and compare the sizes within pairs.

    Reads the headers of a few pairs, or, with `deep`, every picture; `progress(results, "reading", total)`
    may then wrap the results to show how far it is.
    """
    splits: dict[Split, PairedFolder] = {}
    problems = []
    for split in found.splits:
        try:
            splits[split] = open_found(found, found.dataset.key, split)
        except ValueError as error:
            problems.append(str(error))
    sizes = set()
    for pairs in splits.values():
        for size, problem in map(_header, *zip(*_sample(pairs), strict=True)):
            sizes |= {size} if size else set()
            problems += [problem] if problem and not deep else []
    if deep:
        results = _read_all(splits.values())
        if progress:
            results = progress(results, "reading", sum(map(len, splits.values())))
        problems += filter(None, results)
    unpaired = list(dict.fromkeys(path for pairs in splits.values() for path in pairs.unpaired))
    parts = [
        found.dataset.title,
        f"{found.layout.name} layout",
        _counts(found, splits),
        _sizes(sizes),
        f"{len(unpaired):,} unpaired",
    ]
    return Report(", ".join(filter(None, parts)), unpaired, problems)


def _sample(pairs: PairedFolder) -> list[tuple[PairedFolder, int]]:
    step = max(len(pairs) // _SAMPLE, 1)
    return [(pairs, index) for index in range(0, len(pairs), step)]


def _header(pairs: PairedFolder, index: int) -> tuple[tuple[int, int] | None, str | None]:
    """(height, width) of an input, and what is wrong with the pair as far as the headers tell."""
    pair = pairs.pairs[index]
    sizes = []
    for path in (pair.input, pair.target):
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
        except Image.UnidentifiedImageError:
            return None, f"{path}: not a picture in a format that can be read"
        except Exception as error:  # decoders of broken files raise anything
            return None, f"{path}: {error}"
    (height, width), (target_height, target_width) = sizes
    larger = target_height >= height and target_width >= width
    if sizes[0] != sizes[1] and not (pairs.crop_target and larger):
        return sizes[0], (
            f"{pair.input} has {width}x{height} pixels and its ground truth {pair.target} has "
            f"{target_width}x{target_height}: they must be of one size"
        )
    return sizes[0], None


def _read_all(splits: Iterable[PairedFolder]) -> Iterator[str | None]:
    """What is wrong with each pair, or None, having read it fully."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        for pairs in splits:
            yield from pool.map(lambda index, pairs=pairs: _problem(pairs, index), range(len(pairs)))


def _problem(pairs: PairedFolder, index: int) -> str | None:
    try:
        pairs.read(index)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _counts(found: Found, splits: dict[Split, PairedFolder]) -> str:
    """2,103 train and 1,111 test pairs as published."""
    published = found.layout.published
    as_published = bool(published) and all(
        split in splits and len(splits[split]) == count for split, count in published.items()
    )
    counts = []
    for split, pairs in splits.items():
        expected = published.get(split)
        of = f" of {expected:,}" if expected and expected != len(pairs) else ""
        counts.append(f"{len(pairs):,}{of} {split}")
    return " and ".join(counts) + " pairs" + (" as published" if as_published else "")


def _sizes(sizes: set[tuple[int, int]]) -> str:
    """720x1280, or the range of mixed sizes; height first, as in the paper."""
    if not sizes:
        return ""
    height, width = (sorted(sides) for sides in zip(*sizes, strict=True))
    if len(sizes) == 1:
        return f"{height[0]}x{width[0]}"
    return f"mixed sizes from {height[0]}x{width[0]} to {height[-1]}x{width[-1]}"
