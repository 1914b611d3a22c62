"""One training step of IRNeXt against the published formulation: `python -m benchmarks.training_step --help`.

A step is the forward pass, the dual-domain loss, the backward pass and Adam. Results are checked
against float64 before anything is timed. Peak memory is that of the whole step, weights and
optimiser included, each variant in a process of its own.

What is checked: the pictures, the loss, and the gradients of every weight for fixed gradients of
the pictures. The gradient of an L1 loss jumps where a difference is zero, so that of the loss itself
differs between any two correct programs; the tests compare it in float64.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from irnext import DualDomainLoss, IRNeXt, use_backend

from . import harness
from .harness import Variant
from .published import PublishedIRNeXt, PublishedLoss

PUBLISHED, OURS, REFERENCE = "published, eager", "irnext (auto)", "irnext (reference)"
# Network, loss and backend of each variant; the published one calls no operator of ours.
KINDS: dict[str, tuple[type[nn.Module], type[nn.Module], str]] = {
    PUBLISHED: (PublishedIRNeXt, PublishedLoss, "reference"),
    OURS: (IRNeXt, DualDomainLoss, "auto"),
    REFERENCE: (IRNeXt, DualDomainLoss, "reference"),
}


@dataclass(frozen=True)
class Options:
    """Time one training step and its peak memory against the published formulation, on the CPU."""

    blocks: int = 4
    """residual blocks per CNNBlock"""
    width: int = 32
    """channels at full resolution"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    size: int = 256
    """side of the square crops in pixels, a multiple of 32, at least 64"""
    batch: int = 2
    """crops per step, at least 2: batch normalisation needs them"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains float32 weights under autocast"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 10
    """steps timed per variant"""
    memory: bool = True
    """also measure peak memory (Linux)"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 2 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"rounds is {self.rounds}, batch {self.batch}, threads {self.threads}: "
                "rounds and threads must be at least 1 and batch at least 2"
            )


class Trainer:
    """One variant's network, loss, optimiser and batch."""

    def __init__(self, options: Options, kind: str, dtype: torch.dtype = torch.float32):
        network, loss, backend = KINDS[kind]
        torch.manual_seed(0)
        self.model = network(options.blocks, options.width, low_pass=options.low_pass)
        for name, parameter in self.model.named_parameters():
            if name.endswith("_gain"):  # they start at zero, where the attention has no gradients
                nn.init.uniform_(parameter, -0.5, 0.5)
        self.model.to(dtype)
        self.loss, self.backend = loss(), use_backend(backend)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4)
        shape = (options.batch, 3, options.size, options.size)
        self.degraded, self.clean = torch.rand(shape).to(dtype), torch.rand(shape).to(dtype)
        self.autocast = options.dtype == "bfloat16" and dtype == torch.float32

    def forward(self) -> tuple[list[Tensor], Tensor]:
        """The restored pictures and the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            outputs = self.model(self.degraded)
            return outputs, self.loss(outputs, self.clean)

    def step(self) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.backend:
            _, loss = self.forward()
            loss.backward()
        self.optimizer.step()

    def result(self) -> list[Tensor]:
        """The pictures, the loss, and all weights' gradients as one vector."""
        weights = list(self.model.parameters())
        with self.backend:
            outputs, loss = self.forward()
            directions = [
                torch.linspace(-1, 1, y.numel()).sin().reshape(y.shape).to(y.dtype) for y in outputs
            ]
            gradients = torch.autograd.grad(outputs, weights, directions)
        return [*(y.detach() for y in outputs), loss.detach(), torch.cat([g.flatten() for g in gradients])]


def build_step(options: Options, kind: str) -> Callable[[], None]:
    """A training step to be run in a process of its own."""
    return Trainer(options, kind).step


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.training_step")
    if options.threads:
        torch.set_num_threads(options.threads)
    console = harness.make_console()
    here = harness.machine()
    console.print(harness.describe(here), soft_wrap=True)

    expected = Trainer(options, PUBLISHED, torch.float64).result()
    trainers = {kind: Trainer(options, kind) for kind in KINDS}
    variants = {
        kind: Variant(trainer.step, trainer.result, kind == PUBLISHED) for kind, trainer in trainers.items()
    }
    dtype = getattr(torch, options.dtype)
    timings = harness.compare(variants, expected, dtype, options.rounds, sample_seconds=0)
    peaks = {
        kind: harness.peak_memory(build_step, options, kind)
        for kind, timing in timings.items()
        if options.memory and timing.wrong is None
    }

    table = harness.make_table(
        f"Training step, IRNeXt({options.blocks}), {options.batch} x {options.size} x {options.size}, "
        f"{options.dtype}",
        "",
        "ms",
        "spread",
        "vs published",
        "peak MiB",
        "of published",
        "error",
    )
    results = []
    for kind, timing in timings.items():
        peak = peaks.get(kind)
        share = peak / peaks[PUBLISHED] if peak and PUBLISHED in peaks else None
        table.add_row(
            kind,
            *harness.time_cells(timing),
            harness.ratio_cell(timing, PUBLISHED),
            "" if peak is None else f"{peak / 2**20:.0f}",
            "" if share is None else f"{share:.2f}",
            f"{timing.error:.0e}",
        )
        memory = {"peak_bytes": peak, "peak_of_published": share}
        results.append({"variant": kind} | dataclasses.asdict(timing) | memory)
    console.print(table)
    if options.json:
        path = harness.write_results(
            "training_step", here, dataclasses.asdict(options), results, options.results
        )
        console.print(f"written: {path}", soft_wrap=True)
    return int(any(timing.wrong for timing in timings.values()))


if __name__ == "__main__":
    sys.exit(main())
