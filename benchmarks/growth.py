"""What a restoration costs as pictures grow, from 256 x 256 to 4K: `python -m benchmarks.growth --help`.

Latency and peak memory of IRNeXt for GoPro as published and ours, and of the networks it is compared with;
the exponents with which they grow in the pixels of the picture, and the largest picture that each restores
in so much memory, whole, and for ours also in bands (`irnext.bands`). Here a system is compared with itself,
size by size; `benchmarks.gopro` compares systems with each other, in turns.

- Time: nothing is timed before its result was found finite and, of IRNeXt at the smallest size, right. A
  system stops at the first size whose call should take longer than --longest, by its pixels. What is not
  measured is not made up: it is the fit's, and said to be.
- Memory: what a call holds at most, its result included, the picture and the weights not; of the first call
  at a size, since some networks make tables for a size and keep them. It is "measured" where a call ran, and
  otherwise "counted" on fake tensors (`benchmarks.footprint`), times what the operators were found to take
  by themselves at the largest size measured. What cannot be counted is "by the fit", a straight line.
- Exponents: least squares through the logarithms, of all sizes that are not by the fit.
- The largest picture is 16:9, padded as `irnext.restore` pads it; here it and the weights do count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from irnext import bands, optimize
from irnext.memory import available_memory, format_size, parse_size
from irnext.restoration.inference import continued_side, sizes

from . import accuracy, device, figures, harness, networks, systems
from .footprint import CannotCountError, Footprint
from .growth_figure import BY_FIT, COUNTED, IN_BANDS, MEASURED, figure
from .harness import Timing, Variant
from .laws import fit_line, fit_power
from .model import parse_size as parse_picture_size
from .networks import PRECISIONS, Settings, computing_in
from .systems import COMPILED, GOPRO, OURS, PUBLISHED, SYSTEMS, VARIANTS, System

SIZES = ("256x256", "384x384", "512x512", "1024x576", "720p", "1080p", "2560x1440", "4K")
FIRST, LARGEST = 240, 4096  # of the pictures that are tried, in units of 16 x 9 pixels

Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Options:
    """Measure how the cost of a restoration grows with the picture, and what fits in memory."""

    size: tuple[str, ...] = SIZES
    """widths and heights of the pictures in pixels, such as 1280x720, or 720p, 1080p, 4K"""
    systems: tuple[str, ...] = (PUBLISHED, OURS, "mprnet-deblurring", "grl-base")
    """what to measure, one after another"""
    memory: str = "24G"
    """what the largest picture is to be restored in"""
    longest: float = 60.0
    """seconds of a call; sizes that should take longer are not measured"""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """what to compute in; tf32 is for CUDA, and off in float32"""
    blocks: int = GOPRO.blocks
    """residual blocks per CNNBlock of IRNeXt"""
    width: int = GOPRO.width
    """channels of IRNeXt at full resolution"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 5
    """calls timed at each size; fewer where they take longer than --longest together"""
    json: bool = False
    """write the figures to a file under --results, again after every system"""
    results: Path = harness.RESULTS
    """folder of the results"""
    name: str = "growth"
    """name of the file"""
    figure: Path | None = None
    """a .png or .svg file for the plot"""

    def __post_init__(self) -> None:
        harness.check_effort(self.rounds, self.longest, self.threads)
        if not self.size or not self.systems:
            raise ValueError("size and systems must name at least one each")
        for name in self.systems:
            if name not in SYSTEMS:
                raise ValueError(f"unknown system {name!r}: choose of {', '.join(SYSTEMS)}")
        for text in self.size:
            parse_picture_size(text)
        parse_size(self.memory)
        if self.precision == "tf32" and self.device != "cuda":
            raise ValueError("tf32 is of CUDA devices: choose --device cuda, or float32")
        device.check(self.device)
        if self.figure is not None:
            figures.check(self.figure)
            figures.check_place(self.figure)

    @property
    def settings(self) -> Settings:
        """Of IRNeXt."""
        return Settings(self.blocks, self.width, GOPRO.low_pass)

    @property
    def sizes(self) -> list[Size]:
        """The pictures, smallest first, each once."""
        return sorted(set(map(parse_picture_size, self.size)), key=math.prod)


# ---- one system ----------------------------------------------------------------------------------


