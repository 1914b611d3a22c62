"""Training: recipes, the loop against the plain one, and that stopping and going on changes nothing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise
from PIL import Image
from rich.console import Console
from torch.optim.lr_scheduler import CosineAnnealingLR

import irnext
from irnext import checkpoints, cli, create_model
from irnext.data import TrainingCrops
from irnext.data.sampling import EpochSampler
from irnext.distributed import Process, SynchronisedBatchNorm2d, synchronise_batch_norm
from irnext.losses import DualDomainLoss
from irnext.restoration import restore
from irnext.training import (
    ResumeError,
    TrainingConfig,
    list_tasks,
    loading,
    recipe,
    state,
    train,
    trainer,
    validation,
)
from irnext.training.schedule import learning_rate
from irnext.training.sources import open_sources

SMALL = {"blocks": 1, "width": 8}


@pytest.fixture(scope="module")
def gopro(tmp_path_factory) -> Path:
    """Eight training and two test pairs, blurred by their neighbours."""
    root, rng = tmp_path_factory.mktemp("data") / "GOPRO", np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for index in range(count):
            sharp = np.kron(rng.random((12, 16, 3)), np.ones((8, 8, 1)))
            blur = (sharp + np.roll(sharp, 3, 1) + np.roll(sharp, -3, 0)) / 3
            for kind, picture in (("sharp", sharp), ("blur", blur)):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                name = f"GOPR0372_07_00_{index:06d}.png"
                Image.fromarray((picture * 255).astype(np.uint8)).save(folder / name)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small model whose attention is not the identity."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    checkpoints.save(randomise(irnext.IRNeXt(**SMALL, low_pass="local")), path)
    return path


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def configure(gopro, weights, tmp_path):
    def make(name: str = "run", **overrides) -> TrainingConfig:
        options = {
            "settings": SMALL,
            "weights": weights,
            "patch": (64, 64),
            "epochs": 2,
            "warm_up": 1,
            "learning_rate": 1e-3,
            "clip": 1.0,
            "workers": 0,
            "log_every": 1,
            "validate_every": 1,
            "save_every": 0,
            "samples": 0,
        }
        return TrainingConfig.of("gopro", gopro, tmp_path / name, **options | overrides)

    return make


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(path).state_dict()


def assert_equal(found: Path, expected: Path) -> None:
    found, expected = tensors(found), tensors(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def log(folder: Path, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def terminated_at(monkeypatch, step: int):
    """A context in which the process gets SIGTERM during a step, counted from 1."""
    original = trainer.Trainer._step

    def stepping(self, batch):
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_step", stepping)
        yield


# ---- recipes -------------------------------------------------------------------------------------

# Epochs and blocks of the paper's section 4 and appendix A.
PAPER = {
    "gopro": (3000, 14),
    "rsblur": (710, 16),
    "its": (300, 4),
    "ots": (30, 4),
    "dense-haze": (5000, 4),
    "nh-haze": (5000, 4),
    "rain13k": (300, 16),
    "csd": (800, 4),
    "srrs": (800, 4),
    "snow100k": (800, 4),
}


@pytest.mark.parametrize("task", PAPER)
def test_recipes_hold_what_the_paper_says(task):
    epochs, blocks = PAPER[task]
    entries = recipe(task)
    assert entries["epochs"][0] == epochs and entries["epochs"][1].startswith("paper")
    with torch.device("meta"):
        assert create_model(entries["model"][0]).settings["blocks"] == blocks
    rate = 2e-4 if task in ("dense-haze", "nh-haze") else 1e-4
    assert entries["learning_rate"][0] == rate and entries["final_learning_rate"][0] == 1e-6


@pytest.mark.parametrize("task", list_tasks())
def test_every_recipe_is_a_configuration_with_sources(task, tmp_path):
    config = TrainingConfig.of(task, tmp_path, tmp_path / "out")
    assert config.model in irnext.list_models() and config.length > config.warm_up
    for value, source in recipe(task).values():
        assert value is not None
        assert any(word in source for word in ("paper", "code", "guess", "ours"))


def test_overrides_replace_the_recipe_and_steps_replace_epochs(tmp_path):
    config = TrainingConfig.of("gopro", tmp_path, tmp_path, steps=600, batch=8, settings={"blocks": 8})
    assert (config.unit, config.length, config.epochs, config.batch) == ("steps", 600, None, 8)
    assert config.settings == {"blocks": 8} and config.learning_rate == 1e-4
    assert config.warm_up < 600
    small = TrainingConfig.of("haze", None, tmp_path, settings={"blocks": 2})
    assert small.settings == {"blocks": 2, "width": 16}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"patch": (100, 64)}, "multiples of 32"),
        ({"batch": 3, "accumulate": 2}, "multiple of accumulate"),
        ({"ema": 1.0}, "ema is 1"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"learning_rate": 1e-7}, "final_learning_rate"),
        ({"warm_up": 2}, "less than the 2 epochs"),
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"clip": 0.0}, "clip is 0"),
        ({"validate_on": 0}, "validate_on is 0"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(configure, overrides, message):
    with pytest.raises(ValueError, match=message):
        configure(**overrides)


def test_unknown_tasks_and_missing_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown task 'fog'.*gopro"):
        TrainingConfig.of("fog", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="needs the folder"):
        TrainingConfig.of("gopro", None, tmp_path)


def test_the_schedule_is_the_published_one():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    cosine = CosineAnnealingLR(optimiser, 27, 1e-6)
    expected = [1e-4 / 3, 2e-4 / 3, 1e-4]
    for _ in range(27):
        expected.append(cosine.get_last_lr()[0])
        optimiser.step()
        cosine.step()
    found = [learning_rate(unit, 30, 3, 1e-4, 1e-6) for unit in range(30)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# ---- the loop ------------------------------------------------------------------------------------


def by_hand(config: TrainingConfig, average: float | None = None):
    """What `train` should compute, written plainly: the model, and its moving average."""
    model = checkpoints.load(config.weights).train()
    averaged = None
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.999), eps=1e-8, fused=True)
    crops = TrainingCrops(irnext.data.open_pairs("gopro", config.data, "train"), config.patch, config.seed)
    loss_function = DualDomainLoss()
    steps = len(crops) // config.batch
    for epoch in range(config.epochs):
        sampler = EpochSampler(len(crops), config.batch, config.seed, epoch=epoch, epochs=epoch + 1)
        rate = learning_rate(epoch, config.epochs, config.warm_up, config.learning_rate, 1e-6)
        for keys in list(sampler)[:steps]:
            optimiser.param_groups[0]["lr"] = rate
            degraded, clean = (
                torch.stack(side).float() / 255 for side in zip(*map(crops.__getitem__, keys), strict=True)
            )
            optimiser.zero_grad()
            loss_function(model(degraded), clean).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimiser.step()
            if average is not None:
                if averaged is None:
                    averaged = copy.deepcopy(model)
                else:
                    for own, new in zip(averaged.parameters(), model.parameters(), strict=True):
                        own.data.lerp_(new.data, 1 - average)
                for own, new in zip(averaged.buffers(), model.buffers(), strict=True):
                    own.data.copy_(new)
    return model, averaged


def test_training_is_the_plain_loop(configure, quiet):
    config = configure(seed=3)
    result = train(config, console=quiet)
    expected, _ = by_hand(config)
    found = tensors(config.output / "last.safetensors")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=name)
    start = tensors(config.weights)
    assert max((found[name] - start[name]).abs().max() for name in found) > 1e-3  # it moved
    assert result.steps == 4 and not result.interrupted and result.skipped == 0


def test_the_moving_average_is_shipped_and_validated(configure, gopro, quiet):
    config = configure(ema=0.7)
    result = train(config, console=quiet)
    model, averaged = by_hand(config, 0.7)
    found = checkpoints.load(config.output / "last.safetensors")
    for (name, value), trained in zip(
        averaged.state_dict().items(), model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=2e-6, msg=name)
        assert name.startswith("num_batches") or "norm" in name or not torch.equal(value, trained)
    pairs = irnext.data.open_pairs("gopro", gopro, "test")
    values = []
    for index in range(2):
        degraded, clean = (torch.tensor(side).permute(2, 0, 1) / 255 for side in pairs.read(index))
        values.append(irnext.metrics.psnr(restore(found, degraded), clean))
    assert result.psnr == pytest.approx(np.mean(values), abs=1e-4)


def test_accumulated_parts_give_the_gradients_of_the_whole_batch(configure, quiet, monkeypatch):
    """With running statistics, as batch normalisation sees the parts one by one."""
    gradients = []
    original = torch.nn.utils.clip_grad_norm_

    def keep(parameters, limit):
        parameters = list(parameters)
        gradients.append([p.grad.clone() for p in parameters])
        return original(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    monkeypatch.setattr(
        torch.nn.BatchNorm2d, "train", lambda self, mode=True: torch.nn.Module.train(self, False)
    )
    for parts in (1, 2):
        train(
            configure(f"parts-{parts}", steps=1, epochs=None, accumulate=parts, validate_every=0),
            console=quiet,
        )
    # Biases before an instance normalisation have rounding errors for gradients.
    scale = max(float(gradient.abs().max()) for gradient in gradients[0])
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6 * scale)


def test_batch_normalisation_wants_two_crops_and_only_that(configure, quiet):
    with pytest.raises(ValueError, match="at least two crops"):
        train(configure(batch=2, accumulate=2), console=quiet)
    plain = {"settings": SMALL | {"branch": "conv"}, "weights": None}
    result = train(configure("plain", batch=1, steps=1, epochs=None, **plain), console=quiet)
    assert np.isfinite(result.loss)


def test_validation_is_bounded_where_memory_is_short(configure, gopro, quiet, monkeypatch):
    """Also of a model whose normalisation is synchronised, which bands do not know."""
    model = synchronise_batch_norm(checkpoints.load(configure().weights).train())
    pairs, process = irnext.data.open_pairs("gopro", gopro, "test"), Process()
    arguments = model, pairs, [0, 1], process, 0, print, lambda: False
    expected = validation.validate(*arguments)

    def short(model, picture, max_memory=None):
        if max_memory is None:
            raise MemoryError
        return restore(model, picture, max_memory="12M")

    monkeypatch.setattr(validation, "restore", short)
    assert validation.validate(*arguments) == pytest.approx(expected, abs=1e-3)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(type(norm) is SynchronisedBatchNorm2d and norm.training for norm in norms)


def test_cublas_is_told_to_be_deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with trainer._algorithms(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_workers_follow_the_cores_that_are_allowed(configure, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    config, on_gpu = dataclasses.replace(configure(), workers=None), Process(device=torch.device("cuda:0"))
    assert loading.worker_count(config, on_gpu) == 5 and loading.worker_count(config, Process()) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loading.worker_count(config, on_gpu) == 2 and loading.worker_count(config, Process()) == 0


def test_the_best_weights_are_the_best(configure, quiet, monkeypatch):
    scores = iter([20.0, 25.0, 22.0, 24.0])
    kept = {}

    def score(model, *_):
        value = next(scores)
        kept[value] = copy.deepcopy(model.state_dict())
        return value

    monkeypatch.setattr(trainer, "validate", score)
    config = configure(epochs=4)
    result = train(config, console=quiet)
    assert (result.psnr, result.best_psnr) == (24.0, 25.0) and result.weights.name == "best.safetensors"
    best = tensors(config.output / "best.safetensors")
    assert all(torch.equal(best[name], value) for name, value in kept[25.0].items())
    assert [line["best"] for line in log(config.output, "validation")] == [20.0, 25.0, 25.0, 25.0]


def test_the_folder_holds_what_is_documented(configure, quiet):
    config = configure(save_every=1, samples=1, tensorboard=True)
    train(config, console=quiet)
    files = {
        path.relative_to(config.output).as_posix() for path in config.output.rglob("*") if path.is_file()
    }
    events = {name for name in files if name.startswith("tensorboard/")}
    assert files - events == {
        "state.pt",
        "best.safetensors",
        "last.safetensors",
        "epoch-00001.safetensors",
        "epoch-00002.safetensors",
        "log.jsonl",
        "samples/0000002-GOPR0372_07_00_000000.png",
        "samples/0000004-GOPR0372_07_00_000000.png",
    }
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(config.output / "tensorboard"))
    board.Reload()
    steps = log(config.output, "train")
    assert (
        [event.step for event in board.Scalars("train/loss")]
        == [line["step"] for line in steps]
        == [1, 2, 3, 4]
    )
    with Image.open(config.output / "samples/0000004-GOPR0372_07_00_000000.png") as sheet:
        assert sheet.size == (3 * 128, 96)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"deterministic": True}, {"channels_last": True}])
def test_other_ways_to_train_come_out_close(configure, quiet, options):
    plain, other = configure("plain", validate_every=0), configure("other", validate_every=0, **options)
    losses = [train(config, console=quiet).loss for config in (plain, other)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert not torch.are_deterministic_algorithms_enabled()


def test_pictures_without_a_counterpart_are_told_of(gopro, configure, quiet, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(gopro, data)
    alone = data / "train/sharp/GOPR0372_07_00_000003.png"
    (data / "train/blur" / alone.name).unlink()
    config = dataclasses.replace(configure(epochs=None, steps=1, validate_every=0), data=data)
    train(config, console=quiet)
    assert f"pictures without a counterpart are left out: 1, such as {alone}" in quiet.file.getvalue()


def test_compiling_goes_through_torch_compile(configure, quiet, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    train(configure(compile=True, steps=1, epochs=None, validate_every=0), console=quiet)
    assert len(compiled) == 1


ABLATIONS = [
    {"msm_per_block": 0},
    {"branch": "conv"},
    {"branch": "lam-no-fm"},
    {"pool_rates": (2,)},
    {"pool_rates": (4, 2)},
    {"pool_rates": (8, 4)},
    {"pooling": "convolution"},
    {"pooling": "max"},
    {"activation": "softmax"},
    {"activation": "sigmoid"},
    {"groups": 2},
    {"groups": 4},
    {"msm_per_block": 2, "blocks": 2},
    {"low_pass": "exact"},
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_every_ablation_trains(configure, quiet, settings):
    config = configure(steps=1, epochs=None, validate_every=0, weights=None, settings=SMALL | settings)
    result = train(config, console=quiet)
    torch.manual_seed(config.seed)
    start = create_model(config.model, **config.settings)
    end = tensors(config.output / "last.safetensors")
    still = {name for name, value in start.named_parameters() if torch.equal(value, end[name])}
    # The gains start at zero, where what is before them has no gradient.
    assert np.isfinite(result.loss) and all("attentions" in name for name in still)


# ---- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.9, "accumulate": 2, "dtype": "bfloat16", "workers": 1}], ids=str
)
@pytest.mark.parametrize("step", [2, 3])
def test_interrupted_and_resumed_equals_uninterrupted(configure, quiet, monkeypatch, options, step):
    """At the end of an epoch and within one: weights, average, state and log, bit for bit."""
    whole, parts = configure("whole", epochs=3, **options), configure("parts", epochs=3, **options)
    expected, handler = train(whole, console=quiet), signal.getsignal(signal.SIGTERM)
    with terminated_at(monkeypatch, step):
        first = train(parts, console=quiet)
    assert first.interrupted and first.steps == step
    assert signal.getsignal(signal.SIGTERM) is handler
    torch.manual_seed(99)  # a new process would start elsewhere
    result = train(parts, resume=True, console=quiet)
    assert not result.interrupted and result.steps == expected.steps == 6
    assert (result.psnr, result.best_psnr) == (expected.psnr, expected.best_psnr)
    for name in ("last.safetensors", "best.safetensors"):
        assert_equal(parts.output / name, whole.output / name)
    one, other = (state.load_state(config.output / "state.pt") for config in (whole, parts))
    flat, flat_other = (torch.utils._pytree.tree_leaves({**s, "config": 0}) for s in (one, other))
    for a, b in zip(flat, flat_other, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    for event in ("train", "validation"):
        lines, found = log(whole.output, event), log(parts.output, event)
        for line in (*lines, *found):
            line.pop("crops_per_second", None), line.pop("seconds", None)
        assert found == lines


def test_a_validation_that_a_signal_ends_is_made_up_for(configure, quiet, monkeypatch):
    whole, parts = configure("whole"), configure("parts")
    expected = train(whole, console=quiet)
    original, calls = trainer.validate, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(trainer, "validate", interrupted)
    first = train(parts, console=quiet)
    assert first.interrupted and first.steps == 2 and first.psnr is None
    result = train(parts, resume=True, console=quiet)
    assert result.psnr == expected.psnr and len(calls) == 3
    assert_equal(parts.output / "best.safetensors", whole.output / "best.safetensors")
    found, lines = log(parts.output, "validation"), log(whole.output, "validation")
    assert [line["psnr"] for line in found] == [line["psnr"] for line in lines]


def test_a_run_killed_after_its_state_was_written_loses_only_the_steps_since(configure, quiet, monkeypatch):
    whole, parts = configure("whole"), configure("parts")
    train(whole, console=quiet)
    original = trainer.Trainer._step

    def dying(self, batch):
        if self.step == 3:
            raise KeyboardInterrupt
        original(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(parts, console=quiet)
    assert state.load_state(parts.output / "state.pt")["step"] == 2
    train(parts, resume=True, console=quiet)
    assert_equal(parts.output / "last.safetensors", whole.output / "last.safetensors")
    assert [line["step"] for line in log(parts.output, "train")] == [1, 2, 3, 4]


def test_a_finished_training_goes_on_when_it_is_made_longer(configure, quiet):
    config = configure(epochs=1, warm_up=0)
    train(config, console=quiet)
    result = train(configure(epochs=2, warm_up=0), resume=True, console=quiet)
    assert result.steps == 4
    assert "resumed with epochs 2 instead of 1" in quiet.file.getvalue()


def test_going_on_in_another_folder_has_its_own_best_weights(configure, quiet):
    train(configure(), console=quiet)
    there = configure().output / "state.pt"
    config = configure("other", epochs=3)
    result = train(config, resume=there, console=quiet)
    assert result.steps == 6 and result.weights == config.output / "best.safetensors"
    assert_equal(result.weights, config.output / "last.safetensors")
    with pytest.raises(FileExistsError, match="holds a training already"):
        train(config, resume=there, console=quiet)
    assert train(config, resume=config.output / "state.pt", console=quiet).steps == 6


def test_a_signal_after_the_last_step_interrupts_nothing(configure, quiet, monkeypatch):
    original = trainer.Trainer._conclude

    def concluding(self):
        original(self)
        if self.concluded == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.Trainer, "_conclude", concluding)
    assert not train(configure(), console=quiet).interrupted
    assert "interrupted" not in quiet.file.getvalue()


def test_resume_begins_where_there_is_nothing(configure, quiet):
    assert train(configure(), resume=True, console=quiet).steps == 4


def test_a_folder_with_a_training_is_not_overwritten(configure, quiet):
    train(configure(), console=quiet)
    before = (configure().output / "state.pt").read_bytes()
    with pytest.raises(FileExistsError, match="resume it"):
        train(configure(), console=quiet)
    assert (configure().output / "state.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"settings": SMALL | {"groups": 4}}, "settings .* there"),
        ({"seed": 5}, "seed 0 there, 5 here"),
        ({"batch": 2}, "batch 4 there, 2 here"),
        ({"ema": 0.5}, "ema 0.0 there, 0.5 here"),
    ],
)
def test_the_state_of_another_training_is_refused(configure, quiet, other, message):
    train(configure(), console=quiet)
    before = (configure().output / "state.pt").read_bytes()
    with pytest.raises(ResumeError, match=message):
        train(configure(**{"weights": None} | other), resume=True, console=quiet)
    assert (configure().output / "state.pt").read_bytes() == before


def test_what_is_no_state_is_refused(configure, weights, tmp_path, quiet):
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"no checkpoint")
    with pytest.raises(ResumeError, match="cannot be read"):
        train(configure(), resume=garbage, console=quiet)
    with pytest.raises(FileNotFoundError, match="no such file"):
        train(configure(), resume=tmp_path / "missing.pt", console=quiet)
    torch.save({"model": {}}, tmp_path / "model.pkl")
    with pytest.raises(ResumeError, match="weights alone are for --weights"):
        train(configure(), resume=tmp_path / "model.pkl", console=quiet)
    with open(tmp_path / "evil.pkl", "wb") as file:
        pickle.dump({"model": print, "optimizer": os.system}, file, protocol=2)
    with pytest.raises(ResumeError, match="cannot be read"):
        train(configure(), resume=tmp_path / "evil.pkl", console=quiet)


def published_model_pkl(config: TrainingConfig, path: Path, width: int = 8) -> None:
    """What the published code writes after an epoch, with its own names."""
    model, _ = by_hand(config)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimiser.step()
    if width != 8:
        model = irnext.IRNeXt(1, width)
    torch.save({"model": model.official_state_dict(), "optimizer": optimiser.state_dict(), "epoch": 1}, path)


def test_goes_on_from_a_published_training(configure, tmp_path, quiet):
    """With its optimiser and epoch: the learning rate goes on where it was, too."""
    published_model_pkl(configure(epochs=1, warm_up=0), tmp_path / "model.pkl")
    config = configure(epochs=3)
    result = train(config, resume=tmp_path / "model.pkl", console=quiet)
    assert result.steps == 6
    lines = log(config.output, "train")
    assert [line["step"] for line in lines] == [3, 4, 5, 6]
    assert lines[0]["learning_rate"] == learning_rate(1, 3, 1, 1e-3, 1e-6)
    # Adam's count of steps came along.
    assert state.load_state(config.output / "state.pt")["optimizer"]["state"][0]["step"] == 5


def test_a_published_training_that_is_complete_leaves_its_weights(configure, tmp_path, quiet):
    published_model_pkl(configure(epochs=1, warm_up=0), tmp_path / "model.pkl")
    result = train(configure(epochs=1, warm_up=0), resume=tmp_path / "model.pkl", console=quiet)
    found, expected = tensors(result.weights), checkpoints.load(tmp_path / "model.pkl").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_published_training_of_another_model_is_refused(configure, tmp_path, quiet):
    published_model_pkl(configure(epochs=1, warm_up=0), tmp_path / "model.pkl", width=16)
    with pytest.raises(ResumeError, match="another model"):
        train(configure(), resume=tmp_path / "model.pkl", console=quiet)


@pytest.mark.parametrize("when", ["state", "weights"])
def test_a_full_disk_leaves_the_old_checkpoints(configure, quiet, monkeypatch, when):
    config = configure()
    train(config, console=quiet)
    before = {path.name: path.read_bytes() for path in config.output.glob("*.*t*") if path.is_file()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "state":
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr(trainer.checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(configure(epochs=3), resume=True, console=quiet)
    for name in ("state.pt", "last.safetensors", "best.safetensors"):
        found = (config.output / name).read_bytes()
        assert found == before[name] or (when == "weights" and name == "state.pt")
    assert not list(config.output.glob("*.part"))
    monkeypatch.undo()
    assert train(configure(epochs=3), resume=True, console=quiet).steps == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_named_and_the_steps_before_it_are_kept(
    gopro, configure, quiet, tmp_path, workers
):
    data = tmp_path / "data"
    shutil.copytree(gopro, data)
    config = dataclasses.replace(configure(workers=workers), data=data)
    order = EpochSampler(8, 4, config.seed).order(0)
    broken = sorted((data / "train/blur").iterdir())[order[5]]
    broken.write_bytes(broken.read_bytes()[:-400])
    with pytest.raises(ValueError) as caught:
        train(config, console=quiet)
    assert str(broken) in str(caught.value) and "Traceback" not in str(caught.value)
    assert state.load_state(config.output / "state.pt")["step"] == 1
    shutil.copy(gopro / "train/blur" / broken.name, broken)
    train(config, resume=True, console=quiet)
    whole = configure("whole")
    train(whole, console=quiet)
    assert_equal(config.output / "last.safetensors", whole.output / "last.safetensors")


def test_an_error_in_another_process_ends_this_one_with_its_steps_kept(configure, quiet, monkeypatch):
    asked = iter([False, False, True])
    monkeypatch.setattr(trainer, "any_rank", lambda flag: flag or next(asked))
    monkeypatch.setattr(trainer, "first_object", lambda _: ValueError("b.png: not a picture"))
    monkeypatch.setattr(trainer.Trainer, "_step", lambda self, _: setattr(self, "step", self.step + 1))
    config = configure(log_every=100)
    with pytest.raises(ValueError, match=r"b\.png"):
        train(config, console=quiet)
    assert state.load_state(config.output / "state.pt")["step"] == 1


# ---- losses that are not finite ------------------------------------------------------------------


def poisoned(monkeypatch, steps: set[int], value: float = float("nan")) -> None:
    """The model's input holds `value` in these steps, counted from 1."""
    original = trainer.Trainer._unit_range

    def spoil(self, pictures):
        moved = original(self, pictures)
        if self.step + 1 in steps:
            moved[0, 0, 0, 0] = value
        return moved

    monkeypatch.setattr(trainer.Trainer, "_unit_range", spoil)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_loss_changes_nothing(configure, quiet, monkeypatch, value):
    """Nor the running statistics, which the forward pass moves."""
    config = configure(steps=2, epochs=None, ema=0.5, validate_every=0, batch=4, warm_up=0)
    snapshots = []
    original = trainer.Trainer._step

    def stepping(self, batch):
        original(self, batch)
        snapshots.append(
            copy.deepcopy(
                (self.model.state_dict(), self.optimiser.state_dict()["state"], self.average.state_dict())
            )
        )

    monkeypatch.setattr(trainer.Trainer, "_step", stepping)
    poisoned(monkeypatch, {2}, value)
    result = train(config, console=quiet)
    assert result.skipped == 1 and result.steps == 2
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, snapshots), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert "at step 2: skipped (1 in all)" in quiet.file.getvalue()
    assert log(config.output, "skipped") == [{"event": "skipped", "step": 2, "skipped": 1}]


