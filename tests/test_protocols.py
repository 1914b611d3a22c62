"""Every evaluation protocol against a library that computes it independently, and its own quirks."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from irnext import metrics
from irnext.metrics import PROTOCOLS, Metric, measure, perceptual, protocols

skimage_metrics = pytest.importorskip("skimage.metrics")
rgb2ycbcr = pytest.importorskip("skimage.color").rgb2ycbcr
ndimage = pytest.importorskip("scipy.ndimage")


def photograph(height: int = 67, width: int = 93) -> np.ndarray:
    from skimage import data

    return np.ascontiguousarray(data.chelsea()[100 : 100 + height, 120 : 120 + width])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy float prediction, somewhat outside [0, 1], and its uint8 target; odd sizes."""
    target = photograph()
    noise = np.random.default_rng(0).normal(0, 0.15, target.shape)
    return chw((target / 255 + noise).astype(np.float32)), chw(target)


def chw(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def hwc(picture: torch.Tensor) -> np.ndarray:
    return picture.double().clamp(0, 1).permute(1, 2, 0).numpy()


def loaded(picture: torch.Tensor) -> np.ndarray:
    """A uint8 picture as loaders give it: divided in float32."""
    return hwc(picture.float() / 255)


def as_file(picture: torch.Tensor) -> np.ndarray:
    """The picture as an 8-bit file holds it."""
    return np.rint(hwc(picture) * 255).astype(np.uint8)


def score(name: str, pair) -> dict[str, float]:
    return PROTOCOLS[name].compute(*pair)


def independent_psnr(prediction, target, peak) -> float:
    return skimage_metrics.peak_signal_noise_ratio(
        np.asarray(target, float), np.asarray(prediction, float), data_range=peak
    )


GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def independent_ssim(prediction, target, peak, channel_axis=2, **options) -> float:
    return skimage_metrics.structural_similarity(
        np.asarray(prediction, float),
        np.asarray(target, float),
        data_range=peak,
        channel_axis=channel_axis,
        **options,
    )


def test_irnext_rgb_is_not_rounded(pair):
    expected = independent_psnr(hwc(pair[0]), loaded(pair[1]), 1)
    assert score("irnext-rgb", pair)["psnr"] == pytest.approx(expected, rel=1e-12)
    rounded = independent_psnr(as_file(pair[0]), pair[1].permute(1, 2, 0).numpy(), 255)
    assert score("irnext-rgb-saved", pair)["psnr"] == pytest.approx(rounded, rel=1e-6)  # divided in float32
    assert abs(expected - rounded) > 1e-5


@pytest.mark.parametrize(
    "height, width, pooled",
    [
        (67, 93, (96, 96)),  # d = 1: enlarged
        (64, 96, (96, 128)),  # multiples of 32: one step too many
        (460, 620, (240, 320)),  # SOTS: 480x640, d = 2
        (352, 400, (192, 208)),  # 384 / 256 = 1.5 is rounded to d = 2
        (600, 640, (304, 336)),  # 608 and 672 of 640: d = 2
        (608, 640, (320, 336)),  # 640 / 256 = 2.5 is rounded to the even d = 2
    ],
)
def test_pooled_ssim_takes_the_size_of_the_padded_picture(height, width, pooled, monkeypatch):
    pytorch_msssim = pytest.importorskip("pytorch_msssim")
    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.random((3, height, width)))
    target = F.avg_pool2d(target[None], 5, 1, 2)[0]
    prediction = (target + torch.from_numpy(rng.normal(0, 0.05, target.shape))).clamp(0, 1)
    seen = []
    pool = F.adaptive_avg_pool2d
    monkeypatch.setattr(F, "adaptive_avg_pool2d", lambda x, size: seen.append(size) or pool(x, size))
    found = protocols.pooled_ssim(prediction, target)
    assert seen == [pooled, pooled]
    shrunk = (pool(x, pooled)[None] for x in (prediction, target))
    expected = pytorch_msssim.ssim(*shrunk, data_range=1, size_average=False)
    assert found == pytest.approx(expected.item(), abs=1e-5)  # its window is float32
    assert found != pytest.approx(score("ssim-rgb", (prediction, target))["ssim"], abs=1e-3)


def test_ssim_rgb_agrees_with_scikit_image(pair):
    expected = independent_ssim(hwc(pair[0]), loaded(pair[1]), 1, **GAUSSIAN)
    assert score("ssim-rgb", pair) == {"ssim": pytest.approx(expected, rel=1e-10)}


def test_gopro_matlab_is_a_volume_of_8_bit_values(pair):
    prediction, target = as_file(pair[0]), pair[1].permute(1, 2, 0).numpy()

    def mean(volume):
        return ndimage.gaussian_filter(volume, 1.5, mode="nearest", radius=5, axes=(0, 1, 2))

    x, y = prediction.astype(float), target.astype(float)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()
    found = score("gopro-matlab", pair)
    assert found["ssim"] == pytest.approx(expected, rel=1e-10)
    assert found["psnr"] == pytest.approx(independent_psnr(prediction, target, 255), rel=1e-12)


