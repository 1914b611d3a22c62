"""Which convolutions the fused kernels serve, and by which."""

from __future__ import annotations

import torch
from torch import Tensor

# 4 x 4 results with a quarter of the products, at about twice the rounding error of a direct convolution.
WINOGRAD_TILE = 4
WINOGRAD_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Below so many pixels per channel, transforming the weights costs more than it saves.
PIXELS_PER_CHANNEL = 4


# Asked once: torch.compile cannot.
_COMPILED = hasattr(torch.ops.irnext, "winograd_conv2d") and torch.ops.irnext.cpu_instructions() != "baseline"
_MATRIX_UNITS = torch.cpu._is_amx_tile_supported()


def winograd_serves(dtype: torch.dtype) -> bool:
    """Whether there is a compiled Winograd convolution of this type, the fastest on this processor."""
    # Matrix units multiply bfloat16 faster than any algorithm saves products of float32.
    return _COMPILED and dtype in WINOGRAD_DTYPES and not (dtype == torch.bfloat16 and _MATRIX_UNITS)


def winograd_takes(outputs: int, inputs: int, rows: int, columns: int) -> bool:
    """Whether weights (outputs, inputs, rows, columns) are 3 x 3 and their channels fill vectors."""
    return rows == columns == 3 and inputs % 16 == outputs % 16 == 0


def fused_serves(x: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    """Whether `fused_conv2d` has a kernel for this convolution that is worth its while."""
    if x.device.type != "cpu" or not winograd_takes(*weight.shape) or not winograd_serves(x.dtype):
        return False
    if residual is not None and (residual.dtype != x.dtype or residual.device != x.device):
        return False
    if weight.device != x.device or weight.dtype not in (x.dtype, torch.float32):
        return False
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if isinstance(pixels, torch.SymInt):  # any size: an exported program must not depend on it
        return True
    return pixels >= PIXELS_PER_CHANNEL * max(weight.shape[0], weight.shape[1])
