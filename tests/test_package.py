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


@pytest.mark.parametrize("required", [False, True])
def test_the_build_without_a_compiler(tmp_path, required):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "*.so", "build", "__pycache__", "demo", "fixtures")
    shutil.copytree(ROOT, source, ignore=ignored)
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel"],
        cwd=source,
        env={
            **os.environ,
            "CC": "no-such-compiler",
            "CXX": "no-such-compiler",
            "IRNEXT_REQUIRE_LIBRARY": str(int(required)),
        },
        capture_output=True,
        text=True,
    )
    assert (result.returncode != 0) == required, result.stderr
    if not required:
        (wheel,) = (source / "dist").glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        assert "irnext/model.py" in names
        assert "irnext/kernels/__init__.py" in names
        assert not any(name.startswith(("kernels/", "tests/", "benchmarks/")) for name in names)
        assert not any(name.endswith(".so") for name in names)


@pytest.mark.skipif(not irnext.backends()["cpu"], reason="the compiled library is not built")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_the_library_needs_only_stable_symbols():
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(Path(irnext.__file__).parent / "_C.abi3.so")],
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()]
    of_torch = [name for name in names if "torch" in name or "c10" in name or "N2at" in name]
    assert of_torch
    assert all(name.startswith(("aoti_torch_", "torch_")) for name in of_torch), of_torch
    assert not any(name.startswith(("Py", "_Py")) for name in names), "the library must not need Python"


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
