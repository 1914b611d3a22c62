"""Restoring video: every frame through the model, everything else as it was."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .containers import CODECS, CONTAINERS, READ_SUFFIXES, Writer, default_codec, opened, pyav
from .files import atomic_file, output_folder
from .restoration.files import note_of_bands, progress_bar
from .restoration.inference import AUTO, check_memory, prepared, scale_of
from .restoration.jobs import (
    FAILURES,
    Job,
    Report,
    check_collisions,
    dealt,
    joined,
    reason,
    without_finished,
)
from .restoration.pictures import restore
from .restoration.pipeline import Behind, ahead
from .restoration.processes import Processes
from .restoration.tiles import check_tiles


def restore_video(
    model: nn.Module,
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    codec: str | None = None,
    crf: int | None = None,
    batch: int = 1,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quiet: bool = False,
) -> int:
    """Restore a video frame by frame, with a progress bar on the terminal's error output.

    The largest of the pictures' streams is restored. Sound, subtitles and chapters are copied bit for
    bit; the frames keep their times, also at a variable rate, and the stream its colour range,
    matrix, primaries and transfer, pixel aspect, rotation and bits per channel, as far as codec and
    container can. Streams of data, attached files and cover pictures are left out. Decoding and
    encoding overlap with the model's work.

    Args:
        model, tile, overlap, max_memory, dtype, device: as in `restore`.
        source: a video of any kind that FFmpeg reads, progressive and without transparency.
        target: .mp4, .m4v, .mov, .mkv or .webm; an existing file is replaced, whole or not at all.
        codec: "h264", "hevc", "vp9" or "ffv1" (lossless, .mkv); None for the source's where it is one of
            these and the container holds it, else h264, or vp9 for .webm.
        crf: the encoder's quality, lower is better; None for a high one (17 in H.264).
        batch: frames that go through the model at once.
        quiet: show no progress bar.

    Returns:
        The number of frames.

    Raises:
        ImportError: PyAV is missing.
        OSError: the source is missing, or the target cannot be written.
        ValueError: a source that is no video, has no pictures, is cut off or has a frame that cannot be
            decoded (with its time); options that cannot be, and all that `restore` refuses.
    """
    av = pyav()
    source, target = Path(source), Path(target)
    _check_target(source, target, codec)
    _check_options(model, codec or default_codec("h264", target), crf, batch, tile, overlap, max_memory)
    model, dtype = prepared(model, dtype, device, max_memory)
    options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype}
    frames = 0
    with (
        opened(av, source) as reader,
        closing(ahead(reader.groups(batch))) as groups,
        output_folder(target.parent),
        atomic_file(target) as file,
        progress_bar(quiet) as progress,
    ):
        first = next(groups, None)
        if first is None or not first.frames:
            raise ValueError(f"{source}: the video has no pictures")
        chosen = codec or default_codec(reader.codec, target)
        _check_crf(chosen, crf)
        size = first.pictures.shape[2], first.pictures.shape[1]
        if max_memory == AUTO and (note := note_of_bands(model, *size)):
            progress.console.print(f"{source.name}: {note}", markup=False, highlight=False, soft_wrap=True)
        task = progress.add_task(source.name, total=reader.length)
        with (
            Writer(av, file, target, reader, first, CODECS[chosen], crf) as writer,
            Behind(writer.write) as behind,
        ):
            for group in itertools.chain([first], groups):
                behind(group, _restored(model, group.pictures, options) if group.frames else None)
                frames += len(group.frames)
                progress.advance(task, len(group.frames))
    return frames


def _restored(model: nn.Module, pictures: np.ndarray, options: dict) -> np.ndarray:
    """What the model makes of (N, H, W, 3) pictures of 8 or 16 bits per channel."""
    top = np.iinfo(pictures.dtype).max
    values = np.divide(pictures.transpose(0, 3, 1, 2), top, dtype=np.float32)
    restored = restore(model, torch.from_numpy(np.ascontiguousarray(values)), **options)
    return restored.mul_(top).round_().permute(0, 2, 3, 1).numpy().astype(pictures.dtype)


def _check_target(source: Path, target: Path, codec: str | None) -> None:
    """Raise for a source that is missing, and for a target that cannot be."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file")
    suffix = target.suffix.lower()
    if suffix not in CONTAINERS:
        kinds = ", ".join(CONTAINERS)
        raise ValueError(f"{target}: cannot write {suffix or 'a name without suffix'}; use {kinds}")
    check_collisions([Job(source, target)], _result)
    if codec is None:
        return
    if codec not in CODECS:
        raise ValueError(f"codec is {codec!r}: it must be one of {', '.join(CODECS)}")
    if suffix not in CODECS[codec].containers:
        raise ValueError(f"{target}: no {codec} there; name a {' or '.join(CODECS[codec].containers)}")


