"""The figures in a document, which come from the results: `check` and `write`, between markers.

    <!-- figures: lam amd-epyc-2-cores -->
    | ... |
    <!-- end -->

The first line names a function of `FIGURES` and the folder of a machine, which may be left out where only
one has such results. What stands between the lines is what the function makes of them.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from irnext.files import atomic_file
from irnext.pretrained import path_of

from .harness import number
from .lam import CLONE_MEAN, GROUPED, UNFOLD
from .networks import OPTIMIZED, PUBLISHED, PUBLISHED_COMPILED
from .page import Table, markdown_table
from .records import Record
from .report_sections import shape

OURS = "irnext (auto)"
TIMES = "\N{MULTIPLICATION SIGN}"
WIDTH = 118  # of paragraphs
BLOCK = re.compile(r"<!-- figures: (?P<about>[^\n]*?) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
MARKER = re.compile(r"<!-- *(?:figures|end)\b[^\n]*")


# ---- documents -----------------------------------------------------------------------------------


def rendered(text: str, found: Sequence[Record], path: Path) -> tuple[str, list[str]]:
    """A document with the figures that the results give, and the names of the blocks that change.

    Raises ValueError where there are no markers, or one is wrong, or results that it needs are missing.
    """
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        raise ValueError(
            f"{path}: no figures are marked: put <!-- figures: NAME --> and <!-- end --> around them"
        )
    if len(MARKER.findall(text)) != 2 * len(blocks):
        raise ValueError(f"{path}: each <!-- figures: NAME --> needs one <!-- end -->, on lines of their own")
    changed = []

    def replace(block: re.Match) -> str:
        about = block["about"]
        try:
            new = figures_of(about, found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if new != block["text"].rstrip("\n"):
            changed.append(about)
        return f"<!-- figures: {about} -->\n{new}\n<!-- end -->"

    return BLOCK.sub(replace, text), changed


def check(path: Path, found: Sequence[Record]) -> list[str]:
    """The lines in which a document differs from the results; none where they agree."""
    old = path.read_text()
    new, _ = rendered(old, found, path)
    lines = (old.splitlines(), new.splitlines())
    return list(difflib.unified_diff(*lines, f"{path}", "the results", n=0, lineterm=""))


def write(path: Path, found: Sequence[Record]) -> list[str]:
    """Write the figures into a document, whole or not at all; the names of the blocks that changed."""
    old = path.read_text()
    new, changed = rendered(old, found, path)
    if new != old:
        with atomic_file(path) as file:
            file.write(new.encode())
    return changed


def figures_of(about: str, found: Sequence[Record]) -> str:
    """What a marker's function makes of the results; ValueError where it cannot."""
    name, _, folder = about.partition(" ")
    if name not in FIGURES:
        raise ValueError(f"there are no figures {name!r}: choose one of {', '.join(FIGURES)}")
    figures = FIGURES[name]
    machines = [one for one in dict.fromkeys(r.folder for r in found) if _results(found, one, figures.needs)]
    if folder and folder not in machines:
        raise ValueError(f"figures {name!r}: {folder} lacks some of the results {', '.join(figures.needs)}")
    if not machines:
        raise ValueError(f"figures {name!r}: no machine has the results {', '.join(figures.needs)}")
    if not folder and len(machines) > 1:
        raise ValueError(f"figures {name!r}: say of which machine: one of {', '.join(machines)}")
    results = _results(found, folder or machines[0], figures.needs)
    try:
        return figures.render(*results)
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        files = " and ".join(str(record.path) for record in results)
        raise ValueError(f"figures {name!r}: {files} lack something that they need: {error!r}") from error


def _results(found: Sequence[Record], folder: str, needs: Sequence[str]) -> list[Record]:
    """The results of those names of a machine; none unless all are there."""
    there = {record.name: record for record in found if record.folder == folder}
    return [there[name] for name in needs] if all(name in there for name in needs) else []


# ---- what a document says ------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Part of a document: a function of the results of those names."""

    needs: tuple[str, ...]
    render: Callable[..., str]


def _paragraph(text: str) -> str:
    """A text in lines, none of which begins with a percent sign."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def _row(rows: Iterable[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The first row with those entries; StopIteration for none."""
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def _of(record: Record) -> str:
    """The machine, the threads and PyTorch in words."""
    here = record.machine
    what = here["gpu"]["name"] if record.on_gpu else f"{here['processor']} ({here['instructions']})"
    threads = "" if record.on_gpu else f"{here['threads']} threads of an "
    return f"{threads}{what}, torch {here['torch'].partition('+')[0]}"


