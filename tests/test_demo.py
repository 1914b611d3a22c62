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

from irnext import IRNeXt, LocalAttention, checkpoints, pretrained
from irnext.data.degradations import DEGRADATIONS
from irnext.data.synthetic import CleanPictures, SyntheticCrops, SyntheticPairs
from irnext.demo import cases, fine_tuning, page, photographs, report, running, sheet, timing
from irnext.demo.storm import SAND, Sandstorm

skimage_metrics = pytest.importorskip("skimage.metrics")


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=160)


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Crops of 64, two at a time, and quarter-size photographs."""
    monkeypatch.setattr(running, "BATCH", 2)
    monkeypatch.setattr(running, "CROP", 64)
    monkeypatch.setattr(running, "SETTINGS", {"blocks": 1, "width": 8})
    for name in (photographs.UNSEEN, *photographs.TRAINING):
        reduced = Image.open(photographs.path_of(name)).convert("RGB").reduce(4)
        reduced.save((tmp_path / name).with_suffix(".png"))
    monkeypatch.setattr(photographs, "path_of", lambda name: (tmp_path / name).with_suffix(".png"))
    monkeypatch.setattr(timing.time_local_attention, "__defaults__", ((1, 16, 24, 24), 2))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Shipped weights, small and untrained, none for snow: a dict of models by task."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    models = {}
    for seed, task in enumerate(task for task in DEGRADATIONS if task != "snow"):
        torch.manual_seed(seed)
        models[task] = IRNeXt(blocks=1, width=8).eval()
        checkpoints.save(models[task], folder / f"{task}.safetensors")
    return models


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "no-weights")


def storm_crops(seed=0, patch=64, length=2):
    clean = CleanPictures([photographs.path_of(name) for name in photographs.TRAINING])
    return SyntheticCrops(clean, Sandstorm(), patch, seed, length=length)


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


def page_pictures(html):
    """The pictures in a page by their ids, (H, W, 3) uint8."""
    tags = (attributes for tag, attributes in parse(html) if tag == "img")
    return {
        tag["id"]: np.array(Image.open(io.BytesIO(base64.b64decode(tag["src"].partition(",")[2]))))
        for tag in tags
    }


def test_a_run_writes_both_files_with_the_numbers_it_returns(tmp_path, miniature, weights, quiet):
    folder = tmp_path / "new" / "folder"
    result = running.run(folder, steps=3, console=quiet)
    assert {path.name for path in folder.iterdir()} == {"demo.png", "demo.html"}
    assert result.steps == 3 and result.missing == ("snow",)
    assert [case.name for case in result.tasks] == ["haze", "motion blur", "defocus", "rain"]
    shown = [*result.tasks, result.before, result.after]
    printed, html = quiet.file.getvalue(), result.page.read_text("utf-8")
    for text in (printed, html):
        for case in shown:
            assert f"{case.ssim[0]:.4f} → {case.ssim[1]:.4f}" in text
            assert f"{case.psnr[0]:.2f} → {case.psnr[1]:.2f} dB" in text
        assert "irnext-rgb" in text and "ssim-rgb" in text
        assert f"{result.timing.step[0] / result.timing.step[1]:.1f}x" in text
        text = " ".join(text.split())
        assert "weights are not the paper" in text and "as called, memory allocation included" in text
        assert "No weights are in this package for snow" in text and "from the weights for haze" in text

    with Image.open(result.picture) as picture:
        assert picture.format == "PNG" and 1200 <= picture.width <= 1600
    # The page's pictures are those that were measured, but for rounding to 8 bits.
    pictures = page_pictures(html)
    clean = pictures["clean"]
    np.testing.assert_array_equal(clean, CleanPictures([photographs.path_of(photographs.UNSEEN)]).read(0))
    for index, case in enumerate(shown):
        for name, value in zip(("degraded", "restored"), case.psnr, strict=True):
            found = skimage_metrics.peak_signal_noise_ratio(clean, pictures[f"{name}-{index}"])
            assert found == pytest.approx(value, abs=0.01)


def test_each_task_is_restored_by_its_own_weights_and_the_storm_by_those_for_haze(
    tmp_path, miniature, weights, quiet
):
    result = running.run(tmp_path / "out", steps=1, seed=5, console=quiet)
    unseen = CleanPictures([photographs.path_of(photographs.UNSEEN)])
    for task, case in zip(weights, result.tasks, strict=True):
        degraded, clean = SyntheticPairs(unseen, running.SHOWN[task], 5).read(0)
        np.testing.assert_array_equal(case.degraded, degraded)
        expected = cases.solve("", weights[task], degraded, clean)
        np.testing.assert_array_equal(case.restored, expected.restored)
    stormy, clean = SyntheticPairs(unseen, Sandstorm(), 5).read(0)
    np.testing.assert_array_equal(result.before.degraded, stormy)
    np.testing.assert_array_equal(
        result.before.restored, cases.solve("", weights["haze"], stormy, clean).restored
    )
    assert (result.after.restored != result.before.restored).any()


def test_without_weights_it_says_so_and_trains_from_nothing(tmp_path, miniature, no_weights, quiet):
    result = running.run(tmp_path / "out", steps=1, console=quiet)
    assert not result.tasks and result.before is None and result.missing == tuple(DEGRADATIONS)
    printed, html = (" ".join(text.split()) for text in (quiet.file.getvalue(), result.page.read_text()))
    for text in (printed, html):
        assert "No weights are in this package for haze, motion-blur, defocus, rain, snow" in text
        assert "trained from nothing" in text and "fine-tuned" not in text
    assert set(page_pictures(html)) == {"degraded-0", "restored-0", "clean"}


def test_a_case_is_measured_as_its_protocols_say():
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (67, 71, 3), dtype=np.uint8)
    degraded = (clean // 2 + 30).astype(np.uint8)

    class Brighter(torch.nn.Module):
        def forward(self, x):
            return x * 1.3

    case = cases.solve("dark", Brighter(), degraded, clean)
    after = degraded / 255 * 1.3
    np.testing.assert_allclose(case.restored, (after * 255).clip(0, 255), atol=0.501)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    for index, picture in enumerate((degraded / 255, after.clip(0, 1))):
        psnr = skimage_metrics.peak_signal_noise_ratio(clean / 255, picture, data_range=1)
        ssim = skimage_metrics.structural_similarity(clean / 255, picture, channel_axis=2, **gaussian)
        assert case.psnr[index] == pytest.approx(psnr, abs=1e-4)
        assert case.ssim[index] == pytest.approx(ssim, abs=1e-5)
    assert case.gain == pytest.approx(case.psnr[1] - case.psnr[0])


def test_a_storm_is_sand_coloured_and_thickens_to_the_top():
    black, white = (np.full((40, 30, 3), level, np.float32) for level in (0, 1))
    for seed in range(10):
        veil = Sandstorm().degrade(black, np.random.default_rng(seed))
        kept = Sandstorm().degrade(white, np.random.default_rng(seed)) - veil  # the transmission
        assert veil.dtype == np.float32 and veil.min() >= 0 and veil.max() <= 1
        np.testing.assert_allclose(kept, kept[..., :1] + np.zeros(3), atol=1e-6)
        thickest = np.unravel_index(kept[..., 0].argmin(), kept.shape[:2])
        airlight = veil[thickest] / (1 - kept[thickest])
        np.testing.assert_allclose(airlight / airlight[0], SAND, atol=0.06)  # of which the tint takes part
        assert 0.1 < kept.min() < 0.24  # exp(-2.2) to exp(-1.5), and a little for the size


def test_a_seed_gives_the_same_model_and_leaves_the_callers_generator(miniature, quiet):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    models = []
    for seed in (4, 4, 5):
        models.append(running.new_model(4))
        assert fine_tuning.fine_tune(models[-1], storm_crops(seed), 1e-3, 2, 1e6, quiet) == 2
        assert not models[-1].training
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    untrained = torch.cat([p.flatten() for p in running.new_model(5).parameters()])
    assert not torch.equal(untrained, torch.cat([p.flatten() for p in running.new_model(4).parameters()]))


def test_training_lowers_the_error_on_the_unseen_photograph(miniature, quiet):
    model = running.new_model(0)
    fine_tuning.fine_tune(model, storm_crops(), running.RATE, 40, 1e6, quiet)
    clean = CleanPictures([photographs.path_of(photographs.UNSEEN)])
    assert cases.solve("", model, *SyntheticPairs(clean, Sandstorm()).read(0)).gain > 0.5


def test_the_unseen_photograph_is_not_trained_on():
    assert photographs.UNSEEN not in photographs.TRAINING


def test_the_limit_ends_training_early(miniature, quiet):
    model = running.new_model(0)
    assert fine_tuning.fine_tune(model, storm_crops(), 1e-3, 10_000, 0.01, quiet) == 1


def test_a_fast_enough_machine_takes_every_step_and_a_slow_one_stops_in_time():
    assert fine_tuning.clock(1) == pytest.approx(1)
    assert fine_tuning.clock(0.1) == pytest.approx(0, abs=1e-12)
    # A slow start, then a pace that takes 0.9 of the limit: the clock never leads.
    assert all(fine_tuning.clock(0.02 + 0.9 * share) < share for share in np.linspace(0, 1, 50))


def test_the_published_formulation_equals_local_attention():
    module = LocalAttention(12, groups=4, kernel_size=5).double().eval()
    for gain in (module.low_gain, module.high_gain, module.inner_gain):
        torch.nn.init.normal_(gain)
    z = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        ours, published = module(z), timing.published_local_attention(module, z)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-12)
    assert (ours - z).abs().max() > 0.1  # not the identity


def test_times_are_refused_where_the_results_differ(monkeypatch):
    wrong = timing.published_local_attention
    monkeypatch.setattr(timing, "published_local_attention", lambda module, z: wrong(module, z) * 1.001)
    with pytest.raises(ArithmeticError, match="differs"):
        timing.time_local_attention((1, 16, 8, 8), 1)


def test_without_scikit_image_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"irnext\[demo\]"):
        running.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_run", lambda *arguments: pytest.fail("work began"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="a file, not a folder"):
        running.run(tmp_path / "file")

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.touch", deny)
    with pytest.raises(PermissionError) as caught:
        running.run(tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder")


def test_a_missing_photograph_is_named():
    with pytest.raises(FileNotFoundError, match=r"no-such\.png"):
        photographs.path_of("no-such.png")


@pytest.mark.parametrize("settings", [{"seconds": 0}, {"seconds": float("nan")}, {"steps": 0}])
def test_limits_must_be_positive(tmp_path, settings):
    with pytest.raises(ValueError, match="positive"):
        running.run(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_diverging_model_is_reported_and_nothing_is_written(
    tmp_path, miniature, no_weights, monkeypatch, quiet
):
    forward = IRNeXt.forward
    monkeypatch.setattr(IRNeXt, "forward", lambda self, x: [y * float("nan") for y in forward(self, x)])
    with pytest.raises(ArithmeticError, match="step 1"):
        running.run(tmp_path / "out", steps=2, console=quiet)
    assert not (tmp_path / "out").exists()


def test_the_sheet_holds_the_panels_row_by_row():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    panels = [
        sheet.Panel(np.full((20, 30, 3), colour, np.uint8), f"number {index}")
        for index, colour in enumerate(colours)
    ]
    picture = sheet.compose([panels, [], panels[:2]], width=1006)
    assert picture.width == 1006
    # Five panels of 194 x 129 every 200 pixels; two of 244 x 163 every 250, as in a row of four.
    assert [picture.getpixel((100 + 200 * i, 70)) for i in range(5)] == colours
    assert [picture.getpixel((128 + 250 * i, 250)) for i in range(2)] == colours[:2]
    assert picture.getpixel((600, 250)) == sheet.PAPER
    captions = np.asarray(picture.crop((0, 136, 1006, 165)).convert("L"))
    assert all(part.min() < 128 for part in np.array_split(captions, 5, axis=1))
    captions = np.asarray(picture.crop((0, 335, 1006, picture.height)).convert("L"))
    assert [part.min() < 128 for part in np.array_split(captions, 4, axis=1)] == [True, True, False, False]


def test_the_sheet_has_the_tasks_above_each_other_and_the_storm_below(tmp_path, miniature, weights, quiet):
    result = running.run(tmp_path / "out", steps=1, console=quiet)
    clean = np.zeros_like(result.after.degraded)
    degraded, restored, storm = report.panels(result, clean)
    for case, before, after in zip(result.tasks, degraded, restored, strict=True):
        assert before.picture is case.degraded and before.caption == f"{case.name}: {case.psnr[0]:.2f} dB"
        assert after.picture is case.restored
        assert after.caption == f"restored: {case.psnr[1]:.2f} dB ({case.gain:+.2f})"
    assert [panel.picture for panel in storm] == [
        result.after.degraded, result.before.restored, result.after.restored, clean
    ]  # fmt: skip


@pytest.fixture
def comparisons():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    return pictures, [
        page.Comparison("dust & <fog>", pictures[1], pictures[2], 'a "note"'),
        page.Comparison("second", pictures[3], pictures[4], "another"),
    ]


@pytest.fixture
def html(comparisons):
    pictures, compared = comparisons
    return page.render(
        compared, pictures[0], [page.Table(("a <b>", "n"), [("x & y", "1")])], ["1 < 2", "end"]
    )


def test_the_page_needs_nothing_from_outside(html):
    for _, attributes in parse(html):
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?:|@import|url\(", html)


def test_the_page_holds_every_picture_without_loss(html, comparisons):
    found, (pictures, _) = page_pictures(html), comparisons
    assert list(found) == ["restored-0", "degraded-0", "restored-1", "degraded-1", "clean"]
    for picture, name in zip(
        pictures, ("clean", "degraded-0", "restored-0", "degraded-1", "restored-1"), strict=True
    ):
        np.testing.assert_array_equal(found[name], picture)


def test_the_page_shows_the_first_comparison_until_another_is_chosen(html):
    tags = parse(html)
    shown = [attributes["id"] for tag, attributes in tags if tag == "img" and "hidden" not in attributes]
    assert shown == ["restored-0", "degraded-0"]
    radios = [attributes for tag, attributes in tags if attributes.get("type") == "radio"]
    assert [(r["name"], r["value"], "checked" in r) for r in radios] == [
        ("case", "0", True), ("case", "1", False), ("right", "restored", True), ("right", "clean", False)
    ]  # fmt: skip
    assert [radio["data-note"] for radio in radios[:2]] == ['a "note"', "another"]


def test_the_page_can_be_used_by_everyone(html):
    tags = parse(html)
    assert dict(tags)["html"]["lang"] == "en"
    assert sum(tag == "legend" for tag, _ in tags) == sum(tag == "fieldset" for tag, _ in tags) == 2
    assert any(attributes.get("aria-live") == "polite" for _, attributes in tags)
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")
    sliders = [attributes for tag, attributes in tags if tag == "input" and attributes["type"] == "range"]
    assert len(sliders) == 1 and sliders[0]["aria-label"]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags


def test_text_is_escaped_in_the_page(html):
    for text in ("a &lt;b&gt;", "x &amp; y", "<p>1 &lt; 2</p>", "<p>end</p>", "dust &amp; &lt;fog&gt;"):
        assert text in html
    assert "<fog>" not in html


def test_pictures_of_different_sizes_are_refused(comparisons):
    pictures, compared = comparisons
    with pytest.raises(ValueError, match="size"):
        page.render(compared, pictures[0, :-1], [], [])
