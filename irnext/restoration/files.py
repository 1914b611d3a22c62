"""Restoring picture files: of folders, by one process or several, with what fails told at the end."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from .. import images
from ..bands import whole_memory
from ..files import output_folder
from ..memory import format_size
from ..optimization import OptimizedModel
from .inference import (
    AUTO,
    check_memory,
    continued_side,
    first_weight,
    prepared,
    release,
    share_of_free,
    sizes,
)
from .jobs import FAILURES, Job, Report, dealt, joined, reason, without_finished
from .paths import compare_path, plan, results
from .pictures import restore
from .pipeline import Behind, ahead
from .processes import Processes
from .tiles import check_tiles

# Threads that write: encoding a PNG takes longer than reading one, and a fast model would wait for it.
WRITERS = 4


def restore_files(
    model: nn.Module,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    compare: bool = False,
    recursive: bool = False,
    resume: bool = False,
    processes: Processes | None = None,
) -> Report:
    """Restore picture files, with a progress bar on the terminal's error output.

    The next picture is read and the last ones, at most four, are written while the model runs.

    Args:
        model, tile, overlap, max_memory, dtype, device: as in `restore`; a picture for which "auto" means
            bands is noted on the terminal's error output.
        inputs: files, folders (their pictures by suffix) and patterns such as "shots/*.jpg" or
            "shots/**/*.png"; a file named twice is restored once.
        output: a folder, made if missing, where each result keeps its input's name (formats that
            are not written, such as GIF, become PNG); or, for exactly one picture, a file name with
            the suffix of the format wanted.
        compare: also write NAME-compare.png beside each result, before on the left, after right.
            NAME is the result's whole name: a.jpg-compare.png, as a.png may stand beside a.jpg.
        recursive: take the sub-folders of folders, too; results keep their place in the tree.
        resume: leave out pictures whose results exist; they are whole, whatever they were made with.
        processes: those that share this work, every one of which makes the same call: each takes its
            part of the pictures, of about as many pixels. None for this process alone.

    Returns:
        What was written, and what failed: one unreadable picture does not stop the others. An
        existing result is replaced, whole or not at all. Of several processes the first gets the
        report of all, in the order of the names, the others that of their part.

    Raises:
        OSError: an input that is missing, an output that cannot be written.
        ValueError: no pictures, results that would take each other's name or overwrite an input,
            or any option that `restore` refuses.
        All before the model runs.
    """
    processes = processes or Processes()
    report, jobs = Report(), None
    with ExitStack() as stack:
        if processes.rank == 0:
            jobs = plan(inputs, output, recursive, compare)
            check_tiles(model, tile, overlap)
            check_memory(model, tile, max_memory)
            names_a_picture = jobs[0].target == Path(output)
            stack.enter_context(output_folder(Path(output).parent if names_a_picture else output))
            if resume:
                report.skipped, jobs = without_finished(jobs, lambda job: results(job, compare))
        jobs = dealt(jobs, processes, _pixels)
        model, dtype = prepared(model, dtype, device, max_memory)
        options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype}
        _restore_jobs(model, jobs, options, compare, report, quiet=processes.rank > 0)
        return joined(report, processes)


def _pixels(path: Path) -> int:
    """How many a picture has, by its file's header; none where it cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.width * image.height
    except Exception:  # decoders of broken files raise anything, and it will be told when it is read
        return 0


def _restore_jobs(
    model: nn.Module, jobs: list[Job], options: dict, compare: bool, report: Report, quiet: bool
) -> None:
    """Restore one picture after the other, and put into the report what became of each."""
    outcomes: dict[Path, list[Path] | str] = {job.source: "" for job in jobs}  # in this order

    def put_away(job: Job, after: Image.Image | Exception, before: Image.Image | None) -> None:
        outcomes[job.source] = _written(job, after, before)
        progress.advance(task)

    with (
        warnings.catch_warnings(),  # the reading thread changes how warnings are filtered
        progress_bar(quiet) as progress,
        closing(ahead(_pictures(jobs))) as pictures,
        Behind(put_away, WRITERS) as behind,
    ):
        task = progress.add_task("restoring", total=len(jobs))
        for job, before in pictures:
            progress.update(task, description=job.source.name)
            after = _restored(model, job.source, before, options, progress.console)
            behind(job, after, before if compare else None)
            release(model)
    for source, outcome in outcomes.items():
        if isinstance(outcome, str):
            report.failed[source] = outcome
        else:
            report.written.extend(outcome)


def _pictures(jobs: Iterable[Job]) -> Iterator[tuple[Job, Image.Image | Exception]]:
    """Each job's picture, or why there is none."""
    for job in jobs:
        try:
            yield job, _read_for(job)
        except FAILURES as error:
            yield job, error


def _restored(
    model: nn.Module, source: Path, before: Image.Image | Exception, options: dict, console: Console
) -> Image.Image | Exception:
    """What the model makes of a picture, or why nothing."""
    if isinstance(before, Exception):
        return before
    try:
        if options["max_memory"] == AUTO and (note := note_of_bands(model, *before.size)):
            console.print(f"{source.name}: {note}", markup=False, highlight=False, soft_wrap=True)
        return restore(model, before, **options)
    except FAILURES as error:
        return error


def _written(job: Job, after: Image.Image | Exception, before: Image.Image | None) -> list[Path] | str:
    """Write the result, and with `before` the comparison: the new files, or why there are none."""
    try:
        if isinstance(after, Exception):
            raise after
        job.target.parent.mkdir(parents=True, exist_ok=True)  # a sub-folder comes with its first result
        images.write(after, job.target)
        if before is None:
            return [job.target]
        images.write(images.side_by_side(before, after), compare_path(job.target))
        return [job.target, compare_path(job.target)]
    except FAILURES as error:
        return reason(error, job.source)


def note_of_bands(model: OptimizedModel, width: int, height: int) -> str | None:
    """What is to be said where the free memory does not allow the whole picture at once."""
    weight = first_weight(model)
    limit = share_of_free(weight.device)
    # By arithmetic: what `continued` does, on a tensor of no data, would load torch._dynamo for seconds.
    sides = (continued_side(side, *sizes(model)) for side in (height, width))
    picture = torch.empty(1, 3, *sides, device="meta")
    whole = whole_memory(model.settings["width"], model.dtype or weight.dtype, picture)
    if limit is None or whole <= limit:
        return None
    return (
        f"at once it would take {format_size(whole)} of memory and {format_size(limit)} may be used: "
        "computed in bands, with the same result within rounding"
    )


def _read_for(job: Job) -> Image.Image:
    """The picture, simplified; refused where the target's format could not hold its result."""
    before = images.read(job.source)
    try:
        before = images.simplify(before)
    except ValueError as error:
        raise ValueError(f"{job.source}: {error}") from error
    images.check_can_hold(job.target, before.mode)
    return before


def progress_bar(quiet: bool = False) -> Progress:
    """A bar on the terminal's error output, which is where notes go, too; `quiet` shows only these."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
