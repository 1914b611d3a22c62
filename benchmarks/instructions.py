"""Instructions that the CPU kernels take, as times drift: `python -m benchmarks.instructions --help`.

Valgrind's callgrind counts one call of each kernel, with fixed inputs and one thread, after a call whose
results were compared with plain loops in double (benchmarks/instructions.cpp). The kernels are the very
objects of the build, so that a count changes with the sources and the compiler only. Valgrind knows no
AVX-512: the kernels counted are those for AVX2 and for any machine. Counts say nothing of caches and of
how many instructions run at a time: they show that a change did more or less work than it was meant to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import harness
from .compile_report import build_settings

ROOT = Path(__file__).resolve().parent.parent
DRIVER = "benchmarks/instructions.cpp"
EXECUTABLE = "build/instructions"
KERNELS = (
    *("spatial_mean", "local_mean", "local_mean_backward", "dynamic_conv2d", "dynamic_conv2d_backward"),
    *("local_attention", "local_attention_backward"),
    *("local_attention_window", "local_attention_window_backward"),
    *("pool_pyramid", "pool_pyramid_backward", "merge_pyramid", "merge_pyramid_backward"),
    *("winograd", "winograd_weight_gradient"),
)


class CannotCount(Exception):
    """Nothing can be counted here; the message says why and what would help."""


@dataclass(frozen=True)
class Options:
    """Count the instructions of the CPU kernels by valgrind's callgrind."""

    kernels: tuple[str, ...] = KERNELS
    """what to count"""
    instruction_sets: tuple[str, ...] = ("avx2", "baseline")
    """the kernels' versions; those that this machine lacks are left out"""
    json: bool = False
    """write the counts to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.kernels if name not in KERNELS]:
            raise ValueError(f"there is no kernel {unknown[0]!r}: choose from {', '.join(KERNELS)}")
        if not (self.kernels and self.instruction_sets):
            raise ValueError("name at least one kernel and one instruction set")


@dataclass(frozen=True)
class Count:
    """What was found about one kernel in one form; no count is given where `wrong` says why.

    Attributes:
        shape: of the picture that the kernel reads or writes in full.
        instructions: of one call.
        per_element: instructions for each element of the picture.
        error: the largest difference over the largest result, against double.
    """

    kernel: str
    layout: str
    dtype: str
    instruction_set: str
    shape: tuple[int, ...]
    instructions: int | None
    per_element: float | None
    error: float | None
    wrong: str | None


# ---- building ------------------------------------------------------------------------------------


def find_tool(name: str) -> str:
    """The path of a program; CannotCount where it is not installed."""
    if (path := shutil.which(name)) is None:
        raise CannotCount(f"there is no {name}: install {Path(name).name} to count instructions")
    return path


def version_of(tool: str) -> str:
    """The first line of what a tool says about its version."""
    return subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]


def build_compiler() -> list[str]:
    """The C++ compiler and its flags, as setup.py gets them from setuptools."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    return compiler.compiler_so_cxx


def build_driver(compiler: list[str]) -> Path:
    """Compile what changed of the kernels, as the build does, and the driver; link them.

    Raises CannotCount with what the compiler said.
    """
    settings = build_settings()
    torch_include = settings.include_torch(Path(torch.__file__).parent)
    sources = (*settings.INSTRUCTION_SET_SOURCES, "csrc/cpu/dispatch.cpp")
    jobs = settings.job_count(os.environ.get("MAX_JOBS"))
    with contextlib.chdir(ROOT):  # paths and commands are those of the build
        objects = [o for o in settings.cpu_objects(compiler, torch_include) if o.source in sources]
        objects.append(settings.Object(DRIVER, "instructions", [*compiler, *settings.FLAGS, "-O3"]))
        try:
            paths, _ = settings.compile_all(objects, [], jobs)
        except settings.CompileError as error:
            raise CannotCount(str(error)) from error
        unfinished = f"{EXECUTABLE}.{os.getpid()}"
        linked = subprocess.run([compiler[0], *paths, "-o", unfinished], capture_output=True, text=True)
        if linked.returncode:
            raise CannotCount(f"{EXECUTABLE} cannot be linked: {linked.stderr}")
        os.replace(unfinished, EXECUTABLE)
    return ROOT / EXECUTABLE


# ---- counting ------------------------------------------------------------------------------------


