"""How well a model restores the pictures of a test set, by the protocols of the field's tables."""

from __future__ import annotations

import copy
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import images
from .data import Pairs
from .devices import check_device
from .files import output_folder
from .metrics import Metric, measure, require
from .metrics.protocols import saved_levels
from .provenance import describe_model, environment, file_hash
from .restoration import restore
from .restoration.files import progress_bar
from .restoration.inference import continued_side, release, scale_of, sizes
from .restoration.jobs import reason

PER_PICTURE, FIRST, TRAIN = WINDOWS = ("per-picture", "first", "train")
TRAINING_SIDE = 256  # of the crops that the published code trains on
SAVED = "irnext-rgb-saved"
DESCRIPTION = ("dataset", "layout", "split", "degradation", "seed")  # what pairs may know of themselves
Window = str | tuple[int, int]
FAILURES = (ValueError, OSError, FloatingPointError, MemoryError)  # of one picture; the others go on


@dataclass(frozen=True)
class Row:
    """One picture: its index in the set, name, size, seconds of restoring, and scores.

    `before` are the scores of the degraded input, empty where they were not asked for.
    """

    index: int
    name: str
    height: int
    width: int
    seconds: float
    scores: dict[Metric, float]
    before: dict[Metric, float] = field(default_factory=dict)


class Mean(NamedTuple):
    """A mean over the pictures with a finite value, NaN where there is none, and how many these are."""

    value: float
    count: int


