"""MPRNet against the published code's numbers, the paper's structure written plainly, and in files."""

from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
from conftest import FIXTURES, draw, load_fixture, relative_error

import irnext
from irnext.checkpoints import CheckpointError
from irnext.complexity import measure
from irnext.models.mprnet import ARCHITECTURE, ChannelAttentionBlock, MPRNet, SupervisedAttention

SMALL = {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 12, "num_cab": 2}

PRELU = "shallow_feat1.1.body.1.weight"  # the one of its names that the layouts keep


def layout(task: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published entries, in their order, the shared PReLU once."""
    shapes = json.loads((FIXTURES / f"mprnet-{task}.json").read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


def is_activation(name: str) -> bool:
    """Whether an entry is the shared PReLU, as one of the blocks names it."""
    return re.search(r"(\.\d|skip_attn\d)\.body\.1\.weight$", name) is not None


def drawn(seed: int = 0, **settings) -> MPRNet:
    """A model with weights drawn by their names."""
    model = MPRNet(**settings)
    shapes = {
        name: tuple(entry.shape)
        for name, entry in model.state_dict().items()
        if not is_activation(name) or name == PRELU
    }
    model.load_state_dict({name: draw(name, shape, seed) for name, shape in shapes.items()})
    return model.eval()


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- the numbers ---------------------------------------------------------------------------------


def test_model_gives_the_published_numbers():
    fixture = load_fixture("mprnet-deblurring")
    model = MPRNet().double().eval()
    weights = {name: draw(name, shape, int(fixture["seed"])) for name, shape in layout("deblurring").items()}
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        outputs = model(torch.from_numpy(fixture["x"]))
    for output, name in zip(outputs, ("y0", "y1", "y2"), strict=True):
        assert relative_error(output, fixture[name]) < 1e-9


@pytest.mark.parametrize(
    ("task", "params", "gmacs"),
    [("deblurring", 20_127_073, 759.41), ("deraining", 3_637_249, 140.98), ("denoising", 15_741_025, 572.89)],
)
def test_cost_and_entries_are_the_published_ones(task, params, gmacs):
    with torch.device("meta"):
        model = irnext.create_model(f"mprnet-{task}")
    cost = measure(model, (256, 256))
    assert cost.params == params
    assert round(cost.macs / 1e9, 2) == gmacs

    state = model.state_dict()
    assert len(state) == 316
    assert sum(map(is_activation, state)) == 55
    found = {
        name: tuple(entry.shape) for name, entry in state.items() if not is_activation(name) or name == PRELU
    }
    assert list(found.items()) == list(layout(task).items())
    assert list(model.official_state_dict()) == list(state)


# ---- the structure, written plainly ----------------------------------------------------------------


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A convolution of (C, H, W) with zeros around, a shifted product for each tap."""
    rows, columns = weight.shape[2:]
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)))
    return sum(
        np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + height, j : j + width])
        for i in range(rows)
        for j in range(columns)
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def in_numpy(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: entry.detach().numpy() for name, entry in module.state_dict().items()}


@pytest.mark.parametrize(("kernel_size", "reduction"), [(3, 4), (1, 8), (5, 2)])
def test_a_channel_attention_block_follows_its_definition(kernel_size, reduction):
    torch.manual_seed(0)
    block = ChannelAttentionBlock(8, kernel_size, reduction, torch.nn.PReLU(init=-0.75)).double()
    w = in_numpy(block)
    x = picture(2, 8, 5, 7) - 0.5
    expected = []
    for sample in x.numpy():
        z = convolve(sample, w["body.0.weight"])
        z = convolve(np.where(z > 0, z, -0.75 * z), w["body.2.weight"])
        hidden = w["CA.conv_du.0.weight"][:, :, 0, 0] @ z.mean((1, 2))
        weights = sigmoid(w["CA.conv_du.2.weight"][:, :, 0, 0] @ np.maximum(hidden, 0))
        expected.append(sample + weights[:, None, None] * z)
    torch.testing.assert_close(block(x), torch.from_numpy(np.stack(expected)), rtol=1e-12, atol=1e-12)


def test_supervised_attention_follows_its_definition():
    torch.manual_seed(0)
    module = SupervisedAttention(8).double()
    w = in_numpy(module)
    features, degraded = picture(2, 8, 5, 7) - 0.5, picture(2, 3, 5, 7, seed=1)
    found_features, found_picture = module(features, degraded)
    for i, (z, x) in enumerate(zip(features.numpy(), degraded.numpy(), strict=True)):
        restored = x + convolve(z, w["conv2.weight"])
        weighed = z + convolve(z, w["conv1.weight"]) * sigmoid(convolve(restored, w["conv3.weight"]))
        torch.testing.assert_close(found_picture[i], torch.from_numpy(restored), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found_features[i], torch.from_numpy(weighed), rtol=1e-12, atol=1e-12)


