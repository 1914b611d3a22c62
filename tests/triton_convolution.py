"""The Triton convolution against PyTorch's: run by test_triton.py, where it can run."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from irnext.kernels import configuration
from irnext.kernels.convolution import can_serve, conv2d_bias_act, conv2d_bias_act_pair
from irnext.kernels.launch import needs_int64, recording
from torch import nn
from triton_support import DEVICE, FLOOR, assert_as_good, draw, poisoned  # noqa: F401

from irnext.blocks import Conv
from irnext.optimization import Convolution, FastestConvolution, Plan, TritonConvolution, convolve_joined

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Several tiles in every direction, even of tiny planes.
SMALL_TILES = configuration.Config(2, 16, 16, programs=1, warps=1, stages=1, outputs=16)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def definition(x, weight, bias, activation, residual, keep):
    padding = [side // 2 for side in weight.shape[2:]]
    z = F.conv2d(x, weight, bias, padding=padding)
    y = F.gelu(z) if activation else z
    return y if residual is None else y + residual, z if keep else x.new_empty(0)


def check(x, weight, bias=None, activation=None, residual=None, keep=False, other=None) -> None:
    """y and z against PyTorch's, in the same type and in float64."""
    options = (weight, bias, activation, residual, keep)
    both = x if other is None else torch.cat((x, other), 1)
    found = conv2d_bias_act(x, *options) if other is None else conv2d_bias_act_pair(x, other, *options)
    tensors = [both, weight, bias, activation, residual, keep]
    exact = [t.double() if isinstance(t, torch.Tensor) else t for t in tensors]
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].stride() == (found[0].stride() if keep else (1,))
    assert_as_good(found, definition(*tensors), definition(*exact), x.dtype)


def parameters(outputs: int, inputs: int, rows: int, columns: int, dtype: torch.dtype = torch.float32):
    """A weight that keeps the variance, and a bias."""
    scale = (inputs * rows * columns) ** -0.5
    return (draw(outputs, inputs, rows, columns) * scale).to(dtype), draw(outputs, dtype=dtype)


