"""What irnext is measured against: the published formulation, and an expert's plain PyTorch.

The classes share their parameters' names with irnext, so that one state dict serves all. Their
arithmetic is their own: nothing here calls `irnext.ops`, so no backend can speed a baseline up.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irnext import IRNeXt, LocalAttention
from irnext.blocks import Conv, MultiScaleModule, ResidualBlock, local_window


def integral_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """The mean over a window around each pixel by an integral image, as published, borders replicated."""
    height, width = x.shape[2:]
    rows, columns = min(window[0], height), min(window[1], width)
    table = F.pad(x.cumsum(-1).cumsum_(-2), (1, 0, 1, 0))
    upper, lower = table[:, :, :-rows], table[:, :, rows:]
    total = lower[..., columns:] + upper[..., :-columns] - lower[..., :-columns] - upper[..., columns:]
    top, left = (rows - 1) // 2, (columns - 1) // 2
    border = (left, columns - 1 - left, top, rows - 1 - top)
    return F.pad(total / (rows * columns), border, "replicate")


class PlainAttention(LocalAttention):
    """What both forms below share: the parameters and the predicted weights."""

    def __init__(self, channels: int, groups: int = 8, kernel_size: int = 3, low_pass: str = "global"):
        super().__init__(channels, groups, kernel_size, low_pass)
        self.check_low_pass()

    def check_low_pass(self) -> None:
        """Raise ValueError for a form of the LAM that was never published."""
        if self.low_pass not in ("global", "local"):
            raise ValueError(f"low_pass is {self.low_pass!r}: the published code has 'global' and 'local'")

    def activate(self, logits: Tensor) -> Tensor:
        """The attention weights A (N, G, K * K) from (N, G * K * K, 1, 1), Eq. 3."""
        logits = self.norm(logits).reshape(len(logits), self.groups, -1)
        if self.activation == "softmax":
            return logits.softmax(-1)
        return logits.tanh() if self.activation == "tanh" else logits.sigmoid()

    def low_frequencies(self, z: Tensor) -> Tensor:
        """m: the plane's mean (N, C, 1, 1), or the mean around each pixel."""
        if self.low_pass == "global":
            return F.adaptive_avg_pool2d(z, 1)
        return integral_mean(z, self.window or local_window(*z.shape[2:]))


