"""`irnext data check` and `irnext data decode-cache`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from ..data import checking, decoding, discovery
from ..data.specifications import CUSTOM, DATASETS
from ..info import jpeg_decoder
from .common import FAILED, REFUSED, Name, complain

_SHOWN = 5  # unpaired pictures that are named

Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]


def check(path: Folder, /, task: Name = None, layout: Name = None, deep: bool = False) -> int:
    """Say what data set lies in a folder: its layout, pairs and sizes, and what is missing or broken.

    The exit code is 0 where everything found can be used, else 2.

    Args:
        path: the data set's folder, one inside it, or the one that holds it.
        task: the data set it should be (gopro, its, rain100l, ..., or custom for any folders); by default
            what it looks like.
        layout: the layout it should have.
        deep: read every picture fully.
    """
    reports = [checking.check(found, deep, _track) for found in _expected(path, task, layout)]
    for report in reports:
        print(report.summary)
        for unpaired in report.unpaired[:_SHOWN]:
            print(f"  unpaired: {unpaired}")
        if len(report.unpaired) > _SHOWN:
            print(f"  and {len(report.unpaired) - _SHOWN:,} more")
        for problem in report.problems:
            complain(problem)
    return REFUSED if any(report.problems for report in reports) else 0


def _expected(path: Path, task: str | None, layout: str | None) -> list[discovery.Found]:
    if task is not None or layout is not None:
        known = {**DATASETS, CUSTOM.key: CUSTOM}
        if task not in known:
            wrong = f"unknown data set {task!r}" if task else "--layout needs --task"
            raise ValueError(f"{wrong}: give --task with one of {', '.join(known)}")
        return [discovery.find(known[task], path, layout)]
    found = discovery.recognise(path)
    if not found:
        absence = discovery.explain_absence(CUSTOM, discovery.existing_folder(path))
        raise FileNotFoundError(f"{absence}; --task NAME tells what a data set of the paper needs")
    for same in found:
        if len(same) > 1:
            titles = " or ".join(one.dataset.title for one in same)
            keys = ", ".join(one.dataset.key for one in same)
            raise ValueError(f"{path}: this could be {titles}: say which by --task ({keys})")
    return [one for (one,) in found]


def _track(results: Iterable, doing: str, total: int) -> Iterable:
    """The results, with a progress bar on a terminal."""
    bar = Console(stderr=True)
    return track(results, doing, total, console=bar, transient=True, disable=not bar.is_terminal)


def decode_cache(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    allow_truncated: bool = False,
) -> int:
    """Copy a data set with its JPEG files decoded to PNG, by this machine's decoder.

    JPEG decoders differ by a few grey levels: published results of outdoor dehazing depend on which one was
    used. Files that are there already are skipped, so an interrupted copy can be taken up again.

    Args:
        source: the data set's folder.
        target: the folder of the copy.
        allow_truncated: decode cut-off files as far as they go.
    """
    copies = decoding.plan(source, target)
    results = _track(decoding.decode(copies, allow_truncated), "decoding", len(copies))
    problems = [problem for problem in results if problem]
    for problem in problems:
        complain(problem)
    print(f"{target}: {len(copies) - len(problems):,} files, decoded by {jpeg_decoder()}")
    return FAILED if problems else 0
