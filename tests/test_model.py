"""IRNeXt and LocalAttention against the published code's numbers, and how they behave as modules."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import SERVED, draw, load_fixture, published_state_dict, randomise, relative_error

import irnext
from irnext.blocks import local_window


@pytest.mark.parametrize(("device", "backend"), SERVED)
@pytest.mark.parametrize("low_pass", ["global", "local"])
def test_model_gives_the_published_numbers(low_pass, device, backend):
    fixture = load_fixture(f"model-{low_pass}")
    model = irnext.IRNeXt(blocks=int(fixture["blocks"]), low_pass=low_pass).to(device).double().eval()
    model.load_state_dict(published_state_dict(int(fixture["blocks"]), int(fixture["seed"])))
    with torch.no_grad(), irnext.use_backend(backend):
        outputs = model(torch.from_numpy(fixture["x"]).to(device))
    for output, name in zip(outputs, ("quarter", "half", "full"), strict=True):
        assert relative_error(output, fixture[name]) < 1e-9


@pytest.mark.parametrize(("device", "backend"), SERVED)
def test_training_step_gives_the_published_numbers(device, backend):
    fixture = load_fixture("train-global")
    model = irnext.IRNeXt(blocks=int(fixture["blocks"])).to(device).double()
    model.load_state_dict(published_state_dict(int(fixture["blocks"]), int(fixture["seed"])))
    loss = irnext.DualDomainLoss()
    target = torch.from_numpy(fixture["target"]).to(device)
    with irnext.use_backend(backend):
        outputs = model(torch.from_numpy(fixture["x"]).to(device))
        total = loss(outputs, target)
        total.backward()
    spatial, frequency = loss.parts(outputs, target)
    assert spatial.item() == pytest.approx(float(fixture["spatial"]), rel=1e-9)
    assert frequency.item() == pytest.approx(float(fixture["frequency"]), rel=1e-9)
    assert total.item() == pytest.approx(float(fixture["loss"]), rel=1e-9)

    norms = {model.official_name(name): p.grad.norm().item() for name, p in model.named_parameters()}
    assert list(norms) == list(fixture["grad_names"])
    # A floor for gradients that are pure rounding, such as a bias before an instance norm.
    np.testing.assert_allclose(list(norms.values()), fixture["grad_norms"], rtol=1e-9, atol=1e-12)
    state = model.official_state_dict()
    means = [state[name].double().mean().item() for name in fixture["buffer_names"]]
    np.testing.assert_allclose(means, fixture["buffer_means"], rtol=1e-9)


@pytest.mark.parametrize(("device", "backend"), SERVED)
@pytest.mark.parametrize("name", ["lam-global-eval", "lam-global-train", "lam-local-eval"])
def test_attention_gives_the_published_numbers(name, device, backend):
    fixture = load_fixture(name)
    module = irnext.LocalAttention(int(fixture["channels"]), low_pass=str(fixture["low_pass"]))
    module = module.to(device).double().train(bool(fixture["train"]))
    shapes = {key: tuple(value.shape) for key, value in module.official_state_dict().items()}
    weights = {key: draw(key, shape, int(fixture["seed"])) for key, shape in shapes.items()}
    module.load_state_dict(weights)
    x = torch.from_numpy(fixture["x"]).to(device).requires_grad_()
    with irnext.use_backend(backend):
        y = module(x)
        y.backward(torch.from_numpy(fixture["grad_output"]).to(device))
    assert relative_error(y, fixture["y"]) < 1e-9
    assert relative_error(x.grad, fixture["grad_x"]) < 1e-9
    for key, parameter in module.named_parameters():
        expected = fixture["grad_" + module.official_name(key).replace(".", "_")]
        assert relative_error(parameter.grad, expected) < 1e-9
    for key, buffer in module.named_buffers():
        if "centre" not in key:
            expected = fixture["buffer_" + module.official_name(key).replace(".", "_")]
            np.testing.assert_allclose(buffer.double().cpu().numpy(), expected, rtol=1e-9)


def direct_attention(module: irnext.LocalAttention, z: torch.Tensor) -> torch.Tensor:
    """The local attention module from its definition, pixel by pixel shift, without `dynamic_conv2d`."""
    n, c, h, w = z.shape
    k, r = module.kernel_size, module.kernel_size // 2
    mean = z.mean((2, 3))
    logits = module.norm(module.project(mean[..., None, None])).view(n, module.groups, k * k)
    activation = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "softmax": lambda a: a.softmax(-1)}
    taps = activation[module.activation](logits).repeat_interleave(c // module.groups, 1)
    if module.low_pass == "exact":
        low = taps.mean(-1, keepdim=True)
        taps = low + module.high_pass_weight[:, None] * (taps - low)
    padded = torch.nn.functional.pad(z, (r, r, r, r), "reflect")
    response = sum(
        taps[:, :, i * k + j, None, None] * padded[:, :, i : i + h, j : j + w]
        for i in range(k)
        for j in range(k)
    )
    if module.low_pass in ("exact", None):
        return response + z
    low, high = module.low_gain[:, None, None], module.high_gain[:, None, None]
    inner = module.inner_gain
    return low * ((1 + inner) * response - inner * mean[..., None, None]) + (1 + high) * z


@pytest.mark.parametrize("low_pass", ["global", "exact", None])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize(("groups", "kernel_size"), [(8, 3), (2, 5), (16, 1)])
def test_attention_follows_its_definition(low_pass, activation, groups, kernel_size):
    module = irnext.LocalAttention(16, groups, kernel_size, low_pass, activation).double()
    randomise(module).eval()
    z = torch.randn(3, 16, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(module(z), direct_attention(module, z), rtol=1e-12, atol=1e-12)


def test_attention_of_a_sample_does_not_depend_on_the_others():
    module = randomise(irnext.LocalAttention(16)).eval()
    z = torch.randn(4, 16, 9, 9)
    torch.testing.assert_close(module(z)[2:3], module(z[2:3]))
    assert module(z[:0]).shape == (0, 16, 9, 9)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("low_pass", ["global", "local"])
def test_an_attention_with_replaced_or_hooked_parts_gives_the_same(low_pass, training):
    torch.manual_seed(0)
    plain = randomise(irnext.LocalAttention(16, low_pass=low_pass)).double().train(training)

    class Norm(torch.nn.BatchNorm2d):
        """One of somebody's own."""

    hooked, replaced = copy.deepcopy(plain), copy.deepcopy(plain)
    seen = []
    hooked.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    hooked.project.register_forward_hook(lambda module, inputs, output: seen.append(output))
    replaced.norm = Norm(plain.norm.num_features, dtype=torch.float64).train(training)
    replaced.norm.load_state_dict(plain.norm.state_dict())
    z = torch.randn(3, 16, 9, 8, dtype=torch.float64)
    results = []
    for module in (plain, hooked, replaced):
        y = module(z.requires_grad_())
        results.append([y, *torch.autograd.grad(y.sin().sum(), (z, *module.parameters())), *module.buffers()])
    assert len(seen) == 2
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)


