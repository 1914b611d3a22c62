"""The driver of `make gpu`: limits, failures, the budget and the record; and a rehearsed GPU test."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import irnext
from benchmarks import gpu, lam
from benchmarks.gpu import Outcome, Step

ROOT = Path(__file__).parent.parent


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_passes_fails_or_is_skipped(tmp_path):
    def outcome(step: Step) -> tuple[str, str]:
        found = gpu.run_step(step, 60, tmp_path)
        return found.status, found.detail

    assert outcome(Step("a", python("print('some\\n==== 3 passed ====\\n')"), 60)) == ("passed", "3 passed")
    assert outcome(Step("b", python("import sys; sys.exit('why')"), 60)) == ("failed", "why")
    assert outcome(Step("c", python("raise SystemExit(9)"), 60, skip="no tool")) == ("skipped", "no tool")
    refusing = python("print('== Device not supported. =='); raise SystemExit(9)")
    assert outcome(Step("d", refusing, 60, refused="not supported")) == ("skipped", "Device not supported.")
    assert outcome(Step("e", python("import sys; print('x'); sys.exit(9)"), 60, refused="no"))[0] == "failed"
    shown = Step("f", python("import os; print(os.environ['SHOWN'])"), 60, {"SHOWN": "seen"})
    assert outcome(shown) == ("passed", "seen")


def test_a_step_is_stopped_at_its_limit_with_all_it_started(tmp_path):
    marker = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(marker)!r}).touch()"
    code = (
        "import subprocess, sys\n"
        "print('begun', flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])\n"
    )
    start = time.monotonic()
    found = gpu.run_step(Step("slow", python(code), 2.5), 60, tmp_path)
    assert (found.status, found.detail) == ("stopped", "at its limit of 2 s; begun")
    assert 2.5 <= found.seconds < 4
    time.sleep(max(0, 4.5 - (time.monotonic() - start)))
    assert not marker.exists()


def test_a_failure_does_not_keep_later_steps_from_running(tmp_path, capfd):
    steps = [
        Step("first", python("print('lots'); raise SystemExit(1)"), 60),
        Step("second", python("print('fine')"), 60),
    ]
    outcomes = gpu.run_steps(steps, 60, tmp_path)
    assert [(o.name, o.status) for o in outcomes] == [("first", "failed"), ("second", "passed")]
    assert "lots" in capfd.readouterr().out
    (late,) = gpu.run_steps(steps[1:], 0.5, tmp_path)
    assert (late.status, late.detail) == ("skipped", "no time is left")


def test_neighbours_run_together(tmp_path):
    code = "import time; time.sleep(2)"
    steps = [Step(name, python(code), 60, together="both") for name in ("a", "b")]
    start = time.monotonic()
    outcomes = gpu.run_steps(steps, 60, tmp_path)
    assert [o.name for o in outcomes] == ["a", "b"]
    assert time.monotonic() - start < sum(o.seconds for o in outcomes)


def test_the_steps_on_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: None)
    steps = {step.name: step for step in gpu.device_steps(tmp_path)}
    assert list(steps)[:3] == ["build", "info", "tests (cuda)"]
    assert steps["build"].environment["TORCH_CUDA_ARCH_LIST"] == "10.0"
    assert steps["build"].environment["IRNEXT_CUDA"] == "1"
    assert steps["memcheck"].skip == steps["racecheck"].skip == "compute-sanitizer is not installed"
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: "/opt/compute-sanitizer")
    steps = {step.name: step for step in gpu.device_steps(tmp_path)}
    assert steps["racecheck"].command[:3] == ["/opt/compute-sanitizer", "--tool", "racecheck"]
    may_be_cut = ["benchmark (model)", "benchmark (gopro)", "benchmark (training_step)"]
    compiled = ["compiled (model)", "compiled (training_step)", "compiled (gopro)"]
    assert list(steps)[-9:] == ["benchmark (lam)", *may_be_cut, "memcheck", "racecheck", *compiled]
    may_be_cut += compiled
    for name in ("benchmark (lam)", *may_be_cut):
        assert "'device': 'cuda'" in " ".join(map(str, steps[name].command))
    assert [name for name, step in steps.items() if step.may_be_cut] == may_be_cut


def test_what_is_measured_is_measured(monkeypatch):
    """The options are those of the benchmarks, and no two write the same file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(lam, "use_backend", lambda name: None)
    files = []
    for options in (gpu.MEASURED, gpu.COMPILED, gpu.TINY):
        for module, given in options.items():
            made = importlib.import_module(f"benchmarks.{module}").Options(**given)
            if options is not gpu.TINY:
                files.append(getattr(made, "name", module))
    names = ("gopro", "model", "training_step")
    assert sorted(files) == sorted(["lam", *names, *(f"{name}-compiled" for name in names)])


