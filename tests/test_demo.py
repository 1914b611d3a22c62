"""The demonstration in miniature: a few steps on small crops, everything else as users see it."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from irnext import IRNeXt, LocalAttention, demo, page
from irnext.metrics import psnr

pytest.importorskip("skimage")


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=160)


@pytest.fixture
def miniature(monkeypatch):
    """Crops of 64, two at a time, and quarter-size photographs."""
    monkeypatch.setattr(demo, "BATCH", 2)
    monkeypatch.setattr(demo, "CROP", 64)
    photograph = demo._photograph
    monkeypatch.setattr(demo, "_photograph", lambda name: photograph(name).reduce(4))
    monkeypatch.setattr(demo.time_local_attention, "__defaults__", ((1, 16, 24, 24), 2))


def parse(html):
    """The tags with their attributes."""

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attributes):
            self.found.append((tag, dict(attributes)))

    parser = Tags()
    parser.feed(html)
    return parser.found


def test_a_run_writes_both_files_with_the_numbers_it_returns(tmp_path, miniature, quiet):
    result = demo.run(tmp_path / "new" / "folder", steps=3, console=quiet)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"demo.png", "demo.html"}
    assert result.steps == 3
    printed, html = quiet.file.getvalue(), result.page.read_text("utf-8")
    for text in (printed, html):
        assert f"{result.psnr_before:.2f} dB" in text and f"{result.psnr_after:.2f} dB" in text
        assert f"{result.ssim_after:.4f}" in text and "irnext-rgb" in text
        assert f"{result.timing.step[0] / result.timing.step[1]:.1f}x" in text
        assert "as called, memory allocation included" in " ".join(text.split())

    with Image.open(result.picture) as sheet:
        assert sheet.format == "PNG" and sheet.width > 3 * sheet.height / 2
    # The pictures in the page are the measured ones, but for rounding to 8 bits.
    sources = [attributes["src"] for tag, attributes in parse(html) if tag == "img"]
    restored, clean, hazy = (
        torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))) / 255
        for source in sources
    )
    hazy, restored, clean = (picture.permute(2, 0, 1) for picture in (hazy, restored, clean))
    assert psnr(hazy, clean) == pytest.approx(result.psnr_before, abs=0.01)
    assert psnr(restored, clean) == pytest.approx(result.psnr_after, abs=0.01)


def test_a_seed_gives_the_same_model_and_leaves_the_callers_generator(miniature, quiet):
    photographs = [demo._photograph(name) for name in demo.TRAINING]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    models = [demo.train(photographs, 2, 1e6, seed, quiet)[0] for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not models[0].training


def test_training_lowers_the_error_on_the_unseen_photograph(miniature, quiet):
    result_model, _ = demo.train([demo._photograph(name) for name in demo.TRAINING], 40, 1e6, 0, quiet)
    clean = demo._unit(demo._photograph(demo.UNSEEN))
    hazy = demo.UNSEEN_HAZE.degrade(clean, np.random.default_rng(0))
    restored = demo.restore(result_model, hazy)
    assert (
        psnr(demo._batch([restored]), demo._batch([clean]))
        > psnr(demo._batch([hazy]), demo._batch([clean])) + 0.5
    )


def test_the_unseen_photograph_is_not_trained_on():
    assert demo.UNSEEN not in demo.TRAINING


def test_the_limit_ends_training_early(miniature, quiet):
    photographs = [demo._photograph(demo.TRAINING[0])]
    assert demo.train(photographs, 10_000, 0.01, 0, quiet)[1] == 1


def test_a_fast_enough_machine_takes_every_step_and_a_slow_one_stops_in_time():
    assert demo._clock(1) == pytest.approx(1)
    assert demo._clock(0.1) == pytest.approx(0, abs=1e-12)
    # A slow start, then a pace that takes 0.9 of the limit: the clock never leads.
    assert all(demo._clock(0.02 + 0.9 * share) < share for share in np.linspace(0, 1, 50))


def test_crops_are_squares_of_the_photograph_in_range():
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (150, 200, 3), dtype=np.uint8))
    crops = [demo._crop(rng, photograph) for _ in range(20)]
    assert all(crop.shape == (demo.CROP, demo.CROP, 3) and crop.dtype == np.float32 for crop in crops)
    assert min(crop.min() for crop in crops) >= 0 and max(crop.max() for crop in crops) <= 1
    assert len({crop.tobytes() for crop in crops}) == 20
    means = [crop.mean() for crop in crops]
    assert np.ptp(means) > 0.1  # brightness varies


def test_the_schedule_rises_and_falls_to_zero():
    rates = [demo._schedule(share) for share in np.linspace(0, 1, 101)]
    assert 0 < rates[0] < 0.1 and rates[-1] == pytest.approx(0, abs=1e-12)
    peak = int(np.argmax(rates))
    assert 3 <= peak <= 6 and rates[peak] > 0.98
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:])[::-1]


def test_the_published_formulation_equals_local_attention():
    module = LocalAttention(12, groups=4, kernel_size=5).double().eval()
    for gain in (module.low_gain, module.high_gain, module.inner_gain):
        torch.nn.init.normal_(gain)
    z = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        ours, published = module(z), demo.published_local_attention(module, z)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-12)
    assert (ours - z).abs().max() > 0.1  # not the identity


def test_times_are_refused_where_the_results_differ(monkeypatch):
    wrong = demo.published_local_attention
    monkeypatch.setattr(demo, "published_local_attention", lambda module, z: wrong(module, z) * 1.001)
    with pytest.raises(ArithmeticError, match="differs"):
        demo.time_local_attention((1, 16, 8, 8), 1)


def test_without_scikit_image_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"irnext\[demo\]"):
        demo.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train", lambda *arguments: pytest.fail("training began"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="a file, not a folder"):
        demo.run(tmp_path / "file")

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.touch", deny)
    with pytest.raises(PermissionError) as caught:
        demo.run(tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder")


def test_a_missing_photograph_is_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no-such\.png"):
        demo._photograph("no-such.png")


@pytest.mark.parametrize("settings", [{"seconds": 0}, {"seconds": float("nan")}, {"steps": 0}])
def test_limits_must_be_positive(tmp_path, settings):
    with pytest.raises(ValueError, match="positive"):
        demo.run(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_diverging_model_is_reported_and_nothing_is_written(tmp_path, miniature, monkeypatch, quiet):
    forward = IRNeXt.forward
    monkeypatch.setattr(IRNeXt, "forward", lambda self, x: [y * float("nan") for y in forward(self, x)])
    with pytest.raises(ArithmeticError, match="step 1"):
        demo.run(tmp_path, steps=2, console=quiet)
    assert not list(tmp_path.iterdir())


def test_the_sheet_holds_the_pictures_in_order():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [Image.new("RGB", (30, 20), colour) for colour in colours]
    sheet = demo.side_by_side(pictures, ["first", "second", "third"], panel=300)
    assert [sheet.getpixel((156 + 306 * i, 100)) for i in range(3)] == colours
    captions = np.asarray(sheet.crop((0, 208, sheet.width, sheet.height)).convert("L"))
    assert all(panel.min() < 128 for panel in np.array_split(captions, 3, axis=1))


@pytest.fixture
def html():
    pictures = [Image.new("RGB", (8, 6), (level, level, level)) for level in (10, 20, 30)]
    return page.render(*pictures, tables=[page.Table(("a <b>", "n"), [("x & y", "1")])], account="1 < 2")


def test_the_page_needs_nothing_from_outside(html):
    for _, attributes in parse(html):
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?:|@import|url\(", html)


def test_the_page_can_be_used_by_everyone(html):
    tags = parse(html)
    assert dict(tags)["html"]["lang"] == "en"
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")
    sliders = [attributes for tag, attributes in tags if tag == "input" and attributes["type"] == "range"]
    assert len(sliders) == 1 and sliders[0]["aria-label"]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags


def test_text_is_escaped_in_the_page(html):
    assert "a &lt;b&gt;" in html and "x &amp; y" in html and "1 &lt; 2" in html


def test_pictures_of_different_sizes_are_refused():
    pictures = [Image.new("RGB", (8, size)) for size in (6, 6, 7)]
    with pytest.raises(ValueError, match="size"):
        page.render(*pictures, tables=[], account="")