@dataclass
class Point:
    """What is known of a system at a size.

    Attributes:
        size, padded: of the picture, and of what the network gets.
        milliseconds, spread, calls: the median of so many calls, and their interquartile range over it.
        peak_bytes, counted_bytes: measured, and counted on fake tensors.
        time_ms, time_by, memory_bytes, memory_by: the best that is known, and how.
        error: from the published network in float32.
        wrong: why the result is wrong.
        missing: why it was not measured.
    """

    system: str
    size: Size
    padded: Size
    milliseconds: float | None = None
    spread: float | None = None
    calls: int = 0
    peak_bytes: int | None = None
    counted_bytes: int | None = None
    time_ms: float | None = None
    time_by: str | None = None
    memory_bytes: int | None = None
    memory_by: str | None = None
    error: float | None = None
    wrong: str | None = None
    missing: str | None = None

    @property
    def pixels(self) -> int:
        """Of the picture."""
        return math.prod(self.size)


def counter(name: str, options: Options) -> Footprint | None:
    """What counts the memory of a system's calls; None for a system that does not run without data.

    torch.compile does not, and on a GPU ours measures which kernels are faster.
    """
    on, dtype = torch.device(options.device), PRECISIONS[options.precision]
    if name == COMPILED or (name == OURS and on.type == "cuda"):
        return None
    plain = systems.make_plain(name, options.settings).to(on)
    if name == OURS:
        # The optimized model shows fake tensors its plain self; the network in it does not know them apart.
        return Footprint(optimize(plain, dtype)._prepare(), on)
    return Footprint(networks.inference(plain, dtype), on, plain)


def weight_bytes(name: str, settings: Settings) -> int:
    """Of the parameters and buffers of a system, in float32."""
    with torch.device("meta"):
        model = systems.make_plain(name, settings)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


