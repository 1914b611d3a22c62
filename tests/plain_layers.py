"""Layers of networks written out in NumPy, for references that share no code with the models."""

from __future__ import annotations

import math

import numpy as np


def conv2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, groups: int = 1
) -> np.ndarray:
    """A correlation with zeros around the plane, tap by tap; H and W are divided by the stride."""
    n, _, h, w = x.shape
    d, per_group, rows, columns = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)))
    padded = padded.reshape(n, groups, per_group, *padded.shape[2:])
    taps = weight.reshape(groups, d // groups, per_group, rows, columns)
    y = 0
    for i in range(rows):
        for j in range(columns):
            shifted = padded[..., i : i + h : stride, j : j + w : stride]
            y = y + np.einsum("ngchw,gdc->ngdhw", shifted, taps[..., i, j])
    y = y.reshape(n, d, *y.shape[3:])
    return y if bias is None else y + bias[:, None, None]


def conv_transpose2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Every pixel of x spread over 4 x 4 pixels of a plane twice as large, weight (C, D, 4, 4)."""
    n, _, h, w = x.shape
    y = np.zeros((n, weight.shape[1], 2 * h + 2, 2 * w + 2))
    for i in range(4):
        for j in range(4):
            y[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += np.einsum("nchw,cd->ndhw", x, weight[..., i, j])
    return y[:, :, 1:-1, 1:-1] + bias[:, None, None]


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
