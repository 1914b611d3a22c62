"""Bands give what the whole picture gives, and take no more memory than their account says."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from PIL import Image
from skimage import data
from torch import nn

import irnext
from benchmarks.harness import allocated_peak
from irnext import bands, cli
from irnext.bands import STEP, BandedNetwork, MemoryLimitError, Pass, account, least_memory, whole_memory
from irnext.optimization import OptimizedModel, optimize
from irnext.restoration import restore

OPTIONS = [
    {},
    {"low_pass": "local"},
    {"low_pass": "exact"},
    {"branch": "lam-no-fm", "pool_rates": (16, 4)},
    {"branch": "conv"},
    {"pooling": "max", "activation": "softmax"},
    {"pooling": "convolution", "activation": "sigmoid", "pool_rates": (8, 2)},
    {"msm_per_block": 0},
    {"msm_per_block": 2, "kernel_size": 5, "groups": 4, "pool_rates": (4, 2)},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WIDTH = 16


@functools.cache
def made(index: int, dtype: torch.dtype = torch.float32, blocks: int = 2) -> OptimizedModel:
    """The optimized model of OPTIONS[index]; tests must not change it."""
    torch.manual_seed(3)
    return optimize(randomise(irnext.IRNeXt(blocks, WIDTH, **OPTIONS[index])).eval(), dtype)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def banded(model: OptimizedModel, x: torch.Tensor, height: int | None = None) -> BandedNetwork:
    """The network in bands of one height, by default the lowest."""
    network = model._prepare()
    found = BandedNetwork(network, WIDTH, account(model.plain, network, x), limit=0)
    if height:
        passes = account(model.plain, network, x)
        found.heights = {key: -(-height // each.multiple) * each.multiple for key, each in passes.items()}
    return found


@torch.no_grad()
def difference(model: OptimizedModel, x: torch.Tensor, height: int | None = None) -> float:
    """The largest difference of any result from the whole picture's, relative to its magnitude."""
    found, whole = banded(model, x, height)(x), model(x)
    assert [(y.shape, y.stride(), y.dtype) for y in found] == [(y.shape, y.stride(), y.dtype) for y in whole]
    return max(relative_error(a, b) for a, b in zip(found, whole, strict=True))


# ---- the same results ----------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=lambda index: str(OPTIONS[index]))
def test_float32_is_the_whole_pictures(index):
    # 224 rows are 14 bands, an odd number at half size, and at a quarter 3 and a lower one.
    assert difference(made(index), picture(1, 3, 224, 160)) < 3e-6


@pytest.mark.parametrize("height", [32, 48, 400])
@pytest.mark.parametrize("index", [0, 1])
def test_every_height_of_bands(index, height):
    assert difference(made(index), picture(1, 3, 160, 96), height) < 3e-6


@pytest.mark.parametrize("index", [0, 1, 2, 6])
def test_float64_has_no_other_source_of_error(index):
    """Statistics and coordinates of the whole picture: only sums in another order differ."""
    assert difference(made(index, torch.float64), picture(1, 3, 96, 64).double()) < 1e-13


@pytest.mark.parametrize(
    "index, dtype", [*((index, torch.bfloat16) for index in (0, 1, 2, 6)), (0, torch.float16)]
)
def test_half_precision_is_as_good_as_the_whole(index, dtype):
    model, x = made(index, dtype), picture(1, 3, 160, 64)
    exact = copy.deepcopy(model.plain).double()
    with torch.no_grad():
        expected = exact(x.double())
        found, whole = banded(model, x)(x), model(x)
    for a, b, y in zip(found, whole, expected, strict=True):
        assert relative_error(a, y) < 1.5 * relative_error(b, y)


def test_convolutions_are_the_whole_pictures_bit_for_bit():
    """Winograd tiles of a band are those of the picture, so nothing differs where no sum runs over it."""
    model, x = made(7), picture(1, 3, 288, 96)
    network = model._prepare()
    plane = torch.randn(1, WIDTH, 288, 96).contiguous(memory_format=torch.channels_last)
    whole = network.encoder[0].blocks[0](plane)
    banded(model, x).block(0, network.encoder[0].blocks[0], plane)
    assert torch.equal(plane, whole)


