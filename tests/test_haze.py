"""Haze: its physics and its depth maps."""

from __future__ import annotations

import numpy as np
import pytest

from irnext.data.degradations import DEPTHS, Haze, HazeLayer, depth_ramp, depth_relief


@pytest.fixture
def clean():
    return np.random.default_rng(3).random((24, 36, 3), dtype=np.float32)


def test_the_scattering_equation_at_one_pixel():
    layer = HazeLayer(np.full((1, 1), 0.5, np.float32), 2.0, np.array([0.9, 0.8, 0.7], np.float32))
    hazy = layer(np.array([[[0.2, 0.4, 0.6]]], np.float32))
    t = np.exp(-1.0)
    expected = [0.2 * t + 0.9 * (1 - t), 0.4 * t + 0.8 * (1 - t), 0.6 * t + 0.7 * (1 - t)]
    np.testing.assert_allclose(hazy[0, 0], expected, rtol=1e-6)


def test_nothing_changes_at_depth_zero_or_without_haze(clean):
    shape = clean.shape[:2]
    airlight = np.full(3, 0.8, np.float32)
    np.testing.assert_array_equal(HazeLayer(np.zeros(shape, np.float32), 5.0, airlight)(clean), clean)
    np.testing.assert_array_equal(HazeLayer(np.ones(shape, np.float32), 0.0, airlight)(clean), clean)


def test_thick_haze_shows_only_the_airlight(clean):
    airlight = np.array([0.9, 0.8, 0.7], np.float32)
    hazy = HazeLayer(np.ones(clean.shape[:2], np.float32), 50.0, airlight)(clean)
    np.testing.assert_allclose(hazy, np.broadcast_to(airlight, clean.shape), atol=1e-6)


def test_haze_takes_contrast_by_the_transmission(clean):
    layer = Haze().sample(np.random.default_rng(0), *clean.shape[:2])
    difference = layer(clean) - layer(1 - clean)
    np.testing.assert_allclose(difference, layer.transmission[..., None] * (2 * clean - 1), atol=1e-6)


def test_the_ramp_recedes_to_the_top():
    depth = depth_ramp(5, 3)
    np.testing.assert_allclose(depth, np.repeat([[1], [0.75], [0.5], [0.25], [0]], 3, 1), atol=1e-7)


def test_a_ramp_turned_by_a_quarter_recedes_to_the_right():
    np.testing.assert_allclose(depth_ramp(3, 5, np.pi / 2), np.tile(np.linspace(0, 1, 5), (3, 1)), atol=1e-6)


def test_the_relief_is_smooth_and_spans_the_range():
    depth = depth_relief(np.random.default_rng(1), 60, 90)
    assert depth.shape == (60, 90) and depth.min() == 0 and depth.max() == 1
    # A cosine's ease between neighbours 19 rows apart climbs at most pi / 2 / 19 of the range a row.
    assert np.abs(np.diff(depth, axis=0)).max() < np.pi / 2 / 19
    assert np.abs(np.diff(depth, axis=1)).max() < np.pi / 2 / 29


@pytest.mark.parametrize("kind", DEPTHS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (31, 17)])
def test_every_kind_serves_every_size_within_the_range(kind, size):
    picture = np.random.default_rng(2).random((*size, 3), dtype=np.float32)
    hazy = Haze(depths=(kind,)).degrade(picture, np.random.default_rng(0))
    assert hazy.shape == picture.shape and hazy.dtype == np.float32
    assert np.isfinite(hazy).all() and hazy.min() >= 0 and hazy.max() <= 1


def test_parameters_stay_in_their_ranges_and_all_kinds_come_up():
    haze, rng = Haze(beta=(0.5, 1.5), airlight=(0.6, 0.8), tint=0.02), np.random.default_rng(0)
    layers = [haze.sample(rng, 8, 8) for _ in range(200)]
    betas = np.array([layer.beta for layer in layers])
    airlights = np.array([layer.airlight for layer in layers])
    assert 0.5 <= betas.min() < 0.55 and 1.45 < betas.max() <= 1.5
    assert 0.58 <= airlights.min() < 0.61 and 0.79 < airlights.max() <= 0.82
    assert np.ptp(airlights, axis=1).max() <= 0.04 + 1e-6
    upright = sum(np.array_equal(layer.depth, depth_ramp(8, 8)) for layer in layers)
    assert 40 < upright < 95
