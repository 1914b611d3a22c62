"""The loss is the published one, whatever the size, the type and autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, relative_error

from benchmarks.published import PublishedLoss
from irnext.losses import DualDomainLoss, mean_spectrum

# Even and odd widths, and those with no column but their own partners.
SIZES = [(16, 24), (15, 24), (16, 21), (7, 9), (5, 2), (2, 1), (1, 1), (1, 6)]


def pictures(height: int, width: int, scales=(4, 2, 1), dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-height // scale), -(-width // scale)) for scale in scales]
    outputs = [torch.rand(2, 3, *size, generator=generator, dtype=torch.float64) for size in sizes]
    target = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    return [output.to(device, dtype).requires_grad_() for output in outputs], target.to(device)


def value_and_gradients(loss, outputs, target):
    value = loss(outputs, target)
    return [value, *torch.autograd.grad(value, outputs)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_published_loss(size, device):
    outputs, target = pictures(*size, device=device)
    found = value_and_gradients(DualDomainLoss(), outputs, target)
    expected = value_and_gradients(PublishedLoss(), outputs, target)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float64 and relative_error(a, b) < 1e-12


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_half_the_spectrum_is_enough(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = torch.view_as_real(torch.fft.fft2(x)).abs().mean()
    assert mean_spectrum(x).item() == pytest.approx(expected.item(), rel=1e-13)


def test_half_the_spectrum_has_the_whole_gradient():
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mean_spectrum, (x,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, layout, device):
    # At 256 x 256 the constant part is beyond float16's range, and bfloat16 would lose the sums.
    outputs, target = pictures(256, 256, dtype=dtype, device=device)
    outputs = [y.detach().contiguous(memory_format=layout).requires_grad_() for y in outputs]
    with torch.autocast(device, torch.bfloat16, enabled=dtype != torch.float32):
        found = value_and_gradients(DualDomainLoss(), outputs, target.float())
    assert found[0].dtype == torch.float32
    wide = [output.detach().double().requires_grad_() for output in outputs]
    expected = value_and_gradients(PublishedLoss(), wide, target.float().double())
    assert relative_error(found[0], expected[0]) < 1e-6
    for gradient, right in zip(found[1:], expected[1:], strict=True):
        assert gradient.dtype == dtype
        # Rounded once, to the outputs' type; the sign of a part near zero may be either.
        assert relative_error(gradient, right) < max(1e-3, torch.finfo(dtype).eps)


def test_a_target_in_half_precision():
    outputs, target = pictures(16, 24, dtype=torch.bfloat16)
    loss = DualDomainLoss()(outputs, target.bfloat16())
    expected = PublishedLoss()([y.double() for y in outputs], target.bfloat16().double())
    assert loss.dtype == torch.float32 and relative_error(loss, expected) < 1e-6


def test_equal_pictures_cost_nothing():
    target = torch.rand(1, 3, 8, 12)
    half = F.interpolate(target, (4, 6), mode="bilinear", align_corners=False)
    assert DualDomainLoss()([half, target], target).item() == 0


def test_a_number_that_is_none_is_not_hidden():
    outputs, target = pictures(8, 8)
    outputs[1].data[0, 0, 0, 0] = float("nan")
    assert DualDomainLoss()(outputs, target).isnan()


@pytest.mark.parametrize(
    "outputs, target, message",
    [
        ([], (2, 3, 8, 8), "outputs is empty"),
        ([(1, 3, 8, 8)], (2, 3, 8, 8), r"shape \(1, 3, 8, 8\).*N and C must agree"),
        ([(2, 1, 4, 4)], (2, 3, 8, 8), "N and C must agree"),
        ([(0, 3, 8, 8)], (0, 3, 8, 8), "at least one pixel"),
    ],
)
def test_bad_input(outputs, target, message):
    with pytest.raises(ValueError, match=message):
        DualDomainLoss()([torch.rand(shape) for shape in outputs], torch.rand(target))
