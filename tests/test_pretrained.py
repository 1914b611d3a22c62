"""The weights that come with the package: there, small, and of use on photographs they have not seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import irnext
from irnext import cli, pretrained
from irnext.data.degradations import DEGRADATIONS
from irnext.metrics import psnr

LIMIT = 12_000_000  # bytes, all together


def test_every_synthetic_task_has_weights_and_they_are_small():
    assert irnext.list_pretrained() == list(DEGRADATIONS)
    assert sum(path.stat().st_size for path in pretrained.WEIGHTS.iterdir()) < LIMIT


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_their_records_say_what_they_were_trained_on(task):
    record = json.loads(pretrained.path_of(task).with_suffix(".json").read_text())
    assert record["task"] == task and record["steps"] > 0 and record["seconds"] > 0
    held_out = {"astronaut.png", "chelsea.png", "coffee.png"}
    assert record["photographs"] and not held_out & set(record["photographs"])


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_they_restore_an_unseen_photograph(task):
    clean = data.astronaut()[:256, 130:386].astype(np.float32) / 255
    degraded = DEGRADATIONS[task]().degrade(clean, np.random.default_rng(3))
    restored = irnext.restore(irnext.load_pretrained(task), degraded)
    before, after = (
        psnr(*(torch.tensor(picture).permute(2, 0, 1) for picture in (found, clean)))
        for found in (degraded, restored)
    )
    assert after > before + 0.5


def test_the_command_takes_a_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()[:80, :96]).save("cat.png")
    assert cli.main(["restore", "cat.png", "-o", "new.png", "--task", "haze", "--device", "cpu"]) == 0
    expected = irnext.restore(irnext.optimize(irnext.load_pretrained("haze")), data.chelsea()[:80, :96])
    np.testing.assert_array_equal(np.asarray(Image.open("new.png")), expected)
    capsys.readouterr()
    assert cli.main(["restore", "cat.png", "-o", "new.png", "--task", "fog"]) == 2
    assert "weights for haze, motion-blur, defocus, rain, snow" in capsys.readouterr().err
    assert cli.main(["restore", "cat.png", "-o", "new.png", "--task", "haze", "--weights", "w.pkl"]) == 2
    assert "give it alone" in capsys.readouterr().err
