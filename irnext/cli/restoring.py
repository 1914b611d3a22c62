"""`irnext restore`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from .. import optimize
from ..restoration import restore_files
from .common import DTYPES, FAILED, LowPass, Name, Output, check_backend, complain
from .models import load_model


def restore(
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN...", help_behavior_hint="")
    ],
    /,
    output: Output,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    model: Name = None,
    low_pass: LowPass = None,
    device: Name = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    overlap: Annotated[int, tyro.conf.arg(metavar="M")] = 32,
    max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    compare: bool = False,
) -> int:
    """Restore pictures with trained weights.

    Without --tile and --max-memory the whole picture goes through the model at once, or on a CPU, where
    the free memory is too small for it, in bands. --max-memory bounds the memory with the same result.
    Tiles bound it further but are not exact: the model's means over the plane then see a tile instead
    of the picture.

    Results have their picture's kind, EXIF data, colour profile and resolution; 16 bits per channel
    stay for grey, while colour, and grey with alpha, of 16 bits come out with 8.

    Args:
        inputs: picture files, folders, or patterns in quotes.
        output: a folder, or a file name for a single picture.
        weights: a checkpoint: .safetensors, or .pkl or .pth of the published code.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's.
        low_pass: the model's low-pass filter: global as in the published dehazing code, local as in
            the published motion-deblurring code, whose checkpoints do not say so.
        device: where to compute, as PyTorch names it (cuda, cuda:1, mps); by default a GPU if there is one.
        dtype: what to compute in.
        tile: side of square tiles in pixels, a multiple of 32.
        overlap: pixels that neighbouring tiles share, at most half a tile.
        max_memory: what restoring may take beside the program and the weights, as in 8G or 500M.
        compare: also write NAME-compare.png (of a.jpg: a.jpg-compare.png): before on the left, after on
            the right.
    """
    check_backend()
    network = load_model(weights, model, low_pass)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    computed = DTYPES[dtype]
    if device == "cpu" and not os.environ.get("IRNEXT_BACKEND"):  # a backend asked for serves all it can
        network, computed = optimize(network, computed), None
        if max_memory is None and tile is None:
            max_memory = "auto"
    report = restore_files(
        network,
        inputs,
        output,
        tile=tile,
        overlap=overlap,
        max_memory=max_memory,
        dtype=computed,
        device=device,
        compare=compare,
    )
    for path in report.written:
        print(path)
    for reason in report.failed.values():
        complain(reason)
    return FAILED if report.failed else 0
