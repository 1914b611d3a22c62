"""The benchmark of whole models is honest, and runs."""

from __future__ import annotations

import json
import math

import pytest
import torch

import irnext
from benchmarks import accuracy, harness, model, networks, roofline
from benchmarks.networks import COMPILED, OPTIMIZED, PLAIN, PLAIN_COMPILED, PRECISIONS, PUBLISHED
from benchmarks.networks import PUBLISHED_COMPILED as BASELINE
from benchmarks.published import PublishedIRNeXt

CPU = torch.device("cpu")
TINY = networks.Settings(1, 8, "global")
EAGER = [PUBLISHED, PLAIN, OPTIMIZED]


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch):
    """Rates of this machine are not what is tested here."""
    rates = roofline.Rates(1e11, ((2**20, 1e10),))
    monkeypatch.setattr(roofline, "measure_rates", lambda dtype, on, width: rates)
    monkeypatch.setattr(harness, "keep_freed_memory", lambda: None)


@pytest.fixture
def compiled_nothing(monkeypatch):
    """The compiler itself takes minutes; what it is given, and when, is what counts."""
    given = []

    def compile_nothing(network, **options):
        given.append((network, options))
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return given


def run(tmp_path, *more: str) -> tuple[int, dict]:
    options = "--blocks 1 --width 8 --size 100x64 --rounds 2 --no-accuracy --json"
    status = model.main([*options.split(), "--results", str(tmp_path), *more])
    (path,) = tmp_path.rglob("*.json")
    return status, json.loads(path.read_text())


def test_it_runs_and_records(tmp_path, capsys):
    status, record = run(tmp_path, "--no-compiled", "--layers", "--batch", "2")
    results = record["results"]
    assert status == 0
    assert [(row["precision"], row["variant"]) for row in results] == [
        (precision, name) for precision in ("float32", "bfloat16") for name in EAGER
    ]
    floors = {row["precision"]: row for row in record["floors"]}
    for row in results:
        assert row["wrong"] is None and row["milliseconds"] > 0 and row["comparison"] == "eager"
        assert (row["picture"], row["padded"], row["blocks"]) == ([100, 64], [128, 64], 1)
        assert row["error_of_float64"] < (1e-5 if row["precision"] == "float32" else 0.1)
        assert row["error"] < (1e-5 if row["precision"] == "float32" else 0.1)
        pictures = 2e3 / row["milliseconds"]
        assert row["pictures_per_second"] == pytest.approx(pictures)
        assert row["megapixels_per_second"] == pytest.approx(pictures * 100 * 64 / 1e6)
        assert row["peak_bytes"] > 2 * 128 * 64 * 8 * (4 if row["precision"] == "float32" else 2)
        assert row["account_ms"]["convolutions"] > 0 and row["account_ms"]["attention"] > 0
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["milliseconds"])
        assert row["floor_ms"] == floors[row["precision"]]["milliseconds"]
        assert row["ratios"][PUBLISHED] > 0 and row["first_call_seconds"] > 0
    macs = irnext.complexity.measure(irnext.IRNeXt(1, 8), (64, 128))
    assert floors["float32"]["macs"] == 2 * (macs.macs + macs.tap_macs)
    assert sum(row["macs"] for row in floors["float32"]["layers"]) == floors["float32"]["macs"]
    printed = capsys.readouterr().out
    assert "IRNeXt(1), 100 x 64, bfloat16 (padded to 128 x 64), 2 at once: where the time goes" in printed
    assert "G multiply-accumulates" in printed and "The floor by layer" in printed
    assert "vs compiled" not in printed  # nothing to show


def test_compiled_networks_come_last_and_take_turns_with_the_others(tmp_path, compiled_nothing, capsys):
    status, record = run(tmp_path, "--compile-ours", "--dtypes", "float32")
    assert status == 0
    rows = [(row["comparison"], row["variant"]) for row in record["results"]]
    compared = [PUBLISHED, BASELINE, PLAIN_COMPILED, OPTIMIZED]
    assert rows == [("eager", name) for name in EAGER] + [("compiled", name) for name in compared]
    assert all(set(row["ratios"]) == set(compared) for row in record["results"][3:])
    (published, options), (plain, _) = compiled_nothing
    assert type(published) is PublishedIRNeXt and type(plain) is irnext.IRNeXt and not published.training
    assert options == {"options": {"freezing": True}, "dynamic": False}
    assert "vs compiled" in capsys.readouterr().out


