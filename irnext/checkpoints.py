"""Checkpoints: reads published and our own files, writes either, finds the settings from the weights.

A file's entries are first renamed to our names; everything after that knows one layout only. All of
them are known to fit before the model is built.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .architecture import Architecture, RestorationModel, State, check_settings
from .devices import check_device
from .files import atomic_file
from .models import ARCHITECTURES
from .version import __version__

LAYOUTS = ("irnext", "official")
PICKLES = (".pkl", ".pth", ".pt", ".ckpt")

# Where training programs keep the weights inside a checkpoint, and what wrappers put before names.
_CONTAINERS = ("model", "state_dict", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")

# Settings that count modules, each of which has weights.
_COUNTS = {"blocks", "num_res", "num_cab", "depths", "num_blocks", "num_refinement_blocks"}

_LISTED = 4  # entries of each kind that an error message names


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or does not fit the model; the message says which."""


def load(
    path: str | os.PathLike,
    low_pass: str | None = None,
    device: str | torch.device = "cpu",
    **settings,
) -> RestorationModel:
    """Read a checkpoint into a model in eval mode on `device`.

    Reads safetensors, and pickles (.pkl, .pth, .ckpt, of any PyTorch version) through the loader that
    unpickles tensors only: raw state dicts or those under 'model', 'state_dict' or 'params', with
    or without `module.` or `model.` prefixes, in the published names or ours. The random state is
    not touched.

    Settings come from the weights, the metadata that `save` writes, and the arguments; where these
    disagree a later one wins. What weights cannot tell, and what is then assumed:

    - `low_pass`: "global" for weights with the published gains (the published motion-deblurring
      code is "local"; its files do not say so). "exact" is known by its own parameter, and neither
      kind of weights has a meaning in the other.
    - `pool_rates`: (8, 4, 2) for three branches, (4, 2) for two, (2,) for one. Convolutional
      pooling tells its rates.
    - `pooling`: "average" unless there are weights for "convolution" ("max" has none either).
    - `groups` and `kernel_size`: weights tell groups * kernel_size**2 only. A kernel of 3 if groups
      then divide the width, else 5, 7, ..., else 1: certain where the width is a power of two. With
      one of the two given, the other follows.
    - `activation`: "tanh".
    - GRL's `window_size` and `stripe_size`: those published for networks with so many channels and such
      a head, where a file has no tables for them.
    - Restormer's `ffn_expansion_factor`: the shortest that gives the networks' channels.

    float16 and bfloat16 weights become float32; a file with float64 weights gives a float64 model.

    Raises FileNotFoundError where there is no file, CheckpointError (a ValueError) for everything
    that is wrong with one, and ValueError for a device that cannot be used.
    """
    check_device(device)
    state, metadata = _read(Path(path))
    if low_pass is not None:
        settings["low_pass"] = low_pass
    try:
        return build(find(state, metadata, settings), device)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Found:
    """The model that weights are of, before it is made.

    Attributes:
        architecture: its architecture.
        state: the weights, by their names in the file.
        names: our name of each entry -> its name in `state`.
        model: the model with all of its settings, on the meta device.
    """

    architecture: Architecture
    state: State
    names: dict[str, str]
    model: RestorationModel


def find(
    state: State, metadata: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None
) -> Found:
    """What `load` makes of a file's weights and metadata, and of its `settings`.

    Raises ValueError for weights of no architecture, and for settings that they cannot have.
    """
    metadata = metadata or {}
    architecture = recognise(state, metadata)
    shapes = {architecture.our_name(name): tensor.shape for name, tensor in state.items()}
    state = architecture.tidy(state)
    names = _our_names(state, architecture)
    known = {**stored_settings(metadata), **(settings or {})}
    _check_settings(known, architecture, len(state))
    all_settings = architecture.settings(shapes, known)
    with torch.device("meta"):  # takes no memory, however wide it is
        model = architecture.build(**all_settings)
    return Found(architecture, state, names, model)


def build(found: Found, device: str | torch.device = "cpu") -> RestorationModel:
    """The model with its weights, in eval mode on `device`; raises ValueError where they do not fit it."""
    _check_entries(found.state, found.names, found.model, found.architecture.name)
    with torch.random.fork_rng(devices=[]):
        model = found.architecture.build(**found.model.settings)
    wide = any(tensor.dtype == torch.float64 for tensor in found.state.values())
    model.to(device, torch.float64 if wide else torch.float32)
    model.load_state_dict({ours: found.state[name] for ours, name in found.names.items()}, strict=True)
    return model.eval()


def assumption(path: str | os.PathLike, model: RestorationModel) -> str | None:
    """What `load`, given no settings, could only assume for the model it made of this file, in a sentence."""
    path = Path(path)
    if _is_safetensors(path) and stored_settings(_read_safetensors(path)[1]):
        return None
    return _architecture_of(model).assumed(model.settings)


