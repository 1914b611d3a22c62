"""Activations that the backward pass computes again instead of keeping them.

A convolution keeps its input for the gradient of its weight; where that input is GELU(z), and z is
kept anyway for GELU's own gradient, keeping both doubles the memory of a training step for a
function that costs one cheap pass. The same holds of a merged pyramid and its parts.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def has_data(tensor: Tensor) -> bool:
    """Whether the address of the tensor's data is its own: not of an empty, fake or meta tensor."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.numel() > 0


class _Kept(NamedTuple):
    """What is kept for a saved tensor: the tensor itself, or what it is computed from by `function`."""

    tensor: Tensor | None
    version: int
    function: Callable[..., Tensor] | None
    inputs: tuple[_Kept, ...]


class _Origins:
    """How live tensors were computed, by the address of their data."""

    def __init__(self):
        self.entries: dict[int, tuple[weakref.ref, int, _Kept]] = {}

    def record(self, y: Tensor, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        address = y.data_ptr()
        self.entries[address] = (
            weakref.ref(y, lambda _: self.entries.pop(address, None)),
            y._version,
            _Kept(None, 0, function, tuple(self.kept(tensor.detach()) for tensor in inputs)),
        )

    def kept(self, saved: Tensor) -> _Kept:
        """The origin of `saved`, if it is a recorded tensor that was not written to since, or itself."""
        itself = _Kept(saved, saved._version, None, ())
        if not has_data(saved) or saved.data_ptr() not in self.entries:
            return itself
        reference, version, origin = self.entries[saved.data_ptr()]
        y = reference()
        if y is None or y._version != version or saved.dtype != y.dtype:
            return itself
        return origin if saved.shape == y.shape and saved.stride() == y.stride() else itself


class _State(threading.local):
    """Saved-tensor hooks belong to a thread, and so do the records they use."""

    origins: _Origins | None = None


_state = _State()


def remember(y: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """y, of which later operators, under `recomputing`, keep the inputs of y = function(*inputs) instead.

    That saves memory where the inputs are kept anyway.
    """
    if not torch.compiler.is_compiling() and _state.origins is not None and y.requires_grad and has_data(y):
        _state.origins.record(y, function, inputs)
    return y


def gelu(z: Tensor) -> Tensor:
    """GELU by the error function; under `recomputing`, later operators keep z instead of the result."""
    return remember(F.gelu(z), F.gelu, z)


def _pack(saved: Tensor) -> _Kept:
    return _Kept(saved, saved._version, None, ()) if _state.origins is None else _state.origins.kept(saved)


def _unpack(kept: _Kept) -> Tensor:
    if kept.tensor is None:
        return kept.function(*map(_unpack, kept.inputs))
    # Autograd leaves this check to the hooks.
    if kept.tensor._version != kept.version:
        raise RuntimeError(
            "a tensor needed for the gradient was changed in place after the forward pass "
            f"(shape {tuple(kept.tensor.shape)}, version {kept.tensor._version}, not {kept.version})"
        )
    return kept.tensor


def _can_hook() -> bool:
    """Whether a gradient is taken, and nobody else (checkpointing, offloading, ...) hooks saved tensors."""
    autograd = torch._C._autograd
    return (
        torch.is_grad_enabled()
        and autograd._saved_tensors_hooks_is_enabled()
        and autograd._top_saved_tensors_default_hooks(True) is None
    )


class recomputing:
    """`with recomputing(): y = model(x)`: the backward pass computes remembered results again.

    Does nothing where no gradient is taken, where saved tensors are hooked already, and under
    torch.compile, whose own partitioner decides.
    """

    def __enter__(self) -> None:
        self.hooks = None
        if torch.compiler.is_compiling() or not _can_hook():
            return
        self.previous, _state.origins = _state.origins, _Origins()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)
        self.hooks.__enter__()

    def __exit__(self, *exception) -> None:
        if self.hooks is not None:
            self.hooks.__exit__(*exception)
            _state.origins = self.previous
