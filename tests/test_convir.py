"""ConvIR against the published code's numbers and its formulas written plainly, in files, as a module."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CPU_BACKENDS,
    FIXTURES,
    SERVED,
    check_gradients,
    draw,
    load_fixture,
    randomise,
    relative_error,
)
from torch.func import functional_call

import irnext
from irnext import bands, checkpoints
from irnext.complexity import measure
from irnext.models import convir, supports
from irnext.models.convir import ConvIR, MultiShapeAttention

LAYOUT = {name: tuple(shape) for name, shape in json.loads((FIXTURES / "convir-s.json").read_text()).items()}
SMALL = {"blocks": 1, "width": 8, "dilations": (1, 3, 7)}  # takes pictures from 64 x 64


def small(**settings) -> ConvIR:
    torch.manual_seed(0)
    return randomise(ConvIR(**{**SMALL, **settings})).eval()


def module(channels: int = 16, groups: int = 8, dilation: int = 3) -> MultiShapeAttention:
    torch.manual_seed(0)
    return randomise(MultiShapeAttention(channels, groups, dilation)).double().eval()


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# ---- the published numbers -------------------------------------------------------------------------


def test_the_network_gives_the_published_numbers():
    fixture = load_fixture("convir-s")
    model = irnext.create_model("convir-s").double().eval()
    weights = {name: draw(name, shape, int(fixture["seed"])) for name, shape in LAYOUT.items()}
    model.load_state_dict(weights, strict=True)
    x = torch.from_numpy(np.random.default_rng(65).uniform(0, 1, (1, 3, 256, 256)))
    with torch.no_grad():
        quarter, half, full = model(x)
    found = {"quarter": quarter, "half": half, "full_every_2nd": full[..., ::2, ::2]}
    for name, output in found.items():
        assert np.abs(output.numpy() - fixture[name]).max() < 1e-9
        assert relative_error(output, fixture[name]) < 1e-9


@pytest.mark.parametrize(("device", "backend"), SERVED)
def test_the_module_gives_the_published_numbers(device, backend):
    fixture = load_fixture("convir-multishape-d7")
    attention = MultiShapeAttention(fixture["x"].shape[1], dilation=int(fixture["dilation"]))
    shapes = {name: tuple(entry.shape) for name, entry in attention.official_state_dict().items()}
    attention.load_state_dict(
        {name: draw(name, shape, int(fixture["seed"])) for name, shape in shapes.items()}
    )
    attention = attention.to(device).double().eval()
    x = torch.from_numpy(fixture["x"]).to(device).requires_grad_()
    with irnext.use_backend(backend):
        y = attention(x)
        y.backward(torch.from_numpy(fixture["grad_output"]).to(device))
    assert relative_error(y, fixture["y"]) < 1e-9
    assert relative_error(x.grad, fixture["grad_x"]) < 1e-9


@pytest.mark.parametrize(
    ("name", "params", "entries"),
    [("convir-s", 5.531, 506), ("convir-b", 8.631, 602), ("convir-l", 14.831, 794)],
)
def test_sizes_are_the_published_ones(name, params, entries):
    with torch.device("meta"):
        model, rain = irnext.create_model(name), irnext.create_model(f"{name}-rain")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)
    assert len(model.state_dict()) == entries
    assert model.settings["dilations"] == (7, 9, 11) and rain.settings["dilations"] == (3, 7, 9)
    assert list(rain.state_dict()) == list(model.state_dict())


def test_the_cost_is_the_published_one():
    """The larger ones differ by residual blocks of two convolutions only."""
    with torch.device("meta"):
        cost = measure(irnext.create_model("convir-s"))
    assert cost.macs / 1e9 == pytest.approx(38.72, abs=0.005)
    pooled = 2 * sum(32 * 2**level * (256 >> level) ** 2 for level in range(3)) * (1 / 4 + 1 / 16 + 1 / 64)
    assert cost.tap_macs == pooled * (9 + 3 + 3)


def test_entries_are_the_published_ones_in_their_order():
    with torch.device("meta"):
        model = irnext.create_model("convir-s")
    found = {name: tuple(entry.shape) for name, entry in model.official_state_dict().items()}
    assert list(found.items()) == list(LAYOUT.items())


# ---- the formulas ----------------------------------------------------------------------------------


def unfolded(x: torch.Tensor, rows: int, columns: int, dilation: int) -> torch.Tensor:
    """(N, C, T, H, W): what every tap sees, the border reflected."""
    n, c, h, w = x.shape
    down, across = dilation * (rows // 2), dilation * (columns // 2)
    padded = F.pad(x, (across, across, down, down), "reflect")
    return F.unfold(padded, (rows, columns), dilation).view(n, c, rows * columns, h, w)


def plain_filter(x: torch.Tensor, weights: dict, rows: int, columns: int, dilation: int, norm, mean_over):
    """lamb_l ((1 + inside_all) L - inside_all M) + (1 + lamb_h) x, M being x's mean over some axes."""
    pixels = F.adaptive_avg_pool2d(x, 1)
    attention = norm(F.conv2d(pixels, weights["conv.weight"])).tanh()
    groups = attention.shape[1] // (rows * columns)
    attention = attention.view(len(x), groups, 1, rows * columns, 1, 1)
    taps = unfolded(x, rows, columns, dilation)
    grouped = taps.view(len(x), groups, -1, *taps.shape[2:])
    low = (attention * grouped).sum(3).view(x.shape)
    inner = weights["inside_all"]
    filtered = (1 + inner) * low - inner * x.mean(mean_over, keepdim=True)
    return weights["lamb_l"][:, None, None] * filtered + (1 + weights["lamb_h"][:, None, None]) * x


