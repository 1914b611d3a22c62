"""The files of results: found, read, and told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import provenance
from .harness import RESULTS
from .provenance import State

SHIPPED = (RESULTS,)


@dataclass(frozen=True)
class Record:
    """One file of results.

    Attributes:
        path: of the file; its folder is called after the machine.
        name: of what was run, such as "model-14".
        data: what the file says.
    """

    path: Path
    name: str
    data: dict[str, Any]

    @property
    def folder(self) -> str:
        """The machine's folder."""
        return self.path.parent.name

    @property
    def machine(self) -> dict[str, Any]:
        """What the file says of the machine."""
        machine = self.data.get("machine")
        return machine if isinstance(machine, dict) else {}

    @property
    def on_gpu(self) -> bool:
        """Whether it was measured on a GPU."""
        return isinstance(self.machine.get("gpu"), dict)

    @property
    def options(self) -> dict[str, Any]:
        """What was asked for."""
        options = self.data.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The results that are rows of a table."""
        rows = self.data.get("results")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    @property
    def command(self) -> str | None:
        """What to type for the same benchmark, where that is known."""
        return provenance.command(self.name, self.options)

    def state(self, root: Path = provenance.ROOT) -> State:
        """Whether it is of the code in the repository at `root`."""
        code = provenance.code_of(self.name, self.on_gpu)
        return provenance.state(self.machine.get("commit"), code, root)


def read(path: Path) -> Record:
    """A file of results; ValueError for what is none."""
    try:
        data = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: this is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: this is no file of results: it should hold a JSON object with results")
    name = data.get("benchmark")
    return Record(path, name if isinstance(name, str) else path.stem, data)


def find(places: Sequence[Path] = SHIPPED) -> list[Record]:
    """All results in some places: files, folders of files, and folders of such folders.

    Raises ValueError where a place holds none, and where two files are of one name and machine.
    """
    found: dict[Path, Record] = {}
    for place in places:
        files = [place] if place.is_file() else sorted([*place.glob("*.json"), *place.glob("*/*.json")])
        if not files:
            raise ValueError(f"{place}: no results are here; python -m benchmarks.lam --json writes some")
        for path in files:
            found.setdefault(path.resolve(), read(path))
    known: dict[tuple[str, str], Path] = {}
    for record in found.values():
        other = known.setdefault((record.folder, record.path.name), record.path)
        if other != record.path:
            raise ValueError(f"{other} and {record.path} are of one machine: give one of them at a time")
    return list(found.values())