def _check_options(
    model: nn.Module,
    codec: str,
    crf: int | None,
    batch: int,
    tile: int | None,
    overlap: int,
    max_memory: int | str | None,
) -> None:
    if batch < 1:
        raise ValueError(f"batch is {batch}: it must be at least 1")
    _check_crf(codec, crf)
    check_tiles(model, tile, overlap)
    check_memory(model, tile, max_memory)
    if (scale := scale_of(model)) != 1:
        raise ValueError(f"the model enlarges {scale} times, and a video keeps its size: restore pictures")


def _check_crf(codec: str, crf: int | None) -> None:
    if crf is None:
        return
    if CODECS[codec].crf is None:
        raise ValueError(f"crf is {crf}: {codec} is lossless and has none")
    if not 0 <= crf <= CODECS[codec].worst:
        raise ValueError(f"crf is {crf}: for {codec} it must be from 0 to {CODECS[codec].worst}")


# ---- several -------------------------------------------------------------------------------------


def is_video(name: str | os.PathLike) -> bool:
    """Whether a file's name says that it is a video."""
    return Path(name).suffix.lower() in READ_SUFFIXES


def restore_videos(
    model: nn.Module,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    codec: str | None = None,
    crf: int | None = None,
    batch: int = 1,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Report:
    """Restore videos, as `restore_video` does one; see there for the options that are not here.

    Args:
        inputs: files, and patterns such as "clips/*.mp4".
        output: a folder, where each result keeps its input's name (kinds that are not written become
            .mkv); or, for exactly one video, a file name.
        resume: leave out videos whose results exist.
        processes: those that share this work, as in `restore_files`; a video is one process's.

    Returns:
        What was written, and what failed; as `restore_files`.
    """
    pyav()
    processes = processes or Processes()
    report, jobs = Report(), None
    with ExitStack() as stack:
        if processes.rank == 0:
            jobs = _plan(inputs, Path(output))
            for source, target in jobs:
                _check_target(source, target, codec)
            expected = codec or default_codec("h264", jobs[0].target)
            _check_options(model, expected, crf, batch, tile, overlap, max_memory)
            stack.enter_context(output_folder(jobs[0].target.parent))
            if resume:
                report.skipped, jobs = without_finished(jobs, _result)
        jobs = dealt(jobs, processes, lambda path: path.stat().st_size)
        model, dtype = prepared(model, dtype, device, max_memory)
        options = {"codec": codec, "crf": crf, "batch": batch, "quiet": processes.rank > 0}
        options |= {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype}
        for source, target in jobs:
            try:
                restore_video(model, source, target, **options)
                report.written.append(target)
            except FAILURES as error:
                report.failed[source] = reason(error, source)
        return joined(report, processes)


def _plan(inputs: Sequence[str | os.PathLike], output: Path) -> list[Job]:
    """Each video, once and in order, and where its result goes."""
    found: dict[Path, Path] = {}
    for given in map(os.fspath, inputs):
        matches = sorted(glob.glob(given, recursive=True)) if not os.path.exists(given) else [given]
        for path in map(Path, matches or [given]):
            found.setdefault(path.resolve(), path)
    sources = list(found.values())
    if output.is_dir() or not is_video(output):
        named = (path.name if path.suffix.lower() in CONTAINERS else f"{path.stem}.mkv" for path in sources)
        jobs = [Job(path, output / name) for path, name in zip(sources, named, strict=True)]
    elif len(sources) > 1:
        raise ValueError(f"{output}: names one video, but there are {len(sources)} inputs; name a folder")
    else:
        jobs = [Job(path, output) for path in sources]
    check_collisions(jobs, _result)
    return jobs


def _result(job: Job) -> tuple[Path, ...]:
    return (job.target,)
