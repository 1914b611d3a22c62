"""The benchmark of other people's networks times what is right, and what `accelerate` swapped whole."""

from __future__ import annotations

import json

import pytest

from benchmarks import relatives
from irnext.relatives import PlainFilter

SMALL = "--networks fsnet --blocks 1 --width 16 --size 64x64 --checked 64 --rounds 2 --threads 1"


def run(folder, *more: str) -> tuple[int, list[dict]]:
    status = relatives.main([*SMALL.split(), "--json", "--results", str(folder), *more])
    (path,) = folder.rglob("relatives.json")
    return status, json.loads(path.read_text())["results"]


def test_time_and_memory_before_and_after(tmp_path, capsys):
    status, rows = run(tmp_path)
    assert status == 0
    expected = [
        (name, variant) for name in ("forward", "forward + backward") for variant in relatives.VARIANTS
    ]
    assert [(row["pass"], row["variant"]) for row in rows] == expected
    for before, after in (rows[:2], rows[2:]):
        assert before["error"] < 1e-4 and after["error"] < 1e-4
        assert before["milliseconds"] > 0 and after["milliseconds"] > 0
        assert after["peak_of_published"] == after["peak_bytes"] / before["peak_bytes"] < 0.5
    assert "fsnet, forward, accelerated" in capsys.readouterr().out


def test_a_wrong_network_gets_no_time(tmp_path, monkeypatch, capsys):
    right = PlainFilter.attention
    monkeypatch.setattr(PlainFilter, "attention", lambda self, mean: right(self, mean) * 1.01)
    monkeypatch.setattr("irnext.recognition.why_different", lambda module, cls: None)
    status, rows = run(tmp_path, "--passes", "forward")
    assert status == 1 and "wrong result" in capsys.readouterr().out
    assert [row["milliseconds"] is None for row in rows] == [False, True]


def test_the_networks_are_those_of_their_names():
    for kind, operators in (("convir", 6 * 10), ("fsnet", 6 * 2)):
        network = relatives.make_network(kind, relatives.Options(width=16, blocks=1))
        assert len(relatives.accelerate(network).swapped) == operators


@pytest.mark.parametrize("more", ["--size 1280x720", "--size 128x256", "--rounds 0", "--networks none"])
def test_options_are_checked(more):
    with pytest.raises((ValueError, SystemExit)):
        relatives.main(more.split())
