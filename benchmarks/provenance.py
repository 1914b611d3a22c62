"""Where a result comes from: the command that gives it again, and whether the code it measures has changed.

A benchmark's code is what its figures depend on, declared in `BENCHMARKS`: of the kernels, those of the
device that it ran on. A result is older than the code where a file of that code differs, now, from the
commit that the result names.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 6  # changed files that are named
NO_RESULTS = (":/", ":(top,exclude)benchmarks/results")  # everything else in a repository, as paths for git

OPERATORS = {
    "cpu": ("csrc/cpu", "csrc/binding", "csrc/include", ":(exclude)csrc/include/irnext/cuda", "irnext/ops"),
    "cuda": ("csrc/cuda", "csrc/binding", "csrc/include", "kernels", "irnext/ops"),
}
ATTENTION = ("irnext/blocks.py", "benchmarks/published.py")
NETWORK = (*ATTENTION, "irnext/model.py")
OPTIMIZED = (*NETWORK, "irnext/optimization.py", "irnext/fastest.py", "benchmarks/networks.py")
TRAINING = (*NETWORK, "irnext/losses.py", "benchmarks/training_step.py")
SYSTEMS = (*OPTIMIZED, "irnext/models", "benchmarks/systems.py")


@dataclass(frozen=True)
class Benchmark:
    """What is known of a module of benchmarks.

    Attributes:
        code: what it measures, beside its own file, as paths in the repository.
        operators: whether it measures the kernels too.
        options: the dataclass of its command line.
        subcommand: before the options.
        command: what to type where there are no such options.
    """

    code: tuple[str, ...]
    operators: bool = True
    options: str = "Options"
    subcommand: str = ""
    command: str = ""


BENCHMARKS = {
    "lam": Benchmark(ATTENTION),
    "model": Benchmark(OPTIMIZED),
    "gopro": Benchmark((*SYSTEMS, "irnext/complexity.py")),
    "growth": Benchmark((*SYSTEMS, "irnext/bands.py", "benchmarks/footprint.py", "benchmarks/laws.py")),
    "training_step": Benchmark(TRAINING),
    "relatives": Benchmark((*NETWORK, "irnext/relatives.py", "irnext/recognition.py", "tests/relatives.py")),
    "loss": Benchmark(TRAINING),
    "loader": Benchmark((*TRAINING, "irnext/data")),
    "pretrained": Benchmark(
        (*OPTIMIZED[:1], "irnext/model.py", "irnext/weights", "irnext/metrics", "irnext/data/degradations"),
        operators=False,
        options="Measure",
        subcommand="measure",
    ),
    "instructions": Benchmark(("benchmarks/instructions.cpp",)),
    "gpu": Benchmark(("csrc", "kernels", "irnext", "tests"), operators=False, command="make gpu"),
    "ablations": Benchmark((*TRAINING, "irnext/training", "irnext/data/degradations"), operators=False),
}


def module_of(name: str) -> str | None:
    """The module that wrote the result of that name: "model" wrote "model-14". None if there is no such."""
    module = name.partition("-")[0]
    return module if module in BENCHMARKS else None


# ---- the command ---------------------------------------------------------------------------------


def command(name: str, options: dict[str, Any]) -> str | None:
    """What to type for the same benchmark; None where its module, or an option, is not known here.

    Args:
        name: of the result.
        options: as its file has them, or as the dataclass has; those that are the defaults are left out.
    """
    module = module_of(name)
    if module is None:
        return None
    known = BENCHMARKS[module]
    if known.command:
        return known.command
    try:
        fields = dataclasses.fields(
            getattr(importlib.import_module(f"{__package__}.{module}"), known.options)
        )
    except ImportError:
        return None
    if set(options) - {field.name for field in fields}:
        return None
    words = ["python", "-m", f"{__package__}.{module}", *filter(None, [known.subcommand])]
    for field in fields:
        if field.name == "json":
            words.append("--json")
        elif field.name in options and options[field.name] != _as_json(field.default):
            words += _flag(field.name, options[field.name])
    return shlex.join(words)


def _as_json(value: Any) -> Any:
    """A value as it is read again from a file."""
    return json.loads(json.dumps(value, default=str))


def _flag(name: str, value: Any) -> list[str]:
    """An option and its values as words of a command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *_words(value)]


