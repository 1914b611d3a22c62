"""The package as installed: its names, what it does without its library, what the libraries need."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
        "from importlib.util import find_spec\n"
        "print([name for name in ('irnext', 'kernels', 'tests', 'benchmarks') if find_spec(name)])"
    )
    assert run(code, tmp_path).strip() == "['irnext']"


NUMBERS = """
import torch, irnext
torch.manual_seed(0)
module = irnext.LocalAttention(16).double()
for gain in (module.low_gain, module.high_gain, module.inner_gain):
    torch.nn.init.normal_(gain)
x = torch.randn(2, 16, 6, 7, dtype=torch.float64, requires_grad=True)
y = module(x)
y.square().sum().backward()
numbers = [y.sum().item(), x.grad.sum().item(), torch.ops.irnext.spatial_mean(x).sum().item()]
"""
WHY_NOT = """
print(*numbers)
print(irnext.backends()["cpu"].available)
try:
    irnext.use_backend("cpu")
except RuntimeError as error:
    print(error)
"""


def test_everything_works_without_the_library(tmp_path):
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "irnext", tmp_path / "irnext", ignore=ignored)
    without, available, reason = run(NUMBERS + WHY_NOT, tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    here = {}
    exec(NUMBERS, here)
    assert [float(number) for number in without.split()] == pytest.approx(here["numbers"])
    assert available == "False"
    assert reason.startswith("backend 'cpu' cannot be used: the compiled library is missing")


# ---- what the libraries need ---------------------------------------------------------------------

# The newest versions that a release may need: those of manylinux_2_34 (PEP 600).
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)}
NEEDED = {"libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


class Symbol(NamedTuple):
    """A symbol taken from another library; its kind is U, or w where it need not be there."""

    kind: str
    name: str
    version: str


def inspect(*command: str | Path) -> str:
    """What a tool of binutils prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined_symbols(library: Path) -> list[Symbol]:
    words = (line.split() for line in inspect("nm", "-D", "--undefined-only", library).splitlines())
    return [Symbol(word[-2], *word[-1].partition("@")[::2]) for word in words]


@pytest.fixture(params=sorted(LIBRARIES))
def library(request) -> Path:
    if shutil.which("nm") is None:
        pytest.skip("needs binutils")
    status = irnext.backends()[request.param]
    if not status:
        pytest.skip(status.reason)
    return LIBRARIES[request.param]


def test_libraries_take_only_stable_symbols(library):
    symbols = undefined_symbols(library)
    plain = [symbol for symbol in symbols if not symbol.version]
    of_torch = [symbol for symbol in plain if symbol.name.startswith(("aoti_torch_", "torch_"))]
    assert of_torch
    # Without a version: PyTorch's stable ABI, and what need not be there. CUDA's run time is in the library.
    assert {symbol.kind for symbol in set(plain) - set(of_torch)} <= {"w"}
    assert {symbol.version.partition("_")[0] for symbol in symbols if symbol.version} <= set(NEWEST)


@pytest.mark.skipif(
    platform.libc_ver() > ("glibc", "2.36"), reason="built here, the library may need a newer C library"
)
def test_libraries_need_no_newer_system_than_releases_promise(library):
    for symbol in undefined_symbols(library):
        origin, _, number = symbol.version.partition("_")
        assert not origin or tuple(map(int, number.split("."))) <= NEWEST[origin], symbol


def test_libraries_load_only_pytorch_and_the_compilers_own(library):
    dynamic = inspect("readelf", "--dynamic", library)
    assert set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) - LOADERS == NEEDED
    assert not re.search("R(UN)?PATH", dynamic), "a library must not point into the machine it was built on"


def test_libraries_export_nothing(library):
    assert inspect("nm", "-D", "--defined-only", library) == ""


def test_libraries_name_no_folder_of_the_machine(library):
    content = library.read_bytes()
    for folder in (ROOT, Path(torch.__file__).parent):
        assert os.fsencode(f"{folder}/") not in content


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