def plain_module(x: torch.Tensor, state: dict, dilation: int, training: bool) -> torch.Tensor:
    """The multi-shape module by its published entries; running statistics in `state` are updated."""

    def within(prefix: str) -> dict:
        return {name.removeprefix(prefix): entry for name, entry in state.items() if name.startswith(prefix)}

    square = within("square_att.")

    def norm(z: torch.Tensor) -> torch.Tensor:
        running = square["bn.running_mean"], square["bn.running_var"]
        return F.batch_norm(z, *running, square["bn.weight"], square["bn.bias"], training, 0.1, 1e-5)

    y = plain_filter(x, square, 3, 3, dilation, norm, (2, 3))
    z = plain_filter(x, within("strip_att.H_spatial_att."), 1, 3, dilation, lambda z: z, 3)
    z = plain_filter(z, within("strip_att.W_spatial_att."), 3, 1, dilation, lambda z: z, 2)
    return y + state["strip_att.gamma"] * z + state["strip_att.beta"] * x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "groups", "dilation"), [(16, 8, 7), (6, 1, 2), (8, 8, 1)])
def test_the_module_follows_its_formulas(channels, groups, dilation, training):
    """With all gradients and running statistics, on a plane of odd sides."""
    attention, x = module(channels, groups, dilation).train(training), picture(3, channels, 9, 13)
    state = {name: entry.clone() for name, entry in attention.official_state_dict().items()}
    names = [attention.official_name(name) for name, _ in attention.named_parameters()]
    results = []
    for run, parameters in (
        (attention, [*attention.parameters()]),
        (
            lambda x: plain_module(x, state, dilation, training),
            [state[name].requires_grad_() for name in names],
        ),
    ):
        y = run(x.requires_grad_())
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, *parameters))))
    for name, found, expected in zip(("y", "x", *names), *results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: name + m)
        assert expected.abs().max() > 1e-6, name  # else nothing would be compared
    for name in ("bn.running_mean", "bn.running_var"):
        found = attention.official_state_dict()[f"square_att.{name}"]
        torch.testing.assert_close(found, state[f"square_att.{name}"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_module_are_those_of_finite_differences(training):
    attention, x = module(4, 2, 2).train(training), picture(2, 4, 3, 4).requires_grad_()
    parameters = dict(attention.named_parameters())

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(attention, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters.values()), fast_mode=True)


def test_gradients_of_the_network_are_those_of_finite_differences():
    model, x = small().double().train(), picture(2, 3, 64, 64)
    check_gradients(model, x, 1e-5)


def test_a_new_module_doubles_its_input():
    """As published: the square filter is the identity, and so is the strips' share of the input."""
    x = picture(2, 16, 9, 10)
    torch.testing.assert_close(MultiShapeAttention(16, dilation=3).double()(x), 2 * x)


# ---- types and layouts -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_other_types_are_as_close_as_their_rounding(dtype, autocast):
    attention, x = module(), picture(2, 16, 11, 12).to(dtype)
    expected = attention(x.double())
    if autocast:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = copy.deepcopy(attention).float()(x)
    else:
        y = copy.deepcopy(attention).to(dtype)(x)
        expected = copy.deepcopy(attention).to(dtype).double()(x.double())
    assert y.dtype == dtype
    assert relative_error(y, expected) < 4 * torch.finfo(dtype).eps


def test_the_network_in_bfloat16_is_as_close_as_its_rounding():
    model, x = small(), picture(2, 3, 64, 64).float()
    expected = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x)
    for output, wanted in zip(outputs, expected, strict=True):
        assert relative_error(output, wanted) < 10 * torch.finfo(torch.bfloat16).eps


