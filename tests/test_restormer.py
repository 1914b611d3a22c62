"""Restormer against the paper's structure written plainly, in files, and as a module."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import check_gradients, draw, relative_error
from plain_layers import conv2d, gelu

import irnext
from irnext.complexity import measure
from irnext.models.restormer import ARCHITECTURE, ChannelAttention, ChannelNorm, Restormer

SMALL = {"dim": 4, "num_blocks": (2, 1, 1, 2), "num_refinement_blocks": 1, "heads": (1, 2, 2, 4)}
BIASED = {"bias": True, "heads": (2, 4, 1, 8), "ffn_expansion_factor": 1.5, "num_blocks": (1, 2, 1, 1)}
BIAS_FREE = {"LayerNorm_type": "BiasFree", "dim": 6, "num_blocks": (1, 1, 1, 1), "heads": (3, 1, 2, 4)}
PUBLISHED = {
    "dim": 48,
    "num_blocks": (4, 6, 6, 8),
    "num_refinement_blocks": 4,
    "heads": (1, 2, 4, 8),
    "ffn_expansion_factor": 2.66,
    "bias": False,
    "LayerNorm_type": "WithBias",
}


def drawn(seed: int = 0, **settings) -> Restormer:
    """A small model with weights drawn by their names."""
    model = Restormer(**{**SMALL, **settings})
    state = model.state_dict()
    model.load_state_dict({name: draw(name, tuple(entry.shape), seed) for name, entry in state.items()})
    return model.eval()


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expected_entries(
    dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor, bias, LayerNorm_type
) -> dict[str, tuple[int, ...]]:
    """Published names and shapes in the published order, written out from the paper's Fig. 2."""
    entries: dict[str, tuple[int, ...]] = {}

    def add(name: str, inputs: int, outputs: int, size: int, with_bias: bool = bias) -> None:
        entries[f"{name}.weight"] = (outputs, inputs, size, size)
        if with_bias:
            entries[f"{name}.bias"] = (outputs,)

    def add_blocks(name: str, number: int, c: int, head_count: int) -> None:
        hidden = int(c * ffn_expansion_factor)
        leaves = ("weight", "bias") if LayerNorm_type == "WithBias" else ("weight",)
        for i in range(number):
            block = f"{name}.{i}"
            entries.update({f"{block}.norm1.body.{leaf}": (c,) for leaf in leaves})
            entries[f"{block}.attn.temperature"] = (head_count, 1, 1)
            add(f"{block}.attn.qkv", c, 3 * c, 1)
            add(f"{block}.attn.qkv_dwconv", 1, 3 * c, 3)
            add(f"{block}.attn.project_out", c, c, 1)
            entries.update({f"{block}.norm2.body.{leaf}": (c,) for leaf in leaves})
            add(f"{block}.ffn.project_in", c, 2 * hidden, 1)
            add(f"{block}.ffn.dwconv", 1, 2 * hidden, 3)
            add(f"{block}.ffn.project_out", hidden, c, 1)

    add("patch_embed.proj", 3, dim, 3, False)
    for level in (1, 2, 3):
        c = dim * 2 ** (level - 1)
        add_blocks(f"encoder_level{level}", num_blocks[level - 1], c, heads[level - 1])
        add(f"down{level}_{level + 1}.body.0", c, c // 2, 3, False)
    add_blocks("latent", num_blocks[3], 8 * dim, heads[3])
    for level in (3, 2):
        c = dim * 2 ** (level - 1)
        add(f"up{level + 1}_{level}.body.0", 2 * c, 4 * c, 3, False)
        add(f"reduce_chan_level{level}", 2 * c, c, 1)
        add_blocks(f"decoder_level{level}", num_blocks[level - 1], c, heads[level - 1])
    add("up2_1.body.0", 2 * dim, 4 * dim, 3, False)
    add_blocks("decoder_level1", num_blocks[0], 2 * dim, heads[0])
    add_blocks("refinement", num_refinement_blocks, 2 * dim, heads[0])
    add("output", 2 * dim, 3, 3)
    return entries


def reference(model: Restormer, x: np.ndarray) -> np.ndarray:
    """The output in float64, with the model's settings and entries."""
    weights = {name: entry.double().numpy() for name, entry in model.state_dict().items()}
    settings = model.settings

    def conv(name: str, x: np.ndarray, groups: int = 1) -> np.ndarray:
        return conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), groups=groups)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        mean = x.mean(1, keepdims=True)
        deviation = np.sqrt(((x - mean) ** 2).mean(1, keepdims=True) + 1e-5)
        scale = weights[f"{name}.body.weight"][:, None, None]
        if settings["LayerNorm_type"] == "BiasFree":
            return x / deviation * scale
        return (x - mean) / deviation * scale + weights[f"{name}.body.bias"][:, None, None]

    def attention(name: str, x: np.ndarray) -> np.ndarray:
        """Sample by sample, head by head, channel by channel."""
        qkv = conv(f"{name}.qkv", x)
        query, key, value = np.split(conv(f"{name}.qkv_dwconv", qkv, groups=qkv.shape[1]), 3, axis=1)
        temperature = weights[f"{name}.temperature"][:, 0, 0]
        size = x.shape[1] // len(temperature)
        mixed = np.zeros_like(value)
        for sample in range(x.shape[0]):
            for c in range(x.shape[1]):
                head = c // size
                others = range(head * size, (head + 1) * size)
                q = query[sample, c]
                cosines = [
                    (q * key[sample, o]).sum() / np.sqrt((q**2).sum() * (key[sample, o] ** 2).sum())
                    for o in others
                ]
                likelihoods = np.exp(temperature[head] * np.array(cosines))
                for likelihood, o in zip(likelihoods, others, strict=True):
                    mixed[sample, c] += likelihood / likelihoods.sum() * value[sample, o]
        return conv(f"{name}.project_out", mixed)

    def feed_forward(name: str, x: np.ndarray) -> np.ndarray:
        z = conv(f"{name}.project_in", x)
        gate, features = np.split(conv(f"{name}.dwconv", z, groups=z.shape[1]), 2, axis=1)
        return conv(f"{name}.project_out", gelu(gate) * features)

    def blocks(name: str, number: int, x: np.ndarray) -> np.ndarray:
        for i in range(number):
            x = x + attention(f"{name}.{i}.attn", norm(f"{name}.{i}.norm1", x))
            x = x + feed_forward(f"{name}.{i}.ffn", norm(f"{name}.{i}.norm2", x))
        return x

    def down(name: str, x: np.ndarray) -> np.ndarray:
        """Four channels of each: the pixels of a square of 2 x 2."""
        z = conv(f"{name}.body.0", x)
        corners = [z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return np.stack(corners, 2).reshape(len(z), -1, z.shape[2] // 2, z.shape[3] // 2)

    def up(name: str, x: np.ndarray) -> np.ndarray:
        z = conv(f"{name}.body.0", x)
        y = np.zeros((len(z), z.shape[1] // 4, 2 * z.shape[2], 2 * z.shape[3]))
        for i in (0, 1):
            for j in (0, 1):
                y[:, :, i::2, j::2] = z[:, 2 * i + j :: 4]
        return y

    number = settings["num_blocks"]
    first = blocks("encoder_level1", number[0], conv("patch_embed.proj", x))
    second = blocks("encoder_level2", number[1], down("down1_2", first))
    third = blocks("encoder_level3", number[2], down("down2_3", second))
    z = up("up4_3", blocks("latent", number[3], down("down3_4", third)))
    z = blocks("decoder_level3", number[2], conv("reduce_chan_level3", np.concatenate((z, third), 1)))
    z = np.concatenate((up("up3_2", z), second), 1)
    z = blocks("decoder_level2", number[1], conv("reduce_chan_level2", z))
    z = blocks("decoder_level1", number[0], np.concatenate((up("up2_1", z), first), 1))
    return x + conv("output", blocks("refinement", settings["num_refinement_blocks"], z))


# ---- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, (2, 3, 16, 24)), (BIASED, (1, 3, 24, 16)), (BIAS_FREE, (1, 3, 32, 16))]
)
def test_model_follows_the_paper(settings, shape):
    model, x = drawn(**settings).double(), picture(*shape)
    expected = reference(model, x.numpy())
    assert (torch.from_numpy(expected) - x).abs().mean() > 0.01  # else the picture itself would pass
    assert relative_error(model(x), expected) < 1e-12


@pytest.mark.parametrize(
    ("settings", "params", "entries"),
    [({}, 26_126_644, 494), ({"LayerNorm_type": "BiasFree"}, 26_111_668, 406)],
)
def test_size_and_cost_are_the_published_ones(settings, params, entries):
    with torch.device("meta"):
        model = irnext.create_model("restormer", **settings)
    cost = measure(model)
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(154.88, abs=0.005)
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("settings", [{}, {**SMALL, **BIASED}, {**SMALL, **BIAS_FREE}])
def test_entries_are_the_published_ones_in_their_order(settings):
    with torch.device("meta"):
        model = Restormer(**settings)
    state = model.state_dict()
    found = [(name, tuple(entry.shape)) for name, entry in state.items()]
    assert found == list(expected_entries(**{**PUBLISHED, **settings}).items())
    assert list(model.official_state_dict()) == list(state)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {**SMALL, **BIASED}, {**SMALL, **BIAS_FREE}, {"dim": 2, "ffn_expansion_factor": 4.0}]
)
def test_weights_tell_the_settings(settings):
    settings = {**PUBLISHED, **settings}
    shapes = {name: torch.Size(shape) for name, shape in expected_entries(**settings).items()}
    assert set(ARCHITECTURE.landmarks) <= set(shapes)
    found = ARCHITECTURE.settings(shapes, {})
    assert {**found, "ffn_expansion_factor": 0} == {**settings, "ffn_expansion_factor": 0}
    assert expected_entries(**found) == expected_entries(**settings)  # several factors may do
    assert ARCHITECTURE.settings(shapes, {"heads": [2, 2, 2, 2]})["heads"] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("factor", "told"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (2.66, 2.66), (8 / 3, 2.667), (3.14159, 3.141)]
)
def test_weights_tell_a_factor_of_few_decimals(factor, told):
    settings = {**PUBLISHED, "ffn_expansion_factor": factor}
    shapes = {name: torch.Size(shape) for name, shape in expected_entries(**settings).items()}
    assert ARCHITECTURE.settings(shapes, {})["ffn_expansion_factor"] == told
    assert all(int(c * told) == int(c * factor) for c in (48, 96, 192, 384))


