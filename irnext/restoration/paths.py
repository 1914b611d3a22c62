"""Which files are restored, and where their results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from .. import images
from .jobs import Job, check_collisions


def plan(
    inputs: Sequence[str | os.PathLike], output: str | os.PathLike, recursive: bool, compare: bool
) -> list[Job]:
    """What is to be restored, in order, each picture once; see `restore_files`.

    Raises OSError for an input that is missing, ValueError for no pictures and for results that would
    take each other's name or overwrite an input.
    """
    output = Path(output)
    pictures = find_pictures(inputs, recursive, leave_out=output)
    jobs = [Job(source, target) for source, target in zip(pictures, _targets(pictures, output), strict=True)]
    check_collisions(jobs, lambda job: results(job, compare))
    return jobs


def find_pictures(
    inputs: Sequence[str | os.PathLike], recursive: bool = False, leave_out: Path | None = None
) -> dict[Path, Path]:
    """The picture files that files, folders and patterns stand for, in order, each once.

    Each comes with the place of its result: its name, or, of a folder taken with its sub-folders
    (`recursive`), its path in there. Hidden files and folders, and the folder `leave_out` where it is
    one of the sub-folders, do not count.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for given in map(os.fspath, inputs):
        folder = Path(given) if recursive and os.path.isdir(given) else None
        for path in _expand(given, recursive, leave_out):
            found.setdefault(path.resolve(), (path, path.relative_to(folder) if folder else Path(path.name)))
    if not found:
        raise ValueError("no pictures given")
    return dict(found.values())


def _expand(given: str, recursive: bool, leave_out: Path | None) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        candidates = list(_walk(path, leave_out)) if recursive else _visible(path, os.listdir(path))
    elif path.exists():
        return [path]
    elif glob.has_magic(given):
        candidates = sorted(map(Path, glob.glob(given, recursive=True)))
    else:
        raise FileNotFoundError(f"{given}: no such file or folder")
    pictures = [p for p in candidates if p.suffix.lower() in images.READ_SUFFIXES and p.is_file()]
    if not pictures:
        where = "no pictures in this folder" if path.is_dir() else "no pictures match"
        raise ValueError(f"{given}: {where} (looked for {', '.join(images.READ_SUFFIXES)})")
    return pictures


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """The visible files of a folder and of its sub-folders; links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        inner = _visible(Path(place), folders)
        folders[:] = [path.name for path in inner if leave_out is None or not _same(path, leave_out)]
        yield from _visible(Path(place), files)


def _visible(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()


def _targets(pictures: dict[Path, Path], output: Path) -> list[Path]:
    """Where each result goes."""
    is_picture_name = output.suffix.lower() in {*Image.registered_extensions(), *images.FORMATS}
    if output.is_dir() or not is_picture_name:
        if output.exists() and not output.is_dir():
            raise ValueError(
                f"{output}: this is a file, not a folder; the output is a folder or a picture's name"
            )
        return [output / _result_name(place) for place in pictures.values()]
    if len(pictures) > 1:
        raise ValueError(f"{output}: names one picture, but there are {len(pictures)} inputs; name a folder")
    images.check_can_hold(output, "L")  # every format holds grey: this checks the suffix
    return [output]


def _result_name(place: Path) -> Path:
    return place if place.suffix.lower() in images.FORMATS else place.with_suffix(".png")


def compare_path(target: Path) -> Path:
    """Where the side-by-side picture of a result goes."""
    return target.with_name(f"{target.name}-compare.png")


def results(job: Job, compare: bool) -> tuple[Path, ...]:
    """The files that a picture becomes."""
    return (job.target, compare_path(job.target)) if compare else (job.target,)