def test_the_layout_of_the_input_does_not_matter():
    attention, x = module(), picture(2, 16, 11, 12)
    last = attention(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    sliced = torch.cat((x, x), 3)[..., :12]
    for y in (last, attention(sliced)):
        torch.testing.assert_close(y, attention(x), rtol=1e-12, atol=1e-12)


def test_every_backend_gives_the_same_network():
    model, x = small().double(), picture(1, 3, 64, 64)
    outputs = []
    for backend in CPU_BACKENDS:
        with irnext.use_backend(backend), torch.no_grad():
            outputs.append(model(x)[-1])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-11, atol=1e-11)


def test_an_empty_batch_gives_empty_outputs():
    shapes = [tuple(output.shape) for output in small()(torch.empty(0, 3, 64, 96))]
    assert shapes == [(0, 3, 16, 24), (0, 3, 32, 48), (0, 3, 64, 96)]
    assert module()(torch.empty(0, 16, 9, 9, dtype=torch.float64)).shape == (0, 16, 9, 9)


# ---- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilations", [(1, 3, 7), (2, 1, 1), (1, 4, 1), (1, 1, 8)])
def test_the_least_side_is_the_first_at_which_reflections_fit(dilations):
    model = small(dilations=dilations)
    least = model.minimum_size
    assert least == (64 if dilations == (1, 3, 7) else 96)
    assert model(torch.rand(1, 3, least, least))[-1].shape == (1, 3, least, least)
    with pytest.raises(ValueError, match=rf"multiples of 32 and at least {least} \(irnext\.restore"):
        model(torch.rand(1, 3, least, least - 32))
    model.minimum_size = 32
    with pytest.raises(ValueError, match="must be smaller than the plane"):
        model(torch.rand(1, 3, least, least - 32))


@pytest.mark.parametrize(("name", "least"), [("convir-s", 256), ("convir-b-rain", 128)])
def test_each_name_says_the_least_side_it_takes(name, least):
    with torch.device("meta"):
        assert irnext.create_model(name).minimum_size == least
    assert supports(name)["minimum size"] == least and supports(name)["size multiple"] == 32


def test_pictures_of_any_size_are_restored():
    model, x = small(dilations=(2, 3, 7)).double(), picture(1, 3, 61, 70)
    padded = F.pad(x, (0, 26, 0, 35), "reflect")
    expected = model(padded)[-1][..., :61, :70].clamp(0, 1)
    torch.testing.assert_close(irnext.restore(model, x), expected)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 80), (1, 3, 32, 64)])
