"""Checkpoints: reads published and our own files, writes either, finds the settings from the weights.

A file's entries are first renamed to our names; everything after that knows one layout only. All of
them are known to fit before the model is built.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .blocks import ConvS, LocalAttention, MultiScaleModule, ResidualBlock
from .devices import check_device
from .files import atomic_file
from .model import IRNeXt
from .version import __version__

LAYOUTS = ("irnext", "official")
PICKLES = (".pkl", ".pth", ".pt")

# Where training programs keep the weights inside a checkpoint, and what wrappers put before names.
_CONTAINERS = ("model", "state_dict", "params")
_PREFIXES = ("module.", "_orig_mod.")

_LISTED = 4  # entries of each kind that an error message names


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or does not fit the model; the message says which."""


def load(
    path: str | os.PathLike,
    low_pass: str | None = None,
    device: str | torch.device = "cpu",
    **settings,
) -> IRNeXt:
    """Read a checkpoint into a model in eval mode on `device`.

    Reads safetensors, and pickles (.pkl, .pth, of any PyTorch version) through the loader that
    unpickles tensors only: raw state dicts or those under 'model', 'state_dict' or 'params', with
    or without `module.` prefixes, in the published names or ours. The random state is not touched.

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

    float16 and bfloat16 weights become float32; a file with float64 weights gives a float64 model.

    Raises FileNotFoundError where there is no file, CheckpointError (a ValueError) for everything
    that is wrong with one, and ValueError for a device that cannot be used.
    """
    check_device(device)
    state, metadata = _read(Path(path))
    try:
        architecture = _recognise(state, metadata)
        names = _our_names(state, architecture)
        if low_pass is not None:
            settings["low_pass"] = low_pass
        known = {**_stored_settings(metadata), **settings}
        _check_settings(known, architecture)
        shapes = {ours: state[name].shape for ours, name in names.items()}
        settings = architecture.settings(shapes, known)
        with torch.device("meta"):  # takes no memory, whatever the settings say
            expected = architecture.build(**settings)
        _check_entries(state, names, expected, architecture.name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with torch.random.fork_rng(devices=[]):
        model = architecture.build(**settings)
    wide = any(tensor.dtype == torch.float64 for tensor in state.values())
    model.to(device, torch.float64 if wide else torch.float32)
    model.load_state_dict({ours: state[name] for ours, name in names.items()}, strict=True)
    return model.eval()


def low_pass_is_assumed(path: str | os.PathLike, model: IRNeXt) -> bool:
    """Whether `load`, not given `low_pass`, could only assume it for the model it made of this file."""
    settings = model.settings
    filters = settings["branch"] == "lam" and settings["msm_per_block"] > 0
    if not filters or settings["low_pass"] == "exact":  # the weights show that
        return False
    path = Path(path)
    return not (_is_safetensors(path) and "low_pass" in _stored_settings(_read_safetensors(path)[1]))


def save(model: IRNeXt, path: str | os.PathLike) -> None:
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
) -> IRNeXt:
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
    if layout == "official" and model.settings["branch"] == "lam" and model.settings["low_pass"] == "exact":
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
        return _state_dict(_read_pickle(path)), {}
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


def _state_dict(content: object) -> dict[str, Tensor]:
    """The state dict in what a file held."""
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


def _stored_settings(metadata: dict[str, str]) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Architecture:
    """What `load` must know of a model to find it in a file.

    `build` makes the model from its settings; `our_name` renames a published entry and leaves ours;
    `landmarks` are entries that the model has with any settings; `settings` gives them all from the
    shapes of the entries and the settings already known, and raises ValueError where the two cannot
    go together.
    """

    name: str
    build: Callable[..., nn.Module]
    our_name: Callable[[str], str]
    landmarks: tuple[str, ...]
    settings: Callable[[dict[str, torch.Size], dict[str, Any]], dict[str, Any]]


