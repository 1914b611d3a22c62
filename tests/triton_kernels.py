"""The Triton kernels against the definitions: run by test_triton.py, where the kernels can run.

On a CUDA device, or with TRITON_INTERPRET=1 on the CPU, which needs a process of its own. The
interpreter takes milliseconds for every program, so the planes are tiny.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from irnext.kernels import configuration
from irnext.kernels.launch import needs_int64, recording
from irnext.kernels.ops import OPERATORS
from torch.nn import functional
from triton_support import DEVICE, FLOOR, LAYOUTS, assert_as_good, draw, lay_out, poisoned  # noqa: F401

from irnext.ops import reference

# Several tiles in every direction and several splits of every sum, even of tiny planes.
SMALL_TILES = configuration.Config(4, 8, 4, programs=9, warps=1, stages=1)


@pytest.fixture(params=["default tiles", "small tiles"])
def tiles(request):
    if request.param == "default tiles":
        yield request.param
    else:
        with configuration.override(SMALL_TILES):
            yield request.param


def gradients(function, inputs, u):
    """The output of `function` and the gradients of its inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, u)]


# ---- the filter ----------------------------------------------------------------------------------

PLANE = (7, 10)
BIASES = {"none": None, "plane": (1, 1), "row": (7, 1), "column": (1, 10), "full": PLANE}
FILTERS = list(
    zip(
        itertools.cycle(((3, 3), (1, 5), (5, 1), (3, 3), (1, 1), (3, 5), (3, 3))),
        itertools.cycle((1, 3, 2)),
        itertools.cycle(("reflect", "zeros", "replicate", "reflect")),
        itertools.cycle(BIASES),
        itertools.cycle((1, 2)),
        range(40),
        strict=False,
    )
)


