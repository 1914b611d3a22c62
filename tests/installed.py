"""What an installation can do, as JSON: run by the Python of an environment that irnext was installed into.

Needs nothing but irnext and what it depends on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import irnext
from irnext import ops


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def operator_calls() -> dict[str, Callable[[Tensor], list[Tensor]]]:
    """Every operator on x (2, 8, 12, 14) in float64, its other arguments drawn here."""
    kernel, bias = random(2, 4, 3, 3), random(2, 8)
    weight, scale, shift, mean, low, inner, high = random(36, 8), *map(random, (36, 36, 36, 8, 8, 8))
    branches = [random(2, 8, 6, 7), random(2, 8, 3, 3)]
    filters, residual = random(8, 8, 3, 3), random(2, 8, 12, 14)

    def attention(x: Tensor) -> list[Tensor]:
        statistics = mean, scale.square() + 1
        return [ops.local_attention(x, weight, scale, shift, *statistics, low, inner, high)[0]]

    def statistics(x: Tensor) -> list[Tensor]:
        running, batches = [torch.zeros(8).double(), torch.ones(8).double()], torch.tensor(0)
        ops.update_statistics(*running, batches, x[0, :, 0, 0].detach(), x[1, :, 0, 0].detach().abs(), 9, 0.1)
        return running

    return {
        "dynamic_conv2d": lambda x: [ops.dynamic_conv2d(x, kernel, bias)],
        "spatial_mean": lambda x: [ops.spatial_mean(x)],
        "local_mean": lambda x: [ops.local_mean(x, (5, 6))],
        "local_attention": attention,
        "update_statistics": statistics,
        "pool_pyramid": lambda x: ops.pool_pyramid(x, (4, 2)),
        "merge_pyramid": lambda x: [ops.merge_pyramid(x, branches)],
        "conv2d_bias_act": lambda x: [ops.conv2d_bias_act(x, filters, bias[0], "gelu", residual)],
    }


def results(call: Callable[[Tensor], list[Tensor]], x: Tensor, backend: str) -> list[Tensor]:
    """What an operator gives and, where it has one, the gradient of x."""
    x = x.clone().requires_grad_()
    with irnext.use_backend(backend):
        outputs = call(x)
        if outputs[0].requires_grad:
            sum(output.sin().sum() for output in outputs).backward()
    return [output.detach() for output in outputs] + ([] if x.grad is None else [x.grad])


def operator_errors() -> dict[str, float]:
    """The largest difference between the compiled operators and the reference, over the largest value."""
    x = random(2, 8, 12, 14)
    errors = {}
    for name, call in operator_calls().items():
        pairs = zip(results(call, x, "cpu"), results(call, x, "reference"), strict=True)
        errors[name] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    return errors


def restored(backend: str) -> np.ndarray:
    """A picture restored by the weights for haze, (80, 96, 3) grey levels."""
    columns, rows = np.meshgrid(np.arange(96), np.arange(80))
    picture = np.stack((2 * columns, 3 * rows, (columns * rows) % 256), 2).astype(np.uint8)
    with irnext.use_backend(backend):
        model = irnext.load_pretrained("haze").eval()
        return np.asarray(irnext.restore(model, Image.fromarray(picture)))


def import_kernels() -> list[str]:
    """Import every module of the Triton kernels, as far as Triton is installed; their names."""
    kernels = importlib.import_module("irnext.kernels")
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__)]
    if importlib.util.find_spec("triton"):
        for name in names:
            importlib.import_module(f"irnext.kernels.{name}")
    return names


def collect() -> dict:
    """Everything there is to know, as plain values."""
    torch.manual_seed(0)
    picture, expected = restored("cpu"), restored("reference")
    return {
        "path": str(Path(irnext.__file__).parent),
        "torch": torch.__version__,
        "backends": {name: status.reason for name, status in irnext.backends().items() if status},
        "pretrained": list(irnext.list_pretrained()),
        "kernels": import_kernels(),
        "operator errors": operator_errors(),
        "picture": hashlib.sha256(picture.tobytes()).hexdigest()[:16],
        "grey levels from the reference": int(np.abs(picture.astype(int) - expected).max()),
    }


if __name__ == "__main__":
    print(json.dumps(collect(), indent=2))
