"""The CUDA sources, run on the CPU by the host emulation, against the definitions in float64.

The emulation reports races, missing barriers and accesses out of bounds as errors; every schedule of
the threads must give the same bits.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from irnext.ops import library, reference

FAILURE = library.load(library.CUDA_HOST)
pytestmark = pytest.mark.skipif(FAILURE is not None, reason=str(FAILURE))
HOST = torch.ops.irnext_cuda_host

SCHEDULES = ("forward", "reverse", "shuffled")
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted")
# Absolute floors of the tolerance rule: the error of a rounding or two of numbers of order one. In
# float64 PyTorch's own error is unknown, so its roundings are allowed too.
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
H100 = (90, 227 * 1024)
A100 = (80, 163 * 1024)


@pytest.fixture(autouse=True)
def poisoned():
    """Fill fresh memory with NaN, so that an output nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    HOST.schedule("forward")
    HOST.device(*H100)


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same numbers in another layout."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat((x, x), 3)[..., 1 : x.shape[3] + 1].copy_(x)
    if layout == "permuted":
        return x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    return x


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return reference.accumulation_dtype(dtype)


def assert_close(
    name: str, found: Tensor, plain: Tensor, exact: Tensor, floor: torch.dtype, roundings: int = 1
) -> None:
    """The tolerance rule: error <= 2 x PyTorch's own in the same type + a floor of the type `floor`."""
    assert found.shape == exact.shape, name
    assert found.dtype == plain.dtype, name
    assert found.isfinite().all(), f"{name} has values that nobody wrote"
    if found.numel():
        error, allowed = ((t.double() - exact).abs().max() for t in (found, plain))
        scale = exact.abs().max().clamp_min(1)
        assert error <= 2 * allowed + roundings * FLOOR[floor] * scale, f"{name}: {error} > 2 * {allowed}"


def under_every_schedule(function, *arguments) -> list[Tensor]:
    """The results, which must be the same bits whichever thread runs first."""
    results = []
    for order in SCHEDULES:
        HOST.schedule(order)
        found = function(*arguments)
        results.append([found] if isinstance(found, Tensor) else list(found))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    return results[0]


def launches(function, *arguments) -> int:
    before = HOST.launches()
    function(*arguments)
    return HOST.launches() - before


# ---- spatial_mean and dynamic_conv2d -------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_spatial_mean(dtype, layout):
    torch.manual_seed(0)
    for shape in ((2, 8, 9, 13), (1, 24, 16, 40), (3, 5, 1, 1), (0, 4, 8, 8), (1, 3, 70, 65)):
        x = arrange((torch.randn(shape, dtype=torch.float64) + 3).to(dtype), layout)
        (mean,) = under_every_schedule(HOST.spatial_mean, x)
        exact = x.double().mean((2, 3))
        assert_close("mean", mean, reference.spatial_mean(x), exact, accumulation(dtype))


BIASES = {
    "none": lambda n, c, h, w: None,
    "plane": lambda n, c, h, w: torch.randn(n, c, dtype=torch.float64),
    "row": lambda n, c, h, w: torch.randn(n, c, h, 1, dtype=torch.float64),
    "column": lambda n, c, h, w: torch.randn(n, c, 1, w, dtype=torch.float64),
    "full": lambda n, c, h, w: torch.randn(n, c, h, w, dtype=torch.float64),
}
CONV_SHAPES = ((2, 8, 9, 13), (1, 16, 12, 16), (1, 3, 11, 5), (0, 4, 8, 8))
KERNELS = ((3, 3), (1, 5), (5, 1), (5, 5), (1, 1))


