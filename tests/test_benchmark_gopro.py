"""The benchmark against other networks is honest, and its tables and figure show what was found."""

from __future__ import annotations

import itertools
import json
import math
import sys

import pytest
import torch
from torch import nn

import irnext
from benchmarks import accuracy, figures, gopro, gopro_figure, gopro_table, harness, networks, systems
from benchmarks.gopro import Case, Options
from benchmarks.systems import COMPILED, OTHERS, OURS, PUBLISHED
from irnext import cli, paper
from irnext.architecture import RestorationModel
from irnext.cli import benchmark as command

CPU = torch.device("cpu")
TINY = networks.Settings(1, 8, "local")
ELSE = ("mimo-unet", "restormer")


class Other(RestorationModel, nn.Module):
    """A network to compare with: (restored, something else), for sides that 8 divides."""

    size_multiple, minimum_size, result_index = 8, 8, 0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.spoil = lambda y: y

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        return [self.spoil(self.conv(x)), x.mean()]


@pytest.fixture(autouse=True)
def small_systems(monkeypatch):
    """Small networks under the names of large ones."""
    monkeypatch.setattr(systems, "GOPRO", TINY)
    monkeypatch.setattr(irnext, "create_model", lambda name: Other())
    monkeypatch.setattr(harness, "keep_freed_memory", lambda: None)


@pytest.fixture
def uncounted(monkeypatch):
    """Costs are the matter of other tests."""
    cost = irnext.complexity.Complexity(10, 20, 30, 40)
    monkeypatch.setattr(gopro, "costs", lambda names: dict.fromkeys(names, cost))


@pytest.fixture
def quick(monkeypatch, uncounted):
    """And so is IRNeXt's accuracy at the small size."""
    right = [
        accuracy.Accuracy(1, "float32", name, 0.0, 0.0) for name in (networks.PUBLISHED, networks.OPTIMIZED)
    ]
    monkeypatch.setattr(accuracy, "measure", lambda *arguments: right)


@pytest.fixture
def compiled_nothing(monkeypatch):
    """The compiler itself takes minutes; what it is given, and when, is what counts."""
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: None)


def spoil(monkeypatch, name: str, how) -> None:
    """Let `how` change the results of one of the other networks."""

    def create(wanted: str) -> Other:
        model = Other()
        if wanted == name:
            model.spoil = how
        return model

    monkeypatch.setattr(irnext, "create_model", create)


def run(tmp_path, *more: str) -> tuple[int, list[dict]]:
    options = f"--size 100x64 --systems {' '.join(ELSE)} --rounds 2 --json --results"
    status = gopro.main([*options.split(), str(tmp_path / "results"), *more])
    (path,) = tmp_path.rglob("gopro.json")
    return status, json.loads(path.read_text())["results"]


def failures(rows: list[dict]) -> dict[str, str]:
    return {row["system"]: why for row in rows if (why := row["wrong"] or row["failure"])}


# ---- what is measured ------------------------------------------------------------------------------


