"""Physical models that degrade a clean picture.

A degradation holds the ranges of its parameters. Its `sample(rng, height, width)` draws one set of
them and returns a layer, a function of clean pictures of that size; `degrade(clean, rng)` draws and
applies at once. Pictures are (H, W, 3) float arrays in [0, 1]; results are float32 in [0, 1], and
generators in equal states give equal results.
"""

from .defocus import Defocus, DefocusLayer
from .depth import DEPTHS, depth_ramp, depth_relief
from .haze import Haze, HazeLayer
from .motion import MotionBlur, MotionLayer
from .particles import ParticleLayer
from .rain import Rain
from .snow import Snow

# By the name of the task.
DEGRADATIONS: dict[str, type] = {
    "haze": Haze,
    "motion-blur": MotionBlur,
    "defocus": Defocus,
    "rain": Rain,
    "snow": Snow,
}

__all__ = [
    "DEGRADATIONS",
    "DEPTHS",
    "Defocus",
    "DefocusLayer",
    "Haze",
    "HazeLayer",
    "MotionBlur",
    "MotionLayer",
    "ParticleLayer",
    "Rain",
    "Snow",
    "depth_ramp",
    "depth_relief",
]
