"""Pictures of any size in bounded memory, exactly: a network that computes band by band.

At each resolution one plane is held, with the skips above it, and every layer runs over horizontal
bands of that plane, in place. The window of a band reaches beyond it by as many rows as the
convolutions disturb at its edges. What a layer takes from the whole picture stays the whole
picture's: plane means, the statistics of instance normalisations, the windows of local means and the
coordinates of up-sampling. A block with a multi-scale module (MSM) therefore goes over its plane
twice: for the small planes that its branches work on, and for its results.

`account` lists these passes with the memory that each takes; the heights of bands follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .blocks import LocalAttention, is_untouched, local_window
from .memory import format_size
from .model import IRNeXt
from .ops import reference
from .ops.dispatch import implementation
from .optimization import (
    AsIs,
    Attention,
    Chain,
    Convolution,
    Network,
    Residual,
    ShallowFeatures,
    Stage,
    convolve_joined,
)

# Rows beyond a band for a 3 x 3 convolution. One would do; with four, which is a Winograd tile, the
# tiles of a band are those of the whole picture, and so are its results, bit for bit.
HALO = 4
# Bands start at multiples of this; no pass that writes over what it reads reaches farther.
STEP = 4 * HALO
# Of higher bands hardly less is computed twice.
TALLEST = 128
# What is small whatever the picture: predicted filters, coordinates, means.
SMALL = 2**20
# What the network holds at most where it computes whole, in planes of its first level: measured, the most
# of all with and without compiled operators.
WHOLE_PLANES = {torch.float32: 6.5, torch.bfloat16: 10.5, torch.float16: 11.0, torch.float64: 16.0}


# ---- the account ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One pass over a plane in bands, and the memory it takes.

    Attributes:
        rows: of the plane.
        held: bytes held beside the bands.
        row: bytes that one row of a window takes, all tensors together.
        halo: rows of a window beyond its band, above and below together.
        multiple: bands start at multiples of it.
    """

    rows: int
    held: int
    row: int
    halo: int
    multiple: int = STEP

    def memory(self, height: int) -> int:
        """Bytes in all, with bands of this height."""
        return self.held + self.row * min(height + self.halo, self.rows)

    def height(self, limit: int) -> int:
        """The height of nearly equal bands within `limit` bytes, the least if there is none."""
        most = min((limit - self.held) // self.row - self.halo, max(TALLEST, self.multiple))
        most = max(most // self.multiple, 1) * self.multiple
        bands = -(-self.rows // most)
        return -(-self.rows // (bands * self.multiple)) * self.multiple


def account(model: IRNeXt, network: Network, x: Tensor) -> dict[tuple[str, int], Pass]:
    """The passes over one picture x (1, 3, H, W), by name and level (0: full, 1: half, 2: quarter size).

    Counted is what PyTorch allocates, without x and the weights. A level has C channels, h rows, w
    columns and a plane of P = C h w e bytes, e being those of a number.

    - Held on level l are the planes of levels 0 to l, and before it is entered or left those two are
      involved, too: skips are worked on where they lie.
    - An MSM adds P / r^2 for each rate r, and one of the largest for local means.
    - A row of a window takes a few times C w e: what the pass reads, converted, and what it makes of
      it. Convolutions that neither oneDNN nor Winograd's algorithm serves copy their input 9 times.
    """
    settings, (height, width) = model.settings, x.shape[2:]
    size = torch.finfo(network.dtype).bits // 8
    ratio = max(size, 4) / size  # sums are float32 or wider
    rates = settings["pool_rates"] if settings["msm_per_block"] else ()
    if rates and rates[0] > min(height, width) // 4:
        raise ValueError(f"pool_rates {rates} do not fit the planes of {width}x{height} pixels")
    chains = settings["pooling"] == "convolution"
    reach = settings["kernel_size"] // 2
    on_cpu = x.device.type == "cpu"
    copies = 9 if on_cpu and isinstance(network.downs[0], Convolution) else 0
    stage_copies = 9 if on_cpu and isinstance(network.encoder[0].blocks[0].conv1, Convolution) else 0
    # Without compiled operators a band of a few tensors, and a local mean of ten, are made one by one.
    in_parts = implementation("merge_pyramid", x) is reference.merge_pyramid
    channels = [settings["width"] << level for level in range(3)]
    pixels = [(height >> level) * (width >> level) for level in range(3)]
    planes = [c * count * size for c, count in zip(channels, pixels, strict=True)]
    results = [3 * count * x.element_size() for count in pixels]

    passes: dict[tuple[str, int], Pass] = {}

    def add(name: str, level: int, held: int, numbers: float, halo: int, multiple: int = STEP) -> None:
        row = int(numbers * (width >> level) * size)
        passes[name, level] = Pass(height >> level, held + SMALL, row, halo, multiple)

    for level, (c, plane) in enumerate(zip(channels, planes, strict=True)):
        held = sum(planes[: level + 1]) + sum(results[level + 1 :])
        if level == 0:
            add("stem", level, held, c + 6 + 3 * copies, 2 * HALO)
        else:
            add("statistics", level, held - plane, (1.5 + 2 * ratio + copies / 2) * c + 6, 4 * HALO)
            add("fuse", level, held, (5 + 2 * copies) * c + 6, 6 * HALO)
        add("block", level, held, (2 + stage_copies) * c, 4 * HALO)
        if rates:
            small = held + sum(plane // rate**2 for rate in rates)
            above, multiple = (rates[0] if chains else 0), max(STEP, rates[0])
            add("pool", level, small, (1.75 + 0.5 * chains + stage_copies) * c, above + 2 * HALO, multiple)
            add("merge", level, small, (2.5 + ratio + 4 * ratio * in_parts + stage_copies) * c, 6 * HALO)
            local = (1 + 9 * ratio * in_parts) * plane / rates[-1] ** 2 * (settings["low_pass"] == "local")
            numbers = (6 * ratio + stage_copies) * c / rates[-1]
            add("branch", level, small + int(local), numbers, 2 * max(HALO, reach), max(STEP, reach))
        if level < 2:
            add("join", level, held + planes[level + 1], (4 + copies) * c, 4 * HALO)
        add("head", level, held + results[level], 16 + copies * c, 2 * HALO)
    return passes


def least_memory(passes: dict[tuple[str, int], Pass]) -> int:
    """Bytes that the lowest bands take."""
    return max(each.memory(each.multiple) for each in passes.values())


def whole_memory(width: int, dtype: torch.dtype, x: Tensor) -> int:
    """The most bytes that a network of `width` channels allocates for x (N, 3, H, W) whole, in `dtype`."""
    plane = width * x[:, 0].numel() * torch.finfo(dtype).bits // 8
    return int(WHOLE_PLANES[dtype] * plane) + 2 * x.numel() * x.element_size() + SMALL


# ---- rows ----------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows of a plane of `total` rows, from row `first` on: data is (1, C, rows, W)."""

    data: Tensor
    first: int
    total: int

    @property
    def last(self) -> int:
        """The row after these."""
        return self.first + self.data.shape[2]

    def then(self, part: Callable[[Tensor], Tensor]) -> Rows:
        """What a part that keeps the size makes of them."""
        return self._replace(data=part(self.data))

    def between(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of the plane."""
        return self.data[:, :, start - self.first : stop - self.first]

    def inner(self, halo: int = HALO) -> Rows:
        """Without the `halo` rows at edges that are none of the picture."""
        start = self.first + halo if self.first > 0 else 0
        stop = self.last - halo if self.last < self.total else self.total
        return Rows(self.between(start, stop), start, self.total)


def window(plane: Tensor, start: int, stop: int, halo: int) -> Rows:
    """Rows start - halo to stop + halo of the plane, as far as there are."""
    first, total = max(0, start - halo), plane.shape[2]
    return Rows(plane[:, :, first : min(stop + halo, total)], first, total)


def bands(rows: int, height: int) -> Iterator[tuple[int, int]]:
    """Where bands of a plane start and stop."""
    for start in range(0, rows, height):
        yield start, min(start + height, rows)


def fill(plane: Tensor, height: int, compute: Callable[[int, int], Tensor]) -> None:
    """Write what `compute(start, stop)` returns for each band into the plane."""
    for start, stop in bands(plane.shape[2], height):
        plane[:, :, start:stop] = compute(start, stop)


def overwrite(plane: Tensor, height: int, reach: int, compute: Callable[[int, int], Tensor]) -> None:
    """As `fill` where `compute` reads the plane itself, up to `reach` rows beyond a band.

    The last rows of a band, which the next one reads, are written after that. Bands are not lower
    than they reach.
    """
    late = plane[:, :, :0]
    for start, stop in bands(plane.shape[2], height):
        result = compute(start, stop)
        plane[:, :, start - late.shape[2] : start] = late
        keep = stop - start - (reach if stop < plane.shape[2] else 0)
        plane[:, :, start : start + keep] = result[:, :, :keep]
        late = result[:, :, keep:].clone()
        del result


def blended(plane: Tensor, first: int, last: int, total: int) -> Tensor:
    """Rows first to last of the plane up-sampled to `total` rows: (1, C, last - first, W).

    Linear with align_corners=True; `ops.merge_pyramid` then up-samples the columns. Places are whole
    numbers and a remainder, so that nothing is lost on large planes.
    """
    rows, steps = plane.shape[2], max(total - 1, 1)
    place = torch.arange(first, last, device=plane.device) * (rows - 1)
    wide = torch.promote_types(plane.dtype, torch.float32)
    share = ((place % steps).to(wide) / steps)[:, None, None]
    upper = place // steps
    pixels = plane.permute(0, 2, 3, 1)  # whole rows are taken
    above = pixels.index_select(1, upper).to(wide).mul_(1 - share)
    below = pixels.index_select(1, (upper + 1).clamp_(max=rows - 1)).to(wide).mul_(share)
    return above.add_(below).to(plane.dtype).permute(0, 3, 1, 2)


# ---- the network ---------------------------------------------------------------------------------


class BandedNetwork:
    """The whole network by bands, from one picture (1, 3, H, W) to its three restorations.

    Args:
        network: its parts.
        width: channels of its first level.
        passes: the account for this size.
        limit: bytes that may be allocated.
    """

    def __init__(self, network: Network, width: int, passes: dict[tuple[str, int], Pass], limit: int):
        self.network, self.width = network, width
        self.heights = {key: each.height(limit) for key, each in passes.items()}

    def __call__(self, x: Tensor) -> list[Tensor]:
        network, pictures = self.network, [x[:, :, ::scale, ::scale] for scale in (1, 2, 4)]
        plane = self.stem(x)
        skips = []
        for level, stage in enumerate(network.encoder):
            if level:
                skips.append(plane)
                plane = self.enter(level, plane, pictures[level])
            self.stage(level, stage, plane)
        results = []
        for level, stage in zip((2, 1, 0), network.decoder, strict=True):
            if level < 2:
                plane = self.join(level, plane, skips.pop())
            self.stage(level, stage, plane)
            results.append(self.restored(level, plane, pictures[level], x))
        return results

    def empty(self, channels: int, rows: int, columns: int, device: torch.device) -> Tensor:
        """A plane to be filled."""
        options = {"dtype": self.network.dtype, "device": device}
        return torch.empty(1, channels, rows, columns, **options, memory_format=torch.channels_last)

    def prepared(self, picture: Tensor) -> Tensor:
        """Pixels in the type and layout to compute in."""
        return picture.to(self.network.dtype).contiguous(memory_format=torch.channels_last)

    def stem(self, x: Tensor) -> Tensor:
        """The plane of the first level."""
        plane = self.empty(self.width, *x.shape[2:], x.device)

        def compute(start: int, stop: int) -> Tensor:
            return (
                window(x, start, stop, HALO).then(self.prepared).then(self.network.stem).between(start, stop)
            )

        fill(plane, self.heights["stem", 0], compute)
        return plane

    def enter(self, level: int, above: Tensor, picture: Tensor) -> Tensor:
        """The plane of the next level, from the one above and the smaller picture."""
        network, (rows, columns) = self.network, picture.shape[2:]
        features, down, fuse = (part[level - 1] for part in (network.features, network.downs, network.fuses))
        scale, bias = self.normalisation(level, features, picture)
        plane = self.empty(self.width << level, rows, columns, picture.device)

        def compute(start: int, stop: int) -> Tensor:
            first, last = max(0, start - HALO), min(stop + HALO, rows)
            halved = window(above, 2 * first, 2 * last, 2 * HALO)
            halved = Rows(down(halved.data), halved.first // 2, rows).inner()
            shallow = window(picture, first, last, 2 * HALO).then(self.prepared).then(features.convs)
            normal = ops.dynamic_conv2d(shallow.between(first, last), scale, bias)
            both = [halved.between(first, last), normal]
            del halved, shallow, normal
            return Rows(convolve_joined(fuse, both), first, rows).between(start, stop)

        fill(plane, self.heights["fuse", level], compute)
        return plane

    def normalisation(self, level: int, features: ShallowFeatures, picture: Tensor) -> tuple[Tensor, Tensor]:
        """The factor (1, C, 1, 1) and bias (1, C) of an instance normalisation of the whole plane.

        Mean and variance are put together from those of bands (Chan, Golub and LeVeque, 1979).
        """

        def compute(start: int, stop: int) -> tuple[Tensor, Tensor]:
            y = window(picture, start, stop, 2 * HALO).then(self.prepared).then(features.convs)
            y = y.between(start, stop)
            mean = ops.spatial_mean(y)
            deviation = y.to(mean.dtype) - mean[..., None, None]
            return mean.double(), ops.spatial_mean(deviation.square_()).double()

        count, mean, variance = 0, 0.0, 0.0
        for start, stop in bands(picture.shape[2], self.heights["statistics", level]):
            its_mean, its_variance = compute(start, stop)
            count += stop - start
            share = (stop - start) / count
            step = its_mean - mean
            variance = variance + share * (its_variance - variance + (1 - share) * step**2)
            mean = mean + share * step
        norm = features.norm
        scale = (variance + norm.eps).rsqrt() * norm.weight
        bias = norm.bias - mean * scale
        return scale.to(norm.weight.dtype)[..., None, None], bias.to(norm.weight.dtype)

    def join(self, level: int, below: Tensor, skip: Tensor) -> Tensor:
        """The plane of a level, from the one below and the skip, which it is written over."""
        up, merge, rows = self.network.ups[1 - level], self.network.skips[1 - level], skip.shape[2]

        def compute(start: int, stop: int) -> Tensor:
            half = window(below, start // 2, stop // 2, HALO)
            doubled = Rows(up(half.data), 2 * half.first, rows).between(start, stop)
            both = [doubled, skip[:, :, start:stop]]
            del doubled
            return convolve_joined(merge, both)

        fill(skip, self.heights["join", level], compute)
        return skip

    def restored(self, level: int, plane: Tensor, picture: Tensor, x: Tensor) -> Tensor:
        """The picture plus what the head makes of the plane: in x's type, and contiguous if x is."""
        head = self.network.heads[2 - level]
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        result = torch.empty(picture.shape, dtype=x.dtype, device=x.device, memory_format=layout)

        def compute(start: int, stop: int) -> Tensor:
            return (
                window(plane, start, stop, HALO).then(head).between(start, stop) + picture[:, :, start:stop]
            )

        fill(result, self.heights["head", level], compute)
        return result

    def stage(self, level: int, stage: Stage, plane: Tensor) -> None:
        """A CNNBlock, written over its plane."""
        for block in stage.blocks:
            if block.msm is None:
                self.block(level, block, plane)
            else:
                self.multi_scale_block(level, block, plane)

    def block(self, level: int, block: Residual, plane: Tensor) -> None:
        """A residual block without MSM."""

        def compute(start: int, stop: int) -> Tensor:
            x = window(plane, start, stop, 2 * HALO)
            y = x.then(block.conv1).inner()
            residual = x.between(y.first, y.last)
            return y.then(lambda y: block.conv2(y, residual=residual)).between(start, stop)

        overwrite(plane, self.heights["block", level], 2 * HALO, compute)

    def multi_scale_block(self, level: int, block: Residual, plane: Tensor) -> None:
        """A residual block with an MSM."""
        msm, rows = block.msm, plane.shape[2]
        branches = self.pools(level, block, plane)
        for i, (branch, conv, attention) in enumerate(zip(branches, msm.convs, msm.attentions, strict=True)):
            if i:
                self.add_enlarged(level, branch, branches[i - 1])
            self.branch(level, branch, conv, attention)

        def compute(start: int, stop: int) -> Tensor:
            x = window(plane, start, stop, 3 * HALO)
            y = x.then(block.conv1).inner()
            enlarged = [blended(branch, y.first, y.last, rows) for branch in branches]
            y = y._replace(data=ops.merge_pyramid(y.data, enlarged))
            del enlarged
            y = y.then(msm.merge).inner()
            residual = x.between(y.first, y.last)
            return y.then(lambda y: block.conv2(y, residual=residual)).between(start, stop)

        overwrite(plane, self.heights["merge", level], 3 * HALO, compute)

    def pools(self, level: int, block: Residual, plane: Tensor) -> list[Tensor]:
        """The small planes of an MSM, one for each rate."""
        msm, (rows, columns) = block.msm, plane.shape[2:]
        rates = msm.rates
        # A chain of strided convolutions reads up to rate - 1 rows above, and pads odd sizes.
        chains = msm.pools is not None and isinstance(msm.pools[0], Chain)
        sizes = [(-(-rows // r), -(-columns // r)) if chains else (rows // r, columns // r) for r in rates]
        pools = [self.empty(plane.shape[1], *size, plane.device) for size in sizes]

        def compute(start: int, stop: int) -> None:
            first = max(0, start - rates[0]) if chains else start
            y = window(plane, first, stop, HALO).then(block.conv1).between(first, stop)
            # What is left at the end may be lower than a pool, which then leaves it out.
            fitting = [i for i, rate in enumerate(rates) if chains or rate <= stop - start]
            if msm.pools is None:
                found = ops.pool_pyramid(y, tuple(rates[i] for i in fitting))
            else:
                found = [msm.pools[i](y) for i in fitting]
            for i, new in zip(fitting, found, strict=True):
                new = new[:, :, (start - first) // rates[i] :]
                pools[i][:, :, start // rates[i] : start // rates[i] + new.shape[2]] = new

        for start, stop in bands(rows, self.heights["pool", level]):
            compute(start, stop)
        return pools

    def add_enlarged(self, level: int, plane: Tensor, smaller: Tensor) -> None:
        """Add the up-sampled smaller plane."""

        def compute(start: int, stop: int) -> Tensor:
            enlarged = blended(smaller, start, stop, plane.shape[2])
            return ops.merge_pyramid(plane[:, :, start:stop], [enlarged], None)

        fill(plane, self.heights["branch", level], compute)

    def branch(self, level: int, plane: Tensor, conv: Callable, attention: Attention | AsIs) -> None:
        """The convolution and attention of a branch, written over its plane."""
        height = self.heights["branch", level]

        def convolved(start: int, stop: int) -> Tensor:
            return window(plane, start, stop, HALO).then(conv).between(start, stop)

        overwrite(plane, height, HALO, convolved)
        if isinstance(attention, AsIs) and not isinstance(attention.module, LocalAttention):
            return  # branch="conv" has none
        predicted = predict(attention, plane)
        reach = predicted.kernel.shape[2] // 2

        def filtered(start: int, stop: int) -> Tensor:
            z = window(plane, start, stop, reach)
            bias = predicted.bias_of(z.first, z.last)
            return z.then(lambda z: ops.dynamic_conv2d(z, predicted.kernel, bias)).between(start, stop)

        overwrite(plane, height, reach, filtered)


class Filter(NamedTuple):
    """What an attention predicts: kernel (1, C or G, K, K), and bias (1, C) if there is one.

    With local means (1, C, H, W) the bias is what they are multiplied by.
    """

    kernel: Tensor
    bias: Tensor | None
    local_means: Tensor | None = None

    def bias_of(self, first: int, last: int) -> Tensor | None:
        """The bias of rows first to last, as `dynamic_conv2d` takes it."""
        if self.local_means is None:
            return self.bias
        return self.bias[..., None, None] * self.local_means[:, :, first:last]


def predict(part: Attention | AsIs, z: Tensor) -> Filter:
    """The filter of an attention for the whole plane z, as `ops.local_attention` applies it."""
    mean = ops.spatial_mean(z)
    if isinstance(part, AsIs):
        return Filter(*part.module.predict(mean, z))
    attention = part.attention
    weight, _, shift, _, _, *gains = (parameter.to(mean.dtype) for parameter in part.parameters)
    low, inner, high = (gain.flatten() for gain in gains)
    logits = F.linear(mean, weight, shift).view(1, -1, attention.kernel_size, attention.kernel_size)
    kernel = ops.modulated_filter(ops.activate(logits, attention.activation), low, inner, high)
    bias = (-low * inner)[None]
    if attention.low_pass != "local":
        return Filter(kernel, bias * mean)
    return Filter(kernel, bias, ops.local_mean(z, attention.window or local_window(*z.shape[2:])))


# ---- within a limit ------------------------------------------------------------------------------


class MemoryLimitError(ValueError):
    """A limit that is too low for pictures (N, 3, H, W), even in the lowest bands; `least` would do."""

    def __init__(self, shape: tuple[int, ...], limit: int, least: int):
        super().__init__(shape, limit, least)
        self.shape, self.limit, self.least = shape, limit, least

    def __str__(self) -> str:
        return (
            f"{self.shape[3]}x{self.shape[2]} pixels need at least {format_size(self.least)} of memory, and "
            f"{format_size(self.limit)} may be used; tiles need less, but are not exact"
        )


def compute_within(limit: int, model: IRNeXt, network: Network, x: Tensor) -> list[Tensor]:
    """What `network`, made of `model`, makes of x (N, 3, H, W), allocating no more than `limit` bytes.

    Whole where that fits, else one picture after another in bands.

    Raises:
        MemoryLimitError: the limit is too low.
        ValueError: modules were replaced or hooked, whose reach is not known.
    """
    width = model.settings["width"]
    if not len(x) or whole_memory(width, network.dtype, x) <= limit:
        return network(x)
    check_unchanged(model)
    passes = account(model, network, x)
    kept = 4 * x.numel() * x.element_size() if len(x) > 1 else 0  # all results, and once more in one tensor
    least = least_memory(passes) + kept
    if least > limit:
        raise MemoryLimitError(tuple(x.shape), limit, least)
    banded = BandedNetwork(network, width, passes, limit - kept)
    results = [banded(x[i : i + 1]) for i in range(len(x))]
    return results[0] if len(x) == 1 else [torch.cat(level) for level in zip(*results, strict=True)]


def check_unchanged(model: IRNeXt) -> None:
    """Raise ValueError unless all modules are those that IRNeXt is made of."""
    with torch.device("meta"):
        expected = dict(IRNeXt(**model.settings).named_modules())
    found = dict(model.named_modules())
    for name in found.keys() | expected.keys():
        same = name in found and name in expected and is_untouched(found[name], type(expected[name]))
        if not same or found[name].extra_repr() != expected[name].extra_repr():
            raise ValueError(
                f"{name} was replaced or hooked, and bands need to know what it reads: "
                "compute whole (max_memory=None), or use tiles"
            )
