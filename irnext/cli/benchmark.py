"""`irnext benchmark`: the benchmarks of the checkout that the package lies in."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import irnext


def show_benchmarks() -> None:
    """Measure, as `python -m benchmarks.NAME` in a checkout of the project: irnext benchmark NAME [options].

    Without NAME, list the benchmarks; each has a help of its own: irnext benchmark NAME --help.
    """
    folder = find_benchmarks()
    names = list_benchmarks(folder)
    width = max(map(len, names))
    for name in names:
        summary = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text("utf-8"))) or ""
        print(f"{name:<{width}}  {summary.partition(chr(10))[0]}")


def named_benchmark(arguments: Sequence[str]) -> Callable[[], int | None] | None:
    """The benchmark of `irnext benchmark NAME options...`, whose options are its own; None for anything else.

    Raises ValueError for an unknown name, and outside a checkout.
    """
    if arguments[:1] != ["benchmark"] or arguments[1:2] in ([], ["-h"], ["--help"]):
        return None
    _, given, *options = arguments
    folder = find_benchmarks()
    names = list_benchmarks(folder)
    name = given.replace("-", "_")
    if name not in names:
        raise ValueError(f"unknown benchmark {given!r}: choose one of {', '.join(names)}")
    sys.path.insert(0, str(folder.parent))  # before another package of that name
    return partial(importlib.import_module(f"{folder.name}.{name}").main, options)


def find_benchmarks() -> Path:
    """The folder of the benchmarks; ValueError where the package was installed without it."""
    root = Path(irnext.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "harness.py").is_file():
        raise ValueError(
            f"the benchmarks are in a checkout of the project, and irnext is in {root}: in a checkout, "
            "pip install -e ."
        )
    return root / "benchmarks"


def list_benchmarks(folder: Path) -> list[str]:
    """The modules that can be run: those with a `main`."""
    return sorted(path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text("utf-8"))
