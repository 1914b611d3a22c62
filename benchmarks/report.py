"""A report of all results: `python -m benchmarks.report [RESULTS...] -o FOLDER`.

Writes FOLDER/report.html, one page that needs no other file and no network, and FOLDER/report.md with its
plots in FOLDER/figures, from the files of results in `benchmarks/results` or in the places given. Every
section says on which machine and by which command its figures were measured, at which commit and when;
one is marked whose code has changed since.

`--check FILE` compares the figures in a document with the results, between markers, and `--write FILE`
writes them (`benchmarks.document`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irnext.files import atomic_file, output_folder

from . import document, figures, page, provenance, records
from . import report_sections as sections
from .page import Facts, Section, Table, Text
from .provenance import State
from .records import Record

FIGURES = "figures"


def build(found: Sequence[Record], root: Path = provenance.ROOT) -> Section:
    """The report of some results, with the code in the repository at `root`: a section for every machine."""
    compiled = [record for record in found if sections.is_compiled(record)]
    measured = [record for record in found if not sections.is_compiled(record)]
    machines: dict[str, list[Record]] = {}
    for record in sorted(measured, key=order):
        machines.setdefault(record.folder, []).append(record)
    overview, parts = [], []
    for folder in sorted(machines, key=lambda name: (not _has_gpu(machines[name]), name)):
        inner = []
        for record in machines[folder]:
            part, state = section(record, root)
            inner.append(part)
            here = record.machine
            commit, date = here.get("commit") or "not known", str(here.get("date") or "not known")[:10]
            overview.append((part.title, folder, commit, date, state.word))
        parts.append(Section(title_of(machines[folder]), sections=inner))
    if compiled:
        parts.append(sections.compiled(compiled, root))
    summary = Table(("result", "machine", "commit", "date", "code"), overview)
    return Section("irnext: what was measured", [Text(INTRODUCTION), *[summary] * bool(overview)], parts)


INTRODUCTION = (
    "Every section says on which machine, by which command and at which commit its figures were measured. A "
    "result is older than the code where a file that it measures has changed since that commit; one with "
    "+ had changes that were not committed."
)


def _has_gpu(found: Sequence[Record]) -> bool:
    return any(record.on_gpu for record in found)


def title_of(found: Sequence[Record]) -> str:
    """What a machine is called: by its GPU, or else its processor, or else its folder."""
    for record in found:
        if record.on_gpu:
            return str(record.machine["gpu"].get("name") or record.folder)
    for record in found:
        if record.machine.get("processor"):
            return f"{record.machine['processor']}, {record.machine.get('cores')} cores"
    return found[0].folder


# ---- a section -----------------------------------------------------------------------------------


def module(record: Record) -> str:
    """The module that wrote a file, or else its name."""
    return provenance.module_of(record.name) or record.name


def order(record: Record) -> tuple:
    """Where a record stands among those of a machine."""
    names = list(sections.SECTIONS)
    name = module(record)
    return (names.index(name) if name in names else len(names), record.name)


def section(record: Record, root: Path = provenance.ROOT) -> tuple[Section, State]:
    """What a report says of a file of results, and whether it is of the code at `root`."""
    title, describe = sections.SECTIONS.get(module(record), (record.name, sections.plain))
    try:
        blocks = describe(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        note = f"The file is not as this version writes it ({type(error).__name__}: {error}): shown as it is."
        blocks = [Text(note, warning=True), *sections.plain(record)]
    state = record.state(root)
    if record.name != module(record):
        title = f"{title} ({record.name})"
    blocks = [*blocks, facts(record, state)]
    return Section(title, blocks, mark=state.word, good=state.current), state


def facts(record: Record, state: State) -> Facts:
    """Machine, threads, command, commit and date of a file of results."""
    here = record.machine
    load = here.get("load")
    found = {
        "machine": machine(here),
        "threads": _fraction(here.get("threads"), here.get("cores")),
        "software": software(here),
        "load at the start": f"{load:.2f}" if isinstance(load, float) else "",
        "command": record.command,
        "commit": here.get("commit"),
        "date": here.get("date"),
        "file": f"{record.folder}/{record.path.name}",
        "code": state.why,
    }
    shown = {name: str(value) if value else "not known" for name, value in found.items()}
    return Facts(shown, tuple(name for name in ("command", "commit", "file") if found[name]))


def machine(here: Mapping[str, Any]) -> str:
    """What computed: the GPU, if any, and the processor."""
    parts = []
    if isinstance(here.get("gpu"), dict):
        gpu_state = here["gpu"].get("state") or {}
        driver = gpu_state.get("driver_version")
        parts.append(f"{here['gpu'].get('name')}" + (f", driver {driver}" if driver else ""))
    if here.get("device"):
        parts.append(str(here["device"]))
    if here.get("processor"):
        instructions = f" ({here['instructions']})" if here.get("instructions") else ""
        parts.append(f"{here['processor']}{instructions}, {here.get('cores')} cores")
    return "; ".join(parts)


def software(here: Mapping[str, Any]) -> str:
    """Versions."""
    versions = {name: here.get(name) for name in ("torch", "irnext", "python", "triton", "nvcc")}
    if isinstance(here.get("gpu"), dict):
        versions |= {"CUDA": here["gpu"].get("cuda"), "triton": here["gpu"].get("triton")}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _fraction(part: Any, whole: Any) -> str:
    return f"{part} (of {whole} cores)" if part and whole else str(part or "")


# ---- files and the command line --------------------------------------------------------------------


def write(report: Section, folder: Path) -> list[Path]:
    """Write the page, the Markdown and its plots into a folder, and return the paths.

    Each file is whole or not written; the folder is made.
    """
    files = {f"{FIGURES}/{plot.name}.svg": figures.svg_file(plot.svg) for plot in report.plots()}
    files |= {"report.html": page.html(report), "report.md": page.markdown(report, FIGURES)}
    with output_folder(folder), output_folder(folder / FIGURES):
        for name, text in files.items():
            with atomic_file(folder / name) as file:
                file.write(text.encode())
    return [folder / name for name in files]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Report what was measured, as HTML and Markdown."
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        default=records.SHIPPED,
        metavar="RESULTS",
        help="files or folders of results; benchmarks/results by default",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write report.html and report.md")
    action.add_argument("--check", type=Path, metavar="FILE", help="compare the figures in a document")
    action.add_argument("--write", type=Path, metavar="FILE", help="write the figures into a document")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; 1 if figures of a document differ from the results."""
    found = records.find(options.results)
    if options.output:
        report = build(found)
        for path in write(report, options.output):
            print(path)
        return 0
    if options.write:
        changed = document.write(options.write, found)
        print(f"{options.write}: {', '.join(changed) or 'nothing'} changed")
        return 0
    differences = document.check(options.check, found)
    print("\n".join(differences) or f"{options.check}: all figures are those of the results")
    return int(bool(differences))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2, with one line, for what cannot be done."""
    try:
        return run(parse(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