@dataclass
class Evaluation:
    """What `evaluate` found: one row per picture, and per failed picture one line that says why.

    `about` says what was computed from what, with what, as plain values that JSON can hold.
    `subsets` are indices of the set by name.
    """

    test_set: str
    about: dict
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    subsets: dict[str, frozenset[int]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[Metric]:
        """What was measured, in the order of the protocols."""
        return list(self.rows[0].scores) if self.rows else []

    def of_subset(self, name: str | None) -> list[Row]:
        """The rows of a subset; None for all."""
        return [row for row in self.rows if name is None or row.index in self.subsets[name]]

    def mean(self, metric: Metric, subset: str | None = None, before: bool = False) -> Mean:
        """The mean over the pictures of the set or a subset, leaving out NaN and infinite values.

        Infinite is the PSNR of equal pictures.
        """
        found = [row.before.get(metric) if before else row.scores[metric] for row in self.of_subset(subset)]
        finite = [value for value in found if value is not None and math.isfinite(value)]
        return Mean(math.fsum(finite) / len(finite) if finite else math.nan, len(finite))


def evaluate(
    model: nn.Module,
    pairs: Pairs,
    protocols: Sequence[str] = ("irnext-rgb",),
    *,
    test_set: str | None = None,
    weights: str | os.PathLike | None = None,
    window: Window = PER_PICTURE,
    before: bool = False,
    limit: int | None = None,
    subsets: Mapping[str, Sequence[int]] | None = None,
    save: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    scorers: int = 1,
) -> Evaluation:
    """Restore every picture of a test set and score it, with a progress bar on the error output.

    Pictures go through `irnext.restore`: continued by reflection to the right and below to a multiple
    of 32, restored at once, cropped, clamped to [0, 1]. The protocols round where theirs say so. A picture
    that cannot be read, restored or scored does not stop the others.

    Args:
        model: as for `irnext.restore`; left where it is.
        pairs: `irnext.data.open_pairs(...)`, or any object with `len`, `name(i)` and `read(i)`.
        protocols: names among `irnext.metrics.PROTOCOLS`; all score the same restored pictures.
        test_set: its name in reports, as in `irnext.paper.RESULTS`; by default the pairs' own task.
        weights: the model's file, of which the report gives the hash.
        window: of an IRNeXt with low_pass="local". "per-picture": each picture's own; "first": that of the
            first picture for all, as published code does by accident, whatever the order of the
            files; "train": that of the 256x256 crops of training; or the (height, width) of a
            picture, in pixels. Afterwards each picture uses its own again.
        before: also score the degraded inputs.
        limit: only the first pictures of the set.
        subsets: indices into `pairs` by name, to be averaged separately (DPDD's indoor and outdoor).
        save: a folder for the restored pictures, as 8-bit PNG under their names. With protocol
            "irnext-rgb", these are scored, too ("irnext-rgb-saved").
        device, dtype, tile, overlap, max_memory: as for `irnext.restore`.
        scorers: threads that score, beside the one that restores; several pay where scoring is slower
            ("rsblur"), each holding a picture.

    Raises:
        ValueError: an unknown protocol, an empty set, a limit or a number of scorers below 1, a window
            for a model without one, a model that enlarges, an index beyond the set, or an option that
            `irnext.restore` refuses.
        ImportError: a protocol's package is missing.
        OSError: the folder cannot be written.
        All before the model runs.
    """
    require(protocols)
    protocols = _with_saved(protocols, save is not None)
    count = len(pairs)
    if not count:
        raise ValueError("the test set has no pairs")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: at least 1 picture is needed")
    if scorers < 1:
        raise ValueError(f"scorers is {scorers}: at least 1 thread is needed")
    _check_window(model, window)
    if (scale := scale_of(model)) != 1:
        raise ValueError(f"the model enlarges {scale} times, and the pictures of a pair have one size")
    evaluation = Evaluation(
        test_set or getattr(pairs, "task", "pictures"),
        about={},
        subsets={name: _indices(name, chosen, count) for name, chosen in (subsets or {}).items()},
    )
    model, dtype = _placed(model, device, dtype)
    options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype}
    restore(model, torch.empty(0, 3, 64, 64), **options)  # refuses options that do not go together
    evaluation.about = {
        "protocols": list(protocols),
        "model": describe_model(model),
        "window": _describe_window(model, window),
        "tile": tile,
        "weights": None if weights is None else {"file": Path(weights).name, "sha256": file_hash(weights)},
        "data": {key: str(getattr(pairs, key)) for key in DESCRIPTION if hasattr(pairs, key)},
        "pictures": count if limit is None else min(limit, count),
        "of": count,
        "environment": environment(model, dtype),
    }
    folder = nullcontext() if save is None else output_folder(save)
    with folder, _fixed_window(model, window) as latch, progress_bar() as progress:
        task = progress.add_task("evaluating", total=evaluation.about["pictures"])
        work = _Work(model, pairs, protocols, before, None if save is None else Path(save), options, latch)
        for index, outcome in work.outcomes(evaluation.about["pictures"], scorers):
            name = pairs.name(index)
            if isinstance(outcome, Row):
                evaluation.rows.append(outcome)
            else:
                evaluation.failed[name] = reason(outcome, name)
            progress.update(task, description=name, advance=1)
    return evaluation


@dataclass(frozen=True)
class _Work:
    """What is done with every picture; the arguments are those of `evaluate`, `latch` of `_fixed_window`."""

    model: nn.Module
    pairs: Pairs
    protocols: Sequence[str]
    before: bool
    save: Path | None
    options: dict
    latch: Callable[[int, int], None]

    def outcomes(self, count: int, scorers: int) -> Iterator[tuple[int, Row | Exception]]:
        """The row of each picture, in order, or why it has none.

        While one picture is restored, up to `scorers` before it are scored.
        """
        pending: deque[Future[Row]] = deque()
        with ThreadPoolExecutor(scorers) as pool:
            for index in range(count):
                pending.append(self._started(index, pool))
                if len(pending) > scorers:
                    yield index - scorers, _outcome(pending.popleft())
            yield from enumerate(map(_outcome, pending), count - len(pending))

    def _started(self, index: int, pool: ThreadPoolExecutor) -> Future[Row]:
        """A picture restored, and being scored."""
        try:
            pair = self.pairs.read(index)
            self.latch(*pair[0].shape[:2])
            given, target = (torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))) for x in pair)
            started = time.perf_counter()
            restored = restore(self.model, given.float() / 255, **self.options)
            seconds = time.perf_counter() - started
            release(self.model)
            if self.save is not None:
                _write(restored, self.save / f"{self.pairs.name(index)}.png")
            return pool.submit(self._row, index, given, target, restored, seconds)
        except FAILURES as error:
            failed: Future[Row] = Future()
            failed.set_exception(error)
            return failed

    def _row(self, index: int, given: Tensor, target: Tensor, restored: Tensor, seconds: float) -> Row:
        device = _measuring_device(self.model)
        target = target.to(device)
        scores = measure(self.protocols, restored.to(device), target)
        previous = measure(self.protocols, given.to(device).float() / 255, target) if self.before else {}
        return Row(index, self.pairs.name(index), *target.shape[1:], seconds, scores, previous)