@pytest.mark.parametrize("broken", ["attn.temperature", "ffn.project_out.weight"])
@pytest.mark.parametrize("shape", [None, (), (0, 0, 0, 0)])
def test_damaged_entries_hide_no_settings(broken, shape):
    """What else is there is still told, so that the error can say which entries are wrong."""
    shapes = {name: torch.Size(value) for name, value in expected_entries(**PUBLISHED).items()}
    for name in [name for name in shapes if name.endswith(broken)]:
        if shape is None:
            del shapes[name]
        else:
            shapes[name] = torch.Size(shape)
    found = ARCHITECTURE.settings(shapes, {})
    assert found == {name: PUBLISHED[name] for name in found}
    assert found["num_blocks"] == (4, 6, 6, 8)


def test_a_file_gives_the_model_back(tmp_path):
    model, x = drawn(**BIASED), picture(1, 3, 8, 16).float()
    irnext.save(model, tmp_path / "ours.safetensors")
    torch.save({"params": model.official_state_dict()}, tmp_path / "published.pth")
    for name in ("ours.safetensors", "published.pth"):
        loaded = irnext.load(tmp_path / name)
        assert type(loaded) is Restormer
        assert torch.equal(loaded(x), model(x))
    assert irnext.load(tmp_path / "ours.safetensors").settings == model.settings


