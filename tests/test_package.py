"""The package as installed: names, the build with and without a compiler, the library's symbols."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import irnext

ROOT = Path(__file__).parent.parent
PACKAGE = Path(irnext.__file__).parent
LIBRARIES = {"cpu": PACKAGE / "_C.abi3.so", "cuda-host": PACKAGE / "_cuda_host.abi3.so"}


def run(code: str, folder: Path, **environment: str) -> str:
    """What a fresh Python prints in `folder`."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_only_irnext_is_installed(tmp_path):
    code = (
        "import importlib.util, irnext.kernels\n"
        "print([name for name in ('kernels', 'tests', 'benchmarks') if importlib.util.find_spec(name)])"
    )
    assert run(code, tmp_path).strip() == "[]"


def test_everything_works_without_the_library(tmp_path):
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "irnext", tmp_path / "irnext", ignore=ignored)
    numbers = (
        "import torch, irnext\n"
        "torch.manual_seed(0)\n"
        "module = irnext.LocalAttention(16).double()\n"
        "for gain in (module.low_gain, module.high_gain, module.inner_gain):\n"
        "    torch.nn.init.normal_(gain)\n"
        "x = torch.randn(2, 16, 6, 7, dtype=torch.float64, requires_grad=True)\n"
        "y = module(x)\n"
        "y.square().sum().backward()\n"
        "print(y.sum().item(), x.grad.sum().item(), torch.ops.irnext.spatial_mean(x).sum().item())\n"
    )
    without = run(numbers, tmp_path, PYTHONPATH=str(tmp_path)).split()
    assert [float(n) for n in without] == pytest.approx([float(n) for n in run(numbers, ROOT).split()])
    why = (
        "import irnext\n"
        "print(irnext.backends()['cpu'].available)\n"
        "try:\n"
        "    irnext.use_backend('cpu')\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    available, reason = run(why, tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert available == "False"
    assert reason.startswith("backend 'cpu' cannot be used: the compiled library is missing")


def build_wheel(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """What `setup.py bdist_wheel` says in a copy of the sources, and the files of its wheel."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "*.so", "build", "__pycache__", "fixtures", "results")
    shutil.copytree(ROOT, source, ignore=ignored)
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel"],
        cwd=source,
        env={**os.environ, "IRNEXT_CUDA": "", "IRNEXT_REQUIRE_LIBRARY": "0", **environment},
        capture_output=True,
        text=True,
    )
    wheels = list((source / "dist").glob("*.whl"))
    return result, zipfile.ZipFile(wheels[0]).namelist() if wheels else []


NO_COMPILER = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}


def test_the_build_without_a_compiler_is_the_python_package(tmp_path):
    result, names = build_wheel(tmp_path, **NO_COMPILER, IRNEXT_CUDA_HOST="1")
    assert result.returncode == 0, result.stderr
    assert "irnext/model.py" in names
    assert "irnext/kernels/__init__.py" in names
    assert not any(name.startswith(("kernels/", "tests/", "benchmarks/")) for name in names)
    assert not any(name.endswith(".so") for name in names)
    tuned = {f"irnext/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.json")}
    assert tuned <= set(names)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**NO_COMPILER, "IRNEXT_REQUIRE_LIBRARY": "1"}, "no-such-compiler cannot be run"),
        ({"IRNEXT_CUDA": "1", "CUDA_HOME": "", "CUDA_PATH": "", "PATH": ""}, "there is no nvcc"),
        ({"IRNEXT_CUDA": "yes"}, "error: IRNEXT_CUDA is 'yes': it must be 0"),
        ({"MAX_JOBS": "many"}, "error: MAX_JOBS is 'many'"),
    ],
)
def test_a_build_that_cannot_be_as_asked_fails(tmp_path, environment, message):
    result, names = build_wheel(tmp_path, **environment)
    assert result.returncode
    assert message in result.stderr
    assert not names


def undefined_symbols(library: Path) -> list[tuple[str, str]]:
    """The kind (U, or w for weak) and name of every symbol that a library takes from others."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    words = (line.split() for line in listing.splitlines())
    return [(word[-2], word[-1].partition("@")[0]) for word in words]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
@pytest.mark.parametrize("backend", ["cpu", "cuda-host"])
def test_the_libraries_need_only_stable_symbols(backend):
    status = irnext.backends()[backend]
    if not status:
        pytest.skip(status.reason)
    symbols = undefined_symbols(LIBRARIES[backend])
    names = [name for _, name in symbols]
    of_torch = [name for name in names if "torch" in name or "c10" in name or "N2at" in name]
    assert of_torch
    assert all(name.startswith(("aoti_torch_", "torch_")) for name in of_torch), of_torch
    assert not any(name.startswith(("Py", "_Py")) for name in names), "the library must not need Python"
    # CUDA's run time is part of the library; what only a CUDA build of PyTorch has must be weak.
    of_cuda = [name for kind, name in symbols if re.match(r"_*cu(da)?[A-Z]", name) and kind == "U"]
    assert not of_cuda
    assert all(kind == "w" for kind, name in symbols if name.startswith("aoti_torch_get_current_cuda"))


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
@pytest.mark.parametrize("backend", ["cpu", "cuda-host"])
def test_the_libraries_load_no_cuda(backend):
    status = irnext.backends()[backend]
    if not status:
        pytest.skip(status.reason)
    dynamic = subprocess.run(
        ["readelf", "-d", str(LIBRARIES[backend])], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name or name.startswith("libcu")]
    assert not re.search("R(UN)?PATH", dynamic), "a library must not point into the machine it was built on"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves a file open
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": irnext.IRNeXt(blocks=1, width=8).official_state_dict()}, "dehazing-its.pkl")
    Image.new("RGB", (70, 50), "grey").save("hazy.jpg")
    exec(compile(code, "README.md", "exec"), {})
    with Image.open("clear.png") as restored:
        assert restored.size == (70, 50)
    assert irnext.load("mine.safetensors").settings["width"] == 8
