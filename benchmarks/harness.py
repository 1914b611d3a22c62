"""Fair timing: results are checked first, variants take turns, and ratios are taken round by round."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import irnext
from irnext.info import processor
from irnext.memory import available_memory

from .provenance import current_commit

RESULTS = Path(__file__).resolve().parent / "results"
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler prints when it starts and stops


# ---- is it right? --------------------------------------------------------------------------------


def relative_error(result: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest |a - b| of any tensor over its largest |b|; infinite where shapes differ."""
    if [tuple(t.shape) for t in result] != [tuple(t.shape) for t in expected]:
        return math.inf
    worst = 0.0
    for a, b in zip(result, expected, strict=True):
        scale = b.abs().max().item() or 1.0
        error = (a.to(b.dtype) - b).abs().max().item() / scale
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def finite(error: float | None) -> float | None:
    """The error where it is a number: infinity has no place in a record, and is said in words."""
    return error if error is not None and math.isfinite(error) else None


def allowed_error(published_error: float, dtype: torch.dtype) -> float:
    """Twice what the published form itself is off by, in the same type, plus a few units of that type."""
    return 2 * published_error + 8 * torch.finfo(dtype).eps


# ---- timing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One thing to time.

    Attributes:
        run: what is timed; its return value is ignored.
        result: the tensors to check, in a fixed order; None for a variant that computes nothing
            to compare, such as a plain copy.
        baseline: PyTorch's own sums, however it orders them: half of the type's digits will do.
    """

    run: Callable[[], Any]
    result: Callable[[], Sequence[Tensor]] | None = None
    baseline: bool = False


@dataclass(frozen=True)
class Timing:
    """What was found about one variant; no time is given where `wrong` says why.

    Attributes:
        milliseconds: the median over the rounds.
        spread: the interquartile range over the median.
        ratios: how many times as long each other variant takes, the median of the rounds' ratios.
        error: relative to the float64 result; None where nothing was compared.
        failure: why there is no time though nothing is wrong, such as too little memory.
    """

    milliseconds: float | None
    spread: float | None
    ratios: dict[str, float]
    error: float | None
    wrong: str | None = None
    failure: str | None = None


class CannotTime(Exception):
    """A variant that has no time, though nothing is wrong with its result; the message says why."""


# Makes a function ready to be timed; what it returns takes one sample, in seconds a call.
Timer = Callable[[Callable[[], Any]], Callable[[], float]]


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for every variant alike, where the C library is glibc.

    Otherwise it hands large blocks back to the system or not, as the heap happens to lie, and a call
    that gets fresh pages spends more time on page faults than on arithmetic.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)


def seconds_per_call(run: Callable[[], Any], repeats: int) -> float:
    """The mean time of `repeats` calls by the clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def host_timer(sample_seconds: float) -> Timer:
    """A timer by the clock, for calls that return when they are done.

    Short calls are repeated until a sample takes `sample_seconds`.
    """

    def ready(run: Callable[[], Any]) -> Callable[[], float]:
        seconds_per_call(run, 2)
        repeats = max(1, math.ceil(sample_seconds / seconds_per_call(run, 1)))
        return lambda: seconds_per_call(run, repeats)

    return ready


def call_timer(run: Callable[[], Any]) -> Callable[[], float]:
    """A timer by the clock of single calls, for what takes long and has run before."""
    return lambda: seconds_per_call(run, 1)


def check_effort(rounds: int, longest: float, threads: int | None) -> None:
    """Raise ValueError for options of a benchmark by which nothing could be timed, or for ever."""
    too_few = rounds < 1 or (threads is not None and threads < 1)
    if too_few or not 0 < longest < math.inf:
        raise ValueError(
            f"rounds is {rounds}, longest {longest}, threads {threads}: "
            "rounds and threads must be at least 1, and longest above 0 and finite"
        )


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _outcome(variant: Variant, expected: Sequence[Tensor]) -> tuple[float | None, str | None]:
    """The error of a variant, and why it has no result."""
    if variant.result is None:
        return None, None
    try:
        return relative_error(variant.result(), expected), None
    except torch.OutOfMemoryError:
        return None, "out of memory"
    except CannotTime as error:
        return None, str(error)


