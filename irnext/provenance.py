"""What a number was computed from and with: the file of the weights, versions, device, decoder."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import nn

from . import info
from .optimization import OptimizedModel
from .version import __version__


def file_hash(path: str | os.PathLike) -> str:
    """The first 16 digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def describe_model(model: nn.Module) -> dict:
    """The name of the model's class, of the plain model where it is optimized, and its settings."""
    plain = model.plain if isinstance(model, OptimizedModel) else model
    return {"architecture": type(plain).__name__, **getattr(model, "settings", {})}


def environment(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Versions, the JPEG decoder, and what the model computes on, in (`dtype`, if not its own) and with."""
    weight = next(model.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    dtype = dtype or getattr(model, "dtype", None) or (None if weight is None else weight.dtype)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else info.processor()
    return {
        "irnext": __version__,
        "torch": torch.__version__,
        "jpeg decoder": info.jpeg_decoder(),
        "device": f"{device} ({processor})",
        "dtype": str(dtype).removeprefix("torch."),
        "backend": os.environ.get("IRNEXT_BACKEND") or "auto",
        "optimized": "yes" if isinstance(model, OptimizedModel) else "no",
    }
