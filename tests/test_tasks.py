"""Every data set of Table 14, in every layout: recognised, trained on and evaluated by the commands."""

from __future__ import annotations

import io
import json

import pytest
import torch
from conftest import randomise
from rich.console import Console
from trees import SPLITS, TREES, make_tree

import irnext
from irnext import checkpoints, cli
from irnext.data.specifications import TEST_SETS
from irnext.training import TrainingConfig, list_tasks, train

# As small as the published shape allows: what is tested is the way through, not what is learnt.
SMALL = {"blocks": 1, "width": 4, "groups": 2, "pool_rates": (2,)}
TABLE_14 = {
    *(
        "dpdd",
        "its",
        "ots",
        "dense-haze",
        "nh-haze",
        "rain14000",
        "rain1800",
        "rain800",
        "rain100h",
        "rain100l",
    ),
    *("rain12", "csd", "srrs", "snow100k", "gopro", "rsblur"),
}
TRAINED = [key for key, tree in TREES.items() if "train" in tree.splits]
TESTED = [key for key, tree in TREES.items() if "test" in tree.splits]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    checkpoints.save(randomise(irnext.IRNeXt(**SMALL)), path)
    return path


def test_the_trees_are_all_of_table_14():
    assert {name for name, _ in TREES} >= TABLE_14
    assert {name for name, _ in TRAINED} <= set(list_tasks())
    assert {name for name, _ in TRAINED} | {name for sets in TEST_SETS.values() for name in sets} >= TABLE_14


FIRST = dict(reversed(TRAINED))  # of every data set's layouts


@pytest.mark.parametrize(("dataset", "layout"), TRAINED, ids=map(str, TRAINED))
def test_steps_of_training(tmp_path, dataset, layout):
    """Twenty, in which the loss falls, by one layout of each data set, and a few by the others."""
    steps = 20 if layout == FIRST[dataset] else 4
    root = make_tree(tmp_path, dataset, layout)
    config = TrainingConfig.of(
        dataset,
        root,
        tmp_path / "run",
        steps=steps,
        batch=2,
        patch=(64, 64),
        settings=SMALL,
        workers=0,
        log_every=steps // 2,
        validate_on=1,
        validate_every=steps,
        samples=0,
        learning_rate=1e-3,
    )
    result = train(config, console=Console(file=io.StringIO()))
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert result.steps == steps and len(losses) == 2
    assert losses[1] < losses[0] or steps < 20
    has_test = bool({"test", "validation"} & set(TREES[dataset, layout].splits))
    assert (result.psnr is not None) == has_test


@pytest.mark.parametrize(("dataset", "layout"), TESTED, ids=map(str, TESTED))
def test_evaluation(tmp_path, weights, capsys, dataset, layout):
    root = make_tree(tmp_path, dataset, layout, size=(96, 128))
    options = [
        "--data",
        str(root),
        "--weights",
        str(weights),
        "--device",
        "cpu",
        "--json",
        str(tmp_path / "e.json"),
    ]
    assert cli.main(["evaluate", "--task", dataset, *options, "--limit", "2"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "PSNR" in printed and "MAE" in printed if dataset == "dpdd" else "PSNR" in printed
    for evaluation in json.loads((tmp_path / "e.json").read_text()):
        rows = evaluation["rows"]
        assert len(rows) == 2
        assert all(score["value"] is not None for row in rows for score in row["scores"])  # None: not finite


@pytest.mark.parametrize(("dataset", "layout"), TREES, ids=map(str, TREES))
def test_check(tmp_path, capsys, dataset, layout):
    root = make_tree(tmp_path, dataset, layout)
    assert cli.main(["data", "check", str(root), "--task", dataset]) == 0
    printed = capsys.readouterr().out
    splits = [split for split in SPLITS if split in TREES[dataset, layout].splits]
    assert "4" in printed and "0 unpaired" in printed and all(split in printed for split in splits)