def check(variants: dict[str, Variant], expected: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Timing]:
    """An untimed `Timing` per variant, saying whether its result is right; arguments as for `compare`."""
    loose = math.sqrt(torch.finfo(dtype).eps)
    strict, found = None, {}
    for name, variant in variants.items():
        error, failure = _outcome(variant, expected)
        if strict is None:
            strict = loose if error is None else min(loose, allowed_error(error, dtype))
        allowed = loose if variant.baseline else strict
        right = error is None or error <= allowed
        wrong = None if right else f"wrong result: off by {error:.1e}, allowed {allowed:.1e}"
        found[name] = Timing(None, None, {}, finite(error), wrong, failure)
    return found


def time_right(
    variants: dict[str, Variant], found: dict[str, Timing], rounds: int, timer: Timer
) -> dict[str, Timing]:
    """Time, in turns, the variants that `check` found right; the others stay as found.

    In a round every variant runs once, one after another, so that a machine that slows down slows
    all of them; each round starts with the next one.
    """
    found, samplers = dict(found), {}
    for name, timing in found.items():
        if timing.wrong is None and timing.failure is None:
            try:
                samplers[name] = timer(variants[name].run)
            except torch.OutOfMemoryError:
                found[name] = replace(timing, failure="out of memory")
            except CannotTime as error:
                found[name] = replace(timing, failure=str(error))
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % max(1, len(names))
            for name in names[first:] + names[:first]:
                samples[name].append(samplers[name]())
    finally:
        gc.enable()
    for name in names:
        ratios = {
            other: statistics.median(a / b for a, b in zip(samples[other], samples[name], strict=True))
            for other in names
        }
        found[name] = Timing(*_summary(samples[name]), ratios, found[name].error)
    return found


def compare(
    variants: dict[str, Variant],
    expected: Sequence[Tensor],
    dtype: torch.dtype,
    rounds: int = 20,
    sample_seconds: float = 0.02,
) -> dict[str, Timing]:
    """Check every variant, then time those that are right, in turns, by the clock.

    Args:
        variants: by name; the first is the published form, which sets how exact the others must be.
        expected: the right result, in float64.
        dtype: the type the variants compute in, which sets the tolerance.
        rounds: samples per variant.
        sample_seconds: the least time of one sample.
    """
    found = check(variants, expected, dtype)
    return time_right(variants, found, rounds, host_timer(sample_seconds))


def _summary(seconds: list[float]) -> tuple[float, float]:
    """The median in milliseconds and the interquartile range as a share of it."""
    median = statistics.median(seconds)
    if len(seconds) < 2:
        return 1e3 * median, 0.0
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return 1e3 * median, (high - low) / median


# ---- memory --------------------------------------------------------------------------------------


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE).group(1))


def _peak_in_this_process(threads: int, build: Callable[..., Callable], arguments: tuple) -> int:
    torch.set_num_threads(threads)
    # The libraries' own one-off allocations are nobody's, so they are made before the count starts.
    warm = torch.nn.Conv2d(3, 8, 3)
    warm(torch.rand(1, 3, 16, 16)).sum().backward()
    del warm
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    step = build(*arguments)
    for _ in range(2):  # the second has the optimiser's state too
        step()
    return _status("VmHWM") - before


