"""The Triton backend: its kernels in the interpreter, compiled without a GPU, and absent altogether."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import irnext
from irnext import kernels

TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KERNEL_TESTS = ("kernels", "pyramids", "convolution")
CAPABILITIES = [(8, 0), (9, 0), (10, 0)]
# One variant of every kernel that reads planes, in each layout; the small kernels once.
REPRESENTATIVES = (
    r"^(filter_planes|filter_sums|filter_transposed|plane_sums) rows float32( 3x3 reflect)?$|"
    r"^(filter_planes|filter_sums|filter_transposed) channels bfloat16 3x3 reflect$|"
    r"^(predict_filter|predict_filter_backward|projection_backward) rows float32 training|"
    r"^(sum_splits|sum_groups) rows float32|^box_pass rows float32|^update_running_statistics|"
    r"^(pool_windows|spread_pools|merge_planes) channels bfloat16 .*\(8, 4, 2\)|"
    r"^stretch_adjoint channels bfloat16|^pool_windows rows float32 .*\(8, 4, 2\)|^pool_planes rows float32",
    {
        "box_pass",
        "filter_planes",
        "filter_sums",
        "filter_transposed",
        "merge_planes",
        "plane_sums",
        "pool_planes",
        "pool_windows",
        "predict_filter",
        "predict_filter_backward",
        "projection_backward",
        "spread_pools",
        "stretch_adjoint",
        "sum_groups",
        "sum_splits",
        "update_running_statistics",
    },
)
# The heaviest, for the other generations; `make reports` compiles every variant for all.
FILTERS = (
    r"^(filter_planes|filter_sums|filter_transposed) (rows float32|channels bfloat16) 3x3 reflect$",
    {"filter_planes", "filter_sums", "filter_transposed"},
)


def run(code: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a process of its own; Triton decides on import how its kernels run."""
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *code], env=everything, capture_output=True, text=True)


def run_kernel_tests(name: str, **environment: str) -> None:
    tests = Path(__file__).with_name(f"triton_{name}.py")
    result = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)], **environment)
    assert result.returncode == 0, result.stdout + result.stderr


@TRITON
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
@pytest.mark.parametrize("name", KERNEL_TESTS)
def test_the_kernels_in_the_interpreter(name):
    run_kernel_tests(name, TRITON_INTERPRET="1")


@TRITON
@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNEL_TESTS)
def test_the_kernels_on_a_gpu(name):
    run_kernel_tests(name, TRITON_INTERPRET="0")


def test_importing_needs_no_triton():
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import irnext, irnext.kernels\n"
        "assert 'irnext.kernels.ops' not in sys.modules\n"
        "print(irnext.kernels.unavailable())\n"
        "try:\n"
        "    irnext.use_backend('triton')\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    result = run(["-c", code])
    assert result.returncode == 0, result.stderr
    reason, message = result.stdout.splitlines()
    assert reason.startswith("Triton is not installed")
    assert message == f"backend 'triton' cannot be used: {reason}"


@TRITON
def test_without_a_gpu_the_reason_is_named():
    code = (
        "import irnext.kernels, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "print(irnext.kernels.unavailable())\n"
    )
    result = run(["-c", code], TRITON_INTERPRET="0")
    assert result.stdout.startswith("PyTorch sees no CUDA device, and TRITON_INTERPRET=1 was not set")
    assert run(["-c", code], TRITON_INTERPRET="1").stdout == "None\n"


@TRITON
@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_kernels_compile_without_spilling(capability):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels cannot be compiled")
    from irnext.kernels.compilation import compile_all

    selection, kernels = REPRESENTATIVES if capability == (9, 0) else FILTERS
    found = compile_all(capability, selection)
    assert {entry["kernel"] for entry in found} == kernels
    for entry in found:
        assert entry["spill_instructions"] == entry["stack_bytes"] == 0, entry
        assert 0 < entry["registers"] <= 168, entry
        assert entry["shared_bytes"] <= 48 * 1024, entry
        assert any(name.startswith("global load") for name in entry["instructions"]), entry
    # Neighbouring channels are read four numbers and more at a time, none of them one by one.
    filters = [entry for entry in found if entry["variant"].startswith("channels")]
    assert filters
    for entry in filters:
        assert not any(name in entry["instructions"] for name in ("global load 8", "global load 16")), entry


@TRITON
@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_convolutions_multiply_on_tensor_cores(capability):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels cannot be compiled")
    from irnext.kernels.compilation import compile_all

    found = compile_all(
        capability, r"^convolve (bfloat16 (32 to 32 3x3$|pair to 64 1x1)|float32 32 to 32 3x3$)"
    )
    assert len(found) == 3
    for entry in found:
        assert entry["spill_instructions"] == entry["stack_bytes"] == 0, entry
        assert entry["shared_bytes"] <= 96 * 1024, entry  # two programs on an SM
        assert entry["instructions"]["matrix product"], entry
        # x and the weights go to shared memory 16 bytes at a time, past the registers.
        assert entry["instructions"]["global to shared 128"], entry


def test_the_package_ships_its_configurations():
    folder = Path(kernels.__file__).parent / "configs"
    assert (folder / "default.json").is_file()
    assert irnext.kernels is kernels
