"""Local attention on this machine, ours against the published formulation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import LocalAttention


@dataclass(frozen=True)
class Timing:
    """Local attention on this machine, published formulation against ours, in seconds.

    `forward` and `step` (forward and backward) are pairs (published, ours), each the median of
    interleaved runs on `shape`, as called, memory allocation included; `difference` is the largest
    between the two outputs, relative to the largest output.
    """

    shape: tuple[int, int, int, int]
    forward: tuple[float, float]
    step: tuple[float, float]
    difference: float


def time_local_attention(shape: tuple[int, int, int, int] = (1, 32, 128, 128), runs: int = 15) -> Timing:
    """Time `LocalAttention` against its published formulation, after checking that they agree.

    Raises ArithmeticError where the outputs differ by more than rounding: such times mean nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LocalAttention(shape[1])
    for gain in (module.low_gain, module.high_gain, module.inner_gain):
        # They start at zero, where the module is the identity and a comparison shows nothing.
        torch.nn.init.normal_(gain, generator=generator)
    module.eval()
    z = torch.randn(shape, generator=generator).requires_grad_()
    with torch.no_grad():
        ours, published = module(z), published_local_attention(module, z)
    difference = ((ours - published).abs().max() / published.abs().max()).item()
    if not difference < 1e-5:
        raise ArithmeticError(f"local attention differs from its published formulation by {difference:.1e}")

    with torch.no_grad():
        forward = _medians((lambda: published_local_attention(module, z), lambda: module(z)), runs)
    step = _medians(
        (lambda: published_local_attention(module, z).sum().backward(), lambda: module(z).sum().backward()),
        runs,
    )
    return Timing(shape, forward, step, difference)


def published_local_attention(module: LocalAttention, z: Tensor) -> Tensor:
    """`module(z)` as the published code forms it: every pixel's neighbours unfolded, then summed."""
    n, c, h, w = z.shape
    margin = module.kernel_size // 2
    mean = z.mean((2, 3), keepdim=True)
    weights = module.norm(module.project(mean)).reshape(n, module.groups, 1, -1, 1).tanh()
    neighbours = F.unfold(F.pad(z, (margin,) * 4, "reflect"), module.kernel_size)
    neighbours = neighbours.reshape(n, module.groups, c // module.groups, -1, h * w)
    low = (weights * neighbours).sum(3).reshape(n, c, h, w)
    low = low * (module.inner_gain + 1) - module.inner_gain * mean
    return low * module.low_gain[:, None, None] + z * (module.high_gain[:, None, None] + 1)


def _medians(functions: Sequence[Callable[[], object]], runs: int) -> tuple[float, float]:
    """The median time of each function in seconds, run in turn so that a disturbance hits all."""
    times = [[] for _ in functions]
    for run_index in range(runs + 2):  # the first two warm up
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if run_index >= 2:
                taken.append(time.perf_counter() - started)
    return tuple(float(np.median(taken)) for taken in times)
