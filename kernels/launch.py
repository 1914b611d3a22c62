"""One place where every kernel is launched: on the device of its tensors, or into a list."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

LARGEST_INT32 = 2**31 - 1
FUSE = True  # multiply and add in one instruction; said aloud, as Triton's default changes


class Launch(NamedTuple):
    """A kernel with all that decides what it is compiled to."""

    kernel: Any
    arguments: tuple
    constants: dict[str, Any]
    warps: int
    stages: int


_recorded: list[Launch] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of performing them: no device is needed, tensors may be on "meta"."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel, programs: int, *arguments, warps: int = 4, stages: int = 1, **constants) -> None:
    """Run `programs` programs of the kernel on the device of its first argument, on the current stream."""
    if not programs:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, arguments, constants, warps, stages))
        return
    device = arguments[0].device
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](
            *arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=FUSE
        )


def needs_int64(*tensors: torch.Tensor) -> bool:
    """Whether an offset into one of the tensors does not fit into 32 bits."""
    return any(
        sum((size - 1) * abs(stride) for size, stride in zip(t.shape, t.stride(), strict=True))
        > LARGEST_INT32
        for t in tensors
    )