class Growth:
    """The cost of one system at growing sizes.

    Attributes:
        points: one for each size of the options.
        weights: bytes of parameters and buffers.
    """

    def __init__(self, name: str, options: Options):
        self.name, self.options = name, options
        self.on = torch.device(options.device)
        with computing_in(options.precision, self.on):
            self.system: System = systems.make_system(name, options.precision, self.on, options.settings)
        self.taken = (self.system.multiple, self.system.minimum)
        self.points = [Point(name, size, self.padded(size)) for size in options.sizes]
        self.weights = weight_bytes(name, options.settings)
        self._counter = counter(name, options)
        self._counts: dict[Size, int] = {}

    def padded(self, size: Size) -> Size:
        """The width and height that the network gets."""
        return tuple(continued_side(side, *self.taken) for side in size)

    def picture(self, size: Size) -> Tensor:
        """A picture (1, 3, H, W) of a padded size."""
        width, height = size
        return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(self.on)

    def run(self, console: Console) -> None:
        """Count and measure."""
        for point in self.points:
            point.counted_bytes = self.count(point.padded)
        with computing_in(self.options.precision, self.on):
            self.prepare()
            for point in self.points:
                point.missing = self.why_not(point)
                if point.missing is None:
                    self.measure(point)
                console.print(f"{self.name}, {point.size[0]} x {point.size[1]}: {summary(point)}")
                if point.wrong:
                    break
        self.complete()

    # -- memory without time

    def count(self, padded: Size) -> int | None:
        """The counted peak of a call, in bytes; None where it cannot be counted."""
        if self._counter is not None and padded not in self._counts:
            try:
                self._counts[padded] = self._counter((1, 3, *reversed(padded)))
            except CannotCountError:
                self._counter = None
        return self._counts.get(padded)

    def measured(self) -> list[Point]:
        """The points whose memory was measured, smallest first."""
        return [point for point in self.points if point.peak_bytes is not None]

    @property
    def unseen(self) -> float:
        """How many times what is counted a call was found to take, at the largest size measured."""
        found = self.measured()
        return found[-1].peak_bytes / found[-1].counted_bytes if found and found[-1].counted_bytes else 1.0

    def needed(self, size: Size) -> tuple[int, str] | None:
        """The peak of a call in bytes that was not measured, and how it is known; None if it is not."""
        counted = self.count(self.padded(size))
        if counted is not None:
            return int(self.unseen * counted), COUNTED
        line = fit_line([(math.prod(point.padded), point.peak_bytes) for point in self.measured()])
        return None if line is None else (max(1, int(line(math.prod(self.padded(size))))), BY_FIT)

    # -- calls

    def prepare(self) -> None:
        """Call once at the least size: weights that are packed once are not a larger size's memory."""
        if self.name != COMPILED:
            self.system.kernels(self.picture(self.padded((1, 1))))

    def why_not(self, point: Point) -> str | None:
        """Why a size is not to be measured; None if it is."""
        before = self.points[: self.points.index(point)]
        if any(earlier.missing for earlier in before):
            return "a smaller size was not measured"
        if before:
            seconds = before[-1].milliseconds / 1e3 * point.pixels / before[-1].pixels
            if seconds > self.options.longest:
                return f"a call should take {seconds:.3g} s, more than {self.options.longest:g}"
        needed = self.needed(point.size)
        free = available_memory(self.on)
        if needed and free is not None and needed[0] > free:
            return f"needs {format_size(needed[0])} of memory, and {format_size(free)} are free"
        return None

    def measure(self, point: Point) -> None:
        """Call a size for its memory and its result, and time it if that is right."""
        x = self.picture(point.padded)
        try:
            point.peak_bytes, seconds, result = self.first_call(x)
            self.check(point, x, result)
            del result
            if point.wrong is None:
                self.time_calls(point, x, seconds)
        except Exception as error:
            if harness.is_out_of_memory(error):
                point.missing = "out of memory"
            elif self.name == COMPILED:  # compilers have errors of their own
                point.missing = harness.first_line(error)
            else:
                raise

    def first_call(self, x: Tensor) -> tuple[int, float, Tensor]:
        """The peak, the seconds and the result of the first call at a size."""
        if self.name == COMPILED:
            torch._dynamo.reset()  # what was compiled for another size would be made to serve both
            self.system.call(x)
        results: list[Tensor] = []
        peak = device.allocated_peak if x.is_cuda else harness.allocated_peak
        start = time.perf_counter()
        size = peak(lambda: results.append(self.system.kernels(x)), warm=False)
        return size, time.perf_counter() - start, results.pop()

    def check(self, point: Point, x: Tensor, result: Tensor) -> None:
        """Say what is wrong with a result, if anything is."""
        if not result.isfinite().all():
            point.wrong = "wrong result: it is not finite"
        elif self.name in VARIANTS and point is self.points[0]:
            error, allowed = compare_with_published(self.name, self.options, x, result)
            point.error, point.wrong = harness.finite(error), accuracy.judge(error, allowed)

    def time_calls(self, point: Point, x: Tensor, seconds: float) -> None:
        """Time calls, fewer where `seconds` for each is long."""
        run = functools.partial(self.system.call, x)
        if self.system.kernels is not self.system.call:
            run()  # records the graph that is replayed
        point.calls = max(1, min(self.options.rounds, int(self.options.longest / seconds)))
        timer = device.call_timer if x.is_cuda else harness.call_timer
        begun = {self.name: Timing(None, None, {}, None)}
        timing = harness.time_right({self.name: Variant(run)}, begun, point.calls, timer)[self.name]
        point.milliseconds = timing.milliseconds
        point.spread = timing.spread if point.calls > 1 else None

    # -- what follows

    def complete(self) -> None:
        """Say of every point the best that is known; nothing where a result is wrong."""
        if any(point.wrong for point in self.points):
            return
        law = fit_power([(p.pixels, p.milliseconds) for p in self.points if p.milliseconds is not None])
        for point in self.points:
            if point.milliseconds is not None:
                point.time_ms, point.time_by = point.milliseconds, MEASURED
            elif law is not None:
                point.time_ms, point.time_by = law(point.pixels), BY_FIT
            if point.peak_bytes is not None:
                point.memory_bytes, point.memory_by = point.peak_bytes, MEASURED
            elif (needed := self.needed(point.size)) is not None:
                point.memory_bytes, point.memory_by = needed

    def largest(self, limit: int) -> dict[str, Any] | None:
        """The largest 16:9 picture that is restored whole in `limit` bytes, the weights and it included."""
        if any(point.wrong for point in self.points) or self.needed((16, 9)) is None:
            return None

        def everything(size: Size) -> int:
            return self.needed(size)[0] + self.weights + picture_bytes(self.padded(size))

        return {"system": self.name, "how": "whole", "by": self.needed((16, 9))[1]} | search(
            everything, limit
        )


