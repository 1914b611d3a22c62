"""The least time a network can take on a machine, layer by layer: `layers`, `Rates` and `floor`.

A layer reads its inputs and weights once and writes its result once, with activation and sum fused
in, and concatenations cost nothing, since convolutions can write into them. It takes at least the
longer of what its bytes take at the bandwidth of a copy of as many bytes (small ones stay in caches)
and what its multiply-accumulates take at the best rate of a matrix product or convolution. The floor
of the network is the sum over its layers.

Two things can go below it: Winograd's algorithm, which needs fewer products than are counted, and
layers fused with one another, whose tensors between are never written.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import irnext
from irnext.blocks import LocalAttention, MultiScaleModule

from . import device, harness
from .account import ATTENTION, CONVOLUTIONS, NORMALISATION, PYRAMIDS

COPY_SIZES = tuple(2**power for power in range(16, 29, 2))  # bytes copied
MATRIX_SIDES = {"cpu": (1024,), "cuda": (4096, 8192)}
SAMPLES = 5  # the best of them: what the machine can do when nothing else runs


@dataclass(frozen=True)
class Layer:
    """A layer with what it moves and computes at the least.

    Attributes:
        kind: of `benchmarks.account`.
        name: what it does, on which plane.
        numbers: elements of all tensors it reads and writes.
        macs: multiply-accumulates.
    """

    kind: str
    name: str
    numbers: int
    macs: int = 0


# ---- the layers of a network -----------------------------------------------------------------------


def _plane(x: Tensor) -> str:
    return f"{x.shape[3]} x {x.shape[2]}"


def _numbers(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor is not None)


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, y: Tensor, residual: Tensor | None):
    transposed = isinstance(module, nn.ConvTranspose2d)
    # The weight is (outputs, inputs / groups, ...), or (inputs, outputs / groups, ...) transposed.
    macs = (x if transposed else y).numel() * module.weight[0].numel()
    rows, columns = module.kernel_size
    name = f"{rows} x {columns} {'transposed ' if transposed else ''}convolution, {module.in_channels} to "
    name += f"{module.out_channels}, stride {module.stride[0]}{'' if residual is None else ', and a sum'}"
    yield Layer(
        CONVOLUTIONS, f"{name}, at {_plane(x)}", _numbers(x, y, residual, module.weight, module.bias), macs
    )


def _attention(module: LocalAttention, x: Tensor, y: Tensor):
    taps, outputs = module.kernel_size**2, module.project.out_channels
    macs = len(x) * module.channels * outputs + y.numel() * taps
    parameters = sum(parameter.numel() for parameter in module.parameters())
    yield Layer(ATTENTION, f"attention, {module.channels} at {_plane(x)}", 2 * x.numel() + parameters, macs)


def _pyramids(module: MultiScaleModule, x: Tensor):
    """The pools, the sums of a branch with the one before, and the merge of all with x."""
    scales = [x.numel() // rate**2 for rate in module.pool_rates]
    at = f"{x.shape[1]} at {_plane(x)}"
    yield Layer(PYRAMIDS, f"pools, {at}", x.numel() + sum(scales))
    for coarse, fine in itertools.pairwise(scales):
        yield Layer(PYRAMIDS, f"sum of two scales, {x.numel() // fine} of {at}", coarse + 2 * fine)
    yield Layer(PYRAMIDS, f"merge, {at}", 2 * x.numel() + sum(scales))


def _layers_of(module: nn.Module, inputs: tuple, options: dict[str, Any], y: Tensor) -> list[Layer]:
    x = inputs[0]
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        residual = inputs[1] if len(inputs) > 1 else options.get("residual")
        return list(_convolution(module, x, y, residual))
    if isinstance(module, LocalAttention):
        return list(_attention(module, x, y))
    if isinstance(module, MultiScaleModule):
        return list(_pyramids(module, x))
    if isinstance(module, nn.InstanceNorm2d):
        return [Layer(NORMALISATION, f"normalisation, {x.shape[1]} at {_plane(x)}", _numbers(x, y))]
    return []


def layers(make: Callable[[], nn.Module], shape: Sequence[int]) -> Counter[Layer]:
    """Every layer of one call, with how many times it comes. Nothing is computed or allocated.

    Args:
        make: makes the network, an `irnext.IRNeXt`.
        shape: of its input.
    """
    found: Counter[Layer] = Counter()
    with FakeTensorMode(), torch.no_grad(), irnext.use_backend("reference"):
        model = make().eval()
        # What is inside an attention is part of it.
        inner = {part for a in model.modules() if isinstance(a, LocalAttention) for part in a.children()}

        def count(module: nn.Module, inputs: tuple, options: dict, y: Tensor) -> None:
            found.update(_layers_of(module, inputs, options, y))

        for module in model.modules():
            if module not in inner:
                module.register_forward_hook(count, with_kwargs=True)
        model(torch.empty(*shape))
    return found


# ---- what the machine can do -----------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What was measured of a machine.

    Attributes:
        macs: multiply-accumulates a second.
        copies: bytes moved by a copy, and bytes a second, smallest first.
    """

    macs: float
    copies: tuple[tuple[int, float], ...]

    def bandwidth(self, size: int) -> float:
        """Bytes a second for `size` bytes: the best of a copy of at least as many, or of the largest."""
        return max((rate for moved, rate in self.copies if moved >= size), default=self.copies[-1][1])

    def seconds(self, layer: Layer, itemsize: int) -> tuple[float, float]:
        """What a layer takes at the least by its operations and by its bytes."""
        size = layer.numbers * itemsize
        return layer.macs / self.macs, size / self.bandwidth(size)