def test_figures_are_written_before_the_compiler_starts(tmp_path, monkeypatch):
    """Where the whole benchmark is stopped while it compiles, nothing is lost."""

    def stopped(network, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--dtypes", "float32", "--name", "other")
    (path,) = tmp_path.rglob("other.json")
    assert [row["variant"] for row in json.loads(path.read_text())["results"]] == EAGER


def test_what_cannot_be_compiled_says_why_and_stops_nobody(tmp_path, monkeypatch, capsys):
    def broken(network, **options):
        def call(x):
            raise RuntimeError("no compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    status, record = run(tmp_path, "--dtypes", "float32")
    assert status == 0
    failures = {row["variant"]: row["failure"] for row in record["results"] if row["failure"]}
    assert failures == {BASELINE: "RuntimeError: no compiler"}
    assert f"{BASELINE}: RuntimeError: no compiler" in capsys.readouterr().out


@pytest.mark.parametrize(("off", "small"), [(1e-3, True), (1e-3, False), (math.nan, True), (math.nan, False)])
def test_a_wrong_model_gets_no_time(tmp_path, monkeypatch, off, small):
    """Wrong at every size, or only at the one that is timed; a little, or not a number."""
    right = networks.optimize

    def wrong(plain, dtype):
        made = right(plain, dtype=dtype)
        return lambda x: [y + off if small or len(x) == 1 else y for y in made(x)]

    monkeypatch.setattr(networks, "optimize", wrong)
    status, record = run(tmp_path, "--no-compiled", "--dtypes", "float32")
    assert status == 1
    for row in record["results"]:
        assert (row["milliseconds"] is None) == (row["variant"] == OPTIMIZED)
    last = record["results"][-1]
    assert "allowed 1.0e-05" in last["wrong"] and last["peak_bytes"] is last["account_ms"] is None
    assert [bool(row["wrong"]) for row in record["accuracy"]] == [False, False, small]


def test_a_case_without_memory_is_left_out(tmp_path, monkeypatch, capsys):
    compare = model.compare

    def short(case, *arguments):
        if case.picture == (100, 64):
            raise torch.OutOfMemoryError("too much")
        return compare(case, *arguments)

    monkeypatch.setattr(model, "compare", short)
    status, record = run(tmp_path, "--no-compiled", "--dtypes", "float32", "--size", "100x64", "64x64")
    assert status == 0 and {tuple(row["picture"]) for row in record["results"]} == {(64, 64)}
    assert "IRNeXt(1), 100 x 64, float32 (padded to 128 x 64): not enough memory" in capsys.readouterr().out


# ---- the networks and their accuracy ---------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_networks_share_weights_and_compute_in_their_precision(precision, compiled_nothing):
    x = torch.rand(1, 3, 64, 64)
    expected = networks.make_model(PublishedIRNeXt, TINY).double()(x.double())
    errors = {}
    for name in (*EAGER, *COMPILED):
        found = networks.make_network(name, TINY, precision, CPU).call(x)
        errors[name] = harness.relative_error(found, expected)
        assert not any(y.requires_grad for y in found)
    eps = torch.finfo(PRECISIONS[precision]).eps
    assert max(errors.values()) < 40 * eps
    assert min(errors.values()) > eps / 4  # none computes in a wider type than it says
    gains = [p for n, p in networks.make_model(irnext.IRNeXt, TINY).named_parameters() if n.endswith("_gain")]
    assert gains and all(gain.abs().max() > 0 for gain in gains)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_optimized_network_is_exact(blocks):
    """1e-5 of float64 in float32; in half precision twice the error of the published under autocast."""
    found = accuracy.measure(networks.Settings(blocks, 16, "local"), ["float32", "bfloat16"], CPU)
    assert [(one.precision, one.variant) for one in found] == [
        (precision, name) for precision in ("float32", "bfloat16") for name in EAGER
    ]
    assert not any(one.wrong for one in found)
    assert [one.allowed for one in found if one.precision == "float32"][1:] == [1e-5, 1e-5]
    published, *ours = (one for one in found if one.precision == "bfloat16")
    assert {one.allowed for one in ours} == {2 * published.error}
    assert published.error > 1e-3


def test_photographs_come_back_as_they_were():
    pytest.importorskip("skimage")
    pictures = accuracy.photographs()
    assert list(pictures) == ["astronaut", "coffee"]
    for picture in pictures.values():
        assert picture.shape == (1, 3, 256, 256) and 0 <= picture.min() < 0.1 and 0.9 < picture.max() <= 1
    found = accuracy.measure_photographs(TINY, ["float32", "bfloat16"], CPU)
    assert {(one.precision, one.variant, one.photograph) for one in found} == {
        ("bfloat16", name, photograph) for name in (PLAIN, OPTIMIZED) for photograph in pictures
    }
    assert all(40 < one.decibels < 100 for one in found)
    assert accuracy.measure_photographs(TINY, ["float32"], CPU) == []
    _, table = accuracy.tables(accuracy.measure(TINY, ["bfloat16"], CPU), found)
    assert table.row_count == 4 and len(table.columns) == 2


def test_nothing_is_asked_of_an_absent_package(monkeypatch):
    monkeypatch.setattr(accuracy.importlib.util, "find_spec", lambda name: None)
    assert accuracy.photographs() == {}


# ---- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "picture", "padded"),
    [
        ("256x256", (256, 256), (256, 256)),
        ("720p", (1280, 720), (1280, 736)),
        ("1280x720", (1280, 720), (1280, 736)),
        ("4K", (3840, 2160), (3840, 2176)),
        ("1x1", (1, 1), (64, 64)),
    ],
)
def test_sizes_are_widths_and_heights_padded_as_restore_pads(text, picture, padded):
    assert model.parse_size(text) == picture
    case = model.Case(1, picture, "float32")
    assert case.padded == padded
    assert ("padded" in str(case)) == (picture != padded)
    seen = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[:1:-1]))
        return x

    if picture[0] < 1000:
        network = torch.nn.Module()
        network.forward = watch
        irnext.restore(network, torch.rand(3, picture[1], picture[0]))
        assert seen == [padded]