def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path):
    state = drawn().state_dict()
    del state["latent.1.attn.temperature"]
    state["up2_1.body.0.weight"] = torch.zeros(3)
    torch.save({"params": state}, tmp_path / "damaged.pth")
    with pytest.raises(ValueError, match=r"missing \(latent\.1\.attn.*up2_1\.body\.0\.weight is \(3,\)"):
        irnext.load(tmp_path / "damaged.pth")


# ---- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["WithBias", "BiasFree"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_other_types_are_as_close_as_their_rounding(dtype, autocast, norm):
    model, x = drawn(LayerNorm_type=norm), picture(2, 3, 16, 24)
    expected = copy.deepcopy(model).double()(x)
    if autocast and dtype != torch.float32:
        with torch.autocast("cpu", dtype):
            output = model(x.float())
    else:
        output = model.to(dtype)(x.to(dtype))
        assert output.dtype == dtype
    # A rounding or two in each of about 60 layers, which add up like a random walk.
    assert relative_error(output, expected) < 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("scale", [0, 1e-4, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_of_large_and_vanishing_planes_is_finite_in_half_precision(dtype, scale):
    """Their squares, or the sum of these, are beyond the range of float16; the cosines are not."""
    torch.manual_seed(0)
    attention = ChannelAttention(8, heads=2, bias=False).double()
    x = (scale * picture(1, 8, 64, 64)).to(dtype)
    expected = attention(x.double())
    output = attention.to(dtype)(x)
    assert torch.isfinite(output).all()
    if scale:
        assert relative_error(output, expected) < 10 * torch.finfo(dtype).eps


def test_bias_free_norm_keeps_the_mean_and_its_statistics_in_float32():
    norm = ChannelNorm(4, bias=False).half()
    x = torch.tensor([600.0, 600.0, 1800.0, 1800.0], dtype=torch.float16).view(1, 4, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([1.0, 1, 3, 3], dtype=torch.float16))


def test_the_layout_of_the_input_does_not_matter():
    model, x = drawn().double(), picture(2, 3, 16, 24)
    sliced = torch.cat((x, x), 3)[..., :24]
    for other in (x.contiguous(memory_format=torch.channels_last), sliced):
        torch.testing.assert_close(model(other), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {**BIASED, "LayerNorm_type": "BiasFree"}])
def test_gradients_are_those_of_finite_differences(settings):
    # At 16 x 16 the planes of the lowest level are not single pixels, whose cosines are all 1 or -1.
    model, x = drawn(**settings).double().train(), picture(1, 3, 16, 16)
    check_gradients(model, x)


def test_a_copy_is_a_model_of_its_own():
    model, x = drawn().double(), picture(1, 3, 8, 16)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.settings == model.settings
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        before = model(x)
        with torch.no_grad():
            other.output.weight.zero_()
        assert torch.equal(model(x), before) and torch.equal(other(x), x)


def test_it_compiles_without_graph_breaks():
    model, x = drawn(num_blocks=(1, 1, 1, 1)).double(), picture(1, 3, 8, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("norm", ["WithBias", "BiasFree"])
def test_an_empty_batch_gives_an_empty_output(norm):
    assert drawn(LayerNorm_type=norm)(torch.empty(0, 3, 8, 16)).shape == (0, 3, 8, 16)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 8, 12), (1, 3, 12, 8), (1, 3, 0, 8)])
