"""Tile sizes and launch parameters: measured numbers kept as data, one JSON file per device.

`configs/<device>.json` holds a list of entries {operator, layout, dtype, taps, shape, rows, columns,
channels, programs, warps, stages}, of convolutions also {outputs}, with a shape of five numbers whose
last is their output channels. The nearest entry by the logarithm of the sizes serves a call, of
default.json where a device has none of an operator. Nothing is measured when an operator is called;
`python -m irnext.kernels.tune` writes such a file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

FOLDER = Path(__file__).parent / "configs"
DEFAULT = "default"
LEAST_SIDE = 16  # of the matrices that tensor cores multiply


class Config(NamedTuple):
    """A tile of rows x columns x channels, and how many programs share the sums of one launch.

    For a convolution, `channels` are taken at a time from its input, and a program makes `outputs`.
    """

    rows: int
    columns: int
    channels: int
    programs: int
    warps: int
    stages: int
    outputs: int = 1


_override: Config | None = None


@contextlib.contextmanager
def override(config: Config) -> Iterator[None]:
    """Use `config` for every launch over planes: for tuning and tests."""
    global _override
    before, _override = _override, config
    try:
        yield
    finally:
        _override = before


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def layout_of(x: torch.Tensor) -> str:
    """ "channels" where channels are closer together in memory than columns, else "rows"."""
    return "channels" if x.shape[1] > 1 and x.stride(1) < x.stride(3) else "rows"


def file_name(device_name: str) -> str:
    """The name of the file for a device, as `torch.cuda.get_device_name` calls it."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json"


@functools.cache
def _entries(device_name: str) -> list[dict]:
    path = FOLDER / file_name(device_name)
    return json.loads(path.read_text())["entries"] if path.exists() else []


@functools.cache
def _device_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def _distance(entry: dict, dtype: str, taps: int, shape: tuple[int, ...]) -> tuple[bool, float]:
    pairs = [(entry["taps"], taps), *zip(entry["shape"], shape, strict=True)]
    return entry["dtype"] != dtype, sum(abs(math.log(max(a, 1) / max(b, 1))) for a, b in pairs)


@functools.lru_cache(4096)
def _nearest(device_name: str, operator: str, layout: str, dtype: str, taps: int, shape: tuple) -> Config:
    for name in (device_name, DEFAULT):
        entries = [e for e in _entries(name) if (e["operator"], e["layout"]) == (operator, layout)]
        if entries:
            break
    best = min(entries, key=lambda entry: _distance(entry, dtype, taps, shape))
    return Config(**{field: best[field] for field in Config._fields if field in best})


@functools.lru_cache(4096)
def _fit(config: Config, layout: str, shape: tuple[int, ...]) -> Config:
    """The same number of elements in a tile that is no larger than the plane needs."""
    _, c, h, w = shape
    elements = config.rows * config.columns * config.channels
    channels = min(config.channels, power_of_two(c)) if layout == "channels" else 1
    columns = min(max(elements // (channels * config.rows), 1), power_of_two(w))
    rows = min(max(elements // (channels * columns), 1), power_of_two(h))
    return config._replace(rows=rows, columns=columns, channels=channels)


def _choose(operator: str, x: torch.Tensor, layout: str, taps: int, *outputs: int) -> Config:
    """The configuration in force, or the nearest of those for x's device."""
    if _override is not None:
        return _override
    name = _device_name(x.device.index) if x.device.type == "cuda" else DEFAULT
    dtype = str(x.dtype).removeprefix("torch.")
    return _nearest(name, operator, layout, dtype, taps, (*x.shape, *outputs))


def choose(operator: str, x: torch.Tensor, taps: int = 1) -> Config:
    """The configuration of an operator for x (N, C, H, W) on x's device."""
    layout = layout_of(x)
    return _fit(_choose(operator, x, layout, taps), layout, tuple(x.shape))


def choose_convolution(x: torch.Tensor, taps: int, outputs: int) -> Config:
    """The configuration of a convolution of x (N, C, H, W); no side of a matrix is below LEAST_SIDE."""
    config = _choose("convolution", x, "channels", taps, outputs)
    sides = {"columns": x.shape[3], "channels": x.shape[1], "outputs": outputs}
    fitting = {k: max(min(getattr(config, k), power_of_two(n)), LEAST_SIDE) for k, n in sides.items()}
    return config._replace(**fitting)
