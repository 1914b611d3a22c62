"""Particles in the air before the camera, as rain and snow have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .checks import checked
from .convolution import convolve
from .haze import HazeLayer


@dataclass(frozen=True)
class ParticleLayer:
    """Particles and the veil of those too far to be told apart: I = K (1 - a) + c a.

    K is the picture in the veil. The equation is applied to stored (gamma-encoded) values, as deraining
    and desnowing data sets do.

    Attributes:
        opacity: a (H, W) in [0, 1], the share of a pixel's light that comes from particles.
        colour: c (3,), of the particles, in [0, 1].
        veil: haze by the particles in the distance.
    """

    opacity: np.ndarray
    colour: np.ndarray
    veil: HazeLayer

    def __call__(self, clean: np.ndarray) -> np.ndarray:
        """The picture I (H, W, 3) behind the particles."""
        opacity = self.opacity[..., None]
        veiled = self.veil(checked(clean, self.opacity.shape, "weather"))
        return (veiled * (1 - opacity) + self.colour * opacity).astype(np.float32)


def scatter(
    rng: np.random.Generator, kernel: np.ndarray, density: float, height: int, width: int
) -> np.ndarray:
    """Copies of `kernel` (k, k), k odd, at random places with strengths from 0.3 to 1, summed.

    `density` is their expected number per pixel. Those partly outside count too. Returns
    (height, width) float32.
    """
    margin = len(kernel) - 1
    canvas = np.zeros((height + margin, width + margin), np.float32)
    count = rng.poisson(density * canvas.size)
    strength = rng.uniform(0.3, 1, count).astype(np.float32)
    y, x = rng.random(count) * (canvas.shape[0] - 1), rng.random(count) * (canvas.shape[1] - 1)
    top, left = y.astype(int), x.astype(int)
    down, right = y - top, x - left
    # Between four pixels, so that places are finer than the grid. A canvas of one row has no next one.
    for row, column, share in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        inside = (row < canvas.shape[0]) & (column < canvas.shape[1])
        np.add.at(canvas, (row[inside], column[inside]), (share * strength)[inside])
    return convolve(canvas, kernel).clip(0)
