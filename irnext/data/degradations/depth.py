"""Relative depth maps of imagined scenes: 0 at the nearest point, 1 at the farthest."""

from __future__ import annotations

import numpy as np

DEPTHS = ("ramp", "tilted", "relief")


def depth_ramp(height: int, width: int, angle: float = 0.0) -> np.ndarray:
    """A plane that recedes steadily: (height, width) float32 from 0, nearest, to 1, farthest.

    It recedes towards the top of the picture, as open ground does, turned clockwise by `angle`
    radians.
    """
    up = np.linspace(1, 0, height)[:, None]
    right = np.linspace(0, 1, width)[None]
    return _stretch(np.cos(angle) * up + np.sin(angle) * right)


def depth_relief(rng: np.random.Generator, height: int, width: int, cells: int = 4) -> np.ndarray:
    """Smooth hills: (height, width) float32 from 0 to 1, interpolated between cells x cells heights."""
    return _stretch(_blend(cells, height) @ rng.random((cells, cells)) @ _blend(cells, width).T)


def _blend(cells: int, size: int) -> np.ndarray:
    """Interpolation weights (size, cells), each row between two neighbours with a cosine's ease."""
    position = np.linspace(0, cells - 1, size)
    left = np.minimum(position.astype(int), cells - 2)
    share = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    weights = np.zeros((size, cells))
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] = share
    return weights


def _stretch(depth: np.ndarray) -> np.ndarray:
    """Scale to the range 0 to 1; a flat map becomes 0."""
    low, high = depth.min(), depth.max()
    return ((depth - low) / max(high - low, np.finfo(depth.dtype).tiny)).astype(np.float32)


def draw_depth(rng: np.random.Generator, height: int, width: int, kinds: tuple[str, ...]) -> np.ndarray:
    """The depth (height, width) of a random scene, of one of `kinds` (of DEPTHS) with equal chance.

    "ramp" recedes to the top of the picture, "tilted" in any direction, "relief" is smooth and random.
    """
    kind = kinds[rng.integers(len(kinds))]
    if kind == "relief":
        return depth_relief(rng, height, width)
    return depth_ramp(height, width, rng.uniform(-np.pi, np.pi) if kind == "tilted" else 0.0)
