"""The operators as Triton kernels, for NVIDIA GPUs; imported as `irnext.kernels`.

Importing this package needs neither Triton nor a GPU; `irnext.kernels.ops` needs Triton.
"""

from __future__ import annotations

import importlib.util
import os

import torch


def unavailable() -> str | None:
    """Why the Triton kernels cannot serve here, as one sentence; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: run 'pip install triton'"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return None
    return "PyTorch sees no CUDA device, and TRITON_INTERPRET=1 was not set before Python started"
