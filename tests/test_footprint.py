"""The memory that is counted without data is what PyTorch's allocator gives out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irnext
from benchmarks import harness, networks
from benchmarks.footprint import CannotCountError, Footprint
from benchmarks.published import PublishedIRNeXt
from irnext.ops.convolution import winograd_serves

SETTINGS = networks.Settings(1, 16, "local")
SHAPE = (2, 3, 64, 96)
PLANE = 4 * 2 * 3 * 64 * 96  # bytes of a tensor of that shape
PRECISIONS = [torch.float32, torch.bfloat16]


def footprint(call: Callable[[Tensor], object], shape: tuple[int, ...] = SHAPE) -> int:
    return Footprint(call)(shape)


def measured(call: Callable[[Tensor], object], shape: tuple[int, ...] = SHAPE) -> int:
    x = torch.rand(shape)
    return harness.allocated_peak(lambda: call(x))


# ---- what counts -----------------------------------------------------------------------------------


# Without plain numbers: PyTorch makes tensors of a few bytes of them.


def in_turn(x: Tensor) -> Tensor:
    y = x.neg()
    z = y.exp()
    del y
    return z * z  # beside z


def in_place(x: Tensor) -> Tensor:
    return x.neg().exp_().relu_()


def views(x: Tensor) -> list[Tensor]:
    y = x.neg()
    return [*y.chunk(3, 1), y.permute(0, 2, 3, 1), y.expand(4, *y.shape), x[:, :1], x.flatten()]


def copied_view(x: Tensor) -> Tensor:
    return x.neg().permute(0, 2, 3, 1).reshape(-1, 3)  # a copy, and a view that does not say so


def several_results(x: Tensor) -> Tensor:
    found = x.max(1, keepdim=True)  # values, and places of 8 bytes
    return found.values.exp()


def cycle(x: Tensor) -> Tensor:
    y = [x.neg()]
    y.append(y)  # lives on, as it would with data
    return x.exp()


def nothing(x: Tensor) -> None:
    x.neg()


@pytest.mark.parametrize(
    ("call", "planes"),
    [
        (in_turn, 2),
        (in_place, 1),
        (views, 1),
        (copied_view, 2),
        (several_results, 4 / 3),
        (cycle, 2),
        (nothing, 1),
        (lambda x: x, 0),
        (lambda x: x[:, :, ::2].transpose(1, 2), 0),
        (lambda x: x.double(), 2),
        (lambda x: [x[:0].neg(), x.new_empty(0)], 0),
    ],
)
def test_storages_count_once_and_while_they_live(call, planes):
    assert footprint(call) == planes * PLANE == measured(call)


def test_weights_do_not_count_but_what_is_made_of_them_does():
    weight = nn.Parameter(torch.rand(8, 27))
    assert footprint(lambda x: F.conv2d(x, weight.view(8, 3, 3, 3))) == 4 * 2 * 8 * 62 * 94
    assert footprint(lambda x: [weight.t(), weight.detach()[:2], weight.flatten()]) == 0
    assert footprint(lambda x: weight.neg()) == weight.nbytes


def test_what_a_network_keeps_counts_in_the_call_that_makes_it():
    kept: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        if not kept:
            kept.append(x.new_zeros(7, *x.shape))
        return x + kept[0][0]

    count = Footprint(call)
    assert count(SHAPE) == 8 * PLANE
    assert count(SHAPE) == PLANE


# ---- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_published_network_is_counted_to_the_byte(dtype):
    model = networks.make_model(PublishedIRNeXt, SETTINGS)
    call = networks.inference(model, dtype)
    expected = measured(call)
    assert footprint(call) == expected
    assert Footprint(call, model=model)(SHAPE) == expected  # its weights without data, too


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_our_network_is_counted_to_the_byte(dtype):
    if not winograd_serves(dtype):
        pytest.skip("oneDNN's convolutions with a sum have no shape function")
    model = irnext.optimize(networks.make_model(irnext.IRNeXt, SETTINGS), dtype)
    expected = measured(model)
    assert footprint(model._prepare()) == expected
    assert footprint(lambda x: model(x)) != expected  # fake tensors are shown the plain network


# Small ones of the networks that are compared, and how much of the peak operators may take by themselves:
# PyTorch's convolutions copy what they read, or make, to another layout, and padded attentions copy masks.
OTHERS = {
    "mprnet-deblurring": ({"n_feat": 16, "scale_unetfeats": 8, "scale_orsnetfeats": 8, "num_cab": 1}, 0.1),
    "mimo-unet": ({"num_res": 1, "width": 8}, 0.12),
    "restormer": ({"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1}, 0.01),
    "grl-tiny": (
        {"embed_dim": 16, "depths": (2,), "num_heads_window": (2,), "num_heads_stripe": (2,)}
        | {"window_size": 8, "stripe_size": (8, 16)},
        0.01,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_counted_but_for_what_operators_take_by_themselves(name):
    settings, unseen = OTHERS[name]
    model = irnext.create_model(name, **settings).eval().requires_grad_(False)
    call = networks.inference(model, torch.float32)
    expected = measured(call)
    found = Footprint(call, model=model)(SHAPE)
    assert (1 - unseen) * expected <= found <= expected


def test_large_pictures_cost_nothing_to_count():
    model = networks.make_model(PublishedIRNeXt, SETTINGS)
    count = Footprint(model, model=model)
    small, large = (count((1, 3, *size)) for size in ((128, 128), (8192, 16384)))
    assert large > 80 * 2**30
    assert large == pytest.approx(8192 * small, rel=3e-3)


def test_what_depends_on_values_cannot_be_counted():
    with pytest.raises(CannotCountError, match=r"cannot be counted without data: aten\.nonzero"):
        footprint(lambda x: x.nonzero())
    with pytest.raises(CannotCountError, match=r"aten\._local_scalar_dense"):
        footprint(lambda x: x.sum().item() * x)
    with pytest.raises(ValueError, match="multiples of 32"):  # what the network says itself
        footprint(networks.make_model(PublishedIRNeXt, SETTINGS), (1, 3, 65, 64))