def filter_fits(size, dilation, mode, plane) -> bool:
    return mode != "reflect" or all(dilation * (k // 2) < side for k, side in zip(size, plane, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_filter_and_its_gradients(dtype, layout, tiles):
    n, c, (h, w) = 1, 2, PLANE
    number = LAYOUTS.index(layout) * len(FLOOR) + list(FLOOR).index(dtype)
    drawn = FILTERS[number], FILTERS[number + 20]
    for size, dilation, mode, kind, groups, i in drawn if tiles == "small tiles" else drawn[:1]:
        if not filter_fits(size, dilation, mode, (h, w)):
            dilation = 1
        x = lay_out(draw(n, c, h, w, dtype=dtype), layout)
        if layout == "mixed":
            x = lay_out(x, "channels_last")
        u = lay_out(draw(n, c, h, w, dtype=dtype), layout)
        small = dtype if i % 2 or dtype == torch.float64 else torch.float32
        kernel = draw(n, groups, *size, dtype=small)
        bias = None
        if kind != "none":
            bias = draw(n, c, *BIASES[kind], dtype=small)
            bias = bias[..., 0, 0] if kind == "plane" else bias

        def definition(x, kernel, bias=bias, arguments=(dilation, mode)):
            bias = None if bias is None else bias.to(x.dtype) if x.dtype == torch.float64 else bias
            return reference.dynamic_conv2d(x, kernel, bias, *arguments)

        y = OPERATORS["dynamic_conv2d"](x, kernel, bias, dilation, mode)
        dx, dkernel, total = OPERATORS["dynamic_conv2d_backward"](
            u, x, kernel, dilation, mode, True, True, True
        )
        assert y.stride() == dx.stride() == torch.empty_like(x).stride()
        plain = gradients(definition, (x, kernel), u)
        exact = gradients(definition, (x.double(), kernel.double()), u.double())
        plain.append(u.sum((2, 3), dtype=total.dtype))
        exact.append(u.double().sum((2, 3)))
        assert_as_good((y, dx, dkernel, total), plain, exact, dtype)


@pytest.mark.parametrize("mode", ["reflect", "zeros", "replicate"])
@pytest.mark.parametrize("size", [(3, 3), (5, 5)])
def test_every_border_pixel_gets_its_gradient(size, mode):
    """Planes that filters just fit: both borders meet in every pixel."""
    plane = [k // 2 + 1 for k in size]
    x, u = draw(1, 1, *plane, dtype=torch.float64), draw(1, 1, *plane, dtype=torch.float64)
    kernel = draw(1, 1, *size, dtype=torch.float64)
    found = OPERATORS["dynamic_conv2d_backward"](u, x, kernel, 1, mode, True, True, False)
    expected = gradients(lambda x, k: reference.dynamic_conv2d(x, k, None, 1, mode), (x, kernel), u)
    for f, e in zip(found[:2], expected[1:], strict=True):
        torch.testing.assert_close(f, e)


def test_filters_with_more_taps_than_registers():
    x, u, kernel = draw(1, 2, 5, 6), draw(1, 2, 5, 6), draw(1, 1, 7, 7)
    found = OPERATORS["dynamic_conv2d_backward"](u, x, kernel, 1, "zeros", False, True, True)
    expected = gradients(
        lambda k: reference.dynamic_conv2d(x.double(), k, None, 1, "zeros"), (kernel.double(),), u.double()
    )
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2], u.sum((2, 3)))


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3)))
def test_only_what_is_needed_is_computed(needs):
    x, u, kernel = draw(1, 2, 4, 4), draw(1, 2, 4, 4), draw(1, 1, 3, 3)
    everything = OPERATORS["dynamic_conv2d_backward"](u, x, kernel, 1, "reflect", True, True, True)
    found = OPERATORS["dynamic_conv2d_backward"](u, x, kernel, 1, "reflect", *needs)
    for need, f, expected in zip(needs, found, everything, strict=True):
        assert torch.equal(f, expected) if need else f.numel() == 0


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_empty_planes_and_batches(shape):
    x, kernel = draw(*shape), draw(shape[0], 1, 3, 3)
    assert OPERATORS["dynamic_conv2d"](x, kernel, None, 1, "zeros").shape == shape
    dx, dkernel, total = OPERATORS["dynamic_conv2d_backward"](x, x, kernel, 1, "zeros", True, True, True)
    assert dx.shape == shape
    assert (dkernel == 0).all()
    assert (total == 0).all()
    assert OPERATORS["spatial_mean"](x).shape == shape[:2]
    assert OPERATORS["local_mean"](x, (3, 3)).shape == shape
    assert OPERATORS["local_mean_backward"](x, (3, 3)).shape == shape


@pytest.mark.parametrize(
    "arguments",
    [
        (draw(2, 8, 6, 7), draw(1, 4, 3, 3)),
        (draw(2, 8, 6, 7), draw(2, 3, 3, 3)),
        (draw(2, 8, 6, 7), draw(2, 4, 2, 3)),
        (draw(2, 8, 6, 7), draw(2, 4, 3, 3), None, 6),
        (draw(2, 8, 6, 7), draw(2, 4, 3, 3), None, 0),
    ],
)
def test_what_would_read_outside_memory_is_refused(arguments):
    with pytest.raises(RuntimeError, match=r"does not fit|must be smaller"):
        OPERATORS["dynamic_conv2d"](*arguments)