def lam(record: Record) -> str:
    """The local attention's ratios, forward and with backward, by shape."""
    rows = [row for row in record.rows if row["variant"] == OURS and row["dtype"] == "float32"]
    directions = ("forward", "forward + backward")
    found = {(row["direction"], tuple(row["shape"])): row["ratios"] for row in rows}
    cells = [
        (
            shape(one),
            *(
                f"{found[direction, one][other]:.1f}" if (direction, one) in found else ""
                for direction in directions
                for other in (UNFOLD, GROUPED)
            ),
        )
        for one in dict.fromkeys(shape for _, shape in found)
    ]
    headings = (
        "input",
        f"forward, {TIMES} unfold",
        f"{TIMES} grouped",
        f"forward + backward, {TIMES} unfold",
        f"{TIMES} grouped",
    )
    about = _paragraph(
        "One local attention module against the published form (`unfold`) and against a grouped convolution "
        f"written by an expert, on {_of(record)}, float32; medians of {record.options['rounds']} interleaved "
        f"runs (`{record.command}`):"
    )
    return f"{about}\n\n{markdown_table(Table(headings, cells))}"


def lam_limit(record: Record) -> str:
    """How close the largest plane comes to reading and writing it once."""
    largest = max((row["shape"] for row in record.rows), key=lambda sides: sides[2] * sides[3] * sides[1])
    at = {"shape": largest, "direction": "forward", "dtype": "float32"}
    clone, ours = _row(record.rows, variant=CLONE_MEAN, **at), _row(record.rows, variant=OURS, **at)
    bandwidth = f"{100 * ours['share_of_floor']:.0f} %"
    times = f"{clone['ratios'][OURS]:.1f} times"
    return _paragraph(
        f"At {shape(largest)} it takes {times} as long as a clone and a mean of its input, and moves its "
        f"least traffic at {bandwidth} of the copy bandwidth of the same run; on small planes the calls "
        "themselves are the limit."
    )


def model(*records: Record) -> str:
    """Whole models on one picture beside the published one, eager and compiled, in the same run."""
    cells = []
    for record in records:
        for row in record.rows:
            if (row["comparison"], row["variant"]) != ("compiled", OPTIMIZED):
                continue
            same = {name: row[name] for name in ("blocks", "picture", "precision")}
            published = _row(record.rows, variant=PUBLISHED, comparison="compiled", **same)
            errors = (row["error_of_float64"], published["error_of_float64"])
            cells.append(
                (
                    f"IRNeXt({row['blocks']}), {row['precision']}",
                    f"{row['milliseconds']:.0f} ms",
                    f"{row['ratios'][PUBLISHED]:.2f}",
                    f"{row['ratios'][PUBLISHED_COMPILED]:.2f}",
                    "{} ({})".format(*map(_error, errors)),
                )
            )
    ((width, height),) = {tuple(row["picture"]) for record in records for row in record.rows}
    about = _paragraph(
        f"Whole models on one {width} {TIMES} {height} picture, `irnext.optimize` against the published "
        "formulation, eager and under `torch.compile` with frozen weights, in the same run, on "
        f"{_of(records[0])} ({_commands(records)}):"
    )
    headings = ("", "ours", f"{TIMES} eager", f"{TIMES} compiled", "error against float64 (published)")
    return f"{about}\n\n{markdown_table(Table(headings, cells))}"


def _error(error: float) -> str:
    """An error to two digits, without zeros in its exponent."""
    return re.sub(r"e-0*", "e-", f"{error:.1e}")


def _commands(records: Sequence[Record]) -> str:
    return " and ".join(f"`{record.command}`" for record in records)


def photographs(*records: Record) -> str:
    """How far half precision is from float32 on photographs."""
    found = [one for record in records for one in record.data["photographs"] if one["variant"] == OPTIMIZED]
    low, high = (f"{end(one['decibels'] for one in found):.0f}" for end in (min, max))
    (precision,) = {one["precision"] for one in found}
    return _paragraph(f"On photographs {precision} is {low} to {high} dB from float32.")


def frame(record: Record) -> str:
    """Time and memory of one large picture."""
    ours, published = (
        _row(record.rows, variant=variant, precision="float32") for variant in (OPTIMIZED, PUBLISHED)
    )
    width, height = ours["picture"]
    return _paragraph(
        f"One {width} {TIMES} {height} frame with IRNeXt({ours['blocks']}) in float32 takes "
        f"{ours['milliseconds'] / 1e3:.1f} s instead of {published['milliseconds'] / 1e3:.1f} and "
        f"{ours['peak_bytes'] / 2**30:.2f} GiB instead of {published['peak_bytes'] / 2**30:.2f} "
        f"(`{record.command}`)."
    )