def parse_part(text: str) -> tuple[str, int] | None:
    """A part of callgrind's output: the name that the driver gave it, and its count; None for others."""
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    total = re.search(r"^events: Ir$[\s\S]*^totals: (\d+)$", text, re.MULTILINE)
    return (name.group(1), int(total.group(1))) if name and total else None


def parse_checks(text: str) -> tuple[tuple[int, ...], dict[str, tuple[float, float]]]:
    """The shape that the driver prints first, and the error and the allowed one of every kernel by name."""
    first, *lines = text.splitlines()
    fields = [line.rsplit("\t", 2) for line in lines]
    checks = {name: (float(error), float(allowed)) for name, error, allowed in fields}
    return (1, *map(int, first.split("\t"))), checks


def count_kernels(driver: Path, valgrind: str, instruction_set: str, kernels: Sequence[str]) -> list[Count]:
    """Check and count the kernels of one instruction set.

    Raises CannotCount where valgrind, or the machine that it shows, cannot run them.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [valgrind, "-q", "--tool=callgrind", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={folder}/out", str(driver), instruction_set, *kernels]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode not in (0, 1):  # 1: a result is wrong
            last = (ran.stderr.strip() or f"valgrind stopped with code {ran.returncode}").splitlines()[-1]
            raise CannotCount(f"{instruction_set}: {last}")
        parts = [parse_part(path.read_text()) for path in Path(folder).iterdir()]
    counted = dict(part for part in parts if part)
    shape, checks = parse_checks(ran.stdout)
    found = []
    for name, (error, allowed) in checks.items():
        instructions = counted.get(name)
        found.append(
            Count(
                *name.split("\t"),
                instruction_set,
                shape,
                instructions,
                None if instructions is None else instructions / math.prod(shape),
                harness.finite(error),
                None if error <= allowed else f"wrong result: off by {error:.1e}, allowed {allowed:.1e}",
            )
        )
    return found


def show(console: Console, counts: Sequence[Count]) -> None:
    """Print the table: a line for each kernel and form, instructions for each element by instruction set."""
    sets = list(dict.fromkeys(count.instruction_set for count in counts))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for count in counts:
        form = (count.kernel, count.layout, count.dtype)
        row = rows.setdefault(form, dict(zip(("kernel", "layout", "dtype"), form, strict=True)))
        row[f"{count.instruction_set}, per element"] = harness.number(count.per_element, ".2f") or "wrong"
        row[f"{count.instruction_set}, in all"] = harness.number(count.instructions, ",d")
    columns = (
        "kernel",
        "layout",
        "dtype",
        *(f"{s}, {what}" for s in sets for what in ("per element", "in all")),
    )
    title = f"Instructions of a call, {' x '.join(map(str, counts[0].shape))}"
    console.print(harness.table_of(title, [{c: row.get(c, "") for c in columns} for row in rows.values()]))
    for count in counts:
        if count.wrong:
            form = f"{count.kernel}, {count.layout}, {count.dtype}, {count.instruction_set}"
            console.print(f"{form}: {count.wrong}", soft_wrap=True)


def count_all(options: Options, console: Console) -> tuple[list[Count], dict[str, Any]]:
    """All counts, and the tools they depend on; CannotCount where nothing could be counted."""
    valgrind = find_tool("valgrind")
    compiler = build_compiler()
    tools = {"compiler": version_of(find_tool(compiler[0])), "valgrind": version_of(valgrind)}
    console.print(", ".join(tools.values()), soft_wrap=True)
    driver = build_driver(compiler)
    counts: list[Count] = []
    reasons = []
    for name in options.instruction_sets:
        try:
            counts += count_kernels(driver, valgrind, name, options.kernels)
        except CannotCount as error:
            reasons.append(str(error))
    if not counts:
        raise CannotCount("; ".join(reasons))
    for reason in reasons:
        console.print(f"left out: {reason}", soft_wrap=True)
    return counts, tools


def run(options: Options) -> int:
    """Run the benchmark; 1 if any kernel is wrong, 2 if nothing can be counted here."""
    console = harness.make_console()
    here = harness.machine()
    try:
        counts, tools = count_all(options, console)
    except CannotCount as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(console, counts)
    if options.json:
        rows = [dataclasses.asdict(count) for count in counts]
        harness.write_results(
            "instructions", here, dataclasses.asdict(options), rows, options.results, **tools
        )
    return int(any(count.wrong for count in counts))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.instructions"))


if __name__ == "__main__":
    sys.exit(main())
