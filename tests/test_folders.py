"""Many pictures: trees, resuming, several processes, and files read and written beside the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import randomise
from PIL import Image
from torch import nn
from torch.distributed import HashStore

import irnext
from irnext import checkpoints, cli, images
from irnext.cli.restoring import ending_cleanly
from irnext.files import atomic_file
from irnext.memory import available_memory
from irnext.restoration import Processes, inference, restore, restore_files
from irnext.restoration.pipeline import Behind, ahead
from irnext.restoration.processes import balanced


class Negative(nn.Module):
    """Says what it was given, and how often."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return 1 - x


def picture(path, value: int, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def found(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def tree(tmp_path):
    """Pictures of different brightness on three levels, and what is to be left alone."""
    for value, name in enumerate(["b.png", "x/b.png", "x/y/c.gif", "z/a.jpg", ".hidden/h.png", "x/.h.png"]):
        picture(tmp_path / "in" / name, 10 * value)
    (tmp_path / "in" / "x" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "empty").mkdir()
    return tmp_path / "in"


# ---- trees ---------------------------------------------------------------------------------------


def test_a_tree_keeps_its_shape(tree, tmp_path):
    report = restore_files(Negative(), [tree], tmp_path / "out", recursive=True)
    assert found(tmp_path / "out") == ["b.png", "x/b.png", "x/y/c.png", "z/a.jpg"] and not report.failed
    for value, name in enumerate(["b.png", "x/b.png", "x/y/c.png"]):
        assert images.read(tmp_path / "out" / name).getpixel((0, 0)) == (255 - 10 * value,) * 3
    assert not (tmp_path / "out" / "empty").exists()


def test_results_inside_the_tree_are_not_taken_again(tree):
    out = tree / "x" / "restored"
    first = restore_files(Negative(), [tree], out, recursive=True)
    second = restore_files(Negative(), [tree], out, recursive=True)
    assert len(first.written) == 4 and first.written == second.written


def test_trees_whose_results_meet_are_refused(tree, tmp_path):
    picture(tmp_path / "other" / "x" / "b.png", 0)
    with pytest.raises(ValueError, match=r"both be written to .*x.b\.png"):
        restore_files(Negative(), [tree, tmp_path / "other"], tmp_path / "out", recursive=True)
    with pytest.raises(ValueError, match="overwrite an input"):
        restore_files(Negative(), [tree], tree, recursive=True)
    with pytest.raises(ValueError, match="no pictures in this folder"):
        restore_files(Negative(), [tree / "empty"], tmp_path / "out", recursive=True)
    assert not (tmp_path / "out").exists()


# ---- resuming ------------------------------------------------------------------------------------


def test_resuming_leaves_finished_pictures_alone(tree, tmp_path):
    out = tmp_path / "out"
    (tree / "x" / "bad.png").write_text("no picture")
    first = restore_files(Negative(), [tree], out, recursive=True)
    assert list(first.failed) == [tree / "x" / "bad.png"]
    times = {path: path.stat().st_mtime_ns for path in first.written}
    (out / "x" / "b.png").unlink()
    picture(tree / "x" / "bad.png", 99)
    model = Negative()
    second = restore_files(model, [tree], out, recursive=True, resume=True)
    assert model.calls == 2 and second.written == [out / "x" / "b.png", out / "x" / "bad.png"]
    assert sorted(second.skipped) == sorted({*first.written} - {out / "x" / "b.png"})
    assert all(path.stat().st_mtime_ns == times[path] for path in second.skipped)
    third = restore_files(model, [tree], out, recursive=True, resume=True)
    assert model.calls == 2 and len(third.skipped) == 5 and not third.written and not third.failed


def test_resuming_makes_missing_comparisons(tree, tmp_path):
    restore_files(Negative(), [tree / "b.png"], tmp_path / "x.png")
    report = restore_files(Negative(), [tree / "b.png"], tmp_path / "x.png", resume=True, compare=True)
    assert [path.name for path in report.written] == ["x.png", "x.png-compare.png"] and not report.skipped


def test_an_interrupted_run_loses_the_picture_in_work_only(tmp_path):
    class Interrupted(Negative):
        def forward(self, x):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().forward(x)

    for index in range(6):
        picture(tmp_path / "in" / f"{index}.png", index)
    with pytest.raises(KeyboardInterrupt):
        restore_files(Interrupted(), [tmp_path / "in"], tmp_path / "out")
    assert found(tmp_path / "out") == ["0.png", "1.png", "2.png"]  # whole, and nothing temporary
    model = Negative()
    restore_files(model, [tmp_path / "in"], tmp_path / "out", resume=True)
    assert model.calls == 3 and len(found(tmp_path / "out")) == 6


# ---- reading and writing beside the model --------------------------------------------------------


def test_one_item_is_made_ahead_and_no_more():
    made = []

    def items():
        for index in range(5):
            made.append((index, threading.current_thread()))
            yield index

    taken = []
    for item in ahead(items()):
        time.sleep(0.02)  # long enough to make more, were it allowed
        taken.append(item)
        assert len(made) <= len(taken) + 1
    assert taken == [0, 1, 2, 3, 4]
    assert all(thread is not threading.main_thread() for _, thread in made)


def test_what_making_an_item_raises_comes_in_its_turn():
    def items():
        yield 1
        raise KeyError("two")

    iterator = ahead(items())
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="two"):
        next(iterator)


def test_calls_behind_keep_their_order_and_their_errors():
    done = []

    def put(item):
        time.sleep(0.01 * (3 - item))
        if item == 2:
            raise KeyError("two")
        done.append(item)

    with pytest.raises(KeyError, match="two"), Behind(put) as behind:
        for item in range(3):
            behind(item)
    assert done == [0, 1]
    with pytest.raises(ZeroDivisionError), Behind(put) as behind:
        behind(0)
        raise ZeroDivisionError  # and not hidden by what the thread does
    assert done == [0, 1, 0]


def test_calls_behind_run_beside_each_other_and_no_more_than_asked():
    together, most, gate = 0, 0, threading.Lock()
    meeting = threading.Barrier(3, timeout=10)  # broken, unless three run at a time

    def put():
        nonlocal together, most
        with gate:
            together += 1
            most = max(most, together)
        meeting.wait()
        with gate:
            together -= 1

    with Behind(put, threads=3) as behind:
        for _ in range(9):
            behind()
    assert most == 3


def test_the_report_keeps_the_order_and_the_filters_of_warnings(tmp_path):
    for index in range(9):
        picture(tmp_path / "in" / f"{index}.png", index)
    (tmp_path / "in" / "2.png").write_text("no picture")
    (tmp_path / "in" / "7.png").write_text("no picture")
    before = list(warnings.filters)
    report = restore_files(Negative(), [tmp_path / "in"], tmp_path / "out")
    assert [path.name for path in report.written] == [f"{i}.png" for i in (0, 1, 3, 4, 5, 6, 8)]
    assert [path.name for path in report.failed] == ["2.png", "7.png"]
    assert warnings.filters == before


def test_memory_is_given_back_after_every_picture(tree, tmp_path, monkeypatch):
    """Pictures of many sizes would let a process grow by gigabytes."""
    calls = []
    monkeypatch.setattr(inference, "give_back_free_memory", lambda: calls.append(None))
    restore_files(nn.Conv2d(3, 3, 1), [tree], tmp_path / "out", recursive=True)
    assert len(calls) == 4
    inference.release(nn.Conv2d(3, 3, 1, device="meta"))
    assert len(calls) == 4  # the memory of other devices is not the C library's


# ---- several processes ---------------------------------------------------------------------------


def test_shares_are_balanced():
    generator = np.random.default_rng(0)
    weights = list(generator.lognormal(size=200))
    shares = balanced(weights, 8)
    assert sorted(index for share in shares for index in share) == list(range(200))
    assert all(share == sorted(share) for share in shares)
    sums = [sum(weights[index] for index in share) for share in shares]
    assert max(sums) <= 1.02 * sum(weights) / 8
    assert [len(share) for share in balanced([0] * 10, 4)] == [3, 3, 2, 2]  # equal, or unknown
    assert balanced([1], 3) == [[0], [], []]


def run_as(count: int, work) -> list:
    """What `work(processes)` returns in each of several processes, played by threads."""
    store, results = HashStore(), [None] * count

    def play(rank):
        results[rank] = work(Processes(rank, count, rank, store))

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_processes_share_the_work_and_the_first_reports(tree, tmp_path):
    (tree / "bad.png").write_text("no picture")
    picture(tree / "large.png", 9, (200, 200))
    models = [Negative(), Negative()]

    def work(processes):
        return restore_files(
            models[processes.rank], [tree], tmp_path / "out", recursive=True, processes=processes
        )

    whole, part = run_as(2, work)
    names = ["b.png", "large.png", "x/b.png", "x/y/c.png", "z/a.jpg"]
    assert [str(path.relative_to(tmp_path / "out")) for path in whole.written] == names
    assert list(whole.failed) == [tree / "bad.png"]
    assert sorted(model.calls for model in models) == [1, 4]  # the large one is a share of its own
    assert 0 < len(part.written) < 5
    (tmp_path / "out" / "b.png").unlink()
    whole, _ = run_as(
        2,
        lambda processes: restore_files(
            Negative(), [tree], tmp_path / "out", recursive=True, resume=True, processes=processes
        ),
    )
    assert [path.name for path in whole.written] == ["b.png"] and len(whole.skipped) == 4


def test_more_processes_than_pictures(tmp_path):
    picture(tmp_path / "a.png", 3)
    whole, *others = run_as(
        3,
        lambda processes: restore_files(
            Negative(), [tmp_path / "a.png"], tmp_path / "x.png", processes=processes
        ),
    )
    assert whole.written == [tmp_path / "x.png"] and not any(report.written for report in others)
    assert found(tmp_path) == ["a.png", "x.png"]


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(inference, "available_memory", lambda device: 1000)
    assert inference.share_of_free(torch.device("cpu")) == 900
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert inference.share_of_free(torch.device("cpu")) == 225
    assert available_memory(torch.device("cpu"))  # what is counted here exists


def test_under_torchrun(tmp_path):
    """Two real processes; one picture fails: the others are finished, told once, and the code is 1."""
    model = randomise(irnext.IRNeXt(blocks=1, width=8)).eval()
    checkpoints.save(model, tmp_path / "w.safetensors")
    generator = np.random.default_rng(0)
    for index in range(3):
        values = generator.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_text("no picture")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "irnext", "restore", "*.png", "-o", "out", "--weights", "w.safetensors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.split() == [os.path.join("out", f"{index}.png") for index in range(3)], done.stderr
    assert done.stderr.count("irnext: error: bad.png: not a picture") == 1
    for index in range(3):
        expected = restore(irnext.optimize(model), images.read(tmp_path / f"{index}.png"))
        result = images.read(tmp_path / "out" / f"{index}.png")
        np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_resumes_a_tree(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(randomise(irnext.IRNeXt(blocks=1, width=8)), "w.safetensors")
    command = ["restore", "in", "-o", "out", "--weights", "w.safetensors", "--device", "cpu", "--recursive"]
    assert cli.main(command) == 0
    assert len(capsys.readouterr().out.split()) == 4
    (tmp_path / "out" / "x" / "b.png").unlink()
    assert cli.main([*command, "--resume"]) == 0
    output, errors = capsys.readouterr()
    assert output.split() == [os.path.join("out", "x", "b.png")]
    assert "irnext: note: 3 skipped" in errors
    assert cli.main(["restore", "in/b.png", "--weights", "w.safetensors", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split() == [os.path.join("restored", "b.png")]
    assert cli.main([*command, "--crf", "20"]) == 2
    assert "--crf: for videos only" in capsys.readouterr().err


def test_a_process_that_is_ended_cleans_up(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, ending_cleanly(), atomic_file(tmp_path / "x") as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before
