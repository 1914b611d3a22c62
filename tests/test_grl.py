"""GRL against the published code's numbers and against an attention written plainly, pixel by pixel."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, draw, load_fixture, relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import irnext
from irnext.models import grl_attention
from irnext.models.grl import ARCHITECTURE, BASE, GRL, PRESETS, TINY

# Published entries that depend on the size alone.
STRIPE_TABLES = [
    f"{kind}_{way}_{to}" for kind in ("index", "mask") for way in ("sh", "sv") for to in ("a2w", "w2a")
]
TABLES = ["table_w", "table_sh", "table_sv", "index_w", "mask_w", *STRIPE_TABLES]
SMALL = {
    "embed_dim": 16,
    "depths": (4,),
    "num_heads_window": (2,),
    "num_heads_stripe": (1,),
    "window_size": 4,
    "stripe_size": (8, 16),
}


def layout(name: str) -> dict[str, tuple[int, ...]]:
    shapes = json.loads((FIXTURES / f"{name}.json").read_text())
    return {entry: tuple(shape) for entry, shape in shapes.items()}


def random_model(seed: int = 0, **settings) -> GRL:
    """A small network in float64 with random weights, whose attention is far from uniform."""
    model = GRL(**{**SMALL, **settings}).double().eval()
    weights = {name: draw(name, tuple(value.shape), seed) for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if name.endswith("logit_scale"):  # some beyond the maximum, ln 100
            value.copy_(torch.linspace(1, 5, value.numel()).view_as(value))
        if ".cpb_mlp.2." in name:
            value.mul_(8)
    model.load_state_dict(weights)
    return model


def random_pictures(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- the published numbers -----------------------------------------------------------------------


def test_the_model_gives_the_published_numbers():
    fixture = load_fixture("grl-tiny")
    model = GRL(**{**TINY, **json.loads(str(fixture["config"]))}).double().eval()
    weights = {name: draw(name, shape, int(fixture["seed"])) for name, shape in layout("grl-tiny").items()}
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        assert relative_error(model(torch.from_numpy(fixture["x"])), fixture["y0"]) < 1e-9


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("grl-tiny", 880_227),
        ("grl-small", 3_120_227),
        ("grl-base", 19_805_263),
        ("grl-base-defocus", 19_805_263),
        ("grl-tiny-x4", 906_192),
        ("grl-small-x4", 3_490_000),
        ("grl-base-x4", 20_201_000),
    ],
)
def test_entries_and_counts_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        model = GRL(**PRESETS[name])
    count = sum(p.numel() for p in model.parameters())
    if name.endswith("-x4") and "tiny" not in name:
        assert count == pytest.approx(parameters, rel=2e-3)  # published rounded: 3.49 M and 20.20 M
    else:
        assert count == parameters
        shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
        expected = layout(name.removesuffix("-defocus"))
        assert shapes == expected and list(shapes) == list(expected)
    assert not list(model.buffers())


def test_the_cost_is_the_published_one():
    """1,972.8 G multiply-accumulates at 256x256: a part per block and per stage, and the rest."""

    def measured(*depths: int) -> int:
        with torch.device("meta"):
            model = GRL(**{**PRESETS["grl-base"], "depths": depths, **heads(len(depths))})
        return irnext.complexity.measure(model, (256, 256)).macs

    def heads(stages: int) -> dict:
        return {"num_heads_window": (3,) * stages, "num_heads_stripe": (3,) * stages}

    one, two, stages = measured(1), measured(2), measured(1, 1)
    block = two - one
    stage = stages - two
    depths = PRESETS["grl-base"]["depths"]
    total = one + (sum(depths) - 1) * block + (len(depths) - 1) * stage
    assert total / 1e9 == pytest.approx(1972.8, abs=0.05)


# ---- the definition, plainly ---------------------------------------------------------------------


def position_bias(transform: nn.Module, differences: Tensor, largest: tuple[int, int]) -> Tensor:
    """16 sigmoid(MLP) of the relative positions (queries, keys, 2), one pair after the other."""
    scaled = differences.double() / torch.tensor(largest) * 8
    scaled = torch.sign(scaled) * torch.log2(scaled.abs() + 1) / math.log2(8)
    return (16 * torch.sigmoid(transform.cpb_mlp(scaled))).permute(2, 0, 1)


def grid(height: int, width: int) -> Tensor:
    """The places (height * width, 2) of a window, row by row."""
    return torch.cartesian_prod(torch.arange(height), torch.arange(width))


def cosine_attention(transform, q, k, v, bias, mask):
    """All heads of one window: q (N, heads, D), k and v (M, heads, D), bias (heads, N, M), mask (N, M)."""
    scale = transform.logit_scale.clamp(max=math.log(100)).exp()
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    logits = torch.einsum("nhd,mhd->hnm", q, k) * scale + bias + mask
    return torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v)


def labels(places: Tensor, plane: tuple[int, int], size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """The part of the rolled plane that a place is in: parts do not attend to each other."""
    label = torch.zeros(len(places), dtype=torch.long)
    for axis in (0, 1):
        if shift[axis]:
            place = places[:, axis]
            part = (place >= plane[axis] - size[axis]).long() + (place >= plane[axis] - shift[axis]).long()
            label = 3 * label + part
    return label


def apart(first: Tensor, second: Tensor) -> Tensor:
    return -100.0 * (first[:, None] != second[None, :])


def windows_of(plane, size, shift):
    """For each window: its places in the plane (N, 2), and their labels."""
    height, width = plane
    for top in range(0, height, size[0]):
        for left in range(0, width, size[1]):
            places = grid(*size) + torch.tensor((top, left))
            yield (places + torch.tensor(shift)) % torch.tensor(plane), labels(places, plane, size, shift)


def window_attention(module, qkv, size, shift):
    """(H, W, 3C) -> (H, W, C)."""
    places = grid(*size)
    bias = position_bias(module.attn_transform, places[:, None] - places[None, :], (size[0] - 1, size[1] - 1))
    y = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    for at, label in windows_of(tuple(qkv.shape[:2]), size, shift):
        q, k, v = qkv[at[:, 0], at[:, 1]].unflatten(-1, (3, module.heads, -1)).unbind(1)
        result = cosine_attention(module.attn_transform, q, k, v, bias, apart(label, label))
        y[at[:, 0], at[:, 1]] = result.flatten(1)
    return y


def stripe_attention(module, qkv, anchors, size, shift, factor):
    """(H, W, 3C) and anchors (H/f, W/f, C) -> (H, W, C)."""
    few, few_shift = tuple(s // factor for s in size), tuple(s // factor for s in shift)
    offset = torch.tensor([(s - a) // 2 for s, a in zip(size, few, strict=True)])
    # Anchors see pixels where a table made for pixels that see anchors is read from its other end.
    away = torch.tensor([s - a for s, a in zip(size, few, strict=True)]) - offset
    largest = tuple((torch.tensor(size) - 1 - offset).tolist())
    pixels, coarse = grid(*size), grid(*few)
    spreading = position_bias(module.attn_transform2, pixels[:, None] - coarse[None, :] - offset, largest)
    gathering = position_bias(module.attn_transform1, coarse[:, None] - pixels[None, :] + away, largest)
    y = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    windows = windows_of(tuple(qkv.shape[:2]), size, shift)
    anchor_windows = windows_of(tuple(anchors.shape[:2]), few, few_shift)
    for (at, label), (anchor_at, anchor_label) in zip(windows, anchor_windows, strict=True):
        q, k, v = qkv[at[:, 0], at[:, 1]].unflatten(-1, (3, module.heads, -1)).unbind(1)
        a = anchors[anchor_at[:, 0], anchor_at[:, 1]].unflatten(-1, (module.heads, -1))
        mask = apart(anchor_label, label)
        gathered = cosine_attention(module.attn_transform1, a, k, v, gathering, mask)
        result = cosine_attention(module.attn_transform2, q, a, gathered, spreading, mask.T)
        y[at[:, 0], at[:, 1]] = result.flatten(1)
    return y


def stripes_of(settings, plane, vertical):
    sides, groups = list(settings["stripe_size"]), list(settings["stripe_groups"])
    if vertical:
        sides.reverse()
        groups.reverse()
    size = [side if g is None else length // g for side, g, length in zip(sides, groups, plane, strict=True)]
    least = 2 * settings["anchor_window_down_factor"]
    shift = (s // 2 if s >= least and g != 1 else 0 for s, g in zip(size, groups, strict=True))
    return tuple(size), tuple(shift)


def plain_block(block, i, x, settings):
    """One block of a stage on one picture's features (H, W, C)."""
    attention, factor = block.attn, settings["anchor_window_down_factor"]
    qkv = attention.qkv["body"](x)
    first, second = qkv.chunk(2, -1)
    side = settings["window_size"]
    size, shift = stripes_of(settings, x.shape[:2], i % 2 == 1)
    h, w, c = x.shape
    pooled = x.reshape(h // factor, factor, w // factor, factor, c).mean((1, 3))
    anchors = attention.anchor["body"][0]["reduction"](pooled)
    y = torch.cat(
        (
            window_attention(
                attention.window_attn, first, (side, side), (side // 2,) * 2 if i % 2 == 0 else (0, 0)
            ),
            stripe_attention(
                attention.stripe_attn, second, anchors, size, shift if i % 4 >= 2 else (0, 0), factor
            ),
        ),
        -1,
    )
    y = x + block.norm1(attention.proj(y))
    if settings["local_connection"]:
        cab = block.conv.cab
        z = cab[2](F.gelu(cab[0](x.permute(2, 0, 1)[None])))
        gate = cab[3].attention
        z = z * torch.sigmoid(gate[3](F.relu(gate[1](z.mean((2, 3), keepdim=True)))))
        y = y + z[0].permute(1, 2, 0)
    return y + block.norm2(block.mlp.fc2(F.gelu(block.mlp.fc1(y))))


def plain_restoration(model, x):
    """A picture (1, 3, H, W), of a size that all windows divide, restored."""
    mean = torch.tensor((0.4488, 0.4371, 0.4040), dtype=torch.float64).view(1, 3, 1, 1)
    shallow = model.conv_first((x - mean) * model.settings["img_range"])
    y = model.norm_start(shallow[0].permute(1, 2, 0))
    for stage in model.layers:
        z = y
        for i, block in enumerate(stage.blocks):
            z = plain_block(block, i, z, model.settings)
        y = y + stage.conv(z.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    features = model.conv_after_body(model.norm_end(y).permute(2, 0, 1)[None]) + shallow
    if not model.settings["upsampler"]:
        return x + model.conv_last(features) / model.settings["img_range"]
    return plain_head(model, features) / model.settings["img_range"] + mean


def plain_head(model, y):
    upsampler, state = model.settings["upsampler"], model.state_dict()

    def convolved(y, name):
        return F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    if upsampler == "pixelshuffledirect":
        return shuffled(convolved(y, "upsample.up.0"), model.settings["upscale"])
    y = F.leaky_relu(convolved(y, "conv_before_upsample.0"), 0.01)
    if upsampler == "pixelshuffle":
        for i, step in enumerate({2: (2,), 3: (3,), 4: (2, 2)}[model.settings["upscale"]]):
            y = shuffled(convolved(y, f"upsample.up.{2 * i}"), step)
        return convolved(y, "conv_last")
    for name in ("conv_up1", "conv_up2"):
        y = F.leaky_relu(convolved(y.repeat_interleave(2, 2).repeat_interleave(2, 3), name), 0.2)
    return convolved(F.leaky_relu(convolved(y, "conv_hr"), 0.2), "conv_last")


def shuffled(y, step):
    n, c, h, w = y.shape
    parts = y.reshape(n, c // step**2, step, step, h, w)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(n, c // step**2, h * step, w * step)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (32, 48)),
        ({}, (16, 16)),  # one stripe along the height: it goes around both edges alone
        ({"stripe_size": (24, 8), "window_size": 8, "anchor_window_down_factor": 2}, (24, 48)),
        ({"stripe_size": (12, 4), "window_size": 3, "num_heads_stripe": (4,)}, (24, 36)),  # odd windows
        ({"stripe_size": (8, None), "stripe_groups": (None, 2)}, (32, 48)),
        ({"stripe_size": (None, None), "stripe_groups": (1, 2)}, (16, 32)),
        ({"embed_dim": 36, "local_connection": True, "num_heads_window": (3,), "img_range": 2.0}, (16, 32)),
        ({"depths": (2, 5), "num_heads_window": (2, 1), "num_heads_stripe": (1, 2)}, (16, 16)),
    ],
)
def test_the_model_follows_its_definition(settings, size):
    model = random_model(**settings)
    x = random_pictures(1, 3, *size)
    with torch.no_grad():
        expected = plain_restoration(model, x)
        found = model(x)
    assert (expected - x).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("upsampler", "upscale"),
    [
        *(("pixelshuffledirect", n) for n in (2, 3, 4)),
        *(("pixelshuffle", n) for n in (2, 3, 4)),
        ("nearest+conv", 4),
    ],
)
def test_heads_follow_their_definition(upsampler, upscale):
    model = random_model(depths=(1,), stripe_size=(8, 8), upsampler=upsampler, upscale=upscale)
    x = random_pictures(1, 3, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain_restoration(model, x), rtol=1e-11, atol=1e-11)
        assert model(x[:, :, :5, :7]).shape == (1, 3, 5 * upscale, 7 * upscale)
    assert model.scale == upscale


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(17, 33), (1, 1), (3, 40), (1, 16)])
def test_any_size_is_continued_by_reflection(size):
    model = random_model()
    x = random_pictures(1, 3, *size)
    padding = [(0, 0), (0, 0), *((0, -side % 16) for side in size)]
    whole = torch.from_numpy(np.pad(x.numpy(), padding, mode="reflect"))
    with torch.no_grad():
        expected = model(whole)[:, :, : size[0], : size[1]]
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_published_windows_take_odd_sizes():
    with torch.device("meta"):
        assert GRL(**BASE, window_size=12, stripe_size=(48, 96)).multiple == 96
    model = GRL(**{**TINY, "depths": (2,), "num_heads_window": (2,), "num_heads_stripe": (2,)})
    x = random_pictures(1, 3, 48, 80).float()
    with torch.no_grad():
        assert model(x).shape == x.shape and model(x).isfinite().all()