def _recognise(state: dict[str, Tensor], metadata: dict[str, str]) -> Architecture:
    """The architecture a file names, or the one that most of its landmarks show."""
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    if "irnext_version" in metadata:
        named = metadata.get("architecture")
        for architecture in ARCHITECTURES:
            if architecture.name == named:
                return architecture
        raise ValueError(f"the file is of architecture {named!r}; this version reads {known}")
    for architecture in ARCHITECTURES:
        ours = {architecture.our_name(name) for name in state}
        if 2 * len(ours.intersection(architecture.landmarks)) > len(architecture.landmarks):
            return architecture
    lacking = "; ".join(
        f"{_some('missing', architecture.landmarks)} of what every {architecture.name} has"
        for architecture in ARCHITECTURES
    )
    raise ValueError(f"the weights are of another model: {_some('unexpected', state)}; {lacking}")


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


def _check_settings(settings: dict[str, Any], architecture: Architecture) -> None:
    """Raise ValueError for settings that the model does not have, or of another type."""
    allowed = inspect.signature(architecture.build).parameters
    if unknown := [name for name in settings if name not in allowed]:
        raise ValueError(
            f"unknown settings {', '.join(unknown)}: {architecture.name} has {', '.join(allowed)}"
        )
    for name, value in settings.items():
        wanted = type(allowed[name].default)
        if not isinstance(value, (tuple, list) if wanted is tuple else wanted):
            raise ValueError(f"the setting {name} is {value!r}: it must be of type {wanted.__name__}")


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


# ---- IRNeXt --------------------------------------------------------------------------------------

_LAYER = r"(?:en|de)coder\.\d+\.layers\.\d+\."

# Where the modules stand that have published names, outermost first, in names renamed so far.
_IRNEXT_PLACES = (
    (IRNeXt, re.compile("")),
    (ResidualBlock, re.compile(_LAYER)),
    (MultiScaleModule, re.compile(_LAYER + r"msm\.")),
    (LocalAttention, re.compile(_LAYER + r"msm\.attentions\.\d+\.")),
    (ConvS, re.compile(r"features_(?:quarter|half)\.")),
)

# The parameters of the filter modulation: published, and of Eq. 6.
_GAINS = ("low_gain", "high_gain", "inner_gain")
_EXACT_WEIGHT = "high_pass_weight"

# Channels of each stage, in units of the width.
_STAGE_WIDTHS = {
    "encoder.0": 1,
    "encoder.1": 2,
    "encoder.2": 4,
    "decoder.0": 4,
    "decoder.1": 2,
    "decoder.2": 1,
}


def _our_irnext_name(name: str) -> str:
    for module, place in _IRNEXT_PLACES:
        if found := place.match(name):
            head, tail = name[: found.end()], name[found.end() :]
            for published, ours in module.published_names:
                if tail.startswith(published):
                    name = head + ours + tail[len(published) :]
                    break
    return name


