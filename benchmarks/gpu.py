"""`make gpu`: build, test and measure on this machine's NVIDIA GPU, in under nine minutes, offline.

`--dry` (`make gpu-dry`) rehearses every step that needs no device: the CUDA sources run on the CPU in
place of the CUDA backend, and Triton's interpreter in place of Triton. Needs PyTorch alone until the
first step has built irnext. Settings of the GPU are read, never changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .provenance import NO_RESULTS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
SITE = ROOT / "build/site"  # the package as an installation has it
LOGS = ROOT / "build/gpu"
BUDGET, DRY_BUDGET = 520.0, 230.0  # seconds
SMI_FIELDS = (
    *("name", "driver_version", "memory.total", "memory.free", "power.limit", "temperature.gpu"),
    *("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "mig.mode.current"),
)
# What the interpreter, which takes seconds for a kernel, rehearses; tests/test_triton.py has the rest.
INTERPRETED = "triton and exported or agree and global"
# What is measured, the most important first; `python -m benchmarks.lam --suite full` has more planes.
MEASURED = {
    "lam": {
        "device": "cuda",
        "backends": ("cuda", "triton"),
        "dtypes": ("float32", "bfloat16"),
        "rounds": 5,
        "shapes": ((1, 32, 128, 128), (1, 128, 32, 32), (8, 64, 64, 64), (1, 32, 736, 1280)),
        "forward_shapes": ((1, 32, 360, 640),),
    },
    "model": {
        "device": "cuda",
        "blocks": (14,),
        "size": ("1280x720", "256x256"),
        "dtypes": ("bfloat16", "float16", "tf32", "float32"),
        "compiled": False,
    },
    "gopro": {
        "device": "cuda",
        "size": ("1280x720", "256x256"),
        "dtypes": ("bfloat16", "float32"),
        "rounds": 10,
        "longest": 2.0,
    },
    "training_step": {
        "device": "cuda",
        "blocks": 14,
        "batch": 8,
        "dtype": "bfloat16",
        "reference": False,
        "deterministic": True,
    },
}
# By max-autotune a network of 14 blocks takes minutes for each size: last, for what time is left.
COMPILED = {
    "model": MEASURED["model"]
    | {"dtypes": ("bfloat16",), "compiled": True, "accuracy": False, "name": "model-compiled"},
    "training_step": MEASURED["training_step"]
    | {"compiled": True, "deterministic": False, "name": "training_step-compiled"},
    "gopro": MEASURED["gopro"]
    | {"systems": (), "dtypes": ("bfloat16",), "compiled": True, "name": "gopro-compiled"},
}
# The tests in processes of about the same length: Triton compiles each kernel when it is first used.
SHARDS = {
    "cuda": "not triton",
    "triton float32": "triton and float32",
    "triton float64": "triton and float64",
    "triton bfloat16": "triton and bfloat16",
    "triton float16": "triton and float16 and not bfloat16",
    "triton": "triton and not float",
}
TINY = {
    "lam": {
        "backends": ("auto", "cuda-host"),
        "rounds": 1,
        "sample_seconds": 0.001,
        "shapes": ((1, 8, 16, 16),),
        "forward_shapes": ((1, 8, 16, 24),),
    },
    "model": {
        "blocks": (1,),
        "width": 8,
        "size": ("100x64",),
        "dtypes": ("bfloat16",),
        "rounds": 1,
        "accuracy": False,
    },
    "gopro": {
        "size": ("64x64",),
        "systems": ("mimo-unet",),
        "rounds": 1,
    },
    "training_step": {
        "blocks": 1,
        "width": 8,
        "size": 64,
        "dtype": "bfloat16",
        "rounds": 1,
        "compiled": True,
        "deterministic": True,
        "memory": False,
    },
}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        limit: seconds after which it is stopped.
        skip: why it cannot run here; None if it can.
        refused: what a tool prints where this machine does not let it work: then the step is skipped.
        together: neighbouring steps of one such name run at the same time.
        may_be_cut: whether it is no failure to be stopped, as everything found until then is written.
    """

    name: str
    command: Sequence[str | Path]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    skip: str | None = None
    refused: str | None = None
    together: str | None = None
    may_be_cut: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a step: "passed", "failed", "stopped" (at its limit), "cut" (likewise) or "skipped"."""

    name: str
    status: str
    seconds: float
    detail: str


def slug(name: str) -> str:
    """A name as a file or folder may be called."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# ---- running -------------------------------------------------------------------------------------


def last_line(log: str) -> str:
    """The last line that says something, without the rules around it."""
    lines = [line.strip(" =│\t") for line in log.splitlines()]
    return next((line for line in reversed(lines) if re.search(r"\w", line)), "no output")


