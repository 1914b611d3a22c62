"""Snow: falling flakes, and the veil of distant ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .checks import check_kinds, check_range, checked
from .depth import DEPTHS, draw_depth
from .haze import HazeLayer
from .particles import ParticleLayer, scatter

LAYERS = 8  # of flakes, from the smallest to the largest
MOMENTS = 8  # of the exposure, at which a falling flake is drawn


def flake(rng: np.random.Generator, radius: float, softness: float, fall: tuple[float, float]) -> np.ndarray:
    """A flake of random outline: (2k + 1, 2k + 1) float32, at most 1.

    `radius` is its mean radius in pixels, `softness` the share of it over which the edge fades, and
    `fall` how far it moves during the exposure, to the right and downwards, in pixels.
    """
    reach = math.ceil(1.5 * radius + max(abs(step) for step in fall) / 2 + 1)
    x = np.arange(-reach, reach + 1)
    waves = [(order, rng.uniform(0, 0.35 / order), rng.uniform(0, 2 * np.pi)) for order in (2, 3, 5)]
    total = np.zeros((len(x), len(x)))
    for time in np.linspace(-0.5, 0.5, MOMENTS):
        right, down = x - time * fall[0], x[:, None] - time * fall[1]
        angle = np.arctan2(down, right)
        outline = radius * (1 + sum(size * np.cos(order * angle + phase) for order, size, phase in waves))
        # At least a pixel wide, so that the edge is smooth; a flake below a pixel is faint instead.
        edge = max(softness * radius, 1.0)
        total += np.clip((outline - np.hypot(right, down)) / edge + 0.5, 0, 1)
    return (total / MOMENTS).astype(np.float32)


@dataclass(frozen=True)
class Snow:
    """Flakes of many sizes, before a veil.

    K = J (1 - z) + c z with z the flakes' opacity (Liu et al. 2018, "DesnowNet"), and the veil of Chen et
    al. 2020, "JSTASR". Near flakes are large, few, out of focus and let much of the scene through; far
    ones are small, many and dense. All fall in about one direction, near ones faster.

    Args:
        density: range of the share of the picture that flakes would cover side by side.
        radius: range of the radius of the largest flakes, in pixels; the smallest have half a pixel.
        slant: range of the angle of their fall in radians, 0 straight down, above 0 to the right.
        speed: range of the way they fall during the exposure, in their radii.
        opacity: range of the opacity of the far flakes, at least 0 and below 1.
        brightness: range of their brightness.
        veil: range of the optical thickness of the veil at the farthest point.
        depths: kinds of scene for the veil, with equal chance; see `Haze`.
    """

    density: tuple[float, float] = (0.04, 0.25)
    radius: tuple[float, float] = (3.0, 8.0)
    slant: tuple[float, float] = (-0.8, 0.8)
    speed: tuple[float, float] = (0.0, 3.0)
    opacity: tuple[float, float] = (0.6, 0.95)
    brightness: tuple[float, float] = (0.85, 1.0)
    veil: tuple[float, float] = (0.0, 0.15)
    depths: tuple[str, ...] = DEPTHS

    def __post_init__(self):
        check_range("density", self.density)
        check_range("radius", self.radius, 0.5)
        check_range("slant", self.slant, -math.pi, math.pi)
        check_range("speed", self.speed)
        check_range("opacity", self.opacity, 0, 0.999)
        check_range("brightness", self.brightness, 0, 1)
        check_range("veil", self.veil)
        check_kinds("depths", self.depths, DEPTHS)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> ParticleLayer:
        """Draw the snow before a picture of height x width pixels."""
        density, largest, slant, speed, opacity = (
            rng.uniform(*values)
            for values in (self.density, self.radius, self.slant, self.speed, self.opacity)
        )
        optical_depth = np.zeros((height, width), np.float32)
        for nearness in np.linspace(0, 1, LAYERS):
            radius = 0.5 * (largest / 0.5) ** nearness
            direction, way = slant + rng.normal(0, 0.2), speed * radius * rng.uniform(0.5, 1)
            fall = way * math.sin(direction), way * math.cos(direction)
            shape = flake(rng, radius, 0.3 + 0.9 * nearness, fall)
            strength = -math.log(1 - opacity * (1 - 0.5 * nearness))
            number = density / LAYERS * (0.4 + 1.2 * nearness) / (math.pi * radius**2)
            optical_depth += strength * scatter(rng, shape, number, height, width)
        colour = np.full(3, rng.uniform(*self.brightness), np.float32)
        veil = HazeLayer(draw_depth(rng, height, width, self.depths), rng.uniform(*self.veil), colour)
        return ParticleLayer(1 - np.exp(-optical_depth), colour, veil)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3) in snow drawn from `rng`: (H, W, 3) float32."""
        return self.sample(rng, *checked(clean).shape[:2])(clean)
