"""Rain and snow: the shape of their particles, how many there are, and how they cover a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irnext.data.degradations import HazeLayer, ParticleLayer, Rain, Snow
from irnext.data.degradations.particles import scatter
from irnext.data.degradations.rain import LEAST_WIDTH, streak
from irnext.data.degradations.snow import flake


def moments(kernel):
    """Variances along the axes of a kernel's mass, smaller first, and the angle of the longer axis.

    The angle is measured from straight down, towards the right.
    """
    kernel = kernel.astype(float) / kernel.sum()
    offset = np.arange(len(kernel)) - len(kernel) // 2
    x, y = np.broadcast_arrays(offset[None], offset[:, None])
    mean_x, mean_y = (kernel * x).sum(), (kernel * y).sum()
    xx, yy = (kernel * (x - mean_x) ** 2).sum(), (kernel * (y - mean_y) ** 2).sum()
    xy = (kernel * (x - mean_x) * (y - mean_y)).sum()
    values, vectors = np.linalg.eigh([[xx, xy], [xy, yy]])
    right, down = vectors[:, 1] * np.sign(vectors[1, 1])
    return values, math.atan2(right, down)


def no_veil(size):
    return HazeLayer(np.zeros(size, np.float32), 0.0, np.zeros(3, np.float32))


def test_particles_cover_the_veiled_scene():
    picture, colour = np.full((1, 1, 3), 0.2, np.float32), np.float32([0.9, 0.8, 0.7])
    veil = HazeLayer(np.ones((1, 1), np.float32), 0.5, colour)
    behind = 0.2 * math.exp(-0.5) + colour * (1 - math.exp(-0.5))
    seen = ParticleLayer(np.full((1, 1), 0.3, np.float32), colour, veil)(picture)
    np.testing.assert_allclose(seen[0, 0], behind * 0.7 + colour * 0.3, rtol=1e-6)


def test_particles_hide_nothing_or_all():
    picture, white = np.random.default_rng(0).random((5, 4, 3), dtype=np.float32), np.ones(3, np.float32)
    for opacity, expected in ((0, picture), (1, np.ones_like(picture))):
        layer = ParticleLayer(np.full((5, 4), opacity, np.float32), white, no_veil((5, 4)))
        np.testing.assert_array_equal(layer(picture), expected)


def test_the_density_is_kept_up_to_the_border():
    kernel = np.random.default_rng(1).random((9, 9), dtype=np.float32)
    rng = np.random.default_rng(0)
    total = np.mean([scatter(rng, kernel, 0.05, 48, 40) for _ in range(100)], 0)
    expected = 0.05 * 0.65 * kernel.sum()  # 0.65 is the mean strength
    assert total.mean() == pytest.approx(expected, rel=0.03)
    border = np.concatenate(
        [total[:2].ravel(), total[-2:].ravel(), total[:, :2].ravel(), total[:, -2:].ravel()]
    )
    assert border.mean() == pytest.approx(expected, rel=0.06)


def test_without_particles_nothing_is_scattered():
    assert not scatter(np.random.default_rng(0), np.ones((3, 3), np.float32), 0.0, 5, 6).any()


@pytest.mark.parametrize("angle", [-0.6, 0.0, 0.3, 1.2])
def test_a_streak_lies_along_its_fall(angle):
    values, found = moments(streak(40, 1.2, angle))
    assert found == pytest.approx(angle, abs=0.01)
    assert values[0] == pytest.approx(1.2**2, rel=0.05)
    assert 0.3 * 40**2 / 12 < values[1] < 40**2 / 12


def test_a_streak_is_opaque_at_most_once_and_fainter_where_it_is_thinner_than_a_pixel():
    wide, thin = streak(30, 1.0, 0.0), streak(30, LEAST_WIDTH / 2, 0.0)
    assert wide.max() == pytest.approx(1) and thin.max() == pytest.approx(0.5)


def test_a_flake_has_its_radius_and_never_more_than_full_opacity():
    areas = [flake(np.random.default_rng(seed), 6, 0.3, (0, 0)).sum() for seed in range(20)]
    assert math.pi * 36 * 0.9 < np.mean(areas) < math.pi * 36 * 1.2
    assert flake(np.random.default_rng(0), 6, 0.3, (0, 0)).max() == 1


def test_a_flake_is_drawn_out_along_its_fall_and_keeps_its_light():
    still, falling = (flake(np.random.default_rng(3), 3, 0.3, fall) for fall in ((0, 0), (12, 16)))
    _, angle = moments(falling)
    assert angle == pytest.approx(math.atan2(12, 16), abs=0.05)
    assert falling.sum() == pytest.approx(still.sum(), rel=0.03) and falling.max() < still.max()


@pytest.mark.parametrize("kind", [Rain, Snow])
def test_clear_air_changes_nothing(kind):
    picture = np.random.default_rng(0).random((30, 40, 3), dtype=np.float32)
    clear = kind(density=(0, 0), veil=(0, 0)).degrade(picture, np.random.default_rng(0))
    np.testing.assert_allclose(clear, picture, atol=1e-6)


@pytest.mark.parametrize("kind", [Rain, Snow])
def test_white_particles_only_brighten_and_more_of_them_cover_more(kind):
    picture = np.full((96, 96, 3), 0.2, np.float32)
    means = []
    for density in (0.5, 2.0):
        low, high = (density * bound for bound in kind().density)
        falling = kind(density=(low, high), brightness=(1, 1), veil=(0, 0))
        results = [falling.degrade(picture, np.random.default_rng(seed)) for seed in range(8)]
        assert min(result.min() for result in results) >= 0.2 - 1e-6
        means.append(np.mean(results))
    assert 0.2 < means[0] < means[1] < 0.8


def test_single_streaks_and_flakes_have_the_opacity_asked_for():
    rain = Rain(density=(0.2, 0.2), opacity=(0.5, 0.5), width=(1.5, 1.5), veil=(0, 0))
    snow = Snow(density=(0.01, 0.01), opacity=(0.5, 0.5), speed=(0, 0), veil=(0, 0))
    for falling in (rain, snow):
        peaks = [falling.sample(np.random.default_rng(s), 128, 128).opacity.max() for s in range(20)]
        # Strengths reach from 0.3 to 1; two that overlap may exceed one alone.
        assert 0.3 < np.median(peaks) < 0.6


@pytest.mark.parametrize("slant", [-0.6, 0.0, 0.5])
@pytest.mark.parametrize("falling", [{"kind": Rain, "density": (4, 4)}, {"kind": Snow, "speed": (8, 8)}])
def test_particles_fall_in_the_direction_asked_for(falling, slant):
    settings = {**falling, "slant": (slant, slant)}
    weather = settings.pop("kind")(**settings)
    opacity = weather.sample(np.random.default_rng(0), 200, 200).opacity
    spectrum = np.abs(np.fft.fft2(opacity - opacity.mean())) ** 2
    correlation = np.fft.fftshift(np.fft.ifft2(spectrum).real)[100 - 8 : 100 + 9, 100 - 8 : 100 + 9]
    _, angle = moments(correlation - correlation.min())
    assert angle == pytest.approx(slant, abs=0.2)
