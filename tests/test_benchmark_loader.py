"""The loader's benchmark reads what training reads, and counts crops."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import loader
from benchmarks.loader import Options

TINY = "--blocks 1 --width 8 --size 64 --rounds 1 --seconds 0.02 --steps 1 --threads 1"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setitem(loader.PAIRS, "PNG 480 x 620", ((70, 90), "png"))
    monkeypatch.setattr(loader, "SYNTHETIC_SIZE", (70, 90))


def test_rates_are_written(tmp_path, capsys):
    chosen = [
        "--sources",
        "PNG 480 x 620",
        "haze",
        "--workers",
        "0",
        "1",
        "--json",
        "--results",
        str(tmp_path),
    ]
    assert loader.main([*TINY.split(), *chosen]) == 0
    (path,) = tmp_path.rglob("loader.json")
    rows = json.loads(path.read_text())["results"]
    sources = [(row["source"], row["workers"]) for row in rows]
    assert sources == list(itertools.product(["PNG 480 x 620", "haze"], [0, 1]))
    for row in rows:
        assert row["ahead"] == pytest.approx(row["loader_crops_per_second"] / row["step_crops_per_second"])
        assert row["kept"] == pytest.approx(row["training_crops_per_second"] / row["step_crops_per_second"])
        assert 1 < row["bits_per_pixel"] < 30
    printed = capsys.readouterr().out
    assert "loader / steps" in printed and "haze" in printed


@pytest.mark.parametrize("source", ["PNG 480 x 620", "snow"])
def test_crops_come_in_the_order_of_training(source, tmp_path):
    options = Options(size=64)
    crops = loader.make_crops(source, options, tmp_path)
    assert len(crops) == loader.EPOCH
    alone, by_worker = (loader.endless_batches(crops, 3, workers) for workers in (0, 1))
    for batch, other in itertools.islice(zip(alone, by_worker, strict=True), 3):
        for pictures, same in zip(batch, other, strict=True):
            assert pictures.shape == (3, 3, 64, 64) and pictures.dtype == torch.uint8
            assert torch.equal(pictures, same)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.png")]
    assert loader.bits_per_pixel(tmp_path) == pytest.approx(8 * sum(sizes) / len(sizes) / (70 * 90))


def test_pictures_are_the_same_in_every_run(tmp_path):
    for name in ("a", "b"):
        loader.write_pictures(tmp_path / name, (20, 30), "png")
    first, second = (
        np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / n).iterdir())]) for n in "ab"
    )
    assert first.shape == (loader.PICTURES, 20, 30, 3) and (first == second).all()
    assert len(np.unique(first.reshape(loader.PICTURES, -1), axis=0)) == loader.PICTURES


def test_rates_count_crops(monkeypatch):
    """A loader of a hundredth of a second a batch of 4 gives at most 400 crops a second."""

    def slow(crops, batch, workers):
        while True:
            loader.time.sleep(0.01)
            yield None, None

    monkeypatch.setattr(loader, "endless_batches", slow)
    rate = loader.loader_rate(None, 1, Options(batch=4, seconds=0.1))
    assert 40 < rate < 400


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sources": ("haze", "fog")}, "unknown sources fog: choose some of PNG"),
        ({"workers": ()}, "numbers of workers"),
        ({"workers": (-1,)}, "numbers of workers"),
        ({"steps": 0}, "at least one step"),
        ({"size": 100}, "multiple of 32"),
        ({"batch": 1}, "at least 2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
