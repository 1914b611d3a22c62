"""The paper's Table 6 again, in one run on one machine: `python -m benchmarks.gopro --help`.

IRNeXt for GoPro (14 blocks, local low-pass filter) as published, compiled and ours, and the networks it is
compared with: parameters, multiply-accumulates by one counter, latency and peak memory, beside the paper's
figures. Sizes are padded to what each system takes. In half precision systems run under autocast, but for
ours and the compiled one, whose weights are converted.

Nothing is timed before its result is checked. At a small size every system is compared with float64: IRNeXt
with the published network, the others with themselves; that these compute what their papers say is for the
tests to show. At the size timed, IRNeXt is compared with the published network in float32, and the others
must be finite. What is timed takes turns; times are medians, and a spread is half the interquartile range.
A system that takes too long for turns is timed by one call, the second, with one of ours right after it, and
has no spread. Peak memory is
what a call holds at most, results included, weights not.

PSNR and SSIM are the published ones: weights here are random, which changes neither time nor memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from irnext import complexity, paper
from irnext.files import atomic_file
from irnext.restoration.inference import continued_side, sizes

from . import accuracy, device, figures, harness, provenance, systems
from .gopro_figure import figure
from .gopro_table import IN_PAPER, NOTES, markdown, quality, show, title_of
from .harness import Timing, Variant
from .model import parse_size
from .networks import computing_in
from .systems import COMPILED, OTHERS, OURS, PUBLISHED, TITLES, VARIANTS, System

WRITTEN = ("results", "markdown", "figure")  # options that say where, and nothing about the figures
LARGE = 2**18  # pixels of a picture, beyond which memory may run out where what is freed is kept
SMALL = 64  # the side of the picture that results are compared with float64 on
REDUCED = ("mprnet-deblurring", "restormer", "mimo-unet-plus", "grl-base")  # minutes on a CPU


@dataclass(frozen=True)
class Options:
    """Time IRNeXt and the networks it is compared with, as in the paper's Table 6 (GoPro)."""

    size: tuple[str, ...] | None = None
    """widths and heights of the pictures in pixels, such as 1280x720, or 720p, 1080p, 4K; by default
    256x256, and on a GPU 1280x720 before it"""
    systems: tuple[str, ...] | None = None
    """what to compare IRNeXt with; by default all, and on a CPU those of the paper's Figure 1 and GRL-B"""
    compiled: bool = False
    """also the compiled published IRNeXt (minutes of compilation for each size)"""
    dtypes: tuple[Literal["float32", "tf32", "bfloat16", "float16"], ...] = ("float32",)
    """what to compute in; tf32 is for CUDA, and off in float32; float16 is very slow on most CPUs"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 3
    """calls timed per system"""
    longest: float = 8.0
    """seconds of a call above which a system is timed by that one call"""
    json: bool = False
    """write the figures to a file under --results, again after every measurement"""
    results: Path = harness.RESULTS
    """folder of the results"""
    name: str = "gopro"
    """name of the file"""
    markdown: Path | None = None
    """a file for the tables in Markdown"""
    figure: Path | None = None
    """a .png or .svg file for the paper's Figure 1 (right) with what was measured, at the largest size and in
    the first of --dtypes"""

    def __post_init__(self) -> None:
        harness.check_effort(self.rounds, self.longest, self.threads)
        for text in self.size or ():
            parse_size(text)
        for name in self.systems or ():
            if name not in OTHERS:
                raise ValueError(f"unknown system {name!r}: choose of {', '.join(OTHERS)}")
        if not self.dtypes or self.size == ():
            raise ValueError("dtypes and size must name at least one each")
        if "tf32" in self.dtypes and self.device != "cuda":
            raise ValueError("tf32 is of CUDA devices: choose --device cuda, or float32")
        device.check(self.device)
        for path in (self.markdown, self.figure):
            if path is not None:
                figures.check_place(path)
        if self.figure is not None:
            figures.check(self.figure)

    @property
    def names(self) -> list[str]:
        """The systems to run, in order, each once: the published one sets how exact the others must be."""
        default = OTHERS if self.device == "cuda" else REDUCED
        others = default if self.systems is None else self.systems
        return [PUBLISHED, *[COMPILED] * self.compiled, OURS, *dict.fromkeys(others)]

    @property
    def cases(self) -> list[Case]:
        """The comparisons to make, in order, each once."""
        default = ("1280x720", "256x256") if self.device == "cuda" else ("256x256",)
        pictures = dict.fromkeys(parse_size(text) for text in self.size or default)
        precisions = dict.fromkeys(self.dtypes)
        return [Case(picture, precision) for picture in pictures for precision in precisions]


@dataclass(frozen=True)
class Case:
    """One size of picture (width, height) and one precision."""

    picture: tuple[int, int]
    precision: str

    def __str__(self) -> str:
        return title_of(self.picture, self.precision)


# ---- what is known before anything is timed --------------------------------------------------------


def costs(names: Sequence[str]) -> dict[str, complexity.Complexity]:
    """The cost of every system for 256 x 256 pixels; all forms of IRNeXt have that of ours."""
    counted = {name: OURS if name in VARIANTS else name for name in names}
    found = {}
    for name in set(counted.values()):
        with torch.device("meta"):
            model = systems.make_plain(name, systems.GOPRO)
        found[name] = complexity.measure(model, (256, 256))
    return {name: found[same] for name, same in counted.items()}


@dataclass(frozen=True)
class Checked:
    """How far a system is off float64 at a small size, and how far it may be."""

    error: float
    allowed: float

    @property
    def wrong(self) -> str | None:
        """Why the result is wrong; None if it is right."""
        return accuracy.judge(self.error, self.allowed)


def check(
    names: Sequence[str], precisions: Sequence[str], on: torch.device
) -> dict[tuple[str, str], Checked]:
    """Compare systems with float64, by name and precision; those that are compiled wait for their size."""
    found = {}
    for one in accuracy.measure(systems.GOPRO, precisions, on):
        for name in set(names) & set(VARIANTS):
            if VARIANTS[name] == one.variant:
                found[name, one.precision] = Checked(one.error, one.allowed)
    for name in names:
        if name not in VARIANTS:
            found |= {(name, precision): one for precision, one in check_other(name, precisions, on).items()}
    return found


def check_other(name: str, precisions: Sequence[str], on: torch.device) -> dict[str, Checked]:
    """Compare a system with itself in float64, by precision."""
    model = systems.make_plain(name).to(on, torch.float64)
    x = make_picture((SMALL, SMALL), sizes(model), on)
    with torch.no_grad():
        expected = systems.restored(model, model.result_index)(x.double())
    del model
    found = {}
    for precision in precisions:
        with computing_in(precision, on):
            result = systems.make_system(name, precision, on).call(x)
        error = harness.relative_error([result], [expected])
        found[precision] = Checked(error, accuracy.allowed_error(name, precision, error))
    return found


def make_picture(picture: tuple[int, int], taken: tuple[int, int], on: torch.device) -> Tensor:
    """A picture (1, 3, H, W) of that width and height, padded to the multiple and minimum that are taken."""
    width, height = (continued_side(side, *taken) for side in picture)
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(on)


# ---- one comparison --------------------------------------------------------------------------------


@dataclass
class Found:
    """What was found of one system; without a time where its result is wrong or missing.

    Attributes:
        timing: its error is that against the published IRNeXt in float32, at the size timed.
        padded: the width and height that the system gets.
        first_call_seconds: of the call that prepares or compiles.
        peak_bytes: the most that a call holds at once.
        single_call: whether the time is that of one call, the second: it was too long for turns.
        times_ours: how many times as long it then was as a call of ours right after it.
    """

    timing: Timing
    padded: tuple[int, int] | None = None
    first_call_seconds: float | None = None
    peak_bytes: int | None = None
    single_call: bool = False
    times_ours: float | None = None


def timed(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    """The seconds of one call, and its result."""
    start = time.perf_counter()
    result = call(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def second_call(system: System, x: Tensor) -> tuple[float, int]:
    """The seconds of a call that prepares nothing any more, and the most bytes that it holds at once."""
    seconds = []

    def run() -> None:
        seconds.append(timed(system.kernels, x)[0])

    peak = device.allocated_peak if x.is_cuda else harness.allocated_peak
    # The same kernels outside of a graph were not called yet.
    size = peak(run, warm=system.kernels is not system.call)
    return seconds[-1], size


def published_result(case: Case, on: torch.device) -> Tensor | None:
    """What the published IRNeXt makes of the picture in float32; None without the memory for it."""
    try:
        with computing_in("float32", on):
            system = systems.make_system(PUBLISHED, "float32", on, systems.GOPRO)
            return system.call(make_picture(case.picture, (system.multiple, system.minimum), on))
    except (MemoryError, RuntimeError) as error:
        if harness.is_out_of_memory(error):
            return None
        raise


def judged(
    name: str, precision: str, result: Tensor, expected: Tensor | None, published_error: float | None
) -> Timing:
    """An untimed `Timing` that says whether the result is right, as far as it shows at the size timed.

    Args:
        expected: of the published IRNeXt in float32, if there was memory for it.
        published_error: of the published IRNeXt in this precision, if it has one.
    """
    if name not in VARIANTS or expected is None:
        wrong = None if result.isfinite().all() else "wrong result: it is not finite"
        unknown = name == COMPILED and wrong is None  # at the small size it was not compared
        failure = "not checked: too little memory for the published network in float32" if unknown else None
        return Timing(None, None, {}, None, wrong, failure)
    error = harness.relative_error([result], [expected])
    if published_error is None:
        published_error = accuracy.allowed_error(VARIANTS[PUBLISHED], precision, 0.0)
    allowed = accuracy.allowed_error(VARIANTS[name], precision, published_error)
    return Timing(None, None, {}, harness.finite(error), accuracy.judge(error, allowed))


class Comparison:
    """The systems of one case: each is called alone first, then those that are right take turns.

    Attributes:
        found: by system, what is known of it so far.
    """

    def __init__(self, case: Case, options: Options, wrong: dict[str, str]):
        """`wrong` says why systems are wrong at the small size: they are not called."""
        self.case, self.options = case, options
        self.on = torch.device(options.device)
        self.found = {name: Found(Timing(None, None, {}, None, why)) for name, why in wrong.items()}
        self.runs: dict[str, Callable[[], Tensor]] = {}
        self.timer = device.call_timer if self.on.type == "cuda" else harness.call_timer

    def run(self, changed: Callable[[], None]) -> None:
        """Make the comparison; `changed` is called whenever there is something new."""
        if COMPILED in self.options.names:
            torch._dynamo.reset()  # what was compiled for another size would be made to serve both
        expected = published_result(self.case, self.on)
        with computing_in(self.case.precision, self.on):
            for name in self.options.names:
                if name not in self.found:
                    self.found[name] = self.begin(name, expected)
                changed()
            del expected
            self.take_turns()
        changed()

    def begin(self, name: str, expected: Tensor | None) -> Found:
        """Build a system, and call it twice: for its result, and for its memory and whether it takes long."""
        try:
            system = systems.make_system(name, self.case.precision, self.on, systems.GOPRO)
            return self.first_calls(name, system, expected)
        except Exception as error:
            if harness.is_out_of_memory(error):
                return Found(Timing(None, None, {}, None, failure="out of memory"))
            if name != COMPILED:
                raise
            return Found(Timing(None, None, {}, None, failure=harness.first_line(error)))

    def first_calls(self, name: str, system: System, expected: Tensor | None) -> Found:
        """`begin` for a system that is built."""
        x = make_picture(self.case.picture, (system.multiple, system.minimum), self.on)
        first, result = timed(system.call, x)
        published_error = self.found[PUBLISHED].timing.error if PUBLISHED in self.found else None
        timing = judged(name, self.case.precision, result, expected, published_error)
        found = Found(timing, tuple(x.shape[:1:-1]), first)
        del result
        if timing.wrong or timing.failure:
            return found
        seconds, found.peak_bytes = second_call(system, x)
        if seconds > self.options.longest:
            found.single_call = True
            if OURS in self.runs:
                found.times_ours = seconds / self.timer(self.runs[OURS])()
            found.timing = dataclasses.replace(timing, milliseconds=1e3 * seconds)
        else:
            self.runs[name] = functools.partial(system.call, x)
        return found

    def take_turns(self) -> None:
        """Time what is not too long, in turns. What lacks the memory beside the others is left out."""
        while self.runs:
            variants = {name: Variant(run) for name, run in self.runs.items()}
            begun = {name: self.found[name].timing for name in variants}
            try:
                timings = harness.time_right(variants, begun, self.options.rounds, self.timer)
            except (MemoryError, RuntimeError) as error:
                if not harness.is_out_of_memory(error):
                    raise
                largest = max(self.runs, key=lambda name: self.found[name].peak_bytes)
                failed = dataclasses.replace(begun[largest], failure="out of memory beside the others")
                self.found[largest].timing = failed
                del self.runs[largest], variants
                continue
            for name, timing in timings.items():
                self.found[name].timing = timing
            return


def times(found: dict[str, Found], name: str, other: str) -> float | None:
    """How many times as long as `other` a system takes: round by round, or of one call."""
    if other == OURS and found[name].times_ours is not None:
        return found[name].times_ours
    one, two = (found[each].timing if each in found else None for each in (name, other))
    if one is None or two is None or one.milliseconds is None or two.milliseconds is None:
        return None
    return two.ratios.get(name, one.milliseconds / two.milliseconds)


# ---- what is shown and kept ------------------------------------------------------------------------


def make_row(
    case: Case,
    name: str,
    every: dict[str, Found],
    cost: complexity.Complexity,
    checked: Checked | None,
) -> dict[str, Any]:
    """All that is known of a system in a case, as the file of the results has it."""
    found = every[name]
    printed = paper.GOPRO[IN_PAPER[name]] if name in IN_PAPER else None
    psnr, ssim, source = quality(name)
    return {
        "picture": case.picture,
        "precision": case.precision,
        "system": name,
        "title": TITLES[name],
        "paper_name": IN_PAPER.get(name),
        "psnr": psnr,
        "ssim": ssim,
        "quality_source": source,
        "params": cost.params,
        "macs": cost.macs,
        "tap_macs": cost.tap_macs,
        "paper_gflops": printed and printed.gflops,
        "paper_times": printed and printed.seconds / paper.GOPRO["IRNeXt"].seconds,
        "times_ours": times(every, name, OURS),
        "times_published": times(every, name, PUBLISHED),
        **dataclasses.asdict(found.timing),
        "error_of_float64": checked and harness.finite(checked.error),
        "padded": found.padded,
        "single_call": found.single_call,
        "first_call_seconds": found.first_call_seconds,
        "peak_bytes": found.peak_bytes,
    }


@dataclass
class Record:
    """All that a run has found so far, written anew whenever something is added."""

    options: Options
    here: dict[str, Any]
    costs: dict[str, complexity.Complexity]
    checked: dict[tuple[str, str], Checked]
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def wrong(self, precision: str) -> dict[str, str]:
        """The systems that are wrong at the small size, and why."""
        return {name: one.wrong for (name, of), one in self.checked.items() if of == precision and one.wrong}

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """What is known of a case."""
        return [row for row in self.results if Case(row["picture"], row["precision"]) == case]

    def put(self, case: Case, found: dict[str, Found]) -> None:
        """Set what is known of a case, and write the file."""
        known = self.rows(case)
        self.results = [row for row in self.results if row not in known] + [
            make_row(case, name, found, self.costs[name], self.checked.get((name, case.precision)))
            for name in self.options.names
            if name in found
        ]
        self.write()

    def settings(self) -> dict[str, Any]:
        """The options that the figures depend on."""
        options = dataclasses.asdict(self.options)
        return {name: value for name, value in options.items() if name not in WRITTEN}

    def command(self) -> str:
        """What to type for these results."""
        settings = json.loads(json.dumps(self.settings()))  # as a file has them
        return provenance.command("gopro", settings)

    def write(self) -> Path | None:
        """Write the file, if there is to be one, and return its path."""
        if not self.options.json:
            return None
        settings = self.settings()
        return harness.write_results(
            self.options.name, self.here, settings, self.results, self.options.results
        )

    def has_wrong(self) -> bool:
        """Whether anything was found to be wrong."""
        return any(row["wrong"] for row in self.results)


def run(options: Options) -> int:
    """Run the benchmark; 1 if any system computes something wrong."""
    console = harness.make_console()
    bounded = contextlib.nullcontext() if options.device == "cuda" else harness.bounded_memory()
    large = any(math.prod(case.picture) > LARGE for case in options.cases)
    with device.measuring(options.device, options.threads, console, large) as here, bounded:
        on = torch.device(options.device)
        checked = check(options.names, options.dtypes, on)
        record = Record(options, here, costs(options.names), checked)
        for case in options.cases:
            comparison = Comparison(case, options, record.wrong(case.precision))
            comparison.run(lambda case=case, found=comparison.found: record.put(case, found))
            show(console, str(case), record.rows(case))
    for note in NOTES:
        console.print(note, soft_wrap=True)
    if path := record.write():
        console.print(f"written: {path}", soft_wrap=True)
    if options.markdown:
        with atomic_file(options.markdown) as file:
            file.write(markdown(record.results, here, record.command()).encode())
    if options.figure:
        figures.write(figure(record.results, here), options.figure)
    return int(record.has_wrong())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.gopro"))


if __name__ == "__main__":
    sys.exit(main())
