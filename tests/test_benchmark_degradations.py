"""The benchmark of the degradations, on one tiny picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks import degradations
from irnext.data.degradations import DEGRADATIONS


def test_the_table_names_every_task_and_the_sheet_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(degradations, "SIZES", (16,))
    monkeypatch.setattr(degradations.torch, "set_num_threads", lambda count: None)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture).save(folder / "noise.png")
    sheet = tmp_path / "sheet.png"
    assert (
        degradations.main(["--pictures", str(folder), "--seeds", "1", "--runs", "1", "--sheet", str(sheet)])
        == 0
    )
    printed = capsys.readouterr().out
    assert all(task in printed for task in DEGRADATIONS)
    rows = np.asarray(Image.open(sheet)).reshape(6, 300, 450, 3)
    np.testing.assert_array_equal(rows[0][140:160, 210:240], picture)
    assert all((row[140:160, 210:240] != picture).any() for row in rows[1:])
