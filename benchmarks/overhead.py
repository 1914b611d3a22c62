"""What a call costs beyond its arithmetic: `python -m benchmarks.overhead --help`.

Every operator runs on a tensor so small that the call itself takes the time, next to PyTorch
operators that compute the same: the difference is what irnext's checks, dispatch and autograd add.
The goal is less than 10 microseconds. On CUDA the time is the host's: calls are queued, and the
device is waited for afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import Tensor

from irnext import LocalAttention, ops, use_backend

from . import device, harness, lam
from .harness import Variant
from .published import GroupedConvAttention

OURS, THEIRS = "irnext", "PyTorch"
MODES = ("forward", "forward with gradients", "backward")
WINDOW = (3, 5)


@dataclass(frozen=True)
class Options:
    """Time the calls of irnext's operators on a tiny tensor against PyTorch's own."""

    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    backend: str = "auto"
    """irnext's backend"""
    shape: lam.Shape = (1, 8, 8, 8)
    """N C H W of the input"""
    rounds: int = 30
    """samples per operator"""
    calls: int = 200
    """calls per sample"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.calls < 1:
            raise ValueError(f"rounds is {self.rounds}, calls {self.calls}: both must be at least 1")
        device.check(self.device)


@dataclass(frozen=True)
class Form:
    """One way to compute something.

    Attributes:
        inputs: what gradients are taken of; none where there is no backward pass.
    """

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...] = ()


def grouped_conv2d(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """`dynamic_conv2d` with zero padding and a kernel for every channel, as one grouped convolution."""
    n, c, height, width = x.shape
    rows, columns = kernel.shape[2:]
    weight = kernel.reshape(n * c, 1, rows, columns)
    y = F.conv2d(
        x.reshape(1, n * c, height, width),
        weight,
        bias.flatten(),
        padding=[rows // 2, columns // 2],
        groups=n * c,
    )
    return y.reshape(n, c, height, width)


def pooled_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """`local_mean` of a window within the plane, as a pool and a pad."""
    rows, columns = window
    top, left = (rows - 1) // 2, (columns - 1) // 2
    return F.pad(F.avg_pool2d(x, window, 1), (left, columns - 1 - left, top, rows - 1 - top), "replicate")


def make_attention(cls: type[LocalAttention], like: LocalAttention, x: Tensor) -> Form:
    """The whole module, with the parameters of `like`."""
    module = cls(like.channels).eval()
    module.load_state_dict(like.state_dict())
    module.to(x.device, x.dtype)
    return Form(lambda: module(x), (x, *module.parameters()))


def make_statistics(update: Callable[..., None], x: Tensor) -> Form:
    """Running statistics moved towards a batch's, in place."""
    mean, var = x.detach()[0, :, 0, :2].abs().T.contiguous()
    running, batches = torch.zeros_like(torch.stack((mean, var))), torch.zeros((), dtype=torch.int64)
    arguments = (*running, batches.to(x.device), mean, var, 4, 0.1)

    def forward() -> Tensor:
        update(*arguments)
        return running

    return Form(forward)


def update_by_lerp(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float,
) -> None:
    """`update_statistics` in PyTorch's operators."""
    batches.add_(1)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (count / (count - 1)), momentum)


def concatenated(pools: Sequence[Tensor]) -> Tensor:
    """All pools as one tensor, to be differentiated together."""
    return torch.cat([pool.flatten() for pool in pools])


def upsampled_sum(x: Tensor, branch: Tensor) -> Tensor:
    """`merge_pyramid` of one branch in PyTorch's operators."""
    return F.gelu(x + F.interpolate(branch, x.shape[2:], mode="bilinear", align_corners=True))


def make_forms(shape: lam.Shape, dtype: torch.dtype, device_type: str) -> dict[str, dict[str, Form]]:
    """Every operator that has kernels, ours and PyTorch's, on the same inputs; all gradients are wanted."""
    torch.manual_seed(0)
    n, c = shape[:2]
    x, kernel, bias = (
        torch.randn(size, device=device_type).to(dtype).requires_grad_()
        for size in (shape, (n, c, 3, 3), (n, c))
    )
    attention = lam.make_module(c, "global").float()
    rates, branch = (2, 1), x.detach()[..., ::2, ::2].contiguous().requires_grad_()
    return {
        "spatial_mean": {
            THEIRS: Form(lambda: x.mean((2, 3)), (x,)),
            OURS: Form(lambda: ops.spatial_mean(x), (x,)),
        },
        "local_mean": {
            THEIRS: Form(lambda: pooled_mean(x, WINDOW), (x,)),
            OURS: Form(lambda: ops.local_mean(x, WINDOW), (x,)),
        },
        "dynamic_conv2d": {
            THEIRS: Form(lambda: grouped_conv2d(x, kernel, bias), (x, kernel, bias)),
            OURS: Form(lambda: ops.dynamic_conv2d(x, kernel, bias, 1, "zeros"), (x, kernel, bias)),
        },
        "local_attention": {
            THEIRS: make_attention(GroupedConvAttention, attention, x),
            OURS: make_attention(LocalAttention, attention, x),
        },
        "update_statistics": {
            THEIRS: make_statistics(update_by_lerp, x),
            OURS: make_statistics(ops.update_statistics, x),
        },
        "pool_pyramid": {
            THEIRS: Form(lambda: concatenated([F.avg_pool2d(x, rate) for rate in rates]), (x,)),
            OURS: Form(lambda: concatenated(ops.pool_pyramid(x, rates)), (x,)),
        },
        "merge_pyramid": {
            THEIRS: Form(lambda: upsampled_sum(x, branch), (x, branch)),
            OURS: Form(lambda: ops.merge_pyramid(x, [branch]), (x, branch)),
        },
    }


