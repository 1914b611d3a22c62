"""Which implementation serves a call, and why another cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from . import reference, registration


class BackendStatus(NamedTuple):
    """Whether a backend can be used here; where it cannot, `reason` says why."""

    available: bool
    reason: str
    ops: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.available


COMPILED_OPS = ("dynamic_conv2d", "spatial_mean", "modulated_filter")
OPERATORS = {name: getattr(torch.ops.irnext, name).default for name in registration.SCHEMAS}
ALL_OPS = tuple(name for name in registration.SCHEMAS if not name.endswith("_backward"))


def backends() -> dict[str, BackendStatus]:
    """Every backend by name: whether it can be used and, if not, why.

    `ops` names the operators the backend has kernels for; the others run as the
    reference's PyTorch operators on the same device.
    """
    no_gpu = "" if torch.cuda.is_available() else " and PyTorch sees no CUDA device"
    failure = registration.load_failure
    compiled = failure or f"compiled C++, {torch.ops.irnext.cpu_instructions()} instructions"
    return {
        "reference": BackendStatus(True, "plain PyTorch, on every device", ALL_OPS),
        "cpu": BackendStatus(failure is None, compiled, COMPILED_OPS),
        "cuda": BackendStatus(False, f"this release has no CUDA kernels yet{no_gpu}", ()),
        "triton": BackendStatus(False, f"this release has no Triton kernels yet{no_gpu}", ()),
    }


AUTO = "auto"
NAMES = (AUTO, *backends())
_cpu_available = backends()["cpu"].available
_requested = os.environ.get("IRNEXT_BACKEND", AUTO)
_counting = False


def _require(name: str) -> None:
    """Raise unless `name` is a backend that can be used here."""
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    if name != AUTO and not (status := backends()[name]):
        raise RuntimeError(f"backend {name!r} cannot be used: {status.reason}")


class use_backend:
    """Serve the operators by one backend: `with irnext.use_backend("reference"): ...`.

    Outside any `with`, the environment variable IRNEXT_BACKEND decides; without it
    the choice is "auto": the fastest backend that can serve the call. The choice
    holds for the whole process, as PyTorch's own backend flags do.

    Raises ValueError for an unknown name and RuntimeError, with the reason, for a
    backend that cannot be used here.
    """

    def __init__(self, name: str):
        _require(name)
        self.name = name
        self.previous: list[str] = []  # one object may be entered several times

    def __enter__(self) -> use_backend:
        global _requested
        self.previous.append(_requested)
        _requested = self.name
        return self

    def __exit__(self, *exception) -> None:
        global _requested
        _requested = self.previous.pop()


class registered_operators:
    """Route every call through the registered operators, whatever the backend.

    A dispatch mode then sees the same operators everywhere; `irnext.complexity` counts so.
    """

    def __enter__(self) -> None:
        global _counting
        self.previous, _counting = _counting, True

    def __exit__(self, *exception) -> None:
        global _counting
        _counting = self.previous


def implementation(op: str, x: torch.Tensor) -> Callable:
    """The function that serves `op` on `x`'s device."""
    if _counting:
        return OPERATORS[op]
    on_cpu = x.device.type == "cpu"
    if _requested not in (AUTO, "reference"):
        if _requested != "cpu" or not _cpu_available:
            _require(_requested)
        if not on_cpu:
            raise RuntimeError(f"backend 'cpu' cannot serve {op}: x is on {x.device}, not on the CPU")
    compiled = _requested != "reference" and on_cpu and _cpu_available and op in COMPILED_OPS
    if forward_ad._current_level >= 0:  # registered operators would lose the tangent without a word
        compiled = False
    return OPERATORS[op] if compiled else getattr(reference, op)