def log_path(logs: Path, name: str) -> Path:
    """Where a step's output goes."""
    return logs / f"{slug(name)}.log"


def run_step(step: Step, remaining: float, logs: Path) -> Outcome:
    """Run one step for at most its limit or what remains, in a process group of its own."""
    if step.skip:
        return Outcome(step.name, "skipped", 0.0, step.skip)
    limit = min(step.limit, remaining)
    if limit < 1:
        return Outcome(step.name, "skipped", 0.0, "no time is left")
    path = log_path(logs, step.name)
    start = time.monotonic()
    with path.open("w") as log:
        process = subprocess.Popen(
            [str(word) for word in step.command],
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - start
    text = path.read_text(errors="replace")
    if code is None:
        status = "cut" if step.may_be_cut else "stopped"
        return Outcome(step.name, status, seconds, f"at its limit of {limit:.0f} s; {last_line(text)}")
    if code and step.refused and (refusal := re.search(f".*{step.refused}.*", text)):
        return Outcome(step.name, "skipped", seconds, refusal.group().strip(" ="))
    return Outcome(step.name, "failed" if code else "passed", seconds, last_line(text))


def run_steps(steps: Sequence[Step], budget: float, logs: Path) -> list[Outcome]:
    """Run all steps in order, whatever becomes of each; show the end of a failed one's log."""
    end, outcomes = time.monotonic() + budget, []
    for _, group in itertools.groupby(steps, lambda step: step.together or step.name):
        group = list(group)
        print(f"{', '.join(step.name for step in group)} ...", flush=True)
        with ThreadPoolExecutor(len(group)) as pool:
            found = list(pool.map(lambda step: run_step(step, end - time.monotonic(), logs), group))
        for outcome in found:
            if outcome.status in ("failed", "stopped") and (path := log_path(logs, outcome.name)).exists():
                print(*path.read_text(errors="replace").splitlines()[-60:], sep="\n")
            print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.1f} s, {outcome.detail}", flush=True)
        outcomes += found
    return outcomes


# ---- the steps -----------------------------------------------------------------------------------


def marked_tests() -> list[Path]:
    """The test files with tests for a GPU; others may import what this machine does not have."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in files if re.search(r"mark\.gpu|\bDEVICES\b|\bSERVED\b", path.read_text())]


def missing(*modules: str) -> str | None:
    """Which of some modules are not installed, as a reason; None if all are."""
    names = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{' and '.join(names)} not installed" if names else None


def environment_of(architectures: str, dry: bool) -> dict[str, str]:
    """What all steps see: the built package before any other, and none of pytest's plugins here."""
    paths = [str(SITE), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONSAFEPATH": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TORCH_CUDA_ARCH_LIST": architectures,
        "IRNEXT_CUDA_HOST": str(int(dry)),
        "IRNEXT_REQUIRE_LIBRARY": "1",
    }


def common_steps(environment: Mapping[str, str]) -> list[Step]:
    """Build the package as it would be installed, and let it say what it can do."""
    build = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", SITE]
    return [
        Step("build", build, 240, environment),
        Step("info", [sys.executable, "-c", "from irnext import info; info.show()"], 60, environment),
    ]


def pytest_command(*arguments: str | Path) -> list[str | Path]:
    """pytest, quiet, and without making errors of another PyTorch's warnings."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments]


def benchmark(module: str, options: Mapping[str, Any], results: Path) -> list[str | Path]:
    """A module's benchmark with its figures under `results`; its command line would need tyro."""
    call = f"{module}.Options(**{dict(options)!r}, json=True, results=pathlib.Path(sys.argv[1]))"
    code = f"import pathlib, sys; from benchmarks import {module}; sys.exit({module}.run({call}))"
    return [sys.executable, "-c", code, results]


def device_steps(results: Path) -> list[Step]:
    """All that runs on the device."""
    major, minor = torch.cuda.get_device_capability()
    environment = environment_of(f"{major}.{minor}", dry=False)
    sanitizer = find_sanitizer()
    small = pytest_command("-m", "gpu", "-k", "small_shapes", "tests/test_gpu.py")
    # Without PyTorch's cache every tensor has an allocation of its own, whose ends memcheck knows.
    watched = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    steps = common_steps({**environment, "IRNEXT_CUDA": "1"})
    for name, selection in SHARDS.items():
        command = pytest_command("-m", "gpu", "-k", selection, *marked_tests())
        steps.append(Step(f"tests ({name})", command, 240, environment, together="tests"))
    for module, limit in (("lam", 150), ("model", 100), ("gopro", 120), ("training_step", 60)):
        command = benchmark(module, MEASURED[module], results)
        steps.append(Step(f"benchmark ({module})", command, limit, environment, may_be_cut=module != "lam"))
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *small]
        absent = None if sanitizer else "compute-sanitizer is not installed"
        steps.append(Step(tool, command, 90, watched, absent, refused="Device not supported"))
    for module, options in COMPILED.items():
        command = benchmark(module, options, results)
        steps.append(Step(f"compiled ({module})", command, 180, environment, may_be_cut=True))
    return steps


