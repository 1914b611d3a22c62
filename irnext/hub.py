"""Models in folders and on the Hugging Face hub, laid out as its libraries do it.

Such a folder holds `config.json` (the architecture, its settings, the version that wrote it) and
`model.safetensors`, the file of `irnext.save`. Only the hub itself needs huggingface_hub.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch

from .architecture import RestorationModel, check_settings
from .checkpoints import CheckpointError, load, save, stored_settings
from .files import atomic_file, output_folder
from .models import ARCHITECTURES
from .version import __version__

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

Model = TypeVar("Model", bound=RestorationModel)

_CARD = """\
---
library_name: irnext
pipeline_tag: image-to-image
tags:
- image-restoration
---

# {title}

{architecture}, a network that restores pictures, with `{settings}`.

```python
import irnext.hub
from PIL import Image

model = irnext.hub.from_pretrained("{name}")
irnext.restore(model, Image.open("picture.png")).save("restored.png")
```
"""


def save_pretrained(model: RestorationModel, folder: str | os.PathLike) -> None:
    """Write `model` to `folder` as config.json and model.safetensors, with a model card, README.md.

    All are written before the first takes its place. A README.md that is there stays, as do other
    files; so does everything where the folder holds a config.json or a model.safetensors of another
    program, which raises FileExistsError. Otherwise raises as `irnext.save` does.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    with output_folder(folder), tempfile.TemporaryDirectory(prefix=".", dir=folder) as made:
        _write_model(model, Path(made))
        _write_card(Path(made), folder.resolve().name)
        for name in (WEIGHTS, CONFIG, CARD):
            if name != CARD or not (folder / CARD).exists():
                os.replace(Path(made, name), folder / name)


def from_pretrained(
    name_or_folder: str | os.PathLike,
    kind: type[Model] = RestorationModel,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> Model:
    """The model in a folder, or of a name ("owner/model") on the hub, in eval mode on `device`.

    Args:
        name_or_folder: a folder where there is one, else a name, which needs huggingface_hub.
        kind: the class that it must be of.
        revision: a branch, tag or commit of a name.
        token: for names that are private.
        cache_dir: where downloads are kept, None for huggingface_hub's own folder.
        local_files_only: take what is there already, and do not ask the hub.
        force_download: download what is there already, too.
        device: where the model goes.
        settings: go before those of config.json, as with `irnext.load`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a name, or a file is missing in it.
        CheckpointError: a config.json that is damaged or of another program or architecture, and
            everything that is wrong with weights.
        ModuleNotFoundError: a name, and huggingface_hub is not installed.
    """
    folder = Path(name_or_folder)
    if folder.is_file():
        raise CheckpointError(f"{folder}: this is a file, not a folder: irnext.load reads it")
    if not folder.is_dir():
        folder = _download(
            os.fspath(name_or_folder),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    config = _read_config(folder)
    network = _network_of(config, folder / CONFIG)
    if not issubclass(network, kind):
        raise CheckpointError(
            f"{name_or_folder}: the model is of class {network.__name__}, not {kind.__name__}; "
            "irnext.hub.from_pretrained takes any"
        )
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder}: there is no {WEIGHTS} in it")
    model = load(folder / WEIGHTS, device=device, **{**config["settings"], **settings})
    _check_agreement(folder, config, type(model) is network)
    return model


def push_to_hub(
    model: RestorationModel,
    repo_id: str,
    *,
    commit_message: str = "Upload a model of irnext",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload `model` to the repository `repo_id` ("owner/model") on the hub; returns the commit's address.

    The repository is made where it is missing. One commit brings the files of `save_pretrained`, the
    model card only where the repository has none: add a licence to it there.

    Args:
        model: as for `irnext.save`.
        repo_id: the repository.
        commit_message: of that commit.
        private: whether a repository that is made is private, None for the owner's default.
        token: of a user who may write, None for that of `hf auth login`.
        revision: the branch to commit to, which must be there, None for the main one.
        create_pr: propose the commit instead, and return the proposal's address.

    Raises ModuleNotFoundError without huggingface_hub, its errors where the hub refuses, and what
    `irnext.save` raises, before anything is made.
    """
    api = _huggingface_hub().HfApi(token=token, library_name="irnext", library_version=__version__)
    with tempfile.TemporaryDirectory() as made:
        _write_model(model, Path(made))
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        _write_card(Path(made), repo_id)
        has_card = api.file_exists(repo_id, CARD, revision=revision)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=made,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=[CARD] if has_card else None,
        )
    return commit.pr_url or commit.commit_url


# ---- writing -------------------------------------------------------------------------------------


def _write_model(model: RestorationModel, folder: Path) -> None:
    """Write model.safetensors, and config.json with what is noted in it."""
    save(model, folder / WEIGHTS)
    _write_text(folder / CONFIG, json.dumps(_noted(folder / WEIGHTS), indent=2) + "\n")


def _write_card(folder: Path, name: str) -> None:
    """Write the card of the model in `folder`, which users call `name`."""
    config = _read_config(folder)
    settings = json.dumps(config["settings"])
    title = name.rpartition("/")[2]
    card = _CARD.format(title=title, name=name, architecture=config["architecture"], settings=settings)
    _write_text(folder / CARD, card)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def _check_replaceable(folder: Path) -> None:
    """Raise FileExistsError where another program's files have the names of ours."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            continue
        try:
            _read_config(folder)
        except (CheckpointError, OSError):
            raise FileExistsError(
                f"{folder / name}: this is there already, and no model of irnext: choose another folder"
            ) from None


# ---- reading -------------------------------------------------------------------------------------


def _noted(weights: Path) -> dict[str, Any] | None:
    """What `irnext.save` noted in a file, as config.json has it; None in a file of another program."""
    with safetensors.safe_open(weights, framework="pt") as file:
        metadata = file.metadata() or {}
    if "irnext_version" not in metadata:
        return None
    return {
        "architecture": metadata["architecture"],
        "settings": stored_settings(metadata),
        "irnext_version": metadata["irnext_version"],
    }


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, with an architecture and settings; raises CheckpointError for others."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: there is no {CONFIG} in it, so it is no model of irnext")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, it should be JSON ({error})") from None
    fields = {"architecture": str, "settings": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(k), kind) for k, kind in fields.items()):
        raise CheckpointError(
            f"{path}: not of irnext: it should hold an architecture's name and its settings, an object"
        )
    return config


