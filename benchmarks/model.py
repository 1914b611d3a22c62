"""Whole IRNeXt models at inference, against the published formulation: `python -m benchmarks.model --help`.

Latency, throughput and peak memory of the published network (eager, and compiled with its weights
frozen), of `irnext.IRNeXt` as it is, and of `irnext.optimize`. Results are checked against float64
before anything is timed, and the variants take turns. In half precision the first three run
float32 weights under autocast.

Under each time stands where it goes, by kind of operator, and its floor: what the convolutions'
multiply-accumulates take at the best rate of a convolution measured here, and what their inputs and
outputs take at the bandwidth of a copy. Winograd's algorithm, in the optimized model on CPUs, needs
fewer products than are counted: it can go below the floor. Operators that several parts have are
counted where most of them are: products in the attention, GELU and sums (where not fused into a
convolution) in the pyramids. A training step is the matter of `benchmarks.training_step`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import Tensor, nn

import irnext
from irnext.optimization import optimize

from . import device, harness
from .harness import Timing, Variant
from .published import PublishedIRNeXt

PUBLISHED, COMPILED = "published, eager", "published, compiled"
PLAIN, OPTIMIZED = "irnext", "irnext, optimized"

# Where an operator's time is counted, by a part of its name; the first kind that fits.
KINDS: dict[str, tuple[str, ...]] = {
    "convolutions": ("conv", "mkldnn", "cudnn", "implicit_gemm", "implicit_convolve", "xmma", "cutlass"),
    "attention": (
        *("irnext::", "im2col", "reflection_pad", "tanh", "sigmoid", "softmax", "batch_norm"),
        *("aten::mean", "aten::sum", "aten::mul", "aten::mm", "aten::addmm", "cumsum"),
    ),
    "pyramids": ("avg_pool", "max_pool", "upsample", "gelu", "aten::add"),
    "copies": ("copy", "cat", "clone", "contiguous", "index"),
    "generated": ("graph_", "cpp_fused", "triton_", "Torch-Compiled", "CompiledFxGraph", "Compiled"),
}
OTHER = "other"


@dataclass(frozen=True)
class Options:
    """Time whole models at inference, say where the time goes, and compare with the published network."""

    blocks: int = 4
    """residual blocks per CNNBlock"""
    width: int = 32
    """channels at full resolution"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    sizes: tuple[tuple[int, int], ...] = ((256, 256),)
    """heights and widths of the pictures in pixels: multiples of 32, at least 64"""
    batch: int = 1
    """pictures at once"""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    """types to compute in"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    compiled: bool = True
    """also time the compiled published network (minutes of compilation)"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 10
    """calls timed per variant"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"rounds is {self.rounds}, batch {self.batch}, threads {self.threads}: all must be at least 1"
            )
        for side in (side for size in self.sizes for side in size):
            if side < 64 or side % 32:
                raise ValueError(f"a size is {side} pixels: it must be a multiple of 32, at least 64")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', but PyTorch sees no CUDA device")


# ---- the models ----------------------------------------------------------------------------------


def make_model(network: type[nn.Module], options: Options) -> nn.Module:
    """A network in eval mode; all networks get the same weights, and gains that do something."""
    torch.manual_seed(0)
    model = network(options.blocks, options.width, low_pass=options.low_pass)
    for name, parameter in model.named_parameters():
        if name.endswith("_gain"):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model.eval().requires_grad_(False)


def compile_published(model: nn.Module, on_gpu: bool) -> Callable[[Tensor], list[Tensor]]:
    """The published network as torch.compile does it best: frozen weights, on GPUs with max-autotune."""
    if not on_gpu:
        return torch.compile(model, options={"freezing": True})
    options = torch._inductor.list_mode_options("max-autotune") | {"freezing": True}
    return torch.compile(model.to(memory_format=torch.channels_last), options=options)


def _runner(model: Callable, x: Tensor, dtype: torch.dtype, autocast: bool) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=autocast):
            return model(x)

    return run


def make_runs(options: Options, x: Tensor, dtype: torch.dtype) -> dict[str, Callable[[], list[Tensor]]]:
    """By variant, a call of the whole model on x."""
    autocast, on_gpu = dtype != torch.float32, x.is_cuda
    plain = make_model(irnext.IRNeXt, options).to(x.device)
    published = make_model(PublishedIRNeXt, options).to(x.device)
    models: dict[str, Callable] = {PUBLISHED: published}
    if options.compiled:
        compiled = make_model(PublishedIRNeXt, options).to(x.device)
        models[COMPILED] = compile_published(compiled, on_gpu)
    models[PLAIN] = plain
    runs = {name: _runner(model, x, dtype, autocast) for name, model in models.items()}
    runs[OPTIMIZED] = _runner(optimize(plain, dtype=dtype), x, dtype, False)
    return runs


# ---- the floor -----------------------------------------------------------------------------------


def _seconds(run: Callable[[], Any], on_gpu: bool, rounds: int = 5) -> float:
    """The shortest of a few samples: what the machine can do when nothing else runs."""
    sample = (device.cold_timer(0.02) if on_gpu else harness.host_timer(0.02))(run)
    return min(sample() for _ in range(rounds))


def convolution_rate(dtype: torch.dtype, on: torch.device, widths: Sequence[int]) -> float:
    """Multiply-accumulates a second of 3 x 3 convolutions in channels_last, at the best of some widths."""
    best = 0.0
    for width in widths:
        x = torch.rand(1, width, 64, 64, device=on).to(dtype, memory_format=torch.channels_last)
        weight = torch.rand(width, width, 3, 3, device=on).to(dtype, memory_format=torch.channels_last)

        def run(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return F.conv2d(x, weight, padding=1)

        best = max(best, x.numel() * width * 9 / _seconds(run, on.type == "cuda"))
    return best


def copy_bandwidth(on: torch.device, size: int = 2**28) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), on.type == "cuda")


def convolution_numbers(model: nn.Module, x: Tensor) -> int:
    """The numbers that convolutions read and write where each input, output and weight moves once."""
    total = 0

    def count(module: nn.Module, arguments: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal total
        total += arguments[0].numel() + y.numel() + module.weight.numel()

    handles = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return total


def floors(options: Options, x: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Counts and rates, and the least milliseconds by operations and by bytes."""
    macs = len(x) * irnext.complexity.measure(make_model(irnext.IRNeXt, options), tuple(x.shape[2:])).macs
    numbers = convolution_numbers(make_model(PublishedIRNeXt, options).to(x.device), x)
    rate = convolution_rate(dtype, x.device, [options.width * scale for scale in (1, 2, 4)])
    bandwidth, size = copy_bandwidth(x.device), numbers * dtype.itemsize
    return {
        "macs": macs,
        "macs_a_second": rate,
        "bytes": size,
        "bytes_a_second": bandwidth,
        "by_operations_ms": 1e3 * macs / rate,
        "by_bytes_ms": 1e3 * size / bandwidth,
    }


