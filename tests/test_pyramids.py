"""The pyramids' operators on the CPU, called directly, against formulas in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_cpu import FLOOR, OPS, assert_within_tolerance, instructions, poisoned  # noqa: F401
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import irnext
from irnext import ops

COMPILED = pytest.mark.skipif(not irnext.backends()["cpu"], reason="the compiled library is not built")
FORMATS = (torch.contiguous_format, torch.channels_last)
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted", "channels_last sliced")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "permuted":
        return x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    if "channels_last" in layout:
        x = x.contiguous(memory_format=torch.channels_last)
    if "sliced" in layout:
        x = F.pad(x, (1, 2, 0, 1), value=torch.nan)[..., :-1, 1:-2]
    return x


def has_layout(y: Tensor, x: Tensor) -> bool:
    """Whether y is dense, and channels_last where the channels of x lie side by side."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1
    return y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def random(shape, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


# ---- pools ----

POOLS = [
    ((2, 8, 16, 24), (8, 4, 2)),
    ((1, 20, 23, 37), (8, 4, 2)),  # rates that do not divide
    ((1, 3, 19, 40), (3, 5)),  # and do not divide one another
    ((1, 37, 13, 12), (6, 4, 2, 3, 12, 4)),
    ((2, 16, 9, 7), (1, 7)),
    ((1, 32, 70, 9), (2, 8)),
    ((0, 8, 8, 8), (4, 2)),
    ((3, 5, 1, 1), (1,)),
    ((1, 2, 5, 66), (4, 1)),
    ((1, 16, 60, 61), (8, 4, 2)),  # several tasks, along the channels and along rows
    ((1, 2, 139, 250), (8, 2, 5)),
]


def pools(x: Tensor, rates) -> list[Tensor]:
    return [F.avg_pool2d(x, rate) for rate in rates]


@COMPILED
@pytest.mark.usefixtures("instructions", "poisoned")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_pools_and_their_adjoint(dtype, layout):
    torch.manual_seed(0)
    for shape, rates in POOLS:
        x = random(shape, dtype)
        u = [random((*shape[:2], shape[2] // r, shape[3] // r), dtype) for r in rates]

        def by_pytorch(dtype, x=x, u=u, rates=rates):
            leaf = x.to(dtype).requires_grad_()
            found = pools(leaf, rates)
            (dx,) = torch.autograd.grad(found, leaf, [g.to(dtype) for g in u])
            return [*(pool.detach() for pool in found), dx]

        laid, grads = laid_out(x, layout), [laid_out(g, layout) for g in u]
        found = OPS.pool_pyramid(laid, rates)
        dx = OPS.pool_pyramid_backward(grads, rates, shape[2:])
        assert all(has_layout(pool, laid) for pool in found) and has_layout(dx, grads[0])
        names = "y " * len(rates) + "dx"
        assert_within_tolerance(names, [*found, dx], by_pytorch(dtype), by_pytorch(torch.float64), dtype)


@COMPILED
def test_gradients_of_pools_in_mixed_layouts_and_broadcast():
    torch.manual_seed(0)
    grads = [torch.randn(2, 16, 9 // r, 13 // r) for r in (4, 2)]
    expected = OPS.pool_pyramid_backward(grads, (4, 2), (9, 13))
    mixed = [grads[0].to(memory_format=torch.channels_last), grads[1]]
    for given in (mixed, mixed[::-1][::-1], [mixed[0], laid_out(grads[1], "permuted")]):
        found = OPS.pool_pyramid_backward(given, (4, 2), (9, 13))
        assert has_layout(found, given[0])
        torch.testing.assert_close(found, expected)
    ones = [torch.ones(()).expand(2, 16, 9 // r, 13 // r) for r in (4, 2)]
    whole = [g.contiguous() for g in ones]
    torch.testing.assert_close(
        OPS.pool_pyramid_backward(ones, (4, 2), (9, 13)), OPS.pool_pyramid_backward(whole, (4, 2), (9, 13))
    )


# ---- merges ----

MERGES = [
    ((2, 8, 16, 24), [(2, 3), (4, 6), (8, 12)]),
    ((1, 20, 23, 37), [(3, 5), (11, 18)]),
    ((1, 3, 37, 70), [(1, 1), (1, 9), (37, 70)]),
    ((1, 37, 7, 5), [(9, 12), (30, 2), (2, 31)]),  # larger than x
    ((1, 16, 66, 40), [(40, 35)]),
    ((1, 18, 66, 65), [(1, 2), (150, 3)]),  # several tasks, along the channels and along rows
    ((1, 2, 140, 250), [(1, 1), (18, 125), (300, 9)]),
    ((2, 17, 1, 1), [(3, 4), (1, 1)]),
    ((1, 4, 1, 9), [(2, 5), (1, 3)]),
    ((1, 40, 6, 1), [(3, 1), (2, 4)]),
    ((0, 8, 8, 8), [(4, 4)]),
    ((1, 5, 9, 8), []),
]


def weights(small: int, large: int) -> Tensor:
    """(large, small): what every position takes of every element, corners on corners."""
    position = torch.arange(large, dtype=torch.float64) * (small - 1)
    position = position / (large - 1) if large > 1 else torch.zeros(1, dtype=torch.float64)
    return (1 - (position[:, None] - torch.arange(small)).abs()).clamp_min(0)


def merge_exactly(x: Tensor, branches: list[Tensor], activation: str | None) -> Tensor:
    for b in branches:
        rows, columns = weights(b.shape[2], x.shape[2]), weights(b.shape[3], x.shape[3])
        x = x + torch.einsum("hi,ncij,wj->nchw", rows, b, columns)
    return x if activation is None else x * 0.5 * (1 + torch.erf(x / 2**0.5))


def merge_by_pytorch(x: Tensor, branches: list[Tensor], activation: str | None) -> Tensor:
    for b in branches:
        x = x + F.interpolate(b, x.shape[2:], mode="bilinear", align_corners=True)
    return x if activation is None else F.gelu(x)


def differentiated(merge, dtype, x, branches, u, activation) -> list[Tensor]:
    """y, dx and the gradients of the branches."""
    leaves = [t.to(dtype).requires_grad_() for t in (x, *branches)]
    y = merge(leaves[0], leaves[1:], activation)
    grads = torch.autograd.grad(y, leaves, u.to(dtype)) if y.numel() else map(torch.zeros_like, leaves)
    return [y.detach(), *grads]


@COMPILED
@pytest.mark.usefixtures("instructions", "poisoned")
@pytest.mark.parametrize("activation", ["gelu", None])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_merges_and_their_gradients(dtype, layout, activation):
    torch.manual_seed(0)
    for shape, sizes in MERGES:
        x, u = (random(shape, dtype) for _ in "xu")
        branches = [random((*shape[:2], *size), dtype) for size in sizes]
        exact = differentiated(merge_exactly, torch.float64, x, branches, u, activation)
        plain = differentiated(merge_by_pytorch, dtype, x, branches, u, activation)
        x, u, *branches = (laid_out(t, layout) for t in (x, u, *branches))
        y = OPS.merge_pyramid(x, branches, activation)
        dx, dbranches = OPS.merge_pyramid_backward(u, x, branches, activation)
        assert y.stride() == torch.empty_like(x).stride()
        for branch, gradient in zip(branches, dbranches, strict=True):
            assert gradient.stride() == torch.empty_like(branch).stride()
        if activation is None:
            assert dx.shape == (0,) and dx.dtype == dtype
            dx = u
        else:
            assert dx.stride() == torch.empty_like(x).stride()
        names = "y dx" + " dx" * len(branches)
        assert_within_tolerance(names, [y, dx, *dbranches], plain, exact, dtype)


@COMPILED
@pytest.mark.parametrize("activation", ["gelu", None])
@pytest.mark.parametrize("layouts", list(itertools.product(FORMATS, repeat=3)))
def test_merges_of_mixed_layouts_and_broadcast_gradients(layouts, activation):
    torch.manual_seed(0)
    tensors = torch.randn(2, 16, 12, 9), torch.randn(2, 16, 12, 9), torch.randn(2, 16, 5, 4)
    x, u, b = (t.to(memory_format=layout) for t, layout in zip(tensors, layouts, strict=True))
    exact = differentiated(merge_exactly, torch.float64, x, [b], u, activation)
    y = OPS.merge_pyramid(x, [b], activation)
    dx, (db,) = OPS.merge_pyramid_backward(u, x, [b], activation)
    assert y.stride() == x.stride() and db.stride() == b.stride()
    found = [y, dx if activation else u, db]
    assert_within_tolerance("y dx dx", found, [t.float() for t in exact], exact, torch.float32)

    broadcast = torch.tensor(0.5).expand(x.shape)
    whole = broadcast.contiguous(memory_format=layouts[0])
    for given, expected in zip(
        OPS.merge_pyramid_backward(broadcast, x, [b], activation)[1],
        OPS.merge_pyramid_backward(whole, x, [b], activation)[1],
        strict=True,
    ):
        torch.testing.assert_close(given, expected)


@COMPILED
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", FLOOR)
def test_gelu_and_its_derivative_everywhere(dtype):
    x = torch.cat((torch.linspace(-15, 15, 60001), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])))
    x = x.to(dtype).view(1, 1, 1, -1)
    leaf = x.detach().double().clone().requires_grad_()
    exact = F.gelu(leaf)
    exact.sum().backward()
    y = OPS.merge_pyramid(x, [])
    dx, _ = OPS.merge_pyramid_backward(torch.ones_like(x), x, [], "gelu")
    # What rounding a result costs, and two roundings of the Phi(x) that it is made of.
    eps, wide = (
        torch.finfo(dtype).eps,
        torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32),
    )
    assert ((y - exact).abs() <= eps / 2 * exact.abs() + 2 * wide.eps * leaf.abs()).all()
    assert ((dx - leaf.grad).abs() <= eps / 2 * leaf.grad.abs() + 2 * wide.eps).all()
    nan = torch.full((1, 1, 1, 1), torch.nan, dtype=dtype)
    assert OPS.merge_pyramid(nan, []).isnan().all()
    assert OPS.merge_pyramid_backward(nan, nan, [], "gelu")[0].isnan().all()


@COMPILED
def test_coordinates_of_long_planes_keep_their_digits():
    """Coordinates in float32 are off by thousandths of a pixel at the end of such a row."""
    signs = 1.0 - 2 * (torch.arange(50001) % 2)
    place = torch.arange(300003) * 50000
    below, share = place.div(300002, rounding_mode="floor"), (place % 300002).double() / 300002
    expected = signs[below].double() * (1 - 2 * share)
    for row in (True, False):
        shape = (1, 1, 1, -1) if row else (1, 1, -1, 1)
        x = torch.zeros(300003).view(shape)
        y = OPS.merge_pyramid(x, [signs.view(shape)], None).flatten()
        assert (y - expected).abs().max() <= 3e-7


# ---- both ----


@pytest.mark.parametrize("layout", FORMATS)
def test_derivatives_in_float64(layout):
    torch.manual_seed(0)
    x = torch.randn(1, 8, 7, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    sizes = (3, 2), (1, 4), (9, 7)
    branches = [torch.randn(1, 8, *size, dtype=torch.float64).requires_grad_() for size in sizes]
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: ops.pool_pyramid(x, (4, 2, 3)), x, fast_mode=True)
        for activation in ("gelu", None):

            def merge(x, *branches, activation=activation):
                return ops.merge_pyramid(x, branches, activation)

            assert check(merge, (x, *branches), fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "permuted"])
def test_registration(layout):
    torch.manual_seed(0)
    x, u = (laid_out(torch.randn(2, 16, 9, 8), layout).requires_grad_() for _ in "xu")
    branches = [laid_out(torch.randn(2, 16, *size), layout).requires_grad_() for size in ((2, 3), (4, 5))]
    grads = [laid_out(torch.randn(2, 16, 9 // r, 8 // r), layout) for r in (4, 2)]
    calls = [
        (OPS.pool_pyramid, (x, [4, 2])),
        (OPS.pool_pyramid_backward, (grads, [4, 2], (9, 8))),
        (OPS.merge_pyramid, (x, branches)),
        (OPS.merge_pyramid, (x, branches, None)),
        (OPS.merge_pyramid_backward, (u.detach(), x.detach(), [b.detach() for b in branches], "gelu")),
        (OPS.merge_pyramid_backward, (u.detach(), x.detach(), [b.detach() for b in branches], None)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments)


@COMPILED
@pytest.mark.parametrize("layout", FORMATS)
def test_results_do_not_depend_on_the_number_of_threads(layout):
    torch.manual_seed(0)
    x, u = (torch.randn(2, 16, 150, 131).to(memory_format=layout) for _ in "xu")
    branches = [torch.randn(2, 16, 150 // r, 131 // r).to(memory_format=layout) for r in (8, 4, 2)]
    branches.append(torch.randn(2, 16, 1, 3).to(memory_format=layout))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = OPS.pool_pyramid(x, (8, 4, 2, 3))
            found.append(OPS.pool_pyramid_backward(found, (8, 4, 2, 3), x.shape[2:]))
            found.append(OPS.merge_pyramid(x, branches))
            dx, dbranches = OPS.merge_pyramid_backward(u, x, branches, "gelu")
            results.append([*found, dx, *dbranches])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


X, B = torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 3)
GRADS = [torch.randn(2, 8, 1, 1), torch.randn(2, 8, 3, 3)]


@COMPILED
@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("must be", lambda: OPS.pool_pyramid(X[0], [2])),
        ("float64, float32, float16 or bfloat16", lambda: OPS.pool_pyramid(X.long(), [2])),
        ("rate 0 must be between 1", lambda: OPS.pool_pyramid(X, [2, 0])),
        ("rate -2 must be between 1", lambda: OPS.pool_pyramid(X, [-2])),
        ("rate 7 must be between 1 and the sides of the plane, 6x7", lambda: OPS.pool_pyramid(X, [7])),
        ("a gradient for each of 1 rates", lambda: OPS.pool_pyramid_backward(GRADS, [4], (6, 7))),
        ("gradient 1 must be", lambda: OPS.pool_pyramid_backward(GRADS, [4, 3], (6, 7))),
        ("gradient 0 must be", lambda: OPS.pool_pyramid_backward(GRADS, [4, 2], (8, 7))),
        ("gradient 1 must be", lambda: OPS.pool_pyramid_backward([GRADS[0], GRADS[1][:1]], [4, 2], (6, 7))),
        ("gradient 1 must be", lambda: OPS.pool_pyramid_backward([GRADS[0], B.double()], [4, 2], (6, 7))),
        ("must be \\(N, C, h, w\\)", lambda: OPS.pool_pyramid_backward([GRADS[0][0]], [4], (6, 7))),
        ("rate 0 must be between 1", lambda: OPS.pool_pyramid_backward(GRADS, [4, 0], (6, 7))),
        ("must be \\(N, C, H, W\\)", lambda: OPS.merge_pyramid(X[0], [])),
        ("float64, float32, float16 or bfloat16", lambda: OPS.merge_pyramid(X.long(), [])),
        ("branch 1 must be", lambda: OPS.merge_pyramid(X, [B, B[:1]])),
        ("branch 0 must be", lambda: OPS.merge_pyramid(X, [B[:, :4]])),
        ("branch 0 must be", lambda: OPS.merge_pyramid(X, [B[0]])),
        ("branch 0 must be", lambda: OPS.merge_pyramid(X, [B[:, :, :0]])),
        ("branch 0 must be", lambda: OPS.merge_pyramid(X, [B.double()])),
        ("unknown activation 'relu'", lambda: OPS.merge_pyramid(X, [B], "relu")),
        ("unknown activation 'relu'", lambda: OPS.merge_pyramid_backward(X, X, [B], "relu")),
        ("branch 0 must be", lambda: OPS.merge_pyramid_backward(X, X, [B[:1]], None)),
        ("grad must have the shape", lambda: OPS.merge_pyramid_backward(X[..., :5], X, [B], None)),
        ("grad must have the shape", lambda: OPS.merge_pyramid_backward(X.double(), X, [B], None)),
    ],
)
def test_what_would_read_outside_memory_is_refused(message, call):
    with pytest.raises(RuntimeError, match=message):
        call()
