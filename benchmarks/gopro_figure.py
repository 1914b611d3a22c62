"""The paper's Figure 1 (right): PSNR on GoPro against time, as printed and as measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irnext import paper

from .systems import OURS, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

DOTS_PER_INCH = 160
BY = "\N{MULTIPLICATION SIGN}"
INK, FAINT = "#222222", "#d5d8dc"
PRINTED, MEASURED, VARIANT, BEST = "#80868f", "#1f5fa8", "#8a4a9e", "#d1451b"  # colours of points
# Diameters in points: a printed point is a ring, which may lie around a measured one.
RING, DOT = 11.0, 7.0
# Where labels are tried: horizontally and vertically from the point, in directions and distances (points).
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
DISTANCES = (9, 15, 24, 36, 50)
FAR = 20  # points, from which on a line leads to the label
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Point:
    """A system in the figure; `times` is its time relative to IRNeXt's from the same source."""

    label: str
    times: float
    psnr: float
    colour: str
    printed: bool = False


def figure(
    rows: Sequence[dict[str, Any]],
    here: dict[str, Any],
    picture: tuple[int, int] | None = None,
    precision: str | None = None,
) -> Figure:
    """PSNR against time relative to IRNeXt, of the systems of Table 6 and of those measured.

    Args:
        rows: the results of `benchmarks.gopro`, as they are or from its file.
        here: the machine's record that belongs to them.
        picture: width and height of the pictures; by default the largest there is.
        precision: what was computed in; by default the first there is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = tuple(picture or max((row["picture"] for row in rows), key=lambda sides: sides[0] * sides[1]))
    rows = [row for row in rows if tuple(row["picture"]) == picture]
    precision = precision or rows[0]["precision"]
    rows = [row for row in rows if row["precision"] == precision]
    points = [*printed_points(), *measured_points(rows)]

    drawn = Figure(figsize=(8.6, 5.2), dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    draw_axes(axes, points)
    draw_points(axes, points)
    draw_titles(axes, here, picture, precision)
    canvas.draw()  # from here on it is known where everything lies
    place_labels(axes, points)
    return drawn


def printed_points() -> Iterator[Point]:
    """The systems of Table 6."""
    for name, row in paper.GOPRO.items():
        yield Point(name, row.seconds / paper.GOPRO["IRNeXt"].seconds, row.psnr, PRINTED, printed=True)


def measured_points(rows: Sequence[dict[str, Any]]) -> Iterator[Point]:
    """The systems that were timed, ours too, and have a published PSNR."""
    for row in rows:
        if row["times_ours"] is not None and row["psnr"] is not None:
            known = VARIANT if row["system"] in VARIANTS else MEASURED
            colour = BEST if row["system"] == OURS else known
            yield Point(row["title"], row["times_ours"], row["psnr"], colour)


def draw_axes(axes: Axes, points: Sequence[Point]) -> None:
    """Axes that hold all points with room for labels: time by its logarithm."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    times = [point.times for point in points]
    psnrs = [point.psnr for point in points]
    axes.set_xlim(min(times) / 1.6, max(times) * 2.0)
    axes.set_ylim(min(psnrs) - 0.35, max(psnrs) + 0.45)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{BY}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time of a picture, relative to IRNeXt's (logarithmic)", color=INK)
    axes.set_ylabel("PSNR on GoPro, dB", color=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def draw_points(axes: Axes, points: Sequence[Point]) -> None:
    """Rings for what is printed and dots for what was measured."""
    for point in points:
        size, face = (RING, "none") if point.printed else (DOT, point.colour)
        axes.plot(
            point.times,
            point.psnr,
            "o",
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=point.colour,
            markeredgewidth=1.4,
            linestyle="none",
        )


def draw_titles(axes: Axes, here: dict[str, Any], picture: tuple[int, int], precision: str) -> None:
    """What is compared, what it was measured on, and what the marks mean."""
    from matplotlib.lines import Line2D

    axes.set_title(
        "Motion deblurring: PSNR against time", loc="left", fontsize=12, fontweight="bold", color=INK, pad=22
    )
    on = here["gpu"]["name"] if "gpu" in here else f"{here['processor']} (threads: {here['threads']})"
    what = f"measured on {on}, {picture[0]} {BY} {picture[1]}, {precision}"
    axes.text(0, 1.025, what, transform=axes.transAxes, fontsize=9.5, color=INK)
    seconds = paper.GOPRO["IRNeXt"].seconds
    ring = {"marker": "o", "linestyle": "none", "markersize": RING, "markerfacecolor": "none"}
    dot = {"marker": "o", "linestyle": "none", "markersize": DOT}
    marks = [
        Line2D([], [], color=PRINTED, label=f"paper, Table 6: V100, 1{BY} = {seconds} s", **ring),
        Line2D([], [], color=BEST, label=f"measured: irnext, 1{BY}", **dot),
        Line2D([], [], color=VARIANT, label="measured: IRNeXt as published", **dot),
        Line2D([], [], color=MEASURED, label="measured: other networks", **dot),
    ]
    style = {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "handletextpad": 0.2, "columnspacing": 1.4}
    axes.figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), **style)


# ---- labels that overlap nothing -------------------------------------------------------------------


def place_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Write each point's name beside it, where it overlaps no mark and no other name.

    All directions are tried, ever farther away; where nothing is free, a name stays beside its point.
    """
    from matplotlib.text import Text

    renderer = axes.figure.canvas.get_renderer()
    limits = axes.get_window_extent(renderer).extents
    taken = [marker_box(axes, point) for point in points]
    for point in sorted(points, key=lambda point: point.printed):
        label = write_label(axes, point)
        places = [(direction, distance) for distance in DISTANCES for direction in DIRECTIONS]
        for place in [*places, places[0]]:
            move(label, *place)
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer).extents  # an annotation's holds its line, too
            if contains(limits, box) and not any(overlap(box, other) for other in taken):
                break
        taken.append(box)


def write_label(axes: Axes, point: Point) -> Annotation:
    """The name of a point, on it; a line leads there once it is moved far enough."""
    return axes.annotate(
        point.label,
        (point.times, point.psnr),
        (0, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=point.colour,
        style="italic" if point.printed else "normal",
        arrowprops={"arrowstyle": "-", "color": point.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
    )


def move(label: Annotation, direction: tuple[int, int], distance: int) -> None:
    """Put a label so far from its point that its nearest edge lies in that direction."""
    x, y = direction
    label.set_position((x * distance, y * distance))
    label.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[x])
    label.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[y])
    label.arrow_patch.set_visible(distance >= FAR)


def marker_box(axes: Axes, point: Point) -> Box:
    """Where a point's mark lies, in pixels."""
    x, y = axes.transData.transform((point.times, point.psnr))
    radius = (RING if point.printed else DOT) / 2 * axes.figure.dpi / 72 + 2
    return x - radius, y - radius, x + radius, y + radius


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share a point."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def contains(outer: Box, inner: Box) -> bool:
    """Whether a box lies in another one."""
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
