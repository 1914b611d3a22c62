"""MPRNet: three stages that see quadrants, halves and the whole of a picture, each refining the last."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..architecture import Architecture, RestorationModel, State, majority


def conv(inputs: int, outputs: int, kernel_size: int) -> nn.Conv2d:
    """A convolution as MPRNet has them: same size, zeros around, no bias."""
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)


class ChannelAttention(nn.Module):
    """x * sigmoid(expand(ReLU(reduce(mean of x over the plane)))), two 1x1 convolutions."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.conv_du = nn.Sequential(
            conv(channels, channels // reduction, 1),
            nn.ReLU(),
            conv(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class ChannelAttentionBlock(nn.Module):
    """CAB: x + attention(convolution(activation(convolution(x)))).

    Args:
        channels: of input and output (N, channels, H, W).
        kernel_size: side of both convolutions.
        reduction: how many times fewer channels the attention has inside.
        activation: a module, which may serve several blocks.
    """

    def __init__(self, channels: int, kernel_size: int, reduction: int, activation: nn.Module):
        super().__init__()
        self.CA = ChannelAttention(channels, reduction)
        self.body = nn.Sequential(
            conv(channels, channels, kernel_size), activation, conv(channels, channels, kernel_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.CA(self.body(x))


class SupervisedAttention(nn.Module):
    """SAM: restores a picture from features, and weighs the features by it.

    `forward` takes features (N, channels, H, W) and the degraded picture (N, 3, H, W), and returns
    features and the restored picture of the same shapes.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv(channels, channels, 1)
        self.conv2 = conv(channels, 3, 1)
        self.conv3 = conv(3, channels, 1)

    def forward(self, features: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.conv2(features) + picture
        return features + self.conv1(features) * self.conv3(restored).sigmoid(), restored


def resample(name: str, factor: float, inputs: int, outputs: int) -> nn.Module:
    """Bilinear resampling, then a 1x1 convolution; the entries begin with `name`."""
    bilinear = nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)
    return nn.Sequential(OrderedDict({name: nn.Sequential(bilinear, conv(inputs, outputs, 1))}))


down = partial(resample, "down", 0.5)
up = partial(resample, "up", 2.0)

Cab = Callable[[int], ChannelAttentionBlock]  # makes a block of so many channels
Widths = tuple[int, int, int]  # channels of the three levels, at 1, 1/2 and 1/4 of the resolution


class Encoder(nn.Module):
    """Features of (N, widths[0], H, W) at three levels, [1, 1/2, 1/4 of the resolution]."""

    def __init__(self, widths: Widths, cab: Cab):
        super().__init__()
        first, second, third = widths
        self.encoder_level1 = nn.Sequential(cab(first), cab(first))
        self.encoder_level2 = nn.Sequential(cab(second), cab(second))
        self.encoder_level3 = nn.Sequential(cab(third), cab(third))
        self.down12 = down(first, second)
        self.down23 = down(second, third)

    def forward(self, x: Tensor) -> list[Tensor]:
        level1 = self.encoder_level1(x)
        level2 = self.encoder_level2(self.down12(level1))
        level3 = self.encoder_level3(self.down23(level2))
        return [level1, level2, level3]


class FusingEncoder(Encoder):
    """An encoder that adds an earlier stage's features, encoded and decoded, to each of its levels (CSFF)."""

    def __init__(self, widths: Widths, cab: Cab):
        super().__init__(widths, cab)
        first, second, third = widths
        self.csff_enc1 = conv(first, first, 1)
        self.csff_enc2 = conv(second, second, 1)
        self.csff_enc3 = conv(third, third, 1)
        self.csff_dec1 = conv(first, first, 1)
        self.csff_dec2 = conv(second, second, 1)
        self.csff_dec3 = conv(third, third, 1)

    def forward(self, x: Tensor, encoded: list[Tensor], decoded: list[Tensor]) -> list[Tensor]:
        level1 = self.encoder_level1(x) + self.csff_enc1(encoded[0]) + self.csff_dec1(decoded[0])
        level2 = self.encoder_level2(self.down12(level1))
        level2 = level2 + self.csff_enc2(encoded[1]) + self.csff_dec2(decoded[1])
        level3 = self.encoder_level3(self.down23(level2))
        level3 = level3 + self.csff_enc3(encoded[2]) + self.csff_dec3(decoded[2])
        return [level1, level2, level3]


class Decoder(nn.Module):
    """The three levels of an encoder to three of the same shapes, from the deepest up."""

    def __init__(self, widths: Widths, cab: Cab):
        super().__init__()
        first, second, third = widths
        self.decoder_level1 = nn.Sequential(cab(first), cab(first))
        self.decoder_level2 = nn.Sequential(cab(second), cab(second))
        self.decoder_level3 = nn.Sequential(cab(third), cab(third))
        self.skip_attn1 = cab(first)
        self.skip_attn2 = cab(second)
        self.up21 = up(second, first)
        self.up32 = up(third, second)

    def forward(self, encoded: list[Tensor]) -> list[Tensor]:
        level3 = self.decoder_level3(encoded[2])
        level2 = self.decoder_level2(self.up32(level3) + self.skip_attn2(encoded[1]))
        level1 = self.decoder_level1(self.up21(level2) + self.skip_attn1(encoded[0]))
        return [level1, level2, level3]


class OriginalResolutionBlock(nn.Module):
    """ORB: x + convolution(CABs(x))."""

    def __init__(self, channels: int, kernel_size: int, num_cab: int, cab: Cab):
        super().__init__()
        cabs = (cab(channels) for _ in range(num_cab))
        self.body = nn.Sequential(*cabs, conv(channels, channels, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class OriginalResolutionNet(nn.Module):
    """ORSNet: three ORBs at full resolution, each followed by one level of the earlier stage's features.

    `forward` takes (N, channels, H, W) and the levels of the encoder and the decoder before, and
    returns (N, channels, H, W).
    """

    def __init__(self, channels: int, widths: Widths, kernel_size: int, num_cab: int, cab: Cab):
        super().__init__()
        first, second, third = widths
        self.orb1 = OriginalResolutionBlock(channels, kernel_size, num_cab, cab)
        self.orb2 = OriginalResolutionBlock(channels, kernel_size, num_cab, cab)
        self.orb3 = OriginalResolutionBlock(channels, kernel_size, num_cab, cab)
        self.up_enc1 = up(second, first)
        self.up_dec1 = up(second, first)
        self.up_enc2 = nn.Sequential(up(third, second), up(second, first))
        self.up_dec2 = nn.Sequential(up(third, second), up(second, first))
        self.conv_enc1 = conv(first, channels, 1)
        self.conv_enc2 = conv(first, channels, 1)
        self.conv_enc3 = conv(first, channels, 1)
        self.conv_dec1 = conv(first, channels, 1)
        self.conv_dec2 = conv(first, channels, 1)
        self.conv_dec3 = conv(first, channels, 1)

    def forward(self, x: Tensor, encoded: list[Tensor], decoded: list[Tensor]) -> Tensor:
        x = self.orb1(x) + self.conv_enc1(encoded[0]) + self.conv_dec1(decoded[0])
        x = self.orb2(x)
        x = x + self.conv_enc2(self.up_enc1(encoded[1])) + self.conv_dec2(self.up_dec1(decoded[1]))
        x = self.orb3(x)
        return x + self.conv_enc3(self.up_enc2(encoded[2])) + self.conv_dec3(self.up_dec2(decoded[2]))


def split(x: Tensor, dim: int) -> Tensor:
    """The halves of x along `dim`, one after the other along the batch."""
    return torch.cat(x.chunk(2, dim))


def join(x: Tensor, dim: int) -> Tensor:
    """What `split` took apart."""
    return torch.cat(x.chunk(2), dim)


class MPRNet(RestorationModel):
    """MPRNet (Zamir et al., "Multi-Stage Progressive Image Restoration", CVPR 2021).

    Stage 1 encodes the quadrants of the picture and decodes its upper and lower half, stage 2 encodes
    the halves and decodes the whole, stage 3 works on the whole at full resolution. Quadrants and
    halves stand along the batch: no layer looks from one sample to another, so each has its own
    borders and its own means, as when they are run one by one.

    All channel attention blocks share one PReLU of one weight. `state_dict()` names it once per block,
    as published files do; `load_state_dict` takes such weights, and those with any but one of these names
    left out, and raises ValueError where the names hold different weights.

    Channel attention weighs channels by their means over the quadrant, half or picture, and these have
    zeros around them: run in tiles, both are those of the tile, whatever the overlap.

    Args:
        n_feat: channels at full resolution: 96 for deblurring, 80 for denoising, 40 for deraining.
        scale_unetfeats: channels added at each lower resolution of stages 1 and 2: 48, 48, 20.
        scale_orsnetfeats: channels added in stage 3: 32, 32, 16.
        num_cab: channel attention blocks in each of the three blocks of stage 3.
        kernel_size: side of the convolutions that are not 1x1, odd.
        reduction: how many times fewer channels the channel attention has inside; it divides the
            three numbers of channels.

    `forward` takes (N, 3, H, W), usually in [0, 1], with H and W multiples of 8, and returns
    [stage 3, stage 2, stage 1]: three restored pictures (N, 3, H, W), the first of them the result. It
    raises ValueError for other shapes; `irnext.restore` takes pictures of any size.
    """

    size_multiple = 8  # a quadrant is halved twice
    minimum_size = 8
    result_index = 0
    tiling: ClassVar[str] = (
        "the means of channel attention, and the borders of quadrants and halves, are those of each tile"
    )

    def __init__(
        self,
        n_feat: int = 96,
        scale_unetfeats: int = 48,
        scale_orsnetfeats: int = 32,
        num_cab: int = 8,
        kernel_size: int = 3,
        reduction: int = 4,
    ):
        super().__init__()
        self.settings = {
            "n_feat": n_feat,
            "scale_unetfeats": scale_unetfeats,
            "scale_orsnetfeats": scale_orsnetfeats,
            "num_cab": num_cab,
            "kernel_size": kernel_size,
            "reduction": reduction,
        }
        _check_settings(self.settings)
        activation = nn.PReLU()
        widths = (n_feat, n_feat + scale_unetfeats, n_feat + 2 * scale_unetfeats)
        wide = n_feat + scale_orsnetfeats

        def cab(channels: int) -> ChannelAttentionBlock:
            return ChannelAttentionBlock(channels, kernel_size, reduction, activation)

        def shallow() -> nn.Sequential:
            return nn.Sequential(conv(3, n_feat, kernel_size), cab(n_feat))

        # Modules stand in the published order, which optimisers' states rely on.
        self.shallow_feat1 = shallow()
        self.shallow_feat2 = shallow()
        self.shallow_feat3 = shallow()
        self.stage1_encoder = Encoder(widths, cab)
        self.stage1_decoder = Decoder(widths, cab)
        self.stage2_encoder = FusingEncoder(widths, cab)
        self.stage2_decoder = Decoder(widths, cab)
        self.stage3_orsnet = OriginalResolutionNet(wide, widths, kernel_size, num_cab, cab)
        self.sam12 = SupervisedAttention(n_feat)
        self.sam23 = SupervisedAttention(n_feat)
        self.concat12 = conv(2 * n_feat, n_feat, kernel_size)
        self.concat23 = conv(2 * n_feat, wide, kernel_size)
        self.tail = conv(wide, 3, kernel_size)

    def forward(self, x: Tensor) -> list[Tensor]:
        self._check_input(x)
        halves = split(x, 2)
        quadrants = split(halves, 3)

        encoded = self.stage1_encoder(self.shallow_feat1(quadrants))
        encoded = [join(level, 3) for level in encoded]
        decoded = self.stage1_decoder(encoded)
        features, restored_halves = self.sam12(decoded[0], halves)

        z = self.concat12(torch.cat((self.shallow_feat2(halves), features), 1))
        encoded = self.stage2_encoder(z, encoded, decoded)
        encoded = [join(level, 2) for level in encoded]
        decoded = self.stage2_decoder(encoded)
        features, restored = self.sam23(decoded[0], x)

        z = self.concat23(torch.cat((self.shallow_feat3(x), features), 1))
        z = self.stage3_orsnet(z, encoded, decoded)
        return [self.tail(z) + x, restored, join(restored_halves, 2)]

    def _load_from_state_dict(self, state_dict: State, prefix: str, *arguments) -> None:
        own = {name: entry for name, entry in state_dict.items() if name.startswith(prefix)}
        state_dict.update(_with_aliases(own))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _check_settings(settings: dict[str, int]) -> None:
    """Raise ValueError for the first setting that makes no network."""
    for name in ("num_cab", "reduction"):
        if settings[name] < 1:
            raise ValueError(f"{name} is {settings[name]}: it must be at least 1")
    if settings["kernel_size"] < 1 or settings["kernel_size"] % 2 == 0:
        raise ValueError(f"kernel_size is {settings['kernel_size']}: it must be odd and positive")
    reduction = settings["reduction"]
    for name, least in (("n_feat", reduction), ("scale_unetfeats", 0), ("scale_orsnetfeats", 0)):
        if settings[name] < least or settings[name] % reduction:
            raise ValueError(
                f"{name} is {settings[name]}: it must be a multiple of reduction, {reduction}, from {least}"
            )


# ---- finding it in files -------------------------------------------------------------------------

_OF_EACH_BLOCK = ".CA.conv_du.0.weight"
_SHARED = ".body.1.weight"


def _with_aliases(state: State) -> State:
    """The entries with the shared PReLU's weight under the name it has in each block.

    Raises ValueError where the names that are there do not hold one and the same weight.
    """
    blocks = [name.removesuffix(_OF_EACH_BLOCK) for name in state if name.endswith(_OF_EACH_BLOCK)]
    aliases = [block + _SHARED for block in blocks]
    present = [alias for alias in aliases if alias in state]
    if not present:
        return state
    shared = state[present[0]]
    for alias in present[1:]:
        if not torch.equal(state[alias], shared):
            raise ValueError(
                f"{present[0]} and {alias} differ: they must hold the same, since MPRNet has one PReLU"
            )
    return {**state, **dict.fromkeys(aliases, shared)}


# Entries that show a setting: their names, and how their shape (outputs, inputs, rows, columns) shows it.
_SHOWN: tuple[tuple[str, re.Pattern, Callable[[torch.Size], int]], ...] = (
    ("n_feat", re.compile(r"shallow_feat\d\.0\.weight"), lambda shape: shape[0]),
    ("kernel_size", re.compile(r"shallow_feat\d\.0\.weight"), lambda shape: shape[3]),
    ("scale_unetfeats", re.compile(r".*_encoder\.down\d\d\.down\.1\.weight"), lambda s: s[0] - s[1]),
    ("scale_orsnetfeats", re.compile(r"stage3_orsnet\.conv_...\d\.weight"), lambda s: s[0] - s[1]),
    ("reduction", re.compile(r".*\.CA\.conv_du\.0\.weight"), lambda shape: shape[1] // shape[0]),
)
_ORB_CAB = re.compile(r"stage3_orsnet\.(orb\d)\.body\.\d+\.CA\.conv_du\.0\.weight")


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that most entries show, and those `known`, which go first."""
    votes: dict[str, list[int]] = defaultdict(list)
    for name, shape in shapes.items():
        for setting, entry, value in _SHOWN:
            if len(shape) == 4 and shape.numel() and entry.fullmatch(name):
                votes[setting].append(value(shape))
    cabs = Counter(found[1] for name in shapes if (found := _ORB_CAB.fullmatch(name)))
    if cabs:
        votes["num_cab"] = list(cabs.values())
    return {**{setting: majority(values) for setting, values in votes.items()}, **known}


ARCHITECTURE = Architecture(
    name="MPRNet",
    build=MPRNet,
    landmarks=(
        "shallow_feat1.0.weight",
        "shallow_feat3.0.weight",
        "stage1_encoder.down12.down.1.weight",
        "stage1_decoder.up21.up.1.weight",
        "stage2_encoder.csff_enc1.weight",
        "stage3_orsnet.conv_enc1.weight",
        "sam12.conv1.weight",
        "concat12.weight",
        "tail.weight",
    ),
    settings=_settings,
    tidy=_with_aliases,
)
