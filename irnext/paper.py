"""What the paper (Cui et al., ICML 2023) reports: IRNeXt's results by test set, and the rows of Table 6."""

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


class Deblurring(NamedTuple):
    """A row of Table 6: one system on GoPro.

    Attributes:
        psnr: in dB.
        gflops: for 256 x 256 pixels, in G; of IRNeXt it is `Complexity.paper_flops`.
        mparams: millions of parameters.
        seconds: for a picture, synchronised, on a V100.
    """

    psnr: float
    ssim: float
    gflops: float | None
    mparams: float
    seconds: float


GOPRO = {
    "DBGAN": Deblurring(31.10, 0.942, 759.85, 11.6, 1.447),
    "DMPHN": Deblurring(31.20, 0.940, None, 21.7, 0.405),
    "MIMO-UNet++": Deblurring(32.68, 0.959, 617.64, 16.1, 1.277),
    "MPRNet": Deblurring(32.66, 0.959, 777.01, 20.1, 1.148),
    "Restormer": Deblurring(32.92, 0.961, 140.99, 26.1, 1.218),
    "Stripformer": Deblurring(33.08, 0.962, 170.46, 20.0, 1.054),
    "IRNeXt": Deblurring(33.16, 0.962, 114.79, 13.21, 0.255),
}
