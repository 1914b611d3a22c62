"""This package's operators in ONNX's standard ones, for the exporter of PyTorch.

Sizes may be known when the program runs only, as the batch is: no convolution can have a kernel, and
so a group, per sample, and the filter is a sum over its taps of shifted planes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from onnx import TensorProto
from onnxscript import opset20 as op

from .ops.registration import OPERATORS

LAST = np.iinfo(np.int64).max  # to the end of an axis
PADDING = {"reflect": "reflect", "replicate": "edge", "zeros": "constant"}


def numbers(*values: int):
    """A constant of whole numbers."""
    return op.Constant(value_ints=list(values))


def dynamic_conv2d(x, kernel, bias=None, dilation: int = 1, padding_mode: str = "reflect"):
    """`irnext.ops.dynamic_conv2d`."""
    channels = x.shape[1]
    groups, rows, columns = kernel.shape[1:]
    if groups != channels:
        owners = [c // (channels // groups) for c in range(channels)]
        kernel = op.Gather(kernel, numbers(*owners), axis=1)
    taps = rows * columns
    weights = op.Split(op.Reshape(kernel, numbers(0, 0, taps, 1)), axis=2, num_outputs=taps)
    top, left = dilation * (rows // 2), dilation * (columns // 2)
    pads = numbers(0, 0, top, left, 0, 0, top, left)
    padded = op.Pad(x, pads, mode=PADDING[padding_mode])
    total = None if bias is None else op.Unsqueeze(bias, numbers(2, 3)) if len(bias.shape) == 2 else bias
    for tap, weight in enumerate(weights):
        shift = dilation * (tap // columns), dilation * (tap % columns)
        # Ends are told from the far side, whatever the size.
        ends = [back if back else LAST for back in (shift[0] - 2 * top, shift[1] - 2 * left)]
        term = op.Mul(op.Slice(padded, numbers(*shift), numbers(*ends), numbers(2, 3)), weight)
        total = term if total is None else op.Add(total, term)
    return total


def spatial_mean(x):
    """`irnext.ops.spatial_mean`."""
    return op.ReduceMean(x, numbers(2, 3), keepdims=0)


def local_mean(x, window: Sequence[int]):
    """`irnext.ops.local_mean`: two products with matrices of the means along rows and along columns.

    Running sums would need float64, which few runtimes for ONNX have.
    """
    along_rows, along_columns = (means(x, axis, window[axis - 2]) for axis in (2, 3))
    return op.MatMul(op.MatMul(along_rows, x), op.Transpose(along_columns, perm=[1, 0]))


def means(x, axis: int, window):
    """The matrix (size, size) of the means over windows along an axis of x: its row i is for pixel i.

    Windows that would reach beyond the plane are moved into it, which is what replicating the means at
    the border comes to.
    """
    size = op.Shape(x, start=axis, end=axis + 1)
    window = op.Min(op.Reshape(window, numbers(1)), size)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    pixels = op.Range(zero, op.Squeeze(size), one)
    before = op.Div(op.Sub(window, one), op.Constant(value_int=2))
    first = op.Max(op.Min(op.Sub(pixels, before), op.Sub(size, window)), zero)
    first = op.Unsqueeze(first, numbers(1))
    inside = op.And(op.GreaterOrEqual(pixels, first), op.Less(pixels, op.Add(first, window)))
    return op.Div(op.Cast(inside, to=TensorProto.FLOAT), op.Cast(window, to=TensorProto.FLOAT))


TRANSLATIONS: dict[torch._ops.OpOverload, object] = {
    OPERATORS.dynamic_conv2d: dynamic_conv2d,
    OPERATORS.spatial_mean: spatial_mean,
    OPERATORS.local_mean: local_mean,
}
