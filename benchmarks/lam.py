"""The local attention module against its published form: `python -m benchmarks.lam --help`.

Forward runs without gradients; backward is the backward pass alone, for a forward pass that was kept.
Both give the gradients of the input and of every parameter. Batch normalisation uses its running
statistics, except in the suite "training", where batches of several samples use their own; in half
precision these cases run float32 parameters under autocast, as training does.

Least traffic is what has to be moved at the least (`LEAST_TRAFFIC`); GB/s are those bytes over the time
taken. "Of copy" is the same in terms of a copy of the input, measured in the same run; "of large
copy", on CUDA, in terms of a copy of 1 GiB. Peak is the most memory that a call holds at once, saved
what the forward pass keeps for the backward pass, without parameters.

On CUDA, ms is the time on the device with cold caches (`triton.testing.do_bench`) and graph ms that of
calls replayed from a CUDA graph, with warm caches and no time of the host's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from irnext import LocalAttention, use_backend

from . import device, harness
from .harness import Timing, Variant
from .published import GroupedConvAttention, UnfoldAttention

Shape = tuple[int, int, int, int]
DType = Literal["float32", "float64", "float16", "bfloat16"]
Layout = Literal["contiguous", "channels_last"]
Direction = Literal["forward", "backward", "forward + backward"]
UNFOLD, GROUPED, COPY, CLONE_MEAN = "unfold (published)", "grouped convolution", "copy", "clone + mean"
BASELINES: dict[str, type[LocalAttention]] = {UNFOLD: UnfoldAttention, GROUPED: GroupedConvAttention}


# ---- traffic -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Tensors of x's size that are read from and written to memory."""

    reads: int
    writes: int

    @property
    def tensors(self) -> int:
        return self.reads + self.writes


# What an operator moves at the least, where no plane stays on the chip between two passes over it.
LEAST_TRAFFIC = {
    "dynamic_conv2d": Traffic(1, 1),
    "dynamic_conv2d_backward": Traffic(2, 1),  # x and grad in one pass, for the sums and for dx
    "spatial_mean": Traffic(1, 0),
    "local_mean": Traffic(1, 1),
    "local_mean_backward": Traffic(1, 1),
    "local_attention": Traffic(2, 1),  # x for its mean; x again for y
    "local_attention_backward": Traffic(3, 1),  # x and grad for the sums, which dx needs; grad again for dx
}
_ON_A_GPU = LEAST_TRAFFIC | {
    "dynamic_conv2d_backward": Traffic(3, 1),  # a launch for the sums, a launch for dx
    "local_mean": Traffic(2, 2),  # a launch along each axis
    "local_mean_backward": Traffic(2, 2),
}
# What the kernels of a backend move. Of the local attention with the plane's mean: with a window the GPUs'
# kernels move a `local_mean` more. A plane that fits into shared memory is read once by "cuda" in evaluation.
KERNEL_TRAFFIC = {
    "cpu": LEAST_TRAFFIC
    | {
        "local_mean": Traffic(2, 1),  # the row that enters a window and the one that leaves it
        "local_mean_backward": Traffic(2, 1),
    },
    "cuda": _ON_A_GPU,
    "cuda-host": _ON_A_GPU,
    "triton": _ON_A_GPU,
}
OPERATORS: dict[Direction, tuple[str, ...]] = {
    "forward": ("local_attention",),
    "backward": ("local_attention_backward",),
    "forward + backward": ("local_attention", "local_attention_backward"),
}


def tensors_moved(direction: Direction, traffic: dict[str, Traffic] = LEAST_TRAFFIC) -> int:
    """What the whole module moves, in tensors of x's size; by default the least."""
    return sum(traffic[name].tensors for name in OPERATORS[direction])


# ---- what is measured ----------------------------------------------------------------------------

