"""IRNeXt (Fig. 3a): a U-shaped network of six CNNBlocks with three inputs and three outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from .architecture import RestorationModel
from .blocks import (
    ACTIVATIONS,
    BRANCHES,
    LOW_PASS,
    POOLINGS,
    CNNBlock,
    Conv,
    ConvS,
    LocalAttention,
    check_option,
    local_window,
)
from .ops.recompute import gelu, recomputing


def check_channels(width: int, groups: int = 1) -> None:
    """Raise ValueError for channels that cannot be halved, as `ConvS` has them, or cannot be grouped."""
    if width < 2 or width % 2:
        raise ValueError(f"width is {width}: it must be an even number of channels")
    if groups < 1 or width % groups:
        raise ValueError(f"groups is {groups}: it must divide the width {width}")


class UNet(RestorationModel):
    """The U-shaped network that IRNeXt and its successor ConvIR share, around their CNNBlocks.

    Args:
        width: channels at full resolution; 2 and 4 times as many at a half and a quarter.
        cnn_block: makes the CNNBlock of a stage from its channels.
    """

    published_names: ClassVar = (
        ("Encoder.", "encoder."),
        ("feat_extract.0.main.0.", "stem."),
        ("feat_extract.1.main.0.", "downs.0."),
        ("feat_extract.2.main.0.", "downs.1."),
        ("feat_extract.3.main.0.", "ups.0."),
        ("feat_extract.4.main.0.", "ups.1."),
        ("feat_extract.5.main.0.", "head."),
        ("Decoder.", "decoder."),
        ("Convs.0.main.0.", "skips.0."),
        ("Convs.1.main.0.", "skips.1."),
        ("ConvsOut.0.main.0.", "side_heads.0."),
        ("ConvsOut.1.main.0.", "side_heads.1."),
        ("FAM1.merge.main.0.", "fuse_quarter."),
        ("SCM1.", "features_quarter."),
        ("FAM2.merge.main.0.", "fuse_half."),
        ("SCM2.", "features_half."),
    )

    size_multiple = 32
    minimum_size = 64
    tiling = "plane means and instance normalisation see the tile"

    def __init__(self, width: int, cnn_block: Callable[[int], CNNBlock]):
        super().__init__()
        c1, c2, c3 = width, 2 * width, 4 * width
        # Modules stand in the published order, which optimisers' states rely on.
        self.encoder = nn.ModuleList(cnn_block(c) for c in (c1, c2, c3))
        self.stem = Conv(3, c1, activation="gelu")
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((c1, c2), (c2, c3)))
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in ((c3, c2), (c2, c1))
        )
        self.head = Conv(c1, 3)
        self.decoder = nn.ModuleList(cnn_block(c) for c in (c3, c2, c1))
        self.skips = nn.ModuleList(Conv(2 * c, c, 1, activation="gelu") for c in (c2, c1))
        self.side_heads = nn.ModuleList(Conv(c, 3) for c in (c3, c2))
        self.fuse_quarter = Conv(2 * c3, c3)
        self.features_quarter = ConvS(c3)
        self.fuse_half = Conv(2 * c2, c2)
        self.features_half = ConvS(c2)

    def forward(self, x: Tensor) -> list[Tensor]:
        self._check_input(x)
        with recomputing():
            outputs = self._restore(x)
        return [y.contiguous() for y in outputs] if x.is_contiguous() else outputs

    def _restore(self, x: Tensor) -> list[Tensor]:
        half = x[:, :, ::2, ::2]
        quarter = half[:, :, ::2, ::2]

        skip1 = self.encoder[0](self.stem(x))
        z = gelu(self.downs[0](skip1))
        skip2 = self.encoder[1](self.fuse_half(torch.cat((z, self.features_half(half)), 1)))
        z = gelu(self.downs[1](skip2))
        z = self.encoder[2](self.fuse_quarter(torch.cat((z, self.features_quarter(quarter)), 1)))

        z = self.decoder[0](z)
        restored_quarter = self.side_heads[0](z, residual=quarter)
        z = self.skips[0](torch.cat((gelu(self.ups[0](z)), skip2), 1))
        z = self.decoder[1](z)
        restored_half = self.side_heads[1](z, residual=half)
        z = self.skips[1](torch.cat((gelu(self.ups[1](z)), skip1), 1))
        return [restored_quarter, restored_half, self.head(self.decoder[2](z), residual=x)]


class IRNeXt(UNet):
    """IRNeXt (Cui et al., ICML 2023) for restoring pictures.

    Args:
        blocks: residual blocks per CNNBlock: 14 for GoPro, 16 for RSBlur, DPDD and deraining,
            4 for dehazing and desnowing.
        width: channels at full resolution; 2 and 4 times as many at a half and a quarter.
        groups: channel groups of the local attention.
        kernel_size: side of its filter, odd.
        pool_rates: rates of the multi-scale module, falling powers of two (Table 8).
        pooling: "average", "max" or "convolution" (Table 9).
        activation: "tanh", "sigmoid" or "softmax" (Table 10).
        branch: "lam", "lam-no-fm" or "conv" (Table 7).
        msm_per_block: residual blocks with a multi-scale module per CNNBlock, 0 to 2 (Tables 7, 11).
        low_pass: "global" (published dehazing code), "local" (published motion-deblurring code) or
            "exact" (Eq. 4-7); see `LocalAttention`.

    `forward` takes (N, 3, H, W), usually in [0, 1], with H and W multiples of 32 and at least 64,
    and returns [quarter, half, full]: restored pictures of (N, 3, H/4, W/4), (N, 3, H/2, W/2) and
    (N, 3, H, W). It raises ValueError for other shapes; `irnext.restore` takes pictures of any size.
    """

    def __init__(
        self,
        blocks: int = 4,
        width: int = 32,
        groups: int = 8,
        kernel_size: int = 3,
        pool_rates: tuple[int, ...] = (8, 4, 2),
        pooling: str = "average",
        activation: str = "tanh",
        branch: str = "lam",
        msm_per_block: int = 1,
        low_pass: str = "global",
    ):
        check_option("pooling", pooling, POOLINGS)
        check_option("activation", activation, ACTIVATIONS)
        check_option("branch", branch, BRANCHES)
        check_option("msm_per_block", msm_per_block, (0, 1, 2))
        check_option("low_pass", low_pass, LOW_PASS)
        if blocks < max(1, msm_per_block):
            raise ValueError(f"blocks is {blocks}: at least 1, and at least msm_per_block={msm_per_block}")
        check_channels(width, groups if msm_per_block and branch != "conv" else 1)

        def cnn_block(channels: int) -> CNNBlock:
            return CNNBlock(
                channels,
                blocks,
                msm_per_block,
                groups=groups,
                kernel_size=kernel_size,
                pool_rates=pool_rates,
                pooling=pooling,
                activation=activation,
                branch=branch,
                low_pass=low_pass,
            )

        super().__init__(width, cnn_block)
        self.settings = {
            "blocks": blocks,
            "width": width,
            "groups": groups,
            "kernel_size": kernel_size,
            "pool_rates": tuple(pool_rates),
            "pooling": pooling,
            "activation": activation,
            "branch": branch,
            "msm_per_block": msm_per_block,
            "low_pass": low_pass,
        }

    def fix_local_window(self, height: int | None, width: int | None = None) -> None:
        """Fix the windows of low_pass="local" to those of a picture of height x width (or square) pixels.

        The published code fixes them by accident, to the first picture it sees. None makes every
        input use its own again, the default. The setting is not part of the weights.
        """
        width = width or height
        for scale, stage in zip((1, 2, 4, 4, 2, 1), (*self.encoder, *self.decoder), strict=True):
            for block in stage.layers:
                if block.msm is None:
                    continue
                for rate, attention in zip(block.msm.pool_rates, block.msm.attentions, strict=True):
                    if isinstance(attention, LocalAttention):
                        down = scale * rate
                        attention.window = height and local_window(height // down, width // down)
