"""What `irnext.accelerate` gains in other people's networks: `python -m benchmarks.relatives --help`.

Two networks of plain PyTorch modules under published names are timed and measured as they are and after
`accelerate`, which swaps nothing but their operators: one like ConvIR (its multi-shape modules on pooled
planes) and one like FSNet (softmax filters of 3 x 3 and 5 x 5, each on half of the channels, at the full
resolution of every level). Both have IRNeXt's skeleton; FSNet's own patch-wise gates are left out.

Results and gradients are checked before anything is timed, on a small picture against float64. The
networks are in eval mode: batch statistics of one picture do not exist. Memory is exact: the most bytes
that tensors take at once during the call, beyond weights and input.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from irnext import accelerate
from irnext.blocks import ResidualBlock
from tests.relatives import ConvIR, FSNet

from . import device, harness
from .harness import Timing, Variant
from .model import parse_size
from .published import PublishedIRNeXt

ORIGINAL, ACCELERATED = VARIANTS = ("as published", "accelerated")
FORWARD, STEP = "forward", "forward + backward"
DILATIONS = (7, 9, 11)  # of ConvIR, at the rates 8, 4, 2


def convir_module(channels: int) -> nn.Module:
    """ConvIR's multi-scale module of multi-shape kernels."""
    dynas = [ConvIR.MultiShapeKernel(channels, dilation) for dilation in DILATIONS]
    return ConvIR.DeepPoolLayer(channels, dynas)


MODULES = {"convir": convir_module, "fsnet": FSNet.TwoSizes}


@dataclass(frozen=True)
class Options:
    """Time other people's networks, and measure their memory, before and after `irnext.accelerate`."""

    networks: tuple[Literal["convir", "fsnet"], ...] = ("convir", "fsnet")
    """which networks"""
    passes: tuple[Literal["forward", "forward + backward"], ...] = (FORWARD, STEP)
    """what is timed; gradients are those of all weights"""
    blocks: int = 4
    """residual blocks per level; the last one has the module in question (ConvIR-S has 4)"""
    width: int = 32
    """channels at full resolution, a multiple of 16"""
    size: str = "1280x736"
    """width and height of the picture, multiples of 32 (736 is 720 padded as published)"""
    checked: int = 256
    """side of the square picture on which results are checked, a multiple of 32"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is float32 weights under autocast"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 5
    """samples per variant"""
    json: bool = False
    """write the figures to a file under --results, again after every network"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        sides = (*parse_size(self.size), self.checked)
        if self.rounds < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"rounds is {self.rounds}, threads {self.threads}: they must be at least 1")
        if any(side % 32 for side in sides) or ("convir" in self.networks and min(sides) < 256):
            raise ValueError(
                f"size is {self.size}, checked {self.checked}: sides must be multiples of 32, and for ConvIR "
                "at least 256, as its filters reach 7 pixels of a plane a thirty-second as large"
            )
        device.check(self.device)


def make_network(kind: str, options: Options) -> nn.Module:
    """A network of published operators, the same in every call, in eval mode."""
    torch.manual_seed(0)
    network = PublishedIRNeXt(options.blocks, options.width)
    for block in network.modules():
        if isinstance(block, ResidualBlock) and block.msm is not None:
            block.msm = MODULES[kind](block.conv1.out_channels)
    for name, parameter in network.named_parameters():
        # Gains start at zero and gates nearly equal, where filters change nothing.
        if name.rpartition(".")[2] in ("lamb_l", "lamb_h", "inside_all", "gamma"):
            nn.init.uniform_(parameter, -0.5, 0.5)
        elif ".modulate.fcs." in name and parameter.ndim == 1:
            nn.init.uniform_(parameter, -1, 1)
    return network.eval()


