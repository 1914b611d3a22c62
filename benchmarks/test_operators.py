"""Single operators on the CPU, timed by pytest-benchmark: `python -m pytest benchmarks/test_operators.py`.

Every result is checked against float64 before its time is taken. IRNEXT_BACKEND chooses the backend
and OMP_NUM_THREADS the threads; pytest-benchmark's own options compare and keep runs
(`--benchmark-autosave`, `--benchmark-compare`), `-k` picks operators. A plain `python -m pytest` does
not come here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from irnext import ops
from irnext.ops import reference

from . import harness, lam

pytest.importorskip("pytest_benchmark", reason="needs the extra 'benchmark'")

SHAPE = (1, 32, 128, 128)
WINDOW = (60, 60)
RATES = (8, 4, 2)
OPERATORS = (
    "dynamic_conv2d",
    "spatial_mean",
    "local_mean",
    "local_attention",
    "pool_pyramid",
    "merge_pyramid",
)


def make_inputs(name: str, x: Tensor) -> tuple:
    """What an operator takes after x, as LocalAttention (in float32 or wider) or the MSM gives it."""
    n, c, height, width = x.shape
    wide = reference.accumulation_dtype(x.dtype)
    if name == "dynamic_conv2d":
        return torch.randn(n, c, 3, 3).to(wide), torch.randn(n, c).to(wide), 1, "reflect"
    if name == "local_mean":
        return (WINDOW,)
    if name == "spatial_mean":
        return ()
    if name == "pool_pyramid":
        return (RATES,)
    if name == "merge_pyramid":
        smaller = [x[:, :, : height // rate, : width // rate] for rate in RATES]
        return ([torch.empty_like(t).copy_(torch.randn(t.shape).bfloat16()) for t in smaller],)
    module = lam.make_module(c, "global").float().to(wide)
    norm = module.norm
    parameters = (module.project.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    gains = (module.low_gain, module.inner_gain, module.high_gain)
    tensors = [tensor.detach() for tensor in (*parameters, *gains)]
    return *tensors, (3, 3), False, norm.eps, "tanh", None


def make_call(
    functions: ModuleType, name: str, dtype: torch.dtype, layout: torch.memory_format, backward: bool
) -> Callable[[], list[Tensor]]:
    """A call of an operator, or of its backward pass alone, that returns what is to be checked."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE).bfloat16().to(dtype, memory_format=layout)
    arguments = make_inputs(name, x)
    function = getattr(functions, name)

    def forward() -> list[Tensor]:
        y = function(x, *arguments)
        return y if isinstance(y, list) else [y[0] if isinstance(y, tuple) else y]

    if not backward:
        return forward
    running = arguments[3:5] if name == "local_attention" else ()  # have no gradients
    given = [x, *(t for a in arguments for t in (a if isinstance(a, list) else [a]))]
    tensors = [t for t in given if isinstance(t, Tensor) and not any(t is other for other in running)]
    inputs = [tensor.requires_grad_() for tensor in tensors]
    y = forward()
    u = [torch.empty_like(t).copy_(torch.linspace(-1, 1, t.numel()).bfloat16().reshape(t.shape)) for t in y]
    return lambda: list(torch.autograd.grad(y, inputs, u, retain_graph=True))


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator(benchmark, name, backward, dtype, layout):
    expected = make_call(reference, name, torch.float64, layout, backward)()
    by_pytorch = make_call(reference, name, dtype, layout, backward)()
    call = make_call(ops, name, dtype, layout, backward)
    allowed = harness.allowed_error(harness.relative_error(by_pytorch, expected), dtype)
    assert harness.relative_error(call(), expected) <= allowed
    benchmark.group = f"{name}, {'backward' if backward else 'forward'}, {SHAPE}"
    benchmark(call)
