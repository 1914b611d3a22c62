"""Which implementation serves a call, and why another cannot."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from . import library, reference, registration
from .convolution import fused_serves


class BackendStatus(NamedTuple):
    """Whether a backend can be used here; where it cannot, `reason` says why."""

    available: bool
    reason: str
    ops: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.available


AUTO = "auto"
COMPILED_OPS = (
    "dynamic_conv2d",
    "spatial_mean",
    "local_mean",
    "local_attention",
    "update_statistics",
    "pool_pyramid",
    "merge_pyramid",
)
ALL_OPS = (*COMPILED_OPS, *registration.COMPOSITES)


# ---- what is there -------------------------------------------------------------------------------


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"


def _cuda_failure() -> str | None:
    if registration.load_failure:
        return registration.load_failure
    if not hasattr(torch.ops.irnext, "launches"):
        return (
            "the compiled library was built without CUDA: "
            "install nvcc, set IRNEXT_CUDA=1 and run 'pip install --no-build-isolation .' again"
        )
    return _no_gpu()


def _triton_failure() -> str | None:
    from .. import kernels

    return kernels.unavailable()


def _triton_device() -> str:
    """The device whose tensors Triton serves: the CPU where its interpreter is asked for."""
    return "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


FAILURES: dict[str, Callable[[], str | None]] = {
    "reference": lambda: None,
    "cpu": lambda: registration.load_failure,
    "cuda": _cuda_failure,
    "triton": _triton_failure,
    "cuda-host": lambda: library.load(library.CUDA_HOST),
}
NAMES = (AUTO, *FAILURES)


def _describe(backend: str) -> str:
    """What an available backend is."""
    if backend == "cpu":
        return f"compiled C++, {torch.ops.irnext.cpu_instructions()} instructions"
    return {
        "reference": "plain PyTorch, on every device",
        "cuda": "compiled CUDA C++",
        "triton": f"Triton kernels, for {'CPU' if _triton_device() == 'cpu' else 'CUDA'} tensors",
        "cuda-host": "the source of the CUDA kernels run on the CPU, to test it",
    }[backend]


def backends() -> dict[str, BackendStatus]:
    """Every backend by name: whether it can be used and, if not, why.

    `ops` names the operators the backend has kernels for; the others run as the
    reference's PyTorch operators on the same device.
    """
    found = {}
    for name, why_not in FAILURES.items():
        failure = why_not()
        ops = () if failure else ALL_OPS if name == "reference" else COMPILED_OPS
        found[name] = BackendStatus(failure is None, failure or _describe(name), ops)
    return found


# ---- what was chosen -----------------------------------------------------------------------------

_devices = {"cpu": "cpu", "cuda": "cuda", "triton": _triton_device(), "cuda-host": "cpu"}
_dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_tables: dict[str, dict[str, Callable]] = {}  # the operators, by name, of backends found usable


def _prepare(backend: str) -> None:
    """Register the operators of a backend when it is first wanted; raise if it cannot be used."""
    if backend not in NAMES:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(NAMES)}")
    if reason := FAILURES[backend]():
        raise RuntimeError(f"backend {backend!r} cannot be used: {reason}")
    operators = registration.OPERATORS
    if backend == "triton":
        from ..kernels.ops import OPERATORS

        operators = registration.register("irnext_triton", OPERATORS, _triton_device().upper())
    if backend == "cuda-host":
        operators = registration.register("irnext_cuda_host")
    _tables[backend] = vars(operators)


def _choose() -> dict[str, str]:
    """The fastest backend by device type."""
    usable = [name for name in ("cpu", "triton", "cuda") if FAILURES[name]() is None]
    if "triton" in usable and _devices["triton"] == "cpu":  # an interpreter is for tests
        usable.remove("triton")
    for name in usable:
        _prepare(name)
    # Compiled CUDA kernels come before Triton's: a call of theirs costs less.
    return {_devices[name]: name for name in usable}


_automatic = _choose()
_requested = os.environ.get("IRNEXT_BACKEND") or AUTO
if _requested in FAILURES and FAILURES[_requested]() is None:
    _prepare(_requested)  # now, since torch.compile cannot
_counting = False


def chosen(device: str) -> str:
    """The backend that serves tensors on a type of device, wherever it can."""
    return _automatic.get(device, "reference") if _requested == AUTO else _requested


class use_backend:
    """Serve the operators by one backend: `with irnext.use_backend("reference"): ...`.

    Outside any `with`, the environment variable IRNEXT_BACKEND decides; without it
    the choice is "auto": the fastest backend that can serve the call. The choice
    holds for the whole process, as PyTorch's own backend flags do; the gradient of an
    operator runs on the backend that ran the operator.

    "triton" serves CPU tensors where the environment has TRITON_INTERPRET=1 (set before
    Python starts), by Triton's interpreter, and "cuda-host" runs the CUDA kernels' own
    source on the CPU: both slowly, to test the kernels where there is no GPU.

    Where several threads choose, each must leave before the next enters, or the last to leave decides.

    Raises ValueError for an unknown name and RuntimeError, with the reason, for a
    backend that cannot be used here.
    """

    def __init__(self, name: str):
        if name != AUTO and name not in _tables:
            _prepare(name)
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
    """Route every call through registered operators of one meaning each, whatever the backend.

    A dispatch mode then sees the same operators everywhere; `irnext.complexity` counts so.
    """

    def __enter__(self) -> None:
        global _counting
        self.previous, _counting = _counting, True

    def __exit__(self, *exception) -> None:
        global _counting
        _counting = self.previous


def _why_not(backend: str, x: torch.Tensor) -> str | None:
    """Why a backend cannot serve an operator on x, or None."""
    if x.device.type != _devices[backend]:
        where = "the CPU" if _devices[backend] == "cpu" else "a CUDA device"
        return f"x is on {x.device}, not on {where}"
    if x.dtype not in _dtypes:
        return f"x is {x.dtype}: it must be one of {', '.join(map(str, _dtypes))}"
    return None


def implementation(op: str, x: torch.Tensor) -> Callable:
    """The function that serves `op` on `x`'s device."""
    if _counting:
        if op == "local_attention":  # its parts are counted
            return functools.partial(reference.local_attention, operators=registration.OPERATORS)
        return getattr(registration.OPERATORS, op)
    if _requested == AUTO:
        backend = _automatic.get(x.device.type)
    elif _requested == "reference":
        backend = None
    else:
        backend = _requested
        if backend not in _tables:
            _prepare(backend)
        if reason := _why_not(backend, x):
            raise RuntimeError(f"backend {backend!r} cannot serve {op}: {reason}")
    if backend is None or op not in COMPILED_OPS or _transformed():
        return getattr(reference, op)
    return _tables[backend][op]


def _transformed() -> bool:
    """Whether derivatives are taken that registered operators do not have.

    They would lose the tangent of forward-mode derivatives without a word, and torch.func's
    transforms refuse them.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def fused_convolution(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None
) -> Callable | None:
    """The registered operator that serves this convolution, or None where PyTorch's own should."""
    if (
        _counting
        or _requested not in (AUTO, "cpu")
        or not fused_serves(x, weight, residual)
        or _transformed()
    ):
        return None
    return _tables["cpu"]["fused_conv2d"]
