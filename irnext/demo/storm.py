"""Sandstorms: a degradation that no weights in the package were trained for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.degradations import Haze

# Thick, and growing with the distance, twice as often upright as tilted.
HAZE = Haze(beta=(1.5, 2.2), airlight=(0.78, 0.88), depths=("ramp", "ramp", "tilted"))
SAND = np.array([1, 0.68, 0.36], np.float32)  # of its airlight


class Sandstorm:
    """Haze in the colour of sand."""

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean picture (H, W, 3) in [0, 1] in a storm drawn from `rng`: (H, W, 3) float32."""
        layer = HAZE.sample(rng, *clean.shape[:2])
        return replace(layer, airlight=layer.airlight * SAND)(clean)
