"""What changed between two sets of results, beyond their own noise: `python -m benchmarks.compare OLD NEW`.

OLD and NEW are files, or the folders of machines, in benchmarks/results. Rows are the same where all that
is no measured figure agrees, and so do the options that they were measured with. Then judged are

- correctness: a row that turned wrong, or no longer runs, is a regression;
- times, relative to the baseline of the same run, as machines differ and drift: the first variant that took
  turns with them in both and is not irnext's. A change counts if it is greater than the root of the sum of
  the squares of the spreads (interquartile ranges over medians) of the four times it is made of, and than
  5 %. A time with no baseline beside it is judged by itself, by its two spreads, where machine, threads and
  versions agree. The baseline's own times only tell how the machine drifted. A time of one round has no
  spread and is not judged;
- memory, launches and moved tensors, except the baseline's, which are exact: a change beyond 1 % counts; so
  do counts of instructions, where the compilers agree.

Other figures, such as decibels, follow from these or have no noise to hold them to. The exit code is 1 for
a regression, 2 for what cannot be compared, else 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from irnext.files import atomic_file

from . import harness, records
from .records import Record

Row = dict[str, Any]
Key = tuple[tuple[str, Any], ...]  # what tells a row from the others

LEAST_TIME = 0.05  # a smaller change of a time is never reported
LEAST_EXACT = 0.01  # nor one of an exact figure
BUSY = 0.5  # the load from which on other work disturbs times

EXACT = re.compile(r"^(?!memory_)(\w+_)?bytes$|^(launches|moved_tensors|instructions)$")
# What may be a whole number, a word or a list and still is found by measuring, or follows from the rest.
FOUND = re.compile(
    r"(^|_)(bytes|macs|params|parameters|pixels|count|calls|operations|by)$|^largest|"
    r"^(wrong|failure|missing|single_call|padded|title|paper_name|quality_source)$"
)
# Options that say what is measured and for how long; each row tells for itself.
PROCEDURE = (
    *("json", "name", "figure", "suite", "threads", "rounds", "sample_seconds", "seconds", "longest"),
    *("accuracy", "layers", "compile", "compiled", "reference", "memory"),
)
MACHINE = ("processor", "cores", "threads", "instructions", "torch", "python")
GPU = ("name", "cuda", "triton")
OURS = re.compile("^irnext(?!.*published)")  # a variant whose times are to be judged
TOOLS = ("compiler", "valgrind")  # that counts of instructions depend on


# ---- what is reported ----------------------------------------------------------------------------

Kind = Literal["regression", "improvement", "appeared", "vanished"]


@dataclass(frozen=True)
class Finding:
    """One difference.

    Attributes:
        benchmark: the file's, such as "model-14".
        row: what tells it from the others.
        figure: what changed; empty for a whole row.
        old, new: the figures, or why there is none.
        change: new over old, less 1; None where that is no number.
        noise: the change that is allowed, as a share; None where none is.
    """

    kind: Kind
    benchmark: str
    row: str
    figure: str = ""
    old: float | str | None = None
    new: float | str | None = None
    change: float | None = None
    noise: float | None = None

    def size(self) -> float:
        """How great the change is, up or down."""
        factor = 0 if self.change is None else 1 + self.change
        return abs(math.log(factor)) if factor else math.inf


@dataclass
class Report:
    """All that a comparison found.

    Attributes:
        judged: how many figures were compared.
        unjudged: how many times have no spread, belong to different machines, or are in one run only.
        warnings: what makes the comparison less certain.
    """

    findings: list[Finding] = field(default_factory=list)
    judged: int = 0
    unjudged: int = 0
    warnings: list[str] = field(default_factory=list)

    def of(self, kind: Kind) -> list[Finding]:
        """The findings of one kind, the greatest change first."""
        found = [finding for finding in self.findings if finding.kind == kind]
        return sorted(found, key=Finding.size, reverse=True)


# ---- reading -------------------------------------------------------------------------------------


def is_result(record: Record) -> bool:
    """Whether a file has what `harness.write_results` writes."""
    rows = record.data.get("results")
    written = isinstance(record.data.get("benchmark"), str) and isinstance(record.data.get("machine"), dict)
    return written and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def load(place: Path) -> dict[str, Record]:
    """The results in a file or directly in a folder, by benchmark.

    Other files of a folder are passed over. Raises ValueError where there are no results.
    """
    if place.is_file():
        record = records.read(place)
        if not is_result(record):
            raise ValueError(f"{place}: this is no result: it lacks benchmark, machine or results")
        return {record.name: record}
    if not place.is_dir():
        raise ValueError(f"{place}: there is no such file or folder")
    found: dict[str, Record] = {}
    for record in map(records.read, sorted(place.glob("*.json"))):
        if is_result(record) and (other := found.setdefault(record.name, record)) is not record:
            raise ValueError(f"{other.path} and {record.path} are both results of {record.name}: keep one")
    if not found:
        raise ValueError(f"{place}: no results are here: give a file or a machine's folder of them")
    return found


def settings(record: Record) -> dict[str, Any]:
    """The options that figures depend on and rows do not tell: lists only say which rows there are."""
    return {
        name: value
        for name, value in record.options.items()
        if name not in PROCEDURE and isinstance(value, (str, int, float))
    }


def is_identity(name: str, value: Any) -> bool:
    """Whether a field tells rows apart, and is no figure: words, whole numbers and lists of them."""
    if EXACT.search(name) or FOUND.search(name):
        return False
    if isinstance(value, list):
        return all(isinstance(item, (str, int)) for item in value)
    return isinstance(value, (str, int))


def key_of(row: Row) -> Key:
    """What tells a row from the others of its file."""
    fields = {name: value for name, value in row.items() if is_identity(name, value)}
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in fields.items()))


def every_row(record: Record) -> Iterator[Row]:
    """The results, and of the rows in other sections whether they are wrong."""
    yield from record.rows
    for section, rows in record.data.items():
        if section == "results" or not isinstance(rows, list):
            continue
        for row in rows:
            if isinstance(row, dict) and "wrong" in row:
                identity = {name: value for name, value in row.items() if is_identity(name, value)}
                yield {"section": section, "wrong": row["wrong"], **identity}


def rows_of(record: Record) -> dict[Key, Row]:
    """All rows by key; those with the same one are told apart by their order."""
    found: dict[Key, Row] = {}
    for row in every_row(record):
        key, place = key_of(row), 1
        while key in found:
            place += 1
            key = (*key_of(row), ("place", place))
        found[key] = row
    return found


def describe(key: Key) -> str:
    """A row in words; numbers and flags with their names."""

    def text(name: str, value: Any) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        return value if isinstance(value, str) else f"{name} {value}"

    first = [item for item in key if item[0] in ("variant", "system", "kernel")]
    return ", ".join(text(*item) for item in (*first, *(item for item in key if item not in first)))


# ---- judging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relative:
    """A time over that of the baseline in the same run, and the spreads of the two."""

    time: float
    spreads: tuple[float, float]


def own_name(row: Row) -> tuple[str, str] | None:
    """The field that names a variant which took turns with others, and its name; None for one alone."""
    ratios = row.get("ratios") or {}
    named = ((k, v) for k, v in row.items() if isinstance(v, str) and v in ratios)
    return next(named, None) if len(ratios) > 1 else None


def baseline_of(old: Row, new: Row) -> str | None:
    """The first variant that took turns with a row in both runs and is not irnext's, if there is such.

    Else the first of all; None where there is none but the row itself.
    """
    if not (own_name(old) and own_name(new)):
        return None
    common = [name for name in old["ratios"] if name in new["ratios"]]
    foreign = [name for name in common if not OURS.search(name)]
    return (foreign or common)[0] if len(common) > 1 else None


def relative(key: Key, row: Row, rows: dict[Key, Row], baseline: str) -> Relative | None:
    """The time of a row over its baseline's; None where either has no spread."""
    own = own_name(row)
    beside = rows.get(tuple((k, baseline if (k, v) == own else v) for k, v in key), {})
    spreads = row.get("spread"), beside.get("spread")
    return Relative(1 / row["ratios"][baseline], spreads) if all(spreads) else None