def _words(value: Any) -> list[str]:
    return [word for one in value for word in _words(one)] if isinstance(value, list) else [str(value)]


# ---- the state -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Whether a result is of the code as it is: yes, no, or None for not known; in a word, and why."""

    current: bool | None
    word: str
    why: str


def code_of(name: str, on_gpu: bool) -> tuple[str, ...] | None:
    """What the result of that name measures, as paths for git; None where that is not declared."""
    module = module_of(name)
    if module is None:
        return None
    known = BENCHMARKS[module]
    kernels = OPERATORS["cuda" if on_gpu else "cpu"] if known.operators else ()
    return (*kernels, *known.code, f"benchmarks/{module}.py")


def state(commit: str | None, code: Sequence[str] | None, root: Path = ROOT) -> State:
    """Whether files have changed since a result was measured.

    Args:
        commit: as `harness.machine` records it, with "+" where the working tree differed from it.
        code: `code_of` the result.
        root: of the repository; its working tree is what the commit is compared with.
    """
    if code is None:
        return State(None, "age unknown", "It is not declared which code this measures.")
    if not commit:
        return State(None, "age unknown", "The result names no commit.")
    begun = commit.removesuffix("+")
    try:
        _git(root, "cat-file", "-e", f"{begun}^{{commit}}")
    except FileNotFoundError:
        return State(None, "age unknown", "There is no git here to compare the code with.")
    except subprocess.CalledProcessError:
        return State(None, "age unknown", f"Commit {begun} is not in a git repository here.")
    changed = _git(root, "diff", "--name-only", "--no-renames", begun, "--", *code)
    changed += _git(root, "ls-files", "--others", "--exclude-standard", "--", *code)
    if changed:
        commits = len(_git(root, "rev-list", f"{begun}..HEAD", "--", *code))
        why = _changes(begun, commits, sorted(changed))
        if commit == begun:
            return State(False, "older than the code", why)
        some = "It was measured with uncommitted changes, and these may have been among them."
        return State(False, "may be older than the code", f"{why} {some}")
    if commit != begun:
        why = f"The code is that of {begun}, but there were uncommitted changes when this was measured."
        return State(None, "uncommitted changes", why)
    return State(True, "current", f"No file that it measures has changed since {begun}.")


def _changes(begun: str, commits: int, files: list[str]) -> str:
    """What changed, in a sentence."""
    number = f"{commits} commit{'s' * (commits != 1)}" if commits else "uncommitted work"
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    what = f"{len(files)} file{'s' * (len(files) != 1)}"
    return f"Since {begun}, {number} changed {what} that this measures: {', '.join(files[:SHOWN])}{more}."


def current_commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out, with "+" where files differ from it; None outside a repository.

    Results do not count: otherwise all that are written one after another, but the first, would differ.
    """
    try:
        (commit,) = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + "+" * bool(_git(root, "status", "--porcelain", "--", *NO_RESULTS))
    except (OSError, subprocess.CalledProcessError):
        return None


def last_commit(path: Path, root: Path = ROOT) -> tuple[str, str] | None:
    """The commit that last changed a file, with "+" if it has changed since, and its date; None if none did.

    For results that name no commit themselves.
    """
    try:
        found = _git(root, "log", "-1", "--format=%h %cI", "--abbrev=12", "--", str(path))
        changed = _git(root, "status", "--porcelain", "--", str(path))
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    if not found:
        return None
    commit, date = found[0].split()
    return commit + "+" * bool(changed), date


def _git(root: Path, *arguments: str) -> list[str]:
    """The lines that git prints, run in a folder."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
