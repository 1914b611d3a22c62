"""benchmarks.compare: changes beyond the noise of the runs, and nothing else, are reported."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from benchmarks import compare, harness

MACHINE = {
    "processor": "A CPU",
    "cores": 2,
    "threads": 2,
    "load": 0.1,
    "instructions": "AVX2",
    "python": "3.11.7",
    "torch": "2.13.0",
}
PUBLISHED, OURS, OTHER = "published", "irnext", "compiled"


def make_rows(times: dict[str, float], spread: float = 0.01, **fields) -> list[dict]:
    """Rows of variants that took turns, with milliseconds and what else is given."""
    return [
        {
            "shape": [1, 32],
            "variant": name,
            "milliseconds": time,
            "spread": spread,
            "ratios": {other: times[other] / time for other in times},
            "error": 1e-7,
            "wrong": None,
            "failure": None,
        }
        | fields
        for name, time in times.items()
    ]


def make_record(rows: list[dict], **entries) -> dict:
    return {"benchmark": "net", "machine": MACHINE, "options": {"rounds": 5}, "results": rows} | entries


RECORD = make_record(make_rows({PUBLISHED: 100.0, OURS: 40.0, OTHER: 80.0}, peak_bytes=1000))


def change(record: dict, variant: str | None = OURS, **fields) -> dict:
    """The record with fields of a variant, or of all, replaced."""
    record = copy.deepcopy(record)
    for row in record["results"]:
        if variant in (None, row["variant"]):
            row |= fields
    return record


@pytest.fixture
def run(tmp_path, capsys):
    """Compare two records by the command line: its code, its report, and what it printed on both streams."""

    def call(old: dict, new: dict) -> tuple[int, dict, str]:
        paths = [tmp_path / name for name in ("old.json", "new.json", "report.json")]
        for path, record in zip(paths, (old, new), strict=False):
            path.write_text(json.dumps(record))
        code = compare.main([str(paths[0]), str(paths[1]), "--json", str(paths[2])])
        said = capsys.readouterr()
        report = json.loads(paths[2].read_text()) if paths[2].exists() else {}
        return code, report, said.out + said.err

    return call


def slower(factor: float, spread: float = 0.01) -> dict:
    """`RECORD` with irnext slower than it was, by `factor`."""
    return make_record(
        make_rows({PUBLISHED: 100.0, OURS: 40.0 * factor, OTHER: 80.0}, spread, peak_bytes=1000)
    )


# ---- times ---------------------------------------------------------------------------------------


def test_nothing_changed(run):
    code, report, said = run(RECORD, RECORD)
    assert code == 0 and report["findings"] == [] and report["warnings"] == []
    # Three results, and two times and sizes: the baseline's are not judged.
    assert report["judged"] == 7 and "7 figures judged: 0 regressions" in said


@pytest.mark.parametrize(
    ("factor", "kind"),
    [(1.3, "regression"), (1.06, "regression"), (1.04, None), (1 / 1.04, None), (1 / 1.3, "improvement")],
)
def test_a_time_is_judged_relative_to_the_baseline(factor, kind, run):
    code, report, said = run(RECORD, slower(factor))
    found = report["findings"]
    assert [finding["kind"] for finding in found] == ([kind] if kind else [])
    assert code == (kind == "regression") and report["regressions"] == code
    if kind:
        (finding,) = found
        assert finding["row"] == "irnext, 1x32" and finding["figure"] == "time / published"
        assert math.isclose(finding["old"], 0.4) and math.isclose(finding["change"], factor - 1)
        assert kind in said and f"{factor - 1:+.1%}" in said


@pytest.mark.parametrize(
    ("factor", "beyond"), [(1.09, False), (1.11, True), (1 / 1.09, False), (1 / 1.11, True)]
)
def test_the_noise_is_that_of_the_four_times(factor, beyond, run):
    # sqrt(0.01^2 + 0.05^2 + 0.07^2 + 0.05^2) = 0.1
    old, new = (change(one, PUBLISHED, spread=0.05) for one in (RECORD, slower(factor, spread=0.07)))
    _, report, _ = run(old, new)
    assert bool(report["findings"]) == beyond
    if beyond:
        assert math.isclose(report["findings"][0]["noise"], 0.1)


def test_a_machine_that_drifts_is_no_regression(run):
    drifted = make_record(make_rows({PUBLISHED: 200.0, OURS: 80.0, OTHER: 160.0}, peak_bytes=1000))
    code, report, said = run(RECORD, drifted)
    assert code == 0 and report["findings"] == []
    assert "baselines took 2.00 to 2.00 times as long as before: the machine drifted" in said
    # Nor is one of another machine, with a warning.
    code, report, said = run(RECORD, drifted | {"machine": MACHINE | {"processor": "B", "threads": 1}})
    assert code == 0 and report["findings"] == [] and "drifted" not in said
    assert "different machines (processor A CPU and B, threads 2 and 1)" in said


def test_a_baseline_is_no_variant_of_irnext(run):
    # The published network was too slow to take turns: irnext is held to what comes next, not that to irnext.
    names = ("irnext", "mprnet", "irnext, optimized")
    old = make_record(make_rows(dict(zip(names, (40.0, 80.0, 30.0), strict=True))))
    new = make_record(make_rows(dict(zip(names, (60.0, 80.0, 30.0), strict=True))))
    code, report, _ = run(old, new)
    (finding,) = report["findings"]
    assert code == 1 and finding["row"] == "irnext, 1x32" and finding["figure"] == "time / mprnet"
    # A baseline of one run alone is none.
    both = make_record(make_rows({PUBLISHED: 100.0, "irnext": 40.0, "mprnet": 80.0}))
    code, report, _ = run(both, make_record(make_rows({"irnext": 60.0, "mprnet": 80.0})))
    assert code == 1 and [f["kind"] for f in report["findings"]] == ["vanished", "regression"]
    assert report["findings"][1]["figure"] == "time / mprnet"


def test_a_time_alone_is_judged_on_the_same_machine_only(run):
    old, new = (make_record(make_rows({OURS: time})) for time in (40.0, 60.0))
    code, report, _ = run(old, new)
    assert code == 1 and report["findings"][0]["figure"] == "milliseconds"
    code, report, _ = run(old, new | {"machine": MACHINE | {"torch": "2.14.0"}})
    assert code == 0 and report["findings"] == [] and report["unjudged"] == 1


def test_another_driver_is_another_machine(run):
    gpu = {"name": "A GPU", "cuda": "13.0", "triton": "3.9.0"}
    old, new = (
        make_record(
            make_rows({OURS: time}),
            machine=MACHINE | {"gpu": gpu | {"state": {"driver_version": driver}}},
        )
        for time, driver in ((40.0, "570.1"), (60.0, "580.2"))
    )
    code, report, said = run(old, new)
    assert code == 0 and report["findings"] == [] and report["unjudged"] == 1
    assert "different machines (GPU driver 570.1 and 580.2)" in said
    assert run(old, make_record(make_rows({OURS: 60.0}), machine=old["machine"]))[0] == 1


def test_a_time_that_one_run_lacks_is_not_judged(run):
    """It was stopped before; nothing is wrong with it."""
    stopped = change(RECORD, milliseconds=None, spread=None, ratios={})
    for old, new in ((RECORD, stopped), (stopped, RECORD)):
        code, report, _ = run(old, new)
        assert code == 0 and report["findings"] == [] and report["unjudged"] == 1
    assert run(stopped, stopped)[1]["unjudged"] == 0


def test_a_time_of_one_round_is_not_judged(run):
    code, report, _ = run(change(RECORD, None, spread=0.0), change(slower(2.0), None, spread=0.0))
    assert code == 0 and report["findings"] == [] and report["unjudged"] == 2


def test_a_busy_machine_is_told(run):
    _, report, _ = run(RECORD | {"machine": MACHINE | {"load": 2.5}}, RECORD)
    assert report["warnings"] == ["net: other work was running when OLD began (load 2.5)"]


# ---- what is exact, and what is wrong ------------------------------------------------------------


@pytest.mark.parametrize(("size", "kind"), [(1011, "regression"), (1009, None), (989, "improvement")])
def test_memory_is_exact(size, kind, run):
    code, report, _ = run(RECORD, change(RECORD, peak_bytes=size))
    assert [(f["kind"], f["figure"]) for f in report["findings"]] == ([(kind, "peak_bytes")] if kind else [])
    assert code == (kind == "regression")
    assert run(RECORD, change(RECORD, PUBLISHED, peak_bytes=size))[1]["findings"] == []


def test_memory_that_was_none_or_is_unknown(run):
    none = change(RECORD, peak_bytes=0)
    code, report, _ = run(none, RECORD)
    assert code == 1 and report["findings"][0]["change"] is None
    assert run(RECORD, none)[1]["findings"][0]["change"] == -1
    assert run(none, none)[1]["findings"] == []
    assert run(RECORD, change(RECORD, peak_bytes=None))[1]["findings"] == []


def counts(instructions: int, **entries) -> dict:
    row = {"kernel": "mean", "layout": "contiguous", "instructions": instructions, "wrong": None}
    return make_record([row], **entries)


def test_instructions_are_exact_where_the_compilers_agree(run):
    code, report, _ = run(counts(1000, compiler="g++ 12"), counts(1020, compiler="g++ 12"))
    (finding,) = report["findings"]
    assert code == 1 and (finding["old"], finding["new"]) == (1000, 1020)
    code, report, said = run(counts(1000, compiler="g++ 12"), counts(2000, compiler="g++ 13"))
    assert code == 0 and report["findings"] == []
    assert "instructions are not compared: g++ 12 and g++ 13" in said


WRONG = {"wrong": "wrong result: off by 1", "milliseconds": None, "spread": None, "ratios": {}}
FAILED = {"failure": "out of memory", "milliseconds": None, "spread": None, "ratios": {}}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ({}, WRONG, "regression"),
        ({}, FAILED, "regression"),
        (FAILED, WRONG, "regression"),
        (WRONG, {}, "improvement"),
        (WRONG, FAILED, "improvement"),
        (FAILED, FAILED, None),
        (WRONG, WRONG, None),
    ],
)
def test_rows_that_turned_wrong(old, new, kind, run):
    code, report, said = run(change(RECORD, **old), change(RECORD, **new))
    assert [(f["kind"], f["figure"]) for f in report["findings"]] == ([(kind, "result")] if kind else [])
    assert code == (kind == "regression")
    if kind == "regression":
        assert new.get("wrong", new.get("failure")) in said


def test_other_sections_can_turn_wrong(run):
    def record(wrong: str | None) -> dict:
        rows = [{"blocks": 4, "variant": OURS, "error": 0.1 if wrong else 0.0, "wrong": wrong}]
        return RECORD | {"accuracy": rows, "floors": [{"milliseconds": 3.0}], "note": "none"}

    code, report, _ = run(record(None), record("wrong result"))
    (finding,) = report["findings"]
    assert code == 1 and finding["row"] == "irnext, blocks 4, accuracy"


# ---- which rows are the same ---------------------------------------------------------------------


def test_rows_that_appear_and_vanish(run):
    old, new = copy.deepcopy(RECORD), copy.deepcopy(RECORD)
    new["results"] += make_rows({PUBLISHED: 5.0, OURS: 9.0}, shape=[2, 64])
    code, report, _ = run(old, new)
    assert code == 0 and {f["kind"] for f in report["findings"]} == {"appeared"}
    assert [f["row"] for f in report["findings"]] == ["published, 2x64", "irnext, 2x64"]
    code, report, _ = run(new, old)
    assert code == 0 and {f["kind"] for f in report["findings"]} == {"vanished"}


def test_rows_are_told_apart_by_what_is_no_figure(run):
    old = make_record(
        [{"blocks": 4, "training": False, "macs": 7, "psnr": 30.0, "note": None, "gains": [1.5]}]
    )
    new = make_record(
        [{"blocks": 4, "training": False, "macs": 8, "psnr": 31.0, "note": None, "gains": [2.5]}]
    )
    assert run(old, new)[1]["findings"] == []
    for different in ({"blocks": 5}, {"training": True}, {"note": "x"}):
        code, _, said = run(old, make_record([old["results"][0] | different]))
        assert code == 2 and "nothing in common: net: no row is in both" in said


def test_how_a_row_was_measured_tells_it_apart_from_none(run):
    found = {"missing": None, "calls": 5, "time_by": "measured", "padded": [64, 64], "memory_bytes": 5}
    row = {"system": OURS, "size": [64, 48], "counted_bytes": 7}
    old = make_record([row | found])
    found = {"missing": "too long", "calls": 0, "time_by": "fit", "padded": [64, 96], "memory_bytes": 9}
    assert run(old, make_record([row | found]))[1]["findings"] == []
    (finding,) = run(old, make_record([row | found | {"counted_bytes": 8}]))[1]["findings"]
    assert finding["figure"] == "counted_bytes" and finding["row"] == "irnext, 64x48"


def test_rows_that_are_alike_keep_their_order(run):
    row = {"variant": OURS, "peak_bytes": 10}
    old = make_record([row, row | {"peak_bytes": 20}])
    assert run(old, old)[1]["findings"] == []
    code, report, _ = run(old, make_record([row, row | {"peak_bytes": 30}]))
    assert code == 1 and report["findings"][0]["old"] == 20


def test_runs_with_other_settings_are_not_compared(run):
    old, new = (RECORD | {"options": {"size": size, "rounds": size, "shapes": [size]}} for size in (64, 128))
    code, report, said = run(old, new)
    assert code == 2 and report == {} and "net: not compared, as size is 64 and 128" in said
    new["options"]["size"] = 64
    assert run(old, new)[0] == 0
    del new["options"]["size"]  # an option that came later
    assert run(old, new)[0] == 0
    drawn = [RECORD | {"options": {"figure": name}} for name in ("a.png", "b.png")]
    assert run(*drawn)[0] == 0  # where a plot went says nothing


# ---- files ---------------------------------------------------------------------------------------


def write(folder: Path, **results: dict) -> Path:
    folder.mkdir()
    for name, record in results.items():
        (folder / f"{name}.json").write_text(json.dumps(record | {"benchmark": name}))
    return folder


def test_folders_are_compared_by_benchmark(tmp_path, capsys):
    old = write(tmp_path / "old", a=RECORD, b=RECORD, c=RECORD)
    new = write(tmp_path / "new", a=slower(1.5), b=RECORD, d=RECORD)
    (new / "gpu.json").write_text('{"steps": []}')  # no result
    assert compare.main([str(old), str(new)]) == 1
    said = capsys.readouterr().out
    assert "c: only in OLD" in said and "d: only in NEW" in said and "1 regressions" in said
    assert compare.main([str(old / "b.json"), str(new)]) == 0
    assert (
        compare.main([str(old / "b.json"), str(new / "d.json")]) == 0
    )  # two files, whatever they are called


def bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    good = write(folder / "good", a=RECORD)
    text, number, rows = (folder / name for name in ("text.json", "number.json", "rows.json"))
    text.write_text("no JSON")
    number.write_text("1")
    rows.write_text(json.dumps(RECORD | {"results": [1]}))
    (folder / "empty").mkdir()
    twice = write(folder / "twice", a=RECORD)
    (twice / "copy.json").write_bytes((twice / "a.json").read_bytes())
    return {
        "missing": (folder / "none.json", "there is no such file or folder"),
        "text": (text, "not JSON"),
        "number": (number, "no file of results"),
        "rows": (rows, "this is no result"),
        "empty": (folder / "empty", "no results are here"),
        "twice": (twice, "are both results of a: keep one"),
        "apart": (write(folder / "apart", b=RECORD, c=RECORD), "nothing in common: a: only in NEW"),
        "good": (good, ""),
    }


@pytest.mark.parametrize("name", ["missing", "text", "number", "rows", "empty", "twice", "apart"])
def test_bad_input_is_told_in_one_line(name, tmp_path, capsys):
    inputs = bad_inputs(tmp_path)
    place, reason = inputs[name]
    report = tmp_path / "report.json"
    assert compare.main([str(place), str(inputs["good"][0]), "--json", str(report)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and reason in said.err and said.err.count("\n") == 1
    assert said.out == "" and not report.exists()


def test_a_report_that_cannot_be_written_is_told(tmp_path, capsys):
    good = write(tmp_path / "good", a=RECORD)
    assert compare.main([str(good), str(good), "--json", str(tmp_path / "no/report.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


# ---- the results in the repository ---------------------------------------------------------------

FOLDERS = sorted({path.parent for path in harness.RESULTS.glob("*/lam.json")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_results_in_the_repository_equal_themselves(folder):
    results = compare.load(folder)
    report = compare.compare(results, results)
    assert report.findings == [] and report.judged > 0


def test_what_gets_slower_in_the_repository_is_found():
    """Every time of irnext in every kind of results, where it took turns in several rounds."""
    old = compare.load(harness.RESULTS / "amd-epyc-2-cores")
    new = copy.deepcopy(old)
    expected = set()
    for name in ("lam", "loss", "model", "training_step"):
        for row in new[name].rows:
            if row["variant"].startswith("irnext") and row["spread"]:
                row["ratios"] = {other: ratio / 8 for other, ratio in row["ratios"].items()}
                expected.add((name, compare.describe(compare.key_of(row))))
    report = compare.compare(old, new)
    assert {(f.benchmark, f.row) for f in report.of("regression")} == expected
    assert {name for name, _ in expected} == {"lam", "loss", "model", "training_step"}
    assert all(math.isclose(f.change, 7) for f in report.findings)
