"""Measure tile sizes on this machine's GPU and write its file: `python -m irnext.kernels.tune`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator

import torch
import triton

from . import configuration, unavailable
from .configuration import Config
from .ops import OPERATORS

SHAPES = [(1, 32, 720, 1280), (1, 64, 360, 640), (1, 128, 180, 320), (8, 32, 256, 256), (8, 64, 128, 128)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = {"rows": torch.contiguous_format, "channels": torch.channels_last}
SIZES = {9: (3, 3), 25: (5, 5)}


def calls(x: torch.Tensor, taps: int) -> dict[str, Callable]:
    """By operator, a call whose time its configuration decides."""
    kernel = torch.randn(len(x), 8, *SIZES[taps], device=x.device)
    backward = OPERATORS["dynamic_conv2d_backward"]
    found = {
        "filter": lambda: OPERATORS["dynamic_conv2d"](x, kernel),
        "filter_sums": lambda: backward(x, x, kernel, 1, "reflect", False, True, True),
        "filter_transposed": lambda: backward(x, x, kernel, 1, "reflect", True, False, False),
    }
    return found if taps != 9 else found | {"spatial_mean": lambda: OPERATORS["spatial_mean"](x)}


def candidates(operator: str, layout: str) -> Iterator[Config]:
    """Configurations worth measuring: 256 to 4096 numbers in a tile, 2 to 16 for each thread."""
    if layout == "rows":
        tiles = [(r, c, 1) for r, c in itertools.product((1, 2, 4, 8, 16), (32, 64, 128, 256, 512))]
    else:
        tiles = [(r, w, c) for r, w, c in itertools.product((1, 2, 4), (4, 8, 16, 32), (16, 32, 64))]
    programs = (1024, 2048, 4096) if operator in ("spatial_mean", "filter_sums") else (1,)
    for (rows, columns, channels), warps, count in itertools.product(tiles, (4, 8), programs):
        if 2 <= rows * columns * channels / (32 * warps) <= 16:
            yield Config(rows, columns, channels, count, warps, 1)


def fastest(call: Callable, operator: str, layout: str) -> tuple[Config, float]:
    """The best configuration of one call and its milliseconds."""
    times = {}
    for config in candidates(operator, layout):
        with configuration.override(config):
            times[config] = triton.testing.do_bench(call, warmup=3, rep=10, return_mode="median")
    best = min(times, key=times.get)
    return best, times[best]


def tune() -> dict:
    """All measured entries of this device, in the form of its file."""
    entries = []
    for shape, dtype, layout in itertools.product(SHAPES, DTYPES, LAYOUTS):
        x = torch.randn(shape, device="cuda").to(dtype).to(memory_format=LAYOUTS[layout])
        for taps in SIZES:
            for operator, call in calls(x, taps).items():
                config, milliseconds = fastest(call, operator, layout)
                what = {"operator": operator, "layout": layout, "dtype": str(dtype).removeprefix("torch.")}
                what |= {"taps": taps if operator != "spatial_mean" else 1, "shape": list(shape)}
                entries.append(what | config._asdict() | {"milliseconds": round(milliseconds, 4)})
                print(*what.values(), *config, f"{milliseconds:.4f} ms", flush=True)
    return {"device": torch.cuda.get_device_name(), "entries": entries}


def write(found: dict) -> None:
    """Write the file of a device, one entry per line."""
    path = configuration.FOLDER / configuration.file_name(found["device"])
    lines = ",\n    ".join(json.dumps(entry) for entry in found["entries"])
    device = json.dumps(found["device"])
    path.write_text(f'{{\n  "device": {device},\n  "entries": [\n    {lines}\n  ]\n}}\n')
    print(f"wrote {path}")


def main() -> int:
    if reason := unavailable():
        print(f"cannot tune: {reason}", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("cannot tune: PyTorch sees no CUDA device", file=sys.stderr)
        return 1
    write(tune())
    return 0


if __name__ == "__main__":
    sys.exit(main())
