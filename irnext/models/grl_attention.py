"""The attentions of GRL: within shifted windows, and within shifted stripes by way of anchors.

Planes of features are (N, H, W, C) here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import accumulation_dtype

Size = tuple[int, int]
Regions = list[list[Tensor]]

MAX_SCALE = 100.0  # of cosine similarities
MAX_BIAS = 16.0
MASKED = -100.0  # added, as published, and not minus infinity: similarities may reach 100 themselves
HIDDEN = 512  # of the network that makes biases of coordinates
SHORTEST = 1e-12  # the length below which vectors are not normalised further

# Fused kernels want heads of a multiple of so many channels; others would store the whole attention.
HEAD_MULTIPLES = {"cuda": 8}


class Windows(NamedTuple):
    """A plane's division into windows of `size`, which start at `shift` and go around its edges."""

    size: Size
    shift: Size = (0, 0)

    def reduced(self, factor: int) -> Windows:
        """The same of the plane with one pixel for each `factor` along its sides."""
        return Windows(*(tuple(side // factor for side in sides) for sides in self))

    def divide(self, plane: Tensor) -> Regions:
        """The plane's windows by kind, each kind a plane (N, h, w, C) of its own.

        Unshifted there is one, [[all]]. Shifted windows of the last row hold both the bottom and the top
        of the plane, those of the last column the right and the left: [[inner, right], [bottom, corner]].
        """
        return [self._split(rows, 2) for rows in self._split(plane, 1)]

    def unite(self, regions: Regions) -> Tensor:
        """The inverse of `divide`."""
        return self._join([self._join(row, 2) for row in regions], 1)

    def _split(self, plane: Tensor, dim: int) -> list[Tensor]:
        length, size, shift = plane.shape[dim], self.size[dim - 1], self.shift[dim - 1]
        if not shift:
            return [plane]
        end, start = plane.narrow(dim, length - size + shift, size - shift), plane.narrow(dim, 0, shift)
        return [plane.narrow(dim, shift, length - size), torch.cat((end, start), dim)]

    def _join(self, parts: list[Tensor], dim: int) -> Tensor:
        size, shift = self.size[dim - 1], self.shift[dim - 1]
        if not shift:
            return parts[0]
        inner, around = parts
        end, start = around.narrow(dim, 0, size - shift), around.narrow(dim, size - shift, shift)
        return torch.cat((start, inner, end), dim)

    def tokens(self, region: Tensor) -> Tensor:
        """The windows of a region (N, H, W, C), each as a row of pixels: (windows, h*w, C)."""
        (n, height, width, c), (h, w) = region.shape, self.size
        windows = region.reshape(n, height // h, h, width // w, w, c).transpose(2, 3)
        return windows.reshape(n * (height // h) * (width // w), h * w, c)

    def region(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `tokens`, for a region of `shape` but for its channels."""
        (n, height, width, _), (h, w) = shape, self.size
        windows = tokens.reshape(n, height // h, width // w, h, w, tokens.shape[-1]).transpose(2, 3)
        return windows.reshape(n, height, width, tokens.shape[-1])


class Plan(NamedTuple):
    """Where a block attends: its windows, its stripes, and the anchors' windows, one per stripe.

    The coordinates are `relative_coordinates` of a window to itself, and of a stripe to its anchors.
    """

    windows: Windows
    window_coordinates: Tensor
    stripes: Windows
    anchors: Windows
    stripe_coordinates: Tensor


def relative_coordinates(size: Size, anchor_size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All relative positions (h + ah - 1, w + aw - 1, 2) of a window's pixels and its anchors.

    Differences of indices, centred, in units of an eighth of the largest one, on a logarithmic scale:
    sign(d) * log2(1 + |d|) / log2(8), as in Swin Transformer V2.
    """
    axes = []
    for length, anchors in zip(size, anchor_size, strict=True):
        offset = (length - anchors) // 2
        difference = torch.arange(1 - anchors, length, dtype=dtype, device=device) - offset
        difference = difference * (8 / max(length - 1 - offset, 1))
        axes.append(difference.sign() * torch.log2(difference.abs() + 1) / math.log2(8))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


class CosineAttention(nn.Module):
    """softmax(s * cos(q, k) + b) v, with a learned scale s per head and a bias b by relative position.

    Named and initialised as published, where it is the transformation of the similarities alone.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, heads, bias=False))

    def bias(self, coordinates: Tensor, queries: Size, keys: Size) -> Tensor:
        """The bias (1, heads, h*w, kh*kw) of queries and keys on grids of these sizes, in float32 or wider.

        It is 16 * sigmoid(mlp(coordinates)) less 8, which softmax does not see: small numbers keep their
        precision in half types.
        """
        logits = self.cpb_mlp(coordinates.to(self.logit_scale.dtype))
        table = MAX_BIAS / 2 * torch.tanh(logits.to(accumulation_dtype(logits.dtype)) / 2)
        # Query i and key j find theirs at i - j + keys - 1 along each axis.
        windows = table.permute(2, 0, 1).unfold(1, keys[0], 1).unfold(2, keys[1], 1)
        return windows.flip(-2, -1).flatten(3, 4).flatten(1, 2)[None]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """q (B, N, heads, D), k and v (B, M, heads, D), bias (1, heads, N, M) -> (B, N, heads, D)."""
        channels = q.shape[-1]
        logits = self.logit_scale.to(accumulation_dtype(q.dtype))
        scale = logits.clamp(max=math.log(MAX_SCALE)).exp().squeeze(-1)
        q, k = of_length(q, scale), of_length(k, 1.0)
        missing = -channels % HEAD_MULTIPLES.get(q.device.type, 1)
        q, k, v = (F.pad(x, (0, missing)) if missing else x for x in (q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return y.transpose(1, 2)[..., :channels]


def of_length(x: Tensor, length: Tensor | float) -> Tensor:
    """`x` (..., D) with its vectors scaled to a length (..., 1), computed in float32 or wider."""
    vectors = x.to(accumulation_dtype(x.dtype))
    squares = (vectors * vectors).sum(-1, keepdim=True)
    return (vectors * (length * squares.clamp_min(SHORTEST**2).rsqrt())).to(x.dtype)


def masked(bias: Tensor, queries: Windows, keys: Windows, around: tuple[bool, bool]) -> Tensor:
    """The bias of the windows that go `around` the plane's bottom, or right: less where the edge is between.

    What stands in one such window depends on nothing but that, so a plane of any size has four biases.
    """
    if not any(around):
        return bias
    rows, columns = (crossing(queries, keys, axis, bias.device) for axis in (0, 1))
    # Products with False: which of the two edges there is.
    apart = (rows * around[0])[:, None, :, None] | (columns * around[1])[None, :, None, :]
    return bias + MASKED * apart.flatten(2).flatten(0, 1)


def crossing(queries: Windows, keys: Windows, axis: int, device: torch.device) -> Tensor:
    """Whether the plane's edge is between query and key, for places (queries, keys) along an axis."""
    before = [
        torch.arange(windows.size[axis], device=device) < windows.size[axis] - windows.shift[axis]
        for windows in (queries, keys)
    ]
    return before[0][:, None] ^ before[1]


class WindowAttention(nn.Module):
    """Self-attention within windows (W-MSA): (N, H, W, 3C), queries, keys and values, to (N, H, W, C)."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads
        self.attn_transform = CosineAttention(heads)

    def forward(self, qkv: Tensor, plan: Plan) -> Tensor:
        windows = plan.windows
        bias = self.attn_transform.bias(plan.window_coordinates, windows.size, windows.size)

        def attend(region: Tensor, around: tuple[bool, bool]) -> Tensor:
            q, k, v = windows.tokens(region).unflatten(-1, (3, self.heads, -1)).unbind(2)
            y = self.attn_transform(q, k, v, masked(bias, windows, windows, around))
            return windows.region(y.flatten(2), region.shape)

        return windows.unite(
            [
                [attend(region, (i > 0, j > 0)) for j, region in enumerate(row)]
                for i, row in enumerate(windows.divide(qkv))
            ]
        )


class StripeAttention(nn.Module):
    """Anchored stripe self-attention: M_e (M_d V), with M_d the anchors' attention to the stripe's pixels
    and M_e the pixels' attention to the anchors.

    With f**2 times fewer anchors than pixels it costs f**2 / 2 times less than attention among pixels.
    qkv is (N, H, W, 3C), anchors are (N, H/f, W/f, C), the result is (N, H, W, C).
    """

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads
        self.attn_transform1 = CosineAttention(heads)
        self.attn_transform2 = CosineAttention(heads)

    def forward(self, qkv: Tensor, anchors: Tensor, plan: Plan) -> Tensor:
        stripes, few = plan.stripes, plan.anchors
        gathering = self.attn_transform1.bias(plan.stripe_coordinates, few.size, stripes.size)
        spreading = self.attn_transform2.bias(plan.stripe_coordinates, stripes.size, few.size)

        def attend(region: Tensor, anchor_region: Tensor, around: tuple[bool, bool]) -> Tensor:
            q, k, v = stripes.tokens(region).unflatten(-1, (3, self.heads, -1)).unbind(2)
            a = few.tokens(anchor_region).unflatten(-1, (self.heads, -1))
            gathered = self.attn_transform1(a, k, v, masked(gathering, few, stripes, around))
            y = self.attn_transform2(q, a, gathered, masked(spreading, stripes, few, around))
            return stripes.region(y.flatten(2), region.shape)

        rows = zip(stripes.divide(qkv), few.divide(anchors), strict=True)
        return stripes.unite(
            [
                [attend(*pair, (i > 0, j > 0)) for j, pair in enumerate(zip(*row, strict=True))]
                for i, row in enumerate(rows)
            ]
        )


class MixedAttention(nn.Module):
    """Window attention with one half of the channels, stripe attention with the other: (N, H, W, C).

    Args:
        channels: C, a multiple of twice each number of heads.
        window_heads, stripe_heads: heads of the two.
        factor: pixels per anchor along a side.
    """

    def __init__(self, channels: int, window_heads: int, stripe_heads: int, factor: int):
        super().__init__()
        self.factor = factor
        self.qkv = nn.ModuleDict({"body": nn.Linear(channels, 3 * channels)})
        reduction = nn.ModuleDict({"reduction": nn.Linear(channels, channels // 2)})
        self.anchor = nn.ModuleDict({"body": nn.ModuleList([reduction])})
        self.window_attn = WindowAttention(window_heads)
        self.stripe_attn = StripeAttention(stripe_heads)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        project = self.qkv["body"]
        # One half after the other, so that one is in memory.
        halves = zip(project.weight.chunk(2), project.bias.chunk(2), strict=True)
        regional = self.window_attn(F.linear(x, *next(halves)), plan)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.factor).permute(0, 2, 3, 1)
        anchors = self.anchor["body"][0]["reduction"](pooled)
        distant = self.stripe_attn(F.linear(x, *next(halves)), anchors, plan)
        return self.proj(torch.cat((regional, distant), -1))