def test_rows_are_upsampled_with_the_coordinates_of_the_whole_plane():
    plane = torch.rand(1, 2, 5, 7, dtype=torch.float64)
    whole = F.interpolate(plane, (23, 7), mode="bilinear", align_corners=True)
    for first, last in ((0, 23), (4, 9), (22, 23)):
        torch.testing.assert_close(bands.blended(plane, first, last, 23), whole[:, :, first:last])
    torch.testing.assert_close(bands.blended(plane, 0, 1, 1), plane[:, :, :1])


def test_a_batch_is_computed_picture_by_picture():
    model, x = made(0), picture(2, 3, 224, 96)
    found = model(x, max_memory=limit_between(model, x))
    for y, whole in zip(found, model(x), strict=True):
        assert relative_error(y, whole) < 3e-6
    assert [y.shape for y in model(x[:0], max_memory=1)] == [(0, 3, 56, 24), (0, 3, 112, 48), (0, 3, 224, 96)]


def test_a_fixed_local_window_holds_in_bands():
    plain = copy.deepcopy(made(1).plain)
    plain.fix_local_window(64)
    assert difference(optimize(plain), picture(1, 3, 224, 96)) < 3e-6


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_backend(backend):
    if not irnext.backends()[backend]:
        pytest.skip("the compiled library is not built")
    with irnext.use_backend(backend):
        assert difference(made(1), picture(1, 3, 160, 96)) < 3e-6


def test_other_layouts_and_weights():
    model = made(0)
    x = picture(1, 3, 160, 96).contiguous(memory_format=torch.channels_last)
    assert difference(model, x) < 3e-6
    assert difference(optimize(model, channels_last=False), x.contiguous()) < 3e-6
    plain = copy.deepcopy(model.plain).bfloat16()
    assert difference(optimize(plain), x.bfloat16()) < 0.02