def test_offsets_beyond_32_bits():
    """The second sample begins 2^31 numbers after the first; the memory between is never touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    stride = 2**31
    x = torch.empty(stride + 20, dtype=torch.float16, device=DEVICE).as_strided(
        (2, 1, 4, 5), (stride, 20, 5, 1)
    )
    assert needs_int64(x)
    numbers, kernel, u = draw(2, 1, 4, 5, dtype=torch.float16), draw(2, 1, 3, 3), draw(2, 1, 4, 5)
    x.copy_(numbers)
    u = u.half()
    torch.testing.assert_close(OPERATORS["spatial_mean"](x), numbers.float().mean((2, 3)))
    torch.testing.assert_close(
        OPERATORS["dynamic_conv2d"](x, kernel),
        reference.dynamic_conv2d(numbers, kernel),
        rtol=2e-3,
        atol=2e-3,
    )
    found = OPERATORS["dynamic_conv2d_backward"](u, x, kernel, 1, "reflect", False, True, False)[1]
    expected = OPERATORS["dynamic_conv2d_backward"](u, numbers, kernel, 1, "reflect", False, True, False)[1]
    assert torch.equal(found, expected)
    assert torch.equal(OPERATORS["local_mean"](x, (3, 2)), OPERATORS["local_mean"](numbers, (3, 2)))


# ---- means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR)
def test_spatial_mean(dtype, layout, tiles):
    for shape in ((2, 3, 9, 13), (1, 5, 1, 1), (1, 2, 33, 20)):
        x = lay_out(draw(*shape, dtype=dtype) + 3, layout)
        mean = OPERATORS["spatial_mean"](x)
        assert mean.dtype == reference.accumulation_dtype(dtype)
        rtol = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(mean.double(), x.double().mean((2, 3)), rtol=rtol, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("window", [(3, 4), (5, 6), (100, 2), (1, 5), (4, 1), (1, 1)])
def test_local_mean_and_its_adjoint(window, layout):
    x = lay_out(draw(1, 2, 5, 6, dtype=torch.float64), layout)
    mean = OPERATORS["local_mean"](x, window)
    assert mean.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(mean, reference.local_mean(x, window))
    adjoint = OPERATORS["local_mean_backward"](x, window)
    torch.testing.assert_close(adjoint, reference.local_mean_backward(x, window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_local_means_keep_their_digits(dtype):
    """Windows longer than a tile, of large numbers: a running sum would lose the digits."""
    for plane, window in (((4, 300), (3, 290)), ((300, 4), (290, 3))):
        x = (1000 + draw(1, 1, *plane)).to(dtype)
        expected = reference.local_mean(x.double(), window).to(dtype)
        tolerance = {"rtol": 6e-7, "atol": 0} if dtype == torch.float32 else {}
        torch.testing.assert_close(OPERATORS["local_mean"](x, window), expected, **tolerance)
        if dtype == torch.float32:
            expected = reference.local_mean_backward(x.double(), window).to(dtype)
            found = OPERATORS["local_mean_backward"](x, window)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3)


# ---- local attention -----------------------------------------------------------------------------


def attention_arguments(n, c, h, w, groups, size, dtype, layout="contiguous"):
    """x and the parameters of one local attention, the statistics after norm_bias."""
    logits = groups * size[0] * size[1]
    wide = reference.accumulation_dtype(dtype)
    x = lay_out((draw(n, c, h, w, dtype=dtype) + draw(n, c, 1, 1, dtype=dtype)), layout)
    weight = draw(logits, c, 1, 1, dtype=wide)
    vectors = [draw(logits, dtype=wide) for _ in range(4)]
    vectors[3] = vectors[3].abs() + 0.5
    gains = [draw(c, dtype=wide), draw(c, 1, 1, dtype=wide), draw(c, dtype=wide)]
    return [x, weight, *vectors, *gains]


def check_attention(inputs, u, options, dtype):
    training = options[1]
    found = OPERATORS["local_attention"](*inputs, *options)
    plain = reference.local_attention(*inputs, *options)
    double = [t.double() for t in inputs]
    exact = reference.local_attention(*double, *options)
    assert found[0].stride() == torch.empty_like(inputs[0]).stride()
    statistics = found[2:] if training else inputs[4:6]

    def backward(function, inputs, u, mean, statistics):
        x, weight, norm_weight, norm_bias, _, _, *gains = inputs
        return function(u, x, mean, weight, norm_weight, norm_bias, *statistics, *gains, *options)

    found_back = backward(OPERATORS["local_attention_backward"], inputs, u, found[1], statistics)
    plain_back = backward(reference.local_attention_backward, inputs, u, plain[1], statistics)
    exact_back = backward(
        reference.local_attention_backward, double, u.double(), exact[1], [s.double() for s in statistics]
    )
    assert_as_good((*found, *found_back), (*plain, *plain_back), (*exact, *exact_back), dtype)


@pytest.mark.parametrize(
    ("training", "window", "dtype"),
    [
        *((True, None, dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)),
        *((False, (2, 3), dtype) for dtype in (torch.float32, torch.float16)),
    ],
)
def test_local_attention_and_its_gradients(training, window, dtype):
    index = list(FLOOR).index(dtype) + 2 * training + (window is not None)
    activation = ("tanh", "sigmoid", "softmax")[index % 3]
    layout = ("contiguous", "channels_last", "sliced", "permuted")[(index + training) % 4]
    inputs = attention_arguments(3, 4, 3, 5, 2, (3, 3), dtype, layout)
    u = lay_out(draw(3, 4, 3, 5, dtype=dtype), layout)
    check_attention(inputs, u, ((3, 3), training, 1e-5, activation, window), dtype)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize(
    ("size", "training", "window"),
    [((3, 3), False, None), ((1, 5), True, None), ((3, 3), True, (2, 3)), ((5, 1), False, None)],
)
def test_local_attention_of_every_activation(size, training, window, activation):
    plane = (3, 9) if window else (5, 9)  # several of the small tiles in a row; means of windows take long
    inputs = attention_arguments(2, 2, *plane, 1, size, torch.float64)
    u = draw(2, 2, *plane, dtype=torch.float64)
    with configuration.override(SMALL_TILES):
        check_attention(inputs, u, (size, training, 1e-3, activation, window), torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_local_attention_of_more_samples_than_a_tile(training, monkeypatch):
    """More samples, channels and taps than the small kernels' tiles hold."""
    monkeypatch.setattr("irnext.kernels.ops.PREDICT_ELEMENTS", 32)
    inputs = attention_arguments(5, 2, 2, 2, 1, (3, 3), torch.float64)
    u = draw(5, 2, 2, 2, dtype=torch.float64)
    check_attention(inputs, u, ((3, 3), training, 1e-5, "tanh", None), torch.float64)


