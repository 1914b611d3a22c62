"""How costs grow with the pixels of a picture: least squares fits of what was measured at several sizes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerLaw:
    """factor * pixels ** exponent.

    Attributes:
        standard_error: of the exponent; None with two points, which leave no residual.
    """

    factor: float
    exponent: float
    standard_error: float | None

    def __call__(self, pixels: float) -> float:
        return self.factor * pixels**self.exponent


def fit_power(points: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """The power law nearest to points (pixels, value), in logarithms; None for fewer than two sizes."""
    if len({pixels for pixels, _ in points}) < 2:
        return None
    x, y = ([math.log(each) for each in column] for column in zip(*points, strict=True))
    slope, intercept = statistics.linear_regression(x, y)
    error = None
    if len(points) > 2:
        residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
        mean = statistics.fmean(x)
        error = math.sqrt(residual / (len(points) - 2) / sum((a - mean) ** 2 for a in x))
    return PowerLaw(math.exp(intercept), slope, error)


def fit_line(points: Sequence[tuple[float, float]]) -> Callable[[float], float] | None:
    """The straight line nearest to points (pixels, value); None for fewer than two sizes."""
    if len({pixels for pixels, _ in points}) < 2:
        return None
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return lambda pixels: intercept + slope * pixels