def test_inputs_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)|multiples of 8.*irnext\.restore"):
        drawn()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 5}, "dim is 5: .*even"),
        ({"num_blocks": (1, 2, 3)}, "num_blocks is .*four whole numbers"),
        ({"num_blocks": 4}, "num_blocks is 4: .*four whole numbers"),
        ({"num_blocks": (1, 0, 1, 1)}, "num_blocks is .*at least 1"),
        ({"heads": (1, 2, 4, 8.5)}, "heads is .*four whole numbers"),
        ({"heads": (1, 3, 4, 8)}, "heads is .*3 must divide the 8 channels of level 2"),
        ({"num_refinement_blocks": 0}, "num_refinement_blocks is 0"),
        ({"ffn_expansion_factor": 0.1}, "ffn_expansion_factor is 0.1"),
        ({"ffn_expansion_factor": float("inf")}, "ffn_expansion_factor is inf"),
        ({"LayerNorm_type": "RMS"}, "unknown LayerNorm_type 'RMS': choose one of WithBias, BiasFree"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Restormer(**{**SMALL, **settings})


def test_lists_are_accepted_for_tuples():
    model = Restormer(**{**SMALL, "num_blocks": [1, 1, 1, 1], "heads": [1, 1, 1, 1]})
    assert model.settings["num_blocks"] == model.settings["heads"] == (1, 1, 1, 1)


def test_pictures_of_any_size_are_restored():
    model, x = drawn().double(), picture(1, 3, 13, 18)
    padded = torch.nn.functional.pad(x, (0, 6, 0, 3), "reflect")
    expected = model(padded)[..., :13, :18].clamp(0, 1)
    torch.testing.assert_close(irnext.restore(model, x), expected)
