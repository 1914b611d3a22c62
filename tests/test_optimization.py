"""`optimize` computes what the plain model does, for every option, and leaves that model alone."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from torch import nn

import irnext
from irnext import optimization
from irnext.ops import convolution
from irnext.optimization import (
    Convolution,
    GraphCache,
    OneDNNConvolution,
    OptimizedModel,
    TritonConvolution,
    WinogradConvolution,
    optimize,
)

OPTIONS = [
    {},
    {"low_pass": "local"},
    {"low_pass": "exact"},
    {"branch": "lam-no-fm"},
    {"branch": "conv"},
    {"pooling": "max", "activation": "softmax"},
    {"pooling": "convolution", "activation": "sigmoid", "pool_rates": (8, 2)},
    {"msm_per_block": 0},
    {"msm_per_block": 2, "kernel_size": 5, "groups": 4, "pool_rates": (4, 2)},
]


@functools.cache
def cached_model(index: int) -> irnext.IRNeXt:
    """The model of OPTIONS[index]; tests must not change it."""
    torch.manual_seed(3)
    return randomise(irnext.IRNeXt(2, width=16, **OPTIONS[index])).eval()


def make_model(**options) -> irnext.IRNeXt:
    torch.manual_seed(4)
    return randomise(irnext.IRNeXt(1, width=8, **options)).eval()


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def exact(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return copy.deepcopy(model).double()(x.double())


def worst_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    assert [y.shape for y in found] == [y.shape for y in expected]
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


# ---- the same results ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 96, 160)], ids=str)
@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=lambda index: str(OPTIONS[index]))
def test_float32_is_exact(index, shape):
    model, x = cached_model(index), picture(*shape)
    assert worst_error(optimize(model)(x), exact(model, x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=lambda index: str(OPTIONS[index]))
def test_half_precision_is_as_good_as_autocast(index, dtype):
    model, x = cached_model(index), picture(2, 3, 96, 64)
    expected = exact(model, x)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        allowed = 2 * worst_error(model(x), expected)
    found = optimize(model, dtype=dtype)(x)
    assert all(y.dtype == torch.float32 for y in found)
    assert worst_error(found, expected) < allowed


@pytest.mark.parametrize("index", [0, 1, 2])
def test_float64_is_a_matter_of_weights(index):
    """Small numbers of the attention stay float32 in a float32 model; all else is computed in float64."""
    model, x = cached_model(index), picture(1, 3, 64, 96).double()
    expected = exact(model, x)
    assert worst_error(optimize(model, dtype=torch.float64)(x), expected) < 1e-12
    assert worst_error(optimize(copy.deepcopy(model).double())(x), expected) < 1e-12


def convolutions(made: OptimizedModel) -> list[type]:
    """The classes of a 3 -> 16, a 16 -> 16 and a strided 16 -> 32 convolution."""
    network = made._prepared
    return [type(part) for part in (network.stem, network.encoder[0].blocks[0].conv2, network.downs[0])]


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_library_and_layout(monkeypatch, winograd, onednn, channels_last):
    if onednn and not optimization.onednn_serves(torch.float32):
        pytest.skip("PyTorch was built without oneDNN")
    if winograd and not irnext.backends()["cpu"]:
        pytest.skip("the compiled library is not built")
    monkeypatch.setattr(optimization, "onednn_serves", lambda dtype: onednn)
    monkeypatch.setattr(optimization, "winograd_serves", lambda dtype: winograd)
    model, x = cached_model(0), picture(2, 3, 64, 96)
    made = optimize(model, channels_last=channels_last)
    assert worst_error(made(x), exact(model, x)) < 1e-5
    library = OneDNNConvolution if onednn else Convolution
    square = WinogradConvolution if winograd and channels_last else library
    assert convolutions(made) == [library, square, library]


def test_winograd_serves_where_it_is_fastest(monkeypatch):
    def served() -> list[bool]:
        return [convolution.winograd_serves(dtype) for dtype in optimization.DTYPES]

    if irnext.backends()["cpu"]:
        assert (torch.ops.irnext.cpu_instructions() != "baseline") == convolution._COMPILED
    monkeypatch.setattr(convolution, "_COMPILED", True)
    monkeypatch.setattr(convolution, "_MATRIX_UNITS", False)
    assert served() == [True, True, True, False]
    monkeypatch.setattr(convolution, "_MATRIX_UNITS", True)
    assert served() == [True, True, False, False]
    monkeypatch.setattr(convolution, "_COMPILED", False)
    assert not any(served())


def test_winograd_is_for_square_convolutions_of_whole_vectors():
    serves = WinogradConvolution.can_serve
    assert serves(nn.Conv2d(16, 48, 3, padding=1)) and serves(nn.Conv2d(32, 32, 3, padding=1, bias=False))
    for other in (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=0),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, (3, 1), padding=(1, 0)),
        nn.ConvTranspose2d(16, 16, 3, padding=1),
    ):
        assert not serves(other)


def test_winograd_follows_the_plain_error():
    """At the largest depth of the network that tests can afford, no worse than twice the plain model."""
    torch.manual_seed(5)
    model = randomise(irnext.IRNeXt(4, width=32)).eval()
    x = F.interpolate(picture(1, 3, 32, 32), 128, mode="bicubic").clamp(0, 1)
    expected = exact(model, x)
    with torch.no_grad():
        plain = worst_error(model(x), expected)
    assert worst_error(optimize(model)(x), expected) < max(2 * plain, 2e-6)


def test_onednn_is_there_and_checked():
    assert optimization.onednn_serves(torch.float32) == torch.backends.mkldnn.is_available()
    assert not optimization.onednn_serves(torch.float64)


def test_onednn_that_computes_something_else_is_not_used(monkeypatch):
    """As if its GELU were the one by tanh."""
    right = optimization.OneDNNConvolution.__call__

    def wrong(self, x, residual=None, overwrite=False):
        y = right(self, x, residual, overwrite)
        return y + 1e-4 if self.gelu else y

    monkeypatch.setattr(optimization.OneDNNConvolution, "__call__", wrong)
    optimization.onednn_serves.cache_clear()
    try:
        assert not optimization.onednn_serves(torch.float32)
    finally:
        optimization.onednn_serves.cache_clear()


def test_shapes_layouts_and_types_in_turn():
    model = cached_model(0)
    made = optimize(model)
    for turn, shape in enumerate([(1, 3, 64, 64), (3, 3, 96, 64), (1, 3, 64, 64), (2, 3, 128, 160)]):
        x = picture(*shape, seed=turn)
        expected = exact(model, x)
        before = x.clone()
        for y in made(x):
            assert y.is_contiguous()
        assert worst_error(made(x), expected) < 1e-5
        assert worst_error(made(x.to(memory_format=torch.channels_last)), expected) < 1e-5
        assert worst_error(made(x.flip(3).flip(3)[:, :, :, :]), expected) < 1e-5
        wide = torch.cat((x, x), 3)[..., : shape[3]]  # not dense
        assert worst_error(made(wide), expected) < 1e-5
        assert torch.equal(x, before)
        double = made(x.double())
        assert all(y.dtype == torch.float64 for y in double)
        assert worst_error(double, expected) < 1e-5


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_empty_batch(dtype):
    model = make_model()
    found = optimize(model, dtype=dtype)(torch.rand(0, 3, 64, 96))
    with torch.no_grad():
        expected = model(torch.rand(0, 3, 64, 96))
    assert [(y.shape, y.dtype) for y in found] == [(y.shape, y.dtype) for y in expected]


def test_a_model_in_half_precision():
    model = make_model()
    x = picture(1, 3, 64, 64)
    expected = exact(model, x)
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        allowed = 2 * worst_error(half(x.bfloat16()), expected)
    assert worst_error(optimize(half)(x), expected) < allowed
    assert worst_error(optimize(half, dtype=torch.float32)(x), expected) < allowed


def test_autocast_around_it_changes_nothing():
    made, x = optimize(make_model()), picture(1, 3, 64, 64)
    expected = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_large_means_do_not_spoil_the_normalisation():
    """Variances by sums of squares lose their digits where the mean is large."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=True)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x = 100 + torch.rand(2, 4, 33, 47)
    found = optimization.InstanceNorm(norm)(x)
    expected = F.instance_norm(x.double(), weight=norm.weight.double(), bias=norm.bias.double())
    assert relative_error(found, expected) < 5e-5