@pytest.mark.parametrize("text", ["256", "0x64", "x", "64x", "64X64", "2k"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="give WIDTHxHEIGHT in pixels, or one of 720p, 1080p, 4K, 8K"):
        model.Options(size=(text,))


def test_bad_options_say_what_would_be_right(capsys):
    with pytest.raises(ValueError, match="at least 1"):
        model.Options(rounds=0)
    with pytest.raises(ValueError, match="tf32 is of CUDA devices"):
        model.Options(dtypes=("tf32",))
    with pytest.raises(SystemExit):
        model.main(["--dtypes", "float8"])
    assert "bfloat16" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            model.Options(device="cuda")


def test_cases_come_in_the_order_asked_for():
    options = model.Options(blocks=(4, 14), size=("64x64", "96x64"), dtypes=("bfloat16", "float32"))
    cases = model.make_cases(options)
    assert len(cases) == len(set(cases)) == 8
    assert cases[0] == model.Case(4, (64, 64), "bfloat16") and cases[-1] == model.Case(
        14, (96, 64), "float32"
    )


@pytest.mark.parametrize(("milliseconds", "rest"), [(10.0, 8.0), (2.0, 0.5)])
def test_what_no_kernel_takes_of_a_call_is_rest(monkeypatch, milliseconds, rest):
    monkeypatch.setattr(model, "account", lambda *arguments: {"convolutions": 2.0, "rest": 0.5})
    on_gpu, on_cpu = (model.account_of(None, milliseconds, gpu, True) for gpu in (True, False))
    assert on_gpu == {"convolutions": 2.0, "rest": rest}
    assert on_cpu == {"convolutions": 2.0, "rest": 0.5}