# ---- the account ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index, dtype",
    [*((index, torch.float32) for index in (0, 1, 5, 6, 7)), *((0, dtype) for dtype in DTYPES[1:])],
)
def test_no_more_memory_than_promised(index, dtype):
    # Few numbers take long where no library is fast, and what is small anyway must not hide the rest.
    model, x = made(index, dtype, blocks=1), picture(1, 3, 192, 192)
    network = model._prepare()
    passes = account(model.plain, network, x)
    least = least_memory(passes)
    for limit in (least, 3 * least // 2)[: 1 if dtype in DTYPES[2:] else 2]:
        assert 0.5 * limit < allocated_within(BandedNetwork(network, WIDTH, passes, limit), x) <= limit


@torch.no_grad()
def allocated_within(network, x: torch.Tensor) -> int:
    return allocated_peak(lambda: network(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [0, 7])
def test_the_whole_takes_no_more_than_is_reckoned_with(index, dtype):
    model, x = made(index, dtype, blocks=1), picture(2, 3, 64, 64)
    assert allocated_within(model, x) <= whole_memory(WIDTH, dtype, x)


def test_without_compiled_operators_too():
    with irnext.use_backend("reference"):
        model, x = made(1, blocks=1), picture(1, 3, 160, 160)
        passes = account(model.plain, model._prepare(), x)
        limit = least_memory(passes)
        assert allocated_within(BandedNetwork(model._prepare(), WIDTH, passes, limit), x) <= limit


def test_heights_follow_from_the_limit():
    one = Pass(rows=100, held=1000, row=10, halo=8)
    assert one.memory(16) == 1000 + 10 * 24
    assert one.memory(200) == 1000 + 10 * 100  # the plane and no more
    for limit in range(1240, 2500, 10):
        height = one.height(limit)
        assert height % STEP == 0 and one.memory(height) <= limit
    assert one.height(0) == STEP
    # Two bands of 48 and 52 rows rather than 80 and 20.
    assert one.height(1000 + 10 * 88) == 64
    assert Pass(rows=10000, held=0, row=1, halo=0).height(2**40) == bands.TALLEST


def limit_between(model: OptimizedModel, x: torch.Tensor) -> int:
    """A limit that needs bands and allows them."""
    whole = whole_memory(WIDTH, model.dtype or torch.float32, x)
    assert least_memory(account(model.plain, model._prepare(), x)) < whole - 1
    return whole - 1


# ---- limits as users give them -------------------------------------------------------------------


def test_a_limit_can_be_the_models_or_a_calls(monkeypatch):
    plain, x = made(0).plain, picture(1, 3, 224, 96)
    calls = []
    call = BandedNetwork.__call__
    monkeypatch.setattr(BandedNetwork, "__call__", lambda self, x: calls.append(1) or call(self, x))
    limit = limit_between(made(0), x)
    limited = optimize(plain, max_memory=limit)
    assert f"max_memory={limit}" in repr(limited)
    copied = copy.deepcopy(limited)
    expected = limited(x)
    assert len(calls) == 1
    made(0)(x)
    limited(x, max_memory="1G")  # where the whole fits it is computed
    assert len(calls) == 1
    for y in (made(0)(x, max_memory=str(limit)), copied(x)):
        assert all(torch.equal(a, b) for a, b in zip(y, expected, strict=True))
    assert len(calls) == 3


def test_too_low_a_limit_names_the_least():
    model, x = made(0), picture(1, 3, 224, 96)
    with pytest.raises(
        MemoryLimitError, match=r"96x224 pixels need at least \S+M of memory, and 1M may"
    ) as caught:
        model(x, max_memory="1M")
    model(x, max_memory=caught.value.least)
    with pytest.raises(MemoryLimitError):
        model(x, max_memory=caught.value.least - 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(ValueError, match=r"memory size '8X'"):
        optimize(model, max_memory="8X")


def test_what_was_replaced_cannot_be_computed_in_bands():
    x = picture(1, 3, 224, 96)
    limit = limit_between(made(0), x)
    hooked, replaced, wider = (copy.deepcopy(made(0).plain) for _ in range(3))
    hooked.encoder[0].layers[0].register_forward_hook(lambda *_: None)
    replaced.decoder[1].layers[1].msm.attentions[0] = nn.Identity().eval()
    wider.downs[0] = nn.Conv2d(WIDTH, 2 * WIDTH, 5, 2, 2).eval()
    for model, name in ((hooked, "encoder.0.layers.0 "), (replaced, "decoder.1."), (wider, "downs.0 ")):
        model = optimize(model)
        model(x)
        with pytest.raises(ValueError, match=f"{name}.*replaced or hooked"):
            model(x, max_memory=limit)


def test_restoring_a_photograph_within_a_limit():
    photograph = data.astronaut()[:300, 100:260]
    whole = restore(made(0), photograph)
    with pytest.raises(MemoryLimitError) as caught:
        restore(made(0), photograph, max_memory="1M")
    partly = copy.deepcopy(made(0).plain)
    partly.stem.train()
    for model in (made(0), made(0).plain, partly):
        found = restore(model, photograph, max_memory=caught.value.least)
        assert abs(found.astype(int) - whole).max() <= 1  # rounding of rounding
        assert (found != whole).mean() < 1e-3
    assert partly.stem.training
    with pytest.raises(MemoryLimitError):
        restore(made(0), photograph, max_memory=caught.value.least - 1)


def test_the_command_takes_a_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRNEXT_BACKEND", raising=False)
    irnext.save(made(0).plain, "w.safetensors")
    Image.fromarray(data.astronaut()[:300, 100:260]).save("a.png")
    command = ["restore", "a.png", "--weights", "w.safetensors", "--device", "cpu", "-o"]
    assert cli.main([*command, "whole.png"]) == 0
    assert cli.main([*command, "no.png", "--max-memory", "1M"]) == 1
    failure = capsys.readouterr().err
    least = re.search(r"160x320 pixels need at least (\S+) of memory", failure)[1]
    assert cli.main([*command, "bands.png", "--max-memory", least]) == 0
    assert cli.main([*command, "tiles.png", "--max-memory", least, "--tile", "64"]) == 2
    whole, found = (np.asarray(Image.open(name), int) for name in ("whole.png", "bands.png"))
    assert abs(whole - found).max() <= 1
    assert not Path("no.png").exists() and not Path("tiles.png").exists()