def state(row: Row) -> tuple[int, str]:
    """How bad a row is, and why: right, without a time, or wrong."""
    if row.get("wrong"):
        return 2, row["wrong"]
    return (1, row["failure"]) if row.get("failure") else (0, "right")


def noise_of(spreads: Sequence[float]) -> float:
    """The change that noise of such spreads explains."""
    return max(LEAST_TIME, math.hypot(*spreads))


@dataclass
class Comparison:
    """Two results of one benchmark; what is found goes to `report`."""

    name: str
    old: Record
    new: Record
    report: Report

    def __post_init__(self) -> None:
        self.old_rows, self.new_rows = rows_of(self.old), rows_of(self.new)
        self.same_machine = not differences(self.old, self.new)
        self.same_tools = all(self.old.data.get(tool) == self.new.data.get(tool) for tool in TOOLS)
        self.drifts: list[float] = []

    def run(self) -> bool:
        """Compare everything; whether the two have any row in common."""
        found = self.report.findings
        for kind, here, there in (
            ("vanished", self.old_rows, self.new_rows),
            ("appeared", self.new_rows, self.old_rows),
        ):
            found += [Finding(kind, self.name, describe(key)) for key in here if key not in there]
        common = [key for key in self.old_rows if key in self.new_rows]
        for key in common:
            self.judge(key, self.old_rows[key], self.new_rows[key])
        self.warn()
        return bool(common)

    def judge(self, key: Key, old: Row, new: Row) -> None:
        """Judge one row."""
        if not self.judge_state(key, old, new):
            return
        baseline = baseline_of(old, new)
        if baseline is not None and own_name(new)[1] == baseline:
            self.note_drift(old, new)
            return
        times = old.get("milliseconds"), new.get("milliseconds")
        if None not in times:
            self.judge_time(key, old, new, baseline)
        elif times != (None, None):  # one of the runs was stopped before it
            self.report.unjudged += 1
        self.judge_exact(key, old, new)

    def judge_state(self, key: Key, old: Row, new: Row) -> bool:
        """Whether the row has figures in both; if it is right and runs in one only, that is reported."""
        (before, was), (after, now) = state(old), state(new)
        if "wrong" in new:
            self.report.judged += 1
        if before != after:
            kind: Kind = "regression" if after > before else "improvement"
            self.report.findings.append(Finding(kind, self.name, describe(key), "result", was, now))
        return before == after == 0

    def note_drift(self, old: Row, new: Row) -> None:
        """Note how much longer a baseline took, if that is no noise."""
        if self.same_machine and old.get("spread") and new.get("spread"):
            factor = new["milliseconds"] / old["milliseconds"]
            if abs(math.log(factor)) > math.log1p(noise_of((old["spread"], new["spread"]))):
                self.drifts.append(factor)

    def judge_time(self, key: Key, old: Row, new: Row, baseline: str | None) -> None:
        """Judge a time relative to the baseline, or by itself where there is none."""
        if baseline is not None:
            before = relative(key, old, self.old_rows, baseline)
            after = relative(key, new, self.new_rows, baseline)
            if before and after:
                noise = noise_of((*before.spreads, *after.spreads))
                self.add(key, f"time / {baseline}", before.time, after.time, noise)
                return
        elif self.same_machine and old.get("spread") and new.get("spread"):
            noise = noise_of((old["spread"], new["spread"]))
            self.add(key, "milliseconds", old["milliseconds"], new["milliseconds"], noise)
            return
        self.report.unjudged += 1

    def judge_exact(self, key: Key, old: Row, new: Row) -> None:
        """Judge what has no noise."""
        for figure in (name for name in old if EXACT.search(name)):
            before, after = old[figure], new.get(figure)
            if before is None or after is None or (figure == "instructions" and not self.same_tools):
                continue
            self.add(key, figure, before, after, LEAST_EXACT)

    def add(self, key: Key, figure: str, old: float, new: float, noise: float) -> None:
        """Count a judged figure, the less the better, and report a change beyond the noise."""
        self.report.judged += 1
        if new > old * (1 + noise) or old > new * (1 + noise):
            kind: Kind = "regression" if new > old else "improvement"
            change = new / old - 1 if old else None
            self.report.findings.append(
                Finding(kind, self.name, describe(key), figure, old, new, change, noise)
            )

    def warn(self) -> None:
        """Note what makes the comparison less certain."""
        warnings = self.report.warnings
        timed = any(row.get("milliseconds") for row in self.new_rows.values())
        if timed and (different := differences(self.old, self.new)):
            listed = ", ".join(f"{name} {a} and {b}" for name, (a, b) in different.items())
            warnings.append(
                f"{self.name}: measured on different machines ({listed}): "
                "ratios may differ for that reason, and milliseconds are not compared"
            )
        for side, record in (("OLD", self.old), ("NEW", self.new)):
            load = record.machine.get("load")
            if timed and isinstance(load, (int, float)) and load > BUSY:
                warnings.append(f"{self.name}: other work was running when {side} began (load {load:.1f})")
        if self.drifts:
            least, most = min(self.drifts), max(self.drifts)
            took = f"{least:.2f} to {most:.2f} times as long as before"
            warnings.append(f"{self.name}: baselines took {took}: the machine drifted, ratios stand")
        if not self.same_tools:
            tools = "; ".join(
                " and ".join(str(record.data.get(tool)) for record in (self.old, self.new))
                for tool in TOOLS
                if self.old.data.get(tool) != self.new.data.get(tool)
            )
            warnings.append(f"{self.name}: instructions are not compared: {tools}")