def test_an_attention_with_other_settings_of_its_parts_heeds_them():
    z = torch.randn(3, 16, 9, 8)
    fixed, bare, own = (randomise(irnext.LocalAttention(16)) for _ in range(3))
    fixed.norm.track_running_stats = False
    before = fixed.norm.running_mean.clone()
    fixed(z)
    assert torch.equal(fixed.norm.running_mean, before)
    bare.norm = type(bare.norm)(bare.norm.num_features, affine=False)
    assert bare(z).isfinite().all()
    own.norm.forward = lambda logits: torch.zeros_like(logits)
    own.low_gain.data.fill_(1)
    own.high_gain.data.fill_(0)
    own.inner_gain.data.fill_(0)
    torch.testing.assert_close(own(z), z)  # tanh(0) = 0 for every tap


def test_a_half_precision_attention_filters_as_well_as_its_parameters_allow():
    torch.manual_seed(0)
    exact = randomise(irnext.LocalAttention(16)).bfloat16().double().eval()
    module = copy.deepcopy(exact).bfloat16()
    z = torch.randn(2, 16, 9, 8).bfloat16()
    y = module(z)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact(z.double()), rtol=2**-8, atol=2**-8)


def test_local_window_follows_each_input_or_is_fixed():
    module = randomise(irnext.LocalAttention(8, low_pass="local")).double().eval()
    small, large = (torch.randn(1, 8, side, side, dtype=torch.float64) for side in (16, 32))
    free = module(large)
    module(small)
    torch.testing.assert_close(module(large), free)  # the published code would keep the small window
    module.window = local_window(16, 16)
    assert (module(large) - free).abs().max() > 1e-3
    module.window = (15, 15)
    torch.testing.assert_close(module(large), free)
    module.window = (1000, 1000)  # as large as the plane: the global mean
    twin = irnext.LocalAttention(8).double().eval()
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(large), twin(large))


