"""The pyramids' Triton kernels against the definitions: run by test_triton.py, where they can run."""

from __future__ import annotations

import contextlib

import pytest
import torch
from irnext.kernels import configuration
from irnext.kernels.launch import needs_int64, recording
from irnext.kernels.ops import OPERATORS
from triton_support import DEVICE, LAYOUTS, assert_as_good, draw, lay_out, poisoned  # noqa: F401

from irnext.ops import reference
from irnext.ops.registration import FAKES

# Several tiles in every direction, even of tiny planes.
SMALL_TILES = configuration.Config(4, 8, 2, programs=1, warps=1, stages=1)
SHAPE = (1, 3, 9, 10)
RATES = ((8, 4, 2), (2,), (3, 2, 2), (4, 2), (1, 9))
# Coarser and finer than x, one row, one pixel, and x's own size.
BRANCHES = ((1, 1), (4, 6), (9, 10), (1, 7), (13, 3))
# Every type and every layout, the fast layouts more often.
KINDS = [
    (torch.float64, "contiguous"),
    (torch.float64, "channels_last"),
    (torch.float32, "sliced"),
    (torch.float32, "channels_last"),
    (torch.float16, "contiguous"),
    (torch.float16, "mixed"),
    (torch.bfloat16, "permuted"),
    (torch.bfloat16, "channels_last"),
]


def on_cpu(tensors, dtype=None):
    """The tensors where the definitions of all gradients are deterministic."""
    return [t.cpu() if dtype is None else t.cpu().to(dtype) for t in tensors]


def check_pools(x: torch.Tensor, rates: tuple[int, ...]) -> None:
    found = OPERATORS["pool_pyramid"](x, rates)
    assert [p.stride() for p in found] == [p.stride() for p in FAKES["pool_pyramid"](x, rates)]
    (plain,), (exact,) = on_cpu([x]), on_cpu([x], torch.float64)
    pools = (reference.pool_pyramid(plain, rates), reference.pool_pyramid(exact, rates))
    assert_as_good(on_cpu(found), *pools, x.dtype)

    grads = [torch.randn_like(p) for p in found]
    size = x.shape[2:]
    dx = OPERATORS["pool_pyramid_backward"](grads, rates, size)
    assert dx.stride() == FAKES["pool_pyramid_backward"](grads, rates, size).stride()
    plain, exact = (
        [reference.pool_pyramid_backward(on_cpu(grads, wide), rates, size)] for wide in (None, torch.float64)
    )
    assert_as_good([dx.cpu()], plain, exact, x.dtype)


def tiles_of(number: int):
    """Small tiles, or such that hold all of a tiny plane, in turn."""
    return contextlib.nullcontext() if number % 2 else configuration.override(SMALL_TILES)


