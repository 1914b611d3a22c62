"""How IRNeXt's weights tell its settings, under its published names or ours."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import Any

import torch

from ..architecture import Architecture, majority
from ..blocks import ConvS, LocalAttention, MultiScaleModule, ResidualBlock
from ..model import IRNeXt
from ..published import PublishedNames

_LAYER = r"(?:en|de)coder\.\d+\.layers\.\d+\."

# Where the modules stand that have published names, outermost first, in names renamed so far.
PLACES = (
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


def our_name(name: str, places: tuple[tuple[type[PublishedNames], re.Pattern], ...] = PLACES) -> str:
    """Our name of an entry of a model whose modules stand in these places."""
    for module, place in places:
        if found := place.match(name):
            head, tail = name[: found.end()], name[found.end() :]
            for published, ours in module.published_names:
                if tail.startswith(published):
                    name = head + ours + tail[len(published) :]
                    break
    return name


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
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
            if entry.endswith(".project.weight") and len(shape) == 4 and shape[0]:
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
    settings = {name: majority(values) for name, values in shown.items() if values}
    if settings.get("branch") == "lam":
        _check_low_pass(settings["low_pass"], known.get("low_pass", settings["low_pass"]))
    width = known.get("width", settings.get("width"))
    if projections and width is not None:
        settings["groups"], settings["kernel_size"] = _groups_and_kernel(
            majority(projections), width, known.get("groups"), known.get("kernel_size")
        )
    return {**settings, **known}


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


def _assumed(settings: dict[str, Any]) -> str | None:
    filters = settings["branch"] == "lam" and settings["msm_per_block"] > 0
    if not filters or settings["low_pass"] == "exact":  # the weights show that
        return None
    return (
        f"which low-pass filter it was trained with: {settings['low_pass']} assumed, as for published "
        "dehazing; give --low-pass local for published motion deblurring"
    )


LANDMARKS = (
    "stem.weight",
    "head.weight",
    "downs.0.weight",
    "ups.0.weight",
    "skips.0.weight",
    "side_heads.0.weight",
    "fuse_half.weight",
    "features_half.convs.0.weight",
    # MIMO-UNet has all but these:
    "features_half.norm.weight",
    "features_quarter.norm.weight",
)

ARCHITECTURE = Architecture(
    name="IRNeXt",
    build=IRNeXt,
    our_name=our_name,
    landmarks=LANDMARKS,
    settings=_settings,
    assumed=_assumed,
)