def patch_by_patch(model: MPRNet, x: torch.Tensor) -> list[torch.Tensor]:
    """The three stages of one picture (1, 3, H, W), each patch run by itself."""
    h, w = x.shape[2] // 2, x.shape[3] // 2
    halves = [x[:, :, :h], x[:, :, h:]]
    encoded, decoded, shallow, restored = [], [], [], []
    for half in halves:
        left, right = (model.stage1_encoder(model.shallow_feat1(q)) for q in (half[..., :w], half[..., w:]))
        encoded.append([torch.cat(pair, 3) for pair in zip(left, right, strict=True)])
        decoded.append(model.stage1_decoder(encoded[-1]))
        features, picture = model.sam12(decoded[-1][0], half)
        shallow.append(model.concat12(torch.cat((model.shallow_feat2(half), features), 1)))
        restored.append(picture)
    second = [model.stage2_encoder(*each) for each in zip(shallow, encoded, decoded, strict=True)]
    joined = [torch.cat(pair, 2) for pair in zip(*second, strict=True)]
    deep = model.stage2_decoder(joined)
    features, second_picture = model.sam23(deep[0], x)
    z = model.concat23(torch.cat((model.shallow_feat3(x), features), 1))
    return [model.tail(model.stage3_orsnet(z, joined, deep)) + x, second_picture, torch.cat(restored, 2)]


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (40, 24)])
def test_patches_along_the_batch_give_what_each_gives_by_itself(size):
    model = drawn(**SMALL).double()
    x = picture(3, 3, *size)
    found = model(x)
    for i in range(3):
        for output, expected in zip(found, patch_by_patch(model, x[i : i + 1]), strict=True):
            assert output.shape == x.shape
            torch.testing.assert_close(output[i : i + 1], expected, rtol=1e-12, atol=1e-12)


# ---- as a module -----------------------------------------------------------------------------------


def test_gradients_reach_every_parameter_and_are_right():
    model = drawn(**SMALL, reduction=1).double()  # the ReLU of a narrow attention may be off everywhere
    x = picture(1, 3, 16, 8).requires_grad_()

    def loss() -> torch.Tensor:
        return sum(y.square().sum() for y in model(x))

    leaves = [x, *model.parameters()]
    gradients = torch.autograd.grad(loss(), leaves)
    assert all(gradient.abs().max() > 0 for gradient in gradients)

    step = 1e-6
    shifts = [gradient / gradient.norm() for gradient in gradients]
    with torch.no_grad():
        for leaf, shift in zip(leaves, shifts, strict=True):
            leaf += step * shift
        above = loss()
        for leaf, shift in zip(leaves, shifts, strict=True):
            leaf -= 2 * step * shift
        slope = (above - loss()) / (2 * step)
    expected = sum((gradient * shift).sum() for gradient, shift in zip(gradients, shifts, strict=True))
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=0)


# The error as a share of the greatest change to the picture; up to 2.2 % and 0.27 % were found.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-5), (torch.float16, 2**-8)])
@pytest.mark.parametrize("way", ["autocast", "converted"])
def test_half_precision_is_close_to_float64(dtype, tolerance, way):
    model = drawn(**{**SMALL, "n_feat": 16})
    x = picture(2, 3, 40, 24).float()
    with torch.no_grad():
        exact = [y - x.double() for y in copy.deepcopy(model).double()(x.double())]
        if way == "autocast":
            with torch.autocast("cpu", dtype):
                outputs = model(x)
        else:
            outputs = model.to(dtype)(x.to(dtype))
    for output, expected in zip(outputs, exact, strict=True):
        assert output.dtype == (torch.float32 if way == "autocast" else dtype)
        assert (output.double() - x.double() - expected).abs().max() < tolerance * expected.abs().max()


def test_channels_last_and_empty_batches():
    model = drawn(**SMALL).double()
    x = picture(2, 3, 16, 24)
    for found, expected in zip(model(x.contiguous(memory_format=torch.channels_last)), model(x), strict=True):
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert [y.shape for y in model(x[:0])] == [(0, 3, 16, 24)] * 3


def test_model_compiles_whole():
    model = drawn(**{**SMALL, "num_cab": 1}).double()
    x = picture(2, 3, 8, 16)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_copies_keep_the_one_activation():
    model = drawn(**SMALL).double()
    x = picture(1, 3, 8, 8)
    expected = model(x)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model).float().double(),
    ):
        assert len({id(m) for m in twin.modules() if isinstance(m, torch.nn.PReLU)}) == 1
        assert sum(is_activation(name) for name, _ in twin.named_parameters()) == 1
        for found, y in zip(twin(x), expected, strict=True):
            torch.testing.assert_close(found, y)


def test_restoring_takes_any_size_and_gives_the_third_stage():
    model = drawn(**SMALL).double()
    x = picture(2, 3, 13, 21)
    with torch.no_grad():
        expected = model(torch.nn.functional.pad(x, (0, 3, 0, 3), "reflect"))[0][:, :, :13, :21].clamp(0, 1)
    torch.testing.assert_close(irnext.restore(model, x), expected)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8)])
