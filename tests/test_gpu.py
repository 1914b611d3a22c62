"""Every GPU backend on the device: parity, determinism, graphs, compilers, streams, very large tensors.

`make gpu` runs this on a CUDA device. With IRNEXT_GPU_DRY=1 (`make gpu-dry`) the same tests run on
the CPU, where the CUDA sources built for the host stand in for "cuda" and, with TRITON_INTERPRET=1,
Triton's interpreter for "triton": slowly, so the largest cases are left to the device.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os

import pytest
import torch
from conftest import randomise
from relatives import ConvIR, FSNet, SANet, draw_weights
from relatives import IRNeXt as PublishedIRNeXt
from rich.console import Console
from torch import Tensor
from torch.autograd import gradcheck

import irnext
from irnext import ops
from irnext.ops import reference
from irnext.training import TrainingConfig, train

DRY = os.environ.get("IRNEXT_GPU_DRY") == "1"
DEVICE = "cpu" if DRY else "cuda"
NAMES = {"cuda": "cuda-host" if DRY else "cuda", "triton": "triton"}
pytestmark = [] if DRY else pytest.mark.gpu
on_device = pytest.mark.skipif(DRY, reason="needs the device itself")

# Absolute floors of the tolerance rule: the error of a rounding or two of numbers of order one.
FLOOR = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float64: 1e-13}
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted")


def unusable(name: str) -> str | None:
    """Why a rehearsal leaves a backend out; on a device every backend must serve."""
    status = irnext.backends()[NAMES[name]]
    return None if status or not DRY else status.reason


@pytest.fixture(params=list(NAMES))
def backend(request):
    """Serve the test by one GPU backend."""
    if reason := unusable(request.param):
        pytest.skip(reason)
    with irnext.use_backend(NAMES[request.param]):
        yield request.param


@pytest.fixture(autouse=True)
def full_float32():
    """No TF32 in convolutions (products have none by default): PyTorch's results set the tolerance."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def poisoned():
    """Deterministic algorithms only, and fresh memory full of NaN: an output nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
    """Random numbers on the device, in one of LAYOUTS."""
    n, c, h, w = shape
    stored = {"sliced": (n, c, h, w + 2), "permuted": (n, c, w, h)}.get(layout, shape)
    x = torch.randn(stored, dtype=torch.float64).to(DEVICE, dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return x[..., 1 : w + 1]
    return x.transpose(2, 3) if layout == "permuted" else x


def outputs_and_gradients(function, inputs, u: Tensor) -> list[Tensor]:
    """The first output of `function` and the gradients of the inputs that are there."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], u)]


def step(module, x: Tensor, u: Tensor) -> list[Tensor]:
    """y and the gradients of x and of every parameter."""
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), u)]


def assert_as_good_as_pytorch(function, definition, inputs, u: Tensor) -> list[Tensor]:
    """error <= 2 x PyTorch's own on the device in the same type + a floor of that type; what was found.

    The truth is the definition in float64 on the CPU.
    """
    wide = [None if t is None else t.detach().cpu().double() for t in inputs]
    exact = outputs_and_gradients(definition, wide, u.cpu().double())
    plain = outputs_and_gradients(definition, inputs, u)
    with poisoned():
        found = outputs_and_gradients(function, inputs, u)
    assert_results_as_good(found, plain, exact, u.dtype)
    assert found[0].stride() == torch.empty_like(inputs[0]).stride()
    return found


def assert_results_as_good(found, plain, exact, dtype: torch.dtype) -> None:
    """The rule of `assert_as_good_as_pytorch` for results that are there already."""
    for position, (f, p, e) in enumerate(zip(found, plain, exact, strict=True)):
        assert (f.shape, f.dtype, f.device) == (p.shape, p.dtype, p.device)
        assert f.isfinite().all(), f"result {position} has values that nobody wrote"
        if f.numel():
            error, allowed = ((t.cpu().double() - e).abs().max().item() for t in (f, p))
            limit = 2 * allowed + FLOOR[dtype] * e.abs().max().clamp_min(1).item()
            assert error <= limit, f"result {position}: error {error:.2e}, PyTorch's own {allowed:.2e}"


