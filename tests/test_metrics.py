"""PSNR and SSIM against scikit-image, which computes them independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from irnext.metrics import psnr, ssim

skimage_metrics = pytest.importorskip("skimage.metrics")


@pytest.fixture
def pair():
    """A smooth picture and a noisy one, (H, W, 3) float64; the noise stays within [0, 1]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:41, 0:53]
    target = 0.5 + 0.2 * np.sin(rows[..., None] / (3, 5, 7)) * np.cos(columns[..., None] / 6)
    return target + rng.normal(0, 0.05, target.shape), target


def chw(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)


def independent_ssim(prediction, target):
    return skimage_metrics.structural_similarity(
        prediction,
        target,
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def test_psnr_agrees_with_scikit_image(pair):
    expected = skimage_metrics.peak_signal_noise_ratio(pair[1], pair[0], data_range=1)
    assert psnr(chw(pair[0]), chw(pair[1])) == pytest.approx(expected, rel=1e-12)


def test_ssim_agrees_with_scikit_image(pair):
    assert ssim(chw(pair[0]), chw(pair[1])) == pytest.approx(independent_ssim(*pair), rel=1e-10)


def test_the_smallest_picture_ssim_takes(pair):
    small = [picture[:11, :11] for picture in pair]
    assert ssim(*map(chw, small)) == pytest.approx(independent_ssim(*small), rel=1e-10)
    with pytest.raises(ValueError, match="11x11"):
        ssim(*(chw(picture[:10]) for picture in pair))


def test_a_known_error_in_decibels():
    target = torch.full((3, 8, 8), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20, abs=1e-5)
    assert psnr(target, target) == math.inf
    assert ssim(torch.full((3, 12, 12), 0.5), torch.full((3, 12, 12), 0.5)) == pytest.approx(1, abs=1e-12)


def test_the_prediction_is_clamped_but_not_rounded():
    target = torch.ones(3, 12, 12)
    assert psnr(target + 0.5, target) == math.inf
    assert ssim(target + 0.5, target) == pytest.approx(1)
    # A quarter of an 8-bit step, which rounding would take away.
    assert psnr(target - 1 / 1020, target) == pytest.approx(20 * math.log10(1020), abs=1e-3)


def test_a_batch_gives_the_mean_over_its_pictures(pair):
    prediction, target = map(chw, pair)
    batch = torch.stack((prediction, target + 0.1)), torch.stack((target, target))
    singles = [metric(target + 0.1, target) for metric in (psnr, ssim)]
    assert psnr(*batch) == pytest.approx((psnr(prediction, target) + singles[0]) / 2)
    assert ssim(*batch) == pytest.approx((ssim(prediction, target) + singles[1]) / 2)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pictures_that_do_not_go_together_are_refused(metric):
    picture = torch.rand(3, 16, 16)
    with pytest.raises(ValueError, match="one size"):
        metric(picture, torch.rand(3, 16, 17))
    with pytest.raises(ValueError, match="3, H, W"):
        metric(torch.rand(16, 16), torch.rand(16, 16))
    with pytest.raises(TypeError, match="uint8"):
        metric(picture.mul(255).byte(), picture)