@pytest.mark.parametrize(("number", "dtype", "layout"), [(i, *kind) for i, kind in enumerate(KINDS)])
def test_pools_and_their_gradient(number, dtype, layout):
    x = lay_out(draw(*SHAPE, dtype=dtype), layout)
    with tiles_of(number):
        check_pools(x, RATES[number // 2 if number < 6 else number - 3])


@pytest.mark.parametrize("shape", [(2, 1, 16, 8), (1, 5, 9, 18), (2, 2, 3, 3)])
def test_pools_of_other_planes(shape):
    rates = (2, 3) if min(shape[2:]) < 8 else (8, 4, 2)
    for layout in LAYOUTS[:2]:
        check_pools(lay_out(draw(*shape), layout), rates)


def check_merge(x: torch.Tensor, u: torch.Tensor, branches: list[torch.Tensor], activation) -> None:
    found = OPERATORS["merge_pyramid"](x, branches, activation)
    assert found.stride() == torch.empty_like(x).stride()
    dx, dbranches = OPERATORS["merge_pyramid_backward"](u, x, branches, activation)
    expected = FAKES["merge_pyramid_backward"](u, x, branches, activation)
    assert [t.stride() for t in (dx, *dbranches)] == [t.stride() for t in (expected[0], *expected[1])]
    definitions = []
    for wide in (None, torch.float64):
        (a, b), c = on_cpu((x, u), wide), on_cpu(branches, wide)
        back = reference.merge_pyramid_backward(b, a, c, activation)
        definitions.append((reference.merge_pyramid(a, c, activation), back[0], *back[1]))
    assert_as_good(on_cpu((found, dx, *dbranches)), *definitions, x.dtype)


@pytest.mark.parametrize(("number", "dtype", "layout"), [(i, *kind) for i, kind in enumerate(KINDS)])
def test_merge_and_its_gradients(number, dtype, layout):
    x = lay_out(draw(*SHAPE, dtype=dtype), layout)
    u = lay_out(draw(*SHAPE, dtype=dtype), LAYOUTS[number % 4])
    if layout == "mixed":
        x = lay_out(x, "channels_last")
    sizes = [BRANCHES[(2 * number + k) % len(BRANCHES)] for k in range(2)]
    branches = [
        lay_out(draw(*SHAPE[:2], *size, dtype=dtype), LAYOUTS[(number + k) % 4])
        for k, size in enumerate(sizes)
    ]
    with tiles_of(number // 2):
        check_merge(x, u, branches, (None, "gelu")[number % 2])


@pytest.mark.parametrize("shape", [(2, 2, 1, 1), (1, 2, 1, 9), (2, 1, 6, 1), (1, 2, 16, 16)])
def test_merge_into_other_planes(shape):
    """Among them the published one: branches at an 8th, a quarter and half of x's sides."""
    sizes = ((2, 2), (4, 4), (8, 8)) if min(shape[2:]) > 8 else ((1, 1), (2, 3))
    x, u, *branches = (
        lay_out(draw(*shape[:2], *size), "channels_last") for size in (shape[2:], shape[2:], *sizes)
    )
    check_merge(x, u, branches, "gelu")


def test_merge_without_branches():
    check_merge(draw(*SHAPE), draw(*SHAPE), [], "gelu")
    check_merge(draw(*SHAPE), draw(*SHAPE), [], None)


def test_gelu_far_from_zero():
    x = torch.tensor([-40, -9, -5.5, -1e-8, 0, 1e-8, 5.5, 9, 40], device=DEVICE)[None, None, None]
    check_merge(x, torch.ones_like(x), [], "gelu")


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_empty_planes_and_batches(shape):
    x = draw(*shape)
    pools = OPERATORS["pool_pyramid"](x, (2, 3))
    assert [p.shape for p in pools] == [(*shape[:2], shape[2] // r, shape[3] // r) for r in (2, 3)]
    assert OPERATORS["pool_pyramid_backward"](pools, (2, 3), shape[2:]).shape == shape
    branch = draw(*shape[:2], 2, 3)
    assert OPERATORS["merge_pyramid"](x, [branch], "gelu").shape == shape
    dx, (dbranch,) = OPERATORS["merge_pyramid_backward"](x, x, [branch], "gelu")
    assert dx.shape == shape
    assert dbranch.shape == branch.shape
    assert (dbranch == 0).all()


def test_pixels_that_no_window_covers_get_nothing():
    grads = [torch.ones(1, 1, 1, 2, device=DEVICE)]
    dx = OPERATORS["pool_pyramid_backward"](grads, (4,), (7, 9))
    assert (dx[..., :4, :8] == 1 / 16).all()
    assert dx.sum() == 2


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("pool_pyramid", (draw(1, 2, 6, 6), (2, 0))),
        ("pool_pyramid_backward", ([draw(1, 2, 3, 3)], (2,), (6, 8))),
        ("pool_pyramid_backward", ([draw(1, 2, 3, 3), draw(1, 3, 2, 2)], (2, 3), (6, 6))),
        ("merge_pyramid", (draw(1, 2, 6, 6), [draw(1, 3, 3, 3)])),
        ("merge_pyramid", (draw(2, 2, 6, 6), [draw(1, 2, 3, 3)])),
        ("merge_pyramid", (draw(1, 2, 6, 6), [draw(1, 2, 0, 3)])),
        ("merge_pyramid_backward", (draw(1, 2, 6, 5), draw(1, 2, 6, 6), [], "gelu")),
    ],
)
def test_what_would_read_outside_memory_is_refused(operator, arguments):
    with pytest.raises(RuntimeError, match=r"does not fit|must be at least|for rate"):
        OPERATORS[operator](*arguments)


def test_offsets_beyond_32_bits():
    """The second sample begins 2^31 numbers after the first; the memory between is never touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    stride = 2**31
    memory = torch.empty(stride + 20, dtype=torch.float16, device=DEVICE)
    x, numbers = memory.as_strided((2, 1, 4, 5), (stride, 20, 5, 1)), draw(2, 1, 4, 5, dtype=torch.float16)
    assert needs_int64(x)
    x.copy_(numbers)
    for found, expected in zip(*(OPERATORS["pool_pyramid"](t, (2, 3)) for t in (x, numbers)), strict=True):
        assert torch.equal(found, expected)
    backward = OPERATORS["pool_pyramid_backward"]
    assert torch.equal(*(backward([t], (2,), (9, 11)) for t in (x, numbers)))
    larger = draw(2, 1, 6, 7, dtype=torch.float16)
    for base, arguments in ((None, larger), (larger, None)):
        calls = [(t if base is None else base, larger if arguments is not None else t) for t in (x, numbers)]
        assert torch.equal(*(OPERATORS["merge_pyramid"](a, [b], "gelu") for a, b in calls))
        backs = [OPERATORS["merge_pyramid_backward"](a, a, [b], "gelu") for a, b in calls]
        assert torch.equal(backs[0][0], backs[1][0])
        assert torch.equal(backs[0][1][0], backs[1][1][0])


def test_positions_beyond_32_bits(monkeypatch):
    """Rows times rows of a branch may exceed 32 bits where no offset does."""
    x = torch.empty(1, 1, 70000, 1, device="meta")
    branch = torch.empty(1, 1, 40000, 1, device="meta")
    with recording() as launches:
        OPERATORS["merge_pyramid"](x, [branch])
        OPERATORS["merge_pyramid_backward"](x, x, [branch], "gelu")
        OPERATORS["merge_pyramid"](x, [branch[:, :, :20000]])
    widths = [str(launch.constants["INDEX"]) for launch in launches]
    assert widths == ["int64"] * 4 + ["int32"]
    monkeypatch.setattr("irnext.kernels.pyramid.LARGEST_INT32", 10)
    check_merge(draw(*SHAPE), draw(*SHAPE), [draw(*SHAPE[:2], 4, 5)], "gelu")


def test_pyramids_take_few_launches():
    x = torch.empty(1, 32, 32, 32, device="meta").to(memory_format=torch.channels_last)
    with recording() as launches:
        pools = OPERATORS["pool_pyramid"](x, (8, 4, 2))
        OPERATORS["pool_pyramid_backward"](pools, (8, 4, 2), (32, 32))
        OPERATORS["merge_pyramid"](x, pools)
        OPERATORS["merge_pyramid_backward"](x, x, pools, "gelu")
    names = [launch.kernel.__name__ for launch in launches]
    assert names == ["pool_windows", "spread_pools", "merge_planes", "merge_planes", *["stretch_adjoint"] * 6]
