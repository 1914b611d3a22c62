"""Whether the training loader keeps ahead of the training step: `python -m benchmarks.loader --help`.

Crops per second of the loader alone, by the number of its workers, beside those that training steps of
irnext take of a batch in memory. On the CPU both share the cores, so training is also timed as it runs,
on the loader's batches, against the same steps on the batch in memory.

The pictures are dead-leaves images, which compress about as well as photographs, written to a temporary
folder. There are few and they are read again and again: disks are not measured.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from irnext.data import TrainingCrops, open_pairs
from irnext.data.dead_leaves import dead_leaves
from irnext.data.degradations import DEGRADATIONS
from irnext.data.sampling import EpochSampler
from irnext.data.synthetic import CleanPictures, SyntheticCrops

from . import device, harness, training_step

# Pairs on disk by the size of GoPro's pictures and of RESIDE's, (height, width), and the files' format.
PAIRS = {
    "PNG 720 x 1280": ((720, 1280), "png"),
    "PNG 480 x 620": ((480, 620), "png"),
    "JPEG 480 x 620": ((480, 620), "jpg"),
}
SYNTHETIC_SIZE = (480, 620)
PICTURES = 4
EPOCH = 256  # pictures of an epoch: the few, many times
PREFETCHED = 4  # batches that a worker makes in advance


@dataclass(frozen=True)
class Options:
    """Time the loader of training crops beside training steps."""

    sources: tuple[str, ...] = (*PAIRS, *DEGRADATIONS)
    """what to load: kinds of pairs on disk, or synthetic degradations"""
    workers: tuple[int, ...] = (0, 1, 2)
    """numbers of loader processes; with 0 the training process loads"""
    blocks: int = 4
    """residual blocks per CNNBlock of the network trained"""
    width: int = 32
    """channels at full resolution"""
    size: int = 256
    """side of the square crops in pixels, a multiple of 32, at least 64"""
    batch: int = 2
    """crops per step, at least 2"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the training steps"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to train"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 3
    """samples per source and number of workers"""
    seconds: float = 1.0
    """least time of a sample of the loader alone"""
    steps: int = 3
    """training steps of a sample"""
    json: bool = False
    """write the figures to a file under --results, again after every source"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if unknown := set(self.sources) - {*PAIRS, *DEGRADATIONS}:
            choices = ", ".join((*PAIRS, *DEGRADATIONS))
            raise ValueError(f"unknown sources {', '.join(sorted(unknown))}: choose some of {choices}")
        if not self.workers or min(self.workers) < 0 or self.steps < 1 or not self.seconds > 0:
            raise ValueError(
                f"workers is {self.workers}, steps {self.steps}, seconds {self.seconds}: some numbers of "
                "workers from 0, at least one step and a time above 0 are needed"
            )
        self.training()

    def training(self) -> training_step.Options:
        """The training steps; ValueError where an option is out of range."""
        shared = ("blocks", "width", "size", "batch", "dtype", "device", "threads", "rounds")
        return training_step.Options(**{name: getattr(self, name) for name in shared})


# ---- what is loaded ------------------------------------------------------------------------------


class Repeated:
    """A source of pairs or pictures whose items come again until there are EPOCH."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return EPOCH

    def name(self, index: int) -> str:
        """A name of its own for every repetition."""
        return f"{index}/{self.source.name(index % len(self.source))}"

    def read(self, index: int) -> Any:
        """What the source reads."""
        return self.source.read(index % len(self.source))


def write_pictures(folder: Path, size: tuple[int, int], suffix: str) -> None:
    """Dead-leaves images of one size; with the same seed, the same ones."""
    folder.mkdir(parents=True)
    for index in range(PICTURES):
        picture = dead_leaves(np.random.default_rng(index), *size)
        Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(folder / f"{index}.{suffix}")


def make_crops(source: str, options: Options, folder: Path) -> Dataset:
    """The training crops of a source, whose files are written into the empty `folder`."""
    if source in DEGRADATIONS:
        write_pictures(folder / "clean", SYNTHETIC_SIZE, "png")
        clean = Repeated(CleanPictures(folder / "clean"))
        return SyntheticCrops(clean, DEGRADATIONS[source](), options.size, seed=0)
    for side in ("input", "target"):
        write_pictures(folder / side, *PAIRS[source])
    pairs = open_pairs("custom", folder, "train", input_folder="input", target_folder="target")
    return TrainingCrops(Repeated(pairs), options.size, seed=0)


