"""What the tests of the Triton kernels share, each file of which runs in a process of its own.

On a CUDA device, or with TRITON_INTERPRET=1 on the CPU. The interpreter takes milliseconds for every
program, so the planes are tiny.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Absolute floors of the tolerance rule: the error of a rounding or two of numbers of order one.
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
if DEVICE == "cpu":
    FLOOR[torch.bfloat16] *= 2  # the interpreter cuts off digits where a GPU rounds
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted", "mixed")


@pytest.fixture(autouse=True)
def poisoned():
    """Fill fresh memory with NaN, so that an output nobody wrote shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers in another layout."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat((x, x), 3)[..., 1 : x.shape[3] + 1]
    if layout == "permuted":
        return x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    return x


def assert_as_good(found, plain, exact, dtype) -> None:
    """The tolerance rule: error <= 2 x PyTorch's own in the same type + a floor of that type."""
    assert len(found) == len(plain) == len(exact)
    for i, (f, p, e) in enumerate(zip(found, plain, exact, strict=True)):
        assert f.shape == e.shape
        assert f.dtype == p.dtype
        assert f.isfinite().all(), f"result {i} has values that nobody wrote"
        if f.numel():
            error, allowed = ((t.double() - e).abs().max() for t in (f, p))
            scale = e.abs().max().clamp_min(1)
            assert error <= 2 * allowed + FLOOR[dtype] * scale, f"result {i}: {error} > 2 * {allowed}"
