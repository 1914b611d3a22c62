"""Evaluation: what is restored, scored, averaged and written, from stand-in pairs to the command line."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomise
from PIL import Image

import irnext
from irnext import checkpoints, cli, metrics
from irnext.cli.evaluation import PROTOCOLS
from irnext.data.specifications import DATASETS
from irnext.data.subsets import read_subset
from irnext.evaluation import Evaluation, Row, evaluate
from irnext.metrics import Metric, measure
from irnext.paper import RESULTS
from irnext.reports import markdown, write_csv, write_json
from irnext.restoration import restore

PSNR, SSIM = Metric("irnext-rgb", "psnr"), Metric("irnext-rgb", "ssim")


class Pairs:
    """Pairs in memory, some of which cannot be read."""

    dataset, layout, split = "Stand-in", "memory", "test"

    def __init__(self, pairs, broken=()):
        self.pairs, self.broken = pairs, broken

    def __len__(self):
        return len(self.pairs)

    def name(self, index):
        return f"scene/{index + 1:02}"

    def read(self, index):
        if index in self.broken:
            raise ValueError(f"{self.name(index)}.png: the picture cannot be decoded")
        return self.pairs[index]


def make_pair(height, width, seed):
    from skimage import data

    clean = np.ascontiguousarray(data.chelsea()[seed * 9 : seed * 9 + height, 60 : 60 + width])
    noise = np.random.default_rng(seed).normal(0, 12, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8), clean


@pytest.fixture(scope="module")
def pairs():
    """Odd sizes, multiples of 32, and one so large that its local window is another."""
    return Pairs([make_pair(67, 93, 0), make_pair(64, 96, 1), make_pair(150, 200, 2)])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = randomise(irnext.IRNeXt(blocks=1, width=8, low_pass="local")).eval()
    for name, gain in model.named_parameters():
        if name.endswith(("low_gain", "inner_gain")):
            gain.data *= 4  # so that the local means matter
    return model


def chw(picture):
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def test_every_picture_is_padded_restored_and_scored_as_published(model, pairs):
    """Against the published steps: reflect to a multiple of 32, third output, crop, clamp."""
    found = evaluate(model, pairs, ["irnext-rgb", "gopro-matlab"])
    assert [row.name for row in found.rows] == ["scene/01", "scene/02", "scene/03"] and not found.failed
    for row, (degraded, clean) in zip(found.rows, pairs.pairs, strict=True):
        height, width = clean.shape[:2]
        x = F.pad(chw(degraded)[None].float() / 255, (0, -width % 32, 0, -height % 32), "reflect")
        with torch.no_grad():
            restored = model(x)[2][0, :, :height, :width].clamp(0, 1)
        assert row.scores == pytest.approx(measure(["irnext-rgb", "gopro-matlab"], restored, chw(clean)))
        assert (row.height, row.width) == (height, width) and row.before == {} and row.seconds > 0
    mean = found.mean(PSNR)
    assert mean == (pytest.approx(np.mean([row.scores[PSNR] for row in found.rows])), 3)


def test_degraded_pictures_are_scored_on_request(model, pairs):
    found = evaluate(model, pairs, before=True, limit=2)
    assert len(found.rows) == 2 and found.about["pictures"] == 2
    for row, (degraded, clean) in zip(found.rows, pairs.pairs, strict=False):
        expected = metrics.psnr(chw(degraded).float() / 255, chw(clean).float() / 255)
        assert row.before[PSNR] == pytest.approx(expected, rel=1e-12)
    assert found.mean(PSNR, before=True).value == np.mean([row.before[PSNR] for row in found.rows])


def with_window(model, pair, height, width=None):
    model.fix_local_window(height, width)
    try:
        return measure(["irnext-rgb"], restore(model, chw(pair[0]).float() / 255), chw(pair[1]))[PSNR]
    finally:
        model.fix_local_window(None)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(
    "window, size",
    [("first", (96, 96)), ("train", (256, 256)), ((352, 480), (352, 480)), ("per-picture", None)],
)
def test_local_windows(model, pairs, window, size, optimized):
    """'first' is that of the first picture as padded, 67x93 to 96x96."""
    network = irnext.optimize(model) if optimized else model
    found = evaluate(network, pairs, window=window)
    scores = [row.scores[PSNR] for row in found.rows]
    assert scores == pytest.approx(
        [with_window(model, pair, *(size or (None,))) for pair in pairs.pairs], rel=1e-5
    )
    own = [with_window(model, pair, None) for pair in pairs.pairs]
    if size:
        assert abs(scores[2] - own[2]) > 1e-4 * own[2]  # it matters
    after = measure(
        ["irnext-rgb"], restore(network, chw(pairs.pairs[2][0]).float() / 255), chw(pairs.pairs[2][1])
    )
    assert after[PSNR] == pytest.approx(own[2], rel=1e-5)  # the window is not kept


def test_first_window_is_of_the_first_picture_that_can_be_read(model, pairs):
    broken = Pairs([*pairs.pairs[2:], *pairs.pairs], broken=[0])
    found = evaluate(model, broken, window="first")
    assert found.rows[-1].scores[PSNR] == pytest.approx(with_window(model, pairs.pairs[2], 96, 96))


def test_failed_pictures_are_told_and_left_out(model, pairs, capsys):
    broken = Pairs([*pairs.pairs, (pairs.pairs[0][0], pairs.pairs[0][1][:-1])], broken=[1])
    found = evaluate(model, broken)
    assert [row.index for row in found.rows] == [0, 2]
    assert [*found.failed] == ["scene/02", "scene/04"]
    assert found.failed["scene/02"] == "scene/02.png: the picture cannot be decoded"
    assert "scene/04: prediction is (3, 67, 93) and target (3, 66, 93)" in found.failed["scene/04"]
    assert found.mean(PSNR).count == 2
    assert "failed: 2 of 4 pictures" in markdown(found)


@pytest.mark.parametrize("scorers", [1, 3, 9])
def test_threads_that_score_change_nothing(model, pairs, scorers):
    broken = Pairs([*pairs.pairs, *pairs.pairs[:2]], broken=[0, 3])
    broken.pairs[2] = broken.pairs[2][0], broken.pairs[2][1][:5]
    found = evaluate(model, broken, scorers=scorers)
    assert [row.index for row in found.rows] == [1, 4]
    assert [*found.failed] == ["scene/01", "scene/03", "scene/04"]
    assert found.rows[0].scores == found.rows[1].scores == evaluate(model, pairs, limit=2).rows[1].scores


def test_a_model_that_overflows_fails_its_pictures(pairs):
    class Overflowing(torch.nn.Module):
        def forward(self, x):
            return x * float("inf")

    found = evaluate(Overflowing(), pairs, limit=1)
    assert not found.rows and "not finite" in found.failed["scene/01"]
    assert math.isnan(found.mean(PSNR).value) and markdown(found)


def test_infinite_values_do_not_spoil_the_mean(pairs):
    perfect = Pairs([(pairs.pairs[0][1],) * 2, pairs.pairs[1]])
    found = evaluate(torch.nn.Identity(), perfect)
    assert found.rows[0].scores[PSNR] == math.inf
    assert found.mean(PSNR) == (found.rows[1].scores[PSNR], 1)
    assert found.mean(SSIM).count == 2
    assert "| 1 (of 2, the others are infinite) |" in markdown(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_and_devices(model, pairs, dtype):
    found = evaluate(model, pairs, dtype=dtype, device="cpu", limit=1)
    expected = restore(model, chw(pairs.pairs[0][0]).float() / 255, dtype=dtype)
    assert found.rows[0].scores == measure(["irnext-rgb"], expected, chw(pairs.pairs[0][1]))
    assert found.about["environment"]["dtype"] == str(dtype).removeprefix("torch.")
    assert next(model.parameters()).dtype == torch.float32


def test_memory_and_tiles_are_passed_through(model, pairs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "irnext.evaluation.restore", lambda model, x, **options: seen.append(options) or x.clone()
    )
    evaluate(model, pairs, limit=1, tile=64, overlap=16)
    evaluate(model, pairs, limit=1, max_memory="8G")
    assert seen[-3]["tile"] == 64 and seen[-3]["overlap"] == 16
    assert seen[-1]["max_memory"] == "8G"


def test_memory_is_given_back_after_every_picture(model, pairs, monkeypatch):
    calls = []
    monkeypatch.setattr("irnext.restoration.inference.give_back_free_memory", lambda: calls.append(None))
    evaluate(model, pairs)
    assert len(calls) == 3


def test_saved_pictures_are_what_is_scored_as_saved(model, pairs, tmp_path):
    found = evaluate(model, pairs, save=tmp_path / "new")
    for row, (_, clean) in zip(found.rows, pairs.pairs, strict=True):
        saved = np.asarray(Image.open(tmp_path / "new" / f"{row.name}.png"))
        from_file = measure(["irnext-rgb"], chw(saved).float() / 255, chw(clean))
        assert row.scores[Metric("irnext-rgb-saved", "psnr")] == pytest.approx(from_file[PSNR], rel=1e-12)
        assert row.scores[PSNR] != from_file[PSNR]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"protocols": ["psnr"]}, ValueError, "unknown protocol 'psnr'"),
        ({"limit": 0}, ValueError, "limit is 0"),
        ({"scorers": 0}, ValueError, "scorers is 0"),
        ({"window": "last"}, ValueError, "unknown window 'last'"),
        ({"subsets": {"indoor": [3]}}, ValueError, "subset indoor has index 3: the set has 3"),
        ({"tile": 100}, ValueError, "tile is 100"),
        ({"tile": 64, "max_memory": "1G"}, ValueError, "exclude each other"),
        ({"device": "toaster"}, ValueError, "device 'toaster'"),
        ({"weights": "none.safetensors"}, OSError, "none.safetensors"),
    ],
)
def test_refusals_come_before_the_model_runs(model, pairs, options, error, message, monkeypatch):
    monkeypatch.setattr(irnext.IRNeXt, "forward", None)
    with pytest.raises(error, match=message):
        evaluate(model, pairs, **options)


def test_a_window_is_refused_where_there_is_none(pairs):
    with pytest.raises(ValueError, match="low_pass is 'global'"):
        evaluate(irnext.IRNeXt(blocks=1, width=8), pairs, window="first")
    with pytest.raises(ValueError, match="no pairs"):
        evaluate(irnext.IRNeXt(blocks=1, width=8), Pairs([]))


# ---- subsets and reports -------------------------------------------------------------------------


def test_subsets_are_read_from_numbers_and_names(tmp_path):
    names = ["a/1_0.8", "a/2_0.9", "b/3"]
    np.save(tmp_path / "n.npy", np.array([1, 3]))  # from 1
    (tmp_path / "n.txt").write_text("a/2_0.9.png\n\n/data/b/3.jpg\n1_0.8\n")
    assert read_subset(tmp_path / "n.npy", names) == [0, 2]
    assert read_subset(tmp_path / "n.txt", names) == [1, 2, 0]
    np.save(tmp_path / "zero.npy", np.array([0]))
    np.save(tmp_path / "float.npy", np.array([1.0]))
    (tmp_path / "bad.npy").write_text("1 2 3")
    (tmp_path / "unknown.txt").write_text("4.png")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for file, message in (
        ("zero.npy", "from 1 to 3"),
        ("float.npy", "whole numbers"),
        ("bad.npy", "no list of numbers"),
        ("unknown.txt", "4.png: 0 pictures"),
        ("bytes.txt", "one name per line"),
    ):
        with pytest.raises(ValueError, match=message):
            read_subset(tmp_path / file, names)
    (tmp_path / "twice.txt").write_text("3")
    with pytest.raises(ValueError, match="2 pictures"):
        read_subset(tmp_path / "twice.txt", ["a/3", "b/3"])


@pytest.fixture
def evaluation():
    """Two pictures of known scores, one of them perfect, and one that failed."""
    mae = Metric("dpdd", "mae")
    psnr = Metric("dpdd", "psnr")
    about = {
        "model": {"architecture": "IRNeXt", "blocks": 16, "low_pass": "global"},
        "window": "none",
        "tile": None,
        "weights": {"file": "dpdd.pkl", "sha256": "0123456789abcdef"},
        "data": {"dataset": "DPDD"},
        "pictures": 3,
        "of": 3,
        "environment": {"irnext": "1", "jpeg decoder": "libjpeg-turbo 3"},
    }
    rows = [
        Row(0, "a", 8, 9, 0.5, {psnr: 30.0, mae: 0.02}, {psnr: 20.0, mae: 0.1}),
        Row(2, "c, d", 8, 9, 0.5, {psnr: math.inf, mae: 0.0}, {psnr: 22.0, mae: 0.2}),
    ]
    return Evaluation("dpdd", about, rows, {"b": "b: broken"}, {"indoor": frozenset([0])})


def test_markdown_stands_beside_the_paper(evaluation):
    text = markdown(evaluation).splitlines()
    assert text[4:8] == [
        "| dpdd | PSNR | dpdd | 21.00 dB | 30.00 dB | 26.30 dB (Table 1) | 1 (of 2, the others are infinite) |",  # noqa: E501
        "| dpdd | MAE | dpdd | 0.1500 | 0.0100 | 0.037 (Table 1) | 2 |",
        "| dpdd indoor | PSNR | dpdd | 20.00 dB | 30.00 dB | 29.22 dB (Table 1) | 1 |",
        "| dpdd indoor | MAE | dpdd | 0.1000 | 0.0200 | 0.024 (Table 1) | 1 |",
    ]
    notes = "\n".join(text[8:])
    for said in (
        "dpdd.pkl (sha256 0123456789abcdef)",
        "libjpeg-turbo 3",
        "low_pass global",
        "failed: 1 of 3",
    ):
        assert said in notes


def test_csv_has_a_line_per_picture(evaluation, tmp_path):
    write_csv([evaluation], tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as file:
        a, c, b = csv.DictReader(file)
    assert a["name"] == "a" and float(a["dpdd psnr"]) == 30 and float(a["dpdd mae before"]) == 0.1
    assert c["name"] == "c, d" and float(c["dpdd psnr"]) == math.inf
    assert b["name"] == "b" and b["error"] == "b: broken" and b["dpdd psnr"] == ""


def test_json_holds_everything_and_stays_valid(evaluation, tmp_path):
    write_json([evaluation], tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    (found,) = json.loads(text)
    assert found["means"][0] == {
        "subset": None,
        "protocol": "dpdd",
        "name": "psnr",
        "mean": 30.0,
        "before": 21.0,
        "paper": 26.3,
        "pictures": 1,
    }
    assert found["rows"][1]["scores"][0] == {"protocol": "dpdd", "name": "psnr", "value": None}
    assert found["failed"] == {"b": "b: broken"} and found["weights"]["sha256"] == "0123456789abcdef"


@pytest.mark.parametrize("write", [write_csv, write_json])
def test_a_report_that_cannot_be_written_leaves_nothing(write, evaluation, tmp_path):
    with pytest.raises(OSError, match="no folder"):
        write([evaluation], tmp_path / "none" / "a")
    assert not list(tmp_path.iterdir())


def test_the_paper_has_every_test_set_with_known_protocols():
    assert len(RESULTS) == 15
    for result in RESULTS.values():
        assert {metric.protocol for metric in result.scores} <= set(metrics.PROTOCOLS)


def test_every_set_with_test_pictures_has_the_protocol_of_its_papers():
    tested = {key for key, one in DATASETS.items() if any(layout.test for layout in one.layouts)}
    assert tested <= set(PROTOCOLS)
    assert all(PROTOCOLS[key] == ("derain-y",) for key in tested if "rain" in key or key == "test100")


# ---- the command line ----------------------------------------------------------------------------


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A folder with weights that do not say their low-pass filter, and a miniature GoPro."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRNEXT_BACKEND", raising=False)
    torch.save({"model": model.official_state_dict()}, "motion.pkl")
    checkpoints.save(model, "motion.safetensors")
    write_pairs(Path("GoPro/test"), "blur", "sharp")
    return tmp_path


def write_pairs(root: Path, inputs: str, targets: str, count: int = 2) -> None:
    for index in range(count):
        for folder, picture in zip((inputs, targets), make_pair(67, 93, index), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / f"GOPR0384_11_00_{index:06}.png")


def run(*arguments: str) -> int:
    return cli.main(["evaluate", "--device", "cpu", *arguments])


GOPRO = ("--task", "gopro", "--data", "GoPro", "--weights", "motion.pkl")


def test_command_evaluates_and_writes_reports(model, here, capsys):
    assert run(*GOPRO, "--csv", "out/a.csv", "--json", "out/a.json") == 0
    text = capsys.readouterr().out
    assert "33.16 dB (Table 6)" in text and "| 0.962 (Table 6) |" in text and "low_pass local" in text
    (found,) = json.loads(Path("out/a.json").read_text())
    assert found["protocols"] == ["irnext-rgb", "gopro-matlab"]
    assert found["model"]["low_pass"] == "local"  # the published checkpoint does not say so: the task does
    assert found["weights"]["sha256"] == hashlib.sha256(Path("motion.pkl").read_bytes()).hexdigest()[:16]
    assert found["environment"]["jpeg decoder"].startswith("libjpeg")
    expected = evaluate(irnext.optimize(model), irnext.data.open_pairs("gopro", "GoPro", "test"))
    assert found["means"][0]["mean"] == pytest.approx(expected.mean(PSNR).value, rel=1e-6)
    with open("out/a.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row.name for row in expected.rows]


def test_command_reports_failed_pictures_and_goes_on(here, capsys):
    Path("GoPro/test/blur/GOPR0384_11_00_000000.png").write_text("no picture")
    assert run(*GOPRO) == 1
    output, errors = capsys.readouterr()
    assert "failed: 1 of 2" in output
    (line,) = [line for line in errors.splitlines() if line.startswith("irnext: error:")]
    assert "GOPR0384_11_00_000000.png" in line


def test_command_evaluates_every_test_set_of_a_task(here, capsys):
    for name in ("Rain100L", "Test100"):
        write_pairs(Path("rain/test") / name, "input", "target", 1)
    arguments = ("--task", "rain13k", "--data", "rain", "--weights", "motion.safetensors", "--save", "new")
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "38.14 dB (Table 3)" in text and "31.53 dB (Table 3)" in text and "rain100h" not in text
    assert "derain-y" in text and "irnext-rgb" not in text
    assert len(list(Path("new").glob("*/*.png"))) == 2
    Path("rain/test/Test100/target/GOPR0384_11_00_000000.png").rename("rain/test/Rain100L/target/other.png")
    assert run(*arguments[:-2], "--layout", "Restormer") == 0
    output, errors = capsys.readouterr()
    assert "rain100l" in output and "test100" not in output
    assert (
        "irnext: note: rain100l: pictures without a counterpart are left out: 1" in errors
        and "other.png" in errors
    )


@pytest.mark.parametrize("task", ["haze", "rain"])
def test_command_evaluates_synthetic_tasks(here, capsys, task):
    arguments = ("--task", task, "--data", "GoPro/test/sharp", "--weights", "motion.safetensors")
    assert run(*arguments) == 0
    first = capsys.readouterr().out
    assert "degraded" in first and "ssim-rgb" in first and "seed 0" in first
    assert run(*arguments) == 0
    assert capsys.readouterr().out == first
    assert run(*arguments, "--seed", "1") == 0
    assert capsys.readouterr().out != first


def test_command_takes_the_weights_of_the_package_for_a_synthetic_task(here, capsys, monkeypatch):
    monkeypatch.setattr("irnext.pretrained.WEIGHTS", here)
    Path("motion.safetensors").rename("snow.safetensors")
    assert run("--task", "snow", "--data", "GoPro/test/sharp") == 0
    assert "weights: snow.safetensors (sha256 " in capsys.readouterr().out


def test_command_averages_subsets(here, capsys):
    np.save("outdoor.npy", np.array([2]))
    assert run(*GOPRO, "--subset", "outdoor=outdoor.npy", "--window", "720x1280", "--protocol", "dpdd") == 0
    text = capsys.readouterr().out
    assert "| gopro outdoor | PSNR | dpdd |" in text and "local window: 720x1280" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("--task", "gopr", "--data", "GoPro", "--weights", "motion.pkl"),
            "unknown task 'gopr'.*gopro.*snow",
        ),
        (("--task", "gopro", "--data", "none", "--weights", "motion.pkl"), "none"),
        (("--task", "its", "--data", "GoPro", "--weights", "motion.pkl"), "GoPro"),
        (("--task", "gopro", "--data", "GoPro"), "no weights .* 'gopro'.*--weights"),
        (("--task", "gopro", "--data", "GoPro", "--weights", "none.pkl"), "none.pkl"),
        ((*GOPRO, "--protocol", "psnr"), "unknown protocol 'psnr'"),
        ((*GOPRO, "--window", "big"), "window is 'big'"),
        ((*GOPRO, "--low-pass", "global", "--window", "first"), "low_pass is 'global'"),
        ((*GOPRO, "--subset", "indoor"), "NAME=FILE"),
        ((*GOPRO, "--subset", "indoor=none.txt"), "none.txt"),
        ((*GOPRO, "--save", "GoPro/test/blur"), "inside the data"),
        ((*GOPRO, "--csv", "motion.pkl/a.csv"), "motion.pkl"),
        ((*GOPRO, "--device", "toaster"), "device 'toaster'"),
    ],
)
def test_command_refuses_in_one_line(here, capsys, arguments, message):
    assert run(*arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("irnext: error: ") and errors.count("\n") == 1 and re.search(message, errors), (
        errors
    )


def test_pairs_of_unknown_origin_have_a_name(model):
    class Plain:
        __len__, name, read = (lambda self: 1), Pairs.name, (lambda self, index: make_pair(64, 64, 0))

    assert evaluate(model, Plain()).test_set == "pictures"
