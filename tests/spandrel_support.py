"""spandrel, also where torchvision has no compiled operators, as beside a PyTorch for CPUs."""

from __future__ import annotations

from types import ModuleType

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_spandrel() -> ModuleType:
    """The module `spandrel`; what torchvision describes and does not have is declared, and never called."""
    try:
        import torchvision  # noqa: F401 - by spandrel's networks
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", SCHEMA)
    import spandrel

    return spandrel