@pytest.mark.parametrize("mode", ("reflect", "zeros", "replicate"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_dynamic_conv2d(dtype, layout, mode):
    torch.manual_seed(0)
    numbers = itertools.count()
    for (n, c, h, w), (kh, kw), dilation in itertools.product(CONV_SHAPES, KERNELS, (1, 3)):
        if mode == "reflect" and (dilation * (kh // 2) >= h or dilation * (kw // 2) >= w):
            continue
        i = next(numbers)
        groups = (1, c // 2 if c % 2 == 0 else c, c)[i % 3]
        x, u = (torch.randn(n, c, h, w, dtype=torch.float64).to(dtype) for _ in "xu")
        x = arrange(x, layout)
        if i % 2:
            u = arrange(u, layout)
        small = dtype if i % 2 or dtype == torch.float64 else torch.float32
        kernel = torch.randn(n, groups, kh, kw, dtype=torch.float64).to(small)
        bias = list(BIASES.values())[i % 5](n, c, h, w)
        bias = None if bias is None else bias.to(small)
        options = (dilation, mode)
        HOST.schedule(SCHEDULES[i % 3])
        y = HOST.dynamic_conv2d(x, kernel, bias, *options)
        dx, dkernel, sums = HOST.dynamic_conv2d_backward(u, x, kernel, *options, True, True, True)

        def definition(x, kernel, bias, u, options=options):
            x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
            y = reference.dynamic_conv2d(x, kernel, bias, *options)
            dx, dkernel = torch.autograd.grad(y, (x, kernel), u)
            return y.detach(), dx, dkernel, u.sum((2, 3), dtype=accumulation(u.dtype))

        exact = definition(x.double(), kernel.double(), None if bias is None else bias.double(), u.double())
        plain = definition(x, kernel, bias, u)
        names = ("y", "dx", "dkernel", "sums")
        types = (dtype, dtype, kernel.dtype, accumulation(dtype))
        for values in zip(names, (y, dx, dkernel, sums), plain, exact, types, strict=True):
            assert_close(*values)


def test_dynamic_conv2d_gives_only_what_is_needed():
    torch.manual_seed(0)
    x, u, kernel = torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 7), torch.randn(2, 2, 3, 3)
    whole = HOST.dynamic_conv2d_backward(u, x, kernel, 1, "reflect", True, True, True)
    for needs in itertools.product((False, True), repeat=3):
        found = HOST.dynamic_conv2d_backward(u, x, kernel, 1, "reflect", *needs)
        for part, expected, need in zip(found, whole, needs, strict=True):
            assert torch.equal(part, expected) if need else part.shape == (0,)


@pytest.mark.parametrize("shape", [(2, 4, 0, 5), (2, 4, 3, 0), (0, 4, 5, 5)])
def test_planes_without_pixels(shape):
    x, kernel = torch.randn(shape), torch.randn(shape[0], 2, 3, 3)
    assert HOST.dynamic_conv2d(x, kernel, None, 1, "zeros").shape == shape
    dx, dkernel, sums = HOST.dynamic_conv2d_backward(x, x, kernel, 1, "zeros", True, True, True)
    assert dx.shape == shape
    assert torch.equal(dkernel, torch.zeros_like(kernel))
    assert torch.equal(sums, torch.zeros(shape[:2]))
    assert torch.equal(HOST.spatial_mean(x), x.mean((2, 3))) or HOST.spatial_mean(x).isnan().all()
    assert HOST.local_mean(x, (2, 2)).shape == shape


def test_a_broadcast_gradient():
    """That of a sum: one number seen everywhere."""
    torch.manual_seed(0)
    shape, options = (2, 4, 6, 9), ((3, 3), False, 1e-5, "tanh", None)
    parameters = make_parameters(4, 2, 9, torch.float32)
    x, u = make_image(shape, torch.float32, "channels_last"), torch.tensor(0.5).expand(shape)
    inputs = gradient_inputs(
        parameters, HOST.spatial_mean(x), (parameters["running_mean"], parameters["running_var"])
    )
    found = HOST.local_attention_backward(u, x, *inputs, *options)
    expected = HOST.local_attention_backward(u.contiguous(), x, *inputs, *options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# ---- local_mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_local_mean_and_its_adjoint(dtype, layout):
    torch.manual_seed(0)
    shapes = ((2, 3, 9, 8), (1, 5, 1, 7), (1, 2, 70, 90), (0, 3, 4, 4), (1, 4, 6, 150))
    windows = ((3, 3), (2, 1), (1, 4), (100, 100), (4, 65))
    for shape, window in itertools.product(shapes, windows):
        x = arrange((torch.randn(shape, dtype=torch.float64) + 1).to(dtype), layout)
        for name in ("local_mean", "local_mean_backward"):
            definition = getattr(reference, name)
            (found,) = under_every_schedule(getattr(HOST, name), x, window)
            assert_close(name, found, definition(x, window), definition(x.double(), window), dtype)


def test_local_mean_of_a_row_longer_than_shared_memory():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 2, 6200)
    for name in ("local_mean", "local_mean_backward"):
        definition = getattr(reference, name)
        found = getattr(HOST, name)(x, (1, 300))
        assert_close(name, found, definition(x, (1, 300)), definition(x.double(), (1, 300)), x.dtype)


# ---- local_attention -----------------------------------------------------------------------------


def make_parameters(c: int, groups: int, taps: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random parameters and running statistics in the accumulation type of `dtype`."""
    outputs = groups * taps
    drawn = {
        "weight": torch.randn(outputs, c) * 2 / c**0.5,
        "norm_weight": 1 + 0.3 * torch.randn(outputs),
        "norm_bias": 0.3 * torch.randn(outputs),
        "running_mean": 0.3 * torch.randn(outputs),
        "running_var": 0.5 + torch.rand(outputs),
        "low": torch.randn(c, 1, 1),
        "inner": torch.randn(c, 1, 1),
        "high": torch.randn(c, 1, 1),
    }
    return {name: tensor.to(accumulation(dtype)) for name, tensor in drawn.items()}


def make_image(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Planes of different means: the logits of the samples then differ, as images' do."""
    x = torch.randn(shape, dtype=torch.float64) + torch.randn(*shape[:2], 1, 1, dtype=torch.float64)
    return arrange(x.to(dtype), layout)


def doubled(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in parameters.items()}


def gradient_inputs(parameters, mean, statistics):
    """The inputs of local_attention_backward between the gradients and the options."""
    p = parameters
    return (mean, p["weight"], p["norm_weight"], p["norm_bias"], *statistics, p["low"], p["inner"], p["high"])


def check_attention(shape, groups, kernel_size, dtype, layout, training, window, activation):
    """Both directions against the definition; the launches that each took."""
    parameters = make_parameters(shape[1], groups, kernel_size[0] * kernel_size[1], dtype)
    x, u = make_image(shape, dtype, layout), make_image(shape, dtype, layout)
    options = (kernel_size, training, 1e-5, activation, window)
    wide = accumulation(dtype)
    found = under_every_schedule(HOST.local_attention, x, *parameters.values(), *options)
    exact_parameters = doubled(parameters)
    plain = reference.local_attention(x, *parameters.values(), *options)
    exact = reference.local_attention(x.double(), *exact_parameters.values(), *options)
    names = ("y", "mean", "logit_mean", "logit_var")
    for name, f, p, e in zip(names, found, plain, exact, strict=True):
        assert_close(name, f, p, e, dtype if name == "y" else wide)
    assert found[0].stride() == torch.empty_like(x).stride()

    statistics = found[2:] if training else (parameters["running_mean"], parameters["running_var"])
    inputs = gradient_inputs(parameters, found[1], statistics)
    found_gradients = under_every_schedule(HOST.local_attention_backward, u, x, *inputs, *options)
    plain = reference.local_attention_backward(u, x, *inputs, *options)
    exact_inputs = [t.double() for t in inputs]
    exact = reference.local_attention_backward(u.double(), x.double(), *exact_inputs, *options)
    names = ("dx", "dweight", "dnorm_weight", "dnorm_bias", "dlow", "dinner", "dhigh")
    for name, f, p, e in zip(names, found_gradients, plain, exact, strict=True):
        # With a window the other gradients are sums over a local mean that is rounded to x's type. They are
        # differences of sums larger than themselves, whose roundings remain.
        assert_close(name, f, p, e, dtype if name == "dx" or window else wide, 1 if name == "dx" else 4)
    return (
        launches(HOST.local_attention, x, *parameters.values(), *options),
        launches(HOST.local_attention_backward, u, x, *inputs, *options),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("device", [H100, A100])
def test_local_attention_in_evaluation(device, dtype, layout):
    torch.manual_seed(0)
    HOST.device(*device)
    cases = (
        ((2, 16, 8, 16), 4, (3, 3), "tanh"),
        ((1, 6, 7, 9), 3, (3, 3), "softmax"),
        ((2, 8, 9, 13), 2, (5, 5), "sigmoid"),
        ((1, 4, 3, 11), 1, (1, 7), "softmax"),
        ((0, 8, 6, 5), 8, (3, 3), "tanh"),
    )
    for shape, groups, kernel_size, activation in cases:
        found = check_attention(shape, groups, kernel_size, dtype, layout, False, None, activation)
        backward = 3 if device == H100 else 4
        assert found == ((1, backward) if shape[0] else (0, found[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_local_attention_in_training(dtype, layout):
    torch.manual_seed(0)
    assert check_attention((5, 16, 8, 16), 4, (3, 3), dtype, layout, True, None, "tanh") == (3, 3)
    assert check_attention((4, 6, 7, 9), 3, (3, 3), dtype, layout, True, None, "softmax") == (3, 3)
    assert check_attention((4, 8, 6, 7), 1, (5, 5), dtype, layout, True, None, "sigmoid") == (3, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_local_attention_with_a_window(dtype, layout):
    torch.manual_seed(0)
    assert check_attention((2, 8, 9, 8), 2, (3, 3), dtype, layout, False, (3, 4), "tanh") == (5, 6)
    assert check_attention((4, 6, 7, 9), 3, (3, 3), dtype, layout, True, (20, 2), "tanh") == (5, 6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("device", "shape", "groups", "plan"),
    [
        (H100, (1, 16, 32, 32), 4, "a cluster holds a sample"),
        (H100, (1, 10, 32, 34), 5, "a cluster holds a sample"),
        (A100, (1, 16, 32, 32), 4, "each block of a sample takes all of its means"),
        (A100, (1, 16, 40, 60), 4, "has no clusters"),
        ((90, 40 * 1024), (1, 4, 72, 96), 4, "exceeds the shared memory"),
    ],
)
def test_local_attention_by_every_plan(plan, groups, shape, device, layout):
    torch.manual_seed(0)
    HOST.device(*device)
    dtype = torch.float64
    reason = HOST.attention_plan(*shape, groups, "float64", layout == "channels_last")
    assert plan in reason
    parameters = make_parameters(shape[1], groups, 9, dtype)
    x = make_image(shape, dtype, layout)
    options = ((3, 3), False, 1e-5, "tanh", None)
    found = under_every_schedule(HOST.local_attention, x, *parameters.values(), *options)
    exact = reference.local_attention(x, *parameters.values(), *options)
    for name, f, e in zip(("y", "mean"), found, exact, strict=False):
        assert_close(name, f, e, e, dtype)
    expected = 1 if reason.startswith("one launch") else 3
    assert launches(HOST.local_attention, x, *parameters.values(), *options) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_channels_shared_by_blocks_and_packs(dtype):
    """Channels that fill their last block partly, and more groups than a cluster has blocks."""
    torch.manual_seed(0)
    for c, groups in ((40, 5), (24, 24), (36, 2)):
        for layout in ("contiguous", "channels_last"):
            check_attention((1, c, 32, 32), groups, (3, 3), dtype, layout, False, None, "tanh")


def test_large_batches_and_many_channels():
    """More means than one tile holds, and more channels than it."""
    torch.manual_seed(0)
    check_attention((100, 100, 2, 2), 2, (3, 3), torch.float32, "contiguous", True, None, "tanh")
    check_attention((2, 8400, 2, 2), 2, (1, 3), torch.float32, "channels_last", True, None, "tanh")


def test_the_gradient_does_not_depend_on_clusters():
    torch.manual_seed(0)
    shape, options = (4, 32, 6, 6), ((3, 3), True, 1e-5, "tanh", None)
    for groups in (1, 3 * 2 + 2, 16, 32):
        parameters = make_parameters(32, groups, 9, torch.float32)
        x, u = (make_image(shape, torch.float32, "contiguous") for _ in "xu")
        results = []
        for device in (H100, A100):
            HOST.device(*device)
            _, mean, *statistics = HOST.local_attention(x, *parameters.values(), *options)
            inputs = gradient_inputs(parameters, mean, statistics)
            results.append(HOST.local_attention_backward(u, x, *inputs, *options))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- update_statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("dtype", FLOOR)
def test_update_statistics(dtype, momentum):
    torch.manual_seed(0)
    wide = accumulation(dtype)
    running = [torch.randn(300, dtype=torch.float64).to(dtype) for _ in range(2)]
    batch = [torch.randn(300, dtype=torch.float64).to(wide) for _ in range(2)]
    for order in SCHEDULES:
        HOST.schedule(order)
        found, batches = [t.clone() for t in running], torch.tensor(6)
        HOST.update_statistics(*found, batches, *batch, 5, momentum)
        assert batches == 7
        exact = [t.double() for t in running]
        reference.update_statistics(*exact, torch.tensor(6), *(t.double() for t in batch), 5, momentum)
        for f, e in zip(found, exact, strict=True):
            assert_close("running statistics", f, e.to(dtype), e, dtype)
        assert launches(HOST.update_statistics, *found, batches, *batch, 5, momentum) == 1


# ---- what is refused -----------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    parameters = make_parameters(4, 2, 9, torch.float32)
    x, options = torch.randn(2, 4, 6, 6), ((3, 3), False, 1e-5, "tanh", None)

    def call(x=x, options=options, **changed):
        return HOST.local_attention(x, *(parameters | changed).values(), *options)

    call()
    for message, arguments in {
        "must be smaller than the plane": {"x": x[:, :, :1]},
        "norm_bias must hold": {"norm_bias": torch.zeros(3)},
        "low must be float32": {"low": parameters["low"].double()},
        "running statistics are needed": {"running_var": None},
        "unknown activation": {"options": (*options[:3], "relu", None)},
        "more than one sample": {"x": x[:1], "options": ((3, 3), True, 1e-5, "tanh", None)},
        "window must be": {"options": (*options[:4], (0, 3))},
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call(**arguments)
    with pytest.raises(RuntimeError, match="unknown order"):
        HOST.schedule("sideways")
    with pytest.raises(RuntimeError, match="unknown dtype"):
        HOST.attention_plan(1, 4, 8, 8, 2, "int8", False)