def test_benchmarks_need_no_command_line_package():
    """Nor a package of photographs, where there is none: a machine with a GPU has what it has."""
    code = (
        "import sys; sys.modules.update(tyro=None, skimage=None, matplotlib=None)\n"
        "from benchmarks import lam, model, training_step, accuracy, gopro\n"
        "assert all(callable(each.run) for each in (model, training_step, gopro))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_step_that_may_be_cut_is_no_failure(tmp_path):
    code = "print('half', flush=True); import time; time.sleep(9)"
    found = gpu.run_step(Step("long", python(code), 1.5, may_be_cut=True), 60, tmp_path)
    assert (found.status, found.detail) == ("cut", "at its limit of 2 s; half")


def test_every_gpu_test_is_in_one_shard():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    environment = {**os.environ, "IRNEXT_GPU_DRY": "0"}
    result = subprocess.run(
        [*command, "tests/test_gpu.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    tests = [line.lower() for line in result.stdout.splitlines() if "::" in line]
    assert len(tests) > 300

    def is_selected(test: str, selection: str) -> bool:
        words = re.sub(r"\b(?!(?:and|or|not)\b)\w+", lambda word: str(word[0] in test), selection)
        return eval(words)  # such as "True and not False"

    for test in tests:
        assert sum(is_selected(test, selection) for selection in gpu.SHARDS.values()) == 1, test


def test_what_has_no_gpu_is_told(monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "PyTorch sees no CUDA device; 'make gpu-dry' rehearses" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "code"), [("passed", 0), ("skipped", 0), ("cut", 0), ("failed", 1), ("stopped", 1)]
)
def test_the_record_and_the_exit_code(tmp_path, monkeypatch, capfd, status, code):
    outcomes = [Outcome("build", "passed", 1.25, "fine"), Outcome("tests", status, 2.5, "3 of 4")]
    monkeypatch.setattr(gpu, "run_steps", lambda *arguments: outcomes)
    for name in ("SITE", "LOGS"):
        monkeypatch.setattr(gpu, name, tmp_path / name)
    assert gpu.main(["--dry", "--results", str(tmp_path)]) == code
    (path,) = tmp_path.rglob("gpu.json")
    record = json.loads(path.read_text())
    assert [step["status"] for step in record["steps"]] == ["passed", status]
    assert record["machine"]["torch"] == torch.__version__
    table = capfd.readouterr().out.splitlines()[-3:-1]
    assert table == ["build  passed      1.2 s  fine", f"tests  {status:<7}     2.5 s  3 of 4"]


def test_the_tests_for_a_gpu_are_found():
    names = {path.name for path in gpu.marked_tests()}
    assert {"test_gpu.py", "test_ops.py"} <= names
    assert "test_files.py" not in names


@pytest.mark.skipif(not irnext.backends()["cuda-host"], reason="the CUDA sources are not built for the CPU")
def test_a_gpu_test_can_be_rehearsed():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda and small_shapes"]
    result = subprocess.run(
        [*command, "tests/test_gpu.py"],
        cwd=ROOT,
        env={**os.environ, "IRNEXT_GPU_DRY": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
