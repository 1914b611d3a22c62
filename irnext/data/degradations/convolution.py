"""Convolution by the Fourier transform: its cost does not grow with the kernel.

NumPy's transform, on one thread, gives the same bits in every worker of a loader.
"""

from __future__ import annotations

import numpy as np


def convolve(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The convolution of `planes` (..., H, W) with `kernel` (h, w), where they overlap wholly.

    Returns (..., H - h + 1, W - w + 1) float32.
    """
    (height, width), (h, w) = planes.shape[-2:], kernel.shape
    size = _fast(height), _fast(width)
    # The transform wraps around, but into the first h - 1 rows and w - 1 columns only.
    spectrum = np.fft.rfft2(planes, size) * np.fft.rfft2(kernel.astype(planes.dtype), size)
    return np.fft.irfft2(spectrum, size)[..., h - 1 : height, w - 1 : width].astype(np.float32)


def _fast(size: int) -> int:
    """The next size from `size` on that has no prime factor above 5, which transforms fast."""
    while not _is_smooth(size):
        size += 1
    return size


def _is_smooth(size: int) -> bool:
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    return size == 1