# Of crops of 256 x 256 pixels: C, H, W of the planes at all three levels and pooling rates 8, 4, 2.
CROP_PLANES = tuple((c, 8192 // c // r, 8192 // c // r) for c in (32, 64, 128) for r in (8, 4, 2))
# Of 1280 x 720 and 3840 x 2160 pixels, padded to multiples of 32.
PICTURES = ((736, 1280), (2176, 3840))
PICTURE_SHAPES = tuple(
    (1, c, 32 * height // c // r, 32 * width // c // r)
    for height, width in PICTURES
    for c in (32, 64, 128)
    for r in (8, 4, 2)
)
SUITES: dict[str, tuple[Shape, ...]] = {
    "quick": ((1, 32, 128, 128), (1, 64, 64, 64), (1, 128, 32, 32)),
    "training": tuple((n, *plane) for n in (1, 4, 8) for plane in CROP_PLANES),
    "planes": PICTURE_SHAPES,
}
FORWARD_SHAPES: tuple[Shape, ...] = ((1, 32, 360, 640),)


@dataclass(frozen=True)
class Options:
    """Time the local attention module against the published formulation."""

    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    suite: Literal["quick", "training", "planes", "full"] = "quick"
    """shapes: a few; planes of 256 x 256 crops in batches of 1, 4, 8; planes of 720p and 4K; all"""
    shapes: tuple[Shape, ...] | None = None
    """N C H W of the inputs, in place of the suite's"""
    forward_shapes: tuple[Shape, ...] | None = None
    """N C H W of further inputs, forward only, in place of the quick suite's"""
    directions: tuple[Direction, ...] = ("forward", "forward + backward")
    """what of a training step to time"""
    dtypes: tuple[DType, ...] = ("float32",)
    """floating types of the input and of the parameters"""
    layouts: tuple[Layout, ...] = ("contiguous",)
    """memory formats of the input"""
    backends: tuple[str, ...] = ("auto", "reference")
    """irnext's backends: auto, reference, cpu, cuda, triton, cuda-host"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 20
    """samples per variant"""
    sample_seconds: float = 0.02
    """least time of one sample; shorter calls are repeated"""
    compile: bool = False
    """also torch.compile of both baselines (slow to start)"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"rounds is {self.rounds}, threads {self.threads}: both must be at least 1")
        device.check(self.device)
        for name in self.backends:
            use_backend(name)  # raises, with the reason, where it cannot be used


@dataclass(frozen=True)
class Case:
    """One table: all variants compute the same."""

    direction: Direction
    shape: Shape
    dtype: DType
    layout: Layout
    training: bool  # normalise with the statistics of the batch

    @property
    def type(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def parameter_type(self) -> torch.dtype:
        return torch.float32 if self.autocast else self.type

    @property
    def autocast(self) -> bool:
        return self.training and self.type.itemsize == 2

    @property
    def tensor_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.type.itemsize

    def __str__(self) -> str:
        normalised = ", batch statistics" if self.training else ""
        return f"LAM {self.direction}, {self.shape}, {self.dtype}, {self.layout}{normalised}"


def make_cases(options: Options) -> list[Case]:
    """The tables that the options ask for, in order, each once."""
    suites = tuple(SUITES) if options.suite == "full" else (options.suite,)
    cases = []
    for suite in suites:
        shapes = SUITES[suite] if options.shapes is None else options.shapes
        wanted = [(direction, shape) for direction in options.directions for shape in shapes]
        if suite == "quick":
            more = FORWARD_SHAPES if options.forward_shapes is None else options.forward_shapes
            wanted += [("forward", shape) for shape in more]
        cases += [
            Case(direction, shape, dtype, layout, suite == "training" and shape[0] > 1)
            for dtype in options.dtypes
            for layout in options.layouts
            for direction, shape in wanted
        ]
    return list(dict.fromkeys(cases))


# ---- the variants --------------------------------------------------------------------------------


def make_module(channels: int, low_pass: str) -> LocalAttention:
    """A LAM in float64 and eval mode with random gains and statistics: at its start it is the identity."""
    module = LocalAttention(channels, low_pass=low_pass).double().eval()
    for tensor in (module.low_gain, module.high_gain, module.inner_gain, module.norm.running_mean):
        nn.init.uniform_(tensor, -1, 1)
    for tensor in (module.norm.running_var, module.norm.weight):
        nn.init.uniform_(tensor, 0.5, 2)
    return module


def forward_result(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """y alone, without gradients."""
    with torch.no_grad():
        return [function(x)]


def backward_result(
    function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, u: Tensor
) -> list[Tensor]:
    """y and the gradients of x and of every parameter, for the gradient u of y."""
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), u.to(y.dtype))]


@dataclass
class Subject:
    """One implementation of the module, as a function of x.

    Attributes:
        backend: irnext's, where it is irnext.
    """

    module: LocalAttention
    function: Callable[[Tensor], Tensor]
    backend: str | None = None

    def variant(self, direction: Direction, x: Tensor, u: Tensor) -> Variant:
        """What to time on x and its gradient u, and how to check it."""

        def forward() -> list[Tensor]:
            return forward_result(self.function, x)

        def both() -> list[Tensor]:
            return backward_result(self.function, self.module, x, u)

        result = forward if direction == "forward" else both
        run = Backward(self.function, self.module, x, u) if direction == "backward" else result
        return Variant(run, result, baseline=self.backend is None)


class Backward:
    """The backward pass alone: the forward pass is made once and kept, when first needed."""

    def __init__(self, function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, u: Tensor):
        self.forward = lambda: function(x)
        self.inputs, self.gradient = (x, *module.parameters()), u
        self.y: Tensor | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        if self.y is None:
            self.y = self.forward()
            self.gradient = self.gradient.to(self.y.dtype)
        return torch.autograd.grad(self.y, self.inputs, self.gradient, retain_graph=True)


def within(function: Callable[[Tensor], Tensor], context: Any) -> Callable[[Tensor], Tensor]:
    """The function called in a context that can be entered again."""

    def call(x: Tensor) -> Tensor:
        with context:
            return function(x)

    return call


def make_subjects(options: Options, case: Case, exact: LocalAttention) -> dict[str, Subject]:
    """Every implementation by name, the published form first, with the rounded parameters of `exact`."""

    def same(cls: type[LocalAttention]) -> LocalAttention:
        module = cls(exact.channels, low_pass=options.low_pass).train(case.training)
        module.load_state_dict(exact.state_dict())
        return module.to(options.device, case.parameter_type)

    subjects = {}
    for name, cls in BASELINES.items():
        module = same(cls)
        subjects[name] = Subject(module, module)
    for name, cls in BASELINES.items() if options.compile else ():
        module = same(cls)
        subjects[f"compiled {name}"] = Subject(module, torch.compile(module, dynamic=False))
    for backend in options.backends:
        module = same(LocalAttention)
        subjects[f"irnext ({backend})"] = Subject(module, within(module, use_backend(backend)), backend)
    if case.autocast:
        for subject in subjects.values():
            subject.function = within(subject.function, torch.autocast(options.device, case.type))
    return subjects


def make_variants(
    options: Options, case: Case, subjects: dict[str, Subject], x: Tensor, u: Tensor
) -> tuple[dict[str, Variant], list[Tensor]]:
    """Every variant by name, with those that only move memory, and the exact result."""
    # Every variant's true answer is that for the rounded parameters and input.
    truth = UnfoldAttention(case.shape[1], low_pass=options.low_pass).train(case.training)
    truth.load_state_dict(subjects[UNFOLD].module.state_dict())
    truth.to(options.device, torch.float64)
    wide = x.detach().double()
    if case.direction == "forward":
        expected = forward_result(truth, wide)
    else:
        expected = backward_result(truth, truth, wide.requires_grad_(), u.double())
    variants = {name: subject.variant(case.direction, x, u) for name, subject in subjects.items()}
    source, target = x.detach().clone(), torch.empty_like(x, requires_grad=False)
    variants[COPY] = Variant(lambda: target.copy_(source))
    # Like every variant but the copy, this one allocates its result.
    variants[CLONE_MEAN] = Variant(lambda: (source.mean((2, 3)), source.clone()))
    return variants, expected


# ---- what is found -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What was measured of one variant; nothing but `timing` where its result is wrong.

    Attributes:
        graph: of calls replayed from a CUDA graph.
        peak_bytes: the most memory a call holds at once.
        launches: kernels of a call, where they are counted.
        saved_bytes: what the forward pass keeps for the backward pass.
        moved_tensors: what the backend's kernels move by design, in tensors of x's size.
    """

    timing: Timing
    graph: Timing | None = None
    peak_bytes: int | None = None
    launches: int | None = None
    saved_bytes: int | None = None
    moved_tensors: int | None = None


def count_launches(subject: Subject, run: Callable[[], Any], device_type: str) -> int | None:
    """The kernels that a call launches; None where nothing counts them."""
    if device_type == "cuda":
        return device.kernel_launches(run)
    if subject.backend != "cuda-host":
        return None
    counter = torch.ops.irnext_cuda_host.launches
    before = counter()
    run()
    return counter() - before


def measure_memory(case: Case, subject: Subject, run: Callable[[], Any], x: Tensor) -> dict[str, int | None]:
    """Peak and saved bytes of one variant, by field of `Found`."""
    peak = device.allocated_peak if x.is_cuda else harness.allocated_peak
    saved = None
    if case.direction != "forward":
        saved = harness.saved_bytes(lambda: subject.function(x), subject.module.parameters())
    return {"peak_bytes": peak(run), "saved_bytes": saved}


def kernel_tensors(options: Options, case: Case, subject: Subject) -> int | None:
    """What the kernels that serve a variant move, where `KERNEL_TRAFFIC` has them."""
    traffic = KERNEL_TRAFFIC.get(subject.backend or "")
    if traffic is None or options.low_pass != "global":
        return None
    return tensors_moved(case.direction, traffic)


def repeatable_backward(case: Case) -> contextlib.AbstractContextManager:
    """Compiled functions may not reuse the memory of what they saved if a backward pass comes again."""
    if case.direction != "backward":
        return contextlib.nullcontext()
    return torch._functorch.config.patch(donated_buffer=False)


def make_timers(options: Options) -> list[harness.Timer]:
    """How a call is timed: by the clock, or on CUDA with cold caches and by graph replay."""
    seconds = options.sample_seconds
    if options.device == "cuda":
        return [device.cold_timer(seconds), device.graph_timer(seconds)]
    return [harness.host_timer(seconds)]


def measure(options: Options, case: Case) -> dict[str, Found]:
    """Check, time and size up every variant of one case."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    exact = make_module(case.shape[1], options.low_pass)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x, u = (
        torch.randn(case.shape, device=options.device).to(case.type, memory_format=layout) for _ in range(2)
    )
    x.requires_grad_(case.direction != "forward")
    subjects = make_subjects(options, case, exact)
    with repeatable_backward(case):
        variants, expected = make_variants(options, case, subjects, x, u)
        checked = harness.check(variants, expected, case.type)
        del expected
        timings, *graphs = (
            harness.time_right(variants, checked, options.rounds, timer) for timer in make_timers(options)
        )
        found = {}
        for name, timing in timings.items():
            sizes: dict[str, int | None] = {}
            if name in subjects and timing.milliseconds is not None:
                subject, run = subjects[name], variants[name].run
                sizes = measure_memory(case, subject, run, x)
                sizes["launches"] = count_launches(subject, run, options.device)
                sizes["moved_tensors"] = kernel_tensors(options, case, subject)
            found[name] = Found(timing, graphs[0][name] if graphs else None, **sizes)
    return found


def rates(case: Case, timing: Timing, large_copy: float | None) -> dict[str, float | None]:
    """The speed of a variant on the least traffic: in GB/s and as shares of copies' bandwidths.

    Args:
        large_copy: bytes a second of a large copy, where that was measured.
    """
    if timing.error is None or timing.milliseconds is None:
        return {"gb_per_s": None, "share_of_floor": None, "share_of_large_copy": None}
    tensors = tensors_moved(case.direction)
    bandwidth = 1e3 * tensors * case.tensor_bytes / timing.milliseconds
    # A copy moves two tensors.
    of_copy = timing.ratios[COPY] * tensors / 2 if COPY in timing.ratios else None
    return {
        "gb_per_s": bandwidth / 1e9,
        "share_of_floor": of_copy,
        "share_of_large_copy": None if large_copy is None else bandwidth / large_copy,
    }


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.2f}"


