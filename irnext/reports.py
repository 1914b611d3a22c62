"""Evaluations as CSV (a line per picture), JSON (everything), and Markdown beside the paper's numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence

from .evaluation import Evaluation
from .files import atomic_file
from .metrics import Metric
from .model import IRNeXt
from .paper import RESULTS

DECIMALS = {"psnr": 2}  # the others have 4
UNITS = {"psnr": " dB"}
SETTINGS = ("blocks", "width", "low_pass")  # that a table names; JSON has all


def write_csv(evaluations: Sequence[Evaluation], path: str | os.PathLike) -> None:
    """A line per picture: set, name, size, seconds and scores; failed ones with the reason. Atomic.

    Scores are written with all their digits; a column is named "protocol metric", with " before" for
    the degraded input.
    """
    metrics = list(dict.fromkeys(metric for found in evaluations for metric in found.metrics))
    scored = any(row.before for found in evaluations for row in found.rows)
    columns = {f"{metric.protocol} {metric.name}": (metric, False) for metric in metrics}
    if scored:
        columns |= {f"{name} before": (metric, True) for name, (metric, _) in columns.items()}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["set", "name", "height", "width", "seconds", *columns, "error"])
    for found in evaluations:
        for row in found.rows:
            values = [
                (row.before if before else row.scores).get(metric, "") for metric, before in columns.values()
            ]
            size = [row.height, row.width, f"{row.seconds:.4f}"]
            table.writerow([found.test_set, row.name, *size, *values, ""])
        for name, reason in found.failed.items():
            table.writerow([found.test_set, name, *[""] * (3 + len(columns)), reason])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def write_json(evaluations: Sequence[Evaluation], path: str | os.PathLike) -> None:
    """Everything known of every evaluation; values that are not finite are null. Atomic."""
    text = json.dumps([_as_dict(found) for found in evaluations], indent=2, allow_nan=False)
    with atomic_file(path) as file:
        file.write(text.encode() + b"\n")


def _as_dict(found: Evaluation) -> dict:
    return {
        "test_set": found.test_set,
        **found.about,
        "means": [_mean_as_dict(found, metric, subset) for subset, metric in _cells(found)],
        "rows": [
            {
                "name": row.name,
                "size": [row.height, row.width],
                "seconds": row.seconds,
                "scores": _scores_as_list(row.scores),
                "before": _scores_as_list(row.before),
            }
            for row in found.rows
        ],
        "failed": found.failed,
    }


def _mean_as_dict(found: Evaluation, metric: Metric, subset: str | None) -> dict:
    mean = found.mean(metric, subset)
    return {
        "subset": subset,
        **metric._asdict(),
        "mean": _finite(mean.value),
        "before": _finite(found.mean(metric, subset, before=True).value),
        "paper": _paper(found, metric, subset)[0],
        "pictures": mean.count,
    }


def _scores_as_list(scores: dict[Metric, float]) -> list[dict]:
    return [{**metric._asdict(), "value": _finite(value)} for metric, value in scores.items()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def markdown(found: Evaluation) -> str:
    """A section: a table of the means beside the paper's row, and what it was computed from and with."""
    scored = any(row.before for row in found.rows)
    headings = [
        "set",
        "metric",
        "protocol",
        *(["degraded"] if scored else []),
        "restored",
        "paper",
        "pictures",
    ]
    lines = [f"### {found.test_set}", "", _line(headings), _line(["---"] * len(headings))]
    lines += [_line(_means_as_cells(found, metric, subset, scored)) for subset, metric in _cells(found)]
    return "\n".join([*lines, "", *_notes(found)])


def _cells(found: Evaluation) -> list[tuple[str | None, Metric]]:
    """What is averaged: every metric over the set, then over each subset."""
    return [(subset, metric) for subset in (None, *found.subsets) for metric in found.metrics]


def _means_as_cells(found: Evaluation, metric: Metric, subset: str | None, scored: bool) -> list[str]:
    mean = found.mean(metric, subset)
    value, table = _paper(found, metric, subset)
    decimals = DECIMALS.get(metric.name, 3)
    pictures = str(mean.count)
    if mean.count != len(found.of_subset(subset)):
        pictures += f" (of {len(found.of_subset(subset))}, the others are infinite)"
    return [
        found.test_set if subset is None else f"{found.test_set} {subset}",
        metric.name.upper(),
        metric.protocol,
        *([_number(metric, found.mean(metric, subset, before=True).value)] if scored else []),
        _number(metric, mean.value),
        "-" if value is None else f"{value:.{decimals}f}{UNITS.get(metric.name, '')} ({table})",
        pictures,
    ]


def _paper(found: Evaluation, metric: Metric, subset: str | None) -> tuple[float | None, str]:
    result = RESULTS.get(found.test_set if subset is None else f"{found.test_set}-{subset}")
    if found.about["model"]["architecture"] != IRNeXt.__name__:  # whose results these are
        result = None
    return (None, "") if result is None else (result.scores.get(metric), result.table)


def _number(metric: Metric, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.{DECIMALS.get(metric.name, 4)}f}{UNITS.get(metric.name, '')}"


def _notes(found: Evaluation) -> list[str]:
    about = found.about
    weights = about["weights"]
    source = f"{weights['file']} (sha256 {weights['sha256']})" if weights else "not from a file"
    environment = ", ".join(f"{key} {value}" for key, value in about["environment"].items())
    tile = f"tiles of {about['tile']}, not exact" if about["tile"] else "whole"
    settings = ", ".join(f"{key} {about['model'][key]}" for key in SETTINGS if key in about["model"])
    data = ", ".join(f"{key} {value}" for key, value in about["data"].items())
    notes = [
        f"- model: {', '.join(filter(None, (about['model']['architecture'], settings)))}; weights: {source}",
        f"- pictures: {data or 'given'}; restored {tile}; local window: {about['window']}",
        f"- computed with: {environment}",
    ]
    if about["pictures"] < about["of"]:
        notes.append(f"- limited to the first {about['pictures']} of {about['of']} pictures")
    if found.failed:
        notes.append(f"- failed: {len(found.failed)} of {about['pictures']} pictures are not in the means")
    return notes


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
