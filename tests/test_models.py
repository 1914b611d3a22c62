"""Every architecture by the same ways: files, the command line, training, evaluation, sizes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise
from PIL import Image
from rich.console import Console
from skimage import data
from torch.optim.swa_utils import AveragedModel

import irnext
from irnext import checkpoints, cli, images
from irnext.losses import DualDomainLoss
from irnext.reports import markdown
from irnext.restoration import restore
from irnext.training import TrainingConfig, train, trainer
from irnext.training.loading import load_batches
from irnext.training.sources import open_sources

GRL = {
    "embed_dim": 16,
    "depths": (2, 1),
    "num_heads_window": (2, 2),
    "num_heads_stripe": (2, 2),
    "window_size": 8,
    "stripe_size": (8, 16),
}
SMALL = {
    "irnext-its": {"blocks": 1, "width": 8},
    "convir-s": {"blocks": 1, "width": 8, "dilations": (1, 3, 7)},
    "mprnet-deblurring": {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
    "restormer": {
        "dim": 8,
        "num_blocks": (1, 1, 1, 1),
        "num_refinement_blocks": 1,
        "heads": (1, 2, 2, 4),
    },
    "mimo-unet": {"num_res": 1, "width": 16},
    "grl-tiny": GRL,
}
ENLARGING = "grl-tiny-x2"


def make(name: str, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    model = irnext.create_model(name, **{**SMALL.get(name, GRL), **settings})
    return randomise(model).eval()


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def photograph(tmp_path) -> Path:
    """Of a size that is no multiple of anything."""
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()[60:137, 120:221]).save(path)
    return path


# ---- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_weights_and_settings_come_back(tmp_path, name, suffix):
    model = make(name)
    irnext.save(model, tmp_path / "a.safetensors")
    irnext.convert(tmp_path / "a.safetensors", tmp_path / f"b{suffix}")
    given = {} if suffix == ".safetensors" else model.settings
    found = irnext.load(tmp_path / f"b{suffix}", **given)
    assert type(found) is type(model) and found.settings == model.settings
    state = model.state_dict()
    assert list(found.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_published_files_are_recognised(tmp_path, name, prefix):
    """Settings are found from the weights alone, but those that no weight shows."""
    model = make(name)
    state = {prefix + key: value for key, value in model.official_state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "w.ckpt")
    found = irnext.load(tmp_path / "w.ckpt")
    assert type(found) is type(model)
    unseen = {"low_pass", "dilations", "window_size", "stripe_size", "img_size"}
    for key, value in model.settings.items():
        assert key in unseen or found.settings[key] == value, key


def test_what_is_assumed_is_said(tmp_path, photograph, capsys):
    for name, said in (
        ("irnext-its", "--low-pass"),
        ("convir-s", "--model"),
        ("grl-tiny", "--model"),
        ("mimo-unet", ""),
    ):
        torch.save(make(name).official_state_dict(), tmp_path / "w.pth")
        capsys.readouterr()
        cli.main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "w.safetensors")])
        note = capsys.readouterr().err
        assert said in note if said else not note
        assert cli.main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "v.safetensors")]) == 0
        assert "note" not in capsys.readouterr().err


def test_converting_by_the_settings_of_a_name(tmp_path, capsys):
    """What is then recorded is what the name says; nothing is assumed."""
    torch.save(make("irnext-its", blocks=14, width=32).official_state_dict(), tmp_path / "w.pth")
    files = [str(tmp_path / "w.pth"), str(tmp_path / "w.safetensors")]
    assert cli.main(["convert", *files, "--model", "irnext-gopro"]) == 0
    assert "note" not in capsys.readouterr().err
    assert irnext.load(files[1]).settings == irnext.create_model("irnext-gopro").settings
    assert "the weights are of IRNeXt" in refused(capsys, "convert", *files, "--model", "grl-base-defocus")


@pytest.mark.parametrize(
    ("name", "setting"),
    [("restormer", "ffn_expansion_factor"), ("grl-tiny", "mlp_ratio"), ("grl-tiny", "img_range")],
)
def test_whole_numbers_go_for_floats(tmp_path, name, setting):
    model = make(name, **{setting: 2})
    irnext.save(model, tmp_path / "w.safetensors")
    assert irnext.load(tmp_path / "w.safetensors").settings == model.settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dimm=8", "unknown settings dimm: restormer has dim, num_blocks,"),
        ("dim=wide", "the setting dim is 'wide': it must be of type int"),
        ("num_refinement_blocks=1.5", "the setting num_refinement_blocks is 1.5: it must be of type int"),
        ("dim=true", "the setting dim is True: it must be of type int"),
        ("bias=7", "the setting bias is 7: it must be of type bool"),
        ("heads=3", "the setting heads is 3: it must be of type tuple"),
    ],
)
def test_wrong_settings_are_named(tmp_path, capsys, setting, message):
    output = tmp_path / "run"
    options = ("--task", "haze", "--model", "restormer", "--set", setting, "-o", output, "--device", "cpu")
    assert message in refused(capsys, "train", *options)
    assert not output.exists()


def test_weights_of_one_are_not_taken_for_another(tmp_path, photograph, capsys):
    irnext.save(make("mimo-unet"), tmp_path / "w.safetensors")
    line = refused(
        capsys, "restore", photograph, "--weights", tmp_path / "w.safetensors", "--model", "restormer"
    )
    assert "the weights are of MIMO-UNet: " in line and "MIMO-UNet has" in line
    with pytest.raises(ValueError, match=r"unknown model 'mprnet': choose one of .*mprnet-deblurring"):
        irnext.create_model("mprnet")


# ---- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_restoring_a_photograph(tmp_path, photograph, name):
    model = make(name)
    irnext.save(model, tmp_path / "w.safetensors")
    options = ["--weights", str(tmp_path / "w.safetensors"), "--device", "cpu"]

    def restored(*more: str) -> np.ndarray:
        target = tmp_path / "out.png"
        assert cli.main(["restore", str(photograph), "-o", str(target), *options, *more]) == 0
        return np.asarray(images.read(target), int)

    expected = np.asarray(restore(model, Image.open(photograph)), int)
    assert np.abs(restored() - expected).max() <= 1  # another order of sums
    assert np.abs(restored("--dtype", "bfloat16") - expected).mean() < 3
    in_tiles = restored("--tile", "64", "--overlap", "16")
    tiles = np.asarray(restore(model, Image.open(photograph), tile=64, overlap=16), int)
    assert np.abs(in_tiles - tiles).max() <= 1


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith("irnext")])
def test_memory_is_bounded_by_tiles_only(tmp_path, photograph, capsys, name):
    irnext.save(make(name), tmp_path / "w.safetensors")
    weights = ("--weights", tmp_path / "w.safetensors")
    line = refused(capsys, "restore", photograph, *weights, "--device", "cpu", "--max-memory", "8G")
    assert "use tile" in line
    line = refused(capsys, "export", tmp_path / "w.safetensors", "-o", tmp_path / "w.pt2")
    assert "IRNeXt" in line


@pytest.mark.parametrize("wrapper", [torch.nn.DataParallel, AveragedModel])
def test_what_a_model_says_of_itself_counts_in_wrappers(wrapper):
    """MPRNet's result is the first of its outputs, GRL's may be larger."""
    picture = torch.rand(3, 17, 9)
    for name in ("mprnet-deblurring", ENLARGING):
        model = make(name)
        assert torch.equal(restore(wrapper(model), picture), restore(model, picture))


def test_a_type_that_a_model_does_not_compute_in():
    model = make("mimo-unet")
    model.half_types = (torch.bfloat16,)
    with pytest.raises(ValueError, match="MIMOUNet does not compute in float16: use float32, bfloat16"):
        restore(model, torch.rand(3, 8, 8), dtype=torch.float16)


# ---- larger results --------------------------------------------------------------------------------


def test_enlarging_a_photograph(tmp_path, photograph):
    """Colours, alpha and the comparison have twice the sides; the last is before beside after."""
    model = make(ENLARGING)
    irnext.save(model, tmp_path / "w.safetensors")
    picture = Image.open(photograph).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(photograph)
    options = ["--weights", str(tmp_path / "w.safetensors"), "--device", "cpu", "--compare"]
    assert cli.main(["restore", str(photograph), "-o", str(tmp_path / "out"), *options]) == 0
    large = images.read(tmp_path / "out/cat.png")
    assert large.size == (202, 154) and large.mode == "RGBA"
    small = np.asarray(picture)[..., :3].transpose(2, 0, 1) / np.float32(255)
    expected = model(torch.from_numpy(small)[None])[0].clamp(0, 1)
    assert np.abs(np.asarray(large)[..., :3] / 255 - expected.permute(1, 2, 0).detach().numpy()).max() < 0.01
    assert np.asarray(large.getchannel("A")).std() > 50
    assert images.read(tmp_path / "out/cat.png-compare.png").size == (404, 154)


def test_enlarging_in_tiles_blends_like_the_plain_size():
    """A network that sees single pixels: tiles give what the whole picture gives, four times as large."""

    class Repeat(torch.nn.Module):
        scale = 2

        def forward(self, x):
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    picture = torch.rand(2, 3, 100, 90)
    whole = restore(Repeat(), picture)
    assert torch.equal(whole, Repeat()(picture))
    torch.testing.assert_close(restore(Repeat(), picture, tile=64, overlap=24), whole)
    assert restore(Repeat(), picture[:0]).shape == (0, 3, 200, 180)
    assert restore(Repeat(), picture[0].permute(1, 2, 0).numpy()).shape == (200, 180, 3)


def test_what_keeps_its_size_refuses_to_be_enlarged(tmp_path, photograph, capsys):
    irnext.save(make(ENLARGING), tmp_path / "w.safetensors")
    weights = ("--weights", tmp_path / "w.safetensors", "--device", "cpu")
    line = refused(capsys, "evaluate", "--task", "haze", "--data", tmp_path, *weights)
    assert "enlarges 2 times" in line
    (tmp_path / "a.mp4").write_bytes(b"")
    line = refused(capsys, "restore", tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", *weights)
    assert "enlarges 2 times" in line
    line = refused(capsys, "train", "--task", "haze", "-o", tmp_path / "run", "--model", ENLARGING)
    assert "enlarges 2 times" in line


# ---- training and evaluation -----------------------------------------------------------------------


def configuration(tmp_path: Path, name: str, **overrides) -> TrainingConfig:
    options = {
        "steps": 2,
        "batch": 2,
        "patch": (64, 64),
        "workers": 0,
        "log_every": 1,
        "validate_every": 0,
        "device": "cpu",
    }
    options |= {"model": name, "settings": SMALL[name]} | overrides
    return TrainingConfig.of("haze", None, tmp_path / "run", **options)


@pytest.mark.parametrize("name", SMALL)
def test_training(tmp_path, name):
    """The first loss is that of the weights it starts from, over all outputs; the weights learn, and load."""
    torch.manual_seed(1)
    start = make(name).train()
    irnext.save(start, tmp_path / "start.safetensors")
    config = configuration(tmp_path, name, weights=tmp_path / "start.safetensors")
    result = train(config, console=Console(file=io.StringIO()))
    assert result.steps == 2
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    logged = next(line["loss"] for line in lines if line["event"] == "train")

    process = irnext.distributed.Process()
    degraded, clean = next(load_batches(config, process, open_sources(config)[0], 0))
    outputs = start(degraded / 255)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    assert logged == pytest.approx(DualDomainLoss()(outputs, clean / 255).item(), rel=1e-5)

    trained = checkpoints.load(result.weights)
    assert type(trained) is type(start) and trained.settings == start.settings
    changed = [
        key for key, value in start.named_parameters() if not torch.equal(value, trained.get_parameter(key))
    ]
    assert len(changed) > 0.9 * len(list(start.parameters()))


def test_crops_smaller_than_the_model_takes_are_refused(tmp_path, capsys):
    settings = ("--set", "blocks=1", "--set", "width=8", "--set", "dilations=[1,3,9]")
    line = refused(
        capsys,
        *("train", "--task", "haze", "-o", tmp_path / "run", "--model", "convir-s", *settings),
        *("--patch", 64, 96, "--device", "cpu"),
    )
    assert "patch is (64, 96): convir-s with these settings takes multiples of 32, at least 96" in line


def test_resuming_changes_nothing(tmp_path, monkeypatch):
    """With a parameter that many blocks share."""
    name, quiet = "mprnet-deblurring", Console(file=io.StringIO())
    train(configuration(tmp_path / "whole", name, steps=4), console=quiet)
    config = configuration(tmp_path / "parts", name, steps=4)
    step = trainer.Trainer._step

    def interrupted(self, batch):
        step(self, batch)
        self.asked = self.step == 2

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert train(config, console=quiet).interrupted
    assert train(config, resume=True, console=quiet).steps == 4
    whole, again = (checkpoints.load(tmp_path / part / "run/last.safetensors") for part in ("whole", "parts"))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_recipes_settings_are_its_models(tmp_path):
    own = TrainingConfig.of("haze", None, tmp_path, steps=2)
    other = TrainingConfig.of("haze", None, tmp_path, steps=2, model="restormer")
    assert own.settings == {"blocks": 1, "width": 16} and other.settings == {}


@pytest.mark.parametrize("name", ["mprnet-deblurring", "restormer"])
def test_evaluation(tmp_path, photograph, name, capsys):
    """Scores are those of the restored pictures, whichever of the outputs that is."""
    irnext.save(make(name), tmp_path / "w.safetensors")
    pictures = tmp_path / "clean"
    pictures.mkdir()
    photograph.rename(pictures / "cat.png")
    arguments = ["evaluate", "--task", "haze", "--data", pictures, "--weights", tmp_path / "w.safetensors"]
    arguments += ["--save", tmp_path / "saved", "--json", tmp_path / "e.json", "--device", "cpu"]
    assert cli.main([*map(str, arguments)]) == 0, capsys.readouterr().err
    (found,) = json.loads((tmp_path / "e.json").read_text())
    (score,) = (
        s["value"]
        for s in found["rows"][0]["scores"]
        if (s["protocol"], s["name"]) == ("irnext-rgb-saved", "psnr")
    )
    clean, saved = (
        np.asarray(Image.open(next(f.rglob("*.png"))), float) for f in (pictures, tmp_path / "saved")
    )
    assert score == pytest.approx(10 * np.log10(255**2 / ((clean - saved) ** 2).mean()), abs=1e-3)
    assert found["model"]["architecture"] == type(make(name)).__name__


def test_the_papers_results_stand_beside_its_own_network_only():
    class Pairs:
        def __len__(self) -> int:
            return 1

        def name(self, index: int) -> str:
            return "a.png"

        def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 9, np.uint8)

    tables = {
        name: markdown(irnext.evaluate(make(name), Pairs(), ["irnext-rgb"], test_set="gopro"))
        for name in ("irnext-its", "mimo-unet")
    }
    assert "33.16 dB (Table 6)" in tables["irnext-its"] and "Table" not in tables["mimo-unet"]


@pytest.mark.parametrize(
    ("name", "printed"), [("mprnet-deraining", "3.64 M"), ("mimo-unet-plus", "150.71 G")]
)
def test_complexity(capsys, name, printed):
    assert cli.main(["complexity", "--model", name]) == 0
    assert printed in capsys.readouterr().out