def make_variant(mode: str, form: Form, baseline: bool) -> Variant:
    """A call in one of `MODES`, checked by y or by all gradients."""

    def without_gradients() -> list[Tensor]:
        with torch.no_grad():
            return [form.forward()]

    def with_gradients() -> list[Tensor]:
        return [form.forward().detach()]

    if mode == "forward":
        return Variant(without_gradients, without_gradients, baseline)
    if mode == "forward with gradients":
        return Variant(form.forward, with_gradients, baseline)
    y = form.forward()
    u = torch.linspace(-1, 1, y.numel(), device=y.device).to(y.dtype).reshape(y.shape)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, form.inputs, u, retain_graph=True)

    return Variant(backward, backward, baseline)


def queue_timer(calls: int, wait: Callable[[], Any]) -> harness.Timer:
    """A timer of the host: `calls` calls are made, and what they started is waited for untimed."""

    def ready(run: Callable[[], Any]) -> Callable[[], float]:
        def sample() -> float:
            seconds = harness.seconds_per_call(run, calls)
            wait()
            return seconds

        sample()
        return sample

    return ready


@contextlib.contextmanager
def inside(options: Options) -> Iterator[None]:
    """The backend asked for, and on CUDA a stream."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_backend(options.backend))
        if options.device == "cuda":
            stack.enter_context(device.stream())
        yield


def measure(options: Options, mode: str, forms: dict[str, Form], exact: Form) -> dict[str, harness.Timing]:
    """Both forms of one operator, checked against PyTorch's in float64 and timed in turns."""
    variants = {name: make_variant(mode, form, name == THEIRS) for name, form in forms.items()}
    expected = make_variant(mode, exact, baseline=True).result()
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    checked = harness.check(variants, expected, torch.float32)
    return harness.time_right(variants, checked, options.rounds, queue_timer(options.calls, wait))


def microseconds(timing: harness.Timing) -> float | None:
    """The time of a call; None for a wrong result."""
    return None if timing.milliseconds is None else 1e3 * timing.milliseconds


def run(options: Options) -> list[dict[str, Any]]:
    """Measure every operator in every mode; an entry for each."""
    forms = make_forms(options.shape, torch.float32, options.device)
    exact = make_forms(options.shape, torch.float64, options.device)
    rows = []
    for name, pair in forms.items():
        for mode in MODES if pair[OURS].inputs else MODES[:1]:
            timings = measure(options, mode, pair, exact[name][THEIRS])
            ours, theirs = (microseconds(timings[form]) for form in (OURS, THEIRS))
            beyond = None if ours is None or theirs is None else ours - theirs
            wrong = timings[OURS].wrong or timings[THEIRS].wrong
            rows.append(
                {
                    "operator": name,
                    "mode": mode,
                    "irnext_us": ours,
                    "pytorch_us": theirs,
                    "beyond_us": beyond,
                    "wrong": wrong,
                }
            )
    return rows


def show(console: Console, options: Options, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    title = f"microseconds a call, {options.shape}, float32, {options.device}, backend {options.backend}"
    table = harness.make_table(title, "operator", "mode", OURS, THEIRS, "beyond")
    for row in rows:
        figures = (row["irnext_us"], row["pytorch_us"], row["beyond_us"])
        cells = ["wrong" if figure is None else f"{figure:.1f}" for figure in figures]
        table.add_row(row["operator"], row["mode"], *cells)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if any operator computes something wrong."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.overhead")
    console = harness.make_console()
    here = harness.machine(device.record() if options.device == "cuda" else None)
    console.print(harness.describe(here), soft_wrap=True)
    with inside(options):
        rows = run(options)
    show(console, options, rows)
    if options.json:
        path = harness.write_results("overhead", here, dataclasses.asdict(options), rows, options.results)
        console.print(f"written: {path}", soft_wrap=True)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