def peak_memory(build: Callable[..., Callable], *arguments) -> int:
    """The most resident memory, in bytes, that `build(*arguments)` and two calls of its result take.

    Measured in a process of its own, from the kernel's high-water mark, over what Python and
    PyTorch occupy before: weights, gradients, optimiser state, activations and scratch memory
    count. Linux only. `build` must be importable.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_in_this_process, torch.get_num_threads(), build, arguments).result()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had too little memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """A context in which this process fails to allocate more than is free, on Linux.

    Otherwise the system ends it, or another program, when memory runs out.
    """
    status, free = Path("/proc/self/status"), available_memory(torch.device("cpu"))
    if free is None or not status.exists():
        yield
        return
    import resource  # not everywhere

    used = 1024 * int(re.search(r"VmData:\s+(\d+)", status.read_text())[1])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = min(limit for limit in (used + free, *before) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def allocated_peak(run: Callable[[], Any], warm: bool = True) -> int:
    """The most memory a call holds at once, in bytes of CPU tensors.

    Every block that PyTorch's allocator gives out during the call counts, whole results included;
    what was there before does not. Exact: the same in every run.

    Args:
        run: the call.
        warm: call it once before, so that what is allocated once and kept is not the call's.
    """
    if warm:
        run()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=False
    ) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def saved_bytes(forward: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """The memory that `forward` keeps for its backward pass, in bytes.

    Storages are counted once and whole, however many views of them are kept; those of `exclude`
    (parameters, say) are not counted.
    """
    kept = []  # holds them: a block freed and given out again would count as one

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    own = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in kept)}
    return sum(size for address, size in storages.items() if address not in own)


# ---- the record ----------------------------------------------------------------------------------


def machine(gpu: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a figure depends on: processor, threads, versions, commit and date, and the GPU's record."""
    record = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "irnext": irnext.__version__,
        "backends": [name for name, status in irnext.backends().items() if status.available],
        "commit": current_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return record | ({} if gpu is None else {"gpu": gpu})


def describe(record: dict[str, Any]) -> str:
    """The machine in a line, and a warning where it is busy with something else."""
    line = (
        f"{record['processor']}, {record['cores']} cores, {record['threads']} threads, torch "
        f"{record['torch']}, irnext {record['irnext']} ({record['commit']}), {record['date']}"
    )
    if "gpu" in record:
        line = f"{record['gpu']['name']} (CUDA {record['gpu']['cuda']}); {line}"
    if record["load"] > 0.5:
        line += f"\nOther work is running here (load {record['load']:.1f}): times are not to be trusted."
    return line


def write_results(
    name: str,
    here: dict[str, Any],
    options: dict[str, Any],
    results: list[dict],
    root: Path = RESULTS,
    **sections: Any,
) -> Path:
    """Write `root`/<machine>/`name`.json, whole or not at all, and return its path.

    `here` is `machine()` as it was when the run began; the folder is called by its GPU, or else by its
    processor. Of the options, the folder of the results is left out: it says nothing about the figures.
    `sections` are entries beside the results. Called again, it replaces the file.
    """
    options = {key: value for key, value in options.items() if key != "results"}
    name_of_machine = here["gpu"]["name"] if "gpu" in here else f"{here['processor']} {here['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", name_of_machine.lower()).strip("-")
    path = root / slug / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "machine": here, "options": options, **sections, "results": results}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(record, file, indent=1, allow_nan=False, default=str)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def make_console(**options) -> Console:
    """A console wide enough for every table, also where the output goes to a file."""
    return Console(width=max(180, Console().width), **options)


def make_table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table


def table_of(title: str, rows: Sequence[dict[str, str]]) -> Table:
    """A table of rows with the same columns, without the columns that would be empty."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    table = make_table(title, *columns)
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def number(value: float | None, style: str) -> str:
    """A number as text; empty where there is none."""
    return "" if value is None else format(value, style)


def mebibytes(size: int | None) -> str:
    """A size in bytes as text, in MiB."""
    return number(None if size is None else size / 2**20, ".1f")


def time_cells(timing: Timing) -> tuple[str, str]:
    """Milliseconds and spread as text; no time for a wrong result, or where there is none."""
    if timing.milliseconds is None:
        return "wrong" if timing.wrong else "none", ""
    return f"{timing.milliseconds:.3f}", f"±{timing.spread / 2:.0%}"


def ratio_cell(timing: Timing, other: str) -> str:
    """How many times as long `other` takes, as text; empty where either was not timed."""
    return f"{timing.ratios[other]:.2f}x" if other in timing.ratios else ""
