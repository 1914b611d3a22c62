"""The command line: what it does, and that every expected error is one line and a code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import irnext
from irnext import checkpoints, cli, images, optimize
from irnext.restoration import restore

COMMANDS = "demo, restore, serve, train, evaluate, data, convert, export, info, complexity, benchmark"


@pytest.fixture(scope="module")
def model() -> irnext.IRNeXt:
    torch.manual_seed(0)
    model = irnext.IRNeXt(blocks=1, width=8, low_pass="local")
    for name, parameter in model.named_parameters():
        if "gain" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A folder to work in, with weights and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRNEXT_BACKEND", raising=False)
    checkpoints.save(model, tmp_path / "w.safetensors")
    Image.fromarray(data.chelsea()[:70, 100:180]).save(tmp_path / "cat.png")
    return tmp_path


def refused(capsys, *arguments: str) -> str:
    """The one line on the error output of a command that is refused."""
    assert cli.main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("irnext: error: ") and errors.count("\n") == 1, errors
    return errors


def test_restores_a_file(model, here, capsys):
    assert (
        cli.main(["restore", "cat.png", "-o", "new.png", "--weights", "w.safetensors", "--device", "cpu"])
        == 0
    )
    assert capsys.readouterr().out == "new.png\n"
    found = np.asarray(images.read("new.png"))
    np.testing.assert_array_equal(found, restore(optimize(model), data.chelsea()[:70, 100:180]))
    # The plain model rounds otherwise: a grey level here and there.
    plain = restore(model, data.chelsea()[:70, 100:180])
    assert np.abs(found.astype(int) - plain).max() <= 1


def test_options_reach_the_model(model, here):
    options = ["--weights", "w.safetensors", "--low-pass", "global", "--tile", "64", "--overlap", "16"]
    assert cli.main(["restore", "-o", "out", *options, "--device", "cpu", "--compare", "cat.png"]) == 0
    other = checkpoints.load("w.safetensors", "global")
    expected = restore(optimize(other), data.chelsea()[:70, 100:180], tile=64, overlap=16)
    np.testing.assert_array_equal(np.asarray(images.read("out/cat.png")), expected)
    assert images.read("out/cat.png-compare.png").size == (160, 70)
    assert (expected != restore(model, data.chelsea()[:70, 100:180], tile=64, overlap=16)).any()


def test_half_precision(here):
    arguments = ["restore", "cat.png", "--weights", "w.safetensors", "--device", "cpu"]
    assert cli.main([*arguments, "-o", "a.png"]) == 0
    assert cli.main([*arguments, "-o", "b.png", "--dtype", "bfloat16"]) == 0
    a, b = (np.asarray(images.read(name), int) for name in ("a.png", "b.png"))
    assert 0 < abs(a - b).max() < 12


def test_a_models_name_gives_the_settings_and_must_fit(here, capsys):
    torch.manual_seed(0)
    torch.save({"model": irnext.IRNeXt(blocks=4).official_state_dict()}, "its.pkl")
    options = ("--weights", "its.pkl", "--device", "cpu")
    named = cli.models.load_model("its.pkl", "irnext-its", None)
    assert named.settings == irnext.create_model("irnext-its").settings
    assert cli.models.load_model("its.pkl", "irnext-its", "local").settings["low_pass"] == "local"
    assert "its.pkl" in refused(capsys, "restore", "cat.png", "-o", "x", *options, "--model", "irnext-gopro")
    assert not os.path.exists("x")


def test_some_failed_pictures_give_code_1(here, capsys):
    (here / "bad.png").write_text("no picture")
    arguments = [
        "restore",
        "bad.png",
        "cat.png",
        "-o",
        "out",
        "--weights",
        "w.safetensors",
        "--device",
        "cpu",
    ]
    assert cli.main(arguments) == 1
    output, errors = capsys.readouterr()
    assert output == "out/cat.png\n" and os.listdir("out") == ["cat.png"]
    assert [line for line in errors.splitlines() if line.startswith("irnext: error: ")] == [
        "irnext: error: bad.png: not a picture in a format that can be read"
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("cat.png",), "give --weights"),
        (("cat.png", "--model", "irnext-its"), "random weights.*give --weights"),
        (("cat.png", "--model", "irnext-none", "--weights", "w.safetensors"), "irnext-none.*irnext-gopro"),
        (("cat.png", "--weights", "none.pkl"), "none.pkl"),
        (("cat.png", "--weights", "cat.png"), "cat.png"),
        (("none.png", "--weights", "w.safetensors"), "none.png: no such file"),
        (("--weights", "w.safetensors"), "no pictures given"),
        (("cat.png", "--weights", "w.safetensors", "--tile", "100"), "96 and 128"),
        (("cat.png", "--weights", "w.safetensors", "--device", "toaster"), "device 'toaster'"),
    ],
)
def test_refusals_are_one_line(here, capsys, arguments, message):
    assert re.search(message, refused(capsys, "restore", "-o", "out", *arguments))
    assert not os.path.exists("out")


def test_unwritable_output_is_one_line(here, capsys):
    (here / "file").write_text("")
    assert "file" in refused(capsys, "restore", "cat.png", "-o", "file/out", "--weights", "w.safetensors")


@pytest.mark.parametrize(
    "backend, message", [("nope", "unknown backend 'nope'"), ("triton", "'triton' cannot")]
)
def test_backend_that_cannot_be_used(here, capsys, monkeypatch, backend, message):
    if irnext.backends().get(backend):
        pytest.skip(f"{backend} can be used here")
    monkeypatch.setenv("IRNEXT_BACKEND", backend)
    assert message in refused(capsys, "restore", "cat.png", "-o", "out", "--weights", "w.safetensors")
    assert not os.path.exists("out")


def test_convert_there_and_back(model, here, capsys):
    assert cli.main(["convert", "w.safetensors", "w.pkl"]) == 0
    assert cli.main(["convert", "w.pkl", "back.safetensors", "--low-pass", "local"]) == 0
    back = checkpoints.load("back.safetensors")
    assert back.settings == model.settings
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert "w.txt" in (capsys.readouterr() and refused(capsys, "convert", "w.pkl", "w.txt"))


def test_demo_passes_its_options_on(here, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        irnext, "demo", SimpleNamespace(run=lambda *given: calls.append(given)), raising=False
    )
    assert cli.main(["demo", "-o", "there", "--seconds", "5", "--seed", "3"]) == 0
    assert calls == [(Path("there"), 5.0, 3)]

    def run(*_):
        raise ImportError("the demonstration needs scikit-image")

    monkeypatch.setattr(irnext, "demo", SimpleNamespace(run=run), raising=False)
    assert "needs scikit-image" in refused(capsys, "demo")


def test_demo_refuses_a_negative_seed_before_anything(here, capsys):
    assert "seed is -1: it must be from 0" in refused(capsys, "demo", "--seed", "-1")
    assert "cat.png: this is a file, not a folder" in refused(capsys, "demo", "-o", "cat.png")
    assert not os.path.exists("irnext-demo")


def test_complexity_prints_the_papers_count(capsys):
    assert cli.main(["complexity", "--model", "irnext-its"]) == 0
    assert "5.46 M" in (output := capsys.readouterr().out) and "38.72 G" in output
    assert cli.main(["complexity", "--model", "irnext-its", "--size", "512", "256"]) == 0
    assert "77.4" in capsys.readouterr().out
    assert "multiples of 32" in refused(capsys, "complexity", "--model", "irnext-its", "--size", "100", "100")


def test_info_names_versions_backends_and_models(capsys, monkeypatch):
    monkeypatch.setenv("IRNEXT_BACKEND", "nope")  # what helps against it must still run
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert all(
        word in output for word in (torch.__version__, "reference", "irnext-gopro", "nope", "jpeg decoder")
    )
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["models"]) == irnext.list_models()
    assert facts["models"]["irnext-its"]["bands"] and not facts["models"]["restormer"]["bands"]
    assert facts["backends"]["reference"]["available"] is True
    assert set(facts["backends"]) == set(irnext.backends())
    assert facts["versions"]["irnext"] == irnext.__version__


def test_interrupt_is_quiet(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("irnext.info.collect", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


def test_bugs_keep_their_traceback(monkeypatch):
    def bug():
        raise KeyError("a bug")

    monkeypatch.setattr("irnext.info.collect", bug)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["info"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("restore", "a.png", "-o", "out", "--bogus"), r"Unrecognized options: --bogus; see irnext"),
        (("demo", "--bogus", "--seed", "3", "--compare"), r"--bogus.*--compare"),
        (
            ("restore", "a.png", "-o", "o", "--dtype", "int8"),
            r"'int8'.*--dtype.*'float32', .*restore --help$",
        ),
        (("restore", "a.png", "-o", "out", "--tile", "x"), r"--tile.*'x'"),
        (("demo", "--seed", "x"), r"--seed: .*'x'"),
        (("export", "a.pkl"), r"Missing from irnext export: -o OUT, --output OUT.*export --help$"),
        (("complexity", "--size", "3"), r"'--size'. Expected 2 values"),
        ((), rf"Missing subcommand.*{COMMANDS}.*irnext --help$"),
        (("bogus",), rf"bogus.*{COMMANDS}"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # tyro draws its boxes accordingly
def test_arguments_that_are_no_command_are_one_line(capsys, monkeypatch, arguments, message, encoding):
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: encoding == "utf-8")
    line = refused(capsys, *arguments)
    assert re.search(message, line) and not re.search(r"[─│╭╮╰╯]|---", line), line


def test_help_is_printed_as_ever(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["restore", "--help"])
    output, errors = capsys.readouterr()
    assert caught.value.code == 0 and errors == ""
    assert all(words in output for words in ("-o OUT", "--low-pass {global,local,exact}", "with 8"))


def test_a_low_pass_filter_that_is_assumed_is_said(model, here, capsys):
    checkpoints.convert("w.safetensors", "w.pkl")

    def notes(*arguments) -> list[str]:
        assert cli.main(arguments) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("irnext: note: ")]

    restoring = ("restore", "cat.png", "-o", "out", "--device", "cpu", "--weights")
    (note,) = notes(*restoring, "w.pkl")
    assert "w.pkl" in note and "global assumed" in note and "--low-pass local" in note
    assert notes("convert", "w.pkl", "new.safetensors") == [note]
    assert not notes(*restoring, "w.pkl", "--low-pass", "global")
    assert not notes(*restoring, "w.safetensors")
    assert not notes("convert", "w.pkl", "new.safetensors", "--low-pass", "local")
    assert not notes("convert", "w.pkl", "again.pkl")  # records no settings


def test_as_a_program():
    command = [sys.executable, "-m", "irnext"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"irnext {irnext.__version__}\n"
    wrong = subprocess.run([*command, "convert", "none.pkl", "x.pkl"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stdout == ""
