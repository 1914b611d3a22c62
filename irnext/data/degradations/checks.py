"""What every degradation asks of its pictures and settings."""

from __future__ import annotations

import numpy as np


def checked(clean: np.ndarray, size: tuple[int, int] | None = None, what: str = "layer") -> np.ndarray:
    """`clean`, where it is a float picture (H, W, 3) of `size`; ValueError or TypeError otherwise."""
    if clean.ndim != 3 or clean.shape[2] != 3:
        raise ValueError(f"a picture must be (H, W, 3), got {clean.shape}")
    if not np.issubdtype(clean.dtype, np.floating):
        raise TypeError(f"a picture must hold floats in [0, 1], got {clean.dtype}")
    if size is not None and clean.shape[:2] != size:
        raise ValueError(f"the picture is {clean.shape[:2]} but the {what} was drawn for {size}")
    return clean


def check_range(name: str, values: tuple[float, float], low: float = 0.0, high: float = np.inf) -> None:
    """Raise ValueError unless `values` is a rising, finite range within `low` to `high`."""
    bounds = f"from at least {low:g}" if high == np.inf else f"within {low:g} to {high:g}"
    if not (len(values) == 2 and low <= values[0] <= values[1] <= high and np.isfinite(values[1])):
        raise ValueError(f"{name} is {values}: it must be a rising range {bounds}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: it must be within 0 to 1")


def check_kinds(name: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise ValueError unless `chosen` names at least one of `known` and nothing else."""
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"{name} is {chosen}: choose some of {', '.join(known)}")