def test_pictures_of_a_batch_do_not_see_each_other():
    model = random_model()
    x = random_pictures(2, 3, 20, 30)
    with torch.no_grad():
        singles = torch.cat([model(x[:1]), model(x[1:])])
        torch.testing.assert_close(model(x), singles, rtol=1e-12, atol=1e-12)
        assert model(x[:0]).shape == (0, 3, 20, 30)


def test_the_size_trained_with_does_not_matter():
    x = random_pictures(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(random_model(img_size=480)(x), random_model(img_size=8)(x))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 0, 16)])
def test_a_wrong_shape_names_the_rule(shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)|at least 1"):
        random_model()(torch.zeros(shape))


# ---- types, layouts and kernels ------------------------------------------------------------------


@pytest.mark.parametrize("by_autocast", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.006)])
def test_half_precision_is_close(dtype, tolerance, by_autocast):
    exact = random_model()
    for name, parameter in exact.named_parameters():
        parameter.data.copy_(draw(name, tuple(parameter.shape), 0))
    model = copy.deepcopy(exact).float()
    x = random_pictures(1, 3, 32, 48)
    with torch.no_grad():
        change = exact(x) - x
        if by_autocast:
            with torch.autocast("cpu", dtype):
                found = model(x.float())
            assert found.dtype == torch.float32
        else:
            found = model.to(dtype)(x.to(dtype))
            assert found.dtype == dtype
        assert relative_error(found.double() - x, change) < tolerance
        assert relative_error(exact.float()(x.float()).double() - x, change) < 1e-4