def test_too_many_in_a_row_end_the_training(configure, quiet, monkeypatch):
    config = configure(epochs=4, non_finite_limit=3)
    poisoned(monkeypatch, {1, 2, 4, 5, 6, 7})
    with pytest.raises(ArithmeticError, match="at step 6: 3 steps in a row"):
        train(config, console=quiet)
    assert state.load_state(config.output / "state.pt")["step"] == 4
    assert all(value.isfinite().all() for value in tensors(config.output / "last.safetensors").values())


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def options(weights) -> list[str]:
    small = ["--set", "blocks=1", "--set", "width=8", "--weights", str(weights), "--patch", "64", "64"]
    return [
        *small,
        "--workers",
        "0",
        "--device",
        "cpu",
        "--warm-up",
        "0",
        "--validate-every",
        "1",
        "--clip",
        "1",
    ]


def test_the_command_trains_and_names_the_weights(gopro, options, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        cli.main(
            ["train", "--task", "gopro", "--data", str(gopro), "-o", str(out), "--epochs", "1", *options]
        )
        == 0
    )
    assert capsys.readouterr().out == f"{out / 'best.safetensors'}\n"
    assert (
        cli.main(
            ["train", "--task", "gopro", "--data", str(gopro), "-o", str(out), "--epochs", "1", *options]
        )
        == 2
    )
    assert "holds a training already" in capsys.readouterr().err


