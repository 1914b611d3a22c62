"""Motion blur by camera shake."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .checks import check_range, checked
from .light import draw_noise, to_light, to_stored, with_noise

STEPS = 64
JOLTS = 1 / STEPS  # the chance of one at each step
PULL = 1 / STEPS  # back to where the path began, of the distance, at each step
MOST_EXPOSURES = 128


def shake(rng: np.random.Generator, jerk: float) -> np.ndarray:
    """The random path of a hand-held camera: (STEPS + 1, 3) float64, its mean at the origin.

    A particle of constant speed 1 and random motion (Boracchi & Foi 2012, "Modeling the performance of
    image restoration from motion blur"): its velocity is disturbed by Gaussian noise of deviation
    `jerk`, pulled back to the start, and at rare jolts turned round, as when one corrects a movement.
    """
    position, velocity = np.zeros(3), _direction(rng.standard_normal(3))
    path = [position]
    for _ in range(STEPS):
        disturbance = jerk * rng.standard_normal(3) - PULL * position * jerk
        if rng.random() < JOLTS:
            disturbance -= 2 * velocity
        velocity = _direction(velocity + disturbance)
        position = position + velocity
        path.append(position)
    return np.array(path) - np.mean(path, 0)


def _direction(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@dataclass(frozen=True)
class MotionLayer:
    """One exposure during which the camera shakes.

    The light of the moved pictures is averaged over the exposure (Whyte et al. 2010, "Non-uniform
    deblurring for shaken images"): I(p) = mean over i of J(c + R(-roll_i) (p - c - shift_i)).

    Attributes:
        path: (N, 3), for each moment of the exposure the shift to the right and downwards in pixels,
            and the roll, clockwise, in radians.
        centre: c, the centre of the rolls (x, y) in pixels.
        size: (H, W) of the picture.
        noise: of the sensor (H, W, 3), as `light.with_noise` adds it, or None.
    """

    path: np.ndarray
    centre: tuple[float, float]
    size: tuple[int, int]
    noise: np.ndarray | None = None

    def __call__(self, clean: np.ndarray) -> np.ndarray:
        """The blurred picture I (H, W, 3) of the sharp picture J, which is reflected beyond its border."""
        light = torch.from_numpy(to_light(checked(clean, self.size, "shake"))).permute(2, 0, 1)[None]
        total = torch.zeros_like(light)
        for moment in self.path:
            positions = torch.from_numpy(self._positions(*moment))[None]
            total += F.grid_sample(light, positions, padding_mode="reflection", align_corners=True)
        exposure = (total / len(self.path))[0].permute(1, 2, 0).numpy()
        return to_stored(with_noise(exposure, self.noise))

    def _positions(self, right: float, down: float, roll: float) -> np.ndarray:
        """Where each pixel's light comes from: (H, W, 2) float32, x and y from -1 to 1."""
        height, width = self.size
        x = np.arange(width, dtype=np.float32) - (self.centre[0] + right)
        y = np.arange(height, dtype=np.float32)[:, None] - (self.centre[1] + down)
        cos, sin = math.cos(roll), math.sin(roll)
        positions = np.empty((height, width, 2), np.float32)
        scale_x, scale_y = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
        positions[..., 0] = scale_x * (cos * x + self.centre[0]) - 1 + scale_x * sin * y
        positions[..., 1] = scale_y * (cos * y + self.centre[1]) - 1 - scale_y * sin * x
        return positions


@dataclass(frozen=True)
class MotionBlur:
    """Blur by a shaking camera, different in every part of the picture where the camera rolls.

    Light is averaged, not stored values, which are taken as sRGB. The mean position of the shake is
    the clean picture's, so that a restored picture lies where it does.

    Args:
        extent: range of the longest distance between two points of the path, in pixels.
        roll: range of the difference of the extreme rolls, in radians; the centre lies anywhere in the
            picture.
        jerk: range of the disturbance of the path, from 0, a straight line.
        noise: range of the photon noise's standard deviation in full light.
    """

    extent: tuple[float, float] = (4.0, 16.0)
    roll: tuple[float, float] = (0.0, 0.03)
    jerk: tuple[float, float] = (0.0, 0.3)
    noise: tuple[float, float] = (0.0, 0.01)

    def __post_init__(self):
        check_range("extent", self.extent)
        check_range("roll", self.roll, 0, math.pi)
        check_range("jerk", self.jerk)
        check_range("noise", self.noise)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> MotionLayer:
        """Draw the shake of one exposure of height x width pixels."""
        path = shake(rng, rng.uniform(*self.jerk))
        span = np.linalg.norm(path[:, None, :2] - path[None, :, :2], axis=2).max()
        path[:, :2] *= rng.uniform(*self.extent) / span
        path[:, 2] *= rng.uniform(*self.roll) / np.ptp(path[:, 2])
        centre = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        moments = _exposures(path, math.hypot(width, height))
        return MotionLayer(moments, centre, (height, width), draw_noise(rng, self.noise, height, width))

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3), shaken as drawn from `rng`: (H, W, 3) float32."""
        return self.sample(rng, *checked(clean).shape[:2])(clean)


def _exposures(path: np.ndarray, reach: float) -> np.ndarray:
    """The path at evenly spaced moments, where no pixel within `reach` moves further than about one."""
    motion = np.abs(np.diff(path, axis=0))
    length = np.hypot(motion[:, 0], motion[:, 1]).sum() + motion[:, 2].sum() * reach
    count = int(np.clip(math.ceil(length), 1, MOST_EXPOSURES))
    moments = (np.arange(count) + 0.5) / count * (len(path) - 1)
    even = np.stack([np.interp(moments, np.arange(len(path)), column) for column in path.T], 1)
    return even - even.mean(0)
