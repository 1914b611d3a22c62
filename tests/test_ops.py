"""Every operator against its definition in float64, on every backend, instruction set, type and layout."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from conftest import CPU_BACKENDS, DEVICES
from torch.autograd import gradcheck, gradgradcheck

import irnext
from irnext import ops
from irnext.ops import reference, registration

COMPILED = pytest.mark.skipif(not irnext.backends()["cpu"], reason="the compiled library is not built")
PADDING_MODES = ("reflect", "zeros", "replicate")
BIASES = ("none", "plane", "row", "column", "full")
# Absolute floors of the tolerance rule: the error of a rounding or two of numbers of order one.
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def instruction_sets() -> list[str]:
    """The instruction sets that the library has and this machine can run."""
    if not irnext.backends()["cpu"]:
        return []
    found, current = [], torch.ops.irnext.cpu_instructions()
    for name in ("baseline", "avx2", "avx512"):
        try:
            torch.ops.irnext.cpu_instructions(name)
            found.append(name)
        except RuntimeError:
            pass
    torch.ops.irnext.cpu_instructions(current)
    return found


@pytest.fixture
def instructions(request):
    """Run the test with one instruction set."""
    current = torch.ops.irnext.cpu_instructions()
    torch.ops.irnext.cpu_instructions(request.param)
    yield request.param
    torch.ops.irnext.cpu_instructions(current)


@pytest.fixture
def poisoned():
    """Fill fresh memory with NaN, so that an output nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before)


def make_bias(kind: str, n: int, c: int, h: int, w: int) -> torch.Tensor | None:
    shapes = {"plane": (n, c), "row": (n, c, h, 1), "column": (n, c, 1, w), "full": (n, c, h, w)}
    return None if kind == "none" else torch.randn(shapes[kind], dtype=torch.float64)


