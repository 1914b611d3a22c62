"""What is to be restored, which process does it, and what became of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .processes import Processes, balanced

# What one input may fail by without stopping the others.
FAILURES = (ValueError, OSError, FloatingPointError, MemoryError)


class Job(NamedTuple):
    """A file to be restored, and where its result goes."""

    source: Path
    target: Path


@dataclass
class Report:
    """What became of the inputs.

    Attributes:
        written: the new files.
        failed: per failed input one line that says why.
        skipped: the results that were there already, where work is resumed.
    """

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    skipped: list[Path] = field(default_factory=list)


def check_collisions(jobs: list[Job], results: Callable[[Job], tuple[Path, ...]]) -> None:
    """Raise ValueError where two results share a name or a result would overwrite an input."""
    originals = {job.source.resolve() for job in jobs}
    makers: dict[Path, Path] = {}
    for job in jobs:
        for result in results(job):
            if result.resolve() in originals:
                raise ValueError(f"{result}: the result would overwrite an input; name another output")
            key = Path(os.path.normcase(result))
            if key in makers:
                raise ValueError(f"{makers[key]} and {job.source} would both be written to {result}")
            makers[key] = job.source


def without_finished(
    jobs: list[Job], results: Callable[[Job], tuple[Path, ...]]
) -> tuple[list[Path], list[Job]]:
    """The targets of those whose results are all there, and the jobs that are left."""
    finished = {job for job in jobs if all(path.exists() for path in results(job))}
    return [job.target for job in jobs if job in finished], [job for job in jobs if job not in finished]


def dealt(jobs: list[Job] | None, processes: Processes, weight: Callable[[Path], float]) -> list[Job]:
    """This process's part of the jobs, which process 0 gives; `weight` is a source's share of the work."""
    shares = None
    if jobs is not None:
        weights = [weight(job.source) if processes.count > 1 else 1 for job in jobs]
        shares = [
            [(str(jobs[index].source), str(jobs[index].target)) for index in indices]
            for indices in balanced(weights, processes.count)
        ]
    return [Job(Path(source), Path(target)) for source, target in processes.scatter(shares)]


def joined(report: Report, processes: Processes) -> Report:
    """The report of all processes, in the order of the names, in process 0; in the others their own."""
    if processes.count == 1:
        return report
    failures = {str(path): reason for path, reason in report.failed.items()}
    parts = processes.gather([list(map(str, report.written)), failures])
    if parts is None:
        return report
    written = sorted(Path(path) for paths, _ in parts for path in paths)
    failed = sorted((Path(path), reason) for _, failures in parts for path, reason in failures.items())
    return Report(written, dict(failed), report.skipped)


def reason(error: Exception, source: Path | str) -> str:
    """One line that says why a picture failed, and which: its file or its name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or source}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if str(source) in text else f"{source}: {text}"
