"""The compiled CPU operators of the local attention, called directly, against formulas in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import irnext

pytestmark = pytest.mark.skipif(not irnext.backends()["cpu"], reason="the compiled library is not built")
OPS = torch.ops.irnext
# Absolute floors of the tolerance rule: the error of a rounding or two of numbers of order one.
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted", "mixed")


def instruction_sets() -> list[str]:
    """The instruction sets that the library has and this machine can run."""
    if not irnext.backends()["cpu"]:
        return []
    found, current = [], OPS.cpu_instructions()
    for name in ("baseline", "avx2", "avx512"):
        try:
            OPS.cpu_instructions(name)
            found.append(name)
        except RuntimeError:
            pass
    OPS.cpu_instructions(current)
    return found


@pytest.fixture(params=instruction_sets())
def instructions(request):
    """Run the test with each instruction set."""
    current = OPS.cpu_instructions()
    OPS.cpu_instructions(request.param)
    yield request.param
    OPS.cpu_instructions(current)


@pytest.fixture
def poisoned():
    """Fill fresh memory with NaN, so that an output nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def laid_out(x: Tensor, u: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The same numbers with other strides."""
    if layout == "sliced":
        return torch.cat((x, x), 3)[..., x.shape[3] :], torch.cat((u, u), 2)[:, :, u.shape[2] :]
    if layout == "permuted":
        return x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), u
    if layout in ("channels_last", "mixed"):
        x = x.to(memory_format=torch.channels_last)
    return x, u.to(memory_format=torch.channels_last) if layout == "channels_last" else u


def assert_within_tolerance(names, found, plain, exact, dtype):
    """The tolerance rule: error <= 2 x PyTorch's own in the same type + a floor of that type."""
    for name, f, p, e in zip(names.split(), found, plain, exact, strict=True):
        assert f.shape == e.shape, name
        assert f.dtype == p.dtype, name
        assert f.isfinite().all(), f"{name} has values that nobody wrote"
        if f.numel():
            error, allowed = ((t.double() - e).abs().max() for t in (f, p))
            floor = FLOOR[dtype if name in ("y", "dx") else wide_type(dtype)]
            scale = e.abs().max().clamp_min(1)
            assert error <= 2 * allowed + floor * scale, f"{name}: {error} > 2 * {allowed}"


# ---- local_mean ----


def box_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Valid means by explicit windows, replicated to the border."""
    wide = x.to(wide_type(x.dtype))
    h, w = x.shape[2:]
    mean = F.avg_pool2d(wide, (min(window[0], h), min(window[1], w)), stride=1)
    top, left = (h - mean.shape[2]) // 2, (w - mean.shape[3]) // 2
    rows = (torch.arange(h) - top).clamp(0, mean.shape[2] - 1)
    columns = (torch.arange(w) - left).clamp(0, mean.shape[3] - 1)
    return mean[:, :, rows][:, :, :, columns].to(x.dtype)


WINDOWS = [(1, 1), (3, 4), (6, 5), (2, 9), (9, 2), (100, 3), (4, 100), (100, 100)]
MEAN_SHAPES = [
    (2, 8, 9, 13),
    (1, 24, 17, 40),
    (1, 3, 23, 5),
    (1, 37, 12, 7),
    (0, 4, 8, 8),
    (1, 20, 33, 70),
    (1, 2, 1, 1),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_local_mean_and_its_adjoint(instructions, dtype, layout, poisoned):
    torch.manual_seed(0)
    for shape, window in itertools.product(MEAN_SHAPES, WINDOWS):
        x, u = (torch.randn(shape, dtype=torch.float64).add(3).to(dtype) for _ in "xu")
        exact_x = x.double().requires_grad_()
        exact = box_mean(exact_x, window)
        (exact_dx,) = torch.autograd.grad(exact, exact_x, u.double())
        plain_x = x.clone().requires_grad_()
        plain = box_mean(plain_x, window)
        (plain_dx,) = torch.autograd.grad(plain, plain_x, u)
        x, u = laid_out(x, u, layout)
        found = OPS.local_mean(x, window), OPS.local_mean_backward(u, window)
        assert_within_tolerance("y dx", found, (plain.detach(), plain_dx), (exact.detach(), exact_dx), dtype)


@pytest.mark.parametrize("window", [(70, 103), (10, 31)])
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_running_sums_keep_their_digits(layout, dtype, window):
    """A plane of several bands, whose values are large beside their differences."""
    torch.manual_seed(0)
    x = (1000 + torch.randn(1, 16, 150, 230, dtype=torch.float64)).to(dtype)
    exact_x = x.double().requires_grad_()
    exact = box_mean(exact_x, window)
    (adjoint,) = torch.autograd.grad(exact, exact_x, x.double())
    x = x.to(memory_format=layout)
    # In float64 the means by windows that we compare with are rounded as much as ours.
    share = torch.finfo(dtype).eps * (100 if dtype == torch.float64 else 1)
    for found, expected in (
        (OPS.local_mean(x, window), exact),
        (OPS.local_mean_backward(x, window), adjoint),
    ):
        assert (found.double() - expected).abs().max() <= share * expected.abs().max()


# ---- local_attention ----


def attention(
    x, weight, norm_weight, norm_bias, low, inner, high, statistics, size, training, activation, window
):
    """The published attention by definition: unfolded copies, weights, modulation.

    Returns y, the plane means, and the mean and variance of the logits that normalised them.
    """
    n, c, h, w = x.shape
    kh, kw = size
    z = x.to(weight.dtype)
    mean = z.mean((2, 3))
    logits = mean @ weight.flatten(1).T
    mu, var = (logits.mean(0), logits.var(0, correction=0)) if training else statistics
    logits = (logits - mu) / (var + EPS).sqrt() * norm_weight + norm_bias
    logits = logits.view(n, weight.shape[0] // (kh * kw), kh * kw)
    if activation == "softmax":
        taps = logits.softmax(-1)
    else:
        taps = logits.tanh() if activation == "tanh" else logits.sigmoid()
    padded = F.pad(z, (kw // 2, kw // 2, kh // 2, kh // 2), "reflect")
    copies = F.unfold(padded, (kh, kw)).view(n, taps.shape[1], c // taps.shape[1], kh * kw, h * w)
    response = (copies * taps[:, :, None, :, None]).sum(3).view(n, c, h, w)
    low, inner, high = (gain.view(c, 1, 1) for gain in (low, inner, high))
    m = mean[..., None, None] if window is None else box_mean(z, window)
    y = low * ((1 + inner) * response - inner * m) + (1 + high) * z
    return y.to(x.dtype), mean, mu, var


EPS = 1e-5
PARAMETERS = "weight norm_weight norm_bias low inner high"
OUTPUTS = "y mean mu var"
GRADIENTS = "dx dweight dnorm_weight dnorm_bias dlow dinner dhigh"


def make_parameters(channels: int, groups: int, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Random parameters and running statistics, numbers that float32 holds."""
    count = groups * size[0] * size[1]
    shapes = [(count, channels, 1, 1), (count,), (count,), (channels,), (channels, 1, 1), (channels,)]
    parameters = [torch.randn(shape) for shape in shapes]
    parameters[0] *= channels**-0.5
    return parameters, [torch.randn(count) * 0.1, torch.rand(count) + 0.5]


def by_autograd(x, u, parameters, *arguments):
    """The outputs of the definition and the gradients of x and of every parameter."""
    inputs = [t.detach().clone().requires_grad_() for t in (x, *parameters)]
    outputs = attention(*inputs, *arguments)
    if not len(x):
        return [t.detach() for t in outputs], [torch.zeros_like(t) for t in inputs]
    return [t.detach() for t in outputs], list(torch.autograd.grad(outputs[0], inputs, u))


def by_operators(x, u, parameters, statistics, size, training, activation, window):
    """The same by the two operators."""
    weight, norm_weight, norm_bias, *gains = parameters
    running = (None, None) if training else statistics
    y, mean, mu, var = OPS.local_attention(
        x, weight, norm_weight, norm_bias, *running, *gains, size, training, EPS, activation, window
    )
    if not training:
        assert mu.shape == var.shape == (0,)
        mu, var = statistics
    found = OPS.local_attention_backward(
        u, x, mean, weight, norm_weight, norm_bias, mu, var, *gains, size, training, EPS, activation, window
    )
    gradients = [g.view_as(t) for g, t in zip(found, (x, *parameters), strict=True)]
    assert found[1].ndim == 2
    return [y, mean, mu, var], gradients


# N C H W, groups, kernel size, window
CASES = [
    ((3, 16, 9, 13), 8, (3, 3), None),
    ((4, 24, 12, 7), 8, (3, 3), (5, 3)),
    ((3, 20, 17, 40), 4, (3, 3), (8, 18)),
    ((5, 3, 23, 6), 3, (5, 5), (100, 2)),
    ((3, 32, 8, 8), 1, (5, 5), None),
    ((3, 6, 7, 11), 2, (1, 3), (3, 4)),
    ((4, 36, 2, 2), 36, (3, 3), None),
    ((3, 4, 5, 1), 2, (3, 1), (2, 1)),
    ((0, 16, 6, 5), 8, (3, 3), (3, 3)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", FLOOR)
def test_local_attention_and_its_gradients(instructions, dtype, training, layout, poisoned):
    torch.manual_seed(0)
    wide = wide_type(dtype)
    activations = itertools.cycle(("tanh", "sigmoid", "softmax"))
    for shape, groups, size, window in CASES:
        if training and not shape[0]:
            continue
        x, u = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in "xu")
        x = x + torch.randn(shape[:2], dtype=dtype)[..., None, None]  # plane means that differ
        parameters, statistics = make_parameters(shape[1], groups, size)
        arguments = (size, training, next(activations), window)
        exact = by_autograd(
            x.double(),
            u.double(),
            [p.double() for p in parameters],
            [t.double() for t in statistics],
            *arguments,
        )
        parameters, statistics = ([t.to(wide) for t in tensors] for tensors in (parameters, statistics))
        plain = by_autograd(x, u, parameters, statistics, *arguments)
        x, u = laid_out(x, u, layout)
        found = by_operators(x, u, parameters, statistics, *arguments)
        for names, f, p, e in zip((OUTPUTS, GRADIENTS), found, plain, exact, strict=True):
            assert_within_tolerance(names, f, p, e, dtype)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize("window", [None, (4, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_every_form_of_the_attention_in_float64(training, window, activation):
    torch.manual_seed(0)
    shape, size = (3, 8, 9, 10), (3, 5)
    x, u = (torch.randn(shape, dtype=torch.float64) for _ in "xu")
    parameters, statistics = ([t.double() for t in group] for group in make_parameters(8, 4, size))
    arguments = (x, u, parameters, statistics, size, training, activation, window)
    for found, exact in zip(by_operators(*arguments), by_autograd(*arguments), strict=True):
        for f, e in zip(found, exact, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_samples_of_a_large_batch_do_not_depend_on_each_other(layout):
    """More samples than are taken together: in eval mode each must come out as on its own."""
    torch.manual_seed(0)
    x, u = (torch.randn(5, 32, 64, 66).to(memory_format=layout) for _ in "xu")
    parameters, statistics = make_parameters(32, 8, (3, 3))
    for window in (None, (30, 31)):
        arguments = (parameters, statistics, (3, 3), False, "tanh", window)
        whole, gradients = by_operators(x, u, *arguments)
        sums = [torch.zeros_like(g) for g in gradients[1:]]
        for i in range(len(x)):
            alone, own = by_operators(x[i : i + 1], u[i : i + 1], *arguments)
            assert torch.equal(alone[0], whole[0][i : i + 1])
            assert torch.equal(alone[1], whole[1][i : i + 1])
            assert torch.equal(own[0], gradients[0][i : i + 1])
            for total, g in zip(sums, own[1:], strict=True):
                total += g
        for total, g in zip(sums, gradients[1:], strict=True):
            torch.testing.assert_close(total, g, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("window", [None, (20, 31)])
def test_results_do_not_depend_on_the_number_of_threads(window, training, layout):
    torch.manual_seed(0)
    x, u = (torch.randn(2, 32, 150, 66).to(memory_format=layout) for _ in "xu")
    parameters, statistics = make_parameters(32, 8, (3, 3))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs, gradients = by_operators(x, u, parameters, statistics, (3, 3), training, "tanh", window)
            means = (OPS.local_mean(x, (20, 31)), OPS.local_mean_backward(u, (20, 31)))
            results.append([*outputs, *gradients, *means])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 20, 40, 33), (2, 5, 9, 11)])
def test_broadcast_gradients(shape, layout):
    """Those of a sum have strides of zero."""
    torch.manual_seed(0)
    x = torch.randn(shape).to(memory_format=layout)
    parameters, statistics = make_parameters(shape[1], 5, (3, 3))
    arguments = (parameters, statistics, (3, 3), False, "tanh", None)
    broadcast = torch.tensor(0.5).expand(shape)
    for found, expected in zip(
        by_operators(x, broadcast, *arguments)[1],
        by_operators(x, broadcast.contiguous(), *arguments)[1],
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


X, U = torch.randn(2, 2, 8, 6, 7)


def call(**changes):
    """local_attention on good arguments, some of them changed."""
    parameters, statistics = make_parameters(8, 4, (3, 3))
    names = (*PARAMETERS.split()[:3], "running_mean", "running_var", *PARAMETERS.split()[3:])
    arguments = {"x": X} | dict(zip(names, (*parameters[:3], *statistics, *parameters[3:]), strict=True))
    rest = {"kernel_size": (3, 3), "training": False, "eps": EPS, "activation": "tanh", "window": None}
    return OPS.local_attention(**(arguments | rest | changes))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("must be", {"x": X[0]}),
        ("float64, float32, float16 or bfloat16", {"x": X.long()}),
        ("must be float64", {"x": X.double()}),
        ("weight must be", {"weight": torch.zeros(35, 8)}),
        ("weight must be", {"weight": torch.zeros(36, 7)}),
        ("weight must be", {"weight": torch.zeros(36, 8, 2, 1)}),
        ("groups do not divide", {"weight": torch.zeros(27, 8)}),
        ("groups do not divide", {"weight": torch.zeros(0, 8)}),
        ("norm_weight must hold 36", {"norm_weight": torch.zeros(35)}),
        ("running_var must hold 36", {"running_var": torch.zeros(1)}),
        ("running statistics are needed", {"running_mean": None}),
        ("low must hold 8", {"low": torch.zeros(7)}),
        ("high must be float32", {"high": torch.zeros(8, dtype=torch.float64)}),
        ("kernel must be odd", {"kernel_size": (2, 2), "weight": torch.zeros(16, 8)}),
        ("kernel_size must be", {"kernel_size": (0, 3)}),
        ("kernel_size must be", {"kernel_size": (2**40 + 1, 2**40 + 1)}),
        ("must be smaller than the plane", {"x": X[:, :, :1]}),
        ("unknown activation 'relu'", {"activation": "relu"}),
        ("window must be", {"window": (0, 3)}),
    ],
)
def test_what_would_read_outside_memory_is_refused(message, changes):
    with pytest.raises(RuntimeError, match=message):
        call(**changes)


def test_a_gradient_that_does_not_fit_is_refused():
    parameters, statistics = make_parameters(8, 4, (3, 3))
    arguments = (parameters, statistics, (3, 3), False, "tanh", None)
    for wrong in (U[:1], U.double(), U[..., :6]):
        with pytest.raises(RuntimeError, match="grad must have the shape and type of x"):
            by_operators(X, wrong, *arguments)
    with pytest.raises(RuntimeError, match="window must be"):
        OPS.local_mean(X, (3, 0))


# ---- update_statistics ----


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", FLOOR)
def test_running_statistics_follow_batch_norm(dtype, momentum):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(12, momentum=momentum).double()
    mean, var = torch.zeros(12, dtype=dtype), torch.ones(12, dtype=dtype)
    batches = torch.tensor(0)
    for _ in range(3):
        logits = torch.randn(5, 12) * 2 + 1
        norm(logits.double())
        OPS.update_statistics(
            mean, var, batches, logits.mean(0), logits.var(0, correction=0), len(logits), momentum
        )
    assert batches == norm.num_batches_tracked == 3
    tolerance = 8 * torch.finfo(dtype if dtype.itemsize == 2 else torch.float32).eps
    torch.testing.assert_close(mean.double(), norm.running_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(var.double(), norm.running_var, rtol=tolerance, atol=tolerance)


def test_statistics_that_do_not_fit_are_refused():
    good = [torch.zeros(4), torch.ones(4), torch.tensor(0), torch.zeros(4), torch.ones(4), 3, 0.1]
    for place, wrong in ((0, torch.zeros(3)), (1, torch.zeros(4, 1)), (2, torch.tensor(0.0)), (5, 1)):
        with pytest.raises(RuntimeError):
            OPS.update_statistics(*good[:place], wrong, *good[place + 1 :])
    OPS.update_statistics(*good)
    assert good[2] == 1