@pytest.mark.parametrize(
    "colour, y",
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81.481),
        ((0, 255, 0), 144.553),
        ((0, 0, 255), 40.966),
        ((128, 128, 128), 125.9294117647),
    ],
)
def test_luma_of_known_colours(colour, y):
    """Black, white and the primaries as BT.601 has them; MATLAB's rgb2ycbcr rounds these."""
    x = torch.tensor(colour, dtype=torch.float64).view(3, 1, 1)
    assert protocols.luma(x).item() == pytest.approx(y, abs=1e-9)


@pytest.mark.parametrize("name, rounding", [("derain-y", np.rint), ("basicsr-y", lambda y: y)])
def test_luma_protocols_differ_by_rounding(pair, name, rounding):
    x, y = (rounding(rgb2ycbcr(rgb)[..., 0]) for rgb in (as_file(pair[0]), pair[1].permute(1, 2, 0).numpy()))
    found = score(name, pair)
    assert found["psnr"] == pytest.approx(independent_psnr(x, y, 255), rel=1e-9)
    assert found["ssim"] == pytest.approx(independent_ssim(x, y, 255, None, **GAUSSIAN), rel=1e-9)
    assert score("derain-y", pair)["psnr"] != pytest.approx(score("basicsr-y", pair)["psnr"], abs=1e-5)


def test_dpdd_has_the_uniform_window_of_scikit_image(pair):
    prediction, target = hwc(pair[0]), loaded(pair[1])
    found = score("dpdd", pair)
    assert found["ssim"] == pytest.approx(independent_ssim(prediction, target, 1), rel=1e-10)
    assert found["psnr"] == pytest.approx(independent_psnr(prediction, target, 1), rel=1e-12)
    channels = np.abs(prediction - target).mean((0, 1))
    assert found["mae"] == pytest.approx(channels.mean(), rel=1e-12)


@pytest.mark.parametrize("border", [0, 4])
def test_basicsr_rounds_and_crops(pair, border):
    inside = np.s_[border : 67 - border, border : 93 - border]
    prediction, target = as_file(pair[0])[inside], pair[1].permute(1, 2, 0).numpy()[inside]
    found = protocols.basicsr(*pair, crop_border=border)
    assert found["psnr"] == pytest.approx(independent_psnr(prediction, target, 255), rel=1e-12)
    assert found["ssim"] == pytest.approx(independent_ssim(prediction, target, 255, **GAUSSIAN), rel=1e-10)
    assert protocols.basicsr_y(*pair, crop_border=border) != protocols.basicsr_y(
        *pair, crop_border=border + 1
    )
    with pytest.raises(ValueError, match="crop_border is 34"):
        protocols.basicsr(*pair, crop_border=34)


