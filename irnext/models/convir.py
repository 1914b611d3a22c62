"""ConvIR: the U-shaped network of IRNeXt, with filters of several shapes in place of its local attention."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..architecture import Architecture, majority
from ..blocks import CNNBlock, LocalAttention
from ..model import UNet, check_channels
from ..padding import next_multiple
from ..published import PublishedNames
from .irnext import LANDMARKS, PLACES, our_name

POOL_RATES = (8, 4, 2)
TAPS = 3  # of a strip; the square has as many rows and columns

DILATIONS = (7, 9, 11)  # at these rates
RAIN_DILATIONS = (3, 7, 9)


class StripAttention(PublishedNames):
    """Attention along one axis: a filter of 1 x 3 or 3 x 1 taps, predicted from the picture and modulated.

    The plane means m give A = tanh(W m), one strip per sample and channel group, without the batch
    normalisation of `LocalAttention`. With L its response and M the mean of the strip's own row (1 x 3)
    or column (3 x 1): y = l ((1 + s) L - s M) + (1 + h) x.

    Args:
        channels: C; divisible by `groups`.
        groups: channels of one group share a strip.
        dilation: distance between its taps, in pixels.
        horizontal: 1 x 3 taps, else 3 x 1.

    Shape: (N, C, H, W) to the same, in x's type; the strip's side of the plane larger than `dilation`.
    """

    published_names: ClassVar = (
        ("inside_all", "inner_gain"),
        ("lamb_l", "low_gain"),
        ("lamb_h", "high_gain"),
        ("conv.", "project."),
    )

    def __init__(self, channels: int, groups: int, dilation: int, horizontal: bool):
        super().__init__()
        self.groups, self.dilation, self.horizontal = groups, dilation, horizontal
        self.inner_gain = nn.Parameter(torch.zeros(channels, 1, 1))  # s, in its published shape
        self.low_gain = nn.Parameter(torch.zeros(channels))  # l
        self.high_gain = nn.Parameter(torch.zeros(channels))  # h
        self.project = nn.Conv2d(channels, groups * TAPS, 1, bias=False)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """y, or gain y for a gain (C, 1, 1)."""
        # The few numbers per plane stay in the parameters' precision, also under autocast.
        with ops.full_precision(x.device.type):
            kernel, bias = self.predict(x)
            if gain is not None:
                kernel, bias = gain * kernel, gain * bias
        return ops.dynamic_conv2d(x, kernel, bias, self.dilation)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The filter (N, C, 1, 3) and bias (N, C, H, 1), or (N, C, 3, 1) and (N, C, 1, W), that give y."""
        along, across = (3, 2) if self.horizontal else (2, 3)
        means = ops.line_means(x, along)
        pixels = means.mean(across, keepdim=True).to(self.project.weight.dtype)
        taps = (1, TAPS) if self.horizontal else (TAPS, 1)
        attention = self.project(pixels).to(means.dtype).tanh().view(len(x), self.groups, *taps)
        gains = (self.low_gain, self.inner_gain, self.high_gain)
        low, inner, high = (gain.flatten().to(means.dtype) for gain in gains)
        return ops.modulated_filter(attention, low, inner, high), -(low * inner)[:, None, None] * means

    def extra_repr(self) -> str:
        shape = "horizontal" if self.horizontal else "vertical"
        return f"{len(self.low_gain)}, groups={self.groups}, dilation={self.dilation}, {shape}"


