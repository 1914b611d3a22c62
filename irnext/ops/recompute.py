"""Activations that the backward pass computes again instead of keeping them.

A convolution keeps its input for the gradient of its weight; where that input is GELU(z), and z is
kept anyway for GELU's own gradient, keeping both doubles the memory of a training step for a
function that costs one cheap pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

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


_origins: _Origins | None = None


def gelu(z: Tensor) -> Tensor:
    """GELU by the error function; under `recomputing`, later operators keep z instead of the result."""
    y = F.gelu(z)
    if _origins is not None and y.requires_grad:
        _origins.record(y, z)
    return y


def _pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
    z = None if _origins is None else _origins.find(saved)
    return saved if z is None else lambda: F.gelu(z)


def _unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()


class recomputing:
    """`with recomputing(): y = model(x)`: the backward pass computes the results of `gelu` again.

    Does nothing where no gradient is taken, and under torch.compile, whose own partitioner decides.
    """

    def __enter__(self) -> None:
        global _origins
        self.hooks = None
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self.previous, _origins = _origins, _Origins()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)
        self.hooks.__enter__()

    def __exit__(self, *exception) -> None:
        global _origins
        if self.hooks is not None:
            self.hooks.__exit__(*exception)
            _origins = self.previous
