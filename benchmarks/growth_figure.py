"""Latency and peak memory against the pixels of a picture, as `benchmarks.growth` finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .figures import LIGHT, drawing
from .laws import fit_power
from .systems import COMPILED, OURS, PUBLISHED, TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Point = tuple[int, float, str]  # pixels, a value, and how it is known

MEASURED, COUNTED, BY_FIT = "measured", "counted", "by the fit"  # how a value is known
GIB = 2**30
DASHED = {"linestyle": (0, (4, 2.5)), "linewidth": 1.3}
IN_BANDS = "irnext-bands"
TICKS = {
    "64²": 64**2,
    "128²": 128**2,
    "256²": 256**2,
    "512²": 512**2,
    "720p": 1280 * 720,
    "1080p": 1920 * 1080,
    "4K": 3840 * 2160,
    "8K": 7680 * 4320,
}
# By system: its colour and its marker.
STYLES = {
    PUBLISHED: ("orange", "s"),
    COMPILED: ("gold", "X"),
    OURS: ("blue", "o"),
    IN_BANDS: ("sky", "o"),
    "mprnet-deblurring": ("green", "^"),
    "restormer": ("red", "P"),
    "mimo-unet": ("slate", "v"),
    "mimo-unet-plus": ("slate", "*"),
    "grl-base": ("purple", "D"),
    "grl-small": ("purple", "p"),
    "grl-tiny": ("purple", "h"),
}
NAMES = TITLES | {IN_BANDS: f"{TITLES[OURS]} in bands"}


def figure(rows: Sequence[Row], largest: Sequence[Row] = (), limit: int = 24 * GIB) -> Figure:
    """Two panels, time and memory, over the same logarithmic axis of pixels.

    What was measured is solid. What was counted, or is by the fit, continues it in dashes, for memory as far
    as the limit where `largest` says where that is.

    Args:
        rows: the results of `benchmarks.growth`, as they are or from its file.
        largest: the largest pictures within the limit, from there too; marked on the limit's line.
        limit: bytes of memory.
    """
    with drawing():
        import matplotlib.figure

        drawn = matplotlib.figure.Figure(figsize=(9.6, 5.0), dpi=160)
        time, memory = drawn.subplots(1, 2, width_ratios=(5, 6))
        draw_panel(time, lines(rows, "time_ms", "time_by", 1e-3), {}, "Latency", "seconds")
        ends = {IN_BANDS if row["how"] == "in bands" else row["system"]: row["pixels"] for row in largest}
        known = lines(rows, "memory_bytes", "memory_by", 1 / GIB)
        draw_panel(memory, known, ends, "Peak memory of a call", "GiB")
        draw_limit(memory, limit / GIB, known, ends)
        for axes in (time, memory):
            mark_sizes(axes)
        explain(drawn, rows)
    return drawn


def lines(rows: Sequence[Row], value: str, how: str, scale: float) -> dict[str, list[Point]]:
    """By system, the points whose value is known, by pixels."""
    found: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda row: row["pixels"]):
        if row[how]:
            found.setdefault(row["system"], []).append((row["pixels"], scale * row[value], row[how]))
    return {name: found[name] for name in dict.fromkeys(row["system"] for row in rows) if name in found}


def draw_panel(
    axes: Axes, known: dict[str, list[Point]], ends: dict[str, int], title: str, unit: str
) -> None:
    """The lines of all systems; what was not measured is drawn up to `ends` pixels, where that is said."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(xscale="log", yscale="log", title=title, ylabel=unit, xlabel="pixels of the picture")
    for name, points in known.items():
        draw_line(axes, name, points, ends.get(name, math.inf))
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(which="major")
    axes.margins(x=0.06, y=0.12)
    if not known:
        return
    axes.legend(
        loc="lower right",
        title="exponent of the pixels",
        alignment="left",
        fontsize=8,
        title_fontsize=8,
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
    )


def draw_line(axes: Axes, name: str, points: Sequence[Point], end: float) -> None:
    """A system's points, and the exponent of those that are not by the fit."""
    label, (colour, marker) = NAMES[name], STYLES[name]
    colour = LIGHT[colour]
    measured = [point for point in points if point[2] == MEASURED]
    law = fit_power([(pixels, value) for pixels, value, how in points if how != BY_FIT])
    if law is not None:
        error = law.standard_error or 0
        label += f": {law.exponent:.2f}" + (f" ± {error:.2f}" if error >= 0.005 else "")
    style = {"color": colour, "linewidth": 1.7, "marker": marker, "markersize": 5}
    hollow = {"markerfacecolor": LIGHT["paper"], "markeredgewidth": 1.2}
    rest = [point for point in points if point[2] != MEASURED and point[0] <= end]
    if measured:
        axes.plot(*columns(measured), **style, label=label, zorder=3)
    if rest:
        axes.plot(*columns([*measured[-1:], *rest]), color=colour, **DASHED, zorder=2)
        counted = [point for point in rest if point[2] == COUNTED]
        style |= hollow | {"linestyle": "none"}
        axes.plot(*columns(counted), **style, label=None if measured else label, zorder=3)


def columns(points: Sequence[Point]) -> tuple[list[int], list[float]]:
    """The pixels and the values of points."""
    return [pixels for pixels, _, _ in points], [value for _, value, _ in points]


def draw_limit(axes: Axes, limit: float, known: dict[str, list[Point]], ends: dict[str, int]) -> None:
    """A line at so many GiB, and on it the pixels at which every system's own line ends."""
    axes.set_ylim(top=max(6 * limit, axes.get_ylim()[1]))
    axes.axhline(limit, color=LIGHT["ink"], linewidth=1, zorder=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(f"{limit:g} GiB", (0, limit), (4, 4), **place)
    for name, pixels in ends.items():
        if not pixels:
            continue
        colour, end = LIGHT[STYLES[name][0]], (pixels, limit)
        before = [(each, value) for each, value, _ in known[name] if each < pixels]
        axes.plot(*zip(*before[-1:], end, strict=True), color=colour, **DASHED, zorder=2)
        axes.plot(*end, marker="|", markersize=11, markeredgewidth=2.2, color=colour, zorder=4)
        text = {"textcoords": "offset points", "fontsize": 8, "color": colour}
        axes.annotate(f"{pixels / 1e6:.3g} MP", end, (0, 8), **text, rotation=90, ha="center")


def mark_sizes(axes: Axes) -> None:
    """Name the usual sizes on the axis of pixels."""
    from matplotlib.ticker import NullLocator

    low, high = axes.get_xlim()
    shown = {name: size for name, size in TICKS.items() if low <= size <= high}
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(shown.values()), list(shown), fontsize=8)


def explain(drawn: Figure, rows: Sequence[Row]) -> None:
    """A line below the panels on what solid, dashed and hollow mean, as far as they are there."""
    from matplotlib.lines import Line2D

    grey = LIGHT["quiet"]
    marks = {
        MEASURED: Line2D([], [], color=grey, marker="o", markersize=5),
        COUNTED: Line2D(
            [], [], color=grey, marker="o", markersize=5, markerfacecolor=LIGHT["paper"], **DASHED
        ),
        BY_FIT: Line2D([], [], color=grey, **DASHED),
    }
    used = {row[how] for row in rows for how in ("time_by", "memory_by")}
    marks = {name: mark for name, mark in marks.items() if name in used}
    drawn.legend(marks.values(), marks, loc="outside lower center", ncols=3, labelcolor=grey)
