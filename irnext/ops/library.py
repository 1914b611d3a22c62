"""Loads the compiled library once and remembers why it could not be loaded."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

LIBRARY = Path(__file__).resolve().parent.parent / "_C.abi3.so"


@functools.cache
def load() -> str | None:
    """Load the compiled operators; the reason as one sentence if that fails, else None."""
    if not LIBRARY.exists():
        return (
            "the compiled library is missing: irnext was installed without a C++ compiler; "
            "install one and run 'pip install --no-build-isolation .' again"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        return f"the compiled library cannot be loaded: {first_line}"
    return None
