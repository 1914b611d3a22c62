"""Restormer: a U-shaped transformer whose attention runs across channels."""

from __future__ import annotations

import math
import re
from collections import OrderedDict, defaultdict
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import Architecture, RestorationModel
from ..blocks import check_option

LAYER_NORMS = ("WithBias", "BiasFree")
EPSILON = 1e-5  # of the layer norms


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules one after another, under names."""
    return nn.Sequential(OrderedDict(modules))


def widened(x: Tensor) -> Tensor:
    """`x`, in float32 where it is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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

    The weights are C/heads x C/heads cosine similarities over the whole plane, so the cost is linear in
    the number of pixels. (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(
            3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias
        )
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


def conv3(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size of the plane."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def down(channels: int) -> nn.Sequential:
    """Half the sides, twice the channels."""
    return named(body=nn.Sequential(conv3(channels, channels // 2), nn.PixelUnshuffle(2)))


def up(channels: int) -> nn.Sequential:
    """Twice the sides, half the channels."""
    return named(body=nn.Sequential(conv3(channels, 2 * channels), nn.PixelShuffle(2)))


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
    tiling = "everywhere a little different: attention weighs channels by statistics of the whole plane"

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
        _check_settings(dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor)
        self.settings = {
            "dim": dim,
            "num_blocks": tuple(num_blocks),
            "num_refinement_blocks": num_refinement_blocks,
            "heads": tuple(heads),
            "ffn_expansion_factor": ffn_expansion_factor,
            "bias": bias,
            "LayerNorm_type": LayerNorm_type,
        }

        def blocks(level: int, channels: int, number: int = 0) -> nn.Sequential:
            norm_bias = LayerNorm_type == "WithBias"
            return nn.Sequential(
                *(
                    TransformerBlock(channels, heads[level], ffn_expansion_factor, bias, norm_bias)
                    for _ in range(number or num_blocks[level])
                )
            )

        c1, c2, c3, c4 = (dim * 2**level for level in range(4))
        # Names and order are the published ones, which checkpoints and optimisers' states rely on.
        self.patch_embed = named(proj=conv3(3, c1))
        self.encoder_level1 = blocks(0, c1)
        self.down1_2 = down(c1)
        self.encoder_level2 = blocks(1, c2)
        self.down2_3 = down(c2)
        self.encoder_level3 = blocks(2, c3)
        self.down3_4 = down(c3)
        self.latent = blocks(3, c4)
        self.up4_3 = up(c4)
        self.reduce_chan_level3 = nn.Conv2d(2 * c3, c3, 1, bias=bias)
        self.decoder_level3 = blocks(2, c3)
        self.up3_2 = up(c3)
        self.reduce_chan_level2 = nn.Conv2d(2 * c2, c2, 1, bias=bias)
        self.decoder_level2 = blocks(1, c2)
        self.up2_1 = up(c2)
        self.decoder_level1 = blocks(0, 2 * c1)
        self.refinement = blocks(0, 2 * c1, num_refinement_blocks)
        self.output = conv3(2 * c1, 3, bias)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        level1 = self.encoder_level1(self.patch_embed(x))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        z = self.latent(self.down3_4(level3))
        z = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(z), level3), 1)))
        z = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(z), level2), 1)))
        z = self.decoder_level1(torch.cat((self.up2_1(z), level1), 1))
        return self.output(self.refinement(z)) + x

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x must be (N, 3, H, W), got {tuple(x.shape)}")
        if any(side < self.minimum_size or side % self.size_multiple for side in x.shape[2:]):
            raise ValueError(
                f"x is {tuple(x.shape)}: H and W must be multiples of {self.size_multiple} and at least "
                f"{self.minimum_size} (irnext.restore pads pictures of any size)"
            )


def _check_settings(
    dim: int,
    num_blocks: tuple[int, ...],
    num_refinement_blocks: int,
    heads: tuple[int, ...],
    ffn_expansion_factor: float,
) -> None:
    """Raise ValueError for settings that make no network."""
    if dim < 2 or dim % 2:
        raise ValueError(f"dim is {dim}: it must be an even number of channels")
    for name, values in (("num_blocks", num_blocks), ("heads", heads)):
        if len(values) != 4 or not all(isinstance(value, int) and value > 0 for value in values):
            raise ValueError(f"{name} is {values}: it must be four whole numbers, at least 1 each")
    if num_refinement_blocks < 1:
        raise ValueError(f"num_refinement_blocks is {num_refinement_blocks}: it must be at least 1")
    for level, number in enumerate(heads):
        if (dim << level) % number:
            raise ValueError(
                f"heads is {heads}: {number} does not divide the {dim << level} channels of level {level + 1}"
            )
    if not math.isfinite(ffn_expansion_factor) or int(dim * ffn_expansion_factor) < 1:
        raise ValueError(f"ffn_expansion_factor is {ffn_expansion_factor}: it must be at least 1 / dim")


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that the entries show, and those `known`, which go first.

    Weights tell the hidden channels of the feed-forward networks, not their factor: of those factors
    that give them at every level, the one with the fewest decimals is taken.
    """
    places = re.compile(
        r"(encoder_level[123]|latent|decoder_level[123]|refinement)\.(\d+)\."
        r"(?:attn\.(temperature)|ffn\.(project_in)\.weight)"
    )
    numbers: dict[str, set[int]] = defaultdict(set)
    heads: dict[str, int] = {}
    hidden: set[tuple[int, int]] = set()
    for name, shape in shapes.items():
        if not (found := places.fullmatch(name)):
            continue
        group, block, temperature, project_in = found.groups()
        numbers[group].add(int(block))
        if temperature and len(shape) == 3:
            heads[group] = shape[0]
        elif project_in and len(shape) == 4:
            hidden.add((shape[1], shape[0] // 2))

    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    settings: dict[str, Any] = {
        "bias": "output.bias" in shapes,
        "LayerNorm_type": LAYER_NORMS["encoder_level1.0.norm1.body.bias" not in shapes],
    }
    if len(embedding := shapes.get("patch_embed.proj.weight", ())) == 4:
        settings["dim"] = embedding[0]
    if numbers.keys() >= set(levels):
        settings["num_blocks"] = tuple(len(numbers[level]) for level in levels)
    if "refinement" in numbers:
        settings["num_refinement_blocks"] = len(numbers["refinement"])
    if heads.keys() >= set(levels):
        settings["heads"] = tuple(heads[level] for level in levels)
    if factor := _expansion(hidden):
        settings["ffn_expansion_factor"] = factor
    return {**settings, **known}


def _expansion(hidden: set[tuple[int, int]]) -> float | None:
    """The factor of fewest decimals with int(channels * factor) == hidden for all (channels, hidden)."""
    if not hidden:
        return None
    least = max(number / channels for channels, number in hidden)
    for decimals in range(16):
        factor = math.ceil(least * 10**decimals) / 10**decimals
        if all(int(channels * factor) == number for channels, number in hidden):
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
