"""Models in folders and on the hub: what is written, what comes back, and every refusal. Nothing is sent."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import huggingface_hub.errors
import pytest
import torch
from conftest import randomise
from safetensors.torch import save_file

import irnext
from irnext import hub
from irnext.architecture import RestorationModel
from irnext.checkpoints import CheckpointError
from irnext.models.convir import ConvIR

SMALL = {
    "irnext-gopro": {"blocks": 1, "width": 8},  # low_pass="local", which weights do not show
    "irnext-its": {"blocks": 2, "width": 8, "pool_rates": (4, 2)},
    "convir-s-rain": {"blocks": 1, "width": 8},  # dilations, which weights do not show
    "mimo-unet": {"num_res": 1, "width": 8},
    "mprnet-deblurring": {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
}
FILES = {"README.md", "config.json", "model.safetensors"}


@functools.cache
def small_model(name: str = "irnext-gopro") -> RestorationModel:
    torch.manual_seed(0)
    return randomise(irnext.create_model(name, **SMALL[name])).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "model"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(written, tmp_path) -> Path:
    """A folder with a model."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def assert_same(found: RestorationModel, expected: RestorationModel) -> None:
    assert type(found) is type(expected) and found.settings == expected.settings and not found.training
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def refusal(call, error=CheckpointError) -> str:
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_comes_back(tmp_path, name):
    model = small_model(name)
    model.save_pretrained(tmp_path / "new" / "model")
    assert set(contents(tmp_path)) == {f"new/model/{name}" for name in FILES}
    for kind in (RestorationModel, type(model)):
        assert_same(kind.from_pretrained(tmp_path / "new" / "model"), model)


def test_what_is_written(saved):
    config = json.loads((saved / "config.json").read_text())
    settings = {**small_model().settings, "pool_rates": [8, 4, 2]}
    assert config == {"architecture": "IRNeXt", "settings": settings, "irnext_version": irnext.__version__}
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    assert card.data.to_dict() == {
        "library_name": "irnext",
        "pipeline_tag": "image-to-image",
        "tags": ["image-restoration"],
    }
    assert 'irnext.hub.from_pretrained("model")' in card.text


def test_saving_again_replaces_the_model_and_keeps_the_rest(saved):
    (saved / "README.md").write_text("mine")
    (saved / "notes.txt").write_text("mine, too")
    small_model("convir-s-rain").save_pretrained(saved)
    assert set(contents(saved)) == {*FILES, "notes.txt"}
    assert contents(saved)["README.md"] == b"mine" and contents(saved)["notes.txt"] == b"mine, too"
    assert_same(hub.from_pretrained(saved), small_model("convir-s-rain"))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "bert"}'},
        {"config.json": "{"},
        {"model.safetensors": "weights of something"},
        {"config.json": "[]", "model.safetensors": "weights of something"},
    ],
    ids=str,
)
def test_files_of_other_programs_stay(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    message = refusal(lambda: small_model().save_pretrained(tmp_path), FileExistsError)
    assert str(tmp_path / next(iter(files))) in message and "choose another folder" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_half_written(saved, monkeypatch, name):
    """A disk that is full at any of the files leaves the model of before, and nothing in its place at all."""
    before = contents(saved)
    atomic_file = irnext.files.atomic_file

    def full(path):
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))
        return atomic_file(path)

    for module in (hub, irnext.checkpoints):
        monkeypatch.setattr(module, "atomic_file", full)
    for folder in (saved, saved.parent / "new" / "model"):
        with pytest.raises(OSError, match="No space left"):
            small_model("irnext-its").save_pretrained(folder)
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["model"]


def test_wrappers_are_taken_off_and_what_cannot_be_saved_is_refused(tmp_path):
    model = small_model("irnext-its")
    hub.save_pretrained(torch.optim.swa_utils.AveragedModel(model), tmp_path / "average")
    assert_same(hub.from_pretrained(tmp_path / "average"), model)
    optimized = irnext.optimize(model)
    assert "cannot save a OptimizedModel" in refusal(
        lambda: hub.save_pretrained(optimized, tmp_path / "optimized"), TypeError
    )
    assert not (tmp_path / "optimized").exists()