def gradients(function, inputs, u):
    """The output of `function` and the gradients of those inputs that are there."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], u)]


def assert_as_good_as_pytorch(function, definition, inputs, u, compute=None):
    """The tolerance rule: error <= 2 x PyTorch's own in the same type + a floor of that type.

    `inputs` and `u` are float64 numbers that the compute type holds exactly.
    """
    dtype = compute or u.dtype
    exact = gradients(definition, [None if t is None else t.double() for t in inputs], u.double())
    found = gradients(function, inputs, u)
    plain = gradients(definition, inputs, u)
    for name, f, p, e in zip(("y", "x", "kernel", "bias"), found, plain, exact, strict=False):
        assert f.shape == e.shape
        assert f.dtype == p.dtype
        assert f.isfinite().all(), f"{name} has values that nobody wrote"
        if f.numel():
            error, allowed = ((t.double() - e).abs().max() for t in (f, p))
            scale = e.abs().max().clamp_min(1)
            assert error <= 2 * allowed + FLOOR[dtype] * scale, f"{name}: {error} > 2 * {allowed}"


SHAPES = [(2, 8, 9, 13), (1, 24, 17, 40), (1, 3, 23, 5), (2, 16, 12, 7), (0, 4, 8, 8), (1, 20, 33, 70)]
KERNELS = [(3, 3), (1, 5), (5, 1), (5, 5), (1, 1)]


@COMPILED
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "permuted", "mixed"])
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("instructions", instruction_sets(), indirect=True)
def test_compiled_dynamic_conv2d_follows_the_definition(instructions, dtype, layout, poisoned):
    torch.manual_seed(0)
    numbers = itertools.count()
    for (n, c, h, w), (kh, kw), dilation, mode in itertools.product(SHAPES, KERNELS, (1, 3), PADDING_MODES):
        if mode == "reflect" and (dilation * (kh // 2) >= h or dilation * (kw // 2) >= w):
            continue
        i = next(numbers)
        if layout not in ("contiguous", "channels_last") and i // 2 % 2:  # half of the cases: these are rare
            continue
        groups = (1, c // 2 if c % 2 == 0 else c, c)[i % 3]
        x = torch.randn(n, c, h, w, dtype=torch.float64).to(dtype)
        u = torch.randn(n, c, h, w, dtype=torch.float64).to(dtype)
        if layout in ("channels_last", "mixed"):
            x = x.to(memory_format=torch.channels_last)
        if layout == "channels_last":
            u = u.to(memory_format=torch.channels_last)
        if layout == "sliced":
            x = torch.cat((x, x), 3)[..., 1 : w + 1]
            u = torch.cat((u, u), 2)[:, :, h:]
        if layout == "permuted":
            x = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
        small = dtype if i % 2 or dtype == torch.float64 else torch.float32
        kernel = torch.randn(n, groups, kh, kw, dtype=torch.float64).to(small)
        bias = make_bias(BIASES[i % 5], n, c, h, w)
        bias = None if bias is None else bias.to(small)

        def function(x, kernel, bias=None, arguments=(dilation, mode)):
            with irnext.use_backend("cpu"):
                return ops.dynamic_conv2d(x, kernel, bias, *arguments)

        def definition(x, kernel, bias=None, arguments=(dilation, mode)):
            return reference.dynamic_conv2d(x, kernel, bias, *arguments)

        assert_as_good_as_pytorch(function, definition, (x, kernel, bias), u)


@COMPILED
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("instructions", instruction_sets(), indirect=True)
def test_compiled_spatial_mean_follows_the_definition(instructions, dtype, poisoned):
    torch.manual_seed(0)
    wide = reference.accumulation_dtype(dtype)
    for shape in [*SHAPES, (1, 5, 1, 1), (1, 2, 300, 333), (3, 33, 64, 65)]:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = (torch.randn(shape, dtype=torch.float64) + 3).to(dtype).to(memory_format=layout)
            with irnext.use_backend("cpu"):
                mean = ops.spatial_mean(x)
            assert mean.dtype == wide
            torch.testing.assert_close(
                mean.double(), x.double().mean((2, 3)), rtol=1e-12 if wide == torch.float64 else 3e-7, atol=0
            )
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(ops.spatial_mean, x)
    assert gradgradcheck(ops.spatial_mean, x)


@COMPILED
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_do_not_depend_on_the_number_of_threads(layout):
    torch.manual_seed(0)
    x, u = torch.randn(2, 1, 8, 150, 160)
    x, u = (t[None].to(memory_format=layout) for t in (x[0], u[0]))
    kernel = torch.randn(1, 2, 3, 3)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = gradients(ops.dynamic_conv2d, (x, kernel), u)
            results.append([*found, ops.spatial_mean(x)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias_kind", BIASES)
@pytest.mark.parametrize("size", [(3, 3), (1, 5), (5, 1), (5, 5)])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_gradients_and_their_gradients(mode, dilation, size, bias_kind, per_channel, backend):
    torch.manual_seed(0)
    rows, columns = (2 + dilation * (k // 2) for k in size)
    x = torch.randn(1, 2, rows, columns, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(1, 2 if per_channel else 1, *size, dtype=torch.float64, requires_grad=True)
    bias = make_bias(bias_kind, *x.shape)
    inputs = (x, kernel) if bias is None else (x, kernel, bias.requires_grad_())

    def function(x, kernel, bias=None):
        return ops.dynamic_conv2d(x, kernel, bias, dilation, mode)

    with irnext.use_backend(backend):
        assert gradcheck(function, inputs, fast_mode=True)
        assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_exhaustive_gradient_check_of_the_published_filter(backend):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with irnext.use_backend(backend):
        assert gradcheck(ops.dynamic_conv2d, (x, kernel, bias))
        assert gradgradcheck(ops.dynamic_conv2d, (x, kernel, bias))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("bias_kind", BIASES)
def test_registration_is_complete(bias_kind, layout, device):
    x = torch.randn(2, 4, 6, 9, device=device)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    if layout == "sliced":
        x = x[..., 1:8]
    kernel = torch.randn(2, 2, 3, 3, device=device, requires_grad=True)
    bias = make_bias(bias_kind, *x.shape)
    bias = None if bias is None else bias.float().to(device).requires_grad_()
    x = x.detach().requires_grad_()
    torch.library.opcheck(torch.ops.irnext.dynamic_conv2d.default, (x, kernel, bias, 1, "reflect"))
    torch.library.opcheck(torch.ops.irnext.dynamic_conv2d.default, (x, kernel))
    torch.library.opcheck(torch.ops.irnext.spatial_mean.default, (x,))
    grad = torch.randn_like(x, requires_grad=True)
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        torch.library.opcheck(
            torch.ops.irnext.dynamic_conv2d_backward.default, (grad, x, kernel, 1, "zeros", *needs)
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pool_pyramid", ([4, 2],)),
        ("merge_pyramid", ([torch.randn(2, 4, 3, 4), torch.randn(2, 4, 5, 6)],)),
        ("conv2d_bias_act", (torch.randn(3, 4, 3, 3), torch.randn(3), "gelu", torch.randn(2, 3, 8, 9))),
    ],
)
def test_registration_of_the_composite_operators(name, arguments):
    x = torch.randn(2, 4, 8, 9, requires_grad=True)
    operator = getattr(torch.ops.irnext, name)
    torch.library.opcheck(operator.default, (x, *arguments))
    expected = getattr(reference, name)(x, *arguments)
    torch.testing.assert_close(operator(x, *arguments), expected)
    torch.testing.assert_close(getattr(ops, name)(x, *arguments), expected)


@COMPILED
def test_the_library_and_python_declare_the_same_schemas():
    for name, schema in registration.SCHEMAS.items():
        declared = torch._C.parse_schema(f"irnext::{name}{schema}")
        assert str(getattr(torch.ops.irnext, name).default._schema) == str(declared)


def direct_local_mean(x, window):
    """The definition by explicit windows: valid means, replicated to the border."""
    h, w = x.shape[2:]
    rows, columns = min(window[0], h), min(window[1], w)
    mean = torch.nn.functional.avg_pool2d(x, (rows, columns), stride=1)
    top, left = (h - mean.shape[2]) // 2, (w - mean.shape[3]) // 2
    i = (torch.arange(h) - top).clamp(0, mean.shape[2] - 1)
    j = (torch.arange(w) - left).clamp(0, mean.shape[3] - 1)
    return mean[:, :, i][:, :, :, j]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("window", [(1, 1), (3, 4), (6, 5), (9, 11), (100, 2)])
def test_local_mean_follows_the_definition(window, backend):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64, requires_grad=True)
    with irnext.use_backend(backend):
        torch.testing.assert_close(ops.local_mean(x, window), direct_local_mean(x, window))
        assert gradcheck(lambda x: ops.local_mean(x, window), x, fast_mode=True)
        assert gradgradcheck(lambda x: ops.local_mean(x, window), x, fast_mode=True)
        for dtype in (torch.float16, torch.bfloat16):
            # Large values: a running sum in half precision would overflow or lose everything.
            big = (1000 + torch.randn(1, 1, 50, 70)).to(dtype)
            expected = direct_local_mean(big.double(), window)
            torch.testing.assert_close(ops.local_mean(big, window), expected.to(dtype))
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.detach().to(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.irnext.local_mean.default, (leaf, window))
        torch.library.opcheck(torch.ops.irnext.local_mean_backward.default, (leaf, window))


def test_pyramids_and_fused_convolution_follow_their_definitions():
    torch.manual_seed(0)
    functional = torch.nn.functional
    x = torch.randn(2, 4, 16, 24, dtype=torch.float64, requires_grad=True)
    pools = ops.pool_pyramid(x, (8, 4, 2))
    for pool, rate in zip(pools, (8, 4, 2), strict=True):
        blocks = x.unflatten(3, (-1, rate)).unflatten(2, (-1, rate)).mean((3, 5))
        torch.testing.assert_close(pool, blocks)
    # align_corners=True maps corners to corners: rows of weights from the definition.
    branch = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)

    def weights(small, large):
        position = torch.arange(large, dtype=torch.float64) * (small - 1) / (large - 1)
        return (1 - (position[:, None] - torch.arange(small)).abs()).clamp_min(0)

    expanded = torch.einsum("hi,ncij,wj->nchw", weights(5, 16), branch, weights(7, 24))
    total = x + expanded
    expected = total * 0.5 * (1 + torch.erf(total / 2**0.5))
    torch.testing.assert_close(ops.merge_pyramid(x, [branch]), expected)
    assert gradcheck(lambda x, b: ops.merge_pyramid(x, [b]), (x, branch), fast_mode=True)

    weight, bias = torch.randn(3, 4, 3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    residual = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    padded = functional.pad(x, (2, 2, 1, 1))
    plain = functional.conv2d(padded, weight, bias)
    torch.testing.assert_close(
        ops.conv2d_bias_act(x, weight, bias, "gelu", residual), functional.gelu(plain) + residual
    )
    torch.testing.assert_close(ops.conv2d_bias_act(x, weight), plain - bias[:, None, None])


@COMPILED
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sums_of_long_rows_keep_their_digits(layout):
    torch.manual_seed(0)
    x, u = (torch.randn(1, 16, 2, 50000).to(memory_format=layout) + 1 for _ in range(2))
    kernel = torch.randn(1, 16, 3, 3)
    assert_as_good_as_pytorch(
        lambda x, k: ops.dynamic_conv2d(x, k, None, 1, "replicate"),
        lambda x, k: reference.dynamic_conv2d(x, k, None, 1, "replicate"),
        (x, kernel),
        u,
    )
    torch.testing.assert_close(ops.spatial_mean(x).double(), x.double().mean((2, 3)), rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", ["row", "column"])
def test_bias_gradients_are_summed_in_float32(kind):
    x = torch.zeros(1, 2, 300, 300, dtype=torch.float16)
    bias = make_bias(kind, *x.shape).float().requires_grad_()
    kernel = torch.zeros(1, 1, 3, 3)
    y = ops.dynamic_conv2d(x, kernel, bias)
    y.backward(torch.full_like(y, 300))  # 90000 is beyond float16
    assert (bias.grad == 90000).all()


@pytest.mark.parametrize("shape", [(1, 2, 0, 5), (1, 2, 5, 0), (0, 2, 5, 5)])
def test_empty_planes_and_batches(shape):
    for backend in CPU_BACKENDS:
        with irnext.use_backend(backend):
            x = torch.zeros(shape, requires_grad=True)
            kernel = torch.zeros(shape[0], 1, 3, 3, requires_grad=True)
            y = ops.dynamic_conv2d(x, kernel, padding_mode="zeros")
            assert y.shape == shape
            (y.sum() + ops.spatial_mean(x).nan_to_num().sum()).backward()
            assert x.grad.shape == shape


def attention_inputs(n: int = 3, c: int = 6, size=(5, 7), groups: int = 2, kernel_size=(3, 3)):
    """x, the parameters and the statistics of one local attention in float64, and u; gains are not zero."""
    taps = groups * kernel_size[0] * kernel_size[1]

    def numbers(*shape):
        return torch.randn(shape, dtype=torch.float64)

    x, u = numbers(n, c, *size), numbers(n, c, *size)
    parameters = (numbers(taps, c) / c**0.5, 1 + 0.3 * numbers(taps), 0.3 * numbers(taps))
    statistics = (0.1 * numbers(taps), 0.5 + numbers(taps).square())
    return x, parameters, statistics, (numbers(c), numbers(c, 1, 1), numbers(c)), u


def published_attention(x, parameters, statistics, gains, kernel_size, training, activation, window):
    """y by the published steps, independent of the operators: unfold, weight, sum, modulate."""
    weight, norm_weight, norm_bias = parameters
    n, _, height, width = x.shape
    mean = x.mean((2, 3))
    z = mean @ weight.flatten(1).T
    centre, spread = (z.mean(0), z.var(0, correction=0)) if training else statistics
    logits = (z - centre) / (spread + 1e-5).sqrt() * norm_weight + norm_bias
    logits = logits.view(n, -1, kernel_size[0] * kernel_size[1])
    attention = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "softmax": lambda a: a.softmax(2)}[activation](
        logits
    )
    rows, columns = kernel_size[0] // 2, kernel_size[1] // 2
    padded = torch.nn.functional.pad(x, (columns, columns, rows, rows), "reflect")
    copies = torch.nn.functional.unfold(padded, kernel_size).view(
        n, attention.shape[1], -1, logits.shape[2], height * width
    )
    response = (copies * attention[:, :, None, :, None]).sum(3).view_as(x)
    low, inner, high = (gain.view(-1, 1, 1) for gain in gains)
    around = mean[..., None, None] if window is None else direct_local_mean(x, window)
    return low * ((1 + inner) * response - inner * around) + (1 + high) * x


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("window", [None, (2, 5)])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_local_attention_follows_the_published_steps(activation, window, training, backend):
    torch.manual_seed(0)
    for kernel_size in ((3, 3), (5, 3)):
        x, parameters, statistics, gains, u = attention_inputs(kernel_size=kernel_size)
        inputs = [t.requires_grad_() for t in (x, *parameters, *gains)]

        def ours(x, *rest, statistics=statistics, size=kernel_size):
            return ops.local_attention(
                x, *rest[:3], *statistics, *rest[3:], size, training, 1e-5, activation, window
            )

        with irnext.use_backend(backend):
            y, mean, logit_mean, logit_var = ours(*inputs)
            found = torch.autograd.grad(y, inputs, u)
        z = x.mean((2, 3)) @ parameters[0].T
        torch.testing.assert_close(mean, x.mean((2, 3)))
        if training:
            torch.testing.assert_close(logit_mean, z.mean(0))
            torch.testing.assert_close(logit_var, z.var(0, correction=0))
        expected = published_attention(
            x, parameters, statistics, gains, kernel_size, training, activation, window
        )
        torch.testing.assert_close(y, expected)
        for f, e in zip(found, torch.autograd.grad(expected, inputs, u), strict=True):
            torch.testing.assert_close(f, e)
    with irnext.use_backend(backend):
        assert gradcheck(lambda *a: ours(*a)[0], inputs, fast_mode=True)
        assert gradgradcheck(lambda *a: ours(*a)[0], inputs, fast_mode=True)
    torch.library.opcheck(
        torch.ops.irnext.local_attention.default,
        (*inputs[:4], *statistics, *inputs[4:], kernel_size, training, 1e-5, activation, window),
    )


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradients_that_are_differentiated_again_follow_each_path_once(backend):
    """An attention applied to its own result: x then depends on the parameters as well."""
    x, parameters, statistics, gains, _ = attention_inputs()
    wanted = [t.requires_grad_() for t in (x, *parameters, *gains)]

    def loss():
        y = x
        for _ in range(2):
            y = ops.local_attention(y, *parameters, *statistics, *gains)[0]
        return y.square().sum()

    with irnext.use_backend(backend):
        plain = torch.autograd.grad(loss(), wanted)
        differentiable = torch.autograd.grad(loss(), wanted, create_graph=True)
    torch.testing.assert_close(differentiable, plain)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autocast_does_not_touch_the_prediction_of_the_filter(backend):
    x, parameters, statistics, gains, _ = attention_inputs()
    x, *rest = (t.float() for t in (x, *parameters, *statistics, *gains))
    with irnext.use_backend(backend):
        expected = ops.local_attention(x, *rest)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ops.local_attention(x, *rest)[0], expected)


def test_transforms_of_functions_work():
    x, parameters, statistics, gains, u = attention_inputs()

    def loss(x):
        return (ops.local_attention(x, *parameters, *statistics, *gains)[0] * u).sum()

    torch.testing.assert_close(
        torch.func.grad(loss)(x), torch.autograd.grad(loss(x.requires_grad_()), x)[0].detach()
    )


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autograd_notices_that_running_statistics_have_moved(backend):
    x, parameters, (centre, spread), gains, u = attention_inputs()
    with irnext.use_backend(backend):
        y = ops.local_attention(x.requires_grad_(), *parameters, centre, spread, *gains)[0]
        batch = torch.zeros_like(centre), torch.ones_like(spread)
        ops.update_statistics(centre, spread, torch.zeros((), dtype=torch.int64), *batch, 2, 0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward(u)


@COMPILED
def test_one_compiled_graph_serves_all_sizes():
    _, parameters, statistics, gains, _ = attention_inputs()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(backend=counter, dynamic=True, fullgraph=True)
    def attend(x):
        height, width = x.shape[2:]
        window = height // 2, width // 2
        return ops.local_attention(x, *parameters, *statistics, *gains, window=window)[0]

    for height, width in ((7, 8), (10, 9), (12, 5), (9, 30)):
        x = torch.randn(2, 6, height, width, dtype=torch.float64)
        window = height // 2, width // 2
        expected = ops.local_attention(x, *parameters, *statistics, *gains, window=window)[0]
        torch.testing.assert_close(attend(x), expected)
    assert counter.frame_count == 1


def test_only_wanted_gradients_of_the_attention_are_given():
    x, parameters, statistics, gains, u = attention_inputs()
    gains[1].requires_grad_()
    y = ops.local_attention(x, *parameters, *statistics, *gains)[0]
    (found,) = torch.autograd.grad(y, gains[1], u)
    expected = published_attention(x, parameters, statistics, gains, (3, 3), False, "tanh", None)
    torch.testing.assert_close(found, torch.autograd.grad(expected, gains[1], u)[0])


def test_local_attention_names_what_is_wrong():
    x, parameters, statistics, gains, _ = attention_inputs()
    weight, norm_weight, norm_bias = parameters

    def call(x=x, weight=weight, norm_bias=norm_bias, statistics=statistics, gains=gains, **options):
        return ops.local_attention(x, weight, norm_weight, norm_bias, *statistics, *gains, **options)

    for error, message, arguments in (
        (ValueError, r"x must be \(N, C, H, W\)", {"x": x[0]}),
        (ValueError, "smaller than the plane, which is 1x7", {"x": x[:, :, :1]}),
        (ValueError, "kernel_size is", {"kernel_size": (2, 3)}),
        (ValueError, "weight is", {"weight": weight[:-1]}),
        (ValueError, "weight is", {"weight": weight[:, :-1]}),
        (ValueError, "norm_bias has shape", {"norm_bias": norm_bias[1:]}),
        (ValueError, "low has shape", {"gains": (gains[0][1:], *gains[1:])}),
        (ValueError, "weight is", {"weight": torch.zeros(())}),
        (ValueError, "norm_bias is None: it is needed", {"norm_bias": None}),
        (ValueError, "running_mean is None", {"statistics": (None, None)}),
        (ValueError, "running_mean has shape", {"statistics": [t[None] for t in statistics]}),
        (ValueError, "norm_bias is on meta but x is on cpu", {"norm_bias": norm_bias.to("meta")}),
        (TypeError, "weight is torch.float32: for x in torch.float64", {"weight": weight.float()}),
        (TypeError, "for x in torch.float16 it must be torch.float32", {"x": x.half()}),
        (ValueError, "more than one sample", {"x": x[:1], "training": True}),
        (ValueError, "unknown activation 'relu'", {"activation": "relu"}),
        (ValueError, "window is", {"window": (0, 3)}),
    ):
        with pytest.raises(error, match=message):
            call(**arguments)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_those_of_batch_normalisation(momentum, backend):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(5, momentum=momentum).double()
    running = norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()
    with irnext.use_backend(backend):
        for n in (2, 7):
            z = torch.randn(n, 5, dtype=torch.float64)
            norm(z)
            ops.update_statistics(*running, z.mean(0), z.var(0, correction=0), n, momentum)
    for found, expected in zip(running, norm.buffers(), strict=True):
        torch.testing.assert_close(found, expected)
    good = (*running, torch.zeros(5).double(), torch.ones(5).double(), 2, 0.1)
    torch.library.opcheck(torch.ops.irnext.update_statistics.default, good)
    for error, message, arguments in (
        (ValueError, "one shape", (*good[:3], torch.zeros(4), *good[4:])),
        (ValueError, "count is 1", (*good[:5], 1, 0.1)),
        (ValueError, "int64", (*good[:2], torch.zeros(1), *good[3:])),
        (TypeError, "float32 or all float64", (*good[:3], good[3].float(), *good[4:])),
    ):
        with pytest.raises(error, match=message):
            ops.update_statistics(*arguments)


def test_forward_mode_derivatives_are_not_lost():
    torch.manual_seed(0)
    x, kernel, direction = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    _, tangent = torch.func.jvp(lambda k: ops.dynamic_conv2d(x, k), (kernel,), (direction,))
    torch.testing.assert_close(tangent, ops.dynamic_conv2d(x, direction))


def test_planes_of_one_pixel_where_the_mode_allows():
    x = torch.full((1, 2, 1, 1), 2.0)
    kernel = torch.ones(1, 1, 3, 3)
    for backend in CPU_BACKENDS:
        with irnext.use_backend(backend):
            assert ops.dynamic_conv2d(x, kernel, padding_mode="zeros").flatten().tolist() == [2, 2]
            assert ops.dynamic_conv2d(x, kernel, padding_mode="replicate").flatten().tolist() == [18, 18]
            with pytest.raises(ValueError, match="must be smaller than the plane, which is 1x1"):
                ops.dynamic_conv2d(x, kernel)


X = torch.zeros(2, 8, 6, 7)
KERNEL = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"x must be \(N, C, H, W\)", (X[0], KERNEL)),
        (TypeError, "x must be floating point, got torch.int64", (X.long(), KERNEL)),
        (ValueError, r"kernel must be \(N, G or C, kh, kw\)", (X, KERNEL[0])),
        (ValueError, "kernel is for 1 samples but x has 2", (X, KERNEL[:1])),
        (ValueError, "3 groups, which do not divide x's 8 channels", (X, KERNEL[:, :3])),
        (ValueError, "kernel is 2x3: both sides must be odd", (X, KERNEL[:, :, :2])),
        (ValueError, "bias has shape", (X, KERNEL, torch.zeros(2, 4))),
        (ValueError, "bias has shape", (X, KERNEL, torch.zeros(2, 8, 1, 1))),
        (TypeError, "kernel is torch.float64 but x is torch.float32", (X, KERNEL.double())),
        (TypeError, "kernel is torch.float16 but x is torch.bfloat16", (X.bfloat16(), KERNEL.half())),
        (TypeError, "bias is torch.int32", (X, KERNEL, torch.zeros(2, 8, dtype=torch.int32))),
        (ValueError, "kernel is on meta but x is on cpu", (X, KERNEL.to("meta"))),
        (ValueError, "dilation is 0", (X, KERNEL, None, 0)),
        (ValueError, "reaches farther than 1024 pixels", (X, KERNEL, None, 2**57, "zeros")),
        (ValueError, "dilation 6.*smaller than the plane, which is 6x7", (X, KERNEL, None, 6)),
        (
            ValueError,
            "unknown padding_mode 'circular': choose one of reflect",
            (X, KERNEL, None, 1, "circular"),
        ),
    ],
)
def test_a_wrong_argument_is_named(error, message, arguments, backend):
    with irnext.use_backend(backend), pytest.raises(error, match=message):
        ops.dynamic_conv2d(*arguments)


@COMPILED
@pytest.mark.parametrize(
    "arguments",
    [
        (X[0], KERNEL),
        (X, KERNEL[:1]),
        (X, KERNEL[:, :3]),
        (X, KERNEL[:, :, :2]),
        (X, KERNEL, torch.zeros(2, 4)),
        (X, KERNEL, None, 0),
        (X, KERNEL, None, 6),
        (X, KERNEL, None, 2**57, "zeros"),
        (X, KERNEL, None, 1, "circular"),
        (X.long(), KERNEL),
    ],
)
def test_the_library_itself_refuses_what_would_read_outside_memory(arguments):
    with pytest.raises(RuntimeError):
        torch.ops.irnext.dynamic_conv2d(*arguments)


def test_other_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="window is"):
        ops.local_mean(X, (0, 3))
    with pytest.raises(ValueError, match="rates"):
        ops.pool_pyramid(X, (8,))
    with pytest.raises(ValueError, match="a branch has shape"):
        ops.merge_pyramid(X, [X[:, :4]])
    with pytest.raises(ValueError, match="weight has shape"):
        ops.conv2d_bias_act(X, torch.zeros(4, 3, 3, 3))
    with pytest.raises(ValueError, match="unknown activation 'relu'"):
        ops.conv2d_bias_act(X, torch.zeros(4, 8, 3, 3), activation="relu")


def test_backends_are_chosen_by_name_and_explain_themselves():
    status = irnext.backends()
    assert list(status) == ["reference", "cpu", "cuda", "triton", "cuda-host"]
    assert all(s.reason for s in status.values())
    with pytest.raises(ValueError, match="unknown backend 'cudnn': choose one of auto, reference, cpu"):
        irnext.use_backend("cudnn")
    for name, found in status.items():
        if not found:
            with pytest.raises(RuntimeError, match=f"backend '{name}' cannot be used: "):
                irnext.use_backend(name)
    if status["cpu"]:
        with irnext.use_backend("cpu"), pytest.raises(RuntimeError, match="x is on meta, not on the CPU"):
            ops.spatial_mean(X.to("meta"))


class CountOperators(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the registered operators that run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "irnext"
        return func(*args, **(kwargs or {}))


def count_operators() -> int:
    with CountOperators() as counter:
        ops.spatial_mean(X)
    return counter.count


@COMPILED
def test_the_chosen_backend_is_the_one_that_runs():
    assert count_operators() == 1
    with irnext.use_backend("reference"):
        assert count_operators() == 0
        with irnext.use_backend("cpu"):
            assert count_operators() == 1
        assert count_operators() == 0
        again = irnext.use_backend("cpu")
        with again, again:
            assert count_operators() == 1
        assert count_operators() == 0
    assert count_operators() == 1


@pytest.mark.parametrize(("name", "expected"), [("reference", "fine"), ("cudnn", "unknown backend 'cudnn'")])
def test_the_environment_chooses_the_backend(name, expected):
    code = (
        "import torch, irnext\n"
        "try:\n"
        "    irnext.ops.spatial_mean(torch.zeros(1, 1, 2, 2))\n"
        "    print('fine')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "IRNEXT_BACKEND": name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(expected)