def test_local_windows_are_the_models():
    model, x = make_model(low_pass="local"), picture(1, 3, 128, 128)
    made = optimize(model)
    own = made(x)
    made.fix_local_window(64)
    model.fix_local_window(64)
    fixed = made(x)
    assert worst_error(fixed, exact(model, x)) < 1e-5
    assert worst_error(own, exact(model, x)) > 1e-4


# ---- parts that are not known ----------------------------------------------------------------------


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def halved(self, x, residual=None):
    return 0.5 * type(self).forward(self, x, residual)


def with_parts_replaced(model: irnext.IRNeXt) -> irnext.IRNeXt:
    """Unknown classes, hooks, other calls, and modules that hand their input on where sums overwrite."""
    block = model.encoder[0].layers[0]
    block.msm.attentions[1] = nn.Identity()
    block.msm.register_forward_hook(lambda module, arguments, output: output * 1.5)
    model.encoder[1].layers[0].conv1 = nn.Identity()
    model.encoder[1].layers[0].msm = None
    model.downs[0] = Doubled(8, 16, 3, 2, 1)
    model.ups[1].register_forward_pre_hook(lambda module, arguments: (arguments[0] + 0.1,))
    model.features_half.norm = nn.Identity()
    model.skips[0] = nn.Conv2d(32, 16, 1)
    model.decoder[1].layers.insert(0, nn.Identity())
    model.head.forward = types.MethodType(halved, model.head)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replaced_and_hooked_parts_run_as_they_are(dtype):
    model, x = with_parts_replaced(make_model()), picture(2, 3, 64, 96)
    expected = exact(model, x)
    found = optimize(model, dtype=dtype)(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        allowed = 1e-5 if dtype == torch.float32 else 2 * worst_error(model(x), expected)
    assert worst_error(found, expected) < allowed


@pytest.mark.parametrize("mode", ["reflect", "same"])
def test_other_borders_are_not_lost(mode):
    model, x = make_model(), picture(1, 3, 64, 64)
    border = {"padding": "same"} if mode == "same" else {"padding": 1, "padding_mode": mode}
    model.stem = nn.Conv2d(3, 8, 3, **border).eval()
    assert worst_error(optimize(model)(x), exact(model, x)) < 1e-5


# ---- the plain model -------------------------------------------------------------------------------


def test_the_plain_model_is_neither_changed_nor_followed():
    model, x = make_model(), picture(1, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    strides = [parameter.stride() for parameter in model.parameters()]
    made = optimize(model, dtype=torch.bfloat16)
    expected = made(x)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(made(x), expected, strict=True))
    plain = made.restore_plain()
    assert type(plain) is irnext.IRNeXt and not plain.training
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key])
    plain.stem.weight.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(made(x), expected, strict=True))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_and_pickles(copied):
    made = optimize(make_model(), dtype=torch.bfloat16, channels_last=False, graphs=False)
    x = picture(1, 3, 64, 64)
    expected = made(x)
    again = copied(made)
    assert isinstance(again, OptimizedModel) and again._prepared is None
    assert (again.dtype, again.channels_last, again.graphs) == (torch.bfloat16, False, False)
    assert all(torch.equal(a, b) for a, b in zip(again(x), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made(x), expected, strict=True))


