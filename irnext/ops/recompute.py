"""Activations that the backward pass computes again instead of keeping them.

A convolution keeps its input for the gradient of its weight; where that input is GELU(z), and z is
kept anyway for GELU's own gradient, keeping both doubles the memory of a training step for a
function that costs one cheap pass.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Origins:
    """Which live tensors are GELU of which others, by the address of their data."""

    def __init__(self):
        self.entries: dict[int, tuple[weakref.ref, int, Tensor]] = {}

    def record(self, y: Tensor, z: Tensor) -> None:
        address = y.data_ptr()
        self.entries[address] = (
            weakref.ref(y, lambda _: self.entries.pop(address, None)),
            y._version,
            z.detach(),
        )

    def find(self, saved: Tensor) -> Tensor | None:
        """z where `saved` is the very GELU(z) that was recorded and has not been written to since."""
        entry = self.entries.get(saved.data_ptr())
        if entry is None:
            return None
        reference, version, z = entry
        y = reference()
        if y is None or y._version != version or saved.dtype != y.dtype:
            return None
        return z if saved.shape == y.shape and saved.stride() == y.stride() else None


class _State(threading.local):
    """Saved-tensor hooks belong to a thread, and so do the records they use."""

    origins: _Origins | None = None


_state = _State()


def gelu(z: Tensor) -> Tensor:
    """GELU by the error function; under `recomputing`, later operators keep z instead of the result."""
    y = F.gelu(z)
    if not torch.compiler.is_compiling() and _state.origins is not None and y.requires_grad:
        _state.origins.record(y, z)
    return y


class _Packed(NamedTuple):
    """A tensor, its version when it was kept, and whether GELU of it is what is wanted."""

    tensor: Tensor
    version: int
    is_origin: bool


def _pack(saved: Tensor) -> _Packed:
    z = None if _state.origins is None else _state.origins.find(saved)
    kept = saved if z is None else z
    return _Packed(kept, kept._version, z is not None)


def _unpack(packed: _Packed) -> Tensor:
    # Autograd leaves this check to the hooks.
    if packed.tensor._version != packed.version:
        raise RuntimeError(
            "a tensor needed for the gradient was changed in place after the forward pass "
            f"(shape {tuple(packed.tensor.shape)}, version {packed.tensor._version}, not {packed.version})"
        )
    return F.gelu(packed.tensor) if packed.is_origin else packed.tensor


def _can_hook() -> bool:
    """Whether a gradient is taken, and nobody else (checkpointing, offloading, ...) hooks saved tensors."""
    autograd = torch._C._autograd
    return (
        torch.is_grad_enabled()
        and autograd._saved_tensors_hooks_is_enabled()
        and autograd._top_saved_tensors_default_hooks(True) is None
    )


class recomputing:
    """`with recomputing(): y = model(x)`: the backward pass computes the results of `gelu` again.

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
