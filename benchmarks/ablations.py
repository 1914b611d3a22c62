"""The ablations of Tables 7 to 11, trained for a while on synthetic pictures.

`python -m benchmarks.ablations --help` lists the options.

Every variant sees the same crops in the same order, from the same seed. A run of minutes says that each
trains, and what it costs; differences as small as the paper's, of 1000 epochs on GoPro, are beyond it, which
the spread over seeds shows.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from irnext.data.degradations import DEGRADATIONS
from irnext.training import TrainingConfig, train

from . import harness


@dataclass(frozen=True)
class Variant:
    """A row of the paper: its table, name, PSNR on GoPro, and the settings that make it."""

    table: int
    name: str
    paper: float
    settings: dict


FULL = {}
VARIANTS = [
    Variant(7, "baseline, no MSM", 31.23, {"msm_per_block": 0}),
    Variant(7, "MSM with plain convolutions", 31.46, {"branch": "conv"}),
    Variant(7, "MSM with LAM, no FM", 31.53, {"branch": "lam-no-fm"}),
    Variant(7, "full", 31.64, FULL),
    Variant(8, "rate 2", 31.33, {"pool_rates": (2,)}),
    Variant(8, "rates 4, 2", 31.39, {"pool_rates": (4, 2)}),
    Variant(8, "rates 8, 4", 31.51, {"pool_rates": (8, 4)}),
    Variant(8, "rates 8, 4, 2", 31.64, FULL),
    Variant(9, "convolution pooling", 31.51, {"pooling": "convolution"}),
    Variant(9, "max pooling", 31.46, {"pooling": "max"}),
    Variant(9, "average pooling", 31.64, FULL),
    Variant(10, "softmax", 31.50, {"activation": "softmax"}),
    Variant(10, "sigmoid", 31.58, {"activation": "sigmoid"}),
    Variant(10, "tanh", 31.64, FULL),
    Variant(11, "2 groups", 31.55, {"groups": 2}),
    Variant(11, "4 groups", 31.57, {"groups": 4}),
    Variant(11, "8 groups", 31.64, FULL),
    Variant(11, "16 groups", 31.58, {"groups": 16}),
    Variant(11, "2 MSM", 31.75, {"msm_per_block": 2}),
]


@dataclass(frozen=True)
class Options:
    """Train the paper's ablations for some steps each."""

    task: str = "motion-blur"
    """synthetic degradation"""
    data: Path | None = None
    """folder of clean pictures; dead leaves by default"""
    steps: int = 150
    """steps of a training"""
    seeds: int = 2
    """trainings of each variant"""
    blocks: int = 2
    """residual blocks per CNNBlock"""
    width: int = 16
    """channels at full resolution"""
    batch: int = 4
    """crops of a step"""
    patch: int = 64
    """side of the crops"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if self.task not in DEGRADATIONS:
            raise ValueError(f"unknown task {self.task!r}: choose one of {', '.join(DEGRADATIONS)}")
        if min(self.steps, self.seeds) < 1 or self.blocks < 2:
            raise ValueError(
                f"steps is {self.steps}, seeds {self.seeds}, blocks {self.blocks}: at least 1 step and seed "
                "are needed, and 2 blocks for two modules"
            )


def train_variant(options: Options, settings: dict, seed: int) -> dict:
    """PSNR in dB, loss and seconds of one training."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig.of(
            options.task,
            options.data,
            Path(folder) / "run",
            steps=options.steps,
            settings={"blocks": options.blocks, "width": options.width} | settings,
            batch=options.batch,
            patch=(options.patch, options.patch),
            seed=seed,
            ema=0.0,  # of so few steps an average would be half the weights they began with
            validate_every=options.steps,
            log_every=max(1, options.steps // 3),
            workers=1,
        )
        started = time.perf_counter()
        result = train(config, console=Console(quiet=True))
    return {"psnr": result.psnr, "loss": result.loss, "seconds": time.perf_counter() - started}


def run(options: Options) -> list[dict]:
    """Train every variant; print and return the table, a variant that several tables name trained once."""
    here, console = harness.machine(), harness.make_console()
    trained: dict[str, list[dict]] = {}
    for seed in range(options.seeds):  # interleaved, so that a slow hour meets all
        for variant in VARIANTS:
            runs = trained.setdefault(repr(variant.settings), [])
            if len(runs) == seed:
                runs.append(train_variant(options, variant.settings, seed))
                console.print(f"{variant.name}, seed {seed}: {runs[-1]['psnr']:.2f} dB", highlight=False)
    rows = []
    for variant in VARIANTS:
        runs = trained[repr(variant.settings)]
        values = [run["psnr"] for run in runs]
        rows.append(
            {
                "table": variant.table,
                "variant": variant.name,
                "psnr": statistics.fmean(values),
                "range": max(values) - min(values),
                "loss": statistics.fmean(run["loss"] for run in runs),
                "seconds": statistics.median(run["seconds"] for run in runs),
                "paper_gopro": variant.paper,
            }
        )
    table = harness.make_table(
        f"{options.task}, {options.steps} steps, {options.blocks} blocks, width {options.width}, "
        f"{options.seeds} seeds",
        *("table", "variant", "PSNR here", "range over seeds", "loss", "seconds", "GoPro, paper"),
    )
    for row in rows:
        figures = (f"{row[name]:.2f}" for name in ("psnr", "range", "loss", "seconds", "paper_gopro"))
        table.add_row(str(row["table"]), row["variant"], *figures)
    console.print(table)
    if options.json:
        print(harness.write_results("ablations", here, vars(options), rows, options.results))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments."""
    run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.ablations"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