def differences(old: Record, new: Record) -> dict[str, tuple[Any, Any]]:
    """What differs between the machines of two results, of what times depend on."""

    def facts(record: Record) -> Iterator[tuple[str, Any]]:
        yield from ((name, record.machine.get(name)) for name in MACHINE)
        gpu = record.machine["gpu"] if record.on_gpu else {}
        yield from ((f"GPU {name}", gpu.get(name)) for name in GPU)
        yield "GPU driver", (gpu.get("state") or {}).get("driver_version")

    before, after = dict(facts(old)), dict(facts(new))
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def compare(old: dict[str, Record], new: dict[str, Record]) -> Report:
    """Compare results by benchmark; two single ones whatever they are called.

    Raises ValueError where nothing can be compared.
    """
    report, compared, apart = Report(), False, []
    if len(old) == len(new) == 1:
        new = dict(zip(old, new.values(), strict=True))
    for name in old.keys() ^ new.keys():
        apart.append(f"{name}: only in {'OLD' if name in old else 'NEW'}")
    for name in sorted(old.keys() & new.keys()):
        before, after = settings(old[name]), settings(new[name])
        different = [key for key in before.keys() & after.keys() if before[key] != after[key]]
        if different:
            listed = ", ".join(f"{key} is {before[key]} and {after[key]}" for key in sorted(different))
            apart.append(f"{name}: not compared, as {listed}")
        elif Comparison(name, old[name], new[name], report).run():
            compared = True
        else:
            apart.append(f"{name}: no row is in both")
    if not compared:
        raise ValueError(f"nothing in common: {'; '.join(sorted(apart))}")
    report.warnings = [*sorted(apart), *report.warnings]
    return report


