"""Measure tile sizes on this machine's GPU and write its file: `python -m irnext.kernels.tune`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
import triton

from . import configuration, unavailable
from .configuration import Config, power_of_two
from .convolution import conv2d_bias_act
from .ops import OPERATORS

SHAPES = [(1, 32, 720, 1280), (1, 64, 360, 640), (1, 128, 180, 320), (8, 32, 256, 256), (8, 64, 128, 128)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = {"rows": torch.contiguous_format, "channels": torch.channels_last}
SIZES = {9: (3, 3), 25: (5, 5)}
RATES = (8, 4, 2)  # of the pyramids
WITHOUT_TAPS = ("spatial_mean", "pool_pyramid", "pool", "merge_pyramid")
# Of convolutions: samples, input channels, rows, columns, output channels; and the side of the filter.
CONVOLUTIONS = [
    *(((1, c, 720 * 32 // c, 1280 * 32 // c, k), 3) for c in (32, 64, 128) for k in (c, 3)),
    *(((1, 3, 720 * 32 // k, 1280 * 32 // k, k), 3) for k in (32, 64, 128)),
    *(((1, c, 720 * 32 // c, 1280 * 32 // c, c), 1) for c in (32, 64)),
    *(((8, c, 8192 // c, 8192 // c, c), 3) for c in (32, 64, 128)),
]


def calls(x: torch.Tensor, taps: int) -> dict[str, Callable]:
    """By operator, a call whose time its configuration decides."""
    kernel = torch.randn(len(x), 8, *SIZES[taps], device=x.device)
    backward = OPERATORS["dynamic_conv2d_backward"]
    found = {
        "filter": lambda: OPERATORS["dynamic_conv2d"](x, kernel),
        "filter_sums": lambda: backward(x, x, kernel, 1, "reflect", False, True, True),
        "filter_transposed": lambda: backward(x, x, kernel, 1, "reflect", True, False, False),
    }
    if taps != 9:
        return found
    pools = OPERATORS["pool_pyramid"](x, RATES)
    return found | {
        "spatial_mean": lambda: OPERATORS["spatial_mean"](x),
        "pool_pyramid": lambda: OPERATORS["pool_pyramid"](x, RATES),
        "pool": lambda: OPERATORS["pool_pyramid_backward"](pools, RATES, x.shape[2:]),
        "merge_pyramid": lambda: OPERATORS["merge_pyramid"](x, pools),
    }


def candidates(operator: str, layout: str) -> Iterator[Config]:
    """Configurations worth measuring, with 1 to 16 results, or what is read for them, for each thread."""
    if layout == "rows":
        tiles = [(r, c, 1) for r, c in itertools.product((1, 2, 4, 8, 16, 32), (32, 64, 128, 256, 512))]
    else:
        tiles = [(r, w, c) for r, w, c in itertools.product((1, 2, 4, 8), (4, 8, 16, 32, 64), (16, 32, 64))]
    programs = (1024, 2048, 4096) if operator in ("spatial_mean", "filter_sums") else (1,)
    for (rows, columns, channels), warps, count in itertools.product(tiles, (2, 4, 8), programs):
        threads = 32 * warps
        if operator == "pool_pyramid":  # a thread reads the rows of a window one after the other
            fits = rows >= RATES[0] and 1 <= rows * columns * channels / (RATES[0] * threads) <= 64
        elif operator == "merge_pyramid":  # and goes down the rows of its tile
            fits = rows >= 4 and 1 <= columns * channels / threads <= 8
        else:
            fits = 2 <= rows * columns * channels / threads <= 16
        if fits:
            yield Config(rows, columns, channels, count, warps, 1)


def convolution_candidates(shape: tuple[int, ...]) -> Iterator[Config]:
    """Configurations worth measuring for a convolution: 32 to 128 sums for each thread."""
    _, c, _, _, k = shape
    sizes = itertools.product((1, 2, 4), (32, 64, 128), (16, 32, 64), (16, 32, 64, 128), (4, 8), (2, 3))
    for rows, columns, channels, outputs, warps, stages in sizes:
        wasteful = channels > max(c, 16) or outputs > max(power_of_two(k), 16)
        if not wasteful and 32 <= rows * columns * outputs / (32 * warps) <= 128:
            yield Config(rows, columns, channels, 1, warps, stages, outputs)


def fastest(call: Callable, configs: Iterable[Config]) -> tuple[Config, float]:
    """The best of the configurations for one call, and its milliseconds."""
    times = {}
    for config in configs:
        with configuration.override(config), contextlib.suppress(triton.runtime.errors.OutOfResources):
            times[config] = triton.testing.do_bench(call, warmup=3, rep=10, return_mode="median")
    best = min(times, key=times.get)
    return best, times[best]


def measured(what: dict, call: Callable, configs: Iterable[Config]) -> dict:
    """The entry of one call, which is printed as well."""
    config, milliseconds = fastest(call, configs)
    print(*what.values(), *config, f"{milliseconds:.4f} ms", flush=True)
    return what | config._asdict() | {"milliseconds": round(milliseconds, 4)}


def tune_planes() -> Iterator[dict]:
    """The entries of all operators but the convolution."""
    for shape, dtype, layout in itertools.product(SHAPES, DTYPES, LAYOUTS):
        x = torch.randn(shape, device="cuda").to(dtype).to(memory_format=LAYOUTS[layout])
        for taps in SIZES:
            for operator, call in calls(x, taps).items():
                what = {"operator": operator, "layout": layout, "dtype": str(dtype).removeprefix("torch.")}
                what |= {"taps": 1 if operator in WITHOUT_TAPS else taps, "shape": list(shape)}
                yield measured(what, call, candidates(operator, layout))


def tune_convolutions() -> Iterator[dict]:
    """The entries of the convolution."""
    for (shape, side), dtype in itertools.product(CONVOLUTIONS, DTYPES):
        x = torch.randn(shape[:4], device="cuda").to(dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(shape[4], shape[1], side, side, device="cuda").to(dtype)
        weight, bias = weight.to(memory_format=torch.channels_last), torch.zeros_like(weight[:, 0, 0, 0])
        what = {"operator": "convolution", "layout": "channels", "dtype": str(dtype).removeprefix("torch.")}
        what |= {"taps": side * side, "shape": list(shape)}
        call = functools.partial(conv2d_bias_act, x, weight, bias, "gelu")
        yield measured(what, call, convolution_candidates(shape))


def tune() -> dict:
    """All measured entries of this device, in the form of its file."""
    return {"device": torch.cuda.get_device_name(), "entries": [*tune_planes(), *tune_convolutions()]}


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
