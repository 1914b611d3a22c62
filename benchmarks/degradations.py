"""What degradations cost and how strong they are: `python -m benchmarks.degradations --help`.

One thread, as in a loader's worker. The strength is the PSNR of degraded photographs, with the default
settings, over several seeds; `--sheet` writes a picture of them to look at.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from irnext import images
from irnext.data.dead_leaves import dead_leaves
from irnext.data.synthetic import DEGRADATIONS, CleanPictures, Degradation, SyntheticPairs
from irnext.metrics import psnr

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")  # in scikit-image's wheel
SIZES = (128, 256, 512)


@dataclass(frozen=True)
class Options:
    """Time the degradations and measure the PSNR of degraded photographs.

    Attributes:
        pictures: a folder of photographs; by default three of scikit-image's.
        seeds: degradations of each photograph.
        runs: how often each size is timed.
        sheet: where to write one row of degraded photographs per task.
    """

    pictures: Path | None = None
    seeds: int = 12
    runs: int = 20
    sheet: Path | None = None


def run(options: Options) -> int:
    """Print the table, and write the sheet if asked for."""
    torch.set_num_threads(1)
    clean = CleanPictures(options.pictures or [_wheel_folder() / name for name in PHOTOGRAPHS])
    table = Table(title="Median milliseconds on one thread, and PSNR in dB of degraded photographs")
    for heading in ("task", *(f"{size}²" for size in SIZES), "median PSNR", "least", "most"):
        table.add_column(heading, no_wrap=True)
    for task, kind in DEGRADATIONS.items():
        times = (f"{1e3 * _seconds(kind(), size, options.runs):.1f}" for size in SIZES)
        values = _strength(clean, kind(), options.seeds)
        table.add_row(task, *times, *(f"{f(values):.2f}" for f in (statistics.median, min, max)))
    table.add_row("dead leaves", *(f"{1e3 * _leaves_seconds(size, options.runs):.1f}" for size in SIZES))
    Console().print(table)
    if options.sheet:
        images.write(sheet(clean), options.sheet)
    return 0


def _wheel_folder() -> Path:
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise ModuleNotFoundError("the photographs are scikit-image's: pip install scikit-image")
    return Path(package.submodule_search_locations[0]) / "data"


def _seconds(degradation: Degradation, size: int, runs: int) -> float:
    """The median time of drawing and applying a degradation."""
    picture = np.random.default_rng(0).random((size, size, 3), dtype=np.float32)
    return _median_time(lambda rng: degradation.degrade(picture, rng), runs)


def _leaves_seconds(size: int, runs: int) -> float:
    return _median_time(lambda rng: dead_leaves(rng, size, size), runs)


def _median_time(function: Callable[[np.random.Generator], object], runs: int) -> float:
    times = []
    for seed in range(runs + 1):  # the first warms up
        rng = np.random.default_rng(seed)
        started = time.perf_counter()
        function(rng)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _strength(clean: CleanPictures, degradation: Degradation, seeds: int) -> list[float]:
    """PSNR in dB of each photograph under each seed."""
    values = []
    for seed in range(seeds):
        pairs = SyntheticPairs(clean, degradation, seed)
        for index in range(len(pairs)):
            given, target = (torch.from_numpy(p).permute(2, 0, 1)[None] / 255 for p in pairs.read(index))
            values.append(psnr(given, target))
    return values


def sheet(clean: CleanPictures, columns: int = 3, size: tuple[int, int] = (450, 300)) -> Image.Image:
    """The middle of the first pictures: a row as they are, then one for each task."""
    rows = [[clean.read(index) for index in range(min(columns, len(clean)))]]
    for kind in DEGRADATIONS.values():
        pairs = SyntheticPairs(clean, kind())
        rows.append([pairs.read(index)[0] for index in range(len(rows[0]))])
    result = Image.new("RGB", (len(rows[0]) * size[0], len(rows) * size[1]))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(map(Image.fromarray, pictures)):
            left, top = ((have - need) // 2 for have, need in zip(picture.size, size, strict=True))
            cut = picture.crop((left, top, left + size[0], top + size[1]))
            result.paste(cut, (column * size[0], row * size[1]))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.degradations"))


if __name__ == "__main__":
    sys.exit(main())
