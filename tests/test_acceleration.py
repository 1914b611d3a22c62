"""`accelerate` on modules of published names: nothing but the time they take changes."""

from __future__ import annotations

import copy
import io
import json
import pickle
import types

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import CPU_BACKENDS, FIXTURES, draw, load_fixture, relative_error
from relatives import ConvIR, ConvIRLike, FSNet, IRNeXt, LatchedMean, SANet, draw_weights, respond
from torch import nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

import irnext
from irnext import accelerate, restore_original

TIGHT = 1e-11


# ---- the published classes of the tests are right ------------------------------------------------


def lam(channels: int, low_pass: str) -> nn.Module:
    module = IRNeXt.dynamic_filter(channels)
    if low_pass == "local":
        module.gap = LatchedMean()
    return module


FIXTURE_MODULES = {
    "lam-global-eval": lambda: lam(32, "global"),
    "lam-global-train": lambda: lam(16, "global"),
    "lam-local-eval": lambda: lam(16, "local"),
    "convir-multishape-d7": lambda: ConvIR.MultiShapeKernel(16, 7),
    "fsnet-filter-3": lambda: FSNet.dynamic_filter(16, 3),
    "sanet-strip-11": lambda: SANet.cubic_attention(8, 11),
}


@pytest.mark.parametrize("accelerated", [False, True], ids=["published", "accelerated"])
@pytest.mark.parametrize("name", FIXTURE_MODULES)
def test_fixtures(name, accelerated):
    arrays = {
        key: torch.as_tensor(value) for key, value in load_fixture(name).items() if value.dtype.kind != "U"
    }
    module = FIXTURE_MODULES[name]()
    seed = int(arrays["seed"])
    names = {key: value.shape for key, value in module.state_dict().items()}
    layout = FIXTURES / f"{name}.json"
    if layout.exists():
        assert {key: list(shape) for key, shape in names.items()} == json.loads(layout.read_text())
    module.load_state_dict({key: draw(key, tuple(shape), seed) for key, shape in names.items()})
    module.double().train(bool(arrays.get("train", False)))
    if accelerated:
        report = accelerate(module)
        assert report.swapped and not report.left
    x = arrays["x"].double().requires_grad_()
    y = module(x)
    y.backward(arrays["grad_output"].double())
    assert relative_error(y, arrays["y"]) < 1e-9
    assert relative_error(x.grad, arrays["grad_x"]) < 1e-9
    for key, parameter in module.named_parameters():
        if (expected := arrays.get("grad_" + key.replace(".", "_"))) is not None:
            assert relative_error(parameter.grad, expected) < 1e-9, key
    for key, buffer in module.named_buffers():
        if (expected := arrays.get("buffer_" + key.replace(".", "_"))) is not None:
            torch.testing.assert_close(buffer.double(), expected.double(), rtol=1e-9, atol=1e-12)


# ---- the same numbers ----------------------------------------------------------------------------

# By name: how the module is made, x's shape, and how many operators are in it.
CASES = {
    "irnext": (lambda: IRNeXt.dynamic_filter(16), (3, 16, 9, 7), 1),
    "irnext, local mean": (lambda: lam(16, "local"), (3, 16, 9, 7), 1),
    "irnext, 5x5, 4 groups": (lambda: IRNeXt.dynamic_filter(8, 5, group=4), (3, 8, 7, 9), 1),
    "convir, dilation 7": (lambda: ConvIR.MultiShapeKernel(16, 7), (3, 16, 11, 9), 3),
    "convir, dilation 11": (lambda: ConvIR.MultiShapeKernel(32, 11), (3, 32, 12, 15), 3),
    "fsnet, 3x3 and 5x5": (lambda: FSNet.TwoSizes(32), (3, 32, 7, 10), 2),
    "sanet, 11": (lambda: SANet.cubic_attention(8, 11), (3, 8, 7, 12), 2),
    "dsanet, 7, 2 groups": (lambda: SANet.cubic_attention(8, 7, 2), (3, 8, 5, 6), 2),
    "convir network": (ConvIRLike, (3, 3, 32, 40), 10),
}


def pair(name: str, training: bool = True) -> tuple[nn.Module, nn.Module]:
    """A module and an accelerated copy of it."""
    make, _, count = CASES[name]
    torch.manual_seed(0)
    original = draw_weights(make()).train(training)
    ours = copy.deepcopy(original)
    report = accelerate(ours)
    assert len(report.swapped) == count and not report.left, report
    return original, ours


