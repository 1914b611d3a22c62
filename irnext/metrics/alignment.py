"""PSNR and SSIM after aligning the prediction with the target, as for RSBlur and RealBlur.

Their blurred and sharp pictures come from two cameras, or exposures, a little apart. Needs OpenCV.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .similarity import WINDOW, gaussian_mean, ssim_map

ITERATIONS, SMOOTHING = 100, 5  # of the search for the homography


def aligned_scores(prediction: Tensor, target: Tensor, clip: bool) -> dict[str, float]:
    """PSNR and SSIM over the part of the target that the aligned prediction covers.

    The prediction is scaled by the number that brings it nearest to the target, then warped by the
    homography of 100 ECC iterations. The squared error is divided by the number of covered values, and
    the SSIM (11x11 Gaussian window of sigma 1.5, per colour, dynamic range 1, valid region) averaged
    over covered positions. The published scripts ask for OpenCV 4.2; other versions may differ in the
    last digits.

    Args:
        prediction, target: float64 (3, H, W) in [0, 1], rounded to 8 bits.
        clip: whether both are clipped to [0, 1] after the warp (RSBlur does, RealBlur does not).

    Raises:
        ValueError: a black prediction, or no homography found.
    """
    device = target.device
    moved, mask = _aligned(*(x.permute(1, 2, 0).cpu().numpy() for x in (prediction, target)))
    moved, mask = (torch.from_numpy(x).to(device).permute(2, 0, 1) for x in (moved, mask))
    moved, target = moved * mask, target * mask
    if clip:
        moved, target = moved.clamp(0, 1), target.clamp(0, 1)
    error = (target - moved).square().sum() / mask.sum()
    margin = WINDOW // 2
    inner = mask[:, margin:-margin, margin:-margin]
    similarity = (ssim_map(moved, target, gaussian_mean, 1) * inner).sum((1, 2)) / inner.sum((1, 2))
    return {"psnr": (-10 * error.log10()).item(), "ssim": similarity.mean().item()}


def _aligned(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prediction scaled and warped onto the target, and where it covers it; (H, W, 3) float64."""
    import cv2

    power = np.square(prediction).sum()
    if power == 0:
        raise ValueError("the restored picture is black: it cannot be aligned")
    scaled = ((prediction * target).sum() / power * prediction).astype(np.float32)
    grey = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (target.astype(np.float32), scaled))
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    try:
        _, homography = cv2.findTransformECC(
            *grey, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, criteria, None, SMOOTHING
        )
    except cv2.error as error:
        raise ValueError(f"the restored picture cannot be aligned with the target: {error.err}") from None
    size = target.shape[1::-1]
    moved = cv2.warpPerspective(
        scaled,
        homography,
        size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    mask = cv2.warpPerspective(
        np.ones_like(scaled),
        homography,
        size,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return moved.astype(np.float64), mask.astype(np.float64)
