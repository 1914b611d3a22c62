"""The weights that come with the package: small models for synthetic degradations, not the paper's.

How each was trained stands beside it in `irnext/weights/TASK.json`, and `python -m benchmarks.pretrained`
trains and measures them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from . import checkpoints
from .data.degradations import DEGRADATIONS
from .model import IRNeXt

WEIGHTS = Path(str(resources.files("irnext") / "weights"))


def list_pretrained() -> list[str]:
    """The tasks whose weights are here."""
    return [task for task in DEGRADATIONS if path_of(task).is_file()]


def path_of(task: str) -> Path:
    """Where the weights of a task are; ValueError for a task that has none, listing those that have."""
    if task not in DEGRADATIONS:
        raise ValueError(
            f"no weights come with the package for {task!r}: there are weights for "
            f"{', '.join(DEGRADATIONS)}; give your own with --weights"
        )
    return WEIGHTS / f"{task}.safetensors"


def load_pretrained(task: str, device: str = "cpu") -> IRNeXt:
    """The model of a task ("haze", "motion-blur", "defocus", "rain" or "snow") in eval mode on `device`.

    These are small models, trained for minutes on synthetic degradations of a few photographs and of
    dead-leaves images: enough to restore at once and to begin a training with, far from the paper's.

    Raises ValueError for a task without weights.
    """
    return checkpoints.load(path_of(task), device=device)
