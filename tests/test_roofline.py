"""The floor counts every layer of the network once, and is the longer of its bytes and its operations."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import irnext
from benchmarks import roofline
from benchmarks.roofline import Layer, Rates


@pytest.mark.parametrize(
    ("settings", "batch"),
    [({"blocks": 2}, 1), ({"blocks": 1, "width": 16, "low_pass": "local"}, 3), ({"msm_per_block": 2}, 1)],
)
def test_the_layers_are_all_of_the_network(settings, batch):
    layers = roofline.layers(lambda: irnext.IRNeXt(**settings), (batch, 3, 64, 96))
    cost = irnext.complexity.measure(irnext.IRNeXt(**settings), (64, 96))
    assert sum(count * layer.macs for layer, count in layers.items()) == batch * (cost.macs + cost.tap_macs)
    modules = list(irnext.IRNeXt(**settings).modules())
    kinds = Counter()
    for layer, count in layers.items():
        kinds[layer.kind] += count
    attentions = [module for module in modules if isinstance(module, irnext.LocalAttention)]
    convolutions = [m for m in modules if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
    assert kinds["attention"] == len(attentions)
    assert kinds["convolutions"] == len(convolutions) - len(attentions)  # less the projections
    assert kinds["normalisation"] == 2
    assert kinds["pyramids"] == len(attentions) // 3 * (1 + 2 + 1)


def test_a_layer_moves_every_tensor_once():
    """The stem, a block's two convolutions, and one pyramid, by hand."""
    layers = roofline.layers(lambda: irnext.IRNeXt(1, 8), (2, 3, 64, 64))
    plane = 2 * 8 * 64 * 64

    def numbers(part: str) -> set[int]:
        return {layer.numbers for layer in layers if part in layer.name and "at 64 x 64" in layer.name}

    assert numbers("3 to 8") == {2 * 3 * 64 * 64 + plane + 8 * 3 * 9 + 8}
    weights = 8 * 8 * 9
    # Without a bias after a pyramid, with one before it, and with the block's input on top.
    assert numbers("8 to 8") == {2 * plane + weights, 2 * plane + weights + 8, 3 * plane + weights + 8}
    pools = plane // 4 + plane // 16 + plane // 64
    assert numbers("pools") == {plane + pools}
    assert numbers("merge") == {2 * plane + pools}
    assert numbers("sum of two scales, 16 of") == {plane // 64 + 2 * plane // 16}
    (transposed,) = (layer for layer in layers if "transposed" in layer.name and "16 to 8" in layer.name)
    assert transposed.macs == 2 * 16 * 32 * 32 * 8 * 16


def test_counting_computes_nothing():
    """A network whose activations would take terabytes."""
    layers = roofline.layers(lambda: irnext.IRNeXt(1), (1000, 3, 2176, 3840))
    assert sum(layer.numbers for layer in layers) * 4 > 2**42


def test_the_floor_is_the_longer_of_bytes_and_operations():
    rates = Rates(macs=1e9, copies=((1000, 4e9), (2000, 2e9)))
    layers = Counter({Layer("convolutions", "a", 100, 3000): 2, Layer("pyramids", "b", 1000): 1})
    found = roofline.floor(layers, rates, torch.float32)
    # a: 3 us by operations, 400 bytes at 4 GB/s = 0.1 us; b: 4000 bytes, more than measured, at 2 GB/s.
    assert found.by_operations_ms == pytest.approx(6e-3)
    assert found.by_bytes_ms == pytest.approx(2 * 1e-4 + 2e-3)
    assert found.by_kind_ms == pytest.approx({"convolutions": 6e-3, "pyramids": 2e-3})
    assert found.milliseconds == pytest.approx(8e-3)
    assert (found.macs, found.bytes) == (6000, 2 * 400 + 4000)
    assert [row["name"] for row in found.layers] == ["a", "b"]
    half = roofline.floor(layers, rates, torch.bfloat16)
    assert half.bytes * 2 == found.bytes and half.macs == found.macs


def test_few_bytes_are_as_fast_as_the_fastest_larger_copy():
    """A small copy on a GPU is slowed by its launch, one in a cache is faster than memory."""
    rates = Rates(1.0, ((10, 5.0), (100, 50.0), (1000, 20.0)))
    assert [rates.bandwidth(size) for size in (1, 10, 11, 100, 101, 1000, 9999)] == [50] * 4 + [20] * 3


def test_rates_are_counted_right(monkeypatch):
    on, seen = torch.device("cpu"), []

    def half_a_second(run, on_gpu: bool) -> float:
        seen.append(run().dtype)
        return 0.5

    monkeypatch.setattr(roofline, "best_seconds", half_a_second)
    assert roofline.copy_rates(on, [1000, 3000]) == ((2000, 4000.0), (6000, 12000.0))
    assert roofline.convolution_rate(torch.float32, on, [8, 16]) == 64 * 64 * 16 * 16 * 9 / 0.5
    assert roofline.matrix_rate(torch.bfloat16, on, [8, 4]) == 8**3 / 0.5
    monkeypatch.setattr(roofline, "COPY_SIZES", (1000,))
    monkeypatch.setattr(roofline, "MATRIX_SIDES", {"cpu": (16,)})
    for dtype, tried in ((torch.bfloat16, {torch.bfloat16, torch.float32}), (torch.float16, {torch.float32})):
        seen.clear()
        rates = roofline.measure_rates(dtype, on, 8)
        assert set(seen) - {torch.uint8} == tried
        assert rates.macs == max(64 * 64 * 32 * 32 * 9, 16**3) / 0.5


def test_rates_of_this_machine_are_plausible():
    on = torch.device("cpu")
    ((moved, bandwidth),) = roofline.copy_rates(on, [2**20])
    assert moved == 2**21 and 1e8 < bandwidth < 1e13
    assert 1e7 < roofline.matrix_rate(torch.float32, on, [128]) < 1e14