def results(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    """y, the gradients of x and the parameters, and the buffers."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    direction = torch.linspace(0, 20, y.numel(), dtype=torch.float64).sin().view_as(y).to(y.dtype)
    y.backward(direction)
    return [y, x.grad, *(p.grad for p in module.parameters()), *(b.double() for b in module.buffers())]


def assert_same(ours: nn.Module, original: nn.Module, x: torch.Tensor, tolerance: float = TIGHT) -> None:
    found, expected = results(ours, x), results(original, x)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b.numel():
            scale = b.abs().max().clamp(min=1e-3)
            assert (a - b).abs().max() / scale < tolerance


def picture(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_same(name, training):
    original, ours = pair(name, training)
    x = picture(CASES[name][1])
    assert_same(ours, original, x)
    assert_same(ours, original, x.flip(3).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("name", ["irnext", "convir, dilation 7", "fsnet, 3x3 and 5x5"])
def test_every_backend_serves(name, backend):
    original, ours = pair(name)
    with irnext.use_backend(backend):
        assert_same(ours, original, picture(CASES[name][1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["irnext", "convir, dilation 7", "fsnet, 3x3 and 5x5", "sanet, 11"])
def test_types(name, dtype):
    """Weights of that type, or float32 under autocast: the error is about the original's, y of x's type."""
    original, ours = pair(name, training=False)
    x = picture(CASES[name][1])
    with torch.no_grad():
        exact = original(x)
        for module in (original, ours):
            module.to(dtype)
        x = x.to(dtype)
        expected, found = original(x), ours(x)
        assert found.dtype == dtype
        floor = 8 * torch.finfo(dtype).eps
        assert relative_error(found, exact) < 2 * relative_error(expected, exact) + floor
        with torch.autocast("cpu", torch.bfloat16):
            mixed = ours.float()(x.bfloat16())
        assert relative_error(mixed, exact) < 0.06
        if isinstance(ours, (IRNeXt.dynamic_filter, FSNet.dynamic_filter)):
            assert mixed.dtype == torch.bfloat16  # the original's is float32


def test_local_means_latch_as_in_the_original():
    original, ours = pair("irnext, local mean", training=False)
    for shape in ((2, 16, 12, 10), (2, 16, 20, 24)):
        assert_same(ours, original, picture(shape))
    assert ours.gap.window == original.gap.window == (5, 4)


def test_an_empty_batch():
    _, ours = pair("irnext", training=False)
    assert ours(torch.zeros(0, 16, 5, 6, dtype=torch.float64)).shape == (0, 16, 5, 6)


def test_a_size_that_pools_do_not_divide():
    original, ours = pair("convir network", training=False)
    x = picture((1, 3, 36, 44))
    with pytest.raises(RuntimeError, match="must match"):
        original(x)
    with pytest.raises(ValueError, match=r"\(1, 16, 36, 44\).*multiples of 8"):
        ours(x)


# ---- the same module -----------------------------------------------------------------------------


def test_parameters_names_classes_and_optimisers_stay():
    module = draw_weights(ConvIRLike())
    reference = copy.deepcopy(module)
    tensors = dict(module.state_dict(keep_vars=True))
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    accelerate(module)
    after = module.state_dict(keep_vars=True)
    assert list(after) == list(tensors) and all(after[key] is tensors[key] for key in tensors)
    assert isinstance(module.pool, ConvIR.DeepPoolLayer)
    assert isinstance(module.pool.dynas[0].square_att, ConvIR.dynamic_filter)

    x, theirs = picture((2, 3, 32, 40)), torch.optim.Adam(reference.parameters(), 1e-2)
    for model, each in ((module, optimiser), (reference, theirs)):
        model(x).square().mean().backward()
        each.step()
    reference.load_state_dict(module.state_dict(), strict=True)
    assert_same(module.eval(), reference.eval(), x)


def test_restore_original():
    original, ours = pair("convir network")
    assert restore_original(ours) == 10
    assert [type(m) for m in ours.modules()] == [type(m) for m in original.modules()]
    assert torch.equal(ours(picture((2, 3, 32, 40))), original(picture((2, 3, 32, 40))))
    assert restore_original(ours) == 0
    assert len(accelerate(ours).swapped) == 10


class Doubled(nn.Module):
    def forward(self, weights):
        return 2 * weights


def test_a_class_that_was_changed_once_more_is_not_undone():
    original, ours = pair("convir, dilation 7", training=False)
    kinds = [type(m) for m in ours.modules()]
    for module in (original, ours):
        register_parametrization(module.strip_att.H_spatial_att, "lamb_l", Doubled())
    with pytest.raises(RuntimeError, match=r"spatial_strip_att became a Parametrized.*: undo that first"):
        restore_original(ours)
    x = picture((2, 16, 11, 9))
    assert relative_error(ours(x), original(x)) < TIGHT
    remove_parametrizations(ours.strip_att.H_spatial_att, "lamb_l")
    assert [type(m) for m in ours.modules()] == kinds and restore_original(ours) == 3


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deep copy", "copy", "pickle", "saved"],
)
@pytest.mark.parametrize("name", ["convir network", "fsnet, 3x3 and 5x5", "irnext, local mean"])
def test_copies_and_pickles_are_accelerated(name, copied):
    original, ours = pair(name)
    again = copied(ours)
    assert [type(m) for m in again.modules()] == [type(m) for m in ours.modules()]
    assert_same(again, original, picture(CASES[name][1]))
    assert restore_original(again) == CASES[name][2]


@pytest.mark.parametrize("name", ["fsnet, 3x3 and 5x5", "convir network"])
def test_compiles_whole(name):
    """As one graph; the operators' own graphs are compiled in the tests of the model."""
    original, ours = pair(name)
    compiled = torch.compile(ours, fullgraph=True, backend="eager", dynamic=False)
    assert_same(compiled, original, picture(CASES[name][1]))


def test_a_compiled_module_can_be_accelerated():
    original, ours = pair("sanet, 11")
    restore_original(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="eager", dynamic=False)
    x = picture((2, 8, 7, 12))
    assert relative_error(compiled(x), original(x)) < TIGHT
    report = accelerate(compiled)
    assert [operator.path for operator in report.swapped] == [
        "_orig_mod.H_spatial_att",
        "_orig_mod.W_spatial_att",
    ]
    assert relative_error(compiled(x), original(x)) < TIGHT


def test_distributed_data_parallel(tmp_path):
    original, ours = pair("convir network")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        before = nn.parallel.DistributedDataParallel(ours)
        assert_same(before, original, picture((3, 3, 32, 40)))
        restore_original(before)
        before.zero_grad(), original.zero_grad()
        assert len(accelerate(before).swapped) == 10
        assert_same(before, original, picture((3, 3, 32, 40), seed=2))
    finally:
        dist.destroy_process_group()


# ---- half-converted, replaced, hooked ------------------------------------------------------------


def test_accelerating_again_changes_nothing():
    _, ours = pair("convir network")
    types_before = [type(m) for m in ours.modules()]
    report = accelerate(ours)
    assert not report.swapped and len(report.left) == 10
    assert all(operator.reason == "it is accelerated already" for operator in report.left)
    assert [type(m) for m in ours.modules()] == types_before


def test_a_half_converted_model():
    module = draw_weights(ConvIRLike())
    reference = copy.deepcopy(module)
    accelerate(module.pool.dynas[1])
    report = accelerate(module)
    assert len(report.swapped) == 7
    assert [operator.path for operator in report.left] == [
        "pool.dynas.1.square_att",
        "pool.dynas.1.strip_att.H_spatial_att",
        "pool.dynas.1.strip_att.W_spatial_att",
    ]
    assert_same(module, reference, picture((3, 3, 32, 40)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_fire(when):
    """Those of the operator, those of what it calls, and those of what irnext would leave out."""
    names = ["", "conv", "bn", "gap", "pad", "act"]
    original = draw_weights(IRNeXt.dynamic_filter(8)).eval()
    ours = copy.deepcopy(original)
    x = picture((2, 8, 6, 5))
    for hooked in range(1, len(names) + 1):
        module, fired = copy.deepcopy(ours), []
        if when == "after":
            accelerate(module)
        for name in names[:hooked]:
            hook = lambda *_, name=name, fired=fired: fired.append(name)  # noqa: E731
            module.get_submodule(name).register_forward_hook(hook)
        if when == "before":
            accelerate(module)
        assert not fired  # trying it out is nobody's call
        assert isinstance(module, irnext.relatives.Accelerated)
        assert relative_error(module(x), original(x)) < TIGHT
        assert sorted(fired) == sorted(names[:hooked])


def test_hooks_may_change_results():
    original, ours = pair("convir network", training=False)
    for module in (original, ours):
        module.pool.dynas[0].square_att.register_forward_hook(lambda module, inputs, y: 2 * y)
        module.pool.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
        module.pool.dynas[2].strip_att.H_spatial_att.register_full_backward_hook(
            lambda module, gradients, _: (3 * gradients[0],)
        )
    assert_same(ours, original, picture((2, 3, 32, 40)))


def test_parts_replaced_afterwards_are_used():
    original, ours = pair("irnext", training=False)
    norm = draw_weights(nn.InstanceNorm2d(72)).eval()
    norm.forward = lambda x: x.square()
    for module in (original, ours):
        module.bn, module.gap = norm, nn.AvgPool2d(3, 1, 1)
    assert_same(ours, original, picture((2, 16, 6, 5)))


def test_nothing_of_the_caller_is_touched():
    """Neither weights, statistics and the random state, nor what a module keeps between calls."""
    module = lam(16, "local")
    state = {key: value.clone() for key, value in module.state_dict().items()}
    random = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu"):
        assert len(accelerate(module).swapped) == 1
    assert module.gap.window is None and module.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


class Synchronised(nn.BatchNorm2d):
    """A norm that talks to other processes, which may not be there."""

    calls = 0

    def forward(self, x):
        Synchronised.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("when", ["before", "after"])
def test_synchronised_norms_are_called_and_not_tried_out(when):
    original = draw_weights(IRNeXt.dynamic_filter(8))
    ours = copy.deepcopy(original)
    if when == "after":
        accelerate(ours)
    ours.bn.__class__ = Synchronised
    Synchronised.calls = 0
    if when == "before":
        assert len(accelerate(ours).swapped) == 1
    assert Synchronised.calls == 0
    assert_same(ours, original, picture((3, 8, 6, 5)))
    assert Synchronised.calls == 1
    module = nn.SyncBatchNorm.convert_sync_batchnorm(IRNeXt.dynamic_filter(8))
    assert len(accelerate(module).swapped) == 1 and type(module.bn) is nn.SyncBatchNorm


def test_weights_that_are_not_there_yet():
    with torch.device("meta"):
        module = ConvIRLike()
    assert len(accelerate(module).swapped) == 10
    assert all(parameter.is_meta for parameter in module.parameters())


# ---- what only looks alike -----------------------------------------------------------------------


class Alike:
    """Modules of published class names that compute something else."""

    class dynamic_filter(IRNeXt.dynamic_filter):
        pass

    class PerPixel(dynamic_filter):
        """A kernel for every pixel."""

        def __init__(self, channels: int):
            super().__init__(channels)
            self.conv = nn.Conv2d(channels, 72, 3, padding=1, bias=False)

    class Channels(dynamic_filter):
        """The filter goes over neighbouring channels, as in ChaIR."""

        def forward(self, x):
            weights = self.act(self.bn(self.conv(self.ap(x))).reshape(len(x), 8, 9))[:, :, :3]
            n, c, h, w = x.shape
            flat = F.pad(x.reshape(n, c, h * w).transpose(1, 2), (1, 1), "reflect").unfold(2, 3, 1)
            weights = weights.repeat_interleave(c // 8, 1)[:, None]
            return (flat * weights).sum(3).transpose(1, 2).reshape(n, c, h, w)

    class Zeros(dynamic_filter):
        """Zeros around the plane."""

        def __init__(self, channels: int):
            super().__init__(channels)
            self.pad = nn.ZeroPad2d(1)

    class Both(dynamic_filter):
        """Low and high frequencies, as in FPro."""

        def forward(self, x):
            weights = self.act(self.bn(self.conv(self.ap(x))).reshape(len(x), 8, -1, 1))
            low = respond(self.pad(x), weights, x, (3, 3))
            return low, x - low

    class Detached(dynamic_filter):
        """The same results, and other gradients."""

        def forward(self, x):
            return super().forward(x.detach()) + x - x.detach()

    class Training(dynamic_filter):
        """The same in eval mode only."""

        def forward(self, x):
            return super().forward(x) * (1.5 if self.training else 1)

    class OtherGate(FSNet.dynamic_filter):
        """Gates of every pixel, as SFNet has when it is tested on large pictures."""

        def __init__(self, channels: int):
            super().__init__(channels)
            self.modulate.gap = nn.AvgPool2d(3, 1, 1)

    class DeepPoolLayer(ConvIR.DeepPoolLayer):
        """ReLU in place of GELU."""

        def __init__(self, channels: int):
            super().__init__(channels, [nn.Identity() for _ in range(3)])
            self.relu = nn.ReLU()


def without(name: str, module: nn.Module) -> nn.Module:
    delattr(module, name)
    return module


def with_member(module: nn.Module, **members) -> nn.Module:
    for name, value in members.items():
        setattr(module, name, value)
    return module


def with_forward() -> nn.Module:
    module = IRNeXt.dynamic_filter(8)
    module.forward = types.MethodType(lambda self, x: x, module)
    return module


def latched(window: tuple[int, int]) -> LatchedMean:
    """A local mean that has seen a picture: on planes within its window it is the mean of the plane."""
    mean = LatchedMean()
    mean.window = window
    return mean


def latched_gate() -> nn.Module:
    module = FSNet.dynamic_filter(8)
    module.modulate.gap = latched((30, 30))
    return module


def rounded_up() -> nn.Module:
    pools = (nn.AvgPool2d(rate, rate, ceil_mode=True) for rate in (8, 4, 2))
    dynas = [nn.Identity() for _ in range(3)]
    return with_member(ConvIR.DeepPoolLayer(4, dynas), pools=nn.ModuleList(pools))


def wrong_gap() -> nn.Module:
    return with_member(IRNeXt.dynamic_filter(8), gap=nn.AdaptiveAvgPool2d(2))


ALIKE = {
    "per pixel": (lambda: Alike.PerPixel(8), "conv is 3x3, not 1x1: its filters differ from pixel to pixel"),
    "channel axis": (lambda: Alike.Channels(16), "computes something else"),
    "zeros": (lambda: Alike.Zeros(8), "computes something else"),
    "two results": (lambda: Alike.Both(8), "returns a tuple"),
    "other gradients": (lambda: Alike.Detached(8), "computes something else"),
    "other in training": (lambda: Alike.Training(8), "computes something else"),
    "gates of pixels": (lambda: Alike.OtherGate(8), "computes something else"),
    "ReLU": (lambda: Alike.DeepPoolLayer(4), "computes something else"),
    "PoolNet's": (lambda: without("dynas", Alike.DeepPoolLayer(4)), "not all of pools, convs, dynas"),
    "two dynas": (
        lambda: with_member(Alike.DeepPoolLayer(4), dynas=nn.ModuleList([nn.Identity()] * 2)),
        "3 pools, 3 convs and 2 dynas",
    ),
    "no conv": (lambda: without("conv", IRNeXt.dynamic_filter(8)), "no convolution named conv"),
    "no gain": (lambda: without("lamb_h", IRNeXt.dynamic_filter(8)), "no lamb_h"),
    "no gate": (
        lambda: with_member(FSNet.dynamic_filter(8), modulate=nn.Identity()),
        "modulate has no fc, fcs, out",
    ),
    "other gain": (
        lambda: with_member(IRNeXt.dynamic_filter(8), lamb_l=nn.Parameter(torch.zeros(4))),
        "lamb_l holds 4 numbers for 8 channels",
    ),
    "other conv": (
        lambda: with_member(IRNeXt.dynamic_filter(8), conv=nn.Conv2d(8, 70, 1)),
        "makes 70 numbers of 8 channels: no filters of 3x3",
    ),
    "other mean": (wrong_gap, "gap makes planes of 2"),
    "latched mean": (
        lambda: with_member(IRNeXt.dynamic_filter(8), ap=latched((30, 30))),
        "its ap is of no class of PyTorch, LatchedMean, and may compute something else on larger",
    ),
    "latched mean inside": (
        lambda: with_member(IRNeXt.dynamic_filter(8), ap=nn.Sequential(latched((30, 30)))),
        r"its ap\.0 is of no class of PyTorch",
    ),
    "latched gates": (latched_gate, r"its modulate\.gap is of no class of PyTorch, LatchedMean"),
    "pools rounded up": (rounded_up, "pools are not average pools of whole squares"),
    "fails": (
        lambda: with_member(IRNeXt.dynamic_filter(8), pad=nn.Identity()),
        "could not be tried out: RuntimeError",
    ),
    "own forward": (with_forward, "a forward of its own"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_looks_alike_is_left_and_named(name):
    make, reason = ALIKE[name]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), make())
    kind, fields = type(module[1]), set(vars(module[1]))
    report = accelerate(module)
    assert not report.swapped
    (operator,) = report.left
    assert operator.path == "1" and operator.kind == kind.__name__
    with pytest.raises(AssertionError, match=reason):  # a pattern, as raises takes it
        raise AssertionError(operator.reason)
    assert type(module[1]) is kind and set(vars(module[1])) == fields
    assert str(operator) in str(report)


def test_subclasses_that_compute_the_same_are_accelerated():
    module = draw_weights(Alike.dynamic_filter(8))
    reference = copy.deepcopy(module)
    assert str(accelerate(module)) == "accelerated 1 of 1 operators: 1 dynamic_filter"
    assert type(module).__name__ == "accelerated_dynamic_filter"
    assert_same(module, reference, picture((2, 8, 5, 6)))


class Scaled(IRNeXt.dynamic_filter):
    """With a second input, that may be left out."""

    def forward(self, x, scale=1):
        return scale * super().forward(x)


def test_further_arguments_go_to_the_original():
    module = draw_weights(Scaled(8)).eval()
    reference, x = copy.deepcopy(module), picture((2, 8, 5, 6))
    assert len(accelerate(module).swapped) == 1
    for arguments, named in (((), {}), ((2,), {}), ((), {"scale": 3})):
        assert relative_error(module(x, *arguments, **named), reference(x, *arguments, **named)) < TIGHT


class Bare:
    """Published names with nothing but what state dicts show: functions do the rest."""

    class dynamic_filter(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            plain = IRNeXt.dynamic_filter(channels)
            self.lamb_l, self.lamb_h, self.inside_all = plain.lamb_l, plain.lamb_h, plain.inside_all
            self.conv, self.bn = plain.conv, plain.bn

        def forward(self, x):
            weights = self.bn(self.conv(x.mean((2, 3), keepdim=True))).reshape(len(x), 8, 9, 1).tanh()
            response = respond(F.pad(x, (1, 1, 1, 1), "reflect"), weights, x, (3, 3))
            low = (1 + self.inside_all) * response - self.inside_all * x.mean((2, 3), keepdim=True)
            return self.lamb_l[:, None, None] * low + (1 + self.lamb_h[:, None, None]) * x

    class spatial_strip_att(nn.Module):
        def __init__(self, channels: int, vertical: bool):
            super().__init__()
            self.vertical, self.k = vertical, 7
            self.conv = nn.Conv2d(channels, 7, 1, bias=False)

        def forward(self, x):
            weights = self.conv(x.mean((2, 3), keepdim=True)).reshape(len(x), 1, 7, 1).sigmoid()
            padding, kernel = ((0, 0, 3, 3), (7, 1)) if self.vertical else ((3, 3, 0, 0), (1, 7))
            return respond(F.pad(x, padding, "reflect"), weights, x, kernel)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bare.dynamic_filter(16),
        lambda: Bare.spatial_strip_att(6, False),
        lambda: Bare.spatial_strip_att(6, True),
    ],
    ids=["filter", "rows", "columns"],
)
def test_members_without_weights_may_have_other_names(make):
    module = draw_weights(make())
    reference = copy.deepcopy(module)
    assert len(accelerate(module).swapped) == 1
    assert_same(module, reference, picture((3, module.conv.in_channels, 8, 9)))


def test_nothing_to_do():
    report = accelerate(nn.Sequential(nn.Conv2d(3, 3, 3), irnext.LocalAttention(8)))
    assert report.swapped == report.left == () and "nothing to accelerate" in str(report)


@pytest.mark.parametrize("call", [accelerate, restore_original])
def test_only_modules(call):
    with pytest.raises(TypeError, match="must be an nn\\.Module, got dict"):
        call({})