def _irnext_settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that the entries show, and those `known`, which go first.

    Each is what most of the entries show, so that a damaged one does not hide behind settings that
    fit it and nothing else.
    """
    layers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    widths, projections = [], []
    for name, shape in shapes.items():
        found = re.fullmatch(r"((?:en|de)coder\.[012])\.layers\.(\d+)\.(msm\.)?(.+)", name)
        if not found:
            continue
        stage, layer, in_module, entry = found.groups()
        module = layers[stage][int(layer)]
        if in_module:
            module.add(entry)
            if entry.endswith(".project.weight") and len(shape) == 4:
                projections.append(shape[0])
        elif entry in ("conv1.weight", "conv2.weight") and len(shape) == 4:
            widths.append(shape[0] // _STAGE_WIDTHS[stage])

    modules = [entries for stage in layers.values() for entries in stage.values() if entries]
    shown = {
        "blocks": [len(stage) for stage in layers.values()],
        "width": widths,
        "pool_rates": [_pool_rates(entries) for entries in modules],
        "pooling": [_pooling(entries) for entries in modules],
        "branch": [_branch(entries) for entries in modules],
        "msm_per_block": [sum(map(bool, stage.values())) for stage in layers.values()],
        "low_pass": [_low_pass(entries) for entries in modules if _branch(entries) == "lam"],
    }
    settings = {name: _majority(values) for name, values in shown.items() if values}
    if settings.get("branch") == "lam":
        _check_low_pass(settings["low_pass"], known.get("low_pass", settings["low_pass"]))
    if projections:
        width = known.get("width", settings.get("width"))
        settings["groups"], settings["kernel_size"] = _groups_and_kernel(
            _majority(projections), width, known.get("groups"), known.get("kernel_size")
        )
    return {**settings, **known}


def _majority(values: Iterable):
    return Counter(values).most_common(1)[0][0]


def _pool_rates(entries: set[str]) -> tuple[int, ...]:
    """The rates of one multi-scale module: halvings of convolutional pooling, else by their number."""
    halvings = Counter(entry.split(".")[1] for entry in entries if entry.startswith("pools."))
    if halvings:
        return tuple(2**count for _, count in sorted(halvings.items()))
    branches = {entry.split(".")[1] for entry in entries if entry.startswith("convs.")}
    return tuple(2**power for power in range(len(branches), 0, -1))


def _pooling(entries: set[str]) -> str:
    return "convolution" if any(entry.startswith("pools.") for entry in entries) else "average"


def _branch(entries: set[str]) -> str:
    attention = {entry.rsplit(".", 1)[-1] for entry in entries if entry.startswith("attentions.")}
    if not attention:
        return "conv"
    return "lam-no-fm" if attention.isdisjoint((*_GAINS, _EXACT_WEIGHT)) else "lam"


def _low_pass(entries: set[str]) -> str:
    return "exact" if any(entry.endswith(_EXACT_WEIGHT) for entry in entries) else "global"


def _check_low_pass(found: str, wanted: str) -> None:
    """Raise ValueError where weights of one kind of filter modulation are wanted in the other."""
    if wanted == "exact" and found != "exact":
        raise ValueError(
            "low_pass='exact' cannot take these weights: their gains lamb_l, lamb_h and inside_all (ours: "
            "low_gain, high_gain, inner_gain) have no place in Eq. 4-7; use low_pass='global' or 'local'"
        )
    if found == "exact" and wanted != "exact":
        raise ValueError(
            f"low_pass={wanted!r} cannot take these weights: they were trained with low_pass='exact' and "
            "hold its parameter (w of Eq. 6, high_pass_weight) instead of gains; leave low_pass out"
        )


def _groups_and_kernel(
    outputs: int, width: int, groups: int | None, kernel_size: int | None
) -> tuple[int, int]:
    """Groups and kernel side whose filters have `outputs` taps in all; see `load` for the choice."""
    if kernel_size:
        return outputs // kernel_size**2, kernel_size
    sides = (3, *range(5, math.isqrt(outputs) + 1, 2), 1)
    choices = [
        (outputs // side**2, side)
        for side in sides
        if outputs % side**2 == 0 and width % (outputs // side**2) == 0
    ]
    if groups is None or (groups < 1 or width % groups):
        # Where no choice fits, the model's own checks say so.
        return choices[0] if choices else (outputs // 9, 3)
    for choice in choices:
        if choice[0] == groups:
            return choice
    raise ValueError(
        f"groups is {groups}, which does not fit filters of {outputs} taps in all, groups x kernel_size x "
        f"kernel_size: {' or '.join(str(choice[0]) for choice in choices) or 'no number'} would"
    )


ARCHITECTURES = (
    Architecture(
        name="IRNeXt",
        build=IRNeXt,
        our_name=_our_irnext_name,
        landmarks=(
            "stem.weight",
            "head.weight",
            "downs.0.weight",
            "ups.0.weight",
            "skips.0.weight",
            "side_heads.0.weight",
            "fuse_half.weight",
            "features_half.convs.0.weight",
        ),
        settings=_irnext_settings,
    ),
)