def compare_with_published(name: str, options: Options, x: Tensor, result: Tensor) -> tuple[float, float]:
    """The error of an IRNeXt's result from the published network in float32, and the most it may be."""
    on = x.device

    def published(precision: str) -> Tensor:
        with computing_in(precision, on):
            return systems.make_system(PUBLISHED, precision, on, options.settings).call(x)

    expected = published("float32")
    error = harness.relative_error([result], [expected])
    exact = name != OURS or options.precision == "float32"
    own = 0.0 if exact else harness.relative_error([published(options.precision)], [expected])
    return error, accuracy.allowed_error(VARIANTS[name], options.precision, own)


def picture_bytes(padded: Size) -> int:
    """Of a picture in float32."""
    return 3 * math.prod(padded) * torch.float32.itemsize


def search(everything: Callable[[Size], int], limit: int) -> dict[str, Any]:
    """The largest 16:9 size whose memory, which grows with it, is within the limit, and that memory.

    Each guess is right if memory is in proportion to the pixels.
    """

    def size(units: int) -> Size:
        return 16 * units, 9 * units

    fits, exceeds, guess = 0, LARGEST + 1, FIRST
    while exceeds - fits > 1:
        needed = everything(size(guess))
        fits, exceeds = (guess, exceeds) if needed <= limit else (fits, guess)
        guess = min(max(round(guess * math.sqrt(limit / needed)), fits + 1), exceeds - 1)
    found = size(fits)
    return {
        "size": found,
        "pixels": math.prod(found),
        "bytes": everything(found) if fits else None,
        "limit": limit,
    }


# ---- in bands ------------------------------------------------------------------------------------


class Bands:
    """The memory of ours in the lowest bands, as their own account has it. Nothing is run.

    Attributes:
        points: one for each size of the options, without times.
    """

    def __init__(self, options: Options):
        self.on, dtype = torch.device(options.device), PRECISIONS[options.precision]
        plain = systems.make_plain(OURS, options.settings)
        self.weights = weight_bytes(OURS, options.settings)
        self.model = optimize(plain.to(self.on), dtype, graphs=False)
        self.taken = sizes(plain)
        self.points = []
        for size in options.sizes:
            point = Point(IN_BANDS, size, self.padded(size), missing="bands are not timed")
            point.counted_bytes = point.memory_bytes = self.least(point.padded)
            point.memory_by = COUNTED
            self.points.append(point)

    def padded(self, size: Size) -> Size:
        """The width and height that the network gets."""
        return tuple(continued_side(side, *self.taken) for side in size)

    def least(self, padded: Size) -> int:
        """The least limit within which a picture is computed, in bytes."""
        x = torch.zeros(1, device=self.on).expand(1, 3, *reversed(padded))  # takes no memory
        whole = bands.whole_memory(self.model.settings["width"], self.model.dtype, x)
        try:
            self.model(x, max_memory=1)
        except bands.MemoryLimitError as error:
            return min(error.least, whole)
        raise AssertionError("a picture was restored in one byte")

    def largest(self, limit: int) -> dict[str, Any]:
        """The largest 16:9 picture that is restored in `limit` bytes, the weights and it included."""

        def everything(size: Size) -> int:
            padded = self.padded(size)
            return self.least(padded) + self.weights + picture_bytes(padded)

        return {"system": OURS, "how": "in bands", "by": COUNTED} | search(everything, limit)


# ---- what is shown and kept ----------------------------------------------------------------------


def summary(point: Point) -> str:
    """A point in a few words."""
    if point.wrong or point.missing:
        return point.wrong or point.missing
    return f"{point.milliseconds / 1e3:.3g} s, {harness.mebibytes(point.peak_bytes)} MiB"


def as_row(point: Point) -> dict[str, Any]:
    """A point for the record."""
    return dataclasses.asdict(point) | {"pixels": point.pixels}