def _network_of(config: dict[str, Any], path: Path) -> type[RestorationModel]:
    """The class that a config.json names; raises CheckpointError for others, and for settings it lacks."""
    name = config["architecture"]
    classes = {architecture.name: architecture.build for architecture in ARCHITECTURES}
    if name not in classes:
        raise CheckpointError(
            f"{path}: the architecture is {name!r}; this version reads {', '.join(classes)}"
        )
    try:
        check_settings(config["settings"], classes[name], name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return classes[name]


def _check_agreement(folder: Path, config: dict[str, Any], same_network: bool) -> None:
    """Raise CheckpointError where config.json and the weights were written with different models."""
    noted = (_noted(folder / WEIGHTS) or config)["settings"]
    differing = [name for name, value in config["settings"].items() if noted.get(name, value) != value]
    if not same_network or differing:
        what = ", ".join(differing) or "the architecture"
        raise CheckpointError(f"{folder}: {CONFIG} and {WEIGHTS} are of two models: {what} differ")


def _download(name: str, **options: Any) -> Path:
    """The folder that holds the files of a name on the hub; `options` are those of `snapshot_download`."""
    try:
        hub = _huggingface_hub()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name}: there is no such folder, and {error}") from None
    from huggingface_hub import errors

    nowhere = f"{name}: there is no such folder, and "
    try:
        folder = hub.snapshot_download(
            name,
            allow_patterns=[CONFIG, WEIGHTS],
            library_name="irnext",
            library_version=__version__,
            **options,
        )
    except errors.HFValidationError:
        raise FileNotFoundError(nowhere + "names on the hub look like owner/model") from None
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name}: the hub has no revision {options['revision']!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            nowhere + "the hub has no such name, or a private one: check it, or give a token"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        reason = "the hub was not to be asked" if options["local_files_only"] else "the hub cannot be reached"
        raise FileNotFoundError(nowhere + f"not all of it is downloaded; {reason}") from error
    return Path(folder)


def _huggingface_hub():
    """The module `huggingface_hub`; raises ModuleNotFoundError with what to install."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise ModuleNotFoundError(
            "models on the hub need huggingface_hub: pip install 'irnext[hub]'", name=error.name
        ) from None
    return huggingface_hub
