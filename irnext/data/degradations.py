"""Physical models that degrade a clean picture.

A degradation holds the ranges of its parameters. Its `sample(rng, height, width)` draws one set of
them and returns a layer, a function of clean pictures of that size; `degrade(clean, rng)` draws and
applies at once. Pictures are (H, W, 3) float arrays in [0, 1]; results are float32, and generators
in equal states give equal results.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        clean = _checked(clean)
        if clean.shape[:2] != self.depth.shape:
            raise ValueError(
                f"the picture is {clean.shape[:2]} but the haze was drawn for {self.depth.shape}"
            )
        t = self.transmission[..., None]
        return (clean * t + self.airlight * (1 - t)).astype(np.float32)


@dataclass(frozen=True)
class Haze:
    """Haze whose thickness follows the depth of the scene (the atmospheric scattering model).

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
        if not 0 <= self.beta[0] <= self.beta[1]:
            raise ValueError(f"beta is {self.beta}: it must be a rising range from at least 0")
        if not 0 <= self.airlight[0] <= self.airlight[1] <= 1:
            raise ValueError(f"airlight is {self.airlight}: it must be a rising range within 0 to 1")
        if not self.depths or not set(self.depths) <= set(DEPTHS):
            raise ValueError(f"depths is {self.depths}: choose some of {', '.join(DEPTHS)}")

    def sample(self, rng: np.random.Generator, height: int, width: int) -> HazeLayer:
        """Draw the haze of one scene of height x width pixels."""
        kind = self.depths[rng.integers(len(self.depths))]
        if kind == "relief":
            depth = depth_relief(rng, height, width)
        else:
            depth = depth_ramp(height, width, rng.uniform(-np.pi, np.pi) if kind == "tilted" else 0.0)
        tint = rng.uniform(-self.tint, self.tint, 3)
        airlight = np.clip(rng.uniform(*self.airlight) + tint, 0, 1).astype(np.float32)
        return HazeLayer(depth, float(rng.uniform(*self.beta)), airlight)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3) in haze drawn from `rng`: (H, W, 3) float32."""
        return self.sample(rng, *_checked(clean).shape[:2])(clean)


def _checked(clean: np.ndarray) -> np.ndarray:
    """`clean`, where it is a float picture (H, W, 3); ValueError or TypeError otherwise."""
    if clean.ndim != 3 or clean.shape[2] != 3:
        raise ValueError(f"a picture must be (H, W, 3), got {clean.shape}")
    if not np.issubdtype(clean.dtype, np.floating):
        raise TypeError(f"a picture must hold floats in [0, 1], got {clean.dtype}")
    return clean