def test_inputs_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)|multiples of 32.*irnext\.restore"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 0}, "blocks is 0: it must be at least 1"),
        ({"width": 5}, "width is 5: .*even"),
        ({"width": 12}, "groups is 8: it must divide the width 12"),
        ({"dilations": (7, 9)}, r"dilations is \(7, 9\): it must be three whole numbers.*8, 4, 2"),
        ({"dilations": 7}, "dilations is 7: it must be three"),
        ({"dilations": (7, 0, 9)}, "three whole numbers of at least 1"),
        ({"dilations": (7, 2.5, 9)}, "three whole numbers of at least 1"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvIR(**settings)


# ---- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"blocks": 1, "width": 8}, {"blocks": 3, "width": 12, "groups": 4}])
def test_weights_tell_the_settings(settings):
    with torch.device("meta"):
        model = ConvIR(**settings)
    shapes = {name: entry.shape for name, entry in model.state_dict().items()}
    expected = {name: value for name, value in model.settings.items() if name != "dilations"}
    given = {"blocks": 7, "dilations": (1, 1, 1)}
    architecture = convir.ARCHITECTURE
    assert architecture.settings(shapes, {}) == expected
    assert architecture.settings(shapes, given) == {**expected, **given}
    layer = f"decoder.1.layers.{settings['blocks'] - 1}."
    shapes[f"{layer}conv1.weight"] = torch.Size([3])
    shapes[f"{layer}msm.attentions.1.square.project.weight"] = torch.Size([9, 1, 1, 1])
    assert architecture.settings(shapes, {}) == expected  # so that the two are said to be wrong


@pytest.mark.parametrize("name", ["ours.safetensors", "published.pkl"])
def test_a_file_gives_the_model_back(tmp_path, name):
    model, x = small(), picture(1, 3, 64, 96).float()
    irnext.save(model, tmp_path / "ours.safetensors")
    torch.save({"model": model.official_state_dict()}, tmp_path / "published.pkl")
    published = name == "published.pkl"
    loaded = irnext.load(tmp_path / name, **({"dilations": SMALL["dilations"]} if published else {}))
    assert type(loaded) is ConvIR and loaded.settings == model.settings and loaded.minimum_size == 64
    for output, expected in zip(loaded(x), model(x), strict=True):
        assert torch.equal(output, expected)
    said = checkpoints.assumption(tmp_path / name, loaded)
    assert ("dilations of 1, 3, 7 assumed" in said) if published else said is None


@pytest.mark.parametrize("damage", [(), ("stem.weight",), ("strips.vertical.low_gain", "square.norm.bias")])
def test_relatives_are_told_apart(tmp_path, damage):
    """Though the successor has every entry that all IRNeXt have; also where some are missing."""
    for model in (small(), irnext.IRNeXt(blocks=1, width=8), irnext.create_model("mimo-unet", num_res=1)):
        entries = model.state_dict().items()
        state = {
            model.official_name(name): entry for name, entry in entries if not name.endswith(damage or "none")
        }
        architecture = checkpoints.recognise(state, {})
        assert architecture.build is type(model)


def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path):
    state = small().official_state_dict()
    del state["Decoder.1.layers.0.main.1.dynas.2.strip_att.beta"]
    state["Encoder.0.layers.0.main.1.dynas.0.square_att.lamb_l"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "damaged.pkl")
    with pytest.raises(
        ValueError, match=r"fit ConvIR.*1 missing \(Decoder\.1.*strip_att\.beta.*lamb_l is \(3,\)"
    ):
        irnext.load(tmp_path / "damaged.pkl")


# ---- the module as others use it -------------------------------------------------------------------


def test_a_copy_is_a_model_of_its_own():
    model, x = small(), picture(1, 3, 64, 64).float()
    before = model(x)[-1]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.settings == model.settings and other.minimum_size == model.minimum_size
        assert torch.equal(other(x)[-1], before)
        with torch.no_grad():
            other.stem.weight.zero_()
        assert torch.equal(model(x)[-1], before)


def test_it_compiles_without_graph_breaks():
    attention, x = module(), picture(2, 16, 9, 10)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attention(x))


def test_what_is_made_for_irnext_says_so():
    model = small()
    with pytest.raises(TypeError, match=r"optimize takes an irnext\.IRNeXt, not .*ConvIR"):
        irnext.optimize(model)
    with pytest.raises(TypeError, match=r"only an irnext\.IRNeXt can be exported, not .*ConvIR"):
        irnext.export_model(model, "unused.pt2")
    with pytest.raises(ValueError, match="max_memory is for an IRNeXt, and the model is ConvIR: use tile"):
        irnext.restore(model, torch.rand(3, 64, 64), max_memory="1G")
    assert not supports("convir-s")["bands"]


def test_an_irnext_with_a_dilated_attention_is_optimized_to_the_same():
    """Its parts know taps side by side only."""
    torch.manual_seed(0)
    model = irnext.IRNeXt(blocks=1, width=8)
    model.encoder[0].layers[0].msm.attentions[2] = irnext.LocalAttention(8, dilation=5)
    randomise(model).double().eval()
    x = picture(1, 3, 64, 64)
    for output, expected in zip(irnext.optimize(model)(x), model(x), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"encoder\.0\.layers\.0\.msm\.attentions\.2 was replaced"):
        bands.check_unchanged(model)
