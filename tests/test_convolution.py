"""The fused convolution in training: results, gradients, and which convolutions it serves."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_cpu import FLOOR, instructions, poisoned  # noqa: F401
from torch import Tensor

import irnext
from irnext import ops
from irnext.ops import reference
from irnext.ops.convolution import winograd_serves

pytestmark = pytest.mark.skipif(not irnext.backends()["cpu"], reason="the compiled library is not built")
OPS = torch.ops.irnext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted")
# (N, C, H, W), K: whole and partial tiles, several samples, blocks of channels, slices and parts of a sum.
SHAPES = [
    ((2, 16, 8, 12), 16),
    ((1, 48, 13, 7), 32),
    ((1, 16, 1, 1), 80),
    ((2, 32, 1, 50), 16),
    ((1, 32, 33, 46), 144),
    ((3, 16, 45, 70), 32),
]


def draw(shape: tuple[int, ...], seed: int, layout: str = "contiguous") -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if layout == "channels_last":
        return numbers.to(memory_format=torch.channels_last)
    if layout == "permuted":
        return numbers.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    if layout == "sliced":
        n, c, h, w = shape
        around = torch.full((n, c + 16, h + 2, w + 3), float("nan")).to(memory_format=torch.channels_last)
        around[:, 16:, 1:-1, 2:-1] = numbers
        return around[:, 16:, 1:-1, 2:-1]
    return numbers


def operands(shape, outputs, layout="contiguous") -> tuple[Tensor, ...]:
    """x, weight, bias, a residual and a gradient of y."""
    n, channels, *plane = shape
    weight = draw((outputs, channels, 3, 3), 1) / (3 * channels**0.5)
    results = (n, outputs, *plane)
    return (
        draw(shape, 0, layout),
        weight,
        draw((outputs,), 2),
        draw(results, 3, layout),
        draw(results, 4, layout),
    )


def convolve(x, weight, bias, activation, residual):
    y = F.conv2d(x, weight, bias, padding=1)
    y = F.gelu(y) if activation else y
    return y if residual is None else y + residual


def results_and_gradients(function, inputs, grad) -> list[Tensor]:
    """y and the gradients of x, weight, bias and residual, those that there are."""
    x, weight, bias, activation, residual = inputs
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    y = function(*leaves[:3], activation, leaves[3])
    found = torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad)
    return [y.detach(), *found]


def assert_as_good_as_pytorch(inputs, grad) -> None:
    """By the largest error: in float32 Winograd's is up to four times a direct convolution's."""
    dtype = inputs[0].dtype
    times = 4 if dtype == torch.float32 else 2
    floor = times / 2 * FLOOR[dtype]
    wide = [t if t is None or isinstance(t, str) else t.double() for t in inputs]
    exact = results_and_gradients(convolve, wide, grad.double())
    plain = results_and_gradients(convolve, inputs, grad)
    found = results_and_gradients(ops.conv2d_bias_act, inputs, grad)
    assert len(found) == len(exact)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.shape == c.shape and a.dtype == dtype and a.isfinite().all()
        error, allowed = ((t.double() - c).abs().max() for t in (a, b))
        assert error <= times * allowed + floor * c.abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_and_gradients_of_every_shape(instructions, dtype, poisoned):  # noqa: F811
    for (shape, outputs), layout in itertools.product(SHAPES, LAYOUTS[:2]):
        x, weight, bias, residual, grad = (t.to(dtype) for t in operands(shape, outputs, layout))
        assert_as_good_as_pytorch((x, weight, bias, "gelu", residual), grad)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_epilogue(dtype, layout, poisoned):  # noqa: F811
    x, weight, bias, residual, grad = (t.to(dtype) for t in operands((2, 32, 11, 14), 48, layout))
    for offset, activation, added in itertools.product((None, bias), (None, "gelu"), (None, residual)):
        assert_as_good_as_pytorch((x, weight, offset, activation, added), grad)


def serves(y: Tensor) -> bool:
    """Whether the fused operator made y."""
    return type(y.grad_fn).__name__.startswith("Recorded")


@pytest.mark.skipif(not winograd_serves(torch.float32), reason="no fast instructions here")
def test_what_is_served():
    x, weight, bias, residual, _ = operands((2, 32, 11, 14), 48)
    weight.requires_grad_()
    assert serves(ops.conv2d_bias_act(x, weight, bias, "gelu", residual))
    for others in [
        (x.double(), weight.double(), bias.double()),
        (x[:, :24], weight[:, :24]),
        (x, weight[:40]),
        (x, weight[..., :1]),
        (x[:1, :, :4, :4], weight),  # too few pixels for the transform of the weights
    ]:
        assert not serves(ops.conv2d_bias_act(*others))
    with irnext.use_backend("reference"):
        assert not serves(ops.conv2d_bias_act(x, weight))
    with pytest.raises(RuntimeError):  # as PyTorch's own: types that do not go together
        ops.conv2d_bias_act(x.bfloat16(), weight)


@pytest.mark.skipif(not winograd_serves(torch.bfloat16), reason="no fast instructions here")
def test_autocast():
    x, weight, bias, residual, grad = operands((2, 32, 11, 14), 48)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d_bias_act(x, weight, bias, "gelu", residual.bfloat16())
        assert serves(y) and y.dtype == torch.bfloat16
        wide = ops.conv2d_bias_act(x, weight, bias, "gelu", residual)
    assert wide.dtype == torch.float32  # a residual in float32 stays in it, as with PyTorch's operators
    (found,) = torch.autograd.grad(y, weight, grad.bfloat16())
    (exact,) = torch.autograd.grad(convolve(x, weight, bias, "gelu", None), weight, grad)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.01 * exact.abs().max()


def test_gradients_of_gradients():
    x, weight, bias, residual, grad = operands((2, 32, 9, 8), 16)

    def penalty(function) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, residual)]
        y = function(*leaves[:3], "gelu", leaves[3])
        found = torch.autograd.grad(y, leaves, grad, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in found), leaves[:3])

    for a, b in zip(penalty(ops.conv2d_bias_act), penalty(convolve), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_only_what_is_needed_has_a_gradient():
    x, weight, bias, _, grad = operands((1, 16, 9, 8), 16)
    for wanted in range(3):
        leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((x, weight, bias))]
        y = ops.conv2d_bias_act(*leaves, "gelu")
        y.backward(grad)
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("keep", (True, False))
def test_the_operators_pass_pytorchs_own_checks(keep):
    x, weight, bias, residual, grad = operands((2, 16, 9, 8), 32)
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    torch.library.opcheck(OPS.fused_conv2d.default, (*leaves[:3], "gelu", leaves[3], keep))
    plain = (grad, x.detach(), weight.detach())
    for needs in itertools.product((True, False), repeat=3):
        torch.library.opcheck(OPS.conv2d_backward.default, (*plain, *needs))


def test_kernels_and_reference_agree_on_what_they_return():
    x, weight, bias, residual, grad = operands((2, 16, 9, 8), 32)
    for keep in (True, False):
        found = OPS.fused_conv2d(x, weight, bias, "gelu", residual, keep)
        expected = reference.fused_conv2d(x, weight, bias, "gelu", residual, keep)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert a.stride() == b.stride()
    found = OPS.conv2d_backward(grad, x, weight, True, True, True)
    for a, b in zip(found, reference.conv2d_backward(grad, x, weight, True, True, True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        assert a.stride() == b.stride()


def test_threads_change_nothing():
    x, weight, _, _, grad = operands((2, 32, 65, 70), 48)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(OPS.conv2d_backward(grad, x, weight, True, True, True))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_packing_the_adjoint():
    weight = draw((48, 32, 3, 3), 0)
    for tile in (2, 4):
        turned = weight.transpose(0, 1).flip(2, 3)
        assert torch.equal(OPS.winograd_pack(weight, tile, True), OPS.winograd_pack(turned, tile))


@pytest.mark.parametrize("shape", [(0, 16, 8, 8), (2, 16, 0, 8), (2, 16, 8, 0)])
def test_empty_pictures(shape):
    x, weight = torch.empty(shape), draw((32, 16, 3, 3), 1)
    y, z = OPS.fused_conv2d(x, weight, None, "gelu", None, True)
    assert y.shape == z.shape == (shape[0], 32, *shape[2:])
    dx, dweight, dbias = OPS.conv2d_backward(torch.empty_like(y), x, weight, True, True, True)
    assert dx.shape == shape and dweight.eq(0).all() and dbias.eq(0).all()
    assert dweight.shape == weight.shape and dbias.shape == (32,)


def test_errors_say_what_is_wrong():
    x, weight, bias, residual, grad = operands((2, 16, 9, 8), 32)
    for wrong, match in [
        ({"x": x[:, :8]}, r"weight \(K, C, 3, 3\)"),
        ({"x": x.double()}, "float32, float16 or bfloat16"),
        ({"x": x[0]}, r"x must be \(N, C, H, W\)"),
        ({"weight": weight[..., :2]}, "weight must be"),
        ({"weight": weight[:8]}, "multiples of 16"),
        ({"bias": bias[:3]}, "bias must hold 32 numbers"),
        ({"activation": "relu"}, "unknown activation"),
        ({"residual": residual[:1]}, "residual must be"),
    ]:
        good = {"x": x, "weight": weight, "bias": bias, "activation": None, "residual": residual}
        with pytest.raises(RuntimeError, match=match):
            OPS.fused_conv2d(**good | wrong, keep=False)
    for gradient in (grad[:1], grad[:, :16], grad[..., :4], grad.bfloat16(), grad[0]):
        with pytest.raises(RuntimeError, match="grad must be"):
            OPS.conv2d_backward(gradient, x, weight, True, True, True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_gives_the_very_results_again(dtype):
    x, weight, bias, *_ = (t.to(dtype) for t in operands((2, 32, 11, 14), 48))
    y, z = OPS.fused_conv2d(x, weight, bias, "gelu", None, True)
    assert torch.equal(OPS.merge_pyramid(z, [], "gelu"), y)


def test_a_residual_alone_has_its_gradient():
    x, weight, bias, residual, grad = operands((1, 16, 9, 8), 16)
    residual.requires_grad_()
    ops.conv2d_bias_act(x, weight, bias, "gelu", residual).backward(grad)
    assert torch.equal(residual.grad, grad)


@pytest.mark.parametrize("channels", (12, 16))
def test_shapes_are_checked_whatever_serves(channels):
    x, weight, bias, residual, _ = operands((1, channels, 9, 8), channels)
    with pytest.raises(ValueError, match=r"residual has shape \(1, \d+, 1, 1\): it must be"):
        ops.conv2d_bias_act(x, weight, bias, None, residual[..., :1, :1])
    with pytest.raises(ValueError, match="bias has shape"):
        ops.conv2d_bias_act(x, weight, bias[:1])
    with pytest.raises(RuntimeError):
        ops.conv2d_bias_act(x, weight, bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv2d_bias_act(x.half(), weight, bias).dtype == torch.bfloat16