def test_settings_given_go_first(saved):
    assert irnext.IRNeXt.from_pretrained(saved, low_pass="global").settings["low_pass"] == "global"
    assert "unknown settings depth" in refusal(lambda: irnext.IRNeXt.from_pretrained(saved, depth=3))


def test_weights_of_other_programs_take_the_settings_of_config(saved):
    """Someone else's model.safetensors, in published names, has no settings of its own."""
    model = small_model()
    save_file(model.official_state_dict(), saved / "model.safetensors")
    assert_same(hub.from_pretrained(saved), model)


def change(folder: Path, **changes) -> None:
    """Give config.json other fields, or none where they are None."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


SETTINGS = small_model().settings
WRONG = {
    "no config": (lambda at: (at / "config.json").unlink(), "there is no config.json in it"),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "there is no model.safetensors in it"),
    "broken config": (lambda at: (at / "config.json").write_text('{"arch'), "damaged, it should be JSON"),
    "no text": (lambda at: (at / "config.json").write_bytes(b"\xff\xfe\x00"), "damaged, it should be JSON"),
    "a list": (lambda at: (at / "config.json").write_text("[1]"), "not of irnext"),
    "of another program": (lambda at: change(at, architecture=None), "not of irnext"),
    "settings a list": (lambda at: change(at, settings=[1]), "not of irnext"),
    "unknown architecture": (
        lambda at: change(at, architecture="NAFNet"),
        "the architecture is 'NAFNet'; this version reads IRNeXt, ConvIR, ",
    ),
    "unknown setting": (lambda at: change(at, settings={"device": "cpu"}), "unknown settings device"),
    "setting of another type": (lambda at: change(at, settings={"blocks": "4"}), "it must be of type int"),
    "settings that do not fit": (
        lambda at: change(at, settings={**SETTINGS, "blocks": 2}),
        "the weights do not fit IRNeXt with blocks=2",
    ),
    "settings of another training": (
        lambda at: change(at, settings={**SETTINGS, "low_pass": "global"}),
        "config.json and model.safetensors are of two models: low_pass differ",
    ),
    "another architecture": (
        lambda at: change(at, architecture="ConvIR", settings={"blocks": 1}),
        "config.json and model.safetensors are of two models: the architecture",
    ),
    "truncated weights": (
        lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:-9]),
        "truncated",
    ),
}


@pytest.mark.parametrize("damage", WRONG)
def test_damaged_folders(saved, damage):
    damaging, message = WRONG[damage]
    damaging(saved)
    error = FileNotFoundError if "there is no" in message else CheckpointError
    found = refusal(lambda: hub.from_pretrained(saved), error)
    assert message in found and str(saved) in found


def test_the_class_that_is_called_must_be_the_models(saved):
    message = refusal(lambda: ConvIR.from_pretrained(saved))
    assert message.startswith(f"{saved}: the model is of class IRNeXt, not ConvIR")


def test_a_file_is_no_folder(saved):
    assert "irnext.load reads it" in refusal(lambda: hub.from_pretrained(saved / "model.safetensors"))


# ---- names ---------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(saved, tmp_path) -> Path:
    """A cache of downloads, as huggingface_hub lays it out, that holds owner/model."""
    repository = tmp_path / "cache" / "models--owner--model"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_names_that_are_downloaded_need_no_network(cache, revision):
    options = {"cache_dir": cache, "local_files_only": True, "revision": revision}
    assert_same(irnext.IRNeXt.from_pretrained("owner/model", **options), small_model())


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/other", None, "owner/other: there is no such folder, and not all of it is downloaded"),
        ("owner/model", "v2", "owner/model: there is no such folder, and not all of it is downloaded"),
        ("some/where/else", None, "names on the hub look like owner/model"),
        ("~/model", None, "names on the hub look like owner/model"),
    ],
)
def test_names_that_are_not_there(cache, name, revision, message):
    options = {"cache_dir": cache, "local_files_only": True, "revision": revision}
    assert message in refusal(lambda: hub.from_pretrained(name, **options), FileNotFoundError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (huggingface_hub.errors.RepositoryNotFoundError, "no such name, or a private one"),
        (huggingface_hub.errors.RevisionNotFoundError, "no revision 'v2' of it"),
        (huggingface_hub.errors.LocalEntryNotFoundError, "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(monkeypatch, error, message):
    def refuse(name, **options):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    call = lambda: hub.from_pretrained("owner/model", revision="v2")  # noqa: E731
    assert message in refusal(call, FileNotFoundError)


def test_downloads_ask_for_two_files_of_one_revision(monkeypatch, saved):
    download = mock.create_autospec(huggingface_hub.snapshot_download, return_value=str(saved))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(hub.from_pretrained("owner/model", revision="v2", token="secret"), small_model())
    (name,), options = download.call_args
    assert (name, options["revision"], options["token"]) == ("owner/model", "v2", "secret")
    assert options["allow_patterns"] == ["config.json", "model.safetensors"]


# ---- uploads -------------------------------------------------------------------------------------


class Hub:
    """Stands for the hub: keeps what is uploaded, through calls that its real interface must accept."""

    def __init__(self, has_card: bool = False):
        self.api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
        self.api.create_repo.return_value = SimpleNamespace(repo_id="owner/model")
        self.api.file_exists.return_value = has_card
        self.api.upload_folder.side_effect = self.keep
        self.uploaded: dict[str, bytes] = {}

    def keep(self, *, folder_path, ignore_patterns, create_pr, **options):
        files = contents(Path(folder_path))
        self.uploaded = {name: files[name] for name in files if name not in (ignore_patterns or ())}
        commit = f"https://hub/{options['repo_id']}/commit/1"
        return SimpleNamespace(commit_url=commit, pr_url="https://hub/pr/1" if create_pr else None)


@pytest.fixture
def stand_in(monkeypatch, request) -> Hub:
    stand_in = Hub(getattr(request, "param", False))
    made = mock.create_autospec(huggingface_hub.HfApi, return_value=stand_in.api)
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    stand_in.made = made
    return stand_in


def test_an_upload(stand_in, tmp_path):
    model = small_model("convir-s-rain")
    url = model.push_to_hub("model", private=True, token="secret", revision="next", commit_message="Better")
    assert url == "https://hub/owner/model/commit/1"
    assert stand_in.made.call_args.kwargs["token"] == "secret"
    stand_in.api.create_repo.assert_called_once_with("model", private=True, exist_ok=True)
    options = stand_in.api.upload_folder.call_args.kwargs
    assert (options["repo_id"], options["revision"]) == ("owner/model", "next")
    assert options["commit_message"] == "Better"
    assert set(stand_in.uploaded) == FILES
    assert b'irnext.hub.from_pretrained("owner/model")' in stand_in.uploaded["README.md"]
    assert not Path(options["folder_path"]).exists()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(stand_in.uploaded[name])
    assert_same(hub.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("stand_in", [True], indirect=True)
def test_a_card_with_a_licence_stays(stand_in):
    assert small_model().push_to_hub("owner/model", create_pr=True) == "https://hub/pr/1"
    assert set(stand_in.uploaded) == FILES - {"README.md"}


def test_nothing_is_made_for_what_cannot_be_saved(stand_in):
    with pytest.raises(TypeError, match="cannot save a Conv2d"):
        hub.push_to_hub(torch.nn.Conv2d(3, 3, 1), "owner/model")
    stand_in.api.create_repo.assert_not_called()


# ---- the extra -----------------------------------------------------------------------------------


def test_folders_need_no_extra_and_names_say_which(saved, tmp_path):
    code = f"""
import sys
import irnext
assert not {{"huggingface_hub", "spandrel", "irnext.hub", "irnext.spandrel"}} & set(sys.modules)
sys.modules["huggingface_hub"] = None  # not installed
model = irnext.IRNeXt.from_pretrained({str(saved)!r})
model.save_pretrained({str(tmp_path / "copy")!r})
for call in (lambda: irnext.IRNeXt.from_pretrained("owner/model"), lambda: model.push_to_hub("owner/model")):
    try:
        call()
    except ModuleNotFoundError as error:
        assert str(error).endswith("models on the hub need huggingface_hub: pip install 'irnext[hub]'"), error
    else:
        raise AssertionError("it was not missed")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert contents(tmp_path / "copy").keys() == FILES