def best_seconds(run: Callable[[], Any], on_gpu: bool) -> float:
    """The shortest time of a call, with warm caches."""
    sample = (device.graph_timer(0.01) if on_gpu else harness.host_timer(0.005))(run)
    return min(sample() for _ in range(SAMPLES))


def copy_rates(on: torch.device, sizes: Sequence[int] = COPY_SIZES) -> tuple[tuple[int, float], ...]:
    """For copies of `sizes` bytes: bytes read and written, and those a second."""
    found = []
    for size in sizes:
        source = torch.zeros(size, dtype=torch.uint8, device=on)
        target = torch.empty_like(source)

        def run(source: Tensor = source, target: Tensor = target) -> Tensor:
            return target.copy_(source)

        found.append((2 * size, 2 * size / best_seconds(run, on.type == "cuda")))
    return tuple(found)


def matrix_rate(dtype: torch.dtype, on: torch.device, sides: Sequence[int]) -> float:
    """Multiply-accumulates a second of products of square matrices, at the best of some sides."""
    best = 0.0
    for side in sides:
        # Random: a GPU multiplies zeros faster.
        a, b = (torch.rand(side, side, device=on).to(dtype) for _ in range(2))

        def run(a: Tensor = a, b: Tensor = b) -> Tensor:
            return a @ b

        best = max(best, side**3 / best_seconds(run, on.type == "cuda"))
    return best


def convolution_rate(dtype: torch.dtype, on: torch.device, widths: Sequence[int]) -> float:
    """Multiply-accumulates a second of 3 x 3 convolutions in channels_last, at the best of some widths."""
    best = 0.0
    for width in widths:
        x = torch.rand(1, width, 64, 64, device=on).to(dtype, memory_format=torch.channels_last)
        weight = torch.rand(width, width, 3, 3, device=on).to(dtype, memory_format=torch.channels_last)

        def run(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return F.conv2d(x, weight, padding=1)

        best = max(best, x.numel() * width * 9 / best_seconds(run, on.type == "cuda"))
    return best


def measure_rates(dtype: torch.dtype, on: torch.device, width: int) -> Rates:
    """What this machine does, in `dtype` or in float32 if that is faster: a program may use either.

    float16 is not tried on CPUs, where PyTorch computes it many times slower than float32.
    """
    slow = dtype == torch.float16 and on.type == "cpu"
    rates = []
    for each in {torch.float32} if slow else {dtype, torch.float32}:
        rates.append(matrix_rate(each, on, MATRIX_SIDES[on.type]))
        rates.append(convolution_rate(each, on, [width, 2 * width, 4 * width]))
    return Rates(max(rates), copy_rates(on))


# ---- the floor -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """The least milliseconds of a network.

    Attributes:
        milliseconds: the sum over the layers of the longer of the two below.
        by_operations_ms, by_bytes_ms: the sums over the layers of either.
        by_kind_ms: `milliseconds` by kind of layer.
        macs, bytes: of the whole network.
        layers: rows for the record, the longest first.
    """

    milliseconds: float
    by_operations_ms: float
    by_bytes_ms: float
    by_kind_ms: dict[str, float]
    macs: int
    bytes: int
    layers: list[dict[str, Any]]


def floor(found: Counter[Layer], rates: Rates, dtype: torch.dtype) -> Floor:
    """The floor of these layers in `dtype` on a machine of these rates."""
    by_kind: Counter[str] = Counter()
    rows = []
    for layer, count in found.items():
        operations, moves = (1e3 * count * seconds for seconds in rates.seconds(layer, dtype.itemsize))
        by_kind[layer.kind] += max(operations, moves)
        rows.append(
            {
                "kind": layer.kind,
                "name": layer.name,
                "count": count,
                "macs": count * layer.macs,
                "bytes": count * layer.numbers * dtype.itemsize,
                "by_operations_ms": operations,
                "by_bytes_ms": moves,
            }
        )
    rows.sort(key=lambda row: -max(row["by_operations_ms"], row["by_bytes_ms"]))
    names = ("by_operations_ms", "by_bytes_ms", "macs", "bytes")
    sums = {name: (math.fsum if "ms" in name else sum)(row[name] for row in rows) for name in names}
    return Floor(milliseconds=math.fsum(by_kind.values()), by_kind_ms=dict(by_kind), layers=rows, **sums)
