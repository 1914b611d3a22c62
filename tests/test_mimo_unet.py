"""MIMO-UNet against the paper's structure written plainly, in files, and as a module."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import check_gradients, draw, relative_error
from plain_layers import conv2d, conv_transpose2d, relu

import irnext
from irnext.complexity import measure
from irnext.models.mimo_unet import ARCHITECTURE, MIMOUNet

SMALL = {"num_res": 2, "width": 4}


def drawn(seed: int = 0, **settings) -> MIMOUNet:
    """A small model with weights drawn by their names, twice as large as those of fixtures."""
    model = MIMOUNet(**{**SMALL, **settings})
    state = {name: 2 * draw(name, tuple(entry.shape), seed) for name, entry in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expected_entries(num_res: int, width: int) -> dict[str, tuple[int, ...]]:
    """Published names and shapes in the published order, written out from the paper's Fig. 2 and 3."""
    c1, c2, c3 = width, 2 * width, 4 * width
    entries: dict[str, tuple[int, ...]] = {}

    def add(name: str, inputs: int, outputs: int, size: int, transposed: bool = False) -> None:
        channels = (inputs, outputs) if transposed else (outputs, inputs)
        entries[f"{name}.main.0.weight"] = (*channels, size, size)
        entries[f"{name}.main.0.bias"] = (outputs,)

    def add_stages(name: str, widths: tuple[int, ...]) -> None:
        for i, c in enumerate(widths):
            for j in range(num_res):
                for k in (0, 1):
                    add(f"{name}.{i}.layers.{j}.main.{k}", c, c, 3)

    def add_scale(index: int, c: int) -> None:
        add(f"FAM{index}.merge", c, c, 3)
        sizes = ((3, c // 4, 3), (c // 4, c // 2, 1), (c // 2, c // 2, 3), (c // 2, c - 3, 1))
        for i, (inputs, outputs, size) in enumerate(sizes):
            add(f"SCM{index}.main.{i}", inputs, outputs, size)
        add(f"SCM{index}.conv", c, c, 1)

    add_stages("Encoder", (c1, c2, c3))
    add("feat_extract.0", 3, c1, 3)
    add("feat_extract.1", c1, c2, 3)
    add("feat_extract.2", c2, c3, 3)
    add("feat_extract.3", c3, c2, 4, transposed=True)
    add("feat_extract.4", c2, c1, 4, transposed=True)
    add("feat_extract.5", c1, 3, 3)
    add_stages("Decoder", (c3, c2, c1))
    add("Convs.0", 2 * c2, c2, 1)
    add("Convs.1", 2 * c1, c1, 1)
    add("ConvsOut.0", c3, 3, 3)
    add("ConvsOut.1", c2, 3, 3)
    for i, c in enumerate((c1, c2)):
        add(f"AFFs.{i}.conv.0", c1 + c2 + c3, c, 1)
        add(f"AFFs.{i}.conv.1", c, c, 3)
    add_scale(1, c3)
    add_scale(2, c2)
    return entries


def reference(state: dict[str, torch.Tensor], x: np.ndarray, num_res: int) -> list[np.ndarray]:
    """The three outputs in float64, with the entries of a state dict."""
    weights = {name: entry.double().numpy() for name, entry in state.items()}

    def conv(name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        return conv2d(x, weights[f"{name}.main.0.weight"], weights[f"{name}.main.0.bias"], stride)

    def up(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = weights[f"{name}.main.0.weight"], weights[f"{name}.main.0.bias"]
        return relu(conv_transpose2d(x, weight, bias))

    def stage(name: str, x: np.ndarray) -> np.ndarray:
        for j in range(num_res):
            block = f"{name}.layers.{j}.main"
            x = x + conv(f"{block}.1", relu(conv(f"{block}.0", x)))
        return x

    def shallow(name: str, small: np.ndarray) -> np.ndarray:
        z = small
        for i in range(4):
            z = relu(conv(f"{name}.main.{i}", z))
        return conv(f"{name}.conv", np.concatenate((small, z), 1))

    def attend(name: str, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        return x1 + conv(f"{name}.merge", x1 * x2)

    def resized(x: np.ndarray, height: int) -> np.ndarray:
        """Nearest neighbours at the upper left."""
        rows = np.arange(height) * x.shape[2] // height
        width = x.shape[3] * height // x.shape[2]
        columns = np.arange(width) * x.shape[3] // width
        return x[:, :, rows][:, :, :, columns]

    def fused(name: str, encoded: list[np.ndarray], height: int) -> np.ndarray:
        z = np.concatenate([resized(e, height) for e in encoded], 1)
        return conv(f"{name}.conv.1", relu(conv(f"{name}.conv.0", z)))

    height = x.shape[2]
    half, quarter = resized(x, height // 2), resized(x, height // 4)
    first = stage("Encoder.0", relu(conv("feat_extract.0", x)))
    z = relu(conv("feat_extract.1", first, stride=2))
    second = stage("Encoder.1", attend("FAM2", z, shallow("SCM2", half)))
    z = relu(conv("feat_extract.2", second, stride=2))
    third = stage("Encoder.2", attend("FAM1", z, shallow("SCM1", quarter)))
    encoded = [first, second, third]

    z = stage("Decoder.0", third)
    outputs = [quarter + conv("ConvsOut.0", z)]
    skip = fused("AFFs.1", encoded, height // 2)
    z = stage("Decoder.1", relu(conv("Convs.0", np.concatenate((up("feat_extract.3", z), skip), 1))))
    outputs.append(half + conv("ConvsOut.1", z))
    skip = fused("AFFs.0", encoded, height)
    z = stage("Decoder.2", relu(conv("Convs.1", np.concatenate((up("feat_extract.4", z), skip), 1))))
    return [*outputs, x + conv("feat_extract.5", z)]


# ---- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, (2, 3, 12, 20)), ({"num_res": 1, "width": 6}, (1, 3, 4, 8))]
)
def test_model_follows_the_paper(settings, shape):
    model, x = drawn(**settings).double(), picture(*shape)
    outputs = model(x)
    expected = reference(model.state_dict(), x.numpy(), model.settings["num_res"])
    for output, wanted, scale in zip(outputs, expected, (4, 2, 1), strict=True):
        assert output.shape == (shape[0], 3, shape[2] // scale, shape[3] // scale)
        change = torch.from_numpy(wanted) - x[:, :, ::scale, ::scale]
        assert change.abs().mean() > 0.01  # else the picture itself would pass
        assert relative_error(output, wanted) < 1e-12


@pytest.mark.parametrize(
    ("name", "params", "entries", "giga_macs"),
    [("mimo-unet", 6_807_171, 244, 63.73), ("mimo-unet-plus", 16_107_651, 532, 150.71)],
)
def test_size_and_cost_are_the_published_ones(name, params, entries, giga_macs):
    with torch.device("meta"):
        model = irnext.create_model(name)
    cost = measure(model)
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(giga_macs, abs=0.005)
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("settings", [{"num_res": 8, "width": 32}, {"num_res": 1, "width": 2}])
def test_entries_are_the_published_ones_in_their_order(settings):
    with torch.device("meta"):
        model = MIMOUNet(**settings)
    state = model.state_dict()
    found = [(name, tuple(entry.shape)) for name, entry in state.items()]
    assert found == list(expected_entries(**settings).items())
    assert list(model.official_state_dict()) == list(state)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SMALL, {"num_res": 3, "width": 10}])
def test_weights_tell_the_settings(settings):
    shapes = {name: torch.Size(shape) for name, shape in expected_entries(**settings).items()}
    assert set(ARCHITECTURE.landmarks) <= set(shapes)
    assert ARCHITECTURE.settings(shapes, {}) == settings
    assert ARCHITECTURE.settings(shapes, {"num_res": 7}) == {**settings, "num_res": 7}
    del shapes["Encoder.1.layers.0.main.0.main.0.weight"], shapes["feat_extract.0.main.0.bias"]
    assert ARCHITECTURE.settings(shapes, {}) == settings  # so that the two are said to be missing


def test_a_file_gives_the_model_back(tmp_path):
    model, x = drawn(), picture(1, 3, 8, 12).float()
    irnext.save(model, tmp_path / "ours.safetensors")
    published = {f"module.{name}": entry for name, entry in model.official_state_dict().items()}
    torch.save({"model": published}, tmp_path / "published.pkl")
    for name in ("ours.safetensors", "published.pkl"):
        loaded = irnext.load(tmp_path / name)
        assert type(loaded) is MIMOUNet and loaded.settings == model.settings
        for output, expected in zip(loaded(x), model(x), strict=True):
            assert torch.equal(output, expected)


def test_a_published_irnext_is_not_taken_for_its_ancestor(tmp_path):
    state = irnext.IRNeXt(blocks=1, width=8).official_state_dict()
    torch.save({"model": state}, tmp_path / "irnext.pkl")
    assert type(irnext.load(tmp_path / "irnext.pkl")) is irnext.IRNeXt


def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path):
    state = drawn().state_dict()
    del state["AFFs.0.conv.0.main.0.weight"]
    state["SCM1.conv.main.0.bias"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "damaged.pkl")
    with pytest.raises(ValueError, match=r"missing \(AFFs\.0\.conv.*SCM1\.conv\.main\.0\.bias is \(3,\)"):
        irnext.load(tmp_path / "damaged.pkl")


# ---- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_other_types_are_as_close_as_their_rounding(dtype, autocast):
    model, x = drawn(), picture(2, 3, 16, 20)
    expected = copy.deepcopy(model).double()(x)
    if autocast and dtype != torch.float32:
        with torch.autocast("cpu", dtype):
            outputs = model(x.float())
    else:
        outputs = model.to(dtype)(x.to(dtype))
        assert all(output.dtype == dtype for output in outputs)
    # A rounding or two in each of about 20 layers, which add up like a random walk.
    for output, wanted in zip(outputs, expected, strict=True):
        assert relative_error(output, wanted) < 10 * torch.finfo(dtype).eps


def test_the_layout_of_the_input_does_not_matter():
    model, x = drawn().double(), picture(2, 3, 12, 16)
    sliced = torch.cat((x, x), 3)[..., :16]
    for other in (x.contiguous(memory_format=torch.channels_last), sliced):
        torch.testing.assert_close(model(other), model(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    model, x = drawn(num_res=1).double().train(), picture(1, 3, 8, 8)
    check_gradients(model, x)


def test_a_copy_is_a_model_of_its_own():
    model, x = drawn().double(), picture(1, 3, 8, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.settings == model.settings
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        before = model(x)[-1]
        with torch.no_grad():
            other.feat_extract[0].main[0].weight.zero_()
        assert torch.equal(model(x)[-1], before)


def test_it_compiles_without_graph_breaks():
    model, x = drawn().double(), picture(1, 3, 8, 12)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_an_empty_batch_gives_empty_outputs():
    shapes = [tuple(output.shape) for output in drawn()(torch.empty(0, 3, 8, 12))]
    assert shapes == [(0, 3, 2, 3), (0, 3, 4, 6), (0, 3, 8, 12)]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 8, 10), (1, 3, 6, 8), (1, 3, 0, 8)])
def test_inputs_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)|multiples of 4.*irnext\.restore"):
        drawn()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_res": 0}, "num_res is 0: it must be at least 1"), ({"width": 5}, "width is 5: .*even")],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MIMOUNet(**settings)


def test_pictures_of_any_size_are_restored():
    model, x = drawn().double(), picture(1, 3, 13, 18)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 3), "reflect")
    expected = model(padded)[-1][..., :13, :18].clamp(0, 1)
    torch.testing.assert_close(irnext.restore(model, x), expected)


def test_pixels_far_from_a_seam_do_not_see_it():
    """As `tiling` says: nothing but convolutions."""
    model, x = drawn(num_res=1, width=2).double(), picture(1, 3, 128, 128)
    other = x.clone()
    other[..., :8, :8] = 0
    difference = (model(other)[-1] - model(x)[-1]).abs().amax(1)[0]
    assert difference[:8, :8].min() > 0 and difference[64:, 64:].max() == 0
