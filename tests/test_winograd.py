"""The Winograd convolution for CPU inference: the direct convolution, in float64, is what it computes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_cpu import instructions, poisoned  # noqa: F401
from torch import Tensor

import irnext

pytestmark = pytest.mark.skipif(not irnext.backends()["cpu"], reason="the compiled library is not built")
OPS = torch.ops.irnext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Absolute floors of the tolerance rule: the error of a rounding or two of numbers of order one.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
TILES = (2, 4)
# (N, inputs, H, W), outputs: whole and partial tiles, several samples and vectors, one pixel, one row.
SHAPES = [
    ((2, 16, 8, 12), 16),
    ((1, 48, 13, 7), 32),
    ((3, 32, 5, 9), 48),
    ((1, 16, 1, 1), 64),
    ((2, 16, 1, 50), 16),
    ((1, 64, 34, 19), 16),
    ((1, 32, 2, 3), 80),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return numbers.to(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def draw_weight(outputs: int, inputs: int) -> Tensor:
    return draw(outputs, inputs, 3, 3, seed=1).contiguous() / (3 * inputs**0.5)


def convolve(x, weight, tile, bias=None, activation=None, residual=None) -> Tensor:
    packed = OPS.winograd_pack(weight, tile)
    return OPS.winograd_conv2d(x, packed, len(weight), tile, bias, activation, residual)


def direct(x, weight, bias=None, activation=None, residual=None, dtype=torch.float64) -> Tensor:
    y = F.conv2d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), padding=1)
    y = F.gelu(y) if activation else y
    return y if residual is None else y + residual.to(dtype)


def assert_as_good_as_direct(found: Tensor, x: Tensor, weight: Tensor, *more) -> None:
    exact, plain = direct(x, weight, *more), direct(x, weight, *more, dtype=x.dtype)
    assert found.shape == exact.shape and found.dtype == x.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.isfinite().all()
    error, allowed = ((y.double() - exact).abs().max() for y in (found, plain))
    assert error <= 2 * allowed + FLOOR[x.dtype] * exact.abs().max().clamp_min(1)


# ---- the same results ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
def test_every_shape(instructions, tile, dtype, poisoned):  # noqa: F811
    for shape, outputs in SHAPES:
        x, weight = draw(*shape, dtype=dtype), draw_weight(outputs, shape[1])
        before = x.clone()
        assert_as_good_as_direct(convolve(x, weight, tile), x, weight)
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
def test_bias_gelu_and_residual(instructions, tile, dtype, poisoned):  # noqa: F811
    x, weight = draw(2, 32, 9, 14, dtype=dtype), draw_weight(48, 32)
    residual = draw(2, 48, 9, 14, dtype=dtype, seed=2)
    biases = [None, draw(48, seed=3), draw(48, dtype=dtype, seed=3)[:, None].expand(48, 2)[:, 0]]
    for bias, activation, added in itertools.product(biases, (None, "gelu"), (None, residual)):
        found = convolve(x, weight, tile, bias, activation, added)
        assert_as_good_as_direct(found, x, weight, bias, activation, added)


def test_gelu_is_the_one_by_the_error_function(instructions):  # noqa: F811
    values = torch.linspace(-9, 9, 4096)
    x = torch.zeros(1, 16, 1, 1).to(memory_format=torch.channels_last)
    found = convolve(x, torch.zeros(4096, 16, 3, 3), 2, values, "gelu").flatten()
    exact = F.gelu(values.double())
    assert ((found.double() - exact).abs() <= 2.5e-7 * values.abs().clamp_min(1)).all()
    special = torch.tensor([float("inf"), float("nan"), 1e30, -1e30] + 12 * [0.0])
    found = convolve(x, torch.zeros(16, 16, 3, 3), 2, special, "gelu").flatten()
    assert found[1].isnan() and found[[0, 2, 3, 4]].tolist() == pytest.approx([float("inf"), 1e30, 0, 0])


@pytest.mark.parametrize("tile", TILES)
def test_weights_of_every_type_and_layout(tile):
    x, weight = draw(1, 16, 6, 6), draw_weight(32, 16)
    expected = OPS.winograd_pack(weight, tile)
    assert torch.equal(OPS.winograd_pack(weight.to(memory_format=torch.channels_last), tile), expected)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        held = weight.to(dtype)
        assert torch.equal(OPS.winograd_pack(held, tile), OPS.winograd_pack(held.float(), tile))
    assert_as_good_as_direct(convolve(x, weight.double(), tile), x, weight)


@pytest.mark.parametrize("tile", TILES)
def test_nothing_around_a_slice_is_read(instructions, tile):  # noqa: F811
    """Pixels and channels beside x and the residual are NaN: a zero border is not what lies there."""
    x, weight, residual = draw(2, 32, 9, 11), draw_weight(32, 32), draw(2, 32, 9, 11, seed=2)
    around = torch.full((4, 64, 15, 17), float("nan")).to(memory_format=torch.channels_last)
    inner = (slice(1, 3), slice(16, 48), slice(3, 12), slice(3, 14))
    views = []
    for tensor in (x, residual):
        views.append(around.clone()[inner])
        views[-1].copy_(tensor)
    found = convolve(views[0], weight, tile, residual=views[1])
    assert torch.equal(found, convolve(x, weight, tile, residual=residual))
    shared = x[:1].expand(3, 32, 9, 11)
    assert torch.equal(convolve(shared, weight, tile)[2], convolve(x, weight, tile)[0])


@pytest.mark.parametrize("shape", [(0, 16, 8, 8), (2, 16, 0, 8), (2, 16, 8, 0)])
def test_empty_pictures(shape):
    x, weight = torch.empty(shape), draw_weight(32, 16)
    for tile in TILES:
        y = convolve(x, weight, tile, None, "gelu", torch.empty(shape[0], 32, *shape[2:]))
        assert y.shape == (shape[0], 32, *shape[2:])


@pytest.mark.parametrize("tile", TILES)
def test_threads_change_nothing(tile):
    x, weight = draw(2, 32, 65, 70), draw_weight(48, 32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(convolve(x, weight, tile, activation="gelu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_samples_do_not_depend_on_their_batch():
    x, weight = draw(5, 16, 11, 6), draw_weight(16, 16)
    for tile in TILES:
        whole = convolve(x, weight, tile)
        for i in range(5):
            assert torch.equal(convolve(x[i : i + 1], weight, tile)[0], whole[i])


def test_numbers_that_are_none_are_not_lost():
    x, weight = draw(1, 16, 16, 16), draw_weight(16, 16)
    x[0, 3, 7, 8] = float("nan")
    for tile in TILES:
        y = convolve(x, weight, tile, activation="gelu")
        assert y[0, :, 6:9, 7:10].isnan().all() and y[0, :, 0].isfinite().all()


@pytest.mark.parametrize("tile, times", [(2, 1.0), (4, 3.0)])
def test_error_beside_the_direct_convolution(instructions, tile, times):  # noqa: F811
    """Root mean square errors: below the direct convolution's for tiles of 2, about twice it for 4."""
    x, weight = draw(1, 64, 48, 48), draw_weight(64, 64)
    exact = direct(x, weight)
    one_by_one = torch.zeros_like(x)
    for c, i, j in itertools.product(range(64), range(3), range(3)):
        shifted = F.pad(x[:, c : c + 1], (1, 1, 1, 1))[..., i : i + 48, j : j + 48]
        one_by_one.addcmul_(shifted, weight[None, :, c, i, j, None, None])
    error, plain = ((y - exact).square().mean().sqrt() for y in (convolve(x, weight, tile), one_by_one))
    assert error < times * plain