class UnfoldAttention(PlainAttention):
    """The published LAM: every shifted copy of z is stored, weighted and summed.

    Forward with 3 x 3 taps reads 28 and writes 25 tensors of z's size (low_pass="global").
    """

    def forward(self, z: Tensor) -> Tensor:
        n, c, height, width = z.shape
        weights = self.activate(self.project(F.adaptive_avg_pool2d(z, 1)))[:, :, None, :, None]
        padded = F.pad(z, (self.kernel_size // 2,) * 4, "reflect")
        copies = F.unfold(padded, self.kernel_size)
        copies = copies.reshape(n, self.groups, c // self.groups, self.kernel_size**2, height * width)
        response = (copies * weights).sum(3).reshape(n, c, height, width)

        # The mean is taken a second time here, and every modulator is an operation of its own.
        low = response * (self.inner_gain + 1) - self.inner_gain * self.low_frequencies(z)
        low = low * self.low_gain[:, None, None]
        return low + z * (self.high_gain[:, None, None] + 1)


class GroupedConvAttention(PlainAttention):
    """The LAM as an expert writes it in plain PyTorch: one grouped convolution on a (1, N C, H, W) view.

    The modulators are folded into the filter and its bias; the global mean is taken once.
    """

    def forward(self, z: Tensor) -> Tensor:
        n, c, height, width = z.shape
        side = self.kernel_size
        mean = z.mean((2, 3))
        # On one pixel a 1 x 1 convolution is a matrix product, and cheaper as one.
        logits = F.linear(mean, self.project.weight.flatten(1))
        taps = self.activate(logits[..., None, None]).repeat_interleave(c // self.groups, 1)
        inner = self.inner_gain.flatten()
        filters = (self.low_gain * (1 + inner))[:, None] * taps
        filters[..., side**2 // 2] += 1 + self.high_gain
        shift = -self.low_gain * inner
        bias = (shift * mean).flatten() if self.low_pass == "global" else None
        padded = F.pad(z, (side // 2,) * 4, "reflect").reshape(1, n * c, height + side - 1, width + side - 1)
        y = F.conv2d(padded, filters.reshape(n * c, 1, side, side), bias, groups=n * c).reshape_as(z)
        return y if bias is not None else y + shift[:, None, None] * self.low_frequencies(z)


class PublishedConv(Conv):
    """Convolution, activation and residual, one call each."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        if self.activation == "gelu":
            y = F.gelu(y)
        return y if residual is None else y + residual


class PublishedMultiScaleModule(MultiScaleModule):
    """The MSM with a pass over x for every pool, every up-sampling, every sum and the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        total, up = x, None
        for i, rate in enumerate(self.pool_rates):
            scale = F.avg_pool2d(x, rate) if self.pooling == "average" else self.pools[i](x)
            if i:
                scale = scale + F.interpolate(up, scale.shape[2:], mode="bilinear", align_corners=True)
            up = self.attentions[i](self.convs[i](scale))
            total = total + F.interpolate(up, x.shape[2:], mode="bilinear", align_corners=True)
        return self.merge(F.gelu(total))


class PublishedResidualBlock(ResidualBlock):
    """Two convolutions around the multi-scale module, and a sum."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.conv2(y if self.msm is None else self.msm(y)) + x


class PublishedIRNeXt(IRNeXt):
    """The whole network as published, in eager operators; the settings are those of `irnext.IRNeXt`.

    Parameters, their names and their order are irnext's by construction: only classes are replaced.
    """

    replacements: ClassVar = {
        Conv: PublishedConv,
        LocalAttention: UnfoldAttention,
        MultiScaleModule: PublishedMultiScaleModule,
        ResidualBlock: PublishedResidualBlock,
    }

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        for module in self.modules():
            module.__class__ = self.replacements.get(type(module), type(module))
            if isinstance(module, UnfoldAttention):
                module.check_low_pass()

    def forward(self, x: Tensor) -> list[Tensor]:
        self._check_input(x)
        half = F.interpolate(x, scale_factor=0.5)
        quarter = F.interpolate(half, scale_factor=0.5)
        features_half, features_quarter = self.features_half(half), self.features_quarter(quarter)

        skip1 = self.encoder[0](self.stem(x))
        z = F.gelu(self.downs[0](skip1))
        skip2 = self.encoder[1](self.fuse_half(torch.cat((z, features_half), 1)))
        z = F.gelu(self.downs[1](skip2))
        z = self.decoder[0](self.encoder[2](self.fuse_quarter(torch.cat((z, features_quarter), 1))))

        restored_quarter = self.side_heads[0](z) + quarter
        z = self.skips[0](torch.cat((F.gelu(self.ups[0](z)), skip2), 1))
        z = self.decoder[1](z)
        restored_half = self.side_heads[1](z) + half
        z = self.skips[1](torch.cat((F.gelu(self.ups[1](z)), skip1), 1))
        return [restored_quarter, restored_half, self.head(self.decoder[2](z)) + x]


class PublishedLoss(nn.Module):
    """Eq. 8-10 as published: both spectra are computed, stacked and compared."""

    def forward(self, outputs: list[Tensor], target: Tensor) -> Tensor:
        total = 0
        for output in outputs:
            scaled = F.interpolate(target, output.shape[2:], mode="bilinear", align_corners=False)
            spectra = [torch.fft.fft2(image.to(target.dtype)) for image in (output, scaled)]
            parts = [torch.stack((spectrum.real, spectrum.imag), -1) for spectrum in spectra]
            total = total + F.l1_loss(output, scaled) + 0.1 * F.l1_loss(*parts)
        return total