def test_local_attention_of_a_filter_with_many_taps():
    inputs = attention_arguments(2, 2, 5, 5, 1, (5, 7), torch.float64)
    u = draw(2, 2, 5, 5, dtype=torch.float64)
    check_attention(inputs, u, ((5, 7), False, 1e-5, "tanh", None), torch.float64)


def test_local_attention_of_an_empty_batch():
    inputs = attention_arguments(0, 4, 5, 5, 2, (3, 3), torch.float32)
    options = ((3, 3), False, 1e-5, "tanh", None)
    y, mean, *statistics = OPERATORS["local_attention"](*inputs, *options)
    assert y.shape == (0, 4, 5, 5)
    assert mean.shape == (0, 4)
    assert [s.shape for s in statistics] == [(0,), (0,)]
    x, weight, *rest = inputs
    dx, *others = OPERATORS["local_attention_backward"](x, x, mean, weight, *rest, *options)
    assert dx.shape == x.shape
    assert [t.shape for t in others] == [(18, 4), (18,), (18,), (4,), (4,), (4,)]
    assert all((t == 0).all() for t in others)


def test_local_attention_refuses_what_does_not_fit():
    x, weight, *rest = attention_arguments(1, 4, 5, 5, 2, (3, 3), torch.float32)
    options = ((3, 3), False, 1e-5, "tanh", None)
    with pytest.raises(RuntimeError, match="does not fit"):
        OPERATORS["local_attention"](x, weight[:-1], *rest, *options)
    with pytest.raises(RuntimeError, match="must be smaller"):
        OPERATORS["local_attention"](x[..., :1], weight, *rest, *options)


