"""Defocus of a thin lens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .checks import check_kinds, check_range, checked
from .convolution import convolve
from .depth import DEPTHS, draw_depth
from .light import draw_noise, to_light, to_stored, with_noise


def disc(radius: float) -> np.ndarray:
    """The image of a point out of focus: a disc with a smooth edge, (2k + 1, 2k + 1) float32 of sum 1.

    Up to a radius of half a pixel that is the point itself.
    """
    reach = math.ceil(radius - 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.clip(radius + 0.5 - np.hypot(offsets, offsets[:, None]), 0, 1)
    return (weights / weights.sum()).astype(np.float32)


@dataclass(frozen=True)
class DefocusLayer:
    """One exposure of a scene by a lens in focus at one distance.

    A point at distance d is imaged as a disc, the circle of confusion, whose radius follows
    |1/d_f - 1/d|, d_f being the distance in focus (thin lens). The scene is cut into layers whose
    radii are a pixel apart. From the farthest to the nearest, each covers what lies behind it:
    out <- out (1 - a_k) + disc_k * (M_k J), a_k = disc_k * M_k, where M_k in [0, 1] is 1 at the layer's
    depth and nearer, and falls to 0 on the way to the layer behind. What a nearer thing hides is
    unknown; its own light stands in there.

    Attributes:
        radius: signed radius of the circle of confusion (H, W) in pixels, below 0 behind the focus.
        noise: of the sensor (H, W, 3), as `light.with_noise` adds it, or None.
    """

    radius: np.ndarray
    noise: np.ndarray | None = None

    def __call__(self, clean: np.ndarray) -> np.ndarray:
        """The picture (H, W, 3) as the lens shows the sharp one, which is reflected beyond its border."""
        light = to_light(checked(clean, self.radius.shape, "lens")).transpose(2, 0, 1)
        farthest, nearest = math.floor(self.radius.min()), math.ceil(self.radius.max())
        exposure = _spread(light, disc(abs(farthest)))
        for level in range(farthest + 1, nearest + 1):
            mask = np.clip(self.radius - (level - 1), 0, 1)[None]
            covered = _spread(np.concatenate([mask * light, mask]), disc(abs(level)))
            exposure = exposure * (1 - covered[3]) + covered[:3]
        return to_stored(with_noise(exposure.transpose(1, 2, 0), self.noise))


def _spread(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`planes` (C, H, W), reflected beyond their border, convolved with `kernel`: (C, H, W)."""
    reach = len(kernel) // 2
    if not reach:
        return planes
    return convolve(np.pad(planes, ((0, 0), (reach, reach), (reach, reach)), "symmetric"), kernel)


@dataclass(frozen=True)
class Defocus:
    """Blur by a lens that is in focus at one distance only.

    Light is spread, not stored values, which are taken as sRGB. The maps of `depths` are taken as the
    inverse of the distance, relative between the farthest and the nearest point: on a plane, such as
    the ground, it is that which changes steadily over the picture.

    Args:
        radius: range of the radius of the circle of confusion at the farthest from the focus, in pixels.
        focus: range of the relative inverse distance in focus, 0 the farthest point, 1 the nearest.
        noise: range of the photon noise's standard deviation in full light.
        depths: kinds of scene to draw from, with equal chance; see `Haze`.
    """

    radius: tuple[float, float] = (2.0, 8.0)
    focus: tuple[float, float] = (0.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.01)
    depths: tuple[str, ...] = DEPTHS

    def __post_init__(self):
        check_range("radius", self.radius)
        check_range("focus", self.focus, 0, 1)
        check_range("noise", self.noise)
        check_kinds("depths", self.depths, DEPTHS)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> DefocusLayer:
        """Draw the scene and the lens for a picture of height x width pixels."""
        offset = 1 - draw_depth(rng, height, width, self.depths) - np.float32(rng.uniform(*self.focus))
        largest = np.abs(offset).max()
        radius = offset * np.float32(rng.uniform(*self.radius) / largest) if largest else offset
        return DefocusLayer(radius, draw_noise(rng, self.noise, height, width))

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3) through a lens drawn from `rng`: (H, W, 3) float32."""
        return self.sample(rng, *checked(clean).shape[:2])(clean)
