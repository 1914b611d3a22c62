"""Deterministic published weights for the fixtures, and helpers that several tests share."""

from __future__ import annotations

import gc
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import irnext

FIXTURES = Path(__file__).parent / "fixtures"

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# The backends that serve CPU tensors here; Triton's interpreter needs a process of its own.
CPU_BACKENDS = [name for name in ("reference", "cpu", "cuda-host") if irnext.backends()[name]]
# Every backend with the device it serves.
SERVED = [("cpu", name) for name in CPU_BACKENDS] + [
    pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("reference", "cuda", "triton")
]


# Files whose tests take longest come first, so that at the end all processes have something to do.
LONGEST = ("test_triton.py", "test_export.py", "test_cuda_host_sanitizers.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)  # the others stay in order


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests and all of PyTorch, through which every collection would look else


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries complain of what is never collected


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The weights of one published entry, drawn from its name as the fixtures' makers drew them."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("lamb_l", "lamb_h", "inside_all"):
        values = 0.5 * rng.standard_normal(shape)
    elif leaf in ("bias", "running_mean"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        values = 1 + 0.1 * rng.standard_normal(shape)
    else:
        values = 0.5 * rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values).astype(np.float32))


def published_state_dict(blocks: int, seed: int) -> dict[str, torch.Tensor]:
    """All entries of a published IRNeXt checkpoint, in the published order."""
    shapes = json.loads((FIXTURES / f"blocks-{blocks}.json").read_text())
    return {name: draw(name, tuple(shape), seed) for name, shape in shapes.items()}


def load_fixture(name: str) -> dict[str, np.ndarray]:
    """All arrays of a fixture."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a random value: gains start at zero, where LAM is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("gain") or name.endswith("high_pass_weight"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
            elif name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return module


def relative_error(found: torch.Tensor, expected: torch.Tensor | np.ndarray) -> float:
    """Largest error over the largest magnitude, in float64."""
    expected = torch.as_tensor(expected).double()
    return ((found.detach().cpu().double() - expected).abs().max() / expected.abs().max()).item()


def check_gradients(model: nn.Module, x: torch.Tensor, relative: float = 1e-6) -> None:
    """Every parameter of a float64 model has a gradient; along a direction it is the finite difference."""
    generator = torch.Generator().manual_seed(1)
    directions = {
        name: torch.randn(p.shape, dtype=p.dtype, generator=generator) for name, p in model.named_parameters()
    }

    def loss(step: float) -> torch.Tensor:
        moved = {name: p + step * directions[name] for name, p in model.named_parameters()}
        outputs = functional_call(model, moved, x)
        return sum(y.sin().sum() for y in ([outputs] if isinstance(outputs, torch.Tensor) else outputs))

    loss(0).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    slope = sum((p.grad * directions[name]).sum().item() for name, p in model.named_parameters())
    with torch.no_grad():
        assert slope == pytest.approx(((loss(1e-6) - loss(-1e-6)) / 2e-6).item(), rel=relative)