def test_it_runs_and_records(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    table, drawn = tmp_path / "t.md", tmp_path / "f.png"
    more = ["--dtypes", "float32", "bfloat16", "--markdown", str(table), "--figure", str(drawn)]
    status, rows = run(tmp_path, *more)
    assert status == 0
    assert [(row["precision"], row["system"]) for row in rows] == [
        (precision, name) for precision in ("float32", "bfloat16") for name in (PUBLISHED, OURS, *ELSE)
    ]
    ours = irnext.complexity.measure(irnext.IRNeXt(1, 8, low_pass="local"), (256, 256))
    for row in rows:
        assert not row["wrong"] and not row["failure"] and not row["single_call"] and row["milliseconds"] > 0
        assert row["error_of_float64"] < (1e-5 if row["precision"] == "float32" else 0.1)
        assert row["spread"] >= 0 and row["peak_bytes"] > 0 and row["first_call_seconds"] > 0
        is_other = row["system"] in ELSE
        assert row["padded"] == ([104, 64] if is_other else [128, 64])
        assert (row["params"], row["macs"]) == ((81, 81 * 256**2) if is_other else (ours.params, ours.macs))
        assert (row["times_ours"] == 1) == (row["system"] == OURS)
        assert (row["times_published"] == 1) == (row["system"] == PUBLISHED)
        if not is_other:
            assert row["error"] < (1e-5 if row["precision"] == "float32" else 0.1)
    by_name = {row["system"]: row for row in rows}  # those of the last case
    assert by_name["restormer"]["times_ours"] == by_name[OURS]["ratios"]["restormer"]
    assert by_name["restormer"]["times_published"] == by_name[PUBLISHED]["ratios"]["restormer"]
    assert by_name["restormer"]["paper_times"] == pytest.approx(1.218 / 0.255)
    assert by_name["restormer"]["paper_gflops"] == 140.99
    assert (by_name["mimo-unet"]["psnr"], by_name["mimo-unet"]["paper_times"]) == (31.73, None)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    written = table.read_text()
    assert "## 100 x 64, bfloat16" in written and "| MPRNet (paper only) |" in written
    assert (
        "python -m benchmarks.gopro --size 100x64 --systems mimo-unet restormer --dtypes float32" in written
    )
    assert not list(tmp_path.rglob("*.tmp"))
    assert "IRNeXt, published" in capsys.readouterr().out


def test_the_systems_are_those_of_the_paper(monkeypatch):
    """What is counted for all forms of IRNeXt is the paper's network, whose operations it prints."""
    monkeypatch.undo()
    found = gopro.costs([PUBLISHED, COMPILED, OURS])
    assert len(set(found.values())) == 1
    assert round(found[OURS].params / 1e6, 2) == paper.GOPRO["IRNeXt"].mparams
    assert round(found[OURS].macs / 1e9, 2) == 111.20
    assert round(found[OURS].paper_flops / 1e9, 2) == paper.GOPRO["IRNeXt"].gflops


def test_the_papers_ratios():
    seconds = paper.GOPRO["IRNeXt"].seconds
    ratios = {name: round(row.seconds / seconds, 2) for name, row in paper.GOPRO.items()}
    assert ratios == {
        "DBGAN": 5.67,
        "DMPHN": 1.59,
        "MIMO-UNet++": 5.01,
        "MPRNet": 4.50,
        "Restormer": 4.78,
        "Stripformer": 4.13,
        "IRNeXt": 1.00,
    }
    (score,) = (value for metric, value in paper.RESULTS["gopro"].scores.items() if metric.name == "psnr")
    assert paper.GOPRO["IRNeXt"].psnr == score


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("off", "small"), [(1e-3, True), (1e-3, False), (math.nan, False)])
def test_a_wrong_irnext_gets_no_time(tmp_path, monkeypatch, off, small):
    """Wrong at every size, or only at the one that is timed."""
    right = networks.optimize

    def wrong(plain, dtype):
        made = right(plain, dtype=dtype)
        return lambda x: [y + off if small or len(x) == 1 else y for y in made(x)]

    monkeypatch.setattr(networks, "optimize", wrong)
    status, rows = run(tmp_path)
    assert status == 1
    assert list(failures(rows)) == [OURS] and "allowed 1.0e-05" in failures(rows)[OURS]
    for row in rows:
        assert (row["milliseconds"] is None) == (row["system"] == OURS)
        assert row["times_ours"] is None and (row["times_published"] is None) == (row["system"] == OURS)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda y: y + 0.1 if y.dtype == torch.float32 else y, "wrong result: off by"),
        (lambda y: y * math.inf if y.shape[3] == 104 else y, "wrong result: it is not finite"),
    ],
    ids=["inexact", "not finite"],
)
def test_another_wrong_network_gets_no_time(tmp_path, monkeypatch, capsys, how, message):
    """Far from itself in float64, or without a result at the size timed."""
    spoil(monkeypatch, "restormer", how)
    status, rows = run(tmp_path)
    assert status == 1
    assert list(failures(rows)) == ["restormer"] and message in failures(rows)["restormer"]
    assert [row["milliseconds"] is None for row in rows] == [False, False, False, True]
    assert f"Restormer: {message}" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_what_takes_long_is_called_once_more_and_no_further(tmp_path, monkeypatch, capsys):
    calls = []
    spoil(monkeypatch, "restormer", lambda y: calls.append(tuple(y.shape)) or y)
    second = gopro.second_call

    def slow(system, x):
        before = len(calls)
        _, size = second(system, x)
        return (99.0 if len(calls) > before else 0.1), size

    monkeypatch.setattr(gopro, "second_call", slow)
    monkeypatch.setattr(harness, "call_timer", lambda call: lambda: (call(), 0.25)[1])
    status, rows = run(tmp_path, "--longest", "98.5", "--rounds", "4")
    *_, ours, other, long = rows
    assert status == 0 and calls.count((1, 3, 64, 104)) == 2
    assert (long["milliseconds"], long["spread"], long["single_call"]) == (99e3, None, True)
    assert long["times_ours"] == 99 / 0.25  # a call of ours right after it
    assert not other["single_call"] and set(ours["ratios"]) == {PUBLISHED, OURS, "mimo-unet"}
    assert "one call" in capsys.readouterr().out