def training(*records: Record) -> str:
    """Time and memory of a training step."""
    found = []
    for record in records:
        row, dtype = _row(record.rows, variant=OURS), record.options["dtype"]
        where = "in float32" if dtype == "float32" else f"under {dtype} autocast"
        speed, memory = f"{row['ratios'][PUBLISHED]:.2f} {TIMES}", row["peak_above_state_of_published"]
        found.append((where, speed, f"{memory:.2f}"))
    o = records[0].options
    (where, speed, memory), *others = found
    first = (
        f"A training step (forward, loss, backward, Adam) of IRNeXt({o['blocks']}) on {o['batch']} {TIMES} "
        f"{o['size']} {TIMES} {o['size']} crops, against the published formulation in eager PyTorch, on "
        f"{_of(records[0])} ({_commands(records)}): {where} {speed} as fast with {memory} of its peak memory "
        "above the weights and the optimiser's state"
    )
    more = [f"{where} {speed} with {memory}" for where, speed, memory in others]
    return _paragraph(", ".join([first, *more]) + ".")


def gopro(record: Record) -> str:
    """IRNeXt and the networks it is compared with, at the largest size and in the first precision."""
    picture = max((row["picture"] for row in record.rows), key=lambda sides: sides[0] * sides[1])
    rows = [row for row in record.rows if row["picture"] == picture]
    rows = [row for row in rows if row["precision"] == rows[0]["precision"]]
    cells = [
        (
            row["title"],
            f"{row['params'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.1f}",
            number(row["milliseconds"], ",.0f") + " (one call)" * row["single_call"],
            number(row["times_ours"], ".2f"),
            number(row["paper_times"], ".2f"),
            number(row["peak_bytes"] and row["peak_bytes"] / 2**20, ",.0f"),
            number(row["psnr"], ".2f"),
        )
        for row in rows
    ]
    width, height = picture
    about = _paragraph(
        f"One {width} {TIMES} {height} picture in {rows[0]['precision']} on {_of(record)}, every network "
        f"with random weights, in turns in one run (`{record.command}`); multiply-accumulates for 256 "
        f"{TIMES} 256 pixels by one counter, PSNR on GoPro as published:"
    )
    headings = (
        "",
        "M parameters",
        "G multiply-accumulates",
        "ms",
        f"{TIMES} ours",
        f"{TIMES} IRNeXt on the paper's V100",
        "peak MiB",
        "PSNR",
    )
    return f"{about}\n\n{markdown_table(Table(headings, cells))}"


def pretrained(record: Record) -> str:
    """What the weights that come with the package gain."""
    cells = []
    for task in dict.fromkeys(row["task"] for row in record.rows):
        rows = [row for row in record.rows if row["task"] == task]
        mean = {name: fmean(row[name] for row in rows) for name in SCORES}
        trained = json.loads(path_of(task).with_suffix(".json").read_text())
        gains = [gain for row in rows for gain in row["gains"]]
        cells.append(
            (
                task,
                f"{mean['psnr_before']:.2f}",
                f"{mean['psnr_after']:.2f}",
                f"{fmean(gains):+.2f} dB",
                f"{min(gains):+.1f} to {max(gains):+.1f}",
                f"{mean['ssim_before']:.3f}",
                f"{mean['ssim_after']:.3f}",
                f"{trained['steps']}, {trained['seconds'] / 60:.0f}",
            )
        )
    scores = ("PSNR before", "after", "gain, mean", "least to most", "SSIM before", "after")
    headings = ("task", *scores, "steps, minutes of training")
    return markdown_table(Table(headings, cells))


SCORES = ("psnr_before", "psnr_after", "ssim_before", "ssim_after")
MODELS = ("model", "model-14")
FIGURES = {
    "lam": Figures(("lam",), lam),
    "lam-limit": Figures(("lam",), lam_limit),
    "model": Figures(MODELS, model),
    "photographs": Figures(MODELS, photographs),
    "frame": Figures(("model-720p",), frame),
    "gopro": Figures(("gopro",), gopro),
    "training": Figures(("training_step", "training_step-bfloat16"), training),
    "pretrained": Figures(("pretrained",), pretrained),
}