# ---- what is shown -------------------------------------------------------------------------------


def cells(finding: Finding) -> dict[str, str]:
    """A line of the table."""

    def text(value: float | str | None) -> str:
        if isinstance(value, (str, int)) or value is None:
            return "" if value is None else f"{value:,d}" if isinstance(value, int) else value
        return f"{value:.4g}"

    return {
        "": finding.kind,
        "benchmark": finding.benchmark,
        "row": finding.row,
        "figure": finding.figure,
        "old": text(finding.old),
        "new": text(finding.new),
        "change": harness.number(finding.change, "+.1%"),
        "noise": harness.number(finding.noise, ".1%"),
    }


def show(console: Console, report: Report) -> None:
    """Print the warnings, the table and the sum of it."""
    for warning in report.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False)
    kinds: tuple[Kind, ...] = ("regression", "improvement", "appeared", "vanished")
    found = {kind: report.of(kind) for kind in kinds}
    if rows := [cells(finding) for kind in kinds for finding in found[kind]]:
        console.print(harness.table_of("Changes", rows))
    regressions, improvements, appeared, vanished = map(len, found.values())
    console.print(
        f"{report.judged} figures judged: {regressions} regressions, {improvements} improvements; "
        f"{report.unjudged} times not judged; {appeared} rows appeared, {vanished} vanished",
        soft_wrap=True,
        highlight=False,
    )


def write(path: Path, old: Path, new: Path, report: Report) -> None:
    """Write the report as JSON, whole or not at all."""
    record = {"old": str(old), "new": str(new)} | dataclasses.asdict(report)
    record["regressions"] = len(report.of("regression"))
    with atomic_file(path) as file:
        file.write(json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 1 for a regression, 2 for what cannot be compared."""
    description, _, rules = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=description,
        epilog=rules,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="a file of results, or a machine's folder")
    parser.add_argument("new", type=Path, metavar="NEW", help="the same, measured later")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write what was found to this file")
    options = parser.parse_args(arguments)
    try:
        report = compare(load(options.old), load(options.new))
        if options.json:
            write(options.json, options.old, options.new, report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(harness.make_console(), report)
    return int(bool(report.of("regression")))


if __name__ == "__main__":
    sys.exit(main())