class StripPair(PublishedNames):
    """gamma * vertical(horizontal(x)) + beta * x, gamma and beta per channel. See `StripAttention`."""

    published_names: ClassVar = (
        ("gamma", "strip_gain"),
        ("beta", "input_gain"),
        ("H_spatial_att.", "horizontal."),
        ("W_spatial_att.", "vertical."),
    )

    def __init__(self, channels: int, groups: int, dilation: int):
        super().__init__()
        self.strip_gain = nn.Parameter(torch.zeros(channels, 1, 1))  # gamma
        self.input_gain = nn.Parameter(torch.ones(channels, 1, 1))  # beta
        self.horizontal = StripAttention(channels, groups, dilation, horizontal=True)
        self.vertical = StripAttention(channels, groups, dilation, horizontal=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.vertical(self.horizontal(x), self.strip_gain)
        return torch.addcmul(y, self.input_gain.to(x.dtype), x)


class MultiShapeAttention(PublishedNames):
    """Multi-shape module of ConvIR: the square filter of `LocalAttention` and the two strips, added.

    Args:
        channels: C; divisible by `groups`.
        groups: channels of one group share their filters.
        dilation: distance between taps, in pixels.

    Shape: (N, C, H, W) to the same, H and W larger than `dilation`.
    """

    published_names: ClassVar = (("square_att.", "square."), ("strip_att.", "strips."))

    def __init__(self, channels: int, groups: int = 8, dilation: int = 7):
        super().__init__()
        self.square = LocalAttention(channels, groups, TAPS, dilation=dilation)
        self.strips = StripPair(channels, groups, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(x) + self.strips(x)


class ConvIR(UNet):
    """ConvIR (Cui et al., "Revitalizing Convolutional Network for Image Restoration", TPAMI 2024).

    Args:
        blocks: residual blocks per CNNBlock: 4, 8 and 16 for ConvIR-S, -B and -L.
        width: channels at full resolution; 2 and 4 times as many at a half and a quarter.
        groups: channel groups of the attention.
        dilations: distances between the taps of its filters at the pooling rates 8, 4 and 2, in pixels:
            (7, 9, 11), or (3, 7, 9) for deraining.

    `forward` takes (N, 3, H, W), usually in [0, 1], with H and W multiples of 32 and at least
    `minimum_size`, so that every filter's reflection fits its plane: 256 by default, 128 for deraining.
    It returns [quarter, half, full] as `IRNeXt` does. It raises ValueError for other shapes;
    `irnext.restore` takes pictures of any size.
    """

    def __init__(
        self, blocks: int = 4, width: int = 32, groups: int = 8, dilations: tuple[int, ...] = DILATIONS
    ):
        if blocks < 1:
            raise ValueError(f"blocks is {blocks}: it must be at least 1")
        check_channels(width, groups)
        least = self.least_side(dilations=dilations)
        by_rate = dict(zip(POOL_RATES, dilations, strict=True))

        def cnn_block(channels: int) -> CNNBlock:
            def attention(rate: int) -> MultiShapeAttention:
                return MultiShapeAttention(channels, groups, by_rate[rate])

            return CNNBlock(channels, blocks, pool_rates=POOL_RATES, attention=attention)

        super().__init__(width, cnn_block)
        self.minimum_size = least
        self.settings = {"blocks": blocks, "width": width, "groups": groups, "dilations": tuple(dilations)}

    @classmethod
    def least_side(cls, dilations: tuple[int, ...] = DILATIONS, **settings) -> int:
        """The least side of a picture whose pooled planes at a quarter size are larger than the dilations."""
        numbers = dilations if isinstance(dilations, (tuple, list)) else ()
        if len(numbers) != len(POOL_RATES) or not all(isinstance(d, int) and d > 0 for d in numbers):
            raise ValueError(
                f"dilations is {dilations}: it must be three whole numbers of at least 1, for the "
                f"rates {', '.join(map(str, POOL_RATES))}"
            )
        least = max(4 * rate * (dilation + 1) for rate, dilation in zip(POOL_RATES, dilations, strict=True))
        return next_multiple(least, cls.size_multiple)


PRESETS = {
    f"convir-{size}{task}": {"blocks": blocks, "dilations": dilations}
    for task, dilations in (("", DILATIONS), ("-rain", RAIN_DILATIONS))
    for size, blocks in (("s", 4), ("b", 8), ("l", 16))
}

_BRANCH = r"(?:en|de)coder\.\d+\.layers\.\d+\.msm\.attentions\.\d+\."

# Where the modules with published names stand: those of IRNeXt, and its own.
_PLACES = (
    *PLACES,
    (MultiShapeAttention, re.compile(_BRANCH)),
    (LocalAttention, re.compile(_BRANCH + r"square\.")),
    (StripPair, re.compile(_BRANCH + r"strips\.")),
    (StripAttention, re.compile(_BRANCH + r"strips\.(?:horizontal|vertical)\.")),
)


def _our_name(name: str) -> str:
    return our_name(name, _PLACES)


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that most entries show, and those `known`, which go first; no entry shows `dilations`."""
    stages: dict[str, set[str]] = defaultdict(set)
    votes: dict[str, list[int]] = defaultdict(list)
    for name, shape in shapes.items():
        found = re.match(r"((?:en|de)coder\.[012])\.layers\.(\d+)\.(.+)", name)
        if not found:
            continue
        stage, layer, entry = found.groups()
        stages[stage].add(layer)
        if len(shape) != 4:
            continue
        if stage in ("encoder.0", "decoder.2") and entry in ("conv1.weight", "conv2.weight"):
            votes["width"].append(shape[0])
        elif entry.endswith(".square.project.weight"):
            votes["groups"].append(shape[0] // TAPS**2)
    votes["blocks"] = list(map(len, stages.values()))
    return {**{name: majority(values) for name, values in votes.items() if values}, **known}


def _assumed(settings: dict[str, Any]) -> str:
    return (
        "how far apart the taps of its filters are: dilations of "
        f"{', '.join(map(str, settings['dilations']))} assumed; give --model convir-s-rain (or -b-rain, "
        "-l-rain) for published deraining"
    )


ARCHITECTURE = Architecture(
    name="ConvIR",
    build=ConvIR,
    our_name=_our_name,
    landmarks=(
        *LANDMARKS,
        # IRNeXt has all but these:
        "*.msm.attentions.*.square.project.weight",
        "*.msm.attentions.*.strips.strip_gain",
        "*.msm.attentions.*.strips.input_gain",
        "*.msm.attentions.*.strips.horizontal.project.weight",
        "*.msm.attentions.*.strips.vertical.project.weight",
    ),
    settings=_settings,
    assumed=_assumed,
)
