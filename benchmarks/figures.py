"""The plots of the reports, drawn by matplotlib: `bars` and `stacks`; and any plot as SVG for a page: `svg`.

Plots know no benchmark: they are given names, numbers and units. Their SVG is the same in every run, has
text as text, and names its colours, so that a page can choose them for light and for dark.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irnext.files import atomic_file

from .page import COLOURS, colours_css

FORMATS = (".png", ".svg")  # of files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches
BAR = 0.2  # inches a bar is high
TEXT = 0.06  # of an axis, that the text of a value takes
LETTERS = 110  # that fit in a line of a legend, with six for each of its marks
FONT = "system-ui, 'DejaVu Sans', sans-serif"
# Of all elements: matplotlib writes the joins for a whole page, and no colour where it is black.
ROOT_STYLE = 'style="stroke-linejoin: round; stroke-linecap: butt; fill: var(--ink)"'
LIGHT = {name: pair[0] for name, pair in COLOURS.items()}
SERIES = ("blue", "orange", "green", "purple", "red", "gold", "slate", "grey")
STYLE = {
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # names may have dollar signs
    "axes.labelcolor": LIGHT["quiet"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LIGHT["line"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "xtick.labelcolor": LIGHT["quiet"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "irnext",
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """A context with the plots' style; ImportError, saying what to install, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'irnext[benchmark]'") from error
    with matplotlib.rc_context(STYLE):
        yield


def svg(figure: Figure, name: str, colours: Mapping[str, str] | None = None) -> str:
    """A figure as an SVG element with text, named colours, and ids that begin with `name`.

    Args:
        figure: the plot, drawn by this module or another.
        name: tells it from the other plots of a page.
        colours: names (`page.COLOURS`) for colours that another module uses.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with drawing():
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg ") :].rstrip().replace("<svg ", f"<svg {ROOT_STYLE} ", 1)
    text = re.sub(r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: _rounded(found.group()), text)
    text = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans', sans-serif|'DejaVu Sans'", FONT, text)
    named = {value: colour for colour, value in LIGHT.items()} | {"#ffffff": "paper"} | dict(colours or {})
    for value, colour in named.items():
        text = text.replace(value.lower(), f"var(--{colour})")
    return text


def _rounded(text: str) -> str:
    """A text with coordinates of no more than two decimals."""
    return re.sub(r"(\.\d\d)\d+", r"\1", text)


def svg_file(element: str) -> str:
    """An SVG element as a file of its own, which brings its colours."""
    start = element.index(">") + 1
    return f"{element[:start]}\n<style>{colours_css()}</style>{element[start:]}\n"


# ---- bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bars:
    """Horizontal bars: of each of some categories one for every series.

    Attributes:
        title: of the panel.
        unit: of the axis.
        categories: from top to bottom.
        series: values by category, by the name of the series; None for no bar.
        marks: a value for each category to draw a line at, and what the lines are.
        style: how values are written at their bars.
    """

    title: str
    unit: str
    categories: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    marks: Sequence[float | None] = ()
    mark: str = ""
    style: str = ".1f"

    @property
    def height(self) -> float:
        """In inches, without title and axis."""
        return BAR * len(self.categories) * (len(self.series) + 0.8)


def bars(panels: Sequence[Bars], colours: Mapping[str, str] | None = None) -> Figure:
    """Panels below one another, with one legend; the colours of series by name, or else in order."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    colours = _colours(names, colours)
    with drawing():
        figure, axes = _panels([panel.height for panel in panels])
        for axis, panel in zip(axes, panels, strict=True):
            _draw_bars(axis, panel, colours)
        _legend(figure, axes)
    return figure