def show(console: Console, case: Case, found: dict[str, Found], large_copy: float | None = None) -> None:
    """Print one table, without the columns that would be empty."""
    copy = found[COPY].timing.milliseconds
    title = str(case)
    if copy is not None:
        title += f"; a copy of x moves {2 * case.tensor_bytes / copy / 1e6:.1f} GB/s"
    columns: dict[str, list[str]] = {}
    for name, one in found.items():
        rate = rates(case, one.timing, large_copy)
        ratios = [harness.ratio_cell(one.timing, other) for other in (UNFOLD, GROUPED, CLONE_MEAN)]
        cells = {
            "": name,
            **dict(zip(("ms", "spread"), harness.time_cells(one.timing), strict=True)),
            "graph ms": harness.time_cells(one.graph)[0] if one.graph else "",
            **dict(zip(("vs unfold", "vs grouped", "vs clone+mean"), ratios, strict=True)),
            "GB/s": _number(rate["gb_per_s"], ".1f"),
            "of copy": _number(rate["share_of_floor"], ".0%"),
            "of large copy": _number(rate["share_of_large_copy"], ".0%"),
            "peak MiB": _mebibytes(one.peak_bytes),
            "launches": _number(one.launches, "d"),
            "saved MiB": _mebibytes(one.saved_bytes),
            "error": _number(one.timing.error, ".0e"),
        }
        for column, cell in cells.items():
            columns.setdefault(column, []).append(cell)
    shown = {column: cells for column, cells in columns.items() if any(cells)}
    table = harness.make_table(title, *shown)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    console.print(table)


