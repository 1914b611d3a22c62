"""From stored values to light and back: blur mixes light, not stored values.

Stored values are sRGB (IEC 61966-2-1): linear below 0.0031308 of the light, a power of 2.4 above.
"""

from __future__ import annotations

import numpy as np


def to_light(stored: np.ndarray) -> np.ndarray:
    """Linear light, float32 in [0, 1], of sRGB values in [0, 1]."""
    stored = stored.astype(np.float32)
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_stored(light: np.ndarray) -> np.ndarray:
    """sRGB values, float32 in [0, 1], of linear light, which is clipped to [0, 1] as a sensor does."""
    light = light.clip(0, 1).astype(np.float32)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def draw_noise(
    rng: np.random.Generator, level: tuple[float, float], height: int, width: int
) -> np.ndarray | None:
    """Photon noise of one exposure for `with_noise`, (height, width, 3); None where it has none.

    `level` is the range of its standard deviation in full light, as a share of that light.
    """
    deviation = np.float32(rng.uniform(*level))
    return rng.standard_normal((height, width, 3), np.float32) * deviation if deviation else None


def with_noise(light: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """Light (H, W, 3) with photon noise: its variance grows in proportion to the light."""
    return light if noise is None else light + noise * np.sqrt(light.clip(0))
