"""What the demonstration says: its tables, captions and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.table import Table as ConsoleTable

from . import photographs
from .cases import Case
from .page import Comparison, Table
from .sheet import Panel
from .timing import Timing

if TYPE_CHECKING:
    from .running import DemoResult

MODELS = (
    "The models are small ones of our own, trained for minutes on synthetic degradations: their weights are "
    "not the paper's, and their figures say nothing about the paper's."
)


def missing(tasks: Sequence[str]) -> str:
    """That the weights of tasks are not there."""
    return f"No weights are in this package for {', '.join(tasks)}: left out."


def intention(fine_tunes: bool, pictures: int) -> str:
    """What is trained next."""
    what = "The weights for haze are fine-tuned" if fine_tunes else "A model is trained from nothing"
    return f"{what} to sandstorms on {pictures} other photographs."


def storm_cases(result: DemoResult) -> list[Case]:
    """The sandstorm before the training, where there were weights, and after it."""
    return [case for case in (result.before, result.after) if case is not None]


def all_cases(result: DemoResult) -> list[Case]:
    """Every case in the order shown."""
    return [*result.tasks, *storm_cases(result)]


def quality(cases: Sequence[Case]) -> Table:
    """SSIM and PSNR before and after, with their protocols, and the gain."""
    rows = [
        (
            case.name,
            f"{case.ssim[0]:.4f} \N{RIGHTWARDS ARROW} {case.ssim[1]:.4f}",
            f"{case.psnr[0]:.2f} \N{RIGHTWARDS ARROW} {case.psnr[1]:.2f} dB",
            f"{case.gain:+.2f} dB",
        )
        for case in cases
    ]
    return Table(("Unseen photograph in", "SSIM (ssim-rgb)", "PSNR (irnext-rgb)", "gain"), rows)


def speed(timing: Timing) -> Table:
    """The times of local attention."""
    rows = [
        (name, f"{published * 1e3:.2f} ms", f"{ours * 1e3:.2f} ms", f"{published / ours:.1f}x")
        for name, (published, ours) in (
            ("forward", timing.forward),
            ("forward and backward", timing.step),
        )
    ]
    shape = "x".join(map(str, timing.shape))
    return Table((f"Local attention, {shape}", "published", "irnext", "speed-up"), rows)


def account(result: DemoResult) -> list[str]:
    """What was done, and with what: paragraphs."""
    start = "from nothing" if result.before is None else "from the weights for haze"
    threads = torch.get_num_threads()
    paragraphs = [
        MODELS,
        "The haze shown is thick, of a fixed strength: in thin haze so small a model gains less, or even "
        "loses. The other degradations are drawn by the seed.",
        f"For the sandstorm a model of {result.parameters:,} parameters was trained {start}, for "
        f"{result.steps} steps in {result.training_time:.0f} s on {len(photographs.TRAINING)} other "
        f"photographs (CPU threads: {threads}).",
        "Local attention was timed as called, memory allocation included, against the published unfold "
        f"formulation in float32; their outputs differ by at most {result.timing.difference:.0e} of the "
        "largest value.",
    ]
    return paragraphs + ([missing(result.missing)] if result.missing else [])


def panels(result: DemoResult, clean: np.ndarray) -> list[list[Panel]]:
    """The rows of the sheet: the tasks degraded, the tasks restored, and the sandstorm."""
    storm = [Panel(result.after.degraded, f"sandstorm: {result.after.psnr[0]:.2f} dB")]
    if result.before is not None:
        storm.append(Panel(result.before.restored, f"weights for haze: {_outcome(result.before)}"))
    done = "trained from nothing" if result.before is None else "fine-tuned"
    storm.append(Panel(result.after.restored, f"{done}: {_outcome(result.after)}"))
    return [
        [Panel(case.degraded, f"{case.name}: {case.psnr[0]:.2f} dB") for case in result.tasks],
        [Panel(case.restored, f"restored: {_outcome(case)}") for case in result.tasks],
        [*storm, Panel(clean, "original, never trained on")],
    ]


def _outcome(case: Case) -> str:
    return f"{case.psnr[1]:.2f} dB ({case.gain:+.2f})"


def comparisons(cases: Sequence[Case]) -> list[Comparison]:
    """The cases as the page shows them."""
    return [
        Comparison(
            case.name,
            case.degraded,
            case.restored,
            f"{case.name}: {case.psnr[0]:.2f} dB degraded, {case.psnr[1]:.2f} dB restored (PSNR, irnext-rgb)",
        )
        for case in cases
    ]


def for_console(table: Table) -> ConsoleTable:
    """A table for the terminal."""
    printed = ConsoleTable()
    for index, heading in enumerate(table.headings):
        printed.add_column(heading, justify="right" if index else "left")
    for row in table.rows:
        printed.add_row(*row)
    return printed
