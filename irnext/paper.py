"""The results that the paper (Cui et al., ICML 2023) reports of IRNeXt, by test set."""

from __future__ import annotations

from typing import NamedTuple

from .metrics import Metric


class Result(NamedTuple):
    """One cell group of a table. The paper does not name protocols: they are those of the published code,
    or, where it computes no such metric, of the tables that the paper compares with."""

    table: str
    scores: dict[Metric, float]


def _result(table: int, psnr: float, ssim: float, protocol: str, ssim_protocol: str | None = None) -> Result:
    scores = {Metric(protocol, "psnr"): psnr, Metric(ssim_protocol or protocol, "ssim"): ssim}
    return Result(f"Table {table}", scores)


def _defocus(psnr: float, ssim: float, mae: float, lpips: float) -> Result:
    scores = {
        Metric("dpdd", "psnr"): psnr,
        Metric("dpdd", "ssim"): ssim,
        Metric("dpdd", "mae"): mae,
        Metric("lpips-alex", "lpips"): lpips,
    }
    return Result("Table 1", scores)


RESULTS = {
    "dpdd": _defocus(26.30, 0.814, 0.037, 0.206),
    "dpdd-indoor": _defocus(29.22, 0.879, 0.024, 0.167),
    "dpdd-outdoor": _defocus(23.53, 0.752, 0.049, 0.244),
    "sots-indoor": _result(2, 41.21, 0.996, "irnext-rgb"),
    "sots-outdoor": _result(2, 39.18, 0.996, "irnext-rgb"),
    "dense-haze": _result(2, 17.60, 0.659, "irnext-rgb"),
    "nh-haze": _result(2, 20.55, 0.813, "irnext-rgb"),
    "rain100l": _result(3, 38.14, 0.972, "derain-y"),
    "rain100h": _result(3, 31.64, 0.902, "derain-y"),
    "test100": _result(3, 31.53, 0.919, "derain-y"),
    "csd": _result(4, 37.29, 0.99, "irnext-rgb"),
    "srrs": _result(4, 31.91, 0.98, "irnext-rgb"),
    "snow100k": _result(4, 33.61, 0.95, "irnext-rgb"),
    "rsblur": _result(5, 34.08, 0.869, "rsblur"),
    "gopro": _result(6, 33.16, 0.962, "irnext-rgb", "gopro-matlab"),
}
