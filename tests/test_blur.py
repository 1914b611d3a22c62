"""Motion blur and defocus: what light does, against sums written out and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, signal

from irnext.data.degradations import Defocus, DefocusLayer, MotionBlur, MotionLayer
from irnext.data.degradations.convolution import convolve
from irnext.data.degradations.defocus import disc
from irnext.data.degradations.light import to_light, to_stored
from irnext.data.degradations.motion import shake


@pytest.fixture
def clean():
    return np.random.default_rng(3).random((37, 52, 3), dtype=np.float32)


def still(*moments):
    """The path of a shake: rows of (right, down, roll)."""
    return np.array(moments, dtype=float)


def test_the_transfer_function_is_that_of_srgb():
    stored = np.array([0, 0.04045, 0.2, 0.5, 0.8, 1], np.float32)
    light = [0, 0.04045 / 12.92, 0.033104767, 0.214041140, 0.603827339, 1]
    np.testing.assert_allclose(to_light(stored), light, atol=2e-7)
    np.testing.assert_allclose(to_stored(np.array(light)), stored, atol=2e-7)
    np.testing.assert_allclose(to_stored(np.array([-0.5, 1.5])), [0, 1], atol=1e-7)


@pytest.mark.parametrize("size", [(9, 9), (31, 17), (64, 101)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 5), (9, 9)])
def test_the_convolution_is_that_of_scipy(size, kernel):
    rng = np.random.default_rng(0)
    planes, weights = rng.random((2, *size), dtype=np.float32), rng.random(kernel, dtype=np.float32)
    expected = [signal.convolve2d(plane.astype(float), weights, "valid") for plane in planes]
    np.testing.assert_allclose(convolve(planes, weights), expected, rtol=1e-5, atol=1e-5)


# Motion.


@pytest.mark.parametrize("jerk", [0.0, 0.3, 2.0])
def test_a_shake_has_constant_speed_around_the_origin(jerk):
    path = shake(np.random.default_rng(0), jerk)
    np.testing.assert_allclose(np.linalg.norm(np.diff(path, axis=0), axis=1), 1)
    np.testing.assert_allclose(path.mean(0), 0, atol=1e-12)


def test_jerk_bends_the_path():
    rng = np.random.default_rng(1)
    straight, bent = (np.linalg.svd(shake(rng, jerk), compute_uv=False) for jerk in (0.0, 0.5))
    assert straight[1] < 1e-9 < 0.1 * bent[0] < bent[1]


def test_a_drawn_path_has_the_extent_and_roll_asked_for_and_small_steps():
    blur, size = MotionBlur(extent=(12, 12), roll=(0.02, 0.02)), (90, 120)
    for seed in range(20):
        path = blur.sample(np.random.default_rng(seed), *size).path
        span = np.linalg.norm(path[:, None, :2] - path[None, :, :2], axis=2).max()
        assert 10.5 < span <= 12 and 0.016 < np.ptp(path[:, 2]) <= 0.02
        np.testing.assert_allclose(path.mean(0), 0, atol=1e-12)
        reach = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1) + np.abs(np.diff(path[:, 2])) * 150
        assert reach.max() < 2


def test_light_is_averaged_over_the_exposure(clean):
    blurred = MotionLayer(still([0, 0, 0], [3, 0, 0], [-2, 1, 0]), (0, 0), (37, 52))(clean)
    light = to_light(clean).astype(float)
    moved = [np.roll(light, shift, (0, 1)) for shift in ((0, 0), (0, 3), (1, -2))]
    expected = to_stored(np.mean(moved, 0))
    np.testing.assert_allclose(blurred[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-5)


def test_black_and_white_mix_to_half_the_light_not_half_the_value():
    stripes = np.broadcast_to((np.arange(20) % 2)[:, None], (6, 20, 3)).astype(np.float32)
    blurred = MotionLayer(still([0, 0, 0], [1, 0, 0]), (0, 0), (6, 20))(stripes)
    np.testing.assert_allclose(blurred[:, 1:], 0.735357, atol=1e-5)


def test_a_quarter_roll_turns_the_picture_clockwise():
    picture = np.random.default_rng(0).random((21, 21, 3), dtype=np.float32)
    turned = MotionLayer(still([0, 0, np.pi / 2]), (10, 10), (21, 21))(picture)
    np.testing.assert_allclose(turned, np.rot90(picture, -1), atol=1e-4)


def test_a_roll_blurs_more_the_farther_from_its_centre():
    points = np.zeros((61, 61, 3), np.float32)
    points[30, [30, 40, 55]] = 1
    angles = np.linspace(-0.2, 0.2, 41)
    path = np.stack([0 * angles, 0 * angles, angles], 1)
    light = to_light(MotionLayer(path, (30, 30), (61, 61))(points))[..., 0]
    assert light[30, 30] == pytest.approx(1, abs=1e-5)
    columns = (slice(36, 44), slice(50, 61))
    heights = [np.ptp(np.nonzero(light[:, column].sum(1) > 1e-3)[0]) for column in columns]
    # An arc of 0.4 radians, 10 and 25 pixels from the centre, is 4 and 10 long.
    assert 3 <= heights[0] <= 6 and 9 <= heights[1] <= 12


def test_a_shake_keeps_the_light_of_a_point():
    point = np.zeros((81, 81, 3), np.float32)
    point[40, 40] = [1, 0.5, 0.25]
    for seed in range(5):
        blurred = MotionBlur(noise=(0, 0)).degrade(point, np.random.default_rng(seed))
        np.testing.assert_allclose(to_light(blurred).sum((0, 1)), to_light(point[40, 40]), rtol=0.02)
        rows, columns = np.mgrid[:81, :81]
        light = to_light(blurred)[..., 0]
        centroid = (light * rows).sum() / light.sum(), (light * columns).sum() / light.sum()
        np.testing.assert_allclose(centroid, 40, atol=0.3)


@pytest.mark.parametrize("blur", [MotionBlur(noise=(0, 0)), Defocus(noise=(0, 0))])
def test_a_constant_picture_has_nothing_to_blur(blur):
    picture = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (33, 47, 3))
    for seed in range(5):
        np.testing.assert_allclose(blur.degrade(picture, np.random.default_rng(seed)), picture, atol=1e-5)


@pytest.mark.parametrize(
    "blur",
    [
        MotionBlur(extent=(0, 0), roll=(0, 0), noise=(0, 0)),
        Defocus(radius=(0, 0), noise=(0, 0)),
    ],
)
def test_a_blur_of_no_extent_changes_nothing(blur, clean):
    np.testing.assert_allclose(blur.degrade(clean, np.random.default_rng(0)), clean, atol=1e-4)


@pytest.mark.parametrize("kind", [MotionBlur, Defocus])
@pytest.mark.parametrize("light", [0.1, 0.6])
def test_noise_is_that_of_photons(kind, light):
    picture = np.full((100, 100, 3), to_stored(np.float32(light)), np.float32)
    noisy = kind(noise=(0.02, 0.02)).degrade(picture, np.random.default_rng(0))
    difference = to_light(noisy) - light
    assert difference.std() == pytest.approx(0.02 * np.sqrt(light), rel=0.05)
    assert abs(difference.mean()) < 5e-4


# Defocus.


@pytest.mark.parametrize("radius", [0, 0.3, 1, 2, 3.7, 12])
def test_a_disc_is_round_even_and_of_sum_one(radius):
    kernel = disc(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(kernel, kernel.T)
    np.testing.assert_array_equal(kernel, kernel[::-1])
    assert (len(kernel) == 1) == (radius <= 0.5)


def test_a_wide_disc_has_the_moment_of_a_circle():
    kernel = disc(12).astype(float)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    squares = offset**2 + offset[:, None] ** 2
    assert (kernel * squares).sum() == pytest.approx(12**2 / 2, rel=0.01)


@pytest.mark.parametrize("radius", [3, -3])
def test_a_flat_scene_is_convolved_with_the_disc(clean, radius):
    blurred = DefocusLayer(np.full((37, 52), radius, np.float32))(clean)
    light = to_light(clean).astype(float)
    planes = [ndimage.convolve(light[..., c], disc(3).astype(float), mode="reflect") for c in range(3)]
    np.testing.assert_allclose(blurred, to_stored(np.stack(planes, 2)), atol=1e-5)
    np.testing.assert_allclose(to_light(blurred).mean((0, 1)), light.mean((0, 1)), rtol=1e-5)


def test_between_two_layers_the_discs_mix(clean):
    low, middle, high = (
        to_light(DefocusLayer(np.full((37, 52), radius, np.float32))(clean)) for radius in (2, 2.25, 3)
    )
    np.testing.assert_allclose(middle, 0.75 * low + 0.25 * high, atol=1e-5)


def test_the_depth_in_focus_stays_sharp(clean):
    blurred = Defocus(focus=(1, 1), noise=(0, 0), depths=("ramp",)).degrade(clean, np.random.default_rng(0))
    difference = np.abs(blurred - clean).mean((1, 2))
    assert difference[-1] < 1e-5 and difference[0] > 0.1


def test_the_radius_follows_the_inverse_distance():
    # On a ramp the inverse distance is linear in the row: 0 at the top, 1 at the bottom.
    layer = Defocus(radius=(6, 6), focus=(0.25, 0.25), depths=("ramp",)).sample(
        np.random.default_rng(0), 41, 9
    )
    expected = 6 * (np.linspace(0, 1, 41) - 0.25) / 0.75
    np.testing.assert_allclose(layer.radius, np.repeat(expected[:, None], 9, 1), atol=1e-5)


def test_a_blurred_thing_in_front_covers_the_scene_up_to_its_radius(clean):
    radius = np.zeros((37, 52), np.float32)
    radius[:, 30:] = 4
    blurred = DefocusLayer(radius)(clean)
    np.testing.assert_allclose(blurred[:, :25], clean[:, :25], atol=1e-5)
    assert np.abs(blurred[:, 27:30] - clean[:, 27:30]).mean() > 0.01
    everywhere = DefocusLayer(np.full((37, 52), 4, np.float32))(clean)
    np.testing.assert_allclose(blurred[:, 36:], everywhere[:, 36:], atol=1e-5)


def test_a_sharp_thing_in_front_is_not_touched_by_the_blur_behind(clean):
    radius = np.zeros((37, 52), np.float32)
    radius[:, 30:] = -4
    blurred = DefocusLayer(radius)(clean)
    np.testing.assert_allclose(blurred[:, :30], clean[:, :30], atol=1e-5)
    assert np.abs(blurred[:, 30:] - clean[:, 30:]).mean() > 0.1
