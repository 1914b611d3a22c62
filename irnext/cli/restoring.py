"""`irnext restore`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ..restoration import Processes, Report, restore_files
from ..video import is_video, restore_videos
from .common import DTYPES, FAILED, LowPass, Name, Output, check_backend, complain
from .models import load_model, to_compute_on


def restore(
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN...", help_behavior_hint="")
    ],
    /,
    output: Output = Path("restored"),
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    task: Name = None,
    model: Name = None,
    low_pass: LowPass = None,
    device: Name = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    overlap: Annotated[int, tyro.conf.arg(metavar="M")] = 32,
    max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    compare: bool = False,
    recursive: bool = False,
    resume: bool = False,
    codec: Annotated[
        Literal["h264", "hevc", "vp9", "ffv1"] | None, tyro.conf.arg(metavar="{h264,hevc,vp9,ffv1}")
    ] = None,
    crf: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> int:
    """Restore pictures, or videos, with trained weights.

    Without --tile and --max-memory the whole picture goes through the model at once, or on a CPU, where
    the free memory is too small for it, in bands. --max-memory bounds the memory with the same result.
    Tiles bound it further but are not exact: the model's means over the plane then see a tile instead
    of the picture.

    Results have their picture's kind, EXIF data, colour profile and resolution; 16 bits per channel
    stay for grey, while colour, and grey with alpha, of 16 bits come out with 8.

    Videos keep sound, subtitles, times of frames, colour description and rotation.

    Started by torchrun, each process takes a part of the pictures, on its own GPU where there are any.

    Args:
        inputs: picture files, folders, or patterns in quotes; or videos.
        output: a folder, or a file name for a single picture or video.
        weights: a checkpoint: .safetensors, or .pkl or .pth of the published code.
        task: restore with the weights that come with irnext: haze, motion-blur, defocus, rain or snow.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's.
        low_pass: the model's low-pass filter: global as in the published dehazing code, local as in
            the published motion-deblurring code, whose checkpoints do not say so.
        device: where to compute, as PyTorch names it (cuda, cuda:1, mps); by default a GPU if there is one.
        dtype: what to compute in.
        tile: side of square tiles in pixels, a multiple of 32 for IRNeXt.
        overlap: pixels that neighbouring tiles share, at most half a tile.
        max_memory: what restoring may take beside the program and the weights, as in 8G or 500M.
        compare: also write NAME-compare.png (of a.jpg: a.jpg-compare.png): before on the left, after on
            the right.
        recursive: take the sub-folders of folders, too, and keep the tree.
        resume: leave out what is finished: results that exist.
        codec: of the new video; by default the source's where it can be written, else h264 or, in .webm, vp9.
        crf: the video's quality, lower is better; by default one where losses are hard to see.
        batch: frames of a video that go through the model at once; by default 1.
    """
    check_backend()
    films = [is_video(name) for name in inputs]
    if any(films) and not all(films):
        raise ValueError("videos and pictures are restored by a command each")
    refuse_options(any(films), compare=compare, recursive=recursive, codec=codec, crf=crf, batch=batch)
    network = load_model(weights, model, low_pass, task)
    processes = Processes.of_torchrun()
    if device in (None, "cuda"):
        device = processes.gpu if torch.cuda.is_available() or device else "cpu"
    network, computed, max_memory = to_compute_on(device, network, DTYPES[dtype], tile, max_memory)
    options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": computed}
    options |= {"device": device, "resume": resume, "processes": processes}
    with ending_cleanly():
        if any(films):
            report = restore_videos(
                network, inputs, output, codec=codec, crf=crf, batch=1 if batch is None else batch, **options
            )
        else:
            report = restore_files(network, inputs, output, compare=compare, recursive=recursive, **options)
    return tell(report) if processes.rank == 0 else 0  # the first tells for all


def refuse_options(films: bool, **options) -> None:
    """Raise ValueError for options given that are for videos, or for pictures, only."""
    given = [name for name, value in options.items() if value not in (None, False)]
    wrong = [f"--{name}" for name in given if (name in ("compare", "recursive")) == films]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: for {'pictures' if films else 'videos'} only")


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """SIGTERM, by which torchrun and batch systems end a process, leaves no temporary file behind."""

    def end(number: int, _) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(report: Report) -> int:
    """Print what became of the inputs; the exit code."""
    for path in report.written:
        print(path)
    if report.skipped:
        count = len(report.skipped)
        print(f"irnext: note: {count} skipped: the results exist", file=sys.stderr)
    for reason in report.failed.values():
        complain(reason)
    return FAILED if report.failed else 0
