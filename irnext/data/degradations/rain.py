"""Rain: streaks of falling drops, and the veil of distant ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .checks import check_kinds, check_range, checked
from .depth import DEPTHS, draw_depth
from .haze import HazeLayer
from .particles import ParticleLayer, scatter

# Layers of drops, by their distance relative to the nearest ones.
DISTANCES = (1.0, 1.5, 2.2, 3.3)
LEAST_WIDTH = 0.35  # pixels; thinner streaks are drawn so wide, and fainter instead


def streak(length: float, width: float, angle: float) -> np.ndarray:
    """The path of a drop during one exposure: (2k + 1, 2k + 1) float32, at most 1.

    `length` and `width` (standard deviation) are in pixels; `angle` is that of its fall, 0 straight down,
    in radians towards the right. Both ends fade over a quarter of the length.
    """
    drawn = max(width, LEAST_WIDTH)
    reach = math.ceil(length / 2 + 3 * drawn)
    x = np.arange(-reach, reach + 1)
    y = x[:, None]
    along = np.abs(x * math.sin(angle) + y * math.cos(angle))
    across = x * math.cos(angle) - y * math.sin(angle)
    fade = np.clip((length / 2 + drawn - along) / (length / 4 + drawn), 0, 1)
    return (width / drawn * fade * np.exp(-0.5 * (across / drawn) ** 2)).astype(np.float32)


@dataclass(frozen=True)
class Rain:
    """Rain streaks in several layers of distance, before a veil of mist.

    A drop that moves during the exposure lets part of the background through and adds light from all
    around, hence bright streaks (Garg & Nayar 2007, "Vision and rain"); layers and veil as in Yang et al.
    2017, "Deep joint rain detection and removal". In a layer z times as far as the nearest, streaks are
    z times shorter and thinner. Opacities of streaks that overlap multiply: a = 1 - exp(-sum of depths).

    Args:
        density: range of the number of streaks per 1000 pixels, all layers together.
        length: range of the length of the nearest, in pixels.
        width: range of the width (standard deviation) of the nearest, in pixels.
        slant: range of the angle of their fall in radians, 0 straight down, above 0 to the right.
        opacity: range of the opacity of the strongest streaks, at least 0 and below 1.
        brightness: range of their brightness.
        veil: range of the optical thickness of the mist at the farthest point.
        depths: kinds of scene for the mist, with equal chance; see `Haze`.
    """

    density: tuple[float, float] = (1.0, 8.0)
    length: tuple[float, float] = (20.0, 60.0)
    width: tuple[float, float] = (0.7, 1.6)
    slant: tuple[float, float] = (-0.6, 0.6)
    opacity: tuple[float, float] = (0.3, 0.7)
    brightness: tuple[float, float] = (0.75, 1.0)
    veil: tuple[float, float] = (0.0, 0.08)
    depths: tuple[str, ...] = DEPTHS

    def __post_init__(self):
        check_range("density", self.density)
        check_range("length", self.length)
        check_range("width", self.width)
        check_range("slant", self.slant, -math.pi / 2, math.pi / 2)
        check_range("opacity", self.opacity, 0, 0.999)
        check_range("brightness", self.brightness, 0, 1)
        check_range("veil", self.veil)
        check_kinds("depths", self.depths, DEPTHS)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> ParticleLayer:
        """Draw the rain before a picture of height x width pixels."""
        density, length, thickness, slant = (
            rng.uniform(*values) for values in (self.density, self.length, self.width, self.slant)
        )
        strongest = -math.log(1 - rng.uniform(*self.opacity))
        optical_depth = np.zeros((height, width), np.float32)
        for distance in DISTANCES:
            shape = streak(
                length * rng.uniform(0.7, 1) / distance, thickness / distance, slant + rng.normal(0, 0.04)
            )
            # Farther layers hold more drops, as the view widens.
            number = density / 1000 * distance / sum(DISTANCES)
            optical_depth += strongest * scatter(rng, shape, number, height, width)
        colour = np.full(3, rng.uniform(*self.brightness), np.float32)
        mist = HazeLayer(draw_depth(rng, height, width, self.depths), rng.uniform(*self.veil), colour)
        return ParticleLayer(1 - np.exp(-optical_depth), colour, mist)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3) in rain drawn from `rng`: (H, W, 3) float32."""
        return self.sample(rng, *checked(clean).shape[:2])(clean)