def shifted_pair(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same photograph seen through a window that moved, and darker by a fifth."""
    whole = photograph(140, 180)
    target = whole[10:130, 10:170]
    prediction = whole[10 + rows : 130 + rows, 10 + columns : 170 + columns]
    return chw((0.8 * prediction / 255).astype(np.float32)), chw(target)


def test_rsblur_undoes_a_shift_and_a_scale():
    pytest.importorskip("cv2")
    pair = shifted_pair(3, -2)
    plain = score("irnext-rgb", pair)["psnr"]
    for name in ("rsblur", "realblur"):
        aligned = score(name, pair)
        assert plain < 22 < 38 < aligned["psnr"]
        assert 0.95 < aligned["ssim"] <= 1


def test_rsblur_leaves_out_what_the_prediction_does_not_cover():
    """Against plain numpy and scikit-image on the overlap of a prediction moved by whole pixels."""
    pytest.importorskip("cv2")
    from irnext.metrics import alignment

    target = photograph(60, 80) / 255
    moved = np.clip(target + np.random.default_rng(2).normal(0, 0.05, target.shape), 0, 1)
    mask = np.ones_like(target)
    mask[:, :7] = 0
    original = alignment._aligned
    alignment._aligned = lambda prediction, target: (moved, mask)
    try:
        found = alignment.aligned_scores(chw(moved), chw(target), clip=True)
    finally:
        alignment._aligned = original
    covered = np.s_[:, 7:]
    assert found["psnr"] == pytest.approx(independent_psnr(moved[covered], target[covered], 1), rel=1e-12)
    _, similarity = skimage_metrics.structural_similarity(
        target * mask, moved * mask, data_range=1, channel_axis=2, full=True, **GAUSSIAN
    )
    inner = np.s_[5:-5, 5:-5]
    expected = ((similarity * mask)[inner].sum((0, 1)) / mask[inner].sum((0, 1))).mean()
    assert found["ssim"] == pytest.approx(expected, rel=1e-9)


def test_only_rsblur_clips_after_the_warp(monkeypatch):
    pytest.importorskip("cv2")
    from irnext.metrics import alignment

    target = np.full((40, 40, 3), 0.5)
    monkeypatch.setattr(alignment, "_aligned", lambda *_: (np.full_like(target, 1.5), np.ones_like(target)))
    black = chw(target)
    assert score("rsblur", (black, black))["psnr"] == pytest.approx(20 * math.log10(1 / (1 - 128 / 255)))
    assert score("realblur", (black, black))["psnr"] == pytest.approx(20 * math.log10(1 / (1.5 - 128 / 255)))


def test_what_cannot_be_aligned_is_refused():
    pytest.importorskip("cv2")
    target = chw(photograph())
    with pytest.raises(ValueError, match="black"):
        score("rsblur", (torch.zeros(3, 67, 93), target))
    with pytest.raises(ValueError, match="cannot be aligned"):
        score("rsblur", (torch.full((3, 67, 93), 0.5), target))


def test_lpips_is_called_as_in_the_published_script(pair, monkeypatch):
    """A stand-in for the package, which needs torchvision: how it is made and called."""
    calls = []

    class LPIPS:
        def __init__(self, **options):
            calls.append(options)

        def to(self, device):
            return self

        def eval(self):
            return self

        def __call__(self, first, second, normalize):
            calls.append((first, second, normalize))
            return torch.full((1, 1, 1, 1), 0.25)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    perceptual._network.cache_clear()
    assert measure(["lpips-alex"], *pair) == {Metric("lpips-alex", "lpips"): 0.25}
    assert measure(["lpips-alex"], *pair)  # the network is loaded once
    perceptual._network.cache_clear()
    assert len(calls) == 3
    assert calls[0] == {"net": "alex", "version": "0.1", "verbose": False}
    first, second, normalize = calls[1]
    assert normalize is True
    torch.testing.assert_close(first, pair[1][None] / 255)
    torch.testing.assert_close(second, pair[0][None].clamp(0, 1))


@pytest.mark.parametrize("package, protocol", [("lpips", "lpips-alex"), ("cv2", "rsblur")])
def test_a_missing_package_is_named_with_its_extra(package, protocol, pair, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{protocol} needs {package} .*irnext\["):
        measure([protocol], *pair)


CORE = [name for name, protocol in PROTOCOLS.items() if protocol.package is None]


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_and_layout_of_pictures(name, dtype, pair):
    """A picture that the type holds exactly scores as in float64, also from a view with other strides."""
    prediction = (pair[0] * 255).round().clamp(0, 255) / 256  # 8 bits, exact in every type
    expected = measure([name], prediction, pair[1])
    strided = prediction.to(dtype).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert measure([name], strided, pair[1]) == pytest.approx(expected, rel=1e-12)
    assert measure([name], prediction, pair[1].float() / 255) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", CORE)
def test_equal_pictures_are_perfect(name, pair):
    found = score(name, (pair[1].float() / 255, pair[1]))
    assert found.get("psnr", math.inf) == math.inf
    assert found["ssim"] == pytest.approx(1, abs=1e-12)
    assert found.get("mae", 0) == 0


def test_pictures_that_do_not_go_together_are_refused(pair):
    prediction, target = pair
    with pytest.raises(ValueError, match="one size"):
        measure(["irnext-rgb"], prediction[:, :-1], target)
    with pytest.raises(ValueError, match="3, H, W"):
        measure(["irnext-rgb"], prediction[None], target[None])
    with pytest.raises(TypeError, match=r"prediction is torch\.uint8"):
        measure(["irnext-rgb"], target, target)
    with pytest.raises(TypeError, match="int64"):
        measure(["irnext-rgb"], prediction, target.long())
    with pytest.raises(ValueError, match="11x11"):
        measure(["ssim-rgb"], prediction[:, :10], target[:, :10])
    with pytest.raises(ValueError, match="7x7"):
        measure(["dpdd"], prediction[:, :6], target[:, :6])
    with pytest.raises(ValueError, match=r"unknown protocol 'psnr'.*irnext-rgb"):
        measure(["psnr"], prediction, target)


def test_several_protocols_score_one_prediction(pair):
    found = measure(["dpdd", "irnext-rgb"], *pair)
    assert [*found] == [
        Metric("dpdd", "psnr"),
        Metric("dpdd", "ssim"),
        Metric("dpdd", "mae"),
        Metric("irnext-rgb", "psnr"),
        Metric("irnext-rgb", "ssim"),
    ]
    assert found[Metric("irnext-rgb", "psnr")] == metrics.psnr(pair[0], pair[1].float() / 255)
