"""The CUDA sources on the host, under the address and undefined-behaviour sanitizers.

The driver in tests/cuda_host calls the kernels on buffers of exactly the size that the tensors need and
compares them with plain loops; it also proves that the emulated execution model finds races, missing
barriers and accesses out of bounds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("g++")
FLAGS = [
    *("-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover"),
    *("-DIRNEXT_CUDA_HOST", f"-I{ROOT / 'csrc/include'}"),
]
KERNELS = (
    *("spatial_mean", "dynamic_conv2d", "dynamic_conv2d_backward"),
    *("pyramid_pool", "pyramid_merge", "pyramid_merge_backward", "pyramid_adjoint"),
)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no g++"),
    pytest.mark.xdist_group("sanitizers"),  # the driver takes a minute to build
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, built from the kernels' sources."""
    folder = tmp_path_factory.mktemp("cuda_host")
    sources = [ROOT / f"csrc/cuda/{name}.cu" for name in KERNELS]
    sources += sorted((ROOT / "tests/cuda_host").glob("*.cpp"))

    def build(source: Path) -> str:
        target = str(folder / f"{source.name}.o")
        subprocess.run([COMPILER, *FLAGS, "-x", "c++", "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, sources))
    program = folder / "driver"
    subprocess.run([COMPILER, *FLAGS, *objects, "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("section", "cases"),
    [("conversions", 0), ("shim", 0), ("operators", 60), ("pyramids", 25), ("addressing", 0)],
)
def test_section(driver: Path, section: str, cases: int):
    found = subprocess.run([driver, section, str(cases)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{section}: " in found.stdout
    assert " 0 failures" in found.stdout


@pytest.mark.parametrize("schedule", ["forward", "reverse", "shuffled:5"])
def test_the_environment_chooses_the_schedule(driver: Path, schedule: str):
    environment = {**os.environ, "IRNEXT_HOST_SCHEDULE": schedule}
    found = subprocess.run([driver, "schedule"], check=True, capture_output=True, text=True, env=environment)
    assert found.stdout.split()[0] == schedule
