"""Restormer: a U-shaped transformer whose attention runs across channels."""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import Architecture, RestorationModel
from ..blocks import check_option
from ..ops import accumulation_dtype

LAYER_NORMS = ("WithBias", "BiasFree")
LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
EPSILON = 1e-5  # of the layer norms


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules one after another, under names."""
    return nn.Sequential(OrderedDict(modules))


def widened(x: Tensor) -> Tensor:
    """`x`, in float32 where it is in half precision."""
    return x.to(accumulation_dtype(x.dtype))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, (N, C, H, W) to the same.

    With `bias`: (x - mean) / sqrt(variance + eps) * weight + bias. Without: x / sqrt(variance + eps) *
    weight, where the mean stays, though the variance is taken around it.
    """

    def __init__(self, channels: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        if self.bias is not None:
            y = F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, EPSILON)
        else:
            wide = widened(pixels)
            variance = wide.var(-1, correction=0, keepdim=True)
            y = (wide * (variance + EPSILON).rsqrt()).to(x.dtype) * self.weight
        return y.permute(0, 3, 1, 2)


class ChannelAttention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA, Eq. 1): every channel attends to those of its head.

    The similarity of two channels is the cosine between their planes, times the head's temperature (1 / alpha
    of the paper), so the cost is linear in the number of pixels. (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv_dwconv(self.qkv(x))
        query, key, value = qkv.reshape(n, 3, self.heads, c // self.heads, h * w).unbind(1)
        similarity = unit(query) @ unit(key).mT
        weights = (similarity * self.temperature).softmax(-1)
        return self.project_out((weights @ value).reshape(n, c, h, w))


def unit(rows: Tensor) -> Tensor:
    """`rows` along the last dimension divided by their lengths: sums of squares overflow half precision."""
    return F.normalize(widened(rows), dim=-1).to(rows.dtype)


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network (GDFN, Eq. 2): GELU of one half of the features gates the other."""

    def __init__(self, channels: int, expansion: float, bias: bool):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, features = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(gate) * features)


class TransformerBlock(nn.Module):
    """x + MDTA(norm(x)), then the same with GDFN."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm_bias: bool):
        super().__init__()
        self.norm1 = named(body=ChannelNorm(channels, norm_bias))
        self.attn = ChannelAttention(channels, heads, bias)
        self.norm2 = named(body=ChannelNorm(channels, norm_bias))
        self.ffn = GatedFeedForward(channels, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def conv(inputs: int, outputs: int, size: int = 3, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size of the plane."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)


def down(channels: int) -> nn.Sequential:
    """Half the sides, twice the channels."""
    return named(body=nn.Sequential(conv(channels, channels // 2), nn.PixelUnshuffle(2)))


def up(channels: int) -> nn.Sequential:
    """Twice the sides, half the channels."""
    return named(body=nn.Sequential(conv(channels, 2 * channels), nn.PixelShuffle(2)))


class Restormer(RestorationModel):
    """Restormer (Zamir et al., "Efficient Transformer for High-Resolution Image Restoration", CVPR 2022).

    Args:
        dim: channels at full resolution, even; 2, 4 and 8 times as many at the levels below.
        num_blocks: transformer blocks of the four levels; the decoder has as many as the encoder.
        num_refinement_blocks: those behind the decoder, at full resolution.
        heads: attention heads of the four levels; each must divide its level's channels.
        ffn_expansion_factor: hidden channels of the feed-forward network, in units of its channels.
        bias: whether the convolutions have one, but for those of embedding and resampling.
        LayerNorm_type: "WithBias", or "BiasFree", as published for denoising Gaussian noise.

    `forward` takes (N, 3, H, W), usually in [0, 1], with H and W multiples of 8, and returns the restored
    pictures of the same shape. It raises ValueError for other shapes; `irnext.restore` takes pictures of
    any size.
    """

    size_multiple = 8
    minimum_size = 8
    tiling = "attention compares channels over the tile, not over the whole picture"

    def __init__(
        self,
        dim: int = 48,
        num_blocks: tuple[int, ...] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: tuple[int, ...] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
    ):
        super().__init__()
        check_option("LayerNorm_type", LayerNorm_type, LAYER_NORMS)
        self.settings = {
            "dim": dim,
            "num_blocks": _per_level("num_blocks", num_blocks),
            "num_refinement_blocks": num_refinement_blocks,
            "heads": _per_level("heads", heads),
            "ffn_expansion_factor": ffn_expansion_factor,
            "bias": bias,
            "LayerNorm_type": LayerNorm_type,
        }
        _check_numbers(dim, num_refinement_blocks, heads, ffn_expansion_factor)

        def blocks(number: int, channels: int, head_count: int) -> nn.Sequential:
            form = (channels, head_count, ffn_expansion_factor, bias, LayerNorm_type == "WithBias")
            return nn.Sequential(*(TransformerBlock(*form) for _ in range(number)))

        c1, c2, c3, c4 = (dim * 2**level for level in range(4))
        n1, n2, n3, n4 = num_blocks
        h1, h2, h3, h4 = heads
        # Names and order are the published ones, which checkpoints and optimisers' states rely on.
        self.patch_embed = named(proj=conv(3, c1))
        self.encoder_level1 = blocks(n1, c1, h1)
        self.down1_2 = down(c1)
        self.encoder_level2 = blocks(n2, c2, h2)
        self.down2_3 = down(c2)
        self.encoder_level3 = blocks(n3, c3, h3)
        self.down3_4 = down(c3)
        self.latent = blocks(n4, c4, h4)
        self.up4_3 = up(c4)
        self.reduce_chan_level3 = conv(2 * c3, c3, 1, bias)
        self.decoder_level3 = blocks(n3, c3, h3)
        self.up3_2 = up(c3)
        self.reduce_chan_level2 = conv(2 * c2, c2, 1, bias)
        self.decoder_level2 = blocks(n2, c2, h2)
        self.up2_1 = up(c2)
        self.decoder_level1 = blocks(n1, 2 * c1, h1)
        self.refinement = blocks(num_refinement_blocks, 2 * c1, h1)
        self.output = conv(2 * c1, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if not x.shape[0]:
            return x.clone()  # PyTorch's pixel shuffles leave an empty batch in its old shape
        level1 = self.encoder_level1(self.patch_embed(x))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        z = self.latent(self.down3_4(level3))
        z = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(z), level3), 1)))
        z = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(z), level2), 1)))
        z = self.decoder_level1(torch.cat((self.up2_1(z), level1), 1))
        return self.output(self.refinement(z)) + x