def as_rows(case: Case, found: dict[str, Found], large_copy: float | None) -> list[dict[str, Any]]:
    """What the file of the results says of one case: a flat entry per variant."""
    rows = []
    for name, one in found.items():
        row = dataclasses.asdict(case) | {"variant": name} | dataclasses.asdict(one.timing)
        row |= rates(case, one.timing, large_copy)
        if one.graph:
            graph = dataclasses.asdict(one.graph)
            row |= {f"graph_{key}": graph[key] for key in ("milliseconds", "spread", "ratios", "failure")}
        sizes = ("peak_bytes", "launches", "saved_bytes", "moved_tensors")
        rows.append(row | {key: getattr(one, key) for key in sizes})
    return rows


def run_cases(options: Options, console: Console) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure every case, print it, and return the machine's record and all rows."""
    on_gpu = options.device == "cuda"
    here = harness.machine(device.record() if on_gpu else None)
    console.print(harness.describe(here), soft_wrap=True)
    large_copy = None
    if on_gpu:
        large_copy = device.large_copy_bandwidth(device.cold_timer(options.sample_seconds))
        here["gpu"]["large_copy_gb_per_s"] = large_copy / 1e9
        console.print(f"a copy of 1 GiB moves {large_copy / 1e9:.0f} GB/s")
    rows = []
    for case in make_cases(options):
        try:
            found = measure(options, case)
        except torch.OutOfMemoryError:
            console.print(f"{case}: not enough memory for the float64 result")
            continue
        show(console, case, found, large_copy)
        rows += as_rows(case, found, large_copy)
    if on_gpu:
        here["gpu"]["state_after"] = device.record()["state"]
    return here, rows


def run(options: Options) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    if options.threads:
        torch.set_num_threads(options.threads)
    harness.keep_freed_memory()
    console = harness.make_console()
    with device.stream() if options.device == "cuda" else contextlib.nullcontext():
        here, rows = run_cases(options, console)
    if options.json:
        path = harness.write_results("lam", here, dataclasses.asdict(options), rows, options.results)
        console.print(f"written: {path}", soft_wrap=True)
    return int(any(row["wrong"] for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.lam"))


if __name__ == "__main__":
    sys.exit(main())