class Network:
    """A network with a picture: forward, and forward with all gradients."""

    def __init__(self, kind: str, variant: str, options: Options, size: tuple[int, int], dtype: torch.dtype):
        network = make_network(kind, options)
        if variant == ACCELERATED:
            report = accelerate(network)
            if report.left or not report.swapped:
                raise RuntimeError(f"not all operators were recognised: {report}")
        generator = torch.Generator().manual_seed(1)
        picture = torch.rand(1, 3, size[1], size[0], generator=generator)
        self.network = network.to(options.device, dtype)
        self.picture = picture.to(options.device, dtype)
        self.autocast = options.dtype == "bfloat16" and dtype == torch.float32

    def outputs(self) -> list[Tensor]:
        """The three pictures."""
        with torch.autocast(self.picture.device.type, torch.bfloat16, enabled=self.autocast):
            return self.network(self.picture)

    def forward(self) -> list[Tensor]:
        """The three pictures, without gradients."""
        with torch.no_grad():
            return self.outputs()

    def step(self) -> list[Tensor]:
        """The three pictures, and the gradients of all weights as one vector."""
        outputs, weights = self.outputs(), list(self.network.parameters())
        directions = [
            torch.linspace(-1, 1, y.numel(), device=y.device).sin().view_as(y).to(y.dtype) for y in outputs
        ]
        gradients = torch.autograd.grad(outputs, weights, directions, allow_unused=True)
        vector = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        return [*(y.detach() for y in outputs), vector]

    def call(self, name: str) -> Any:
        """The method of that pass."""
        return self.forward if name == FORWARD else self.step


@dataclass(frozen=True)
class Found:
    """What was found of one variant in one pass; the peak in bytes, none where its result is wrong."""

    network: str
    name: str
    variant: str
    timing: Timing
    peak_bytes: int | None = None


def measure(kind: str, options: Options) -> list[Found]:
    """Check one network, then time its variants in turns and measure their memory."""
    on_gpu = options.device == "cuda"
    small = (options.checked, options.checked)
    expected = Network(kind, ORIGINAL, options, small, torch.float64).step()
    checks = {
        variant: Variant(int, Network(kind, variant, options, small, torch.float32).step, variant == ORIGINAL)
        for variant in VARIANTS
    }
    checked = harness.check(checks, expected, getattr(torch, options.dtype))
    networks = {v: Network(kind, v, options, parse_size(options.size), torch.float32) for v in checks}
    peak = device.allocated_peak if on_gpu else harness.allocated_peak
    found = []
    for name in options.passes:
        variants = {variant: Variant(network.call(name)) for variant, network in networks.items()}
        timings = harness.time_right(variants, checked, options.rounds, warm_timer(on_gpu))
        for variant, timing in timings.items():
            timed = timing.milliseconds is not None
            size = peak(networks[variant].call(name), warm=False) if timed else None
            found.append(Found(kind, name, variant, timing, size))
    return found


def warm_timer(on_gpu: bool) -> harness.Timer:
    """A timer of single calls, after one to warm up."""

    def ready(call: Any) -> Any:
        call()
        return (device.call_timer if on_gpu else harness.call_timer)(call)

    return ready


def rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What the file of the results says of every variant."""
    before = {(one.network, one.name): one.peak_bytes for one in found if one.variant == ORIGINAL}
    records = []
    for one in found:
        base, size = before[one.network, one.name], one.peak_bytes
        record = {"network": one.network, "pass": one.name, "variant": one.variant}
        share = size / base if size and base else None
        record |= dataclasses.asdict(one.timing) | {"peak_bytes": size, "peak_of_published": share}
        records.append(record)
    return records


def show(console: Console, options: Options, found: Sequence[Found]) -> None:
    """Print the table."""
    cells = []
    for row, one in zip(rows(found), found, strict=True):
        milliseconds, spread = harness.time_cells(one.timing)
        cells.append(
            {
                "": f"{one.network}, {one.name}, {one.variant}",
                "ms": milliseconds,
                "spread": spread,
                "vs published": harness.ratio_cell(one.timing, ORIGINAL),
                "peak MiB": harness.mebibytes(one.peak_bytes),
                "x published's": harness.number(row["peak_of_published"], ".2f"),
                "error": harness.number(one.timing.error, ".0e"),
            }
        )
    title = f"Networks like ConvIR and FSNet, {options.blocks} blocks, {options.size}, {options.dtype}"
    console.print(harness.table_of(title, cells))
    for one in found:
        if why := one.timing.wrong or one.timing.failure:
            console.print(f"{one.network}, {one.variant}: {why}", soft_wrap=True)


def run(options: Options) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    console = harness.make_console()
    found: list[Found] = []
    with device.measuring(options.device, options.threads, console, large=True) as here:
        for kind in options.networks:
            found += measure(kind, options)
            if options.json:
                given = dataclasses.asdict(options)
                harness.write_results("relatives", here, given, rows(found), options.results)
    show(console, options, found)
    return int(any(one.timing.wrong for one in found))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.relatives"))


if __name__ == "__main__":
    sys.exit(main())
