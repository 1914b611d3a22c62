"""Haze: the atmospheric scattering model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .checks import check_kinds, check_range, checked
from .depth import DEPTHS, draw_depth


@dataclass(frozen=True)
class HazeLayer:
    """Haze between the camera and one scene: I = J t + A (1 - t), t = exp(-beta d).

    Attributes:
        depth: d (H, W), as a share of the farthest distance.
        beta: optical thickness of the haze at d = 1.
        airlight: A (3,), the colour of the haze, in [0, 1].
    """

    depth: np.ndarray
    beta: float
    airlight: np.ndarray

    @property
    def transmission(self) -> np.ndarray:
        """t (H, W), the share of the scene's light that reaches the camera."""
        return np.exp(-self.beta * self.depth)

    def __call__(self, clean: np.ndarray) -> np.ndarray:
        """The hazy picture I (H, W, 3) of the clean picture J."""
        checked(clean, self.depth.shape, "haze")
        t = self.transmission[..., None]
        return (clean * t + self.airlight * (1 - t)).astype(np.float32)


@dataclass(frozen=True)
class Haze:
    """Haze whose thickness follows the depth of the scene (Koschmieder's law; Narasimhan & Nayar 2002).

    The model is applied to the picture's stored (gamma-encoded) values, as dehazing data sets do: it
    is in their space that networks are trained and scored. Depth is relative, 0 at the nearest point
    and 1 at the farthest.

    Args:
        beta: range of the optical thickness at the farthest point, at least 0.
        airlight: range of the haze's brightness, in [0, 1].
        tint: largest departure of one colour channel from that brightness.
        depths: kinds of depth map to draw from, with equal chance: "ramp" recedes to the top of the
            picture, "tilted" in any direction, "relief" is smooth and random.
    """

    beta: tuple[float, float] = (0.8, 2.4)
    airlight: tuple[float, float] = (0.7, 0.95)
    tint: float = 0.03
    depths: tuple[str, ...] = DEPTHS

    def __post_init__(self):
        check_range("beta", self.beta)
        check_range("airlight", self.airlight, 0, 1)
        check_kinds("depths", self.depths, DEPTHS)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> HazeLayer:
        """Draw the haze of one scene of height x width pixels."""
        depth = draw_depth(rng, height, width, self.depths)
        tint = rng.uniform(-self.tint, self.tint, 3)
        airlight = np.clip(rng.uniform(*self.airlight) + tint, 0, 1).astype(np.float32)
        return HazeLayer(depth, float(rng.uniform(*self.beta)), airlight)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3) in haze drawn from `rng`: (H, W, 3) float32."""
        return self.sample(rng, *checked(clean).shape[:2])(clean)
