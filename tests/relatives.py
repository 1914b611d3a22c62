"""Operators of IRNeXt's relatives under their published names, written anew from their formulas.

One class stands for each program whose modules bear the same names; pickle finds them there. Everything
is as plain as it can be: every shifted copy of x is stored, weighted and summed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def respond(padded: Tensor, weights: Tensor, x: Tensor, kernel: tuple[int, int], dilation: int = 1) -> Tensor:
    """L: the copies of x (N, C, H, W) by every tap, times weights (N, G, T, 1), summed over the taps."""
    n, c, h, w = x.shape
    groups, taps = weights.shape[1:3]
    copies = F.unfold(padded, kernel, dilation=dilation).reshape(n, groups, c // groups, taps, h * w)
    return (copies * weights[:, :, None]).sum(3).reshape(n, c, h, w)


def modulate(module: nn.Module, response: Tensor, low_pass: Tensor, x: Tensor) -> Tensor:
    """l ((1 + s) L - s m) + (1 + h) x."""
    low = (1 + module.inside_all) * response - module.inside_all * low_pass
    return module.lamb_l[:, None, None] * low + (1 + module.lamb_h[:, None, None]) * x


def add_gains(module: nn.Module, channels: int) -> None:
    module.lamb_l = nn.Parameter(torch.zeros(channels))
    module.lamb_h = nn.Parameter(torch.zeros(channels))
    module.inside_all = nn.Parameter(torch.zeros(channels, 1, 1))


class LatchedMean(nn.Module):
    """The published local mean: the window follows from the first plane it ever sees, and stays."""

    def __init__(self, base: int = 120):
        super().__init__()
        self.base, self.window = base, None

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if self.window is None:
            self.window = h * self.base // 256, w * self.base // 256
        rows, columns = min(self.window[0], h), min(self.window[1], w)
        means = F.avg_pool2d(x, (rows, columns), stride=1)
        top, left = (rows - 1) // 2, (columns - 1) // 2
        return F.pad(means, (left, columns - 1 - left, top, rows - 1 - top), "replicate")


class IRNeXt:
    class dynamic_filter(nn.Module):
        """The local attention; with dilation as in ConvIR."""

        def __init__(self, channels: int, kernel_size: int = 3, dilation: int = 1, group: int = 8):
            super().__init__()
            self.kernel_size, self.dilation, self.group = kernel_size, dilation, group
            add_gains(self, channels)
            self.conv = nn.Conv2d(channels, group * kernel_size**2, 1, bias=False)
            self.bn = nn.BatchNorm2d(group * kernel_size**2)
            self.act = nn.Tanh()
            self.pad = nn.ReflectionPad2d(dilation * (kernel_size // 2))
            self.ap = nn.AdaptiveAvgPool2d((1, 1))
            self.gap = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.bn(self.conv(self.ap(x)))
            weights = self.act(weights.reshape(len(x), self.group, -1, 1))
            size = (self.kernel_size, self.kernel_size)
            return modulate(self, respond(self.pad(x), weights, x, size, self.dilation), self.gap(x), x)

    class DeepPoolLayer(nn.Module):
        """The multi-scale module; `dynas` are made by the caller, coarse to fine."""

        def __init__(self, channels: int, dynas: list[nn.Module]):
            super().__init__()
            self.pools = nn.ModuleList(nn.AvgPool2d(rate, rate) for rate in (8, 4, 2))
            self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in dynas)
            self.dynas = nn.ModuleList(dynas)
            self.relu = nn.GELU()
            self.conv_sum = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            total, up = x, 0
            for pool, conv, dyna in zip(self.pools, self.convs, self.dynas, strict=True):
                y = dyna(conv(pool(x) + up))
                up = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
                total = total + F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True)
            return self.conv_sum(self.relu(total))


class ConvIR:
    dynamic_filter = IRNeXt.dynamic_filter
    DeepPoolLayer = IRNeXt.DeepPoolLayer

    class spatial_strip_att(nn.Module):
        """A strip with gains: the mean is of the row (1 x k, H) or of the column (k x 1)."""

        def __init__(self, channels: int, kernel: int = 3, dilation: int = 1, group: int = 8, H: bool = True):
            super().__init__()
            self.k, self.dilation, self.group = kernel, dilation, group
            self.kernel = (1, kernel) if H else (kernel, 1)
            reach = dilation * (kernel // 2)
            self.pad = nn.ReflectionPad2d((reach, reach, 0, 0) if H else (0, 0, reach, reach))
            self.conv = nn.Conv2d(channels, group * kernel, 1, bias=False)
            self.ap = nn.AdaptiveAvgPool2d((1, 1))
            self.filter_act = nn.Tanh()
            self.gap = nn.AdaptiveAvgPool2d((None, 1) if H else (1, None))
            add_gains(self, channels)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.filter_act(self.conv(self.ap(x)).reshape(len(x), self.group, self.k, 1))
            response = respond(self.pad(x), weights, x, self.kernel, self.dilation)
            return modulate(self, response, self.gap(x), x)

    class cubic_attention(nn.Module):
        """Both strips, gamma times their result plus beta times x."""

        def __init__(self, channels: int, dilation: int, group: int = 8, kernel: int = 3):
            super().__init__()
            self.H_spatial_att = ConvIR.spatial_strip_att(channels, kernel, dilation, group)
            self.W_spatial_att = ConvIR.spatial_strip_att(channels, kernel, dilation, group, H=False)
            self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))
            self.beta = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.gamma * self.W_spatial_att(self.H_spatial_att(x)) + self.beta * x

    class MultiShapeKernel(nn.Module):
        """The square filter and the strips, added."""

        def __init__(self, channels: int, dilation: int):
            super().__init__()
            self.square_att = ConvIR.dynamic_filter(channels, dilation=dilation)
            self.strip_att = ConvIR.cubic_attention(channels, dilation)

        def forward(self, x: Tensor) -> Tensor:
            return self.strip_att(x) + self.square_att(x)


class FSNet:
    class SFconv(nn.Module):
        """The gates of high and low frequencies."""

        def __init__(self, channels: int):
            super().__init__()
            hidden = max(channels // 2, 32)
            self.fc = nn.Conv2d(channels, hidden, 1)
            self.fcs = nn.ModuleList(nn.Conv2d(hidden, channels, 1) for _ in range(2))
            self.softmax = nn.Softmax(dim=1)
            self.out = nn.Conv2d(channels, channels, 1)
            self.gap = nn.AdaptiveAvgPool2d(1)

        def forward(self, low: Tensor, high: Tensor) -> Tensor:
            z = self.fc(self.gap(low + high))
            gates = self.softmax(torch.cat([fc(z) for fc in self.fcs], 1))
            gate_high, gate_low = gates.chunk(2, 1)
            return self.out(gate_high * high + gate_low * low)

    class dynamic_filter(nn.Module):
        """A filter of weights that sum to one, and a gate; lamb_l and lamb_h are not used."""

        def __init__(self, channels: int, kernel_size: int = 3, group: int = 8):
            super().__init__()
            self.kernel_size, self.group = kernel_size, group
            self.lamb_l = nn.Parameter(torch.zeros(channels))
            self.lamb_h = nn.Parameter(torch.zeros(channels))
            self.conv = nn.Conv2d(channels, group * kernel_size**2, 1, bias=False)
            self.bn = nn.BatchNorm2d(group * kernel_size**2)
            self.act = nn.Softmax(dim=-2)
            self.pad = nn.ReflectionPad2d(kernel_size // 2)
            self.ap = nn.AdaptiveAvgPool2d((1, 1))
            self.modulate = FSNet.SFconv(channels)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.bn(self.conv(self.ap(x)))
            weights = self.act(weights.reshape(len(x), self.group, -1, 1))
            low = respond(self.pad(x), weights, x, (self.kernel_size, self.kernel_size))
            return self.modulate(low, x - low)

    class TwoSizes(nn.Module):
        """Filters of 3 x 3 and 5 x 5, each on half of the channels."""

        def __init__(self, channels: int):
            super().__init__()
            self.dyna = FSNet.dynamic_filter(channels // 2, 3)
            self.dyna_2 = FSNet.dynamic_filter(channels // 2, 5)

        def forward(self, x: Tensor) -> Tensor:
            first, second = x.chunk(2, 1)
            return torch.cat((self.dyna(first), self.dyna_2(second)), 1)


class SANet:
    class spatial_strip_att(nn.Module):
        """A strip without gains."""

        def __init__(self, channels: int, kernel: int = 11, group: int = 1, H: bool = True):
            super().__init__()
            self.k, self.group = kernel, group
            self.kernel = (1, kernel) if H else (kernel, 1)
            reach = kernel // 2
            self.pad = nn.ReflectionPad2d((reach, reach, 0, 0) if H else (0, 0, reach, reach))
            self.conv = nn.Conv2d(channels, group * kernel, 1, bias=False)
            self.ap = nn.AdaptiveAvgPool2d((1, 1))
            self.filter_act = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            weights = self.filter_act(self.conv(self.ap(x)).reshape(len(x), self.group, self.k, 1))
            return respond(self.pad(x), weights, x, self.kernel)

    class cubic_attention(nn.Module):
        """Both strips, gamma times their result plus beta times x."""

        def __init__(self, channels: int, kernel: int = 11, group: int = 1):
            super().__init__()
            self.H_spatial_att = SANet.spatial_strip_att(channels, kernel, group)
            self.W_spatial_att = SANet.spatial_strip_att(channels, kernel, group, H=False)
            self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))
            self.beta = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.gamma * self.W_spatial_att(self.H_spatial_att(x)) + self.beta * x


class ConvIRLike(nn.Module):
    """Two levels of what ConvIR is made of: convolutions around its multi-scale module."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        dynas = [ConvIR.MultiShapeKernel(channels, dilation) for dilation in (3, 5, 7)]
        self.pool = ConvIR.DeepPoolLayer(channels, dynas)
        self.head = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.head(self.pool(F.gelu(self.stem(x))))


def draw_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, in float64: gains start at zero, where filters are the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module.double()