def laws(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponents of all systems, each with the sizes that it is of and how their values are known."""
    found = []
    for name in dict.fromkeys(row["system"] for row in rows):
        for quantity, field in (("time", "time_ms"), ("memory", "memory_bytes")):
            how = f"{quantity}_by"
            used = [row for row in rows if row["system"] == name and row[how] not in (None, BY_FIT)]
            law = fit_power([(row["pixels"], row[field]) for row in used])
            if law is not None:
                by = ", ".join(dict.fromkeys(row[how] for row in used))
                sizes = ["{}x{}".format(*row["size"]) for row in used]
                law = {"system": name, "quantity": quantity} | dataclasses.asdict(law)
                found.append(law | {"by": by, "sizes": sizes})
    return found


class Record:
    """All that a run has found so far, written anew after each system."""

    def __init__(self, options: Options, here: dict[str, Any]):
        self.options, self.here = options, here
        self.rows: list[dict[str, Any]] = []
        self.largest: list[dict[str, Any]] = []

    def add(self, points: Sequence[Point], largest: dict[str, Any] | None) -> None:
        """Add a system, and write the file."""
        self.rows += map(as_row, points)
        self.largest += [largest] if largest else []
        self.write()

    def write(self) -> Path | None:
        """Write the file, if there is to be one, and return its path."""
        options = self.options
        if not options.json:
            return None
        sections = {"laws": laws(self.rows), "largest": self.largest}
        settings = dataclasses.asdict(options)
        return harness.write_results(
            options.name, self.here, settings, self.rows, options.results, **sections
        )

    def draw(self) -> Path | None:
        """Draw the figure, if there is to be one, and return its path."""
        options = self.options
        if options.figure is not None:
            drawn = figure(self.rows, self.largest, parse_size(options.memory))
            figures.write(drawn, options.figure)
        return options.figure

    def show(self, console: Console) -> None:
        """Print the tables."""
        table = harness.make_table(
            "Cost by size",
            "",
            "picture",
            "ms",
            "spread",
            "calls",
            "MiB measured",
            "counted",
            "best known",
            "",
        )
        for row in self.rows:
            table.add_row(*cells(row))
        console.print(table)
        table = harness.make_table(
            "Growth in the pixels", "", "", "exponent", "standard error", "of", "sizes"
        )
        for law in laws(self.rows):
            error = harness.number(law["standard_error"], ".3f")
            start, stop = law["sizes"][0], law["sizes"][-1]
            exponent = f"{law['exponent']:.3f}"
            used = f"{len(law['sizes'])}, {start} to {stop}"
            table.add_row(law["system"], law["quantity"], exponent, error, law["by"], used)
        console.print(table)
        title = f"Largest picture in {self.options.memory}, with weights and the picture"
        table = harness.make_table(title, "", "", "16:9", "megapixels", "GiB", "")
        for row in self.largest:
            size = "{} x {}".format(*row["size"]) if row["pixels"] else "none"
            needed = harness.number(row["bytes"] and row["bytes"] / 2**30, ".2f")
            table.add_row(row["system"], row["how"], size, f"{row['pixels'] / 1e6:.1f}", needed, row["by"])
        console.print(table)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    fitted = row["time_by"] == BY_FIT
    spread = harness.number(row["spread"] and row["spread"] / 2, ".1%")
    return (
        row["system"],
        "{} x {}".format(*row["size"]),
        f"~{row['time_ms']:.0f}" if fitted else harness.number(row["milliseconds"], ".1f"),
        BY_FIT if fitted else f"±{spread}" if spread else "",
        str(row["calls"] or ""),
        harness.mebibytes(row["peak_bytes"]),
        harness.mebibytes(row["counted_bytes"]),
        f"{harness.mebibytes(row['memory_bytes'])} {row['memory_by'] or ''}".strip(),
        row["wrong"] or row["missing"] or "",
    )


def run(options: Options) -> int:
    """Run the benchmark; 1 if any system computes something wrong."""
    console = harness.make_console()
    limit = parse_size(options.memory)
    with device.measuring(options.device, options.threads, console, large=True) as here:
        record = Record(options, here)
        for name in options.systems:
            growth = Growth(name, options)
            growth.run(console)
            record.add(growth.points, growth.largest(limit))
            del growth
            if name == OURS:
                in_bands = Bands(options)
                record.add(in_bands.points, in_bands.largest(limit))
    record.show(console)
    for path in (record.write(), record.draw()):
        if path is not None:
            console.print(f"written: {path}", soft_wrap=True)
    return int(any(row["wrong"] for row in record.rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.growth"))


if __name__ == "__main__":
    sys.exit(main())
