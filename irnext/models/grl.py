"""GRL: a transformer that models global, regional and local ranges side by side."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import Architecture, RestorationModel, State, majority
from ..blocks import check_option
from ..ops import accumulation_dtype
from ..padding import next_multiple, reflect_to
from .grl_attention import MixedAttention, Plan, Windows, relative_coordinates

STRIPES = ("stripe_size", "stripe_groups")  # the settings, of the height and the width
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
UPSAMPLERS = ("", "pixelshuffledirect", "pixelshuffle", "nearest+conv")
HEAD_CHANNELS = 64  # of the heads for super-resolution
FACTOR = 4  # pixels per anchor along a side, as published
COMPRESSION, REDUCTION = 4, 18  # of the local branch, and of its channel attention

# Windows and stripes, in pixels, as published for each task.
WINDOWS: dict[str, dict[str, Any]] = {
    "denoising": {"window_size": 16, "stripe_size": (64, 128)},
    "motion deblurring": {"window_size": 12, "stripe_size": (48, 96)},
    "defocus deblurring": {"window_size": 16, "stripe_size": (48, 96)},
    "super-resolution": {"window_size": 32, "stripe_size": (64, 64)},
    "real-world super-resolution": {"window_size": 16, "stripe_size": (32, 64)},
}

TINY = {"embed_dim": 64, "depths": (4,) * 4, "num_heads_window": (2,) * 4, "num_heads_stripe": (2,) * 4}
SMALL = {**TINY, "embed_dim": 128}
BASE = {
    "embed_dim": 180,
    "depths": (4, 4, 8, 8, 8, 4, 4),
    "num_heads_window": (3,) * 7,
    "num_heads_stripe": (3,) * 7,
    "local_connection": True,
}


def _enlarging(size: dict[str, Any], upsampler: str, upscale: int) -> dict[str, Any]:
    return {**size, **WINDOWS["super-resolution"], "upsampler": upsampler, "upscale": upscale}


PRESETS: dict[str, dict[str, Any]] = {
    "grl-tiny": {**TINY, **WINDOWS["denoising"]},
    "grl-small": {**SMALL, **WINDOWS["denoising"]},
    "grl-base": {**BASE, **WINDOWS["motion deblurring"]},
    "grl-base-defocus": {**BASE, **WINDOWS["defocus deblurring"]},
    **{f"grl-tiny-x{n}": _enlarging(TINY, "pixelshuffledirect", n) for n in (2, 3, 4)},
    **{f"grl-small-x{n}": _enlarging(SMALL, "pixelshuffle", n) for n in (2, 3, 4)},
    **{f"grl-base-x{n}": _enlarging(BASE, "pixelshuffle", n) for n in (2, 3, 4)},
}


class Mlp(nn.Module):
    """Linear, GELU, linear, for each pixel."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ChannelAttention(nn.Module):
    """x times a gate per channel, made of the plane's means: (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // REDUCTION, 1),
            nn.ReLU(),
            nn.Conv2d(channels // REDUCTION, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class LocalConnection(nn.Module):
    """The local branch, convolutions enhanced by channel attention: (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.cab = nn.Sequential(
            conv(channels, channels // COMPRESSION),
            nn.GELU(),
            conv(channels // COMPRESSION, channels),
            ChannelAttention(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cab(x)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size of the plane."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def to_channels_first(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, C, H, W), without a copy: it is channels_last then."""
    return x.permute(0, 3, 1, 2)


def to_channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C), without a copy."""
    return x.permute(0, 2, 3, 1)


class Block(nn.Module):
    """A transformer layer: y = x + norm(attention(x)) [+ local(x)], then y + norm(mlp(y)); (N, H, W, C)."""

    def __init__(
        self,
        channels: int,
        window_heads: int,
        stripe_heads: int,
        factor: int,
        hidden: int,
        local_connection: bool,
    ):
        super().__init__()
        self.attn = MixedAttention(channels, window_heads, stripe_heads, factor)
        self.norm1 = nn.LayerNorm(channels)
        self.conv = LocalConnection(channels) if local_connection else None
        self.mlp = Mlp(channels, hidden)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        y = x + self.norm1(self.attn(x, plan))
        if self.conv is not None:
            y = y + to_channels_last(self.conv(to_channels_first(x)))
        return y + self.norm2(self.mlp(y))


class Stage(nn.Module):
    """Blocks and a convolution, + the input: (N, H, W, C)."""

    def __init__(self, blocks: list[Block], channels: int):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor, plans: list[Plan]) -> Tensor:
        y = x
        for i, block in enumerate(self.blocks):
            y = block(y, plans[i % len(plans)])
        return x + to_channels_last(self.conv(to_channels_first(y)))


class PixelShuffles(nn.Module):
    """Up-sampling by convolutions and pixel shuffles to `outputs` channels: at once, or in steps."""

    def __init__(self, inputs: int, outputs: int, steps: list[int]):
        super().__init__()
        layers = []
        for step in steps:
            layers += [conv(inputs, step**2 * outputs), nn.PixelShuffle(step)]
        self.up = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class GRL(RestorationModel):
    """GRL (Li et al., CVPR 2023): "Efficient and Explicit Modelling of Image Hierarchies for Image
    Restoration".

    Args:
        img_size: side of the pictures trained with, in pixels. Kept as published files have it; results
            do not depend on it, as everything that depends on the size is made for each input.
        upscale: how many times as many pixels the result has along a side: 1 without an upsampler, 4 with
            "nearest+conv", a power of two or 3 with "pixelshuffle", any with "pixelshuffledirect".
        in_channels: 3.
        img_range: the network computes with pictures times this.
        upsampler: the head: "" adds its result to the input; "pixelshuffledirect" is one convolution and
            one shuffle, as in the published tiny models for super-resolution; "pixelshuffle" does it in
            steps, as in the others; "nearest+conv" is that of real-world super-resolution.
        window_size: side of the windows, in pixels. Published: 16 for denoising and for defocus, 12 for
            motion deblurring, 32 for super-resolution, 36 for JPEG artefacts.
        stripe_size: height and width of the horizontal stripes, in pixels; vertical ones have the width
            and the height. Published: (64, 128) for denoising, (48, 96) for deblurring, (64, 64) for
            super-resolution, (72, 144) for JPEG artefacts. None where `stripe_groups` has a number.
        stripe_groups: number of horizontal stripes along the height and along the width instead of their
            size, or None.
        anchor_window_down_factor: pixels per anchor along a side; divides the stripes' sides.
        embed_dim: channels; a multiple of twice each number of heads.
        depths: blocks of each stage.
        num_heads_window, num_heads_stripe: heads of the two attentions, for each stage.
        mlp_ratio: hidden channels of the pixels' networks, in units of `embed_dim`.
        local_connection: whether blocks have a branch of convolutions, as in GRL-B.

    `forward` takes (N, 3, H, W), usually in [0, 1], of any H and W, and returns the restored pictures
    (N, 3, upscale * H, upscale * W). Inside, pictures are continued by reflection, to the right and at the
    bottom, to a multiple of all windows. There is no stochastic depth. It raises ValueError for other
    shapes.
    """

    tiling = "everywhere a little different: windows and stripes are laid out anew in each tile"

    def __init__(
        self,
        img_size: int = 64,
        upscale: int = 1,
        in_channels: int = 3,
        img_range: float = 1.0,
        upsampler: str = "",
        window_size: int = 16,
        stripe_size: tuple[int | None, int | None] = (64, 128),
        stripe_groups: tuple[int | None, int | None] = (None, None),
        anchor_window_down_factor: int = FACTOR,
        embed_dim: int = 64,
        depths: tuple[int, ...] = (4, 4, 4, 4),
        num_heads_window: tuple[int, ...] = (2, 2, 2, 2),
        num_heads_stripe: tuple[int, ...] = (2, 2, 2, 2),
        mlp_ratio: float = 2.0,
        local_connection: bool = False,
    ):
        super().__init__()
        self.settings = {
            "img_size": img_size,
            "upscale": upscale,
            "in_channels": in_channels,
            "img_range": img_range,
            "upsampler": upsampler,
            "window_size": window_size,
            "stripe_size": _listed("stripe_size", stripe_size),
            "stripe_groups": _listed("stripe_groups", stripe_groups),
            "anchor_window_down_factor": anchor_window_down_factor,
            "embed_dim": embed_dim,
            "depths": _listed("depths", depths),
            "num_heads_window": _listed("num_heads_window", num_heads_window),
            "num_heads_stripe": _listed("num_heads_stripe", num_heads_stripe),
            "mlp_ratio": mlp_ratio,
            "local_connection": local_connection,
        }
        _check(self.settings)
        self.scale = upscale
        self.window = (window_size, window_size)
        self.multiple = _multiple(self.settings)

        self.conv_first = conv(in_channels, embed_dim)
        self.norm_start = nn.LayerNorm(embed_dim)
        self.layers = nn.ModuleList(
            Stage(
                [
                    Block(
                        embed_dim,
                        window_heads,
                        stripe_heads,
                        anchor_window_down_factor,
                        int(embed_dim * mlp_ratio),
                        local_connection,
                    )
                    for _ in range(depth)
                ],
                embed_dim,
            )
            for depth, window_heads, stripe_heads in zip(
                depths, num_heads_window, num_heads_stripe, strict=True
            )
        )
        self.norm_end = nn.LayerNorm(embed_dim)
        self.conv_after_body = conv(embed_dim, embed_dim)
        self._add_head(upsampler, upscale, embed_dim, in_channels)
        self.apply(_initialise)

    def _add_head(self, upsampler: str, upscale: int, channels: int, outputs: int) -> None:
        if upsampler == "pixelshuffledirect":
            self.upsample = PixelShuffles(channels, outputs, [upscale])
            return
        if upsampler:
            self.conv_before_upsample = nn.Sequential(conv(channels, HEAD_CHANNELS), nn.LeakyReLU())
            channels = HEAD_CHANNELS
        if upsampler == "pixelshuffle":
            self.upsample = PixelShuffles(channels, channels, _steps(upscale))
        elif upsampler == "nearest+conv":
            self.conv_up1 = conv(channels, channels)
            self.conv_up2 = conv(channels, channels)
            self.conv_hr = conv(channels, channels)
        self.conv_last = conv(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        height, width = x.shape[2:]
        whole = continued(x, self.multiple).contiguous(memory_format=torch.channels_last)
        whole = (whole - rgb_mean(x)) * self.settings["img_range"]
        shallow = self.conv_first(whole)
        y = self._head(self.conv_after_body(self._body(shallow)) + shallow)
        y = y[:, :, : height * self.scale, : width * self.scale] / self.settings["img_range"]
        y = y + (rgb_mean(x) if self.settings["upsampler"] else x)
        return y.contiguous() if x.is_contiguous() else y

    def _body(self, x: Tensor) -> Tensor:
        plans = self._plans(x)
        y = self.norm_start(to_channels_last(x))
        for layer in self.layers:
            y = layer(y, plans)
        return to_channels_first(self.norm_end(y))

    def _plans(self, x: Tensor) -> list[Plan]:
        """Of blocks i, i + 4, ... of each stage, for i = 0 to 3.

        Windows are shifted in even blocks. Stripes are horizontal in even blocks and vertical in odd ones,
        and shifted in every second pair of blocks.
        """
        factor, dtype = self.settings["anchor_window_down_factor"], accumulation_dtype(x.dtype)
        shift = tuple(side // 2 for side in self.window)
        windows = [Windows(self.window, shift), Windows(self.window)]
        window_coordinates = relative_coordinates(self.window, self.window, dtype, x.device)
        plans = []
        for i in range(4):
            stripes = self._stripes(tuple(x.shape[2:]), vertical=i % 2 == 1, shifted=i >= 2)
            anchors = stripes.reduced(factor)
            coordinates = relative_coordinates(stripes.size, anchors.size, dtype, x.device)
            plans.append(Plan(windows[i % 2], window_coordinates, stripes, anchors, coordinates))
        return plans

    def _stripes(self, plane: tuple[int, int], vertical: bool, shifted: bool) -> Windows:
        """The stripes of a plane, not shifted along an axis where one is alone, or has no two anchors."""
        axes = zip(plane, *(self.settings[name][:: -1 if vertical else 1] for name in STRIPES), strict=True)
        least = 2 * self.settings["anchor_window_down_factor"]
        size, shift = [], []
        for length, side, groups in axes:
            size.append(side if groups is None else length // groups)
            shift.append(size[-1] // 2 if shifted and groups != 1 and size[-1] >= least else 0)
        return Windows(tuple(size), tuple(shift))

    def _head(self, x: Tensor) -> Tensor:
        """Pictures of features (N, C, H, W)."""
        upsampler = self.settings["upsampler"]
        if upsampler == "pixelshuffledirect":
            return self.upsample(x)
        if upsampler:
            x = self.conv_before_upsample(x)
        if upsampler == "pixelshuffle":
            x = self.upsample(x)
        elif upsampler == "nearest+conv":
            for up in (self.conv_up1, self.conv_up2):
                x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
            x = F.leaky_relu(self.conv_hr(x), 0.2)
        return self.conv_last(x)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments) -> None:
        for name in [name for name in state_dict if _is_table(name.removeprefix(prefix))]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def rgb_mean(like: Tensor) -> Tensor:
    """The mean colour (1, 3, 1, 1), rounded once to the type of `like`, and made on its device."""
    return torch.cat([like.new_full((1, 1, 1, 1), value) for value in RGB_MEAN], 1)


def continued(x: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) continued to multiples by reflection without repeating the border, as often as needed."""
    for axis in (2, 3):
        if x.shape[axis] % multiple:
            x = reflect_to(x, axis, next_multiple(x.shape[axis], multiple))
    return x


def _initialise(module: nn.Module) -> None:
    """Linear layers as in Swin Transformer; the rest stays as PyTorch has it."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _steps(upscale: int) -> list[int]:
    """The factors of the pixel shuffles of upsampler="pixelshuffle"."""
    return [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)


def _multiple(settings: dict[str, Any]) -> int:
    """What planes are continued to: all windows and stripes fit in."""
    sides = [side for side in settings["stripe_size"] if side is not None]
    groups = [number for number in settings["stripe_groups"] if number is not None]
    factor = settings["anchor_window_down_factor"]
    return math.lcm(settings["window_size"], *sides, *(factor * number for number in groups))


# ---- settings ------------------------------------------------------------------------------------


def _listed(name: str, values: Any) -> tuple:
    if not isinstance(values, (tuple, list)):
        raise ValueError(f"{name} is {values!r}: it must be a list")
    return tuple(values)


def _check(settings: dict[str, Any]) -> None:
    """Raise ValueError for settings that make no network."""
    if settings["in_channels"] != 3:
        raise ValueError(f"in_channels is {settings['in_channels']}: it must be 3, as pictures are RGB")
    for name in ("img_range", "mlp_ratio"):
        if not (isinstance(settings[name], (int, float)) and 0 < settings[name] < math.inf):
            raise ValueError(f"{name} is {settings[name]!r}: it must be a positive number")
    for name in ("img_size", "window_size", "anchor_window_down_factor", "embed_dim"):
        if not _is_count(settings[name]):
            raise ValueError(f"{name} is {settings[name]!r}: it must be a whole number from 1")
    _check_stripes(settings)
    _check_stages(settings)
    _check_head(settings["upsampler"], settings["upscale"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _check_stripes(settings: dict[str, Any]) -> None:
    factor = settings["anchor_window_down_factor"]
    for name in STRIPES:
        if len(settings[name]) != 2 or not all(v is None or _is_count(v) for v in settings[name]):
            raise ValueError(
                f"{name} is {settings[name]}: two whole numbers from 1, of height and width, or None"
            )
    for side, groups in zip(*(settings[name] for name in STRIPES), strict=True):
        if groups is None and (side is None or side % factor):
            raise ValueError(
                f"stripe_size is {settings['stripe_size']}: sides must be multiples of "
                f"anchor_window_down_factor={factor}, or None where stripe_groups has a number"
            )


def _check_stages(settings: dict[str, Any]) -> None:
    channels, depths = settings["embed_dim"], settings["depths"]
    if not depths or not all(map(_is_count, depths)):
        raise ValueError(f"depths is {depths}: it must give at least 1 block for each stage")
    for name in ("num_heads_window", "num_heads_stripe"):
        heads = settings[name]
        if len(heads) != len(depths) or not all(_is_count(n) and channels % (2 * n) == 0 for n in heads):
            raise ValueError(
                f"{name} is {heads}: one number for each of the {len(depths)} stages, "
                f"of which embed_dim={channels} is a multiple when doubled"
            )
    if int(channels * settings["mlp_ratio"]) < 1:
        raise ValueError(f"mlp_ratio is {settings['mlp_ratio']}: at least 1 hidden channel must come of it")
    if settings["local_connection"] and channels < REDUCTION:
        raise ValueError(f"embed_dim is {channels}: with local_connection it must be at least {REDUCTION}")


def _check_head(upsampler: str, upscale: int) -> None:
    check_option("upsampler", upsampler, UPSAMPLERS)
    times = upscale if _is_count(upscale) else 0
    fits, rule = {
        "": (times == 1, "1, as no upsampler is given"),
        "pixelshuffledirect": (times > 1, "at least 2"),
        "pixelshuffle": (times == 3 or (times > 1 and times.bit_count() == 1), "3 or a power of two from 2"),
        "nearest+conv": (times == 4, "4"),
    }[upsampler]
    if not fits:
        raise ValueError(f"upscale is {upscale!r}: with upsampler={upsampler!r} it must be {rule}")


# ---- what files tell -----------------------------------------------------------------------------

_TABLES = re.compile(r"(table_(w|sh|sv)|(index|mask)_(w|s[hv]_(a2w|w2a)))")


def _is_table(name: str) -> bool:
    """Whether an entry of a published file depends on the size alone; here those are made as needed."""
    return _TABLES.fullmatch(name) is not None


def _tidy(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not _is_table(name)}


def _settings(shapes: dict[str, torch.Size], known: dict[str, Any]) -> dict[str, Any]:
    """The settings that the entries show, and those `known`, which go first.

    Each is what most of the entries show. Windows leave no trace in weights: where a file has no published
    tables, they are those published for networks with so many channels and such a head.
    """
    shown: dict[str, list] = {"embed_dim": [], "mlp_ratio": []}
    stages: dict[int, dict[str, Any]] = {}
    for name, shape in shapes.items():
        found = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)", name)
        if not found:
            continue
        stage = stages.setdefault(int(found[1]), {"blocks": set(), "window": [], "stripe": []})
        stage["blocks"].add(int(found[2]))
        if attention := re.fullmatch(r"attn\.(window|stripe)_attn\.\w+\.logit_scale", found[3]):
            stage[attention[1]].extend(shape[:1])
        elif found[3] == "mlp.fc1.weight" and len(shape) == 2 and all(shape):
            shown["embed_dim"].append(shape[1])
            shown["mlp_ratio"].append(_ratio(*shape))
    settings = {name: majority(values) for name, values in shown.items() if values}
    ordered = [stages[i] for i in sorted(stages)]
    if ordered:
        settings["depths"] = tuple(len(stage["blocks"]) for stage in ordered)
        settings["local_connection"] = _has_local_connection(shapes, sum(settings["depths"]))
    for kind in ("window", "stripe"):
        if ordered and all(stage[kind] for stage in ordered):
            settings[f"num_heads_{kind}"] = tuple(majority(stage[kind]) for stage in ordered)
    settings |= _head_settings(shapes)
    settings |= known
    return {**WINDOWS[_likely_task(settings)], **_windows(shapes, settings), **settings}


def _ratio(hidden: int, channels: int) -> float:
    """A factor that gives `hidden`, rounded down."""
    ratio = hidden / channels
    return ratio if int(channels * ratio) == hidden else math.nextafter(ratio, math.inf)


def _has_local_connection(shapes: dict[str, torch.Size], blocks: int) -> bool:
    return 2 * sum(name.endswith(".conv.cab.0.weight") for name in shapes) > blocks


def _windows(shapes: dict[str, torch.Size], settings: dict[str, Any]) -> dict[str, Any]:
    """The windows that the published tables show, (1, h, w, 2): h x w relative positions."""
    windows: dict[str, Any] = {}
    if len(table := shapes.get("table_w", ())) == 4:
        windows["window_size"] = (table[1] + 1) // 2
    if len(table := shapes.get("table_sh", ())) == 4:
        factor = settings.get("anchor_window_down_factor", FACTOR)
        # Of a stripe's side s to its anchors' s / factor there are s + s / factor - 1.
        windows["stripe_size"] = tuple((places + 1) * factor // (factor + 1) for places in table[1:3])
    return windows


def _head_settings(shapes: dict[str, torch.Size]) -> dict[str, Any]:
    """The upsampler, and how many times it enlarges, by the entries behind the body."""
    steps = [
        shape for name, shape in shapes.items() if re.fullmatch(r"upsample\.up\.\d+\.weight", name) and shape
    ]
    if any(name.startswith("conv_up1.") for name in shapes):
        return {"upsampler": "nearest+conv", "upscale": 4}
    if any(name.startswith("conv_before_upsample.") for name in shapes):
        threefold = len(steps) == 1 and steps[0][0] == 9 * HEAD_CHANNELS
        return {"upsampler": "pixelshuffle", "upscale": 3 if threefold else 2 ** max(len(steps), 1)}
    if steps:
        return {"upsampler": "pixelshuffledirect", "upscale": math.isqrt(steps[0][0] // 3)}
    return {"upsampler": "", "upscale": 1}


def _likely_task(settings: dict[str, Any]) -> str:
    """A task that networks with such channels and such a head were published for."""
    upsampler = settings.get("upsampler", "")
    if upsampler:
        return "real-world super-resolution" if upsampler == "nearest+conv" else "super-resolution"
    return "motion deblurring" if settings.get("embed_dim") == BASE["embed_dim"] else "denoising"


def _assumed(settings: dict[str, Any]) -> str | None:
    task = _likely_task(settings)
    if any(settings[name] != value for name, value in WINDOWS[task].items()):
        return None
    return (
        "which windows it was trained with: window_size {window_size} and stripe_size {stripe_size} assumed, "
        "as published for {task}; give --model NAME for those of another task"
    ).format(**settings, task=task)


ARCHITECTURE = Architecture(
    name="GRL",
    build=GRL,
    landmarks=(
        "norm_start.weight",
        "norm_end.weight",
        "layers.0.conv.weight",
        "layers.0.blocks.0.attn.qkv.body.weight",
        "layers.0.blocks.0.attn.anchor.body.0.reduction.weight",
        "layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale",
        "layers.0.blocks.0.attn.stripe_attn.attn_transform1.logit_scale",
        "layers.0.blocks.0.attn.stripe_attn.attn_transform2.logit_scale",
        "layers.0.blocks.0.mlp.fc1.weight",
    ),
    settings=_settings,
    tidy=_tidy,
    assumed=_assumed,
)