def test_a_call_and_its_memory_are_measured_together():
    calls = []

    def call(x):
        calls.append(x)
        return x.repeat(3, 1, 1, 1)

    x = torch.zeros(1, 3, 64, 64)
    seconds, size = gopro.second_call(systems.System(call, call, 1, 1), x)
    assert len(calls) == 1 and seconds > 0 and 3 * x.nbytes <= size < 4 * x.nbytes
    gopro.second_call(systems.System(None, call, 1, 1), x)
    assert len(calls) == 3  # kernels outside of a graph had not run


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")]
)
def test_what_does_not_fit_says_so_and_stops_nobody(tmp_path, monkeypatch, error):
    def full(y):
        if y.shape[3] == 104:
            raise error
        return y

    spoil(monkeypatch, "mimo-unet", full)
    status, rows = run(tmp_path)
    assert status == 0 and failures(rows) == {"mimo-unet": "out of memory"}
    assert [row["milliseconds"] is None for row in rows] == [False, False, True, False]


@pytest.mark.usefixtures("quick")
def test_other_errors_of_ours_are_not_hidden(tmp_path, monkeypatch):
    def broken(y):
        raise RuntimeError("no such operator")

    spoil(monkeypatch, "mimo-unet", broken)
    with pytest.raises(RuntimeError, match="no such operator"):
        run(tmp_path)


@pytest.mark.usefixtures("quick")
def test_what_does_not_fit_beside_the_others_is_left_out(tmp_path, monkeypatch):
    time_right = harness.time_right

    def short(variants, *arguments):
        if PUBLISHED in variants:
            raise torch.OutOfMemoryError("no room for all")
        return time_right(variants, *arguments)

    monkeypatch.setattr(harness, "time_right", short)
    status, rows = run(tmp_path)
    assert status == 0 and failures(rows) == {PUBLISHED: "out of memory beside the others"}
    assert rows[0]["peak_bytes"] == max(row["peak_bytes"] for row in rows)
    assert all(row["milliseconds"] for row in rows[1:])


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_memory_that_others_need_is_not_taken(monkeypatch):
    monkeypatch.setattr(harness, "available_memory", lambda on: 2**26)
    with harness.bounded_memory(), pytest.raises(RuntimeError) as caught:
        torch.empty(2**28, dtype=torch.uint8)
    assert harness.is_out_of_memory(caught.value)
    assert torch.empty(2**28, dtype=torch.uint8).nbytes == 2**28
    monkeypatch.setattr(harness, "available_memory", lambda on: None)
    with harness.bounded_memory():
        torch.empty(2**28, dtype=torch.uint8)


@pytest.mark.usefixtures("quick")
def test_figures_are_written_before_turns_begin(tmp_path, monkeypatch):
    """Where the whole benchmark is stopped, what is known of memory is not lost."""

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "time_right", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    (path,) = tmp_path.rglob("gopro.json")
    rows = json.loads(path.read_text())["results"]
    assert [row["system"] for row in rows] == [PUBLISHED, OURS, *ELSE]
    assert all(row["peak_bytes"] and row["milliseconds"] is None for row in rows)


