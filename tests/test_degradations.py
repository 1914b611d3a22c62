"""What every degradation promises: sizes, types, ranges, seeds, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irnext.data.degradations import DEGRADATIONS, Defocus, Haze, MotionBlur, Rain, Snow


@pytest.fixture
def clean():
    return np.random.default_rng(3).random((40, 57, 3), dtype=np.float32)


@pytest.fixture(params=DEGRADATIONS)
def degradation(request):
    return DEGRADATIONS[request.param]()


def test_each_task_has_its_degradation():
    expected = {"haze": Haze, "motion-blur": MotionBlur, "defocus": Defocus, "rain": Rain, "snow": Snow}
    assert expected == DEGRADATIONS


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (31, 17)])
def test_every_size_is_degraded_within_the_range(degradation, size):
    for seed in range(5):
        picture = np.random.default_rng(seed).random((*size, 3), dtype=np.float32)
        degraded = degradation.degrade(picture, np.random.default_rng(seed))
        assert degraded.shape == picture.shape and degraded.dtype == np.float32
        assert np.isfinite(degraded).all() and degraded.min() >= 0 and degraded.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_the_range_do_not_overflow(degradation, value):
    degraded = degradation.degrade(np.full((33, 29, 3), value, np.float32), np.random.default_rng(1))
    assert degraded.min() >= 0 and degraded.max() <= 1


def test_a_seed_gives_the_same_again(degradation, clean):
    first, again, other = (degradation.degrade(clean, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_a_layer_degrades_alike_whenever_it_is_called(degradation, clean):
    layer = degradation.sample(np.random.default_rng(7), *clean.shape[:2])
    before = clean.copy()
    first = layer(clean)
    np.testing.assert_array_equal(first, layer(clean))
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(first, degradation.degrade(clean, np.random.default_rng(7)))


def test_the_number_of_threads_changes_nothing(degradation):
    picture = np.random.default_rng(0).random((160, 160, 3), dtype=np.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(degradation.degrade(picture, np.random.default_rng(0)))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*results)


def test_doubles_are_degraded_as_floats_are(degradation, clean):
    results = [degradation.degrade(clean.astype(t), np.random.default_rng(0)) for t in ("f4", "f8")]
    assert results[1].dtype == np.float32
    np.testing.assert_allclose(*results, atol=1e-5)


def test_what_is_no_float_picture_is_refused(degradation, clean):
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match="uint8"):
        degradation.degrade((clean * 255).astype(np.uint8), rng)
    with pytest.raises(ValueError, match="must be"):
        degradation.degrade(clean[..., 0], rng)
    with pytest.raises(ValueError, match="drawn for"):
        degradation.sample(rng, 5, 5)(clean)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Haze, {"beta": (-1, 1)}),
        (Haze, {"beta": (2, 1)}),
        (Haze, {"beta": (0, np.nan)}),
        (Haze, {"airlight": (0.5, 1.2)}),
        (Haze, {"depths": ()}),
        (Haze, {"depths": ("slope",)}),
        (MotionBlur, {"extent": (-1, 5)}),
        (MotionBlur, {"extent": (5, np.inf)}),
        (MotionBlur, {"roll": (0, 4)}),
        (MotionBlur, {"jerk": (1, 0)}),
        (MotionBlur, {"noise": (-0.1, 0)}),
        (Defocus, {"radius": (3, 2)}),
        (Defocus, {"focus": (0, 1.5)}),
        (Defocus, {"noise": (0.1, 0)}),
        (Defocus, {"depths": ("hill",)}),
        (Rain, {"density": (-1, 1)}),
        (Rain, {"length": (-2, 3)}),
        (Rain, {"width": (2, 1)}),
        (Rain, {"slant": (-2, 2)}),
        (Rain, {"opacity": (0.5, 1)}),
        (Rain, {"brightness": (0, 2)}),
        (Rain, {"veil": (-1, 0)}),
        (Rain, {"depths": ()}),
        (Snow, {"density": (1, 0)}),
        (Snow, {"radius": (0.1, 3)}),
        (Snow, {"slant": (0, 7)}),
        (Snow, {"speed": (-1, 1)}),
        (Snow, {"opacity": (0, 1)}),
        (Snow, {"brightness": (-0.5, 1)}),
        (Snow, {"veil": (0, np.inf)}),
        (Snow, {"depths": ("hill",)}),
    ],
)
def test_settings_outside_the_model_are_refused(kind, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)