def test_local_attention_takes_few_launches():
    inputs = [t.to("meta") for t in attention_arguments(8, 32, 16, 16, 8, (3, 3), torch.float32)]
    x, weight, *rest = inputs
    options = ((3, 3), True, 1e-5, "tanh", None)
    with recording() as forward:
        y, mean, *statistics = OPERATORS["local_attention"](*inputs, *options)
    with recording() as backward:
        OPERATORS["local_attention_backward"](y, x, mean, weight, *rest[:2], *statistics, *rest[4:], *options)
    assert [launch.kernel.__name__ for launch in forward] == ["plane_sums", "predict_filter", "filter_planes"]
    assert [launch.kernel.__name__ for launch in backward] == [
        "filter_sums",
        "predict_filter_backward",
        "projection_backward",
        "filter_transposed",
    ]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_update_of_the_running_statistics(dtype, momentum):
    norm = torch.nn.BatchNorm1d(5, momentum=momentum).to(DEVICE, dtype)
    mean, var = torch.zeros(5, dtype=dtype, device=DEVICE), torch.ones(5, dtype=dtype, device=DEVICE)
    batches = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(3):
        z = draw(4, 5, dtype=dtype)
        norm(z)
        OPERATORS["update_statistics"](
            mean, var, batches, z.mean(0), z.var(0, correction=0), len(z), momentum
        )
    assert batches == 3
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(var, norm.running_var)


def test_results_are_the_same_in_every_run():
    x, u, kernel = draw(1, 2, 40, 40), draw(1, 2, 40, 40), draw(1, 1, 3, 3)
    with configuration.override(SMALL_TILES._replace(columns=32)):
        runs = [
            OPERATORS["dynamic_conv2d_backward"](u, x, kernel, 1, "reflect", True, True, True)
            for _ in range(2)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 3, 5, 1000), (2, 64, 64, 64), (1, 1, 2000, 3), (4, 257, 9, 9)])
@pytest.mark.parametrize(
    "operator",
    ["spatial_mean", "filter", "filter_sums", "filter_transposed", "pool_pyramid", "pool", "merge_pyramid"],
)
def test_tiles_fit_the_plane(operator, shape, layout):
    x = lay_out(torch.empty(shape, device="meta"), layout)
    config = configuration.choose(operator, x, 9)
    _, c, h, w = (configuration.power_of_two(size) for size in shape)
    assert (config.rows <= h, config.columns <= w, config.channels <= c) == (True, True, True)
    sizes = (config.rows, config.columns, config.channels)
    assert all(size == configuration.power_of_two(size) for size in sizes)
    # A thread of the pools reads its windows one after the other.
    limit = 32768 if operator == "pool_pyramid" else 8192
    assert config.rows * config.columns * config.channels <= limit


def test_the_nearest_configuration_serves(tmp_path, monkeypatch):
    entry = {"operator": "filter", "layout": "rows", "dtype": "float32", "taps": 9, "rows": 2, "columns": 16}
    entry |= {"channels": 1, "programs": 1, "warps": 4, "stages": 1}
    entries = [entry | {"shape": [1, 8, 16, 16], "warps": 2}, entry | {"shape": [1, 8, 256, 256], "warps": 8}]
    monkeypatch.setattr(configuration, "_entries", lambda name: entries)
    configuration._nearest.cache_clear()
    try:
        assert configuration.choose("filter", torch.empty(1, 8, 20, 20, device="meta"), 9).warps == 2
        assert configuration.choose("filter", torch.empty(1, 8, 400, 200, device="meta"), 9).warps == 8
    finally:
        configuration._nearest.cache_clear()


def test_a_device_has_a_file_name():
    assert configuration.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"


def test_means_agree_with_pooling():
    """The definition itself, once, by another route."""
    x = draw(1, 1, 6, 8, dtype=torch.float64)
    inner = functional.avg_pool2d(x, 3, stride=1)
    torch.testing.assert_close(OPERATORS["local_mean"](x, (3, 3))[..., 1:-1, 1:-1], inner)