@pytest.mark.usefixtures("quick")
def test_the_compiled_network_takes_turns_with_the_others(tmp_path, compiled_nothing):
    status, rows = run(tmp_path, "--compiled")
    assert status == 0 and [row["system"] for row in rows] == [PUBLISHED, COMPILED, OURS, *ELSE]
    assert rows[2]["ratios"].keys() == {row["system"] for row in rows}
    assert rows[1]["error_of_float64"] is None and rows[1]["error"] < 1e-5  # checked at the size timed
    assert rows[1]["macs"] == rows[2]["macs"]


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_compiled_says_why_and_stops_nobody(tmp_path, monkeypatch):
    def broken(network, **options):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    status, rows = run(tmp_path, "--compiled")
    assert status == 0 and failures(rows) == {COMPILED: "RuntimeError: no compiler"}


@pytest.mark.usefixtures("quick")
def test_without_memory_for_the_published_result_only_checked_systems_are_timed(
    tmp_path, monkeypatch, compiled_nothing
):
    monkeypatch.setattr(gopro, "published_result", lambda case, on: None)
    status, rows = run(tmp_path, "--compiled")
    assert status == 0 and list(failures(rows)) == [COMPILED]
    assert failures(rows)[COMPILED].startswith("not checked: too little memory")
    assert all(row["milliseconds"] and row["error"] is None for row in rows if row["system"] != COMPILED)


# ---- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ("nafnet",)}, "unknown system 'nafnet': choose of mprnet-deblurring, restormer"),
        ({"size": ("256",)}, "give WIDTHxHEIGHT in pixels"),
        ({"size": ()}, "at least one each"),
        ({"rounds": 0}, "at least 1"),
        ({"longest": 0.0}, "longest above 0"),
        ({"longest": math.nan}, "longest above 0"),
        ({"longest": math.inf}, "and finite"),  # of which JSON knows nothing
        ({"dtypes": ("tf32",)}, "tf32 is of CUDA devices"),
        ({"figure": "f.pdf"}, "a figure is a file in .png or .svg"),
        ({"figure": "none/f.svg"}, "there is no folder none"),
        ({"markdown": "none/t.md"}, "there is no folder none"),
        ({"markdown": "."}, "this is a folder"),
    ],
)
def test_bad_options_say_what_would_be_right(options, message):
    paths = {name: gopro.Path(options[name]) for name in ("figure", "markdown") if name in options}
    with pytest.raises(ValueError, match=message):
        Options(**options | paths)


def test_a_figure_needs_matplotlib(monkeypatch):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'irnext\[benchmark\]'"):
        Options(figure=gopro.Path("f.png"))


