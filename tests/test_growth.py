"""The benchmark of growing pictures: its fits, its search, and what it says of what it did not measure."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import irnext
from benchmarks import growth, harness, systems
from benchmarks.growth import Options, search
from benchmarks.growth_figure import IN_BANDS, NAMES, STYLES, figure
from benchmarks.laws import fit_line, fit_power
from benchmarks.systems import OURS, PUBLISHED
from irnext.bands import MemoryLimitError
from irnext.ops.convolution import winograd_serves

pytestmark = pytest.mark.xdist_group("growth")  # they share `record`
LIMIT = 2**28


# ---- fits ------------------------------------------------------------------------------------------


def test_power_law_is_numpys():
    rng = np.random.default_rng(0)
    pixels = np.array([256**2, 384**2, 512**2, 1280 * 720, 3840 * 2160])
    values = 3e-4 * pixels**1.07 * np.exp(0.1 * rng.standard_normal(5))
    (slope, intercept), covariance = np.polyfit(np.log(pixels), np.log(values), 1, cov=True)
    law = fit_power(list(zip(pixels.tolist(), values.tolist(), strict=True)))
    assert law.exponent == pytest.approx(slope)
    assert law.factor == pytest.approx(math.exp(intercept))
    assert law.standard_error == pytest.approx(math.sqrt(covariance[0, 0]))
    assert law(2e6) == pytest.approx(math.exp(intercept) * 2e6**slope)
    line = fit_line(list(zip(pixels.tolist(), values.tolist(), strict=True)))
    assert line(2e6) == pytest.approx(np.polyval(np.polyfit(pixels, values, 1), 2e6))


def test_fits_need_two_sizes():
    two = fit_power([(100, 5.0), (400, 10.0)])
    assert two.exponent == pytest.approx(0.5) and two.standard_error is None
    for few in ([], [(100, 5.0)], [(100, 5.0), (100, 6.0)]):
        assert fit_power(few) is None and fit_line(few) is None


# ---- the search ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bytes_of",
    [
        lambda w, h: 700 * w * h,
        lambda w, h: 700 * (w + -w % 96) * (h + -h % 96) + 2**30,  # steps, and a constant
        lambda w, h: 2 * w**3 + 9 * w * h,
        lambda w, h: 40 * w,
    ],
)
@pytest.mark.parametrize("limit", [2**20, 2**31, 24 * 2**30, 2**45])
def test_largest_picture_is_that_of_trying_all(bytes_of, limit):
    tried = []

    def everything(size):
        tried.append(size)
        return bytes_of(*size)

    found = search(everything, limit)
    fitting = [u for u in range(1, growth.LARGEST + 1) if bytes_of(16 * u, 9 * u) <= limit]
    size = (16 * len(fitting), 9 * len(fitting))
    assert found["size"] == size and found["pixels"] == math.prod(size) and found["limit"] == limit
    assert found["bytes"] == (bytes_of(*size) if fitting else None)
    assert len(tried) < 40


# ---- a run -----------------------------------------------------------------------------------------

TINY = "--systems irnext --blocks 1 --width 16 --memory 256M --rounds 2 --json"
SIZES = ("64x64", "100x64", "128x96", "4K")  # the last is too long


def run(folder: Path, *more: str) -> tuple[int, dict]:
    status = growth.main([*TINY.split(), "--longest", "1", "--results", str(folder), *more])
    (path,) = folder.rglob("growth.json")
    return status, json.loads(path.read_text())


@pytest.fixture(autouse=True)
def settings_of_this_process(monkeypatch):
    monkeypatch.setattr(harness, "keep_freed_memory", lambda: None)


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    if not winograd_serves(torch.float32):
        pytest.skip("without Winograd's algorithm ours cannot be counted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "keep_freed_memory", lambda: None)
        folder = tmp_path_factory.mktemp("growth")
        status, record = run(folder, "--size", *SIZES, "--figure", str(folder / "growth.svg"))
    assert status == 0
    assert "IRNeXt, ours in bands" in (folder / "growth.svg").read_text()
    return record


def rows_of(record: dict, system: str) -> list[dict]:
    return [row for row in record["results"] if row["system"] == system]


def test_what_is_measured_is_told_from_what_is_not(record):
    assert record["benchmark"] == "growth" and record["options"]["memory"] == "256M"
    *measured, last = rows_of(record, OURS)
    assert [row["padded"] for row in measured] == [[64, 64], [128, 64], [128, 96]]
    for row in measured:
        assert row["pixels"] == math.prod(row["size"]) and row["missing"] is row["wrong"] is None
        assert row["time_ms"] == row["milliseconds"] > 0 and row["calls"] in (1, 2)  # as time allows
        assert row["memory_bytes"] == row["peak_bytes"] == row["counted_bytes"]  # exactly
        assert row["time_by"] == row["memory_by"] == "measured"
    assert 0 < measured[0]["error"] < 1e-5
    assert last["milliseconds"] is last["peak_bytes"] is None and last["calls"] == 0
    assert last["time_by"] == "by the fit" and last["memory_by"] == "counted"
    assert last["memory_bytes"] == last["counted_bytes"]
    assert "a call should take" in last["missing"] and "more than 1" in last["missing"]
    points = [(row["pixels"], row["milliseconds"]) for row in measured]
    assert last["time_ms"] == pytest.approx(fit_power(points)(3840 * 2160))


def test_exponents_say_what_they_are_of(record):
    laws = {(law["system"], law["quantity"]): law for law in record["laws"]}
    assert set(laws) == {(OURS, "time"), (OURS, "memory"), (IN_BANDS, "memory")}
    time, memory = laws[OURS, "time"], laws[OURS, "memory"]
    assert time["by"] == "measured" and time["sizes"] == ["64x64", "100x64", "128x96"]
    assert memory["by"] == "measured, counted" and memory["sizes"][-1] == "3840x2160"
    assert memory["exponent"] == pytest.approx(1, abs=0.03) and 0 < memory["standard_error"] < 0.03


def test_bands_are_counted_and_never_timed(record):
    model = irnext.optimize(systems.make_plain(OURS, Options(blocks=1, width=16).settings))
    for row in rows_of(record, IN_BANDS):
        assert row["time_by"] is row["milliseconds"] is row["peak_bytes"] is None
        assert row["memory_by"] == "counted"
        width, height = row["padded"]
        if row["pixels"] > 1e6:
            with pytest.raises(MemoryLimitError) as caught:
                model(torch.empty(1).expand(1, 3, height, width), max_memory=1)
            assert row["memory_bytes"] == caught.value.least < rows_of(record, OURS)[-1]["memory_bytes"] / 2


def test_largest_pictures_fit_with_their_weights_and_no_larger_ones_do(record):
    whole, in_bands = record["largest"]
    assert [(row["system"], row["how"]) for row in (whole, in_bands)] == [(OURS, "whole"), (OURS, "in bands")]
    width, height = whole["size"]
    assert width * 9 == height * 16 and whole["by"] == "counted" and whole["limit"] == LIMIT
    weights = sum(p.nbytes for p in irnext.IRNeXt(1, 16, low_pass="local").state_dict().values())
    known = rows_of(record, OURS)[-1]  # memory is in proportion to the pixels of the padded picture
    each = known["counted_bytes"] / math.prod(known["padded"]) + 12

    def needed(width: int, height: int) -> float:
        return each * (width + -width % 32) * (height + -height % 32) + weights

    assert whole["bytes"] == pytest.approx(needed(width, height), rel=1e-3)
    assert needed(width, height) <= LIMIT < needed(width + 16, height + 9)
    assert in_bands["pixels"] > 1.5 * whole["pixels"] and in_bands["bytes"] <= LIMIT


def test_file_is_written_after_each_system(tmp_path, monkeypatch):
    make = systems.make_system

    def stopped(name, *arguments):
        if name == OURS:
            raise KeyboardInterrupt
        return make(name, *arguments)

    monkeypatch.setattr(systems, "make_system", stopped)
    monkeypatch.setattr(growth, "search", lambda everything, limit: {"pixels": 0})
    monkeypatch.setattr(growth, "counter", lambda *arguments: None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--size", "64x64", "--systems", PUBLISHED, OURS)
    (path,) = tmp_path.rglob("growth.json")
    assert [row["system"] for row in json.loads(path.read_text())["results"]] == [PUBLISHED]


@pytest.mark.parametrize(("factor", "message"), [(1.001, "off by"), (math.nan, "not finite")])
def test_wrong_results_get_no_time(tmp_path, monkeypatch, factor, message):
    make = systems.make_system

    def wrong(name, *arguments):
        system = make(name, *arguments)
        if name != OURS:
            return system

        def call(x):
            return factor * system.call(x)

        return dataclasses.replace(system, call=call, kernels=call)

    monkeypatch.setattr(systems, "make_system", wrong)
    monkeypatch.setattr(growth, "counter", lambda *arguments: None)
    status, record = run(tmp_path, "--size", "64x64", "96x96")
    assert status == 1
    first, second = rows_of(record, OURS)
    assert message in first["wrong"]
    for row in (first, second):
        assert row["milliseconds"] is row["time_by"] is row["memory_by"] is None
    assert [row["how"] for row in record["largest"]] == ["in bands"]


def test_what_cannot_be_counted_is_by_a_line_through_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "counter", lambda *arguments: None)
    status, record = run(tmp_path, "--size", "64x64", "128x96", "4K", "--systems", PUBLISHED, "--rounds", "1")
    assert status == 0
    rows = rows_of(record, PUBLISHED)
    assert all(row["spread"] is None for row in rows)  # of single calls
    assert all(row["counted_bytes"] is None for row in rows) and rows[-1]["memory_by"] == "by the fit"
    peaks = [(math.prod(row["padded"]), row["peak_bytes"]) for row in rows[:-1]]
    expected = np.polyval(np.polyfit(*zip(*peaks, strict=True), 1), 3840 * 2176)
    assert rows[-1]["memory_bytes"] == pytest.approx(expected, rel=1e-6)
    assert [law["by"] for law in record["laws"]] == ["measured", "measured"]
    (largest,) = record["largest"]
    assert largest["by"] == "by the fit" and 0.9 * LIMIT < largest["bytes"] <= LIMIT


def test_what_operators_take_by_themselves_is_added(monkeypatch):
    def peak(run, warm):
        run()
        return 3_000_000

    monkeypatch.setattr(harness, "allocated_peak", peak)
    monkeypatch.setattr(growth, "counter", lambda *arguments: lambda shape: 100 * shape[2] * shape[3])
    made = growth.Growth(PUBLISHED, Options(("64x64", "128x128"), longest=1e-9, blocks=1, width=16))
    made.run(harness.make_console())
    first, second = made.points
    assert first.memory_bytes == 3_000_000 and first.counted_bytes == 100 * 64**2
    assert second.memory_bytes == pytest.approx(4 * 3_000_000) and second.memory_by == "counted"
    assert made.largest(2**30)["bytes"] == pytest.approx(2**30, rel=0.05)


def test_pictures_without_room_are_not_tried(monkeypatch):
    made = growth.Growth(PUBLISHED, Options(("64x64", "128x128"), blocks=1, width=16))
    monkeypatch.setattr(growth, "available_memory", lambda on: made.count((128, 128)) - 1)
    made.run(harness.make_console())
    assert made.points[0].missing is None
    assert "of memory, and" in made.points[1].missing and made.points[1].peak_bytes is None

    def exhausted(x):
        raise torch.OutOfMemoryError("no")

    made.system = dataclasses.replace(made.system, kernels=exhausted)
    made.measure(made.points[1])
    assert made.points[1].missing == "out of memory"


# ---- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": ()}, "at least one"),
        ({"size": ("256",)}, "WIDTHxHEIGHT"),
        ({"systems": ("unet",)}, "unknown system 'unet'"),
        ({"memory": "lots"}, "24G|8G"),
        ({"rounds": 0}, "rounds is 0"),
        ({"longest": 0}, "longest 0"),
        ({"threads": 0}, "threads 0"),
        ({"precision": "tf32"}, "CUDA"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"figure": Path("growth.gif")}, r"\.png or \.svg"),
        ({"figure": Path("nowhere/growth.png")}, "no folder nowhere"),
    ],
)
def test_bad_options_are_refused(options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_figure_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(ValueError, match=r"pip install 'irnext\[benchmark\]'"):
        Options(figure=Path("growth.png"))


def test_sizes_go_from_small_to_large_once():
    assert Options(("720p", "64x64", "1280x720")).sizes == [(64, 64), (1280, 720)]


# ---- the figure ------------------------------------------------------------------------------------


def test_every_system_has_its_own_look():
    assert set(NAMES) == set(STYLES) == {*systems.SYSTEMS, IN_BANDS}
    assert len(set(STYLES.values())) == len(STYLES)


def test_figure_draws_what_was_measured_solid_and_the_rest_dashed(record, tmp_path):
    drawn = figure(record["results"], record["largest"], LIMIT)
    time, memory = drawn.axes
    assert time.get_xscale() == time.get_yscale() == memory.get_xscale() == memory.get_yscale() == "log"
    assert [label.get_text() for label in time.get_xticklabels()][-1] == "4K"
    rows = rows_of(record, OURS)
    (solid,) = [line for line in time.lines if line.get_label().startswith("IRNeXt, ours")]
    law = fit_power([(row["pixels"], row["milliseconds"]) for row in rows[:3]])
    assert f": {law.exponent:.2f} ± {law.standard_error:.2f}" in solid.get_label()
    assert list(solid.get_xdata()) == [row["pixels"] for row in rows[:3]] and solid.get_linestyle() == "-"
    assert list(solid.get_ydata()) == pytest.approx([row["milliseconds"] / 1e3 for row in rows[:3]])
    dashed = [
        line
        for line in time.lines
        if line.get_linestyle() == "--" and list(line.get_xdata()) == [row["pixels"] for row in rows[2:]]
    ]
    ends = {line.get_color(): line.get_ydata()[-1] for line in dashed}
    assert ends[solid.get_color()] == pytest.approx(rows[3]["time_ms"] / 1e3)
    limits = [line.get_ydata()[0] for line in memory.lines if list(line.get_xdata()) == [0, 1]]
    assert limits == [LIMIT / 2**30]
    ends = {line.get_xdata()[0] for line in memory.lines if line.get_marker() == "|"}
    assert ends == {row["pixels"] for row in record["largest"]}
    drawn.savefig(tmp_path / "growth.png")
    figure(record["results"])  # alone, as a report may
    wrong = [row | dict.fromkeys(("time_by", "memory_by")) for row in record["results"]]
    assert not any(axes.get_legend() for axes in figure(wrong).axes)