def _draw_bars(axis: Axes, panel: Bars, colours: Mapping[str, str]) -> None:
    count = len(panel.series)
    step = 1 / (count + 0.8)
    marks = panel.marks or [None] * len(panel.categories)
    text_width = TEXT * max(value or 0.0 for values in [*panel.series.values(), marks] for value in values)
    for number, (name, values) in enumerate(panel.series.items()):
        for category, (value, mark) in enumerate(zip(values, marks, strict=True)):
            if value is None:
                continue
            y = category + (number - (count - 1) / 2) * step
            axis.barh(y, value, step * 0.86, color=LIGHT[colours[name]], label=name)
            in_the_way = mark is not None and value <= mark < value + text_width
            _write(axis, mark if in_the_way else value, y, format(value, panel.style))
    for category, mark in enumerate(marks):
        if mark is not None:
            reach = step * (count / 2 + 0.15)
            ends = (category - reach, category + reach)
            axis.plot([mark, mark], ends, color=LIGHT["ink"], linewidth=1.4, label=panel.mark)
    _finish_bars(axis, panel.title, panel.unit, panel.categories)
    axis.margins(x=0.09)
    axis.set_xlim(left=0)


@dataclass(frozen=True)
class Stacks:
    """Horizontal bars of parts that are laid end to end.

    Attributes:
        title: of the panel.
        unit: of the axis.
        rows: the size of every part, by the name of the bar and of the part, from top to bottom.
        style: how sums are written at the ends.
    """

    title: str
    unit: str
    rows: Mapping[str, Mapping[str, float]]
    style: str = ".0f"

    @property
    def height(self) -> float:
        """In inches, without title and axis."""
        return BAR * 1.5 * len(self.rows)


def stacks(panels: Sequence[Stacks]) -> Figure:
    """Panels below one another, with one legend of the parts."""
    names = list(dict.fromkeys(part for panel in panels for row in panel.rows.values() for part in row))
    colours = _colours(names, None)
    with drawing():
        figure, axes = _panels([panel.height for panel in panels])
        for axis, panel in zip(axes, panels, strict=True):
            for y, parts in enumerate(panel.rows.values()):
                left = 0.0
                for part, size in parts.items():
                    axis.barh(y, size, 0.72, left, color=LIGHT[colours[part]], label=part)
                    left += size
                _write(axis, left, y, format(left, panel.style))
            _finish_bars(axis, panel.title, panel.unit, list(panel.rows))
            axis.margins(x=0.09)
            axis.set_xlim(left=0)
        _legend(figure, axes)
    return figure


def _panels(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of panels below one another, as high as their bars need."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(WIDTH, sum(heights) + 0.62 * len(heights) + 0.35))
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=[h + 0.05 for h in heights])
    return figure, list(grid[:, 0])


def _finish_bars(axis: Axes, title: str, unit: str, categories: Sequence[str]) -> None:
    axis.set_title(title)
    axis.set_xlabel(unit)
    axis.set_yticks(range(len(categories)), categories)
    axis.set_ylim(len(categories) - 0.5, -0.5)
    axis.tick_params(length=0)
    axis.grid(axis="x")


def _write(axis: Axes, x: float, y: float, text: str) -> None:
    """A value at the end of its bar."""
    axis.annotate(
        text, (x, y), (3, 0), textcoords="offset points", va="center", fontsize=8, color=LIGHT["quiet"]
    )


def _colours(names: Sequence[str], chosen: Mapping[str, str] | None) -> dict[str, str]:
    """A colour for every name: the chosen one, or else the next of the series."""
    return {name: (chosen or {}).get(name, SERIES[i % len(SERIES)]) for i, name in enumerate(names)}


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, each name once; lines come last."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = sorted(entries, key=lambda label: isinstance(entries[label], Line2D))
    if len(names) > 1:
        in_a_line = sum(len(name) + 6 for name in names) <= LETTERS
        handles = [entries[name] for name in names]
        columns = len(names) if in_a_line else 4
        figure.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.4)


def check(path: Path) -> None:
    """Raise ValueError for a file of another kind than .png and .svg, or where matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a figure is a file in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("matplotlib draws figures, and is not installed: pip install 'irnext[benchmark]'")


def check_place(path: Path) -> None:
    """Raise ValueError where no file can be written: in no folder, or in place of one."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder: name a file in it")


def write(drawn: Figure, path: Path) -> None:
    """Write a figure as its file's name says, whole or not at all; the same figure gives the same file."""
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "irnext", "svg.fonttype": "none"}):
        drawn.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else None)
    with atomic_file(path) as file:
        file.write(data.getvalue())
