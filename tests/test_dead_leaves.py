"""Dead-leaves images: seeds, sizes, the law of their radii, and the spectrum of natural images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from irnext.data.dead_leaves import _fall, _places, dead_leaves


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (17, 3), (61, 94)])
def test_every_size_is_covered_within_the_range(size):
    image = dead_leaves(np.random.default_rng(0), *size)
    assert image.shape == (*size, 3) and image.dtype == np.float32
    assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1


def test_a_seed_gives_the_same_image_again():
    first, again, other = (dead_leaves(np.random.default_rng(seed), 40, 50) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.05


def test_radii_have_a_density_that_falls_with_the_cube():
    size = (600, 800)
    radii, centres = _places(np.random.default_rng(0), size, 2.0, 50.0)
    # Beyond the border large leaves meet the image more often than small ones.
    inside = ((centres >= 0) & (centres < size[::-1])).all(1)
    law = stats.kstest(radii[inside], lambda r: (2.0**-2 - r**-2.0) / (2.0**-2 - 50.0**-2))
    assert inside.sum() > 10_000 and law.pvalue > 0.01
    assert radii.min() >= 2 and radii.max() <= 50


def test_leaves_of_one_size_are_allowed():
    radii, _ = _places(np.random.default_rng(0), (50, 50), 8.0, 8.0)
    np.testing.assert_allclose(radii, 8)
    assert dead_leaves(np.random.default_rng(0), 20, 20, least=(4, 4), largest=4).std() > 0.05


def test_leaves_leave_little_of_the_ground_and_the_last_lie_on_top():
    rng, size = np.random.default_rng(0), (200, 240)
    radii, centres = _places(rng, size, 3.0, 100.0)
    leaf = _fall(rng, size, radii, centres)
    assert leaf.shape == size and (leaf == 0).mean() < 0.1 and leaf.max() <= len(radii)
    # What is seen fell late.
    assert np.median(leaf) > 0.6 * len(radii)


def test_the_spectrum_falls_as_that_of_natural_images():
    power = 0
    for seed in range(12):
        image = dead_leaves(np.random.default_rng(seed), 128, 128).mean(2)
        window = np.hanning(128)[:, None] * np.hanning(128)
        power = power + np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    band = (frequency > 0.03) & (frequency < 0.3)
    slope = stats.linregress(np.log(frequency[band]), np.log(power[band])).slope
    assert -3.2 < slope < -1.8  # about -2 in amplitude squared; white noise has 0


def test_a_palette_gives_the_colours():
    grey = np.repeat(np.linspace(0.3, 0.7, 5)[:, None], 3, 1)
    image = dead_leaves(np.random.default_rng(0), 60, 60, palette=grey)
    np.testing.assert_allclose(image, np.repeat(image[..., :1], 3, 2), atol=1e-6)
    assert 0.3 < image.mean() < 0.7


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"height": 0}, "0x20"),
        ({"least": (0, 3)}, "least"),
        ({"least": (5, 3)}, "least"),
        ({"least": (2, 9), "largest": 5.0}, "least"),
        ({"largest": np.inf}, "least"),
        ({"palette": np.zeros((0, 3))}, "palette"),
        ({"palette": np.zeros((4, 4))}, "palette"),
    ],
)
def test_settings_that_make_no_image_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        dead_leaves(np.random.default_rng(0), **{"height": 20, "width": 20, **settings})
