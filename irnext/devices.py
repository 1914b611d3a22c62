"""Which devices can compute."""

from __future__ import annotations

import torch


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str | torch.device) -> None:
    """Raise ValueError, with PyTorch's reason, unless tensors can be made on `device`."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