def dry_steps(results: Path) -> list[Step]:
    """The same without a device, on tiny shapes."""
    environment = environment_of("9.0", dry=True) | {"IRNEXT_GPU_DRY": "1", "OMP_NUM_THREADS": "1"}
    collect = {**environment, "IRNEXT_GPU_DRY": "0"}
    interpreted = {**environment, "TRITON_INTERPRET": "1"}
    passed_through = {**environment, "TORCHDYNAMO_DISABLE": "1"}
    rehearsed = pytest_command("-k", "cuda", "tests/test_gpu.py")
    sanitized = pytest_command("tests/test_cuda_host_sanitizers.py")
    return [
        *common_steps(environment),
        Step("collect", pytest_command("-m", "gpu", "--collect-only", *marked_tests()), 60, collect),
        Step("tests (cuda)", rehearsed, 150, environment, together="tests"),
        Step(
            "tests (triton)",
            pytest_command("-k", INTERPRETED, "tests/test_gpu.py"),
            150,
            interpreted,
            missing("triton"),
            together="tests",
        ),
        Step("sanitizers", sanitized, 120, environment),
        *(
            # Compiling takes minutes on a CPU: here torch.compile passes everything through.
            Step(f"benchmark ({module})", benchmark(module, options, results), 60, passed_through)
            for module, options in TINY.items()
        ),
    ]


def find_sanitizer() -> str | None:
    """compute-sanitizer from PATH or beside nvcc."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("PATH", os.defpath), *([str(Path(nvcc).resolve().parent)] if nvcc else [])]
    if home := os.environ.get("CUDA_HOME"):
        places.append(str(Path(home) / "bin"))
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


# ---- the record ----------------------------------------------------------------------------------


def printed(*command: str) -> str | None:
    """What a command prints, or None where it cannot run."""
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def describe_machine() -> dict[str, Any]:
    """The device and the software, as far as they can be asked."""
    row = printed("nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader")
    nvcc = printed("nvcc", "--version")
    has_device = torch.cuda.is_available()
    commit = printed("git", "rev-parse", "--short=12", "HEAD")
    changed = printed("git", "status", "--porcelain", "--untracked-files=no", "--", *NO_RESULTS)
    return {
        "device": torch.cuda.get_device_name() if has_device else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if has_device else None,
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if has_device else None,
        "nvidia-smi": dict(zip(SMI_FIELDS, row.splitlines()[0].split(", "), strict=False)) if row else None,
        "nvcc": found.group(1) if nvcc and (found := re.search(r"V([\d.]+)", nvcc)) else None,
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        "triton": version_of("triton"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "commit": f"{commit}+" if commit and changed else commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as text, a line each."""
    width = max(len(outcome.name) for outcome in outcomes)
    return "\n".join(f"{o.name:<{width}}  {o.status:<7}  {o.seconds:6.1f} s  {o.detail}" for o in outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 1 if any failed or was stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="rehearse without a device")
    parser.add_argument("--results", type=Path, help="folder of the results; a temporary one with --dry")
    parser.add_argument("--budget", type=float, help="seconds for all steps together")
    parser.add_argument("--only", metavar="REGEX", help="only steps whose names this matches, and the build")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("make gpu: PyTorch sees no CUDA device; 'make gpu-dry' rehearses without one", file=sys.stderr)
        return 1
    start = time.monotonic()
    machine = describe_machine()
    results = options.results or (
        Path(tempfile.mkdtemp(prefix="irnext-gpu-dry-")) if options.dry else RESULTS
    )
    for folder in (LOGS, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    LOGS.mkdir(parents=True)
    steps = dry_steps(results) if options.dry else device_steps(results)
    if options.only:
        steps = [step for step in steps if step.name == "build" or re.search(options.only, step.name)]
    budget = options.budget or (DRY_BUDGET if options.dry else BUDGET)
    outcomes = run_steps(steps, budget, LOGS)
    seconds = time.monotonic() - start
    path = results / slug(machine["device"] or "dry run") / "gpu.json"
    record = {"machine": machine, "seconds": seconds, "steps": [dataclasses.asdict(o) for o in outcomes]}
    write_record(path, record)
    device = machine["device"] or "no device (a rehearsal)"
    print(f"\n{device}, torch {machine['torch']}, {seconds:.0f} s in all\n{table(outcomes)}")
    print(f"written: {path}; logs: {LOGS}")
    return int(any(outcome.status in ("failed", "stopped") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
