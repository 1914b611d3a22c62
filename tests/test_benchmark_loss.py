"""The loss's benchmark times what is right, and relates it to a training step."""

from __future__ import annotations

import json

import pytest

from benchmarks import loss


def run(folder, *more: str) -> tuple[int, dict[str, dict]]:
    options = f"--blocks 1 --width 8 --size 64 --rounds 2 --threads 1 --json --results {folder}"
    status = loss.main([*options.split(), *more])
    (path,) = folder.rglob("loss.json")
    return status, {row["variant"]: row for row in json.loads(path.read_text())["results"]}


def test_every_loss_is_timed_beside_a_step(tmp_path, capsys):
    status, rows = run(tmp_path)
    assert status == 0
    assert list(rows) == ["published", "full spectrum", "irnext", "step, 1 blocks"]
    for name in loss.LOSSES:
        assert rows[name]["error"] < 1e-5 and rows[name]["milliseconds"] > 0
        assert 0 < rows[name]["share_of_step"]["1"] < 1
    assert rows["step, 1 blocks"]["milliseconds"] > rows["irnext"]["milliseconds"]
    assert "of step, 1 blocks" in capsys.readouterr().out


def test_a_wrong_loss_gets_no_time(tmp_path, monkeypatch, capsys):
    right = loss.LOSSES[loss.OURS]
    monkeypatch.setitem(loss.LOSSES, loss.OURS, lambda *given: right(*given) * 1.001)
    status, rows = run(tmp_path)
    assert status == 1 and "wrong result" in capsys.readouterr().out
    assert rows["irnext"]["milliseconds"] is None and rows["irnext"]["share_of_step"]["1"] is None
    assert rows["published"]["milliseconds"] > 0


@pytest.mark.parametrize("more", ["--size 100", "--batch 1", "--rounds 0"])
def test_options_are_checked(more, tmp_path):
    with pytest.raises((ValueError, SystemExit)):
        loss.main(more.split())
