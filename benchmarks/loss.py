"""The dual-domain loss, and its share of a training step: `python -m benchmarks.loss --help`.

Timed are the loss and its gradients for outputs at three scales: as published, with one full transform
of the difference, and as irnext computes it, from half of that transform. Training steps of irnext
take turns with them, so that the shares are of one state of the machine. What is checked is the loss:
its gradients jump where a part of a spectrum is zero, and the tests compare them in float64.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from irnext import DualDomainLoss

from . import device, harness, training_step
from .harness import Timing, Variant
from .published import PublishedLoss

PUBLISHED, FULL, OURS = "published", "full spectrum", "irnext"
SCALES = (4, 2, 1)


@dataclass(frozen=True)
class Options:
    """Time the dual-domain loss, forward and backward, beside training steps."""

    blocks: tuple[int, ...] = (4, 14)
    """residual blocks per CNNBlock of the networks trained"""
    width: int = 32
    """channels at full resolution"""
    size: int = 256
    """side of the square crops in pixels, a multiple of 32, at least 64"""
    batch: int = 2
    """crops per step, at least 2"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the training steps; the loss is computed in float32 in both"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 10
    """samples per variant"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        for blocks in self.blocks:
            self.training(blocks)

    def training(self, blocks: int) -> training_step.Options:
        """The training steps of one network; ValueError where an option is out of range."""
        shared = ("width", "size", "batch", "dtype", "device", "threads", "rounds")
        return training_step.Options(blocks=blocks, **{name: getattr(self, name) for name in shared})


def full_spectrum_loss(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """The loss with one full complex transform of every difference."""
    total = target.new_zeros(())
    for output in outputs:
        difference = output - F.interpolate(target, output.shape[2:], mode="bilinear", align_corners=False)
        spectrum = torch.view_as_real(torch.fft.fft2(difference))
        total = total + difference.abs().mean() + 0.1 * spectrum.abs().mean()
    return total


LOSSES = {PUBLISHED: PublishedLoss(), FULL: full_spectrum_loss, OURS: DualDomainLoss()}


def make_pictures(options: Options, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Outputs at every scale, which want gradients, and the target."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(options.batch, 3, options.size // scale, options.size // scale) for scale in (*SCALES, 1)]
    pictures = [torch.rand(shape, generator=generator).to(options.device, dtype) for shape in shapes]
    return [output.requires_grad_() for output in pictures[:-1]], pictures[-1]


def make_variant(name: str, options: Options) -> Variant:
    """The loss and its gradients."""
    outputs, target = make_pictures(options, torch.float32)
    loss: Callable[[list[Tensor], Tensor], Tensor] = LOSSES[name]

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(outputs, target), outputs)

    return Variant(run, lambda: [loss(outputs, target).detach()], baseline=name != OURS)


def step_name(blocks: int) -> str:
    """What the training step of a network is called."""
    return f"step, {blocks} blocks"


def measure(options: Options) -> dict[str, Timing]:
    """Check the losses, then time them and the steps in turns."""
    on_gpu = options.device == "cuda"
    variants = {name: make_variant(name, options) for name in LOSSES}
    expected = PublishedLoss()(*make_pictures(options, torch.float64)).detach()
    found = harness.check(variants, [expected], torch.float32)
    for blocks in options.blocks:
        step = training_step.Trainer(options.training(blocks), training_step.OURS).step
        variants[step_name(blocks)] = Variant(step)
        found[step_name(blocks)] = Timing(None, None, {}, None)
    timer = warm_gpu_timer if on_gpu else harness.host_timer(0.02)
    return harness.time_right(variants, found, options.rounds, timer)


def warm_gpu_timer(run: Callable[[], Any]) -> Callable[[], float]:
    """A timer of single calls, after two to warm up."""
    for _ in range(2):
        run()
    return device.call_timer(run)


def rows(options: Options, found: dict[str, Timing]) -> list[dict[str, Any]]:
    """What the file of the results says of every variant; of a loss, its share of each step."""
    records = []
    for name, timing in found.items():
        record = {"variant": name} | dataclasses.asdict(timing)
        if name in LOSSES:
            steps = {blocks: found[step_name(blocks)].ratios for blocks in options.blocks}
            record["share_of_step"] = {blocks: ratios.get(name) for blocks, ratios in steps.items()}
        records.append(record)
    return records


def show(console: Console, options: Options, found: dict[str, Timing]) -> None:
    """Print the table."""
    cells = []
    for row, timing in zip(rows(options, found), found.values(), strict=True):
        milliseconds, spread = harness.time_cells(timing)
        shares = row.get("share_of_step", {})
        cells.append(
            {
                "": row["variant"],
                "ms": milliseconds,
                "spread": spread,
                "vs published": harness.ratio_cell(timing, PUBLISHED) if row["variant"] in LOSSES else "",
            }
            | {f"of {step_name(b)}": harness.number(shares.get(b), ".2%") for b in options.blocks}
        )
    shape = f"{options.batch} x 3 x {options.size} x {options.size}"
    console.print(harness.table_of(f"Dual-domain loss with gradients, {shape}; {options.dtype} steps", cells))
    for name, timing in found.items():
        if timing.wrong:
            console.print(f"{name}: {timing.wrong}", soft_wrap=True)


def run(options: Options) -> int:
    """Run the benchmark; 1 if any loss is wrong."""
    console = harness.make_console()
    with device.measuring(options.device, options.threads, console) as here:
        found = measure(options)
    show(console, options, found)
    if options.json:
        records = rows(options, found)
        harness.write_results("loss", here, dataclasses.asdict(options), records, options.results)
    return int(any(timing.wrong for timing in found.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.loss"))


if __name__ == "__main__":
    sys.exit(main())
