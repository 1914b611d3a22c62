"""Whole models at inference, against the published formulation: `python -m benchmarks.model --help`.

Latency, throughput and peak memory of the published network, of `irnext.IRNeXt` as it is, and of
`irnext.optimize`; then again in turns with what torch.compile makes of the published network (frozen,
on GPUs by max-autotune, in channels_last). In half precision networks have float32 weights under
autocast; those that are optimized, or compiled for a GPU, have them converted. Sizes are padded to a
multiple of 32 as `irnext.restore` pads them; rates count the picture's own pixels.

Nothing is timed before its result is checked: at a small size against float64 (`benchmarks.accuracy`),
and at the size that is timed against the published network in float32. What is timed takes turns;
times are medians, and a spread is half the interquartile range. Peak memory is what a call holds at
most, results included, weights not. On CUDA a graph's memory is that of the call it records, and is
held for as long as the graph.

A second table says where the time goes (`benchmarks.account`) beside the least it could take
(`benchmarks.roofline`). A training step is the matter of `benchmarks.training_step`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

import irnext

from . import accuracy, device, harness, roofline
from .account import KINDS, REST, account
from .harness import Timing, Variant
from .networks import (
    COMPILED,
    OPTIMIZED,
    PLAIN,
    PLAIN_COMPILED,
    PRECISIONS,
    PUBLISHED,
    PUBLISHED_COMPILED,
    Network,
    Settings,
    computing_in,
    make_model,
    make_network,
)
from .published import PublishedIRNeXt

NAMED_SIZES = {"720p": "1280x720", "1080p": "1920x1080", "4K": "3840x2160", "8K": "7680x4320"}
MULTIPLE, MINIMUM = irnext.IRNeXt.size_multiple, irnext.IRNeXt.minimum_size
LONG = 1.0  # seconds, from which on a call is recorded once, not three times


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels, from such as "1280x720" or "720p"; ValueError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", NAMED_SIZES.get(text, text))
    if found is None:
        raise ValueError(f"size is {text!r}: give WIDTHxHEIGHT in pixels, or one of {', '.join(NAMED_SIZES)}")
    width, height = map(int, found.groups())
    return width, height


@dataclass(frozen=True)
class Options:
    """Time whole models at inference, say where the time goes, and compare with the published network."""

    size: tuple[str, ...] = ("256x256",)
    """widths and heights of the pictures in pixels, such as 1280x720, or 720p, 1080p, 4K, 8K"""
    blocks: tuple[int, ...] = (4,)
    """residual blocks per CNNBlock"""
    width: int = 32
    """channels at full resolution"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    batch: int = 1
    """pictures at once"""
    dtypes: tuple[Literal["float32", "tf32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    """what to compute in; tf32 is for CUDA, and off in float32; float16 is very slow on most CPUs"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    compiled: bool = True
    """also compare with the compiled published network (minutes of compilation)"""
    compile_ours: bool = False
    """also compile irnext's own network"""
    accuracy: bool = True
    """also measure what half precision does to photographs (needs scikit-image)"""
    layers: bool = False
    """also print the floor of every layer"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 10
    """calls timed per variant"""
    json: bool = False
    """write the figures to a file under --results, again after every measurement"""
    results: Path = harness.RESULTS
    """folder of the results"""
    name: str = "model"
    """name of the file"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"rounds is {self.rounds}, batch {self.batch}, threads {self.threads}: all must be at least 1"
            )
        for text in self.size:
            parse_size(text)
        if "tf32" in self.dtypes and self.device != "cuda":
            raise ValueError("tf32 is of CUDA devices: choose --device cuda, or float32")
        device.check(self.device)

    def settings(self, blocks: int) -> Settings:
        """Of the networks with so many blocks."""
        return Settings(blocks, self.width, self.low_pass)


@dataclass(frozen=True)
class Case:
    """One network, size of picture (width, height) and precision."""

    blocks: int
    picture: tuple[int, int]
    precision: str

    @property
    def padded(self) -> tuple[int, int]:
        """The width and height that the network gets."""
        return tuple(max(MINIMUM, -(-side // MULTIPLE) * MULTIPLE) for side in self.picture)

    def __str__(self) -> str:
        name = "IRNeXt({}), {} x {}, {}".format(self.blocks, *self.picture, self.precision)
        return name if self.padded == self.picture else name + " (padded to {} x {})".format(*self.padded)

    def make_pictures(self, batch: int, on: torch.device) -> Tensor:
        """The network's input (N, 3, H, W)."""
        width, height = self.padded
        return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).to(on)


def make_cases(options: Options) -> list[Case]:
    """What the options ask for, in order."""
    return [
        Case(blocks, parse_size(text), precision)
        for blocks in options.blocks
        for text in options.size
        for precision in options.dtypes
    ]


# ---- one comparison --------------------------------------------------------------------------------


@dataclass
class Found:
    """What was found of one variant; without a time where its result is wrong or missing.

    Attributes:
        timing: its error is that against the published network in float32, at the size timed.
        first_call_seconds: of the call that prepares or compiles.
        peak_bytes: the most that a call holds at once.
        account_ms: where the time goes, by kind.
    """

    timing: Timing
    first_call_seconds: float | None = None
    peak_bytes: int | None = None
    account_ms: dict[str, float] | None = None


def first_call(network: Network, x: Tensor, expected: Sequence[Tensor]) -> tuple[float, float]:
    """The seconds of a first call, and the error of its result."""
    start = time.perf_counter()
    result = network.call(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, harness.relative_error(result, expected)


def begin(
    networks: dict[str, Network], case: Case, x: Tensor, expected: Sequence[Tensor], wrong: dict[str, str]
) -> dict[str, Found]:
    """Call every network twice: for its result and for its memory. Those in `wrong` are not called."""
    peak = device.allocated_peak if x.is_cuda else harness.allocated_peak
    found, published_error = {}, 0.0
    for name, network in networks.items():
        if name in wrong:
            found[name] = Found(Timing(None, None, {}, None, wrong[name]))
            continue
        try:
            seconds, error = first_call(network, x, expected)
            if name == PUBLISHED:
                published_error = error
            allowed = accuracy.allowed_error(name, case.precision, published_error)
            timing = Timing(None, None, {}, harness.finite(error), accuracy.judge(error, allowed))
            found[name] = Found(timing, seconds)
            if timing.wrong is None:
                # A compiled graph is recorded in this second call; another one would only be replayed.
                run = functools.partial(network.kernels, x)
                found[name].peak_bytes = peak(run, warm=network.kernels is not network.call)
        except torch.OutOfMemoryError:
            found[name] = Found(Timing(None, None, {}, None, failure="out of memory"))
        except Exception as error:
            if name not in COMPILED:
                raise
            found[name] = Found(Timing(None, None, {}, None, failure=harness.first_line(error)))
    return found


def compare(case: Case, names: Sequence[str], options: Options, wrong: dict[str, str]) -> dict[str, Found]:
    """Check, time and size up some variants of one case, in turns."""
    on = torch.device(options.device)
    settings = options.settings(case.blocks)
    x = case.make_pictures(options.batch, on)
    if set(names) & set(COMPILED):
        torch._dynamo.reset()  # what was compiled for another size would be made to serve both
    with computing_in("float32", on), torch.no_grad():
        expected = make_model(PublishedIRNeXt, settings).to(on)(x)
    with computing_in(case.precision, on):
        networks = {name: make_network(name, settings, case.precision, on) for name in names}
        found = begin(networks, case, x, expected, wrong)
        del expected
        variants = {name: Variant(functools.partial(one.call, x)) for name, one in networks.items()}
        timer = device.call_timer if x.is_cuda else harness.call_timer
        begun = {name: one.timing for name, one in found.items()}
        for name, timing in harness.time_right(variants, begun, options.rounds, timer).items():
            found[name].timing = timing
            if timing.milliseconds is not None:
                run = functools.partial(networks[name].kernels, x)
                found[name].account_ms = account_of(run, timing.milliseconds, x.is_cuda, name not in COMPILED)
    return found


def account_of(run: Callable[[], Any], milliseconds: float, on_gpu: bool, marked: bool) -> dict[str, float]:
    """Where the time of a call goes. On a GPU what no kernel takes of it is the time between kernels."""
    shares = account(run, on_gpu, 1 if milliseconds > 1e3 * LONG else 3, marked)
    if on_gpu and shares:
        shares[REST] += max(0.0, milliseconds - sum(shares.values()))
    return shares


# ---- what is shown and kept ------------------------------------------------------------------------


def rates(case: Case, options: Options, timing: Timing, least: roofline.Floor) -> dict[str, float | None]:
    """The throughput of a variant, and its floor over its time."""
    if timing.milliseconds is None:
        return {"pictures_per_second": None, "megapixels_per_second": None, "share_of_floor": None}
    pictures = 1e3 * options.batch / timing.milliseconds
    return {
        "pictures_per_second": pictures,
        "megapixels_per_second": pictures * case.picture[0] * case.picture[1] / 1e6,
        "share_of_floor": least.milliseconds / timing.milliseconds,
    }


def show(
    console: Console,
    case: Case,
    options: Options,
    found: dict[str, Found],
    least: roofline.Floor,
    errors: dict[str, float],
) -> None:
    """Print the tables of one comparison; `errors` are those against float64."""
    title = f"{case}, {options.batch} at once"
    rows = []
    for name, one in found.items():
        milliseconds, spread = harness.time_cells(one.timing)
        rate = rates(case, options, one.timing, least)
        rows.append(
            {
                "": name,
                "ms": milliseconds,
                "spread": spread,
                "pictures/s": harness.number(rate["pictures_per_second"], ".2f"),
                "Mpixel/s": harness.number(rate["megapixels_per_second"], ".2f"),
                "vs eager": harness.ratio_cell(one.timing, PUBLISHED),
                "vs compiled": harness.ratio_cell(one.timing, PUBLISHED_COMPILED),
                "peak MiB": harness.mebibytes(one.peak_bytes),
                "of floor": harness.number(rate["share_of_floor"], ".0%"),
                "off float64": harness.number(errors.get(name), ".1e"),
                "off float32": harness.number(one.timing.error, ".1e"),
                "first call s": harness.number(one.first_call_seconds, ".1f"),
            }
        )
    console.print(harness.table_of(title, rows))
    for name, one in found.items():
        if why := one.timing.wrong or one.timing.failure:
            console.print(f"{name}: {why}", soft_wrap=True)
    console.print(_account_table(title, found, least))


def _account_table(title: str, found: dict[str, Found], least: roofline.Floor) -> Any:
    """Milliseconds and shares by kind, and the floor's."""
    rows = {name: one.account_ms for name, one in found.items() if one.account_ms}
    rows["floor"] = dict.fromkeys(KINDS, 0.0) | least.by_kind_ms
    shown = [kind for kind in KINDS if any(row[kind] for row in rows.values())]
    table = harness.make_table(f"{title}: where the time goes, ms", "", *shown, "sum")
    for name, row in rows.items():
        total = sum(row.values())
        cells = (f"{row[kind]:.2f} ({row[kind] / (total or 1):.0%})" for kind in shown)
        table.add_row(name, *cells, f"{total:.2f}")
    return table


def show_floor(
    console: Console, case: Case, least: roofline.Floor, machine: roofline.Rates, every: bool
) -> None:
    """Print the floor of a case in a line, and every layer's if asked for."""
    console.print(
        f"{case}: at least {least.milliseconds:.2f} ms; by operations {least.by_operations_ms:.2f} ms "
        f"({least.macs / 1e9:.2f} G multiply-accumulates at up to {machine.macs / 1e9:.0f} G/s), "
        f"by bytes {least.by_bytes_ms:.2f} ms ({least.bytes / 2**20:.0f} MiB; a large copy moves "
        f"{machine.copies[-1][1] / 1e9:.1f} GB/s)",
        soft_wrap=True,
    )
    if not every:
        return
    table = harness.make_table(
        "The floor by layer", "", "times", "G mult.-acc.", "MiB", "ms by operations", "ms by bytes"
    )
    for row in least.layers:
        table.add_row(
            row["name"],
            str(row["count"]),
            f"{row['macs'] / 1e9:.3f}",
            f"{row['bytes'] / 2**20:.1f}",
            f"{row['by_operations_ms']:.3f}",
            f"{row['by_bytes_ms']:.3f}",
        )
    console.print(table)


@dataclass
class Record:
    """All that a run has found so far, written anew whenever something is added."""

    options: Options
    here: dict[str, Any]
    accuracy: list[accuracy.Accuracy] = dataclasses.field(default_factory=list)
    photographs: list[accuracy.Fidelity] = dataclasses.field(default_factory=list)
    floors: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def write(self) -> Path | None:
        """Write the file, if there is to be one, and return its path."""
        if not self.options.json:
            return None
        return harness.write_results(
            self.options.name,
            self.here,
            dataclasses.asdict(self.options),
            self.results,
            self.options.results,
            accuracy=accuracy.as_records(self.accuracy),
            photographs=accuracy.as_records(self.photographs),
            floors=self.floors,
        )

    def add(self, case: Case, comparison: str, found: dict[str, Found], least: roofline.Floor) -> None:
        """Add the results of one comparison."""
        errors = self.errors(case)
        for name, one in found.items():
            row = dataclasses.asdict(case) | {
                "padded": case.padded,
                "comparison": comparison,
                "variant": name,
            }
            row |= dataclasses.asdict(one.timing) | {"error_of_float64": harness.finite(errors.get(name))}
            row |= {key: getattr(one, key) for key in ("first_call_seconds", "peak_bytes", "account_ms")}
            row |= rates(case, self.options, one.timing, least) | {"floor_ms": least.milliseconds}
            self.results.append(row)
        self.write()

    def _accuracies(self, case: Case) -> list[accuracy.Accuracy]:
        wanted = case.blocks, case.precision
        return [one for one in self.accuracy if (one.blocks, one.precision) == wanted]

    def errors(self, case: Case) -> dict[str, float]:
        """By variant, the error against float64."""
        return {one.variant: one.error for one in self._accuracies(case)}

    def wrong(self, case: Case) -> dict[str, str]:
        """The variants that are wrong at the small size, and why."""
        return {one.variant: one.wrong for one in self._accuracies(case) if one.wrong}

    def has_wrong(self) -> bool:
        """Whether anything was found to be wrong."""
        return any(one.wrong for one in self.accuracy) or any(row["wrong"] for row in self.results)


def check(record: Record, console: Console) -> None:
    """Measure and print the accuracy of every network."""
    options = record.options
    on = torch.device(options.device)
    for blocks in options.blocks:
        record.accuracy += accuracy.measure(options.settings(blocks), options.dtypes, on)
        if options.accuracy:
            record.photographs += accuracy.measure_photographs(options.settings(blocks), options.dtypes, on)
    record.write()
    for table in accuracy.tables(record.accuracy, record.photographs):
        console.print(table)


def floor_of(case: Case, options: Options, machine: roofline.Rates) -> roofline.Floor:
    """The least time of a case."""
    settings = options.settings(case.blocks)
    shape = (options.batch, 3, *reversed(case.padded))
    counted = roofline.layers(lambda: make_model(irnext.IRNeXt, settings), shape)
    return roofline.floor(counted, machine, PRECISIONS[case.precision])


def measure_floors(record: Record, console: Console) -> dict[Case, roofline.Floor]:
    """The least time of every case, printed, from rates measured once for a precision."""
    options = record.options
    on = torch.device(options.device)
    machine: dict[str, roofline.Rates] = {}
    floors = {}
    for case in make_cases(options):
        precision = case.precision
        if precision not in machine:
            with computing_in(precision, on):
                machine[precision] = roofline.measure_rates(PRECISIONS[precision], on, options.width)
        floors[case] = least = floor_of(case, options, machine[precision])
        row = dataclasses.asdict(case) | {"padded": case.padded} | dataclasses.asdict(least)
        record.floors.append(row | {"rates": dataclasses.asdict(machine[precision])})
        show_floor(console, case, least, machine[precision], options.layers)
    record.write()
    return floors


def run_cases(record: Record, console: Console) -> None:
    """Compare the eager networks in every case, then the compiled ones: they take longest to prepare."""
    options = record.options
    comparisons = {"eager": [PUBLISHED, PLAIN, OPTIMIZED]}
    if options.compiled:
        ours = [PLAIN_COMPILED] if options.compile_ours else []
        comparisons["compiled"] = [PUBLISHED, PUBLISHED_COMPILED, *ours, OPTIMIZED]
    floors = measure_floors(record, console)
    for comparison, names in comparisons.items():
        for case in make_cases(options):
            try:
                found = compare(case, names, options, record.wrong(case))
            except torch.OutOfMemoryError:
                console.print(f"{case}: not enough memory for the published network")
                continue
            record.add(case, comparison, found, floors[case])
            show(console, case, options, found, floors[case], record.errors(case))


def run(options: Options) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    if not on_gpu:
        harness.keep_freed_memory()
    console = harness.make_console()
    with device.stream() if on_gpu else contextlib.nullcontext():
        record = Record(options, harness.machine(device.record() if on_gpu else None))
        console.print(harness.describe(record.here), soft_wrap=True)
        check(record, console)
        run_cases(record, console)
    if path := record.write():
        console.print(f"written: {path}", soft_wrap=True)
    return int(record.has_wrong())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.model"))


if __name__ == "__main__":
    sys.exit(main())