# ---- where the time goes -------------------------------------------------------------------------


def kind_of(name: str) -> str:
    """The kind of operator that a name in the profile stands for."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def account(run: Callable[[], Any], on_gpu: bool, repeats: int = 3) -> dict[str, float]:
    """Milliseconds a call by kind of operator: on the GPU of kernels, on the CPU of operators themselves."""
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        torch.cuda.synchronize()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(repeats):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    total = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total[kind_of(event.key)] += microseconds / 1e3 / repeats
    return total


# ---- a case --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One size and type of picture."""

    size: tuple[int, int]
    dtype: str


Measured = tuple[dict[str, Timing], dict[str, dict[str, Any]], dict[str, float]]


def measure(case: Case, options: Options) -> Measured:
    """Timings, peaks and accounts by variant, and the floors."""
    dtype, on_gpu = getattr(torch, case.dtype), options.device == "cuda"
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(options.batch, 3, *case.size, generator=generator).to(options.device)
    truth = make_model(PublishedIRNeXt, options).to(x.device, torch.float64)
    with torch.no_grad():
        expected = truth(x.double())
    del truth
    runs = make_runs(options, x, dtype)
    first_calls = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        first_calls[name] = time.perf_counter() - start
    variants = {name: Variant(run, run, baseline=name == COMPILED) for name, run in runs.items()}
    found = harness.check(variants, expected, dtype)
    timer = device.cold_timer(0.0) if on_gpu else harness.host_timer(0.0)
    timings = harness.time_right(variants, found, options.rounds, timer)
    peak = device.allocated_peak if on_gpu else harness.allocated_peak
    more = {
        name: {
            "first_call_seconds": first_calls[name],
            "peak_bytes": peak(run),
            "account_ms": account(run, on_gpu),
        }
        for name, run in runs.items()
        if timings[name].milliseconds is not None
    }
    return timings, more, floors(options, x, dtype)


