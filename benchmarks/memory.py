"""What restoring one large picture takes: memory and time, whole, in bands, and by the published network.

Every variant runs once, in a process of its own, on a photograph enlarged to the size asked for, and
starts from the picture as an array. "Resident" is the whole process at its peak, with Python, PyTorch,
the weights and the picture. A variant that does not get the memory it asks for is listed with that.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from irnext import IRNeXt, optimize
from irnext.memory import available_memory, format_size, parse_size
from irnext.restoration import restore

from . import harness
from .model import parse_size as parse_picture_size
from .networks import Settings, make_model
from .published import PublishedIRNeXt

WHOLE, BANDS, PUBLISHED = "irnext, whole", "irnext, bands", "published, eager"
NAMES = {"whole": WHOLE, "bands": BANDS, "published": PUBLISHED}


@dataclass(frozen=True)
class Options:
    """Measure the peak memory and the time of restoring one picture on the CPU (Linux)."""

    size: str = "3840x2160"
    """width and height of the picture in pixels, such as 3840x2160, or 720p, 1080p, 4K, 8K"""
    variants: tuple[Literal["whole", "bands", "published"], ...] = ("whole", "bands", "published")
    """what to run; differences are from the first that has a result"""
    max_memory: str = "4G"
    """limit of the bands"""
    blocks: int = 4
    """residual blocks per CNNBlock"""
    width: int = 32
    """channels at full resolution"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what to compute in"""
    fractions: bool = False
    """give the picture in float32, so that differences are not of 8-bit levels"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        parse_picture_size(self.size)
        parse_size(self.max_memory)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}: it must be at least 1")


@dataclass(frozen=True)
class Found:
    """What one variant took; `failure` says why it has no figures.

    Attributes:
        resident: bytes of the whole process at its peak.
        before: bytes of it before restoring: Python, PyTorch, the weights and the picture.
        difference: the largest from the first variant's result, of values in [0, 1].
    """

    seconds: float | None = None
    resident: int | None = None
    before: int | None = None
    difference: float | None = None
    failure: str | None = None


def photograph(width: int, height: int) -> np.ndarray:
    """A photograph of this size, (H, W, 3) of uint8; noise where scikit-image is not installed."""
    try:
        from skimage import data

        image = Image.fromarray(data.astronaut())
    except ImportError:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        image = Image.fromarray(noise)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def resident(peak: bool) -> int:
    """Bytes that this process has in memory, or had at most."""
    field = "VmHWM" if peak else "VmRSS"
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(options: Options, variant: str, threads: int, result: Path) -> Found:
    """Restore once in this process, and write the result to a file."""
    torch.set_num_threads(threads)
    dtype = getattr(torch, options.dtype)
    settings = Settings(options.blocks, options.width, options.low_pass)
    chosen: dict[str, Any] = {}
    if variant == PUBLISHED:
        model, chosen["dtype"] = make_model(PublishedIRNeXt, settings), dtype
    else:
        model = optimize(make_model(IRNeXt, settings), dtype)
    if variant == BANDS:
        chosen["max_memory"] = options.max_memory
    model(torch.zeros(1, 3, 64, 64))  # prepares the weights
    picture = photograph(*parse_picture_size(options.size))
    if options.fractions:
        picture = np.divide(picture, 255, dtype=np.float32)
    # More than is free would be taken from other programs, by ending them.
    most = available_memory(torch.device("cpu")) + resident(peak=False)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    before = resident(peak=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    try:
        restored = restore(model, picture, **chosen)
    except MemoryError:
        return Found(failure=f"{format_size(most)} of free memory are not enough")
    except ValueError as error:
        return Found(failure=str(error))
    found = Found(time.perf_counter() - start, resident(peak=True), before)
    np.save(result, restored)
    return found


def measure_apart(options: Options, variant: str, result: Path) -> Found:
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    threads = options.threads or torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, options, variant, threads, result).result()


def difference(result: Path, expected: Path) -> float:
    """The largest difference of two results, as a share of their range."""
    a, b = (np.load(path, mmap_mode="r") for path in (result, expected))
    whole = 255 if a.dtype == np.uint8 else 1
    rows = zip(a, b, strict=True)
    return max(float(np.abs(one.astype(float) - other.astype(float)).max()) for one, other in rows) / whole


def run(options: Options) -> dict[str, Found]:
    """What every variant took."""
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for variant in (NAMES[name] for name in options.variants):
            result = Path(folder, f"{len(found)}.npy")
            found[variant] = measure_apart(options, variant, result)
            if found[variant].failure is None:
                first = first or result
                found[variant] = dataclasses.replace(found[variant], difference=difference(result, first))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.memory")
    console = harness.make_console()
    if options.threads:
        torch.set_num_threads(options.threads)
    here = harness.machine()
    console.print(harness.describe(here), soft_wrap=True)
    found = run(options)
    table = harness.make_table(
        f"IRNeXt({options.blocks}), {options.size}, {options.dtype}, bands within {options.max_memory}",
        "",
        "s",
        "resident GiB",
        "before GiB",
        "difference",
    )
    for variant, each in found.items():
        if each.failure:
            table.add_row(variant, each.failure)
            continue
        sizes = (f"{size / 2**30:.2f}" for size in (each.resident, each.before))
        table.add_row(variant, f"{each.seconds:.1f}", *sizes, f"{each.difference:.1e}")
    console.print(table)
    if options.json:
        results = [{"variant": variant} | dataclasses.asdict(each) for variant, each in found.items()]
        path = harness.write_results("memory", here, dataclasses.asdict(options), results, options.results)
        console.print(f"written: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
