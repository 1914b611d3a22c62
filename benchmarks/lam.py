"""The local attention module against its published form: `python -m benchmarks.lam --help`.

Forward runs without gradients. Forward + backward gives the gradients of the input and of every
parameter; batch normalisation stays in eval mode there, since in training mode a single sample has
no batch statistics. The floor is the time of the least traffic at the bandwidth measured for a copy
of the same tensor in the same run: 3 tensors forward (x is read for its mean, read again, and y
written), 4 more backward (x and u are read for the sums, u is read again, dx is written).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from irnext import LocalAttention, use_backend

from . import harness
from .harness import Timing, Variant
from .published import GroupedConvAttention, UnfoldAttention

Shape = tuple[int, int, int, int]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
UNFOLD, GROUPED, COPY, CLONE_MEAN = "unfold (published)", "grouped convolution", "copy", "clone + mean"
LEAST_TRAFFIC = {"forward": 3, "forward + backward": 7}


@dataclass(frozen=True)
class Options:
    """Time the local attention module against the published formulation, on the CPU."""

    shapes: tuple[Shape, ...] = ((1, 32, 128, 128), (1, 64, 64, 64), (1, 128, 32, 32))
    """N C H W of the inputs, forward and forward + backward"""
    forward_shapes: tuple[Shape, ...] = ((1, 32, 360, 640),)
    """N C H W of further inputs, forward only"""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """floating type of the input and of the parameters"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 20
    """samples per variant"""
    sample_seconds: float = 0.02
    """least time of one sample; shorter calls are repeated"""
    compiled: Annotated[bool, tyro.conf.arg(name="compile")] = False
    """also torch.compile of both baselines (slow to start)"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"rounds is {self.rounds}, threads {self.threads}: both must be at least 1")


def make_module(channels: int, low_pass: str) -> LocalAttention:
    """A LAM in float64 and eval mode with random gains and statistics: at its start it is the identity."""
    module = LocalAttention(channels, low_pass=low_pass).double().eval()
    for tensor in (module.low_gain, module.high_gain, module.inner_gain, module.norm.running_mean):
        nn.init.uniform_(tensor, -1, 1)
    for tensor in (module.norm.running_var, module.norm.weight):
        nn.init.uniform_(tensor, 0.5, 2)
    return module


def serve(module: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    """The module as a function that runs on one backend."""
    choice = use_backend(backend)

    def call(x: Tensor) -> Tensor:
        with choice:
            return module(x)

    return call


def forward_result(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """y alone, without gradients."""
    with torch.no_grad():
        return [function(x)]


def backward_result(
    function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, u: Tensor
) -> list[Tensor]:
    """y and the gradients of x and of every parameter, for the gradient u of y."""
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), u)]


def make_variants(options: Options, direction: str, exact: LocalAttention, x: Tensor, u: Tensor):
    """Every variant by name, the published form first, and the exact result."""

    def same(cls: type[LocalAttention], dtype: torch.dtype) -> LocalAttention:
        module = cls(exact.channels, low_pass=options.low_pass).to(dtype).eval()
        module.load_state_dict(exact.state_dict())
        return module

    def variant(module: LocalAttention, function: Callable[[Tensor], Tensor], baseline: bool) -> Variant:
        def run() -> list[Tensor]:
            if direction == "forward":
                return forward_result(function, low)
            return backward_result(function, module, low, low_u)

        return Variant(run, run, baseline)

    dtype = DTYPES[options.dtype]
    low, low_u = x.to(dtype), u.to(dtype)
    # Every variant's true answer is that for the rounded parameters and input.
    truth = same(UnfoldAttention, dtype).double()
    wide = low.double()
    if direction == "forward":
        expected = forward_result(truth, wide)
    else:
        expected = backward_result(truth, truth, wide.requires_grad_(), low_u.double())
        low.requires_grad_()
    baselines = {UNFOLD: UnfoldAttention, GROUPED: GroupedConvAttention}
    variants = {}
    for name, cls in baselines.items():
        module = same(cls, dtype)
        variants[name] = variant(module, module, baseline=True)
    for name, cls in baselines.items() if options.compiled else ():
        module = same(cls, dtype)
        compiled = torch.compile(module, dynamic=False)
        variants[f"torch.compile: {name}"] = variant(module, compiled, baseline=True)
    for backend in ("auto", "reference"):
        module = same(LocalAttention, dtype)
        variants[f"irnext ({backend})"] = variant(module, serve(module, backend), baseline=False)
    source, target = low.detach().clone(), torch.empty_like(low, requires_grad=False)
    variants[COPY] = Variant(lambda: target.copy_(source))
    # Like every variant but the copy, this one allocates its result.
    variants[CLONE_MEAN] = Variant(lambda: (source.mean((2, 3)), source.clone()))
    return variants, expected


def measure(options: Options, direction: str, shape: Shape) -> dict[str, Timing]:
    """Check and time every variant on one shape."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    exact = make_module(shape[1], options.low_pass)
    x, u = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    variants, expected = make_variants(options, direction, exact, x, u)
    return harness.compare(variants, expected, DTYPES[options.dtype], options.rounds, options.sample_seconds)


def share_of_floor(timing: Timing, direction: str) -> float | None:
    """The time of the least traffic (a copy moves two tensors) over the time taken."""
    return timing.ratios[COPY] * LEAST_TRAFFIC[direction] / 2 if COPY in timing.ratios else None


def show(console: Console, options: Options, direction: str, shape: Shape, timings: dict[str, Timing]):
    """Print one table."""
    bandwidth = 2 * torch.Size(shape).numel() * DTYPES[options.dtype].itemsize / timings[COPY].milliseconds
    table = harness.make_table(
        f"LAM {direction}, {shape}, {options.dtype}; a copy of x moves {bandwidth / 1e6:.1f} GB/s",
        "",
        "ms",
        "spread",
        "vs unfold",
        "vs grouped",
        "vs clone+mean",
        "of floor",
        "error",
    )
    for name, timing in timings.items():
        share = None if timing.error is None else share_of_floor(timing, direction)
        table.add_row(
            name,
            *harness.time_cells(timing),
            *(harness.ratio_cell(timing, other) for other in (UNFOLD, GROUPED, CLONE_MEAN)),
            "" if share is None else f"{share:.0%}",
            "" if timing.error is None else f"{timing.error:.0e}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.lam")
    if options.threads:
        torch.set_num_threads(options.threads)
    harness.keep_freed_memory()
    console = harness.make_console()
    here = harness.machine()
    console.print(harness.describe(here), soft_wrap=True)
    cases = [(direction, shape) for direction in LEAST_TRAFFIC for shape in options.shapes]
    cases += [("forward", shape) for shape in options.forward_shapes]
    results = []
    for direction, shape in cases:
        timings = measure(options, direction, shape)
        show(console, options, direction, shape, timings)
        for name, timing in timings.items():
            share = None if timing.error is None else share_of_floor(timing, direction)
            case = {"direction": direction, "shape": shape, "variant": name, "share_of_floor": share}
            results.append(case | dataclasses.asdict(timing))
    if options.json:
        path = harness.write_results("lam", here, dataclasses.asdict(options), results, options.results)
        console.print(f"written: {path}", soft_wrap=True)
    return int(any(result["wrong"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