def save(model: RestorationModel, path: str | os.PathLike) -> None:
    """Write `model` to a safetensors file: our names, the settings as metadata, its own dtypes.

    A window given to `fix_local_window` is not among the settings and is not kept. The file appears
    whole or not at all. Wrappers (`torch.compile`, `DistributedDataParallel`) are
    taken off first. Raises ValueError for the suffix of a pickle (`convert` writes those) and
    TypeError for a model of another kind.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path}: save writes safetensors; end the name in .safetensors, or use convert")
    model = _unwrapped(model)
    _write_safetensors(path, model.state_dict(), model)


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    layout: str | None = None,
    low_pass: str | None = None,
    **settings,
) -> RestorationModel:
    """Read a checkpoint of any accepted kind and write it anew; returns the model it holds.

    The target's suffix decides. `.safetensors` has the settings as metadata, and our names
    (`layout` "irnext", the default) or the published ones ("official"). `.pkl`, `.pth` and `.pt`
    are for users of the published code: {'model': weights under their published names}, without
    settings, so `load` assumes again what weights cannot tell. Values are kept bit for bit, except
    that float16 and bfloat16 become float32. `low_pass` and `settings` are those of `load`.

    Raises as `load` does, and ValueError for a target that cannot hold what was asked.
    """
    target = Path(target)
    is_pickle = target.suffix.lower() in PICKLES
    if not is_pickle and target.suffix.lower() != ".safetensors":
        raise ValueError(f"{target}: end the name in .safetensors, or in .pkl or .pth for the published code")
    layout = layout or ("official" if is_pickle else "irnext")
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if is_pickle and layout != "official":
        raise ValueError(f"{target}: layout 'irnext' is written to .safetensors only")

    model = load(source, low_pass, **settings)
    if layout == "official" and _is_exact(model.settings):
        raise ValueError(
            f"{source}: weights of low_pass='exact' have no published layout, "
            "since the published code lacks its parameter (w of Eq. 6)"
        )
    state = model.official_state_dict() if layout == "official" else model.state_dict()
    if is_pickle:
        with atomic_file(target) as file:
            torch.save({"model": _portable(state)}, file)
    else:
        _write_safetensors(target, state, model)
    return model


def _is_exact(settings: dict[str, Any]) -> bool:
    return settings.get("branch") == "lam" and settings.get("low_pass") == "exact"


# ---- writing -------------------------------------------------------------------------------------


def _portable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dense copies on the CPU that share no memory, which both file formats need."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def _write_safetensors(path: Path, state: dict[str, Tensor], model: nn.Module) -> None:
    metadata = {
        "format": "pt",
        "architecture": _architecture_of(model).name,
        "irnext_version": __version__,
        "settings": json.dumps(model.settings),
    }
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(_portable(state), metadata))


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what compiles or distributes it."""
    while (inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None)) is not None:
        model = inner
    return model


# ---- reading -------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under its own names without wrappers' prefixes, and its metadata."""
    if path.is_dir():
        raise CheckpointError(f"{path}: this is a folder, not a checkpoint")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        return state_dict(_read_pickle(path)), {}
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a truncated one ({error})") from None
    if not state:
        raise CheckpointError(f"{path}: the file holds no weights")
    return _without_prefixes(state), metadata


def _is_safetensors(path: Path) -> bool:
    """Such a file is the length of its header in 8 bytes, then the header, in JSON."""
    return path.suffix.lower() == ".safetensors" or _start(path)[8:] == b"{"


def _start(path: Path) -> bytes:
    """The first 9 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(9)


def _read_pickle(path: Path) -> object:
    """What a PyTorch file holds; nothing but tensors and plain containers is unpickled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on files of other programs; the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in the unpickler with any kind of error
        is_pickle = _start(path).startswith((b"PK", b"\x80"))  # a zip archive, as of today, or a bare pickle
        if not (isinstance(error, pickle.UnpicklingError) and is_pickle):
            raise ValueError("not a checkpoint, or a truncated one") from None
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"refused: the file holds code or objects{what} beside tensors, and unpickling those could run "
            "anything; where you trust it, write only the weights anew with "
            "torch.save({'model': model.state_dict()}, ...) in the program it comes from"
        ) from None


