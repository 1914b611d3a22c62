"""`irnext serve`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from PIL import Image

from ..devices import check_device, default_device
from ..memory import parse_size
from ..ops.dispatch import chosen
from ..pretrained import list_pretrained
from ..restoration import restore
from ..restoration.inference import check_memory, prepared
from ..serving import Limits
from ..serving import serve as serve_page
from .common import DTYPES, LowPass, Name, check_backend
from .models import load_model, to_compute_on
from .restoring import ending_cleanly


def serve(
    weights: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")] = (),
    model: Name = None,
    low_pass: LowPass = None,
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 7860,
    device: Name = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    overlap: Annotated[int, tyro.conf.arg(metavar="M")] = 32,
    max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    max_upload: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "25M",
    max_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = Limits.pixels,
    max_stored: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "4G",
    queue: Annotated[int, tyro.conf.arg(metavar="N")] = Limits.queue,
    root_path: Annotated[str, tyro.conf.arg(metavar="PATH")] = "",
) -> None:
    """Serve a page in the browser: drop a picture, pick a task, compare before and after with a slider.

    It prints its address, and ends with Ctrl+C. Visitors choose among the tasks whose weights come with
    irnext and the weights given here; they name no path of this machine. One picture is restored at a time.

    Args:
        weights: checkpoints to offer beside the tasks, by their names: .safetensors, .pkl or .pth.
        model: take the settings of this model (irnext info lists them) rather than the checkpoints'.
        low_pass: the low-pass filter of the checkpoints' models: global, local or exact.
        host: the address to listen on; by default this machine alone can reach it; 0.0.0.0 for all.
        port: 0 for any that is free.
        device: where to compute, as PyTorch names it (cuda, cuda:1, mps); by default a GPU if there is one.
        dtype: what to compute in.
        tile: side of square tiles in pixels, a multiple of 32 for IRNeXt.
        overlap: pixels that neighbouring tiles share, at most half a tile.
        max_memory: what restoring may take beside the program and the weights, as in 8G or 500M.
        max_upload: the largest file that is taken.
        max_pixels: the largest picture that is decoded.
        max_stored: what uploads and results may take on the disk; the oldest are deleted first, and all
            after an hour and at the end.
        queue: pictures that may wait; further visitors are told that the queue is full.
        root_path: where a proxy that takes this prefix off shows the page, as in /restore.
    """
    check_backend()
    limits = Limits(parse_size(max_upload), max_pixels, queue, parse_size(max_stored))
    device = default_device() if device is None else device
    check_device(device)

    def load(file: Path | None, task: str | None) -> Callable[[Image.Image], Image.Image]:
        given = (None, None) if task else (model, low_pass)
        network = load_model(file, *given, task)
        network, computed, most = to_compute_on(device, network, DTYPES[dtype], tile, max_memory)
        check_memory(network, tile, most)
        if device == "cpu" and tile is None and most is None:
            note = f"nothing but the picture's size bounds the memory of {task or file.stem}: give --tile"
            print(f"irnext: note: {note}", file=sys.stderr)
        network, computed = prepared(network, computed, device, most)
        options = {"tile": tile, "overlap": overlap, "max_memory": most, "dtype": computed}
        return functools.partial(restore, network, device=device, **options)

    tasks = list_pretrained()
    names = names_of(weights, tasks)
    models = {name: functools.partial(load, file, None) for name, file in names.items()}
    models |= {task: functools.partial(load, None, task) for task in tasks}
    about = f"backend {chosen(torch.device(device).type)}, device {device}, {dtype}"
    with ending_cleanly():
        serve_page(models, host, port, limits, about, root_path, tried=list(names) or tasks[:1])


def names_of(weights: Iterable[Path], taken: Iterable[str]) -> dict[str, Path]:
    """Checkpoints by what the page calls them; ValueError where two are called the same."""
    names: dict[str, Path] = {}
    for file in weights:
        if file.stem in names or file.stem in taken:
            raise ValueError(f"{file}: the page has another choice called {file.stem}: rename the file")
        names[file.stem] = file
    return names
