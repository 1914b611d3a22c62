"""Loads a compiled library once and remembers why it could not be loaded."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
CPU = _PACKAGE / "_C.abi3.so"  # with the CUDA kernels too, where it was built with nvcc
CUDA_HOST = _PACKAGE / "_cuda_host.abi3.so"
_MISSING = {
    CPU: (
        "the compiled library is missing: irnext was installed without a C++ compiler; "
        "install one and run 'pip install --no-build-isolation .' again"
    ),
    CUDA_HOST: (
        "this installation has no CUDA kernels built for the CPU: they are for development; "
        "set IRNEXT_CUDA_HOST=1 and run 'pip install --no-build-isolation --editable .' again"
    ),
}


@functools.cache
def load(path: Path) -> str | None:
    """Load the compiled operators of `path`; the reason as one sentence if that fails, else None."""
    if not path.exists():
        return _MISSING[path]
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        return f"the compiled library cannot be loaded: {first_line}"
    return None