def test_memory_formats_agree():
    model = random_model()
    x = random_pictures(2, 3, 16, 32)
    with torch.no_grad():
        y, other = model(x), model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, other, rtol=1e-12, atol=1e-12)
    assert y.is_contiguous()


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_runs_in_fused_kernels(dtype):
    model = random_model(local_connection=True, embed_dim=36, num_heads_window=(3,)).to(dtype)
    with torch.no_grad(), Operators() as operators:
        model(random_pictures(1, 3, 32, 32).to(dtype))
    assert "_scaled_dot_product_flash_attention_for_cpu" in operators.names
    assert not operators.names & {"_softmax", "_safe_softmax", "bmm"}


def test_heads_filled_up_for_a_kernel_give_the_same(monkeypatch):
    model = random_model(embed_dim=36, num_heads_window=(3,))
    x = random_pictures(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setitem(grl_attention.HEAD_MULTIPLES, "cpu", 8)
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_the_model_is_one_graph():
    model = random_model(depths=(3,))
    x = random_pictures(1, 3, 16, 24)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)


# ---- training ------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_definition():
    model = random_model(embed_dim=36, local_connection=True, num_heads_window=(3,)).train()
    x = random_pictures(1, 3, 16, 32).requires_grad_()
    inputs = (x, *model.parameters())
    found = torch.autograd.grad(model(x).square().sum(), inputs)
    expected = torch.autograd.grad(plain_restoration(model, x).square().sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_every_parameter_learns_from_the_first_step():
    torch.manual_seed(0)
    model = GRL(**{**SMALL, "embed_dim": 36}, local_connection=True)
    model(torch.rand(2, 3, 20, 30)).sin().sum().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert not still
    scales = [p for name, p in model.named_parameters() if name.endswith("logit_scale")]
    assert all(torch.allclose(p.exp(), torch.tensor(10.0)) for p in scales)


# ---- files and settings --------------------------------------------------------------------------


def test_published_tables_are_left_out():
    model = random_model()
    state = {**{name: torch.zeros(2) for name in TABLES}, **model.state_dict()}
    assert list(ARCHITECTURE.tidy(state)) == list(model.state_dict())
    assert len(TABLES) == 13
    twin = GRL(**SMALL).double()
    twin.load_state_dict(state, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="table_x"):
        twin.load_state_dict({**state, "table_x": torch.zeros(2)})


@pytest.mark.parametrize(
    "settings", [*PRESETS.values(), {"mlp_ratio": 1.3}, {"upsampler": "nearest+conv", "upscale": 4}]
)
def test_weights_tell_the_settings(settings):
    with torch.device("meta"):
        model = GRL(**settings)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert set(ARCHITECTURE.landmarks) <= set(shapes)
    windows = {"window_size": model.settings["window_size"], "stripe_size": model.settings["stripe_size"]}
    with torch.device("meta"):
        twin = GRL(**ARCHITECTURE.settings(shapes, windows))
    assert {**twin.settings, "mlp_ratio": 0} == {**model.settings, "mlp_ratio": 0}
    assert {name: value.shape for name, value in twin.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("grl-tiny", "denoising"),
        ("grl-base", "motion deblurring"),
        ("grl-small-x2", "super-resolution"),
    ],
)
def test_windows_that_weights_do_not_tell_are_the_published_ones(name, task):
    with torch.device("meta"):
        shapes = {entry: value.shape for entry, value in GRL(**PRESETS[name]).state_dict().items()}
        model = GRL(**ARCHITECTURE.settings(shapes, {}))
    assert {key: model.settings[key] for key in PRESETS[name]} == PRESETS[name]
    assert f"as published for {task}" in ARCHITECTURE.assumed(model.settings)
    assert ARCHITECTURE.assumed({**model.settings, "window_size": 8}) is None