def test_model_can_fix_the_windows_as_the_published_code_does():
    model = irnext.IRNeXt(blocks=1, width=8, low_pass="local")
    model.fix_local_window(256)
    windows = [[a.window for a in stage.layers[-1].msm.attentions] for stage in model.encoder]
    assert windows == [[(s, s) for s in sides] for sides in ((15, 30, 60), (7, 15, 30), (3, 7, 15))]
    model.fix_local_window(None)
    assert all(a.window is None for a in model.modules() if isinstance(a, irnext.LocalAttention))


def test_published_names_round_trip_bit_for_bit():
    weights = published_state_dict(8, seed=5)
    model = irnext.IRNeXt(blocks=8)
    model.load_state_dict(weights)
    found = model.official_state_dict()
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    twin = irnext.IRNeXt(blocks=8)
    twin.load_state_dict(model.state_dict())  # our own names load as well
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_loading_is_strict():
    model = irnext.IRNeXt(blocks=4)
    weights = published_state_dict(4, seed=5)
    missing = {name: value for name, value in weights.items() if not name.endswith("lamb_h")}
    with pytest.raises(RuntimeError, match="high_gain"):
        model.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Encoder\.9|encoder\.9"):
        model.load_state_dict({**weights, "Encoder.9.layers.0.main.0.main.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="exact"):
        irnext.IRNeXt(blocks=4, low_pass="exact").load_state_dict(weights)
    with pytest.raises(ValueError, match="exact"):
        module = irnext.LocalAttention(32, low_pass="exact")
        module.load_state_dict(irnext.LocalAttention(32).official_state_dict())


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"low_pass": "exact"}, 64),
        ({"pooling": "max"}, 64),
        ({"pooling": "convolution"}, 64),
        ({"branch": "conv"}, 64),
        ({"branch": "lam-no-fm", "activation": "softmax"}, 64),
        ({"msm_per_block": 0}, 64),
        ({"msm_per_block": 2, "blocks": 2}, 64),
        ({"pool_rates": (2,), "activation": "sigmoid"}, 64),
        ({"pool_rates": (8, 2)}, 96),
        ({"kernel_size": 5, "groups": 2, "low_pass": "local", "pool_rates": (4, 2)}, 96),
    ],
)
def test_every_option_trains_and_restores(options, size):
    model = randomise(irnext.IRNeXt(**{"blocks": 1, "width": 8, **options}))
    x, target = torch.rand(2, 2, 3, size, 64)
    outputs = model(x)
    assert [tuple(y.shape[2:]) for y in outputs] == [(size // 4, 16), (size // 2, 32), (size, 64)]
    irnext.DualDomainLoss()(outputs, target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert model.eval()(x)[-1].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "median"}, "pooling.*average, max, convolution"),
        ({"activation": "relu"}, "activation.*tanh, sigmoid, softmax"),
        ({"branch": "none"}, "branch.*lam, lam-no-fm, conv"),
        ({"msm_per_block": 3}, "msm_per_block.*0, 1, 2"),
        ({"low_pass": "gaussian"}, "low_pass.*global, local, exact"),
        ({"blocks": 0}, "blocks is 0"),
        ({"blocks": 1, "msm_per_block": 2}, "msm_per_block=2"),
        ({"groups": 7}, "groups is 7"),
        ({"kernel_size": 4}, "kernel_size is 4"),
        ({"pool_rates": (2, 4)}, "falling powers of two"),
        ({"pool_rates": (6, 2)}, "falling powers of two"),
        ({"pool_rates": (8, 4, "x")}, "falling powers of two"),
        ({"pool_rates": ()}, "falling powers of two"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        irnext.IRNeXt(**options)


@pytest.mark.parametrize(
    "shape", [(1, 3, 32, 64), (1, 3, 64, 80), (1, 3, 100, 64), (1, 1, 64, 64), (3, 64, 64)]
)
def test_a_wrong_size_names_the_rule(shape):
    with pytest.raises(ValueError, match=r"multiples of 32 and at least 64|\(N, 3, H, W\)"):
        irnext.IRNeXt(blocks=1, width=8)(torch.zeros(shape))


def test_loss_follows_its_equations():
    target = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    outputs = [torch.rand(2, 3, 16 // s, 24 // s, dtype=torch.float64) for s in (4, 2, 1)]
    spatial, frequency = irnext.DualDomainLoss().parts(outputs, target)
    expected_spatial = expected_frequency = 0
    for output in outputs:
        scaled = torch.nn.functional.interpolate(target, output.shape[2:], mode="bilinear")
        expected_spatial += (output - scaled).abs().mean()
        a, b = torch.fft.fft2(output), torch.fft.fft2(scaled)
        parts = torch.stack((a.real - b.real, a.imag - b.imag))
        expected_frequency += parts.abs().mean()
    torch.testing.assert_close(spatial, expected_spatial)
    torch.testing.assert_close(frequency, expected_frequency)
    torch.testing.assert_close(
        irnext.DualDomainLoss(0.5)(outputs, target), expected_spatial + 0.5 * expected_frequency
    )
    half = [output.bfloat16() for output in outputs]
    assert irnext.DualDomainLoss()(half, target.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="N and C must agree"):
        irnext.DualDomainLoss()([outputs[0][:1]], target)


def test_empty_batches_and_the_meta_device():
    model = irnext.IRNeXt(blocks=1, width=8).eval()
    assert [tuple(y.shape) for y in model(torch.zeros(0, 3, 64, 96))][-1] == (0, 3, 64, 96)
    outputs = model.to("meta")(torch.zeros(1, 3, 64, 96, device="meta"))
    assert [tuple(y.shape) for y in outputs] == [(1, 3, 16, 24), (1, 3, 32, 48), (1, 3, 64, 96)]


def test_models_survive_pickling_and_copying():
    model = randomise(irnext.create_model("irnext-gopro", blocks=1, width=8)).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = model(x)[-1]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x)[-1], expected)
        assert list(twin.official_state_dict()) == list(model.official_state_dict())


def test_every_task_of_the_paper_has_a_model():
    names = [name for name in irnext.list_models() if name.startswith("irnext-")]
    blocks = {name: irnext.create_model(name, width=8).settings["blocks"] for name in names}
    assert blocks["irnext-gopro"] == 14
    assert {n for n, b in blocks.items() if b == 16} == {"irnext-rsblur", "irnext-dpdd", "irnext-rain13k"}
    assert sum(b == 4 for b in blocks.values()) == 7
    with pytest.raises(ValueError, match="irnext-gopro"):
        irnext.create_model("irnext-gopr")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype, layout):
    model = randomise(irnext.IRNeXt(blocks=1, width=16)).eval().to(memory_format=layout)
    x = torch.rand(1, 3, 64, 96).to(memory_format=layout)
    with torch.no_grad():
        expected = model(x)[-1]
        with torch.autocast("cpu", dtype):
            assert relative_error(model(x)[-1], expected) < 0.02
        assert relative_error(model.to(dtype)(x.to(dtype))[-1], expected) < 0.02


def assert_compiled_equals_eager(model, backend, x):
    """The outputs and, in training, every gradient; statistics start from the same state in both."""
    torch._dynamo.reset()
    state = copy.deepcopy(model.state_dict())
    results = []
    for function in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.load_state_dict(state)
        model.zero_grad()
        outputs = function(x)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        if model.training:
            sum(y.square().mean() for y in outputs).backward()
        results.append(
            [*(y.detach() for y in outputs), *(p.grad for p in model.parameters() if model.training)]
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_compiled_model_equals_eager():
    model = randomise(irnext.IRNeXt(blocks=1, width=8, low_pass="local")).double().eval()
    assert_compiled_equals_eager(model, "inductor", torch.rand(2, 3, 64, 64, dtype=torch.float64))


def test_traced_training_step_equals_eager():
    model = randomise(irnext.IRNeXt(blocks=1, width=8)).double()
    assert_compiled_equals_eager(model, "aot_eager", torch.rand(2, 3, 64, 64, dtype=torch.float64))


@pytest.mark.parametrize("low_pass", ["global", "local", "exact", None])
def test_compiled_training_of_the_attention_equals_eager(low_pass):
    module = randomise(irnext.LocalAttention(16, low_pass=low_pass)).double()
    assert_compiled_equals_eager(module, "inductor", torch.rand(2, 16, 9, 12, dtype=torch.float64))
