"""The CUDA sources of the pyramids, run on the CPU by the host emulation: see test_cuda_host.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_cuda_host import (
    FAILURE,
    FLOOR,
    HOST,
    LAYOUTS,
    arrange,
    assert_close,
    launches,
    poisoned,  # noqa: F401 (a fixture)
    under_every_schedule,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import irnext
from irnext import ops
from irnext.ops import reference

pytestmark = pytest.mark.skipif(FAILURE is not None, reason=str(FAILURE))


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
    return arrange(torch.randn(shape, dtype=torch.float64).to(dtype), layout)


def layout_of(x: Tensor, height: int, width: int) -> tuple[int, ...]:
    """The strides of the plane that a pyramid has beside x."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(*x.shape[:2], height, width, memory_format=layout).stride()


# ---- pool_pyramid --------------------------------------------------------------------------------

# Tiles of packs, tiles of single elements (widths and channels that packs do not divide), planes that end
# within a tile, rates that tiles do not make, in any order, twice, one alone, none of them.
POOLS = (
    ((2, 8, 16, 24), (8, 4, 2)),
    ((1, 16, 24, 16), (4, 8)),
    ((2, 6, 13, 21), (2, 8, 4)),
    ((1, 3, 9, 8), (8, 2)),
    ((1, 24, 12, 40), (4,)),
    ((2, 5, 11, 17), (3, 5)),
    ((1, 8, 12, 24), (6, 2, 2, 1)),
    ((1, 2, 40, 33), (32, 16, 4)),
    ((3, 4, 1, 1), (1,)),
    ((0, 4, 8, 8), (8, 4, 2)),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
def test_pool_pyramid_and_its_adjoint(dtype, layout):
    torch.manual_seed(0)
    for shape, rates in POOLS:
        x = draw(shape, dtype, layout) + 1
        pools = under_every_schedule(HOST.pool_pyramid, x, rates)
        definition = reference.pool_pyramid
        for rate, *values in zip(
            rates, pools, definition(x, rates), definition(x.double(), rates), strict=True
        ):
            assert_close(f"pool {rate} of {shape}", *values, dtype)
            assert values[0].stride() == layout_of(x, shape[2] // rate, shape[3] // rate)
        assert launches(HOST.pool_pyramid, x, rates) == (1 if x.numel() else 0)

        grads = [draw(pool.shape, dtype, layout) for pool in pools]
        size = shape[2:]
        (dx,) = under_every_schedule(HOST.pool_pyramid_backward, grads, rates, size)
        definition = reference.pool_pyramid_backward
        exact = definition([grad.double() for grad in grads], rates, size)
        assert_close(f"dx of {shape} by {rates}", dx, definition(grads, rates, size), exact, dtype)
        assert dx.stride() == layout_of(grads[0], *size)
        assert launches(HOST.pool_pyramid_backward, grads, rates, size) == (1 if x.numel() else 0)


def test_gradients_of_pools_in_different_layouts():
    torch.manual_seed(0)
    rates, size = (2, 4, 3), (12, 16)
    grads = [torch.randn(2, 8, size[0] // rate, size[1] // rate) for rate in rates]
    expected = reference.pool_pyramid_backward(grads, rates, size)
    for layouts in itertools.product(LAYOUTS, repeat=2):
        mixed = [arrange(grad, layout) for grad, layout in zip(grads, (*layouts, "contiguous"), strict=True)]
        mixed[2] = mixed[2][:, :, :1, :1].expand_as(mixed[2])  # a gradient of a sum
        grads[2] = mixed[2].contiguous()
        expected = reference.pool_pyramid_backward(grads, rates, size)
        torch.testing.assert_close(HOST.pool_pyramid_backward(mixed, rates, size), expected)


# ---- merge_pyramid -------------------------------------------------------------------------------

# The shape of x and the sizes of the branches: half, quarter and eighth of its sides; odd sizes; one branch;
# two; more than three; none; single pixels; larger than x, also so
# that some elements get nothing; planes of one row, one column, one pixel; planes
# that take several tiles each way; branches so coarse that their elements reach over several tiles; more
# channels than a block takes.
MERGES = (
    ((2, 8, 16, 24), ((2, 3), (4, 6), (8, 12))),
    ((1, 16, 9, 16), ((5, 8),)),
    ((2, 6, 13, 21), ((1, 2), (3, 5), (6, 10))),
    ((1, 8, 12, 8), ((6, 4), (3, 2))),
    ((1, 8, 10, 16), ((5, 8), (2, 4), (1, 1), (10, 16), (3, 16))),
    ((1, 4, 6, 8), ()),
    ((2, 8, 5, 8), ((11, 19), (5, 30), (7, 3))),
    ((1, 8, 1, 16), ((1, 8), (3, 4), (2, 1))),
    ((1, 8, 16, 1), ((8, 1), (4, 3), (1, 2))),
    ((2, 8, 1, 1), ((1, 1), (2, 3))),
    ((1, 8, 40, 150), ((5, 19), (10, 37), (20, 75))),
    ((1, 2, 6, 1040), ((3, 130), (2, 520))),
    ((1, 8, 4, 300), ((2, 4), (1, 1))),
    ((1, 8, 40, 16), ((79, 31),)),
    ((1, 40, 12, 70), ((2, 9), (3, 18), (6, 35))),
    ((0, 4, 8, 8), ((4, 4), (2, 2))),
)


def draw_merge(shape, sizes, dtype, layout) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A gradient, x and branches, with values over all of GELU's bend."""
    branches = [2 * draw((*shape[:2], *size), dtype, layout) for size in sizes]
    return draw(shape, dtype, layout), 2 * draw(shape, dtype, layout), branches


def backward(module, grad, x, branches, activation) -> list[Tensor]:
    dx, dbranches = module.merge_pyramid_backward(grad, x, branches, activation)
    return [dx, *dbranches]


@pytest.mark.parametrize("activation", ["gelu", None])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
def test_merge_pyramid_and_its_gradient(dtype, layout, activation):
    torch.manual_seed(0)
    for number, (shape, sizes) in enumerate(MERGES):
        grad, x, branches = draw_merge(shape, sizes, dtype, layout)
        HOST.schedule(("forward", "reverse", "shuffled")[number % 3])
        y = HOST.merge_pyramid(x, branches, activation)
        wide = [tensor.double() for tensor in (grad, x, *branches)]
        plain = reference.merge_pyramid(x, branches, activation)
        exact = reference.merge_pyramid(wide[1], wide[2:], activation)
        assert_close(f"y of {shape} and {sizes}", y, plain, exact, dtype)
        assert y.stride() == torch.empty_like(x).stride()

        found = backward(HOST, grad, x, branches, activation)
        plain = backward(reference, grad, x, branches, activation)
        exact = backward(reference, *wide[:2], wide[2:], activation)
        for i, (f, p, e) in enumerate(zip(found, plain, exact, strict=True)):
            assert_close(f"gradient {i} of {shape} and {sizes}", f, p, e, dtype)
            assert f.stride() == (torch.empty_like(branches[i - 1]) if i else p).stride()

        arguments = (x, branches, activation)
        assert launches(HOST.merge_pyramid, *arguments) == (1 if x.numel() else 0)
        passes = (activation is not None) + (len(branches) + 2) // 3
        assert launches(HOST.merge_pyramid_backward, grad, *arguments) == (passes if x.numel() else 0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_merges_do_not_depend_on_the_schedule(layout):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for shape, sizes in MERGES[:3] + MERGES[6:7] + MERGES[10:11]:
            grad, x, branches = draw_merge(shape, sizes, dtype, layout)
            under_every_schedule(HOST.merge_pyramid, x, branches, "gelu")
            under_every_schedule(lambda *t: backward(HOST, *t), grad, x, branches, "gelu")


def test_tensors_in_different_layouts():
    """Where not all are made of the same packs every element is computed by itself."""
    torch.manual_seed(0)
    shape, sizes = (2, 8, 12, 16), ((6, 8), (3, 4))
    for layouts in itertools.product(("contiguous", "channels_last", "sliced"), repeat=3):
        grad, x, branches = draw_merge(shape, sizes, torch.float32, "contiguous")
        expected = [reference.merge_pyramid(x, branches), *backward(reference, grad, x, branches, "gelu")]
        grad, x = arrange(grad, layouts[0]), arrange(x, layouts[1])
        branches = [arrange(branches[0], layouts[2]), branches[1]]
        found = [HOST.merge_pyramid(x, branches), *backward(HOST, grad, x, branches, "gelu")]
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)
    grad = torch.tensor(0.5).expand(shape)  # of a sum
    found = backward(HOST, grad, x, branches, None)[1:]
    for f, e in zip(found, backward(reference, grad, x, branches, None)[1:], strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_plane_of_many_tiles(layout):
    """Several tiles each way, whose rows depend on how many multiprocessors there are to fill."""
    torch.manual_seed(0)
    shape = (1, 2, 150, 1100) if layout == "contiguous" else (1, 8, 150, 140)
    sizes = tuple((shape[2] // rate, shape[3] // rate) for rate in (8, 4, 2))
    grad, x, branches = draw_merge(shape, sizes, torch.float32, layout)
    exact = backward(reference, grad.double(), x.double(), [branch.double() for branch in branches], "gelu")
    found = backward(HOST, grad, x, branches, "gelu")
    plain = backward(reference, grad, x, branches, "gelu")
    for i, values in enumerate(zip(found, plain, exact, strict=True)):
        assert_close(f"gradient {i}", *values, torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_elements_that_reach_over_the_edges_of_tiles(layout):
    """At some widths an element just inside a tile takes pixels from as far outside as any can."""
    torch.manual_seed(0)
    shape, narrow = ((1, 1, 1), 130) if layout == "contiguous" else ((1, 8, 1), 65)
    for width in range(narrow, narrow + 120, 2):
        x = draw((*shape, width), torch.float64, layout)
        branches = [draw((*shape, width // rate), torch.float64, layout) for rate in (3, 5, 8)]
        found = backward(HOST, x, x, branches, None)
        for f, e in zip(found, backward(reference, x, x, branches, None), strict=True):
            torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_nothing_is_zero():
    x, branch = torch.randn(2, 4, 0, 5), torch.randn(2, 4, 3, 3)
    dx, (dbranch,) = HOST.merge_pyramid_backward(x, x, [branch], "gelu")
    assert dx.shape == x.shape
    assert torch.equal(dbranch, torch.zeros_like(branch))


def test_infinities_and_nan_are_kept():
    x = torch.tensor([float("inf"), float("nan"), -1e30, 1e30, 0, -0.0, 90]).view(1, 1, 1, 7)
    y = HOST.merge_pyramid(x, []).flatten()
    assert torch.equal(y[[0, 2, 3, 4, 5, 6]], torch.tensor([float("inf"), 0, 1e30, 0, 0, 90]))
    assert y[1].isnan()


def test_gelu_is_accurate_everywhere():
    """The fit in float32 and its slope: absolutely to a rounding of one, relatively to that of the result."""
    x = torch.linspace(-14, 14, 40001).view(1, 1, 1, -1)
    wide = x.double()
    error = (HOST.merge_pyramid(x, []).double() - torch.nn.functional.gelu(wide)).abs()
    assert (error / wide.abs().clamp_min(1)).max() < 1.5e-7
    dx, _ = HOST.merge_pyramid_backward(torch.ones_like(x), x, [], "gelu")
    slope = torch.ops.aten.gelu_backward(torch.ones_like(wide), wide)
    assert (dx.double() - slope).abs().max() < 3e-7


# ---- as operators --------------------------------------------------------------------------------


def test_gradients_of_gradients():
    torch.manual_seed(0)
    x, a, b = (
        torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True) for size in ((8, 9), (4, 4), (1, 2))
    )
    with irnext.use_backend("cuda-host"):
        for activation in ("gelu", None):

            def merge(*t, activation=activation):
                return ops.merge_pyramid(t[0], t[1:], activation)

            assert gradcheck(merge, (x, a, b), fast_mode=True)
            assert gradgradcheck(merge, (x, a, b), fast_mode=True)
        pool = lambda x: tuple(ops.pool_pyramid(x, (4, 2, 3)))  # noqa: E731
        assert gradcheck(pool, (x,), fast_mode=True)
        assert gradgradcheck(pool, (x,), fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_registered_completely(layout):
    torch.manual_seed(0)
    x = draw((2, 4, 8, 9), torch.float32, layout).requires_grad_()
    branches = [draw((2, 4, 4, 4), torch.float32, layout).requires_grad_()]
    with irnext.use_backend("cuda-host"):
        torch.library.opcheck(HOST.pool_pyramid.default, (x, [4, 2]))
        torch.library.opcheck(HOST.merge_pyramid.default, (x, branches, "gelu"))
        tests = ("test_schema", "test_faketensor")
        grads = [t.detach() for t in HOST.pool_pyramid(x, [4, 2])]
        torch.library.opcheck(HOST.pool_pyramid_backward.default, (grads, [4, 2], [8, 9]), test_utils=tests)
        for activation in ("gelu", None):
            arguments = (x.detach(), x.detach(), [b.detach() for b in branches], activation)
            torch.library.opcheck(HOST.merge_pyramid_backward.default, arguments, test_utils=tests)


def test_wrong_arguments_are_refused():
    x, branch = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)
    pools = HOST.pool_pyramid(x, (4, 2))
    for message, call in {
        "rate 9 must be": lambda: HOST.pool_pyramid(x, (2, 9)),
        "rate 0 must be": lambda: HOST.pool_pyramid(x, (0,)),
        "at most 16, got 17": lambda: HOST.pool_pyramid(x, (2,) * 17),
        "x must be": lambda: HOST.pool_pyramid(x[0], (2,)),
        "a gradient for each": lambda: HOST.pool_pyramid_backward(pools, (4,), (8, 8)),
        "gradient 1 must be": lambda: HOST.pool_pyramid_backward([pools[0]] * 2, (4, 2), (8, 8)),
        "branch 0 must be": lambda: HOST.merge_pyramid(x, [branch[:, :3]], "gelu"),
        "branch 1 must be": lambda: HOST.merge_pyramid(x, [branch, branch.double()], "gelu"),
        "unknown activation": lambda: HOST.merge_pyramid(x, [branch], "relu"),
        "branches: there may be at most": lambda: HOST.merge_pyramid(x, [branch] * 17, "gelu"),
        "grad must have": lambda: HOST.merge_pyramid_backward(branch, x, [branch], "gelu"),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()