def report(
    case: Case,
    options: Options,
    timings: dict[str, Timing],
    more: dict[str, dict[str, Any]],
    floor: dict[str, float],
    console: Console,
) -> list[dict[str, Any]]:
    """Print a case's tables and return its records."""
    height, width = case.size
    title = f"IRNeXt({options.blocks}), {options.batch} x {height} x {width}, {case.dtype}"
    times = harness.make_table(
        title,
        *("", "ms", "spread", "pictures/s", "vs eager", "vs compiled"),
        *("peak MiB", "of floor", "error", "first call s"),
    )
    kinds = harness.make_table(f"{title}: where the time goes, ms", "", *KINDS, OTHER)
    least = max(floor["by_operations_ms"], floor["by_bytes_ms"])
    records = []
    for name, timing in timings.items():
        extra = more.get(name, {})
        share = least / timing.milliseconds if timing.milliseconds else None
        rate = 1e3 * options.batch / timing.milliseconds if timing.milliseconds else None
        times.add_row(
            name,
            *harness.time_cells(timing),
            "" if rate is None else f"{rate:.2f}",
            harness.ratio_cell(timing, PUBLISHED),
            harness.ratio_cell(timing, COMPILED),
            f"{extra['peak_bytes'] / 2**20:.0f}" if extra else "",
            "" if share is None else f"{share:.0%}",
            "" if timing.error is None else f"{timing.error:.0e}",
            f"{extra['first_call_seconds']:.1f}" if extra else "",
        )
        if extra:
            kinds.add_row(name, *(f"{milliseconds:.1f}" for milliseconds in extra["account_ms"].values()))
        records.append(
            {"size": case.size, "dtype": case.dtype, "variant": name}
            | dataclasses.asdict(timing)
            | extra
            | {"pictures_per_second": rate, "share_of_floor": share, "floor": floor}
        )
    console.print(times)
    console.print(
        f"floor: {floor['by_operations_ms']:.1f} ms by operations "
        f"({floor['macs'] / 1e9:.2f} G multiply-accumulates at {floor['macs_a_second'] / 1e9:.0f} G/s), "
        f"{floor['by_bytes_ms']:.1f} ms by bytes "
        f"({floor['bytes'] / 2**20:.0f} MiB at {floor['bytes_a_second'] / 1e9:.1f} GB/s)",
        soft_wrap=True,
    )
    console.print(kinds)
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.model")
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    if not on_gpu:
        harness.keep_freed_memory()
    console = harness.make_console()
    here = harness.machine(device.record() if on_gpu else None)
    console.print(harness.describe(here), soft_wrap=True)
    records = []
    with device.stream() if on_gpu else contextlib.nullcontext():
        for size in options.sizes:
            for dtype in options.dtypes:
                case = Case(size, dtype)
                records += report(case, options, *measure(case, options), console)
    if options.json:
        path = harness.write_results("model", here, dataclasses.asdict(options), records, options.results)
        console.print(f"written: {path}", soft_wrap=True)
    return int(any(record["wrong"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