def _per_level(name: str, values: Any) -> tuple[int, ...]:
    """The setting as a tuple, or ValueError if it is not one positive number for each of the four levels."""
    numbers = tuple(values) if isinstance(values, (tuple, list)) else ()
    if len(numbers) != 4 or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"{name} is {values}: it must be four whole numbers, one a level, at least 1 each")
    return numbers


def _check_numbers(
    dim: int, num_refinement_blocks: int, heads: tuple[int, ...], ffn_expansion_factor: float
) -> None:
    """Raise ValueError for settings that make no network."""
    if dim < 2 or dim % 2:
        raise ValueError(f"dim is {dim}: it must be an even number of channels")
    if num_refinement_blocks < 1:
        raise ValueError(f"num_refinement_blocks is {num_refinement_blocks}: it must be at least 1")
    for level, number in enumerate(heads):
        if dim * 2**level % number:
            raise ValueError(
                f"heads is {heads}: {number} must divide the {dim * 2**level} channels of level {level + 1}"
            )
    if not 1 <= dim * ffn_expansion_factor < math.inf:
        raise ValueError(
            f"ffn_expansion_factor is {ffn_expansion_factor}: {dim} channels times it must be at least 1"
        )


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that the entries show, and those `known`, which go first.

    Weights tell the hidden channels of the feed-forward networks, not their factor: of the factors that
    give them at every level, it is the one with the fewest decimals.
    """
    found = (re.match(r"(\w+)\.(\d+)\.", name) for name in shapes)
    numbers = Counter(group for group, _ in {match.groups() for match in found if match})

    def at_levels(entry: str, rank: int) -> list[torch.Size]:
        found = (shapes.get(f"{level}.0.{entry}", torch.Size()) for level in LEVELS)
        return [shape for shape in found if len(shape) == rank and all(shape)]

    settings: dict[str, Any] = {
        "bias": "output.bias" in shapes,
        "LayerNorm_type": "WithBias" if "latent.0.norm1.body.bias" in shapes else "BiasFree",
    }
    if embedding := shapes.get("patch_embed.proj.weight"):
        settings["dim"] = embedding[0]
    if all(numbers[level] for level in LEVELS):
        settings["num_blocks"] = tuple(numbers[level] for level in LEVELS)
    if numbers["refinement"]:
        settings["num_refinement_blocks"] = numbers["refinement"]
    if len(temperatures := at_levels("attn.temperature", 3)) == len(LEVELS):
        settings["heads"] = tuple(shape[0] for shape in temperatures)
    if factor := _expansion(at_levels("ffn.project_out.weight", 4)):
        settings["ffn_expansion_factor"] = factor
    return {**settings, **known}


def _expansion(projections: list[torch.Size]) -> float | None:
    """The factor of fewest decimals that gives feed-forward networks with these last weights, if any does."""
    ratios = [hidden / channels for channels, hidden, _, _ in projections]
    for decimals in range(16 if ratios else 0):
        factor = math.ceil(max(ratios) * 10**decimals) / 10**decimals
        if all(int(channels * factor) == hidden for channels, hidden, _, _ in projections):
            return factor
    return None


ARCHITECTURE = Architecture(
    name="Restormer",
    build=Restormer,
    landmarks=(
        "patch_embed.proj.weight",
        "encoder_level1.0.attn.temperature",
        "encoder_level1.0.ffn.project_in.weight",
        "down1_2.body.0.weight",
        "latent.0.attn.temperature",
        "up2_1.body.0.weight",
        "reduce_chan_level2.weight",
        "refinement.0.attn.temperature",
        "output.weight",
    ),
    settings=_settings,
)
