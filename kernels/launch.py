"""One place where every kernel is launched: on the device of its tensors, or into a list.

With it what all launches are made of: types of sums and offsets, tiles, and how many there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton.language as tl

from .configuration import Config

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


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """The type sums over x are taken in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def number_types(*tensors: torch.Tensor, large: bool = False) -> dict:
    """The type of sums and of offsets for kernels that read and write `tensors`, the first being x.

    `large` says that other integers of the kernel need 64 bits.
    """
    return {
        "ACC": tl.float64 if tensors[0].dtype == torch.float64 else tl.float32,
        "INDEX": tl.int64 if large or needs_int64(*tensors) else tl.int32,
    }


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def tile_of(config: Config) -> dict:
    """The arguments of a launch whose programs have one tile of `config` each."""
    return {
        "B_H": config.rows,
        "B_W": config.columns,
        "B_C": config.channels,
        "warps": config.warps,
        "stages": config.stages,
    }


def count_tiles(x: torch.Tensor, config: Config) -> tuple[int, int]:
    """How many tiles a plane has, and how many planes (or tiles of channels) there are."""
    n, c, h, w = x.shape
    return cdiv(h, config.rows) * cdiv(w, config.columns), n * cdiv(c, config.channels)