# ---- errors ----------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    x, weight = draw(1, 16, 8, 8), draw_weight(32, 16)
    packed = OPS.winograd_pack(weight, 4)
    for refused, match in [
        ((weight, 3), "tile must be 2 or 4, got 3"),
        ((weight[..., :2], 2), "weight must be"),
        ((weight[0], 2), "weight must be"),
        ((weight[:8], 2), "multiples of 16, got 16 and 8"),
        ((weight[:, :0], 2), "multiples of 16"),
        ((weight.long(), 2), "weight must be float64"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            OPS.winograd_pack(*refused)
    good = {
        "x": x,
        "packed": packed,
        "outputs": 32,
        "tile": 4,
        "bias": None,
        "activation": None,
        "residual": None,
    }
    OPS.winograd_conv2d(**good)
    for wrong, match in [
        ({"tile": 2}, "packed must be what winograd_pack makes of weights"),
        ({"tile": 6}, "tile must be"),
        ({"outputs": 48}, "packed must be"),
        ({"outputs": 0}, "multiples of 16"),
        ({"packed": packed.double()}, "packed must be"),
        ({"packed": packed[:, :1]}, "packed must be"),
        ({"x": draw(1, 8, 8, 8)}, "multiples of 16, got 8"),
        ({"x": draw(1, 32, 8, 8)}, "packed must be"),
        ({"x": x[0]}, "x must be"),
        ({"x": x.double()}, "x must be float32"),
        ({"x": x.contiguous()}, "x must be channels_last"),
        ({"bias": torch.zeros(16)}, "bias must hold 32 numbers"),
        ({"bias": torch.zeros(32, 1)}, "bias must hold"),
        ({"bias": torch.zeros(32).long()}, "bias must be"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"residual": draw(1, 16, 8, 8)}, "residual must be"),
        ({"residual": draw(1, 32, 8, 8).bfloat16()}, "residual must be"),
        ({"residual": draw(1, 32, 8, 8).contiguous()}, "residual must be channels_last"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            OPS.winograd_conv2d(**good | wrong)
