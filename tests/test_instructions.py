"""benchmarks.instructions: counts of callgrind are read right, given for right results only, and repeat."""

from __future__ import annotations

import json
import math
import shutil
import stat
import sys
from pathlib import Path

import pytest

from benchmarks import harness, instructions

PART = """# callgrind format
version: 1
creator: callgrind-3.19.0
pid: 7
cmd:  driver avx2
part: 3


desc: I1 cache: 
desc: Timerange: Basic block 0 - 20303
desc: Trigger: {trigger}

positions: line
events: Ir
summary: 114860


fn=(4) irnext::cpu::kernels()
0 2
calls=1 0 
0 114795

totals: 114860
"""


def test_a_part_of_callgrind_is_read():
    part = PART.format(trigger="Client Request: local_mean\tcontiguous\tfloat32")
    assert instructions.parse_part(part) == ("local_mean\tcontiguous\tfloat32", 114860)
    assert instructions.parse_part(PART.format(trigger="Program termination")) is None
    assert instructions.parse_part("version: 1\n") is None


def test_the_checks_of_the_driver_are_read():
    shape, checks = instructions.parse_checks("32\t8\t9\na\tb\tc\t1e-07\t1e-05\nd\te\tf\tinf\t0.0078\n")
    assert shape == (1, 32, 8, 9)
    assert checks == {"a\tb\tc": (1e-7, 1e-5), "d\te\tf": (math.inf, 0.0078)}


def make_valgrind(path: Path, body: str) -> str:
    """A program in the place of valgrind."""
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_wrong_result_gets_no_count(tmp_path):
    part = PART.format(trigger="Client Request: right\tcontiguous\tfloat32")
    body = f"""
out = next(word.partition("=")[2] for word in sys.argv if word.startswith("--callgrind-out-file="))
open(out + ".1", "w").write({part!r})
open(out, "w").write({PART.format(trigger="Program termination")!r})
print("10\\t2\\t5\\nright\\tcontiguous\\tfloat32\\t1e-7\\t1e-5\\nbad\\tcontiguous\\tfloat32\\tinf\\t1e-5")
sys.exit(1)
"""
    valgrind = make_valgrind(tmp_path / "valgrind", body)
    right, bad = instructions.count_kernels(tmp_path / "driver", valgrind, "avx2", ["right", "bad"])
    assert right.instructions == 114860 and right.per_element == 1148.6 and right.wrong is None
    assert right.shape == (1, 10, 2, 5) and right.instruction_set == "avx2" and right.error == 1e-7
    assert bad.instructions is None and bad.per_element is None and bad.error is None
    assert bad.wrong == "wrong result: off by inf, allowed 1.0e-05"


def test_what_valgrind_cannot_run_is_told(tmp_path):
    valgrind = make_valgrind(
        tmp_path / "valgrind", "sys.stderr.write('first\\nno such thing\\n'); sys.exit(2)"
    )
    with pytest.raises(instructions.CannotCount, match="avx2: no such thing"):
        instructions.count_kernels(tmp_path / "driver", valgrind, "avx2", ["right"])


def test_missing_tools_are_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    options = instructions.Options(json=True, results=tmp_path)
    assert instructions.run(options) == 2
    assert capsys.readouterr().err == "error: there is no valgrind: install valgrind to count instructions\n"
    compiler = instructions.build_compiler()[0]
    monkeypatch.setattr(shutil, "which", lambda name: None if name == compiler else sys.executable)
    assert instructions.run(options) == 2
    assert f"there is no {compiler}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"kernels": ("mean",)}, {"kernels": ()}, {"instruction_sets": ()}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match="kernel"):
        instructions.Options(**wrong)


needs_valgrind = pytest.mark.skipif(
    not (shutil.which("valgrind") and shutil.which(instructions.build_compiler()[0])),
    reason="needs valgrind and a C++ compiler",
)


@needs_valgrind
def test_counts_repeat(tmp_path, capsys):
    options = ["--kernels", "spatial_mean", "--json", "--instruction-sets", "baseline", "sse9"]
    found = []
    for name in ("first", "second"):
        assert instructions.main([*options, "--results", str(tmp_path / name)]) == 0
        (path,) = (tmp_path / name).rglob("instructions.json")
        found.append(json.loads(path.read_text()))
    said = capsys.readouterr().out
    assert "left out: sse9: this machine cannot run the instruction set 'sse9'" in said
    first, second = (record["results"] for record in found)
    assert first == second and len(first) == 4
    assert found[0]["valgrind"].startswith("valgrind") and found[0]["compiler"]
    assert found[0]["benchmark"] == "instructions" and found[0]["machine"]["torch"]
    for row in first:
        lanes = 4  # of float in 16 bytes
        assert row["instruction_set"] == "baseline" and row["wrong"] is None and row["error"] < 1e-5
        assert 1 / lanes < row["per_element"] < 20
        assert math.isclose(row["per_element"] * math.prod(row["shape"]), row["instructions"])
    by_form = {(row["layout"], row["dtype"]): row["instructions"] for row in first}
    assert set(by_form) == {(a, b) for a in ("contiguous", "channels_last") for b in ("float32", "bfloat16")}
    assert by_form["contiguous", "bfloat16"] > by_form["contiguous", "float32"]  # which need no widening


def test_wrong_kernels_are_told(monkeypatch, capsys, tmp_path):
    bad = instructions.Count(
        "mean", "contiguous", "float32", "avx2", (1, 2), None, None, None, "wrong result"
    )
    monkeypatch.setattr(instructions, "count_all", lambda options, console: ([bad], {"compiler": "g++"}))
    assert instructions.run(instructions.Options(json=True, results=tmp_path)) == 1
    assert "mean, contiguous, float32, avx2: wrong result" in capsys.readouterr().out
    (path,) = tmp_path.rglob("instructions.json")
    assert json.loads(path.read_text())["results"][0]["instructions"] is None
    assert harness.RESULTS not in path.parents