@pytest.mark.parametrize("stripe_size", [(8, 16), (48, 96), (64, 64)])
def test_published_tables_tell_the_windows(tmp_path, stripe_size):
    model = GRL(**{**SMALL, "window_size": 12, "stripe_size": stripe_size})
    places = [side + side // 4 - 1 for side in stripe_size]
    tables = {name: torch.zeros(2) for name in TABLES}
    tables |= {"table_w": torch.zeros(1, 23, 23, 2), "table_sh": torch.zeros(1, *places, 2)}
    tables["table_sv"] = torch.zeros(1, *places[::-1], 2)
    state = {f"model.{name}": value for name, value in {**model.state_dict(), **tables}.items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    assert irnext.load(tmp_path / "w.ckpt").settings == model.settings
    assert irnext.load(tmp_path / "w.ckpt", window_size=4).settings == {**model.settings, "window_size": 4}


def test_files_keep_weights_and_settings(tmp_path):
    torch.manual_seed(0)
    model = irnext.create_model("grl-tiny", **{**SMALL, "mlp_ratio": 1.5}, stripe_groups=[None, None])
    irnext.save(model, tmp_path / "ours.safetensors")
    # A published file: all of a Lightning module, with its tables.
    state = {**model.state_dict(), **{name: torch.zeros(2) for name in TABLES}}
    content = {"epoch": 1, "state_dict": {f"model.{name}": value for name, value in state.items()}}
    torch.save(content, tmp_path / "published.ckpt")
    windows = {name: model.settings[name] for name in ("window_size", "stripe_size")}
    for twin in (
        irnext.load(tmp_path / "ours.safetensors"),
        irnext.load(tmp_path / "published.ckpt", **windows),
    ):
        assert twin.settings == model.settings
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    assert irnext.load(tmp_path / "published.ckpt").settings["window_size"] == 16


def test_models_survive_pickling_and_copying():
    model = random_model()
    x = random_pictures(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)
    assert list(model.official_state_dict()) == list(model.state_dict())
    listed = json.loads(json.dumps(model.settings))
    assert GRL(**listed).settings == model.settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 1}, "in_channels is 1: it must be 3"),
        ({"img_range": 0}, "img_range is 0: it must be a positive"),
        ({"mlp_ratio": 0.01}, "mlp_ratio is 0.01: at least 1 hidden"),
        ({"window_size": 0}, "window_size is 0: it must be a whole number"),
        ({"window_size": (8, 8)}, r"window_size is \(8, 8\): it must be a whole number"),
        ({"anchor_window_down_factor": 2.5}, "anchor_window_down_factor is 2.5"),
        ({"stripe_size": 16}, "stripe_size is 16: it must be a list"),
        ({"stripe_size": (8, 16, 8)}, "stripe_size is .*two whole numbers"),
        ({"stripe_size": (8, 18)}, "multiples of anchor_window_down_factor=4"),
        ({"stripe_size": (8, None)}, "or None where stripe_groups has a number"),
        ({"stripe_groups": (0, None)}, "stripe_groups is .*two whole numbers"),
        ({"depths": ()}, "depths is .*at least 1 block"),
        ({"num_heads_window": (3,)}, "num_heads_window is .*embed_dim=16"),
        ({"num_heads_stripe": (1, 1)}, "num_heads_stripe is .*each of the 1 stages"),
        ({"local_connection": True}, "embed_dim is 16: with local_connection it must be at least 18"),
        ({"upsampler": "bicubic"}, "upsampler.*pixelshuffledirect, pixelshuffle, nearest"),
        ({"upscale": 2}, "upscale is 2: with upsampler='' it must be 1"),
        ({"upsampler": "pixelshuffle", "upscale": 6}, "3 or a power of two from 2"),
        ({"upsampler": "pixelshuffledirect"}, "upscale is 1: .*at least 2"),
        ({"upsampler": "nearest+conv", "upscale": 2}, "upscale is 2: .*must be 4"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GRL(**{**SMALL, **settings})