# ---- parity --------------------------------------------------------------------------------------

# shape, kernel, kernel groups, bias, dilation, padding
FILTERS = [
    ((2, 8, 9, 13), (3, 3), 4, "none", 1, "reflect"),
    ((1, 24, 17, 40), (3, 3), 24, "plane", 1, "reflect"),
    ((1, 3, 23, 5), (1, 5), 1, "row", 1, "zeros"),
    ((2, 16, 12, 7), (5, 1), 8, "column", 1, "replicate"),
    ((1, 20, 13, 15), (5, 5), 10, "full", 3, "reflect"),
    ((0, 4, 8, 8), (3, 3), 2, "plane", 1, "reflect"),
    pytest.param((1, 5, 130, 257), (3, 3), 5, "plane", 1, "replicate", marks=on_device),
    pytest.param((2, 64, 64, 96), (3, 3), 8, "plane", 1, "reflect", marks=on_device),
]


def make_bias(kind: str, n: int, c: int, h: int, w: int) -> Tensor | None:
    shapes = {"plane": (n, c), "row": (n, c, h, 1), "column": (n, c, 1, w), "full": (n, c, h, w)}
    return None if kind == "none" else torch.randn(shapes[kind], device=DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize(("shape", "size", "groups", "bias_kind", "dilation", "mode"), FILTERS)
def test_dynamic_conv2d_follows_the_definition(
    backend, shape, size, groups, bias_kind, dilation, mode, dtype, layout
):
    torch.manual_seed(0)
    x, u = draw(shape, dtype, layout), draw(shape, dtype)
    small = torch.promote_types(dtype, torch.float32)
    kernel = torch.randn(shape[0], groups, *size, device=DEVICE, dtype=small)
    bias = make_bias(bias_kind, *shape)
    inputs = (x, kernel) if bias is None else (x, kernel, bias.to(small))

    def function(x, kernel, bias=None):
        return ops.dynamic_conv2d(x, kernel, bias, dilation, mode)

    def definition(x, kernel, bias=None):
        return reference.dynamic_conv2d(x, kernel, bias, dilation, mode)

    assert_as_good_as_pytorch(function, definition, inputs, u)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
def test_means_follow_the_definition(backend, dtype, layout):
    torch.manual_seed(0)
    for shape, window in (((2, 6, 9, 14), (4, 7)), ((1, 3, 17, 5), (30, 2)), ((1, 8, 8, 8), (1, 1))):
        x, u = draw(shape, dtype, layout), draw(shape, dtype)
        assert_as_good_as_pytorch(
            lambda x, window=window: ops.local_mean(x, window),
            lambda x, window=window: reference.local_mean(x, window),
            (x,),
            u,
        )
        with poisoned():
            mean = ops.spatial_mean(x)
        wide = reference.accumulation_dtype(dtype)
        assert mean.dtype == wide
        rtol = 1e-12 if wide == torch.float64 else 1e-6
        torch.testing.assert_close(mean.double(), x.double().mean((2, 3)), rtol=rtol, atol=rtol)


# shape, groups, kernel, training, activation, window
ATTENTIONS = [
    ((2, 8, 9, 13), 4, (3, 3), False, "tanh", None),
    ((3, 8, 9, 13), 4, (3, 3), True, "tanh", None),
    ((5, 12, 8, 6), 2, (5, 5), True, "sigmoid", (3, 4)),
    ((1, 6, 7, 16), 1, (1, 3), False, "softmax", (30, 2)),
    ((0, 4, 8, 8), 2, (3, 3), False, "tanh", None),
    pytest.param((1, 32, 96, 96), 8, (3, 3), False, "tanh", None, marks=on_device),
    pytest.param((1, 128, 32, 32), 8, (3, 3), False, "tanh", (15, 15), marks=on_device),
    pytest.param((8, 64, 64, 64), 8, (3, 3), True, "tanh", None, marks=on_device),
    pytest.param((1, 32, 360, 640), 8, (3, 3), False, "tanh", None, marks=on_device),
]


def attention_parameters(channels: int, groups: int, taps: int, wide: torch.dtype) -> list[Tensor]:
    """weight, norm_weight, norm_bias, running_mean, running_var, low, inner, high: all away from zero."""
    outputs = groups * taps
    return [
        torch.randn(outputs, channels, device=DEVICE, dtype=wide) / channels**0.5,
        *(torch.rand(outputs, device=DEVICE, dtype=wide) + 0.5 for _ in range(2)),
        torch.randn(outputs, device=DEVICE, dtype=wide) * 0.1,
        torch.rand(outputs, device=DEVICE, dtype=wide) + 0.5,
        *(torch.randn(channels, device=DEVICE, dtype=wide) * 0.5 for _ in range(3)),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize(("shape", "groups", "size", "training", "activation", "window"), ATTENTIONS)
def test_local_attention_follows_the_definition(
    backend, shape, groups, size, training, activation, window, dtype, layout
):
    torch.manual_seed(0)
    x, u = draw(shape, dtype, layout) + 0.5, draw(shape, dtype)
    wide = reference.accumulation_dtype(dtype)
    parameters = attention_parameters(shape[1], groups, size[0] * size[1], wide)
    running = parameters[3:5]
    learned = [x, *parameters[:3], *parameters[5:]]
    options = (size, training, 1e-5, activation, window)

    def run(module):
        def call(x, *learned):
            statistics = [t.to(x) for t in running] if x.dtype == torch.float64 else running
            return module.local_attention(x, *learned[:3], *statistics, *learned[3:], *options)[0]

        return call

    assert_as_good_as_pytorch(run(ops), run(reference), learned, u)
    with poisoned():
        _, mean, *batch = ops.local_attention(x, *parameters, *options)
    exact = [t.double() for t in (x, *parameters)]
    _, exact_mean, *exact_batch = reference.local_attention(*exact, *options)
    for found, expected in zip((mean, *batch), (exact_mean, *exact_batch), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


# shape and rates
POOLS = [
    ((2, 8, 16, 24), (8, 4, 2)),
    ((2, 6, 13, 21), (2, 8, 4)),
    ((1, 5, 11, 17), (3, 5, 1)),
    ((0, 4, 8, 8), (8, 4, 2)),
    pytest.param((2, 32, 96, 160), (8, 4, 2), marks=on_device),
    pytest.param((1, 3, 361, 642), (16, 8, 4, 2), marks=on_device),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize(("shape", "rates"), POOLS)
def test_pool_pyramid_follows_the_definition(backend, shape, rates, dtype, layout):
    torch.manual_seed(0)
    x = draw(shape, dtype, layout) + 0.5
    grads = [draw((*shape[:2], *(side // rate for side in shape[2:])), dtype, layout) for rate in rates]

    def pools_and_gradient(module, x: Tensor, grads: list[Tensor]) -> list[Tensor]:
        x = x.detach().requires_grad_()
        pools = module.pool_pyramid(x, rates)
        return [*(pool.detach() for pool in pools), torch.autograd.grad(pools, x, grads)[0]]

    exact = pools_and_gradient(reference, x.cpu().double(), [grad.cpu().double() for grad in grads])
    plain = pools_and_gradient(reference, x, grads)
    with poisoned():
        found = pools_and_gradient(ops, x, grads)
    assert_results_as_good(found, plain, exact, dtype)


# shape, sizes of the branches, activation
MERGES = [
    ((2, 8, 16, 24), [(2, 3), (4, 6), (8, 12)], "gelu"),
    ((2, 8, 12, 16), [(6, 8)], None),
    ((1, 6, 9, 13), [(1, 1), (4, 6), (20, 9), (9, 13)], "gelu"),
    ((1, 4, 6, 8), [], "gelu"),
    ((0, 4, 8, 8), [(4, 4)], "gelu"),
    pytest.param((2, 32, 144, 208), [(18, 26), (36, 52), (72, 104)], "gelu", marks=on_device),
    pytest.param((1, 40, 161, 320), [(20, 40), (80, 160)], "gelu", marks=on_device),
    pytest.param((1, 3, 90, 1200), [(45, 600)], None, marks=on_device),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize(("shape", "sizes", "activation"), MERGES)
def test_merge_pyramid_follows_the_definition(backend, shape, sizes, activation, dtype, layout):
    torch.manual_seed(0)
    x, u = 2 * draw(shape, dtype, layout), draw(shape, dtype, layout)
    branches = [draw((*shape[:2], *size), dtype, layout) for size in sizes]
    assert_as_good_as_pytorch(
        lambda x, *branches: ops.merge_pyramid(x, branches, activation),
        lambda x, *branches: reference.merge_pyramid(x, branches, activation),
        (x, *branches),
        u,
    )


@pytest.mark.parametrize("momentum", [0.1, None])
def test_training_moves_the_statistics_as_batch_norm_does(backend, momentum):
    torch.manual_seed(0)
    module = randomise(irnext.LocalAttention(16)).to(DEVICE)
    module.norm.momentum = momentum
    exact = copy.deepcopy(module).cpu().double()
    for _ in range(2):
        x = draw((3, 16, 9, 10), torch.float32)
        module(x)
        with irnext.use_backend("reference"):
            exact(x.cpu().double())
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(
            buffer.cpu().double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("low_pass", ["global", "local"])
def test_the_backends_agree(low_pass, training):
    if reasons := [reason for name in NAMES if (reason := unusable(name))]:
        pytest.skip("; ".join(reasons))
    torch.manual_seed(0)
    shape = (4, 8, 6, 7) if DRY else (4, 32, 60, 52)
    module = randomise(irnext.LocalAttention(shape[1], low_pass=low_pass)).to(DEVICE).train(training)
    x, u = draw(shape, torch.float32), draw(shape, torch.float32)
    results = []
    for name in NAMES.values():
        with irnext.use_backend(name):
            results.append(step(copy.deepcopy(module), x.detach().requires_grad_(), u))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def test_gradients_of_gradients(backend):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, device=DEVICE, requires_grad=True)
    kernel = torch.randn(1, 2, 3, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert gradcheck(ops.dynamic_conv2d, (x, kernel), fast_mode=True)
    assert torch.autograd.gradgradcheck(ops.dynamic_conv2d, (x, kernel), fast_mode=True)
    branch = torch.randn(1, 2, 3, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    for function, inputs in (
        (lambda x, branch: ops.merge_pyramid(x, [branch]), (x, branch)),
        (lambda x: tuple(ops.pool_pyramid(x, (4, 2))), (x,)),
    ):
        assert gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# ---- what PyTorch does with operators ------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("low_pass", ["global", "local"])
def test_two_runs_are_equal_bit_by_bit(backend, low_pass, layout, training):
    torch.manual_seed(0)
    shape = (2, 16, 12, 20) if DRY else (4, 32, 120, 200)
    module = randomise(irnext.LocalAttention(shape[1], low_pass=low_pass)).to(DEVICE).train(training)
    x, u = draw(shape, torch.float32, layout).requires_grad_(), draw(shape, torch.float32, layout)
    with poisoned():
        first, *others = (step(module, x, u) for _ in range(2 if DRY else 5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


class Pyramid(torch.nn.Module):
    """Pools of the input that are merged with it again, through weights of their own."""

    def __init__(self, channels: int, rates: tuple[int, ...] = (8, 4, 2)):
        super().__init__()
        self.rates = rates
        self.weight = torch.nn.Parameter(torch.randn(len(rates), channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        pools = ops.pool_pyramid(x, self.rates)
        branches = [weight * pool for weight, pool in zip(self.weight.to(x.dtype), pools, strict=True)]
        return ops.merge_pyramid(x, branches)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_two_runs_of_the_pyramids_are_equal_bit_by_bit(backend, layout):
    torch.manual_seed(0)
    shape = (2, 8, 16, 24) if DRY else (4, 32, 136, 200)
    module = Pyramid(shape[1]).to(DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        x, u = draw(shape, dtype, layout).requires_grad_(), draw(shape, dtype, layout)
        with poisoned():
            first, *others = (step(module, x, u) for _ in range(2 if DRY else 5))
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@on_device
@pytest.mark.parametrize("kind", ["attention", "attention in training", "pyramid"])
def test_a_captured_graph_replays(backend, kind):
    torch.manual_seed(0)
    module = Pyramid(32) if kind == "pyramid" else randomise(irnext.LocalAttention(32))
    module.cuda().train(kind == "attention in training")
    x, u = (draw((2, 32, 64, 64), torch.float32) for _ in range(2))
    x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(module, x, u)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(module, x, u)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(module, x, u), strict=True))


def small_network() -> torch.nn.Module:
    """Convolutions around a local attention, in eval mode."""
    layers = (
        torch.nn.Conv2d(3, 16, 3, padding=1),
        irnext.LocalAttention(16),
        torch.nn.GELU(),
        irnext.LocalAttention(16, low_pass="local"),
        torch.nn.Conv2d(16, 3, 3, padding=1),
    )
    return randomise(torch.nn.Sequential(*layers)).to(DEVICE).eval()


def test_compiled_without_graph_breaks(backend):
    torch.manual_seed(0)
    torch.compiler.reset()
    module = small_network()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager" if DRY else "inductor")
    for size in (16, 24):
        x, u = (
            draw((2, 3, size, size), torch.float32).requires_grad_(),
            draw((2, 3, size, size), torch.float32),
        )
        expected = step(module, x, u)
        y = compiled(x)
        found = [y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), u)]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_exported(backend):
    torch.manual_seed(0)
    module, x = small_network(), draw((1, 3, 8, 9) if DRY else (2, 3, 16, 16), torch.float32)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        x = draw(x.shape, torch.float32)
        torch.testing.assert_close(program.module()(x), module(x))
    namespace = "irnext_triton" if backend == "triton" else f"irnext{'_cuda_host' if DRY else ''}"
    assert any(str(node.target).startswith(f"{namespace}.local_attention") for node in program.graph.nodes)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PyTorch's own use of its pytree
def test_packaged_by_aot_inductor(backend, tmp_path):
    torch.manual_seed(0)
    module, x = randomise(irnext.LocalAttention(16)).to(DEVICE).eval(), draw((2, 16, 16, 16), torch.float32)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
        packaged = torch._inductor.aoti_load_package(path)
        x = draw(x.shape, torch.float32)
        torch.testing.assert_close(packaged(x), module(x), rtol=1e-4, atol=1e-4)


def test_registered_completely(backend):
    torch.manual_seed(0)
    namespace = "irnext_triton" if backend == "triton" else f"irnext{'_cuda_host' if DRY else ''}"
    packets = getattr(torch.ops, namespace)
    x = draw((2, 4, 6, 9), torch.float32, "channels_last").requires_grad_()
    kernel = torch.randn(2, 2, 3, 3, device=DEVICE, requires_grad=True)
    torch.library.opcheck(packets.dynamic_conv2d.default, (x, kernel))
    torch.library.opcheck(packets.spatial_mean.default, (x,))
    torch.library.opcheck(packets.local_mean.default, (x, [3, 4]))
    torch.library.opcheck(packets.pool_pyramid.default, (x, [4, 2]))
    branch = draw((2, 4, 3, 5), torch.float32, "channels_last").requires_grad_()
    torch.library.opcheck(packets.merge_pyramid.default, (x, [branch], "gelu"))
    parameters = attention_parameters(4, 2, 9, torch.float32)
    for training in (False, True):
        arguments = (x, *parameters, [3, 3], training, 1e-5, "tanh", None)
        torch.library.opcheck(packets.local_attention.default, arguments)


def test_a_whole_model(backend):
    torch.manual_seed(0)
    module = randomise(irnext.IRNeXt(blocks=1, width=8)).to(DEVICE).eval()
    x = torch.rand(1, 3, 64, 64, device=DEVICE)
    exact = copy.deepcopy(module).cpu().double()
    with torch.no_grad():
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
            with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
                found = module(x)[-1]
            with irnext.use_backend("reference"):
                expected = exact(x.cpu().double())[-1]
            error = (found.cpu().double() - expected).abs().max() / expected.abs().max()
            assert error < tolerance


# The other networks; GRL's heads have 6 channels here, which fused attention pads.
OTHERS = {
    "mprnet-deblurring": {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
    "restormer": {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, "heads": (1, 2, 2, 4)},
    "mimo-unet": {"num_res": 1, "width": 16},
    "convir-s": {"blocks": 1, "width": 8, "dilations": (1, 3, 5)},
    "grl-tiny": {
        "embed_dim": 24,
        "depths": (4,),
        "num_heads_window": (2,),
        "num_heads_stripe": (2,),
        "window_size": 8,
        "stripe_size": (8, 16),
    },
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_networks(name, layout):
    """Results and gradients on the device against float64 on the CPU."""
    torch.manual_seed(0)
    model = randomise(irnext.create_model(name, **OTHERS[name]))
    exact, model = copy.deepcopy(model).double(), model.to(DEVICE)
    picture = torch.rand(2, 3, 64, 96)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = picture.to(DEVICE, memory_format=memory_format)

    def outputs(network, pictures) -> list[Tensor]:
        found = network(pictures)
        return [found] if isinstance(found, Tensor) else found

    def backward(results: list[Tensor]) -> None:
        sum(y.square().mean() for y in results).backward()

    wanted = outputs(exact, picture.double())
    backward(wanted)
    expected = wanted[model.result_index]
    change = (expected - picture).abs().max()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            results = outputs(model, x)
        found = results[model.result_index]
        assert (found.cpu().double() - expected).abs().max() < tolerance * change
        if dtype == torch.float32:
            backward(results)
            scale = max(p.grad.norm() for p in exact.parameters())  # some are 0: a bias before a norm
            for (key, a), b in zip(model.named_parameters(), exact.parameters(), strict=True):
                error = (a.grad.cpu().double() - b.grad).norm()
                assert error <= 1e-3 * b.grad.norm() + 1e-5 * scale, key


ACCELERATED = {
    "irnext": lambda: PublishedIRNeXt.dynamic_filter(16),
    "convir": lambda: ConvIR.MultiShapeKernel(16, 7),
    "fsnet": lambda: FSNet.TwoSizes(16),
    "sanet": lambda: SANet.cubic_attention(16, 11),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ACCELERATED)
def test_accelerated_modules(backend, name, layout):
    """Other people's operators, swapped in a model that is on the device, give their own results."""
    torch.manual_seed(0)
    exact = draw_weights(ACCELERATED[name]()).double()
    module = copy.deepcopy(exact).to(DEVICE, torch.float32)
    report = irnext.accelerate(module)
    assert report.swapped and not report.left
    shape = (2, 16, 9, 8) if DRY else (2, 16, 45, 72)
    x, u = draw(shape, torch.float32, layout).requires_grad_(), draw(shape, torch.float32, layout)
    wide = x.detach().cpu().double().requires_grad_()

    def everything(network, x: Tensor, u: Tensor) -> list[Tensor]:
        y = network(x)
        y.backward(u)  # published classes have parameters that nothing uses
        return [y.detach(), x.grad, *(p.grad for p in network.parameters() if p.grad is not None)]

    expected = everything(exact, wide, u.cpu().double())
    for found, e in zip(everything(module, x, u), expected, strict=True):
        assert (found.cpu().double() - e).norm() <= 1e-4 * e.norm() + 1e-6


# ---- what only a device has ----------------------------------------------------------------------


def test_training_by_the_recipe(backend, tmp_path):
    """Crops, autocast, loss, clipping, Adam and the state: the losses of the reference backend."""
    weights = tmp_path / "w.safetensors"
    irnext.save(randomise(irnext.IRNeXt(1, 8)), weights)  # else the attention were the identity

    def losses(name: str) -> list[float]:
        config = TrainingConfig.of(
            "haze",
            None,
            tmp_path / name,
            steps=3,
            batch=2,
            patch=(64, 64),
            settings={"blocks": 1, "width": 8},
            weights=weights,
            dtype="bfloat16",
            ema=0.9,
            device=DEVICE,
            workers=0,
            validate_every=0,
            log_every=1,
            warm_up=0,
        )
        with irnext.use_backend(name):
            train(config, console=Console(quiet=True))
        lines = map(json.loads, (config.output / "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "train"]

    assert losses(NAMES[backend]) == pytest.approx(losses("reference"), rel=0.02)


@on_device
def test_two_streams_do_not_disturb_each_other(backend):
    torch.manual_seed(0)
    module = randomise(irnext.LocalAttention(32)).cuda().eval()
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [draw((2, 32, 96, 128), torch.float32).requires_grad_() for _ in streams]
    u = draw((2, 32, 96, 128), torch.float32)
    alone = [step(module, x, u) for x in inputs]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(step(module, x, u))
    torch.cuda.synchronize()
    for result, expected in zip(found, itertools.cycle(alone)):
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@on_device
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 1, 46400, 46400), "contiguous"), ((1, 32, 8256, 8200), "channels_last")],
)
def test_more_than_2_to_the_31_elements(backend, shape, layout):
    numbers = torch.Size(shape).numel()
    assert numbers > 2**31
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 5 * 2 * numbers:
        pytest.skip(f"needs {10 * numbers / 2**30:.0f} GiB of free memory on the device")
    torch.manual_seed(0)
    x = torch.empty(
        shape,
        device="cuda",
        dtype=torch.bfloat16,
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format,
    )
    x.normal_()
    kernel = torch.randn(1, shape[1], 3, 3, device="cuda").requires_grad_()
    x.requires_grad_()
    y = ops.dynamic_conv2d(x, kernel)
    dx, dkernel = torch.autograd.grad(y, (x, kernel), x.detach())
    x = x.detach()
    # The last rows and columns lie beyond 2^31 elements; a patch's own far side is its true border.
    patch = x[..., -40:, -40:].double().requires_grad_()
    expected = reference.dynamic_conv2d(patch, kernel.detach().double())
    (expected_dx,) = torch.autograd.grad(expected, patch, patch.detach())
    for found, exact in ((y, expected), (dx, expected_dx)):
        corner = found[..., -32:, -32:].double()
        torch.testing.assert_close(corner, exact[..., -32:, -32:], rtol=1e-2, atol=1e-2)
    # With the gradient x itself, the centre tap's gradient is the sum of squares of the plane.
    squares = sum(rows.double().square().sum((2, 3)) for rows in x.split(1024, 2))
    torch.testing.assert_close(dkernel[..., 1, 1].double(), squares, rtol=1e-4, atol=0)
    means = sum(rows.double().sum((2, 3)) for rows in x.split(1024, 2)) / (shape[2] * shape[3])
    torch.testing.assert_close(ops.spatial_mean(x).double(), means, rtol=1e-3, atol=1e-6)


def interpolation(small: int, large: int, elements: int, positions: int) -> Tensor:
    """Weights (positions, elements) that the last of `large` positions give the last of `small` elements."""
    place = torch.arange(large - positions, large, dtype=torch.float64) * (small - 1) / (large - 1)
    distance = place[:, None] - torch.arange(small - elements, small, dtype=torch.float64)
    return (1 - distance.abs()).clamp_min(0)


@on_device
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 1, 46400, 46400), "contiguous"), ((1, 32, 8256, 8200), "channels_last")],
)
def test_pyramids_of_more_than_2_to_the_31_elements(backend, shape, layout):
    n, c, h, w = shape
    numbers = torch.Size(shape).numel()
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 6 * 2 * numbers:
        pytest.skip(f"needs {12 * numbers / 2**30:.0f} GiB of free memory on the device")
    torch.manual_seed(0)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    options = {"device": "cuda", "dtype": torch.bfloat16, "memory_format": memory_format}
    x = torch.empty(shape, **options).normal_()
    branch = torch.empty(n, c, h // 2, w // 2, **options).normal_()
    # The last rows and columns lie beyond 2^31 elements.
    pools = ops.pool_pyramid(x, (8, 4, 2))
    corner = x[..., -64:, -64:].double().cpu()
    for pool, expected in zip(pools, reference.pool_pyramid(corner, (8, 4, 2)), strict=True):
        found = pool[..., -expected.shape[2] :, -expected.shape[3] :]
        torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-2, atol=1e-2)
    (dx,) = torch.autograd.grad(
        ops.pool_pyramid(x.requires_grad_(), (8, 4, 2)), x, [torch.ones_like(pool) for pool in pools]
    )
    share = sum(1 / rate**2 for rate in (8, 4, 2))
    assert ((dx[..., -64:, -64:].double() - share).abs() < 1e-2).all()
    del pools, dx

    y = ops.merge_pyramid(x, [branch.requires_grad_()])
    down, across = interpolation(h // 2, h, 40, 64), interpolation(w // 2, w, 40, 64)
    total = corner + down @ branch[..., -40:, -40:].detach().double().cpu() @ across.T
    expected = torch.nn.functional.gelu(total)
    torch.testing.assert_close(y[..., -64:, -64:].detach().double().cpu(), expected, rtol=1e-2, atol=2e-2)
    dx, dbranch = torch.autograd.grad(y, (x, branch), x.detach())
    slope = torch.ops.aten.gelu_backward(corner, total)
    torch.testing.assert_close(dx[..., -64:, -64:].double().cpu(), slope, rtol=2e-2, atol=3e-2)
    gathered = (down.T @ slope @ across)[..., -24:, -24:]
    torch.testing.assert_close(dbranch[..., -24:, -24:].double().cpu(), gathered, rtol=2e-2, atol=5e-2)


@on_device
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_serves_its_own_tensors(backend):
    torch.manual_seed(0)
    module = randomise(irnext.LocalAttention(16)).eval()
    x = torch.randn(2, 16, 12, 20)
    expected = module.to("cuda:0")(x.to("cuda:0"))
    found = module.to("cuda:1")(x.to("cuda:1"))  # the current device is the first
    assert found.device == torch.device("cuda:1")
    assert torch.equal(found.cpu(), expected.cpu())


# ---- for compute-sanitizer -----------------------------------------------------------------------


def test_small_shapes_of_every_operator(backend):
    """Each kernel once or twice: what compute-sanitizer watches."""
    torch.manual_seed(0)
    for layout, dtype in (("contiguous", torch.float32), ("channels_last", torch.bfloat16)):
        for shape, size, dilation, mode in (
            ((2, 6, 9, 13), (3, 3), 1, "reflect"),
            ((1, 4, 8, 16), (3, 3), 1, "zeros"),
            ((1, 3, 12, 7), (5, 1), 2, "replicate"),
        ):
            x, u = draw(shape, dtype, layout), draw(shape, dtype, layout)
            kernel = torch.randn(shape[0], shape[1], *size, device=DEVICE)
            bias = torch.randn(shape[:2], device=DEVICE)
            outputs_and_gradients(
                lambda *t, arguments=(dilation, mode): ops.dynamic_conv2d(*t, *arguments),
                (x, kernel, bias),
                u,
            )
            outputs_and_gradients(lambda x: ops.local_mean(x, (3, 5)), (x,), u)
        for shape, rates in (((2, 8, 16, 24), (8, 4, 2)), ((1, 3, 13, 11), (4, 3, 2))):
            module = Pyramid(shape[1], rates).to(DEVICE)
            x, u = draw(shape, dtype, layout).requires_grad_(), draw(shape, dtype, layout)
            assert all(t.isfinite().all() for t in step(module, x, u))
        for low_pass, training in itertools.product(("global", "local"), (False, True)):
            module = randomise(irnext.LocalAttention(8, low_pass=low_pass)).to(DEVICE).train(training)
            x, u = draw((2, 8, 9, 13), dtype, layout).requires_grad_(), draw((2, 8, 9, 13), dtype, layout)
            assert all(t.isfinite().all() for t in step(module, x, u))