def test_the_published_options_are_accepted(gopro, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    published = ["--mode", "train", "--data_dir", str(gopro), "--batch_size", "2", "--num_epoch=1"]
    published += ["--num_worker", "0", "--print_freq", "1", "--save_freq", "1", "--valid_freq", "1"]
    published += ["--model_name", "mine", "--resume", "", "--learning_rate", "1e-3", "--weight_decay", "0"]
    options = [o for o in options if o not in ("--workers", "0", "--validate-every")]
    options = ["--set", "blocks=1", "--set", "width=8", "--patch", "64", "64", "--device", "cpu"]
    assert cli.main(["train", "--task", "gopro", *published, *options]) == 0
    assert len(log(tmp_path / "results/mine", "train")) == 4
    assert (tmp_path / "results/mine/epoch-00001.safetensors").exists()
    assert cli.main(["train", "--task", "gopro", "--mode", "test"]) == 2
    assert "irnext evaluate" in capsys.readouterr().err


def test_sigterm_ends_the_command_with_the_state(gopro, options, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "irnext",
        "train",
        "--task",
        "gopro",
        "--data",
        str(gopro),
        "-o",
        str(out),
    ]
    options = [*options, "--log-every", "1"]
    options[options.index("--workers") + 1] = "1"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--epochs", "1000", *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for _ in range(600):
            if (out / "log.jsonl").exists() and '"step": 3' in (out / "log.jsonl").read_text():
                break
            process.poll() is None or pytest.fail(process.stderr.read())
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "resume to go on" in errors
    assert state.load_state(out / "state.pt")["step"] >= 3


def test_resume_may_stand_before_any_option():
    assert cli.training.from_published(["--resume", "-o", "out"]) == ["--resume", "-o", "out"]
    assert cli.training.from_published(["--resume", "a.pkl"]) == ["--resume-from", "a.pkl"]


def test_recipes_are_shown_with_their_sources(capsys):
    assert cli.main(["train", "--recipes", "--task", "gopro"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "epochs │ 3000 │ paper, appendix A" in shown and "published code" in shown


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["train", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("irnext: error: ") and errors.count("\n") == 1, errors
    return errors


def test_bad_input_is_one_line(gopro, tmp_path, capsys, options):
    assert "--task is missing" in refused(capsys)
    assert "unknown task 'fog'" in refused(capsys, "--task", "fog", "--data", str(gopro))
    missing = refused(capsys, "--task", "gopro", "--data", str(tmp_path / "no"))
    assert str(tmp_path / "no") in missing
    few = [*options, "-o", str(tmp_path / "few"), "--batch", "16", "--epochs", "1"]
    assert "a batch needs 16" in refused(capsys, "--task", "gopro", "--data", str(gopro), *few)
    assert not (tmp_path / "few").exists()
    assert "KEY=VALUE" in refused(capsys, "--task", "gopro", "--data", str(gopro), "--set", "blocks")


def test_two_folders_are_not_validated_on_what_they_train_on(gopro, tmp_path):
    folders = {"input_folder": "train/blur", "target_folder": "train/sharp"}
    config = TrainingConfig.of("custom", gopro, tmp_path / "run", **folders)
    crops, pairs = open_sources(config)
    assert len(crops) == 8 and pairs is None
    _, pairs = open_sources(TrainingConfig.of("custom", gopro, tmp_path / "run"))
    assert len(pairs) == 2  # those of test


# ---- synthetic tasks -----------------------------------------------------------------------------


def test_a_synthetic_task_learns_without_data(tmp_path, quiet):
    config = TrainingConfig.of(
        "haze",
        None,
        tmp_path / "run",
        steps=12,
        batch=4,
        patch=(64, 64),
        settings=SMALL,
        workers=0,
        validate_every=12,
        validate_on=1,
        log_every=4,
        learning_rate=5e-3,
        ema=0.0,
    )
    result = train(config, console=quiet)
    losses = [line["loss"] for line in log(config.output, "train")]
    assert losses[-1] < losses[0] and result.psnr > 5


def test_clean_pictures_are_kept_apart_for_validation(tmp_path):
    for index in range(12):
        Image.new("RGB", (80, 72), (index, 0, 0)).save(tmp_path / f"{index:02d}.png")
    config = TrainingConfig.of("haze", tmp_path, tmp_path / "run", dead_leaves=0.0)
    crops, pairs = open_sources(config)
    names = {crops.clean.name(index) for index in range(len(crops.clean))}
    assert [pairs.name(index) for index in range(len(pairs))] == ["09.png"] and len(names) == 11
    assert "09.png" not in names
    (tmp_path / "one").mkdir()
    Image.new("RGB", (80, 72)).save(tmp_path / "one/a.png")
    with pytest.raises(ValueError, match="at least 2"):
        open_sources(TrainingConfig.of("haze", tmp_path / "one", tmp_path / "run"))


# ---- several processes ---------------------------------------------------------------------------


def test_two_processes_train_as_one(gopro, configure, options, quiet, tmp_path):
    """One crop for each process and part: batch normalisation must see all of them, in either."""
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "irnext", "train", "--task", "gopro", "--data", str(gopro), "-o", str(out)]
    command += ["--epochs", "2", "--batch", "2", "--learning-rate", "1e-3", "--log-every", "1", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best.safetensors") == 1
    one = configure("one", batch=2, warm_up=0)
    result = train(one, console=quiet)
    losses = [[line["loss"] for line in log(folder, "train")] for folder in (one.output, out)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert log(out, "validation")[-1]["psnr"] == pytest.approx(result.psnr, abs=0.02)
    found, expected = tensors(out / "last.safetensors"), tensors(one.output / "last.safetensors")
    for name, value in expected.items():
        if name.endswith("running_mean"):
            torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2 * float(value.abs().max()))
