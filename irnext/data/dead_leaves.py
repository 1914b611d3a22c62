"""Dead-leaves images: opaque shapes that fall on each other, with the statistics of natural images.

Their model is Lee, Mumford & Huang 2001, "Occlusion models for natural images": shapes of any place and
colour, whose radii have a density that falls with the cube, so that the image looks alike at all scales.
Achddou, Gousseau & Ladjal 2021, "Synthetic images as a regularity prior for image restoration neural
networks", train restoration on nothing else.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

COVERAGE = 5  # how many leaves lie on a point, on average
OVERSAMPLING = 2  # per axis, against jagged edges
GRAIN = 256  # size of the texture from which leaves are cut, in samples


def dead_leaves(
    rng: np.random.Generator,
    height: int,
    width: int,
    least: tuple[float, float] = (1.5, 12.0),
    largest: float = 128.0,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """A random dead-leaves image: (height, width, 3) float32 in [0, 1].

    Leaves are discs, polygons and bars, shaded and partly textured or striped.

    Args:
        rng: equal states give equal images.
        height, width: in pixels, at least 1.
        least: range of the radius of the image's smallest leaves in pixels, above 0: crowded and calm images.
        largest: radius of the largest leaves in pixels.
        palette: colours to draw from (N, 3) in [0, 1], such as a photograph's pixels; by default light and
            dark ones of little saturation, as photographs have.
    """
    if min(height, width) < 1:
        raise ValueError(f"the image is {height}x{width}: at least 1x1 is needed")
    if not 0 < least[0] <= least[1] <= largest < math.inf:
        raise ValueError(
            f"least is {least}: it must be a rising range from above 0 to the largest, {largest}"
        )
    if palette is not None and (palette.ndim != 2 or palette.shape[1] != 3 or not len(palette)):
        raise ValueError(f"the palette is {palette.shape}: it must be (N, 3), N from 1")
    size = height * OVERSAMPLING, width * OVERSAMPLING
    smallest = math.exp(rng.uniform(*np.log(least)))
    radii, centres = _places(rng, size, smallest * OVERSAMPLING, largest * OVERSAMPLING)
    leaf = _fall(rng, size, radii, centres)
    count = len(radii) + 1
    image = _colours(rng, count, palette)[leaf]
    image += (_shade(rng, leaf, size, count) + _texture(rng, leaf, size, count))[..., None]
    image = image.reshape(height, OVERSAMPLING, width, OVERSAMPLING, 3).mean((1, 3))
    return image.clip(0, 1).astype(np.float32)


def _places(
    rng: np.random.Generator, size: tuple[int, int], smallest: float, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Radii (N,) of density ~ r^-3 and centres (N, 2), x and y, of the leaves that meet the image."""
    height, width = size[0] + 2 * largest, size[1] + 2 * largest
    low, high = largest**-2, smallest**-2
    mean_square = 2 * math.log(largest / smallest) / (high - low) if high > low else largest**2
    count = rng.poisson(COVERAGE * height * width / (math.pi * mean_square))
    radii = rng.uniform(low, high, count) ** -0.5
    centres = rng.uniform(-largest, (width - largest, height - largest), (count, 2))
    outside = np.maximum(-centres, centres - (size[1], size[0])).max(1)
    meets = outside < radii
    return radii[meets], centres[meets]


def _fall(
    rng: np.random.Generator, size: tuple[int, int], radii: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """The leaf that is seen at each point (H, W): 1 to N, the last on top, or 0, the ground."""
    canvas = Image.new("I", (size[1], size[0]), 0)
    draw = ImageDraw.Draw(canvas)
    for index, (kind, radius, (x, y)) in enumerate(
        zip(rng.integers(4, size=len(radii)), radii.tolist(), centres.tolist(), strict=True), 1
    ):
        if kind < 2:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), index)
            continue
        corners = (x, y) + radius * (_polygon(rng) if kind == 2 else _bar(rng))
        draw.polygon(corners.ravel().tolist(), index)
    return np.asarray(canvas)


def _polygon(rng: np.random.Generator) -> np.ndarray:
    """3 to 6 corners (N, 2) on the unit circle."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _bar(rng: np.random.Generator) -> np.ndarray:
    """The corners (4, 2) of a rectangle in the unit circle, up to about ten times as long as wide."""
    turn, half = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, np.pi / 4)
    angles = turn + np.array([half, -half, np.pi + half, np.pi - half])
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _colours(rng: np.random.Generator, count: int, palette: np.ndarray | None) -> np.ndarray:
    """(count, 3) float32."""
    if palette is not None:
        return palette[rng.integers(len(palette), size=count)].astype(np.float32)
    # One light colours a whole scene; single leaves depart from it.
    tint = rng.normal(0, 0.05, 3)
    brightness = rng.beta(1.2, 1.5, (count, 1))
    saturation = rng.gamma(1.0, 0.06, (count, 1))
    return (brightness + saturation * rng.standard_normal((count, 3)) + tint).clip(0, 1).astype(np.float32)


def _shade(rng: np.random.Generator, leaf: np.ndarray, size: tuple[int, int], count: int) -> np.ndarray:
    """Brightness (H, W) that changes steadily over each leaf."""
    slope = (rng.normal(0, 0.15, (2, count)) / max(size)).astype(np.float32)
    y, x = (np.arange(length, dtype=np.float32) - length / 2 for length in size)
    return slope[0][leaf] * x + slope[1][leaf] * y[:, None]


def _texture(rng: np.random.Generator, leaf: np.ndarray, size: tuple[int, int], count: int) -> np.ndarray:
    """Brightness (H, W) of each leaf's own cut of a rough texture, or of its stripes."""
    kind = rng.random(count)
    roughness = np.where(kind < 0.5, rng.gamma(1.0, 0.05, count), 0).astype(np.float32)
    stripes = np.where(kind > 0.9, rng.uniform(0, 0.2, count), 0).astype(np.float32)
    y, x = np.arange(size[0])[:, None], np.arange(size[1])
    down, right = rng.integers(GRAIN, size=(2, count))
    rough = roughness[leaf] * _grain(rng)[(y + down[leaf]) % GRAIN, (x + right[leaf]) % GRAIN]
    angle, period = rng.uniform(0, np.pi, count), rng.uniform(6, 24, count)
    across, along = np.cos(angle) / period, np.sin(angle) / period
    turns = across.astype(np.float32)[leaf] * x + along.astype(np.float32)[leaf] * y
    return rough + stripes[leaf] * np.sin(2 * np.pi * turns).astype(np.float32)


def _grain(rng: np.random.Generator) -> np.ndarray:
    """Periodic noise (GRAIN, GRAIN) float32 of deviation 1 whose amplitude falls as 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(GRAIN)[:, None], np.fft.rfftfreq(GRAIN))
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((GRAIN, GRAIN))) / frequency, (GRAIN, GRAIN))
    return (noise / noise.std()).astype(np.float32)