@pytest.mark.parametrize(
    ("biased", "gelu", "added", "keep"), list(itertools.product((False, True), repeat=4))
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_end(dtype, biased, gelu, added, keep):
    x = channels_last(draw(1, 16, 3, 5, dtype=dtype))
    weight, bias = parameters(16, 16, 3, 3, dtype)
    residual = draw(1, 16, 3, 5, dtype=dtype) if added else None
    check(x, weight, bias if biased else None, "gelu" if gelu else None, residual, keep)


@pytest.mark.parametrize(
    ("shape", "outputs", "size", "tiles"),
    [
        ((2, 32, 4, 9), 48, (3, 3), "default tiles"),
        ((1, 32, 3, 18), 20, (3, 3), "small tiles"),
        ((1, 16, 5, 70), 16, (3, 3), "default tiles"),
        ((2, 40, 3, 18), 20, (1, 1), "small tiles"),
        ((2, 3, 5, 4), 16, (3, 3), "default tiles"),
        ((1, 17, 2, 3), 3, (3, 3), "small tiles"),
        ((1, 5, 1, 1), 1, (3, 3), "default tiles"),
        ((1, 16, 4, 5), 8, (1, 3), "small tiles"),
        ((1, 16, 4, 5), 8, (3, 1), "default tiles"),
    ],
)
def test_shapes(shape, outputs, size, tiles):
    x = channels_last(draw(*shape))
    weight, bias = parameters(outputs, shape[1], *size)
    residual = channels_last(draw(shape[0], outputs, *shape[2:]))
    if tiles == "default tiles":
        check(x, weight, bias, "gelu", residual, True)
    else:
        with configuration.override(SMALL_TILES):
            check(x, weight, bias, "gelu", residual, True)


@pytest.mark.parametrize(
    ("channels", "size", "dtype"),
    [
        ((16, 16), 3, torch.float32),
        ((16, 40), 1, torch.float32),
        ((3, 5), 3, torch.float16),
        ((32, 32), 1, torch.float16),
        ((16, 24), 3, torch.bfloat16),
        ((32, 16), 1, torch.bfloat16),
    ],
)
def test_pairs(channels, size, dtype):
    x, other = (channels_last(draw(2, c, 3, 5, dtype=dtype)) for c in channels)
    weight, bias = parameters(24, sum(channels), size, size, dtype)
    if size == 1:
        with configuration.override(SMALL_TILES):
            check(x, weight, bias, "gelu", None, True, other)
    check(x, weight, None, None, draw(2, 24, 3, 5, dtype=dtype), False, other)


def test_strides():
    """A window of a wider tensor, some of its channels, a weight in either layout, any residual."""
    wide = channels_last(draw(2, 40, 6, 9))
    x, other = wide[:, 8:24, 1:5, 2:8], wide[:, 24:40, 2:6, :6]
    weight, bias = parameters(16, 16, 3, 3)
    residual = draw(2, 16, 6, 4).permute(0, 1, 3, 2)
    check(x, weight, bias, "gelu", residual)
    check(x, channels_last(weight), bias, None, wide[:, :16, 1:5, 1:7])
    weight, bias = parameters(16, 32, 3, 3)
    check(x, weight, bias, None, None, False, other)


def test_empty_batch():
    x = channels_last(draw(0, 16, 4, 5))
    y, z = conv2d_bias_act(x, *parameters(8, 16, 3, 3), "gelu", None, True)
    assert y.shape == z.shape == (0, 8, 4, 5)


def test_offsets_beyond_32_bits():
    """The second sample begins 2^31 numbers after the first; the memory between is never touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    stride = 2**31
    memory = torch.empty(stride + 16 * 6, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((2, 16, 2, 3), (stride, 1, 48, 16))
    assert needs_int64(x)
    numbers = channels_last(draw(2, 16, 2, 3, dtype=torch.float16))
    x.copy_(numbers)
    weight, bias = parameters(16, 16, 3, 3, torch.float16)
    assert torch.equal(*(conv2d_bias_act(t, weight, bias, None, numbers)[0] for t in (x, numbers)))
    assert torch.equal(*(conv2d_bias_act(numbers, weight, bias, None, t)[0] for t in (x, numbers)))


def test_what_can_be_served():
    x, (weight, bias) = channels_last(draw(1, 16, 4, 5)), parameters(8, 16, 3, 3)
    assert can_serve(x, weight, bias, draw(1, 8, 4, 5), x)
    assert can_serve(x[:, :3], weight[:, :3])
    assert can_serve(draw(2, 1, 4, 5), weight[:, :1])
    assert not can_serve(x.contiguous(), weight)
    assert not can_serve(x, weight, other=x.contiguous())
    assert not can_serve(x, draw(8, 16, 5, 3))
    assert not can_serve(x, weight.half())
    assert not can_serve(x, weight, bias.double())
    assert not can_serve(x.double(), weight.double())


@pytest.mark.parametrize(
    ("x", "weight", "bias", "residual"),
    [
        ((1, 16, 4, 5), (8, 15, 3, 3), None, None),
        ((1, 16, 4, 5), (8, 16, 3, 3), (7,), None),
        ((1, 16, 4, 5), (8, 16, 3, 3), None, (1, 8, 4, 4)),
        ((1, 16, 4, 5), (8, 16, 5, 5), None, None),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, bias, residual):
    bias, residual = (None if shape is None else draw(*shape) for shape in (bias, residual))
    with pytest.raises(RuntimeError, match=r"does not fit|serves"):
        conv2d_bias_act(channels_last(draw(*x)), draw(*weight), bias, None, residual)


def test_a_pair_must_be_of_one_size():
    x, other = channels_last(draw(1, 16, 4, 5)), channels_last(draw(1, 16, 4, 6))
    with pytest.raises(RuntimeError, match="does not fit"):
        conv2d_bias_act_pair(x, other, draw(8, 32, 3, 3))


def test_layouts_are_not_changed_behind_the_scenes():
    with pytest.raises(RuntimeError, match="channels_last"):
        conv2d_bias_act(draw(1, 16, 4, 5), draw(8, 16, 3, 3))


@pytest.mark.parametrize("allowed", [True, False])
def test_float32_is_rounded_where_pytorchs_convolutions_are(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    wanted = {torch.float32: "tf32" if allowed else "tf32x3", torch.float16: "ieee"}
    for dtype, precision in wanted.items():
        x = channels_last(torch.empty(1, 16, 4, 5, device="meta", dtype=dtype))
        with recording() as launches:
            conv2d_bias_act(x, x.new_empty(8, 16, 3, 3))
        assert [launch.constants["PRECISION"] for launch in launches] == [precision]


@pytest.mark.parametrize("channels", [3, 16, 64, 128, 384])
def test_tiles_fit_tensor_cores(channels):
    x = channels_last(torch.empty(1, channels, 40, 20, device="meta"))
    for outputs in (3, 64, 200):
        config = configuration.choose_convolution(x, 9, outputs)
        for side in (config.columns, config.channels, config.outputs):
            assert side >= 16
            assert side == configuration.power_of_two(side)
        assert config.columns <= 32


# ---- in the optimized model ------------------------------------------------------------------------


@pytest.mark.parametrize("size", (1, 3))
@pytest.mark.parametrize("activation", (None, "gelu"))
def test_the_part_of_the_optimized_model(size, activation):
    torch.manual_seed(0)
    conv = Conv(16, 32, size, activation=activation).to(DEVICE)
    plan = Plan(torch.float32, torch.channels_last)
    parts = [make(conv, plan, activation == "gelu") for make in (Convolution, TritonConvolution)]
    x, residual = draw(2, 16, 5, 7).to(DEVICE), channels_last(draw(2, 32, 5, 7).to(DEVICE))
    with torch.no_grad():
        for added in (None, residual):
            expected, found = (part(x, residual=added, overwrite=True) for part in parts)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_part_is_chosen_by_measurement():
    conv = Conv(16, 16, activation="gelu").to(DEVICE)
    plan = Plan(torch.float32, torch.channels_last, FastestConvolution)
    x = channels_last(draw(1, 16, 5, 7).to(DEVICE))
    part = plan.part(conv)
    timed = []
    part.milliseconds = lambda run: timed.append(run()) or 1 / len(timed)  # the second is the faster
    with torch.no_grad():
        found = part(x, residual=None, overwrite=True)
        torch.testing.assert_close(found, conv(x), rtol=1e-5, atol=1e-5)
    ((name, times),) = plan.choices.values()
    assert name == "Triton" and times == {"PyTorch": 1.0, "Triton": 0.5}


def test_a_pair_in_the_optimized_model():
    conv = Conv(32, 16, 1, activation="gelu").to(DEVICE)
    part = Plan(torch.float32, torch.channels_last, FastestConvolution).part(conv)
    x, other = (channels_last(draw(1, 16, 5, 7).to(DEVICE)) for _ in range(2))
    results = []
    part.of_pair.milliseconds = lambda run: results.append(run()) or 1.0
    with torch.no_grad():
        convolve_joined(part, [x, other])
        expected = conv(torch.cat((x, other), 1))
    assert len(results) == 2
    for found in results:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1),
    ],
)
def test_other_convolutions_stay_with_pytorch(conv):
    assert not TritonConvolution.can_serve(conv, torch.float32)
    assert list(FastestConvolution(conv, Plan(torch.float32, torch.channels_last), False).candidates) == [
        "PyTorch"
    ]