def state_dict(content: object) -> State:
    """The state dict in what a file held, without wrappers' prefixes; raises ValueError if there is none."""
    while isinstance(content, dict):
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise ValueError(f"the file holds a {type(content).__name__}, not a state dict")
    if not content:
        raise ValueError("the file holds no weights: its state dict is empty")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"not a state dict: entry {name!r} is of type {type(value).__name__}, not a tensor "
                f"(weights are looked for at the top or under {', '.join(map(repr, _CONTAINERS))})"
            )
    return _without_prefixes(content)


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes that all of its names share because a wrapper was saved."""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def stored_settings(metadata: dict[str, str]) -> dict[str, Any]:
    """The settings `save` wrote; none for files of other programs."""
    if "irnext_version" not in metadata or "settings" not in metadata:
        return {}
    try:
        settings = json.loads(metadata["settings"])
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError("the settings in the metadata are damaged: they should be a JSON object")
    return settings


# ---- what a file holds ---------------------------------------------------------------------------


def recognise(state: State, metadata: Mapping[str, str]) -> Architecture:
    """The architecture a file names, or else most of its landmarks show; raises ValueError for none."""
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    if "irnext_version" in metadata:
        named = metadata.get("architecture")
        for architecture in ARCHITECTURES:
            if architecture.name == named:
                return architecture
        raise ValueError(f"the file is of architecture {named!r}; this version reads {known}")
    shares = {architecture: _landmarks_found(architecture, state) for architecture in ARCHITECTURES}
    # Of two that fit alike, one has all that the other has, and more.
    likeliest = max(shares, key=lambda each: (shares[each], len(each.landmarks)))
    if shares[likeliest] > 0.5:
        return likeliest
    if not shares[likeliest]:
        raise ValueError(
            f"the weights are of another model: {_some('unexpected', state)}; this version reads {known}"
        )
    raise ValueError(
        f"the weights are of another model: {_some('unexpected', state)}; "
        f"{_some('missing', _landmarks_lacking(likeliest, state))} of what every {likeliest.name} has"
    )


def _landmarks_found(architecture: Architecture, state: dict[str, Tensor]) -> float:
    """The share of an architecture's landmarks that are among the entries."""
    return 1 - len(_landmarks_lacking(architecture, state)) / len(architecture.landmarks)


def _landmarks_lacking(architecture: Architecture, state: dict[str, Tensor]) -> list[str]:
    """An architecture's landmarks that are not among the entries."""
    ours = {architecture.our_name(name) for name in state}
    return [
        name
        for name in architecture.landmarks
        if name not in ours and not ("*" in name and fnmatch.filter(ours, name))
    ]


def _architecture_of(model: nn.Module) -> Architecture:
    for architecture in ARCHITECTURES:
        if type(model) is architecture.build:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise TypeError(f"cannot save a {type(model).__name__}: the models with a layout are {known}")


def _our_names(state: dict[str, Tensor], architecture: Architecture) -> dict[str, str]:
    """Our name of each entry -> its name in the file, in the file's order."""
    names: dict[str, str] = {}
    for name in state:
        ours = architecture.our_name(name)
        if ours in names:
            raise ValueError(f"one entry stands twice, as {names[ours]} and as {name}")
        names[ours] = name
    return names


def _check_settings(settings: dict[str, Any], architecture: Architecture, entries: int) -> None:
    """Raise ValueError for settings that the model does not have, or of another type, or of more modules
    than the weights have entries: a model of a million blocks would take long to make."""
    try:
        check_settings(settings, architecture.build, architecture.name)
    except ValueError as error:
        raise ValueError(f"the weights are of {architecture.name}: {error}") from None
    for name in _COUNTS & settings.keys():
        value = settings[name]
        counts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(count, int) and count > entries for count in counts):
            raise ValueError(f"the setting {name} is {value}: the weights have {entries} entries in all")


def _check_entries(
    state: dict[str, Tensor], names: dict[str, str], model: nn.Module, architecture: str
) -> None:
    """Raise ValueError with every way in which the file's entries are not the model's."""
    expected = model.state_dict()
    published = any(ours != name for ours, name in names.items())
    missing = [model.official_name(name) if published else name for name in expected if name not in names]
    unexpected = [name for ours, name in names.items() if ours not in expected]
    shared = [(name, state[name], expected[ours]) for ours, name in names.items() if ours in expected]
    misshapen = [
        f"{name} is {tuple(found.shape)}, should be {tuple(entry.shape)}"
        for name, found, entry in shared
        if found.shape != entry.shape
    ]
    mistyped = [f"{name} is {found.dtype}" for name, found, entry in shared if not _type_fits(found, entry)]
    faults = [
        _some(kind, entries)
        for kind, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of a type that is no weight", mistyped),
        )
        if entries
    ]
    if faults:
        defaults = inspect.signature(type(model)).parameters
        chosen = [f"{k}={v!r}" for k, v in model.settings.items() if v != defaults[k].default]
        fit = f"{architecture} with {', '.join(chosen)}" if chosen else f"{architecture} as it is by default"
        raise ValueError(f"the weights do not fit {fit}: {'; '.join(faults)}")


def _type_fits(found: Tensor, entry: Tensor) -> bool:
    """Weights are real floating numbers, counters any integers."""
    is_integer = not (found.is_floating_point() or found.is_complex() or found.is_quantized)
    return found.is_floating_point() if entry.is_floating_point() else is_integer


def _some(kind: str, entries: Iterable[str]) -> str:
    """How many entries of a kind there are, and the first few by name."""
    entries = list(entries)
    more = ", ..." if len(entries) > _LISTED else ""
    return f"{len(entries)} {kind} ({', '.join(entries[:_LISTED])}{more})"
