"""The building blocks of IRNeXt (Fig. 3b-e): ConvS, CNNBlock, MultiScaleModule, LocalAttention."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import ops
from .published import PublishedNames

LOW_PASS = ("global", "local", "exact")
ACTIVATIONS = ops.ACTIVATIONS
POOLINGS = ("average", "max", "convolution")
BRANCHES = ("lam", "lam-no-fm", "conv")

# The published local mean: a window of 120 pixels for a picture of 256.
WINDOW, WINDOW_PICTURE = 120, 256


def check_option(name: str, value: object, choices: tuple) -> None:
    """Raise ValueError, naming the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(map(str, choices))}")


def local_window(height: int, width: int) -> tuple[int, int]:
    """The published window of the local low-pass filter for a plane, in pixels."""
    return max(1, height * WINDOW // WINDOW_PICTURE), max(1, width * WINDOW // WINDOW_PICTURE)


class Conv(nn.Conv2d):
    """A convolution of stride 1 that keeps the size, with its activation and residual."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, bias: bool = True, activation=None):
        super().__init__(inputs, outputs, size, padding=size // 2, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.conv2d_bias_act(x, self.weight, self.bias, self.activation, residual)


def is_untouched(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether the module is of this very class and nothing is hooked to, or put in place of, its call."""
    touched = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is cls and not touched


def _is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether the module's call, and its gradient's, may be left out for what they compute."""
    return is_untouched(module, cls) and not (module._backward_hooks or module._backward_pre_hooks)


def is_plain_prediction(project: nn.Module, norm: nn.Module) -> bool:
    """Whether the two modules that predict a filter are the published ones, so that `attend` may stand in."""
    return (
        _is_plain(project, nn.Conv2d)
        and project.bias is None
        and _is_plain(norm, nn.BatchNorm2d)
        and norm.weight is not None
        and norm.track_running_stats
        and norm.running_mean is not None
        and not torch.nn.modules.module._has_any_global_hook()
        and not (norm.training and norm.running_mean.element_size() < 4)
    )


def attend(
    z: Tensor,
    project: nn.Conv2d,
    norm: nn.BatchNorm2d,
    gains: tuple[Tensor, Tensor, Tensor],
    kernel_size: tuple[int, int],
    activation: str,
    window: tuple[int, int] | None = None,
) -> Tensor:
    """A published attention (see `LocalAttention`) by one operator; statistics move as by `norm` itself.

    Args:
        z: (N, C, H, W).
        project, norm: as `is_plain_prediction` asks for.
        gains: l, s and h, C numbers each.
        kernel_size: rows and columns of the filter.
        activation, window: as in `LocalAttention`; no window for the mean of the plane.
    """
    wide = ops.accumulation_dtype(z.dtype)
    parameters = (project.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    y, _, mean, var = ops.local_attention(
        z,
        *(p if p.dtype == wide else p.to(wide) for p in (*parameters, *gains)),
        kernel_size,
        norm.training,
        norm.eps,
        activation,
        window,
    )
    if norm.training:
        running = norm.running_mean, norm.running_var
        batch = (statistic.to(norm.running_mean.dtype) for statistic in (mean, var))
        ops.update_statistics(*running, norm.num_batches_tracked, *batch, len(z), norm.momentum)
    return y


class LocalAttention(PublishedNames):
    """Local attention with filter modulation (LAM, Fig. 3e): a filter predicted from the picture.

    The plane means m give A = activation(BN(W m)), one kernel_size x kernel_size filter per sample
    and channel group, whose response L (Eq. 7) is then modulated:

    - "global": y = l ((1 + s) L - s m) + (1 + h) z, the published dehazing code;
    - "local": the same with m replaced, in that one term, by the mean over a window around the
      pixel, the published motion-deblurring code. The window follows from each input's own size;
      the published code keeps the window of the first picture it sees (pass `window` for that);
    - "exact": Eq. 4-7 of the paper: A' = A_l + w (A - A_l), A_l the mean of A over the taps, and
      y = (filter A') z + z;
    - None: no filter modulation, y = L + z.

    l, s and h start at zero, where the module is the identity. The published code has no name for
    w: its checkpoints load into "global" and "local" only.

    Args:
        channels: C; divisible by `groups`.
        groups: channels of one group share a filter.
        kernel_size: K, odd.
        low_pass: "global", "local", "exact" or None.
        activation: "tanh", "sigmoid", or "softmax" over the taps.
        window: (rows, columns) of the local mean in pixels, for "local"; by default
            (H * 120 // 256, W * 120 // 256) of each input.
        dilation: distance between taps, in pixels; 1 in IRNeXt.

    Shape: (N, C, H, W) to the same, H and W larger than dilation * (K // 2).
    """

    published_names: ClassVar = (
        ("lamb_l", "low_gain"),
        ("lamb_h", "high_gain"),
        ("inside_all", "inner_gain"),
        ("conv.", "project."),
        ("bn.", "norm."),
    )

    def __init__(
        self,
        channels: int,
        groups: int = 8,
        kernel_size: int = 3,
        low_pass: str | None = "global",
        activation: str = "tanh",
        window: tuple[int, int] | None = None,
        dilation: int = 1,
    ):
        super().__init__()
        check_option("low_pass", low_pass, (*LOW_PASS, None))
        check_option("activation", activation, ACTIVATIONS)
        if groups < 1 or channels % groups:
            raise ValueError(f"groups is {groups}: it must divide the {channels} channels")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: it must be odd")
        if dilation < 1:
            raise ValueError(f"dilation is {dilation}: it must be at least 1")
        self.channels, self.groups, self.kernel_size = channels, groups, kernel_size
        self.low_pass, self.activation, self.window = low_pass, activation, window
        self.dilation = dilation
        if low_pass in ("global", "local"):
            self.low_gain = nn.Parameter(torch.zeros(channels))  # l
            self.high_gain = nn.Parameter(torch.zeros(channels))  # h
            self.inner_gain = nn.Parameter(torch.zeros(channels, 1, 1))  # s, in its published shape
        elif low_pass == "exact":
            self.high_pass_weight = nn.Parameter(torch.ones(channels))  # w, Eq. 6
        taps = kernel_size**2
        self.project = nn.Conv2d(channels, groups * taps, 1, bias=False)
        self.norm = nn.BatchNorm2d(groups * taps)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments) -> None:
        if self.low_pass == "exact" and prefix + "lamb_l" in state_dict:
            raise ValueError(
                'a published checkpoint cannot be loaded into low_pass="exact": its gains lamb_l, lamb_h and '
                'inside_all have no place in Eq. 4-7; use low_pass="global" or "local"'
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, z: Tensor) -> Tensor:
        if self.is_published():
            return self.whole(z)
        # The few numbers per plane stay in the parameters' precision, also under autocast.
        with ops.full_precision(z.device.type):
            kernel, bias = self.predict(ops.spatial_mean(z), z)
        return ops.dynamic_conv2d(z, kernel, bias, self.dilation)

    def is_published(self) -> bool:
        """Whether this is IRNeXt's published attention throughout: nothing replaced, hooked or taken out."""
        plain = is_plain_prediction(self.project, self.norm)
        return self.low_pass in ("global", "local") and self.dilation == 1 and plain

    def whole(self, z: Tensor) -> Tensor:
        """y by one operator, which predicts the filter and applies it."""
        window = self.window or local_window(*z.shape[2:]) if self.low_pass == "local" else None
        gains = (self.low_gain, self.inner_gain, self.high_gain)
        kernel_size = (self.kernel_size, self.kernel_size)
        return attend(z, self.project, self.norm, gains, kernel_size, self.activation, window)

    def logits(self, mean: Tensor) -> Tensor:
        """BN(W m): (N, G, K, K) from the plane means (N, C); Eq. 3 before its activation."""
        pixels = mean.to(self.project.weight.dtype)[..., None, None]
        logits = self.norm(self.project(pixels)).to(mean.dtype)
        return logits.view(mean.shape[0], self.groups, self.kernel_size, self.kernel_size)

    def predict(self, mean: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The filter, (N, C, K, K) or (N, G, K, K), and the bias that give y in one `dynamic_conv2d`."""
        attention = ops.activate(self.logits(mean), self.activation)
        if self.low_pass is None:
            return attention + ops.centre_tap(attention), None
        if self.low_pass == "exact":
            attention = attention.repeat_interleave(self.channels // self.groups, 1)
            low = attention.mean((2, 3), keepdim=True)
            weight = self.high_pass_weight.to(mean.dtype)[:, None, None]
            return low + weight * (attention - low) + ops.centre_tap(attention), None
        gains = (self.low_gain, self.inner_gain, self.high_gain)
        low, inner, high = (gain.flatten().to(mean.dtype) for gain in gains)
        kernel = ops.modulated_filter(attention, low, inner, high)
        if self.low_pass == "global":
            return kernel, -low * inner * mean
        window = self.window or local_window(*z.shape[2:])
        return kernel, (-low * inner)[:, None, None] * ops.local_mean(z, window)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, "
            f"low_pass={self.low_pass!r}, activation={self.activation!r}, dilation={self.dilation}"
        )


def make_pool(pooling: str, channels: int, rate: int) -> nn.Module:
    """The down-sampling of one branch by `rate` (Table 9)."""
    if pooling == "max":
        return nn.MaxPool2d(rate)
    if pooling == "average":
        return nn.AvgPool2d(rate)
    halvings = [
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        for _ in range(rate.bit_length() - 1)
    ]
    return nn.Sequential(*halvings)


class MultiScaleModule(PublishedNames):
    """MSM (Fig. 3d): the plane at several scales, coarse to fine, merged and convolved (Eq. 1, 2).

    Args:
        channels: C.
        pool_rates: powers of two, falling.
        pooling: "average", "max" or "convolution".
        branch: "lam", "lam-no-fm" (no filter modulation) or "conv" (no attention).
        groups, kernel_size, low_pass, activation: as in `LocalAttention`.
        attention: makes the module of a branch from its rate, in place of what `branch` and the arguments
            of `LocalAttention` say.

    Shape: (N, C, H, W) to the same, H and W divisible by every rate.
    """

    published_names: ClassVar = (("dynas.", "attentions."), ("conv_sum.", "merge."))

    def __init__(
        self,
        channels: int,
        groups: int = 8,
        kernel_size: int = 3,
        pool_rates: tuple[int, ...] = (8, 4, 2),
        pooling: str = "average",
        activation: str = "tanh",
        branch: str = "lam",
        low_pass: str = "global",
        attention: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        check_option("pooling", pooling, POOLINGS)
        check_option("branch", branch, BRANCHES)

        def local_attention(rate: int) -> nn.Module:
            if branch == "conv":
                return nn.Identity()
            modulation = low_pass if branch == "lam" else None
            return LocalAttention(channels, groups, kernel_size, modulation, activation)

        self.pool_rates, self.pooling = tuple(pool_rates), pooling
        powers = all(isinstance(r, int) and r > 1 and not r & (r - 1) for r in self.pool_rates)
        if not self.pool_rates or not powers or any(a <= b for a, b in itertools.pairwise(self.pool_rates)):
            raise ValueError(f"pool_rates is {self.pool_rates}: falling powers of two, at least 2")
        if pooling != "average":  # average pools have no weights and share one read: ops.pool_pyramid
            self.pools = nn.ModuleList(make_pool(pooling, channels, rate) for rate in self.pool_rates)
        self.convs = nn.ModuleList(Conv(channels, channels, bias=False) for _ in self.pool_rates)
        self.attentions = nn.ModuleList(map(attention or local_attention, self.pool_rates))
        self.merge = Conv(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.pooling == "average":
            scales = ops.pool_pyramid(x, self.pool_rates)
        else:
            scales = [pool(x) for pool in self.pools]
        outputs: list[Tensor] = []
        for scale, conv, attention in zip(scales, self.convs, self.attentions, strict=True):
            if outputs:
                scale = ops.merge_pyramid(scale, [outputs[-1]], None)
            outputs.append(attention(conv(scale)))
        return self.merge(ops.merge_pyramid(x, outputs))


class ResidualBlock(PublishedNames):
    """3x3, GELU, the multi-scale module where there is one, 3x3, + input."""

    published_names: ClassVar = (
        ("main.0.main.0.", "conv1."),
        ("main.1.", "msm."),
        ("main.2.main.0.", "conv2."),
    )

    def __init__(self, channels: int, msm: nn.Module | None = None):
        super().__init__()
        self.conv1 = Conv(channels, channels, activation="gelu")
        self.msm = msm
        self.conv2 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if self.msm is not None:
            y = self.msm(y)
        return self.conv2(y, residual=x)


class CNNBlock(PublishedNames):
    """Residual blocks, the last `msm_per_block` of which hold a multi-scale module (Fig. 3c)."""

    def __init__(self, channels: int, blocks: int, msm_per_block: int = 1, **msm_options):
        super().__init__()
        plain = blocks - msm_per_block
        self.layers = nn.Sequential(
            *(
                ResidualBlock(channels, MultiScaleModule(channels, **msm_options) if i >= plain else None)
                for i in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvS(PublishedNames):
    """Shallow features of a smaller picture (Fig. 3b): (N, 3, H, W) to (N, C, H, W)."""

    published_names: ClassVar = (
        *((f"main.{i}.main.0.", f"convs.{i}.") for i in range(4)),
        ("main.4.", "norm."),
    )

    def __init__(self, channels: int):
        super().__init__()
        quarter, half = channels // 4, channels // 2
        self.convs = nn.Sequential(
            Conv(3, quarter, activation="gelu"),
            Conv(quarter, half, 1, activation="gelu"),
            Conv(half, half, activation="gelu"),
            Conv(half, channels, 1),
        )
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        return self.norm(y) if y.shape[0] else y  # PyTorch's instance norm refuses an empty batch
