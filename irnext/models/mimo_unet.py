"""MIMO-UNet and MIMO-UNet+: a U-shaped network with three inputs and three outputs, IRNeXt's ancestor."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import Architecture, RestorationModel
from ..model import check_channels


class Layer(nn.Module):
    """A convolution and, unless `relu` is False, a ReLU."""

    def __init__(self, convolution: nn.Module, relu: bool = True):
        super().__init__()
        self.main = nn.Sequential(convolution, *([nn.ReLU(inplace=True)] if relu else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def conv(inputs: int, outputs: int, size: int = 3, relu: bool = True) -> Layer:
    """A convolution that keeps the size of the plane."""
    return Layer(nn.Conv2d(inputs, outputs, size, padding=size // 2), relu)


def down(inputs: int, outputs: int) -> Layer:
    """A convolution that halves the sides of the plane."""
    return Layer(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))


def up(inputs: int, outputs: int) -> Layer:
    """A transposed convolution that doubles the sides of the plane."""
    return Layer(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))


def halved(x: Tensor) -> Tensor:
    """Nearest down-sampling by 2: the even rows and columns."""
    return x[:, :, ::2, ::2]


def doubled(x: Tensor) -> Tensor:
    """Nearest up-sampling by 2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.main = nn.Sequential(conv(channels, channels), conv(channels, channels, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class Stage(nn.Module):
    """An encoder or decoder block (EB, DB): residual blocks at one scale."""

    def __init__(self, channels: int, num_res: int):
        super().__init__()
        self.layers = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_res)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ShallowConvolution(nn.Module):
    """Shallow convolutional module (SCM): features of a smaller picture, (N, 3, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        quarter, half = channels // 4, channels // 2
        self.main = nn.Sequential(
            conv(3, quarter), conv(quarter, half, 1), conv(half, half), conv(half, channels - 3, 1)
        )
        self.conv = conv(channels, channels, 1, relu=False)

    def forward(self, picture: Tensor) -> Tensor:
        return self.conv(torch.cat((picture, self.main(picture)), 1))


class FeatureAttention(nn.Module):
    """Feature attention module (FAM): each of two features tells what of the other matters."""

    def __init__(self, channels: int):
        super().__init__()
        self.merge = conv(channels, channels, relu=False)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return x1 + self.merge(x1 * x2)


class AsymmetricFusion(nn.Module):
    """Asymmetric feature fusion (AFF): features of all scales, brought to one, to `channels` for a skip."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv = nn.Sequential(conv(inputs, channels, 1), conv(channels, channels, relu=False))

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        return self.conv(torch.cat((full, half, quarter), 1))


class MIMOUNet(RestorationModel):
    """MIMO-UNet (Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021).

    Args:
        num_res: residual blocks per encoder or decoder block: 8 for MIMO-UNet, 20 for MIMO-UNet+.
        width: channels at full resolution, even; 2 and 4 times as many at a half and a quarter.

    `forward` takes (N, 3, H, W), usually in [0, 1], with H and W multiples of 4, and returns [quarter,
    half, full]: restored pictures of (N, 3, H/4, W/4), (N, 3, H/2, W/2) and (N, 3, H, W). It raises
    ValueError for other shapes; `irnext.restore` takes pictures of any size.
    """

    size_multiple = 4
    minimum_size = 4
    tiling = "convolutions near a seam do not see across it"

    def __init__(self, num_res: int = 8, width: int = 32):
        super().__init__()
        if num_res < 1:
            raise ValueError(f"num_res is {num_res}: it must be at least 1")
        check_channels(width)
        self.settings = {"num_res": num_res, "width": width}
        c1, c2, c3 = width, 2 * width, 4 * width
        # Names and order are the published ones, which checkpoints and optimisers' states rely on.
        self.Encoder = nn.ModuleList(Stage(c, num_res) for c in (c1, c2, c3))
        self.feat_extract = nn.ModuleList(
            (conv(3, c1), down(c1, c2), down(c2, c3), up(c3, c2), up(c2, c1), conv(c1, 3, relu=False))
        )
        self.Decoder = nn.ModuleList(Stage(c, num_res) for c in (c3, c2, c1))
        self.Convs = nn.ModuleList(conv(2 * c, c, 1) for c in (c2, c1))
        self.ConvsOut = nn.ModuleList(conv(c, 3, relu=False) for c in (c3, c2))
        self.AFFs = nn.ModuleList(AsymmetricFusion(c1 + c2 + c3, c) for c in (c1, c2))
        self.FAM1, self.SCM1 = FeatureAttention(c3), ShallowConvolution(c3)  # of the quarter
        self.FAM2, self.SCM2 = FeatureAttention(c2), ShallowConvolution(c2)  # of the half

    def forward(self, x: Tensor) -> list[Tensor]:
        self._check_input(x)
        stem, down_half, down_quarter, up_half, up_full, head = self.feat_extract
        half = halved(x)
        quarter = halved(half)

        encoded1 = self.Encoder[0](stem(x))
        encoded2 = self.Encoder[1](self.FAM2(down_half(encoded1), self.SCM2(half)))
        encoded3 = self.Encoder[2](self.FAM1(down_quarter(encoded2), self.SCM1(quarter)))

        encoded3_half = doubled(encoded3)
        skip1 = self.AFFs[0](encoded1, doubled(encoded2), doubled(encoded3_half))
        skip2 = self.AFFs[1](halved(encoded1), encoded2, encoded3_half)

        z = self.Decoder[0](encoded3)
        restored_quarter = self.ConvsOut[0](z) + quarter
        z = self.Decoder[1](self.Convs[0](torch.cat((up_half(z), skip2), 1)))
        restored_half = self.ConvsOut[1](z) + half
        z = self.Decoder[2](self.Convs[1](torch.cat((up_full(z), skip1), 1)))
        return [restored_quarter, restored_half, head(z) + x]


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that the entries show, and those `known`, which go first."""
    settings = {}
    stages = defaultdict(set)
    for name in shapes:
        if found := re.match(r"((?:En|De)coder\.[012])\.layers\.(\d+)\.", name):
            stages[found[1]].add(int(found[2]))
    if stages:
        settings["num_res"] = max(map(len, stages.values()))
    if stem := shapes.get("feat_extract.0.main.0.weight"):
        settings["width"] = stem[0]
    return {**settings, **known}


ARCHITECTURE = Architecture(
    name="MIMO-UNet",
    build=MIMOUNet,
    # IRNeXt shares most names with MIMO-UNet: these it has not.
    landmarks=tuple(
        f"{layer}.main.0.{leaf}"
        for layer in (*(f"AFFs.{i}.conv.{j}" for i in (0, 1) for j in (0, 1)), "SCM1.conv", "SCM2.conv")
        for leaf in ("weight", "bias")
    ),
    settings=_settings,
)