def test_a_gpu_gets_large_pictures_and_all_systems(monkeypatch):
    assert Options().cases == [Case((256, 256), "float32")]
    assert set(Options().names[2:]) < set(OTHERS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = Options(device="cuda", dtypes=("bfloat16", "tf32"), compiled=True)
    pictures = (1280, 720), (256, 256)
    assert options.cases == list(itertools.starmap(Case, itertools.product(pictures, options.dtypes)))
    assert options.names == [PUBLISHED, COMPILED, OURS, *OTHERS]


def test_what_is_named_twice_is_measured_once():
    options = Options(size=("720p", "1280x720"), dtypes=("float32",) * 2, systems=("mimo-unet",) * 2)
    assert options.cases == [Case((1280, 720), "float32")]
    assert options.names == [PUBLISHED, OURS, "mimo-unet"]


# ---- tables and the figure -------------------------------------------------------------------------


def rows_of(times: dict[str, float | None], picture=(1280, 720), precision="bfloat16") -> list[dict]:
    """Rows as a file has them, with these times relative to ours."""
    rows = []
    for name, ratio in times.items():
        psnr, ssim, _ = gopro_table.quality(name)
        known = paper.GOPRO.get(gopro_table.IN_PAPER.get(name))
        rows.append(
            {
                "picture": picture,
                "precision": precision,
                "system": name,
                "title": systems.TITLES[name],
                "paper_name": gopro_table.IN_PAPER.get(name),
                "psnr": psnr,
                "ssim": ssim,
                "params": 13.2e6,
                "macs": 111.2e9,
                "paper_gflops": known and known.gflops,
                "paper_times": known and known.seconds / 0.255,
                "milliseconds": ratio and 10 * ratio,
                "spread": ratio and 0.02,
                "single_call": False,
                "times_ours": ratio,
                "times_published": None,
                "peak_bytes": 3 * 2**20,
                "wrong": None,
                "failure": None if ratio else "out of memory",
            }
        )
    return json.loads(json.dumps(rows))


def test_cells_give_what_was_found_and_what_is_printed():
    found = gopro_table.cells(rows_of({OURS: 1.0, "mprnet-deblurring": 9.5, "grl-base": None}))
    titles = [row["system"] for row in found]
    assert titles[:3] == ["IRNeXt, ours", "MPRNet", "GRL-B"]
    assert titles[3:] == [
        f"{name} (paper only)" for name in ("DBGAN", "DMPHN", "MIMO-UNet++", "Restormer", "Stripformer")
    ]
    assert found[1] == {
        "system": "MPRNet",
        "M params": "13.20",
        "G MACs": "111.20",
        "paper's G": "777.01",
        "ms": "95.0",
        "spread": "1.0%",
        "x ours": "9.50",
        "x published": "",
        "paper's x": "4.50",
        "peak MiB": "3.0",
        "PSNR": "32.66",
        "SSIM": "0.959",
    }
    assert (found[2]["ms"], found[2]["x ours"], found[2]["PSNR"]) == ("none", "", "33.93")
    assert (found[-1]["paper's x"], found[-1]["ms"], found[-1]["G MACs"]) == ("4.13", "", "")
    one_round = [row | {"spread": 0.0} for row in rows_of({OURS: 1.0})]
    assert gopro_table.cells(one_round)[0]["spread"] == ""


HERE = {"processor": "AMD EPYC", "threads": 2, "gpu": {"name": "NVIDIA H200"}}


def texts(drawn) -> list[str]:
    return [text.get_text() for text in drawn.findobj(lambda artist: hasattr(artist, "get_text"))]


def boxes(drawn) -> tuple[list, list, object]:
    """Where the labels and the marks lie on the page, and where the axes do."""
    from matplotlib.text import Annotation, Text

    renderer = drawn.canvas.get_renderer()
    (axes,) = drawn.axes
    labels = [Text.get_window_extent(label, renderer) for label in drawn.findobj(Annotation)]
    marks = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines]
    return labels, marks, axes.get_window_extent(renderer)


def test_the_figure_has_the_papers_points_and_those_measured():
    pytest.importorskip("matplotlib")
    rows = rows_of({PUBLISHED: 2.5, OURS: 1.0, "restormer": 6.0, "grl-base": None, "grl-tiny": 3.0})
    other = rows_of({OURS: 1.0, PUBLISHED: 7.0}, (256, 256)), rows_of({OURS: 1.0}, precision="float32")
    drawn = gopro_figure.figure([*other[0], *rows, *other[1]], HERE)
    found = {
        (line.get_xdata()[0], line.get_ydata()[0]): line.get_markerfacecolor() for line in drawn.axes[0].lines
    }
    rings = {place for place, face in found.items() if face == "none"}
    printed = {(row.seconds / 0.255, row.psnr) for name, row in paper.GOPRO.items() if name != "IRNeXt"}
    assert rings == printed  # IRNeXt's ring lies around ours
    assert len(drawn.axes[0].lines) == len(paper.GOPRO) + 3
    assert found.keys() - rings == {(2.5, 33.16), (1.0, 33.16), (6.0, 32.92)}  # GRL-T has no PSNR
    written = texts(drawn)
    assert any("NVIDIA H200, 1280 \N{MULTIPLICATION SIGN} 720, bfloat16" in text for text in written)
    assert {"Stripformer", "IRNeXt, ours", "IRNeXt, published"} <= set(written)
    assert written.count("Restormer") == 2
    drawn = gopro_figure.figure([*rows, *other[0]], {"processor": "EPYC", "threads": 2}, (256, 256))
    assert any("EPYC (threads: 2), 256" in text for text in texts(drawn))