def test_inputs_of_another_kind_are_refused(shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), got"):
        MPRNet(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("size", [(8, 12), (20, 16), (0, 8)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match=r"multiples of 8 and at least 8 \(irnext.restore"):
        MPRNet(**SMALL)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_feat": 0}, "n_feat is 0: it must be a multiple of reduction, 4, from 4"),
        ({"n_feat": 30}, "n_feat is 30"),
        ({"scale_unetfeats": 6}, "scale_unetfeats is 6: it must be a multiple of reduction, 4, from 0"),
        ({"scale_orsnetfeats": -4}, "scale_orsnetfeats is -4"),
        ({"num_cab": 0}, "num_cab is 0: it must be at least 1"),
        ({"reduction": 0}, "reduction is 0: it must be at least 1"),
        ({"kernel_size": 4}, "kernel_size is 4: it must be odd and positive"),
        ({"kernel_size": -1}, "kernel_size is -1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MPRNet(**wrong)


# ---- weights and files -----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [PRELU, "stage3_orsnet.orb3.body.1.body.1.weight"])
@pytest.mark.parametrize("prefix", ["", "0."])
def test_weights_load_strictly_with_one_name_of_the_activation_or_all(prefix, kept):
    source, target = drawn(1, **SMALL), drawn(2, **SMALL)
    state = {prefix + name: entry for name, entry in source.state_dict().items()}
    once = {name: entry for name, entry in state.items() if not is_activation(name) or name == prefix + kept}
    assert len(state) - len(once) == 36
    owner = torch.nn.Sequential(target) if prefix else target
    for weights in (once, state):
        before = list(weights)
        target.load_state_dict(drawn(2, **SMALL).state_dict())
        owner.load_state_dict(weights, strict=True)
        assert list(weights) == before
        for name, entry in owner.state_dict().items():
            assert torch.equal(entry, state[name]), name


def test_activations_that_differ_are_refused():
    model = drawn(**SMALL)
    state = copy.deepcopy(model.state_dict())
    wrong = "stage2_decoder.skip_attn1.body.1.weight"
    state[wrong] = state[wrong] + 0.5
    message = f"{PRELU} and {wrong} differ: they must hold the same"
    for take in (model.load_state_dict, ARCHITECTURE.tidy):
        with pytest.raises(ValueError, match=message):
            take(state)
    assert all(torch.equal(entry, state[name]) for name, entry in model.state_dict().items() if name != wrong)


def test_weights_without_the_activation_are_refused():
    model = MPRNet(**SMALL)
    state = {name: entry for name, entry in model.state_dict().items() if not is_activation(name)}
    with pytest.raises(RuntimeError, match=f"Missing key.*{PRELU}"):
        model.load_state_dict(state)
    assert ARCHITECTURE.tidy(state) == state


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_feat": 40, "scale_unetfeats": 20, "scale_orsnetfeats": 16},
        SMALL,
        {"n_feat": 6, "scale_unetfeats": 0, "scale_orsnetfeats": 0, "num_cab": 1, "reduction": 2},
        {**SMALL, "kernel_size": 1, "reduction": 1},
        {**SMALL, "kernel_size": 5},
    ],
    ids=str,
)
def test_settings_follow_from_the_weights(settings):
    with torch.device("meta"):
        model = MPRNet(**settings)
    shapes = {name: entry.shape for name, entry in model.state_dict().items()}
    assert set(ARCHITECTURE.landmarks) <= set(shapes)
    assert ARCHITECTURE.settings(shapes, {}) == model.settings
    assert ARCHITECTURE.settings(shapes, {"num_cab": 9}) == {**model.settings, "num_cab": 9}

    del shapes["shallow_feat1.0.weight"]  # a damaged file is found out, not met by settings of its own
    shapes["shallow_feat2.0.weight"] = torch.Size([])
    assert ARCHITECTURE.settings(shapes, {}) == model.settings


def test_published_files_load_with_one_name_of_the_activation_or_all(tmp_path):
    model = drawn(1, **SMALL)
    state = model.state_dict()
    once = {name: entry for name, entry in state.items() if not is_activation(name) or name == PRELU}
    for weights in (state, once):
        wrapped = {f"module.{name}": entry for name, entry in weights.items()}
        torch.save({"epoch": 7, "state_dict": wrapped, "optimizer": {}}, tmp_path / "published.pth")
        loaded = irnext.load(tmp_path / "published.pth")
        assert loaded.settings == model.settings
        assert list(loaded.state_dict()) == list(state)
        assert all(torch.equal(entry, state[name]) for name, entry in loaded.state_dict().items())


def test_a_file_whose_activations_differ_is_refused(tmp_path):
    state = copy.deepcopy(drawn(**SMALL).state_dict())
    wrong = "stage3_orsnet.orb1.body.1.body.1.weight"
    state[wrong] = state[wrong] + 0.5
    torch.save(state, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match=f"mixed.pth: {PRELU} and {wrong} differ"):
        irnext.load(tmp_path / "mixed.pth")
