"""A copy of a data set with its JPEG files decoded, so that every machine trains and evaluates on the same
values: decoders differ by a few grey levels."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..files import atomic_file
from .discovery import existing_folder
from .pairs import read_picture

_JPEG = (".jpg", ".jpeg")


def plan(source: str | os.PathLike, target: str | os.PathLike) -> list[tuple[Path, Path]]:
    """Each file of `source` with its copy in `target`, where JPEG files become .png.

    Raises FileNotFoundError for a missing source, and ValueError for one without JPEG files, for a target
    inside the source or the reverse, and for two files that would have the same copy.
    """
    source, target = existing_folder(source), Path(os.path.abspath(target))
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise ValueError(f"{target}: the copy of {source} must be elsewhere, neither inside nor around it")
    copies: dict[Path, Path] = {}
    for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name[0] != "."):
        copy = target / path.relative_to(source)
        copy = copy.with_suffix(".png") if _is_jpeg(path) else copy
        if copy in copies:
            raise ValueError(f"{path} and {copies[copy]} would both become {copy}: rename one of them")
        copies[copy] = path
    if not any(map(_is_jpeg, copies.values())):
        raise ValueError(f"{source}: no JPEG files here, so there is nothing to decode")
    return [(path, copy) for copy, path in copies.items()]


def decode(copies: list[tuple[Path, Path]], allow_truncated: bool = False) -> Iterator[str | None]:
    """Make the copies, skipping those that exist; yields for each None, or what is wrong with its source.

    The copy of a JPEG file holds what `read_picture` makes of it. A copy appears whole or not at all. Raises
    OSError where the target cannot be written.
    """
    # Whether cut-off files are allowed is a global switch of Pillow's, which threads would share.
    with ThreadPoolExecutor(1 if allow_truncated else os.cpu_count()) as pool:
        yield from pool.map(lambda files: _copy(*files, allow_truncated), copies)


def _copy(path: Path, copy: Path, allow_truncated: bool) -> str | None:
    if copy.exists():
        return None
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not _is_jpeg(path):
        with open(path, "rb") as file, atomic_file(copy) as new:
            shutil.copyfileobj(file, new)
        return None
    try:
        picture = read_picture(path, allow_truncated)
    except (OSError, ValueError) as error:
        return str(error)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    with atomic_file(copy) as new:
        new.write(encoded.getbuffer())
    return None


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in _JPEG
