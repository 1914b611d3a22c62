"""What setup.py decides: whether CUDA is built, for which architectures, and what is compiled again."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from setuptools.errors import CompileError

from benchmarks.compile_report import build_settings

setup = build_settings()
NVCC = "/opt/cuda/bin/nvcc"


@pytest.mark.parametrize(
    ("request_", "nvcc", "wanted"),
    [(None, NVCC, True), ("", NVCC, True), ("1", NVCC, True), ("0", NVCC, False), (None, None, False)],
)
def test_nvcc_and_the_environment_decide_about_cuda(request_, nvcc, wanted):
    assert setup.cuda_is_wanted(request_, nvcc) == wanted


def test_cuda_asked_for_but_absent_is_an_error():
    with pytest.raises(CompileError, match="there is no nvcc: install CUDA and set CUDA_HOME"):
        setup.cuda_is_wanted("1", None)
    with pytest.raises(ValueError, match="IRNEXT_CUDA is 'yes': it must be 0"):
        setup.cuda_is_wanted("yes", NVCC)


def make_nvcc(folder: Path) -> str:
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def test_nvcc_is_found_under_cuda_home_before_the_path(tmp_path):
    first, second = make_nvcc(tmp_path / "home"), make_nvcc(tmp_path / "other")
    path = str(Path(second).parent)
    assert setup.find_nvcc({"CUDA_HOME": str(tmp_path / "home"), "PATH": path}) == first
    assert setup.find_nvcc({"CUDA_HOME": str(tmp_path / "nowhere"), "PATH": path}) == second
    assert setup.find_nvcc({"PATH": path}) == second
    assert setup.find_nvcc({"PATH": str(tmp_path)}) is None


SUPPORTED = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("request_", "codes"),
    [
        (None, ["sm_80", "sm_90", "sm_100", "compute_100"]),
        ("", ["sm_80", "sm_90", "sm_100", "compute_100"]),
        ("9.0", ["sm_90"]),
        ("9.0a", ["sm_90a"]),
        ("8.0;9.0a;10.0+PTX", ["sm_80", "sm_90a", "sm_100", "compute_100"]),
        ("8.6 12.0f", ["sm_86", "sm_120f"]),
        ("9.0;9.0", ["sm_90"]),
    ],
)
def test_architectures(request_, codes):
    flags = setup.architecture_flags(request_, SUPPORTED)
    assert [flag.rpartition("code=")[2] for flag in flags] == codes
    for flag, code in zip(flags, codes, strict=True):
        assert flag == f"-gencode=arch=compute_{code.partition('_')[2]},code={code}"


def test_the_default_leaves_out_what_an_older_nvcc_does_not_know():
    flags = setup.architecture_flags(None, ["sm_80", "sm_90"])
    assert [flag.rpartition("code=")[2] for flag in flags] == ["sm_80", "sm_90", "compute_90"]


@pytest.mark.parametrize("request_", ["Hopper", "90", "9.0;sm_80"])
def test_an_architecture_that_is_none_is_named(request_):
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST has '.*': write versions"):
        setup.architecture_flags(request_, SUPPORTED)


def test_the_number_of_jobs():
    assert setup.job_count("3") == 3
    assert setup.job_count(None) == setup.job_count("") == os.cpu_count()
    for wrong in ("0", "many", "-1"):
        with pytest.raises(ValueError, match="MAX_JOBS is"):
            setup.job_count(wrong)


# A compiler that copies its source, notes a header as a dependency and says how often it ran.
COMPILER = """
import pathlib, sys
words = sys.argv[1:]
source, output, rules = (words[words.index(flag) + 1] for flag in ("-c", "-o", "-MF"))
with open("runs", "a") as runs:
    runs.write(source + "\\n")
if "broken" in pathlib.Path(source).read_text():
    sys.exit(f"{source}: broken")
pathlib.Path(output).write_text("object")
pathlib.Path(rules).write_text(f"{output}: {source} \\\\\\n header\\\\ file.h\\n")
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The command of a pretended compiler, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("compiler.py").write_text(COMPILER)
    Path("header file.h").write_text("")
    return [sys.executable, "compiler.py"]


def count_runs() -> int:
    return len(Path("runs").read_text().splitlines()) if Path("runs").exists() else 0


def test_only_what_changed_is_compiled_again(compiler):
    Path("a.cpp").write_text("fine")
    wanted = setup.Object("a.cpp", "folder", [*compiler, "-O3"])

    def compile_and_count() -> int:
        before = count_runs()
        time.sleep(0.02)  # the clock of some file systems is coarse
        assert Path(setup.compile_object(wanted)).read_text() == "object"
        return count_runs() - before

    assert compile_and_count() == 1
    assert compile_and_count() == 0
    Path("a.cpp").write_text("changed")
    assert compile_and_count() == 1
    Path("header file.h").write_text("changed")
    assert compile_and_count() == 1
    assert compile_and_count() == 0
    wanted = wanted._replace(command=[*compiler, "-O2"])
    assert compile_and_count() == 1
    Path("header file.h").unlink()
    assert compile_and_count() == 1


def test_a_file_changed_during_the_compilation_is_compiled_again(compiler):
    Path("a.cpp").write_text("fine")
    text = Path("compiler.py").read_text()
    Path("compiler.py").write_text(
        "import time; time.sleep(0.05)\n" + text + "pathlib.Path(source).touch()\n"
    )
    wanted = setup.Object("a.cpp", "folder", compiler)
    setup.compile_object(wanted)
    assert not setup.is_current(wanted)


def test_a_failure_is_told_and_leaves_nothing(compiler):
    Path("a.cpp").write_text("fine")
    Path("b.cpp").write_text("broken")
    good, bad = (setup.Object(source, "folder", compiler) for source in ("a.cpp", "b.cpp"))
    with pytest.raises(CompileError, match=r"b\.cpp \(folder\): b\.cpp: broken"):
        setup.compile_all([good, bad], [], 2)
    assert not bad.path.exists()
    # What is optional is left out, with the reason, where it does not compile.
    paths, failure = setup.compile_all([good], [bad], 2)
    assert paths == [str(good.path)]
    assert "b.cpp: broken" in str(failure)
    with pytest.raises(CompileError, match="no-such-compiler cannot be run"):
        setup.compile_object(setup.Object("a.cpp", "other", ["no-such-compiler"]))
    assert sorted(path.name for path in bad.path.parent.iterdir()) == ["a.cpp.command", "a.cpp.d", "a.cpp.o"]