def test_a_pickle_holds_the_weights_once():
    made = optimize(make_model())
    size = len(pickle.dumps(made))
    made(picture(1, 3, 64, 64))
    assert len(pickle.dumps(made)) == size
    assert size < 1.2 * len(pickle.dumps(make_model()))


def test_weights_and_moves_are_the_plain_models():
    model, x = make_model(), picture(1, 3, 64, 64)
    made = optimize(randomise(irnext.IRNeXt(1, width=8).eval(), seed=9))
    assert worst_error(made(x), exact(model, x)) > 1e-3
    assert made.state_dict().keys() == model.state_dict().keys()
    assert made.settings == model.settings and (made.size_multiple, made.minimum_size) == (32, 64)
    made.load_state_dict(model.official_state_dict())
    assert made.official_state_dict().keys() == model.official_state_dict().keys()
    assert worst_error(made(x), exact(model, x)) < 1e-5
    assert worst_error(made.double()(x.double()), exact(model, x)) < 1e-12
    assert made.eval() is made


def test_optimizing_again_takes_new_options():
    model = make_model()
    again = optimize(optimize(model, dtype=torch.bfloat16), graphs=False)
    assert again.dtype is None and isinstance(again.plain, irnext.IRNeXt) and not again.graphs


def test_threads_share_one_model():
    model = make_model()
    made = optimize(model)
    pictures = [picture(1, 3, 64, 64 + 32 * (i % 3), seed=i) for i in range(6)]
    found: dict[int, list[torch.Tensor]] = {}

    def work(i: int) -> None:
        found[i] = made(pictures[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(pictures):
        assert worst_error(found[i], exact(model, x)) < 1e-5


def test_no_gradients_are_kept():
    made, x = optimize(make_model()), picture(1, 3, 64, 64).requires_grad_()
    assert not any(y.requires_grad for y in made(x))


def test_tracing_sees_the_plain_model():
    model = make_model()
    for dtype in (None, torch.bfloat16):
        made = optimize(model, dtype=dtype)
        assert irnext.complexity.measure(made) == irnext.complexity.measure(model)
    program = torch.export.export(optimize(model), (picture(1, 3, 64, 64),), strict=False)
    assert worst_error(program.module()(picture(1, 3, 64, 64)), exact(model, picture(1, 3, 64, 64))) < 1e-5


def test_restore_takes_it():
    model, x = make_model(), picture(3, 70, 81)
    expected = irnext.restore(copy.deepcopy(model).double(), x.double())
    assert relative_error(irnext.restore(optimize(model), x), expected) < 1e-5


# ---- errors ----------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    model = make_model()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        optimize(irnext.IRNeXt(1, width=8))
    with pytest.raises(ValueError, match="training mode"):
        optimize(make_model().train())
    part = make_model()
    part.stem.train()
    with pytest.raises(ValueError, match="training mode"):
        optimize(part)
    with pytest.raises(TypeError, match=r"irnext.IRNeXt, not torch\.nn\.modules\.linear\.Identity"):
        optimize(nn.Identity())
    with pytest.raises(TypeError, match=r"torch\.bfloat16"):
        optimize(model, dtype=torch.int8)
    with torch.device("meta"):
        empty = irnext.IRNeXt(1, width=8).eval()
    with pytest.raises(ValueError, match="no data"):
        optimize(empty)
    hooked = make_model()
    hooked.register_forward_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match="hooks"):
        optimize(hooked)
    made = optimize(model)
    with pytest.raises(RuntimeError, match="restore_plain"):
        made.train()
    with pytest.raises(ValueError, match="multiples of 32"):
        made(torch.rand(1, 3, 70, 64))
    with pytest.raises(TypeError, match="floating point"):
        made(torch.ones(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="move them together"):
        made(torch.rand(1, 3, 64, 64, device="meta"))


# ---- graphs ----------------------------------------------------------------------------------------


class Recorder:
    """Stands in for CUDA graphs: one place for the argument, and the function run anew at each replay."""

    def __init__(self):
        self.recorded: list[tuple] = []
        self.alive = 0

    def __call__(self, function, example):
        self.recorded.append(tuple(example.shape))
        place, inside = example.clone(), threading.Lock()

        def replay(x):
            assert inside.acquire(blocking=False), "two callers share one place"
            assert x.shape == place.shape and x.stride() == place.stride() and x.dtype == place.dtype
            place.copy_(x)
            results = function(place)
            inside.release()
            return results

        return replay


def doubled(x: torch.Tensor) -> list[torch.Tensor]:
    return [2 * x]


def test_graphs_are_recorded_once_per_shape_type_and_layout():
    recorder = Recorder()
    cache = GraphCache(doubled, recorder)
    x = picture(2, 3, 4, 4)
    variants = [x, x.to(memory_format=torch.channels_last), x.double(), picture(1, 3, 4, 4)]
    for turn in range(3):
        for variant in variants:
            assert torch.equal(cache(variant + turn)[0], 2 * (variant + turn))
    assert len(recorder.recorded) == len(variants)


def test_the_graph_unused_for_longest_goes():
    recorder = Recorder()
    cache = GraphCache(doubled, recorder, capacity=2)
    a, b, c = (picture(1, 3, 4, side) for side in (4, 5, 6))
    for x in (a, b, a, c, a, b):
        cache(x)
        assert len(cache.recordings) <= 2
    assert recorder.recorded == [tuple(x.shape) for x in (a, b, c, b)]


def test_large_and_empty_pictures_are_not_recorded():
    recorder = Recorder()
    cache = GraphCache(doubled, recorder, largest=20)
    for x in (picture(2, 3, 4, 3), picture(0, 3, 4, 4)):
        assert torch.equal(cache(x)[0], 2 * x)
    assert not recorder.recorded
    cache(picture(1, 3, 4, 5))
    assert recorder.recorded


def test_one_replay_at_a_time():
    cache, wrong = GraphCache(doubled, Recorder()), []

    def work(seed: int) -> None:
        for turn in range(20):
            x = picture(1, 3, 8, 8, seed=100 * seed + turn)
            try:
                assert torch.equal(cache(x)[0], 2 * x)
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failed_recording_leaves_the_cache_usable():
    def fail(function, example):
        raise RuntimeError("out of memory")

    cache = GraphCache(doubled, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache(picture(1, 3, 4, 4))
    cache.record = Recorder()
    assert torch.equal(cache(picture(1, 3, 4, 4))[0], 2 * picture(1, 3, 4, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=lambda index: str(OPTIONS[index]))
def test_on_a_gpu(index, dtype, graphs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = copy.deepcopy(cached_model(index)).cuda()
    made = optimize(model, dtype=dtype, graphs=graphs)
    for turn, shape in enumerate([(1, 3, 64, 64), (2, 3, 96, 160), (1, 3, 64, 64)]):
        x = picture(*shape, seed=turn).cuda()
        expected = exact(model, x)
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            allowed = max(1e-5, 2 * worst_error(model(x), expected))
        assert worst_error(made(x), expected) < allowed
    assert isinstance(made._prepared, GraphCache) == graphs


@pytest.mark.gpu
@pytest.mark.skipif(not irnext.backends()["triton"], reason="there is no Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_convolutions_by_triton_on_a_gpu(dtype, monkeypatch):
    def forced(conv, plan, gelu):
        serves = TritonConvolution.can_serve(conv, plan.dtype)
        return (TritonConvolution if serves else Convolution)(conv, plan, gelu)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = copy.deepcopy(cached_model(0)).cuda()
    x = picture(2, 3, 96, 160).cuda()
    expected = exact(model, x)
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        allowed = max(1e-5, 2 * worst_error(model(x), expected))
    measured = optimize(model, dtype=dtype)
    assert worst_error(measured(x), expected) < allowed
    assert {name for name, _ in measured.choices().values()} <= {"PyTorch", "Triton"} and measured.choices()
    monkeypatch.setattr(optimization, "FastestConvolution", forced)
    assert worst_error(optimize(model, dtype=dtype)(x), expected) < allowed


@pytest.mark.gpu
def test_graphs_on_several_streams():
    model = make_model().cuda()
    made = optimize(model)
    pictures = [picture(1, 3, 64, 64, seed=i).cuda() for i in range(8)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for i, x in enumerate(pictures):
        with torch.cuda.stream(streams[i % 3]):
            found.append(made(x))
    torch.cuda.synchronize()
    for x, y in zip(pictures, found, strict=True):
        assert worst_error(y, exact(model, x)) < 1e-3