def _outcome(scored: Future[Row]) -> Row | Exception:
    try:
        return scored.result()
    except FAILURES as error:
        return error


def _measuring_device(model: nn.Module) -> torch.device:
    """A GPU that has float64 where the model is on one, else the CPU."""
    weight = next(model.parameters(), None)
    return weight.device if weight is not None and weight.is_cuda else torch.device("cpu")


def _with_saved(protocols: Sequence[str], saved: bool) -> tuple[str, ...]:
    """The protocols, each once, and that of saved pictures where there are any."""
    names = dict.fromkeys(protocols)
    if saved and "irnext-rgb" in names:
        names[SAVED] = None
    return tuple(names)


def _indices(name: str, chosen: Sequence[int], count: int) -> frozenset[int]:
    if outside := [index for index in chosen if not 0 <= index < count]:
        raise ValueError(f"subset {name} has index {outside[0]}: the set has {count} pictures, from 0")
    return frozenset(chosen)


def _placed(
    model: nn.Module, device: str | torch.device | None, dtype: torch.dtype | None
) -> tuple[nn.Module, torch.dtype | None]:
    """The model on `device`, and in a wide `dtype`: itself where it is so; and the type left to autocast."""
    if device is not None:
        check_device(device)
    weight = next(model.parameters(), None)
    if weight is None:
        return model, dtype
    wide = dtype if dtype in (torch.float32, torch.float64) else None
    there = torch.empty(0, device=device).device if device is not None else weight.device
    if there != weight.device or wide not in (None, weight.dtype):
        model = copy.deepcopy(model).to(there, wide)
    return model, None if wide else dtype


# ---- the window of local means -------------------------------------------------------------------


def _low_pass(model: nn.Module) -> str | None:
    return getattr(model, "settings", {}).get("low_pass")


def _check_window(model: nn.Module, window: Window) -> None:
    if isinstance(window, str) and window not in WINDOWS:
        raise ValueError(f"unknown window {window!r}: choose {', '.join(WINDOWS)}, or a picture's size")
    if window != PER_PICTURE and _low_pass(model) != "local":
        raise ValueError(
            f"window is {window!r}, but the model has no local means to take over it "
            f"(its low_pass is {_low_pass(model)!r}, not 'local')"
        )


def _describe_window(model: nn.Module, window: Window) -> str:
    if _low_pass(model) != "local":
        return "none"
    return window if isinstance(window, str) else f"{window[0]}x{window[1]}"


@contextmanager
def _fixed_window(model: nn.Module, window: Window) -> Iterator:
    """A function to be called with every picture's height and width, which fixes the window once."""
    if _low_pass(model) != "local":
        yield lambda height, width: None
        return
    fixed = {PER_PICTURE: None, TRAIN: (TRAINING_SIDE, TRAINING_SIDE), FIRST: None}.get(window, window)
    model.fix_local_window(*(fixed or (None,)))
    waiting = window == FIRST

    def latch(height: int, width: int) -> None:
        nonlocal waiting
        if waiting:
            model.fix_local_window(*(continued_side(side, *sizes(model)) for side in (height, width)))
        waiting = False

    try:
        yield latch
    finally:
        model.fix_local_window(None)


def _write(restored: Tensor, path: Path) -> None:
    values = saved_levels(restored).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(Image.fromarray(np.ascontiguousarray(values)), path)