@pytest.mark.parametrize(
    "times",
    [
        {PUBLISHED: 2.6, COMPILED: 1.7, OURS: 1, "mprnet-deblurring": 9.5, "restormer": 6.2, "grl-base": 31},
        # As crowded as can be: all near the paper's points.
        {
            PUBLISHED: 1.02,
            COMPILED: 1.01,
            OURS: 1,
            "mprnet-deblurring": 4.6,
            "restormer": 4.7,
            "mimo-unet-plus": 4.9,
        },
        {PUBLISHED: 300.0, OURS: 1, "mimo-unet": 0.01},
    ],
)
def test_no_label_overlaps_another_or_a_mark(times):
    pytest.importorskip("matplotlib")
    drawn = gopro_figure.figure(rows_of(times), HERE)
    labels, marks, limits = boxes(drawn)
    assert len(labels) == len(marks) == len(paper.GOPRO) + len(times)
    for one, two in itertools.combinations(labels, 2):
        assert not one.overlaps(two)
    for label in labels:
        assert (
            limits.x0 <= label.x0 and label.x1 <= limits.x1 and limits.y0 <= label.y0 <= label.y1 <= limits.y1
        )
        assert not any(label.contains(*mark) for mark in marks)


def test_the_same_figure_gives_the_same_file(tmp_path):
    pytest.importorskip("matplotlib")
    rows = rows_of({PUBLISHED: 2.6, OURS: 1})
    for name in ("a.svg", "b.svg"):
        figures.write(gopro_figure.figure(rows, HERE), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second and b"<svg" in first and b"IRNeXt, ours" in first


# ---- irnext benchmark ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout with two benchmarks."""
    root = tmp_path / "measurements"
    root.mkdir()
    (root / "__init__.py").touch()
    (root / "helper.py").write_text('"""No main."""\n')
    (root / "fast_one.py").write_text(
        '"""It is fast.\n\nMore."""\ndef main(arguments=None):\n    print(arguments)\n'
    )
    (root / "refused.py").write_text("\ndef main(arguments=None):\n    return 7\n")
    monkeypatch.setattr(command, "find_benchmarks", lambda: root)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == root.name]:
        del sys.modules[name]


def test_benchmarks_are_listed(folder, capsys):
    assert cli.main(["benchmark"]) == 0
    assert capsys.readouterr().out == "fast_one  It is fast.\nrefused   \n"


@pytest.mark.parametrize("name", ["fast_one", "fast-one"])
def test_options_reach_a_benchmark_untouched(folder, capsys, name):
    options = ["--help", "--size", "256x256", "--no-compiled", "--model_name=x", "--", "-o"]
    assert cli.main(["benchmark", name, *options]) == 0
    assert capsys.readouterr().out == f"{options}\n"
    assert cli.main(["benchmark", "refused"]) == 7


def test_an_unknown_benchmark_is_one_line(folder, capsys):
    for name in ("helper", "__init__", "--size"):
        assert cli.main(["benchmark", name]) == 2
        expected = f"irnext: error: unknown benchmark {name!r}: choose one of fast_one, refused\n"
        assert capsys.readouterr().err == expected


def test_outside_a_checkout_there_are_no_benchmarks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(irnext, "__file__", str(tmp_path / "site-packages" / "irnext" / "__init__.py"))
    for arguments in (["benchmark"], ["benchmark", "gopro", "--json"]):
        assert cli.main(arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "the benchmarks are in a checkout of the project" in line


def test_the_checkouts_own_benchmarks_are_found(capsys):
    names = command.list_benchmarks(command.find_benchmarks())
    assert {"gopro", "model", "lam", "training_step"} <= set(names)
    assert not {"harness", "systems", "test_operators", "__init__"} & set(names)
    with pytest.raises(SystemExit) as end:
        cli.main(["benchmark", "gopro", "--help"])
    assert end.value.code == 0 and "python -m benchmarks.gopro" in capsys.readouterr().out