def bits_per_pixel(folder: Path) -> float:
    """The mean size of the pictures in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    pixels = 0
    for path in files:
        with Image.open(path) as picture:
            pixels += picture.width * picture.height
    return 8 * sum(path.stat().st_size for path in files) / pixels


def endless_batches(crops: Dataset, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, in the order in which training takes them."""
    sampler = EpochSampler(len(crops), batch, seed=0)
    prefetched = PREFETCHED if workers else None
    return iter(DataLoader(crops, batch_sampler=sampler, num_workers=workers, prefetch_factor=prefetched))


# ---- what is timed -------------------------------------------------------------------------------


def loader_rate(crops: Dataset, workers: int, options: Options) -> float:
    """Crops per second of the loader alone, once nothing made in advance is left."""
    batches = endless_batches(crops, options.batch, workers)
    for _ in range(1 + PREFETCHED * workers):
        next(batches)
    started, taken = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < options.seconds:
        next(batches)
        taken += options.batch
    return taken / elapsed


def training_rate(
    trainer: training_step.Trainer, batches: Iterator[tuple[Tensor, Tensor]], options: Options
) -> float:
    """Crops per second of training on these batches, of uint8 pictures."""

    def step() -> None:
        place = trainer.degraded.device
        trainer.degraded, trainer.clean = (picture.to(place).float().div_(255) for picture in next(batches))
        trainer.step().item()  # waits for the device

    step()  # the first batch takes the start of the workers
    return options.batch / harness.seconds_per_call(step, options.steps)


def one_batch(options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """The same random batch without end."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, options.batch, 3, options.size, options.size)
    degraded, clean = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    while True:
        yield degraded, clean


def measure(source: str, options: Options, trainer: training_step.Trainer) -> list[dict[str, Any]]:
    """A row for every number of workers, all measured in turns, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        crops = make_crops(source, options, Path(folder))
        bits = bits_per_pixel(Path(folder))
        samples: dict[int, list[tuple[float, float, float]]] = {workers: [] for workers in options.workers}
        for _ in range(options.rounds):
            alone = training_rate(trainer, one_batch(options), options)
            for workers in options.workers:
                loading = loader_rate(crops, workers, options)
                batches = endless_batches(crops, options.batch, workers)
                samples[workers].append((alone, loading, training_rate(trainer, batches, options)))
                del batches  # ends its workers
    return [{"source": source, "workers": w, "bits_per_pixel": bits} | summary(samples[w]) for w in samples]


def summary(samples: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Medians of (steps alone, loader alone, steps on the loader's batches) in crops per second.

    Ratios are taken round by round: the loader's rate over that of the steps, and the share of the
    steps' rate that is left when they run on the loader's batches.
    """
    median: Callable[[Any], float] = statistics.median
    return {
        "step_crops_per_second": median(alone for alone, _, _ in samples),
        "loader_crops_per_second": median(loading for _, loading, _ in samples),
        "training_crops_per_second": median(training for _, _, training in samples),
        "ahead": median(loading / alone for alone, loading, _ in samples),
        "kept": median(training / alone for alone, _, training in samples),
    }


# ---- what is shown and kept ----------------------------------------------------------------------


def show(console: Console, options: Options, results: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    title = (
        f"Crops of {options.size} x {options.size} a second; batch {options.batch}, "
        f"IRNeXt({options.blocks}), {options.dtype}, {options.device}"
    )
    cells = [
        {
            "": row["source"],
            "workers": str(row["workers"]),
            "loader": f"{row['loader_crops_per_second']:.1f}",
            "steps": f"{row['step_crops_per_second']:.2f}",
            "loader / steps": f"{row['ahead']:.1f}x",
            "training": f"{row['training_crops_per_second']:.2f}",
            "training / steps": f"{row['kept']:.0%}",
            "bits / pixel": f"{row['bits_per_pixel']:.1f}",
        }
        for row in results
    ]
    console.print(harness.table_of(title, cells))


def run(options: Options) -> list[dict[str, Any]]:
    """Measure every source, write the file and print the table; the rows."""
    if options.threads:
        torch.set_num_threads(options.threads)
    console = harness.make_console()
    here = harness.machine(device.record() if options.device == "cuda" else None)
    console.print(harness.describe(here), soft_wrap=True)
    trainer = training_step.Trainer(options.training(), training_step.OURS)
    trainer.step()  # makes the optimiser's state
    results: list[dict[str, Any]] = []
    for source in options.sources:
        results += measure(source, options, trainer)
        if options.json:
            harness.write_results("loader", here, dataclasses.asdict(options), results, options.results)
    show(console, options, results)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.loader"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
