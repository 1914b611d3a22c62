"""The operators of IRNeXt and its relatives as other people's modules hold them, computed by `irnext.ops`.

ConvIR, SFNet, FSNet, SANet, DSANet and the published IRNeXt filter every sample by kernels predicted
from its plane means: one `dynamic_conv2d`, whose kernel and bias are made of a few numbers a plane. Each
class here goes before a module's own class, so that its members, their names and its hooks stay.
"""

from __future__ import annotations

import copyreg
import functools
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import ops
from .blocks import attend, is_plain_prediction

PLANE, ROW, COLUMN = (2, 3), (3,), (2,)  # the dimensions of x to take a mean over


@dataclass(frozen=True)
class Filter:
    """What a predicted filter is besides its weights.

    Attributes:
        kernel_size: rows and columns, odd.
        dilation: distance between taps, in pixels.
        activation: of the logits: "tanh", "sigmoid" or "softmax".
        normalised: whether the logits pass a `bn`.
        mean: of the low-pass term: over PLANE, ROW or COLUMN.
    """

    kernel_size: tuple[int, int]
    dilation: int
    activation: str
    normalised: bool
    mean: tuple[int, ...] = PLANE


# ---- another class for a module ------------------------------------------------------------------


class Accelerated(nn.Module):
    """Computes what the class after it in the order of inheritance does, from that class's members.

    Attributes:
        original: the class of the module before.
        form: what the members do not say: a `Filter`, or the rates of a pyramid.
        called: children that are called as the original calls them; the others are left out.
    """

    original: ClassVar[type[nn.Module]]
    form: ClassVar[Any]
    called: ClassVar[tuple[str, ...]] = ("conv", "bn")

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
        """Of x alone as `compute` has it; what the original takes besides is only known to the original."""
        if others or named or self.is_observed():
            return super().forward(x, *others, **named)
        return self.compute(x)

    def is_observed(self) -> bool:
        """Whether there are hooks on what would be left out, so that the original has to run."""
        return torch.nn.modules.module._has_any_global_hook() or any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in self.left_out()
        )

    def left_out(self) -> list[nn.Module]:
        """The modules that the original calls and this does not."""
        return [child for name, child in self._modules.items() if name not in self.called]

    def __reduce_ex__(self, protocol: int) -> tuple:
        constructor, arguments, *state = super().__reduce_ex__(max(protocol, 2))
        if constructor is copyreg.__newobj__:  # by its parts: a pickle finds classes in modules, by name
            constructor, arguments = _new, (type(self).__mro__[1], self.original, self.form)
        return constructor, arguments, *state


@functools.cache
def accelerated_class(mixin: type[Accelerated], original: type[nn.Module], form: Any) -> type[Accelerated]:
    """The original's subclass that computes by the mixin; one and the same for the same arguments."""
    members = {"original": original, "form": form, "__module__": original.__module__}
    return type(f"accelerated_{original.__name__}", (mixin, original), members)


def _new(mixin: type[Accelerated], original: type[nn.Module], form: Any) -> Accelerated:
    """A module without members, for pickle and copy to fill."""
    cls = accelerated_class(mixin, original, form)
    return cls.__new__(cls)


# ---- filters -------------------------------------------------------------------------------------


def on_means(conv: nn.Module, mean: Tensor) -> Tensor:
    """A 1 x 1 convolution of planes of one pixel: (N, C) to (N, D, 1, 1), in its weight's type."""
    return conv(mean.to(conv.weight.dtype)[..., None, None])


class PlainFilter(Accelerated):
    """SANet's strip: y = L, the response of x to the filter A."""

    form: ClassVar[Filter]

    def compute(self, x: Tensor) -> Tensor:
        with ops.full_precision(x.device.type):
            attention = self.attention(ops.spatial_mean(x))
        return ops.dynamic_conv2d(x, attention, None, self.form.dilation)

    def attention(self, mean: Tensor) -> Tensor:
        """A, (N, G, kh, kw), from the plane means (N, C): Eq. 3, normalised or not."""
        logits = on_means(self.conv, mean)
        if self.form.normalised:
            logits = self.bn(logits)
        rows, columns = self.form.kernel_size
        logits = logits.to(mean.dtype)
        logits = logits.view(mean.shape[0], logits.shape[1] // (rows * columns), rows, columns)
        return ops.activate(logits, self.form.activation)


class ModulatedFilter(PlainFilter):
    """IRNeXt's and ConvIR's: y = l ((1 + s) L - s m) + (1 + h) x with l, s, h = lamb_l, inside_all, lamb_h.

    m is the mean over the plane, the row or the column, or what a `gap` of another class makes of x,
    such as the published local mean.
    """

    def own_mean(self) -> nn.Module | None:
        """The module that makes m, where that is no pool of PyTorch's."""
        gap = self._modules.get("gap")
        return None if isinstance(gap, nn.AdaptiveAvgPool2d) else gap

    def left_out(self) -> list[nn.Module]:
        own = self.own_mean()
        return [child for child in super().left_out() if child is not own]

    def compute(self, x: Tensor) -> Tensor:
        form, own = self.form, self.own_mean()
        gains = (self.lamb_l, self.inside_all, self.lamb_h)
        square = form.normalised and form.mean == PLANE and form.dilation == 1 and own is None
        if square and is_plain_prediction(self.conv, self.bn):
            return attend(x, self.conv, self.bn, gains, form.kernel_size, form.activation)
        with ops.full_precision(x.device.type):
            if form.mean == PLANE:
                mean = ops.spatial_mean(x)
                low_pass = mean[..., None, None]
            else:  # x is read once, for the means of its lines, and those for the plane's
                low_pass = ops.line_means(x, *form.mean)
                mean = low_pass.mean((2, 3))
            if own is not None:
                low_pass = own(x).to(mean.dtype)
            low, inner, high = (gain.flatten().to(mean.dtype) for gain in gains)
            kernel = ops.modulated_filter(self.attention(mean), low, inner, high)
            bias = (-low * inner)[:, None, None] * low_pass
            if bias.shape[2] == bias.shape[3] == 1:
                bias = bias.flatten(1)
        return ops.dynamic_conv2d(x, kernel, bias, form.dilation)


class GatedFilter(PlainFilter):
    """SFNet's and FSNet's: y = out(a_h (x - L) + a_l L), with gates a_h, a_l predicted as the filter is.

    Low and high frequencies add up to x, so that the mean the gates are predicted from is x's own, and
    gates and filter make one filter.
    """

    def left_out(self) -> list[nn.Module]:
        gate = self.modulate
        inner = [child for name, child in gate._modules.items() if name not in ("fc", "out")]
        return [*super().left_out(), *inner]

    def compute(self, x: Tensor) -> Tensor:
        gate = self.modulate
        with ops.full_precision(x.device.type):
            mean = ops.spatial_mean(x)
            hidden = on_means(gate.fc, mean)
            gates = torch.cat([fc(hidden) for fc in gate.fcs], 1).to(mean.dtype)
            high, low = gates.softmax(1).chunk(2, 1)
            attention = self.attention(mean)
            attention = attention.repeat_interleave(x.shape[1] // attention.shape[1], 1)
            kernel = (low - high) * attention + high * ops.centre_tap(attention)
        return gate.out(ops.dynamic_conv2d(x, kernel, None, self.form.dilation))


# ---- pyramid -------------------------------------------------------------------------------------


class PoolPyramid(Accelerated):
    """IRNeXt's and ConvIR's multi-scale module: planes at several scales, coarse to fine (Eq. 1, 2)."""

    form: ClassVar[tuple[int, ...]]
    called: ClassVar[tuple[str, ...]] = ("conv_sum",)

    def left_out(self) -> list[nn.Module]:
        return [*super().left_out(), *self.pools]

    def compute(self, x: Tensor) -> Tensor:
        scales = ops.pool_pyramid(x, self.form)
        for coarse, fine in itertools.pairwise(scales):
            if 2 * coarse.shape[2] != fine.shape[2] or 2 * coarse.shape[3] != fine.shape[3]:
                multiple = max(self.form)
                raise ValueError(f"x is {tuple(x.shape)}: its H and W must be multiples of {multiple}")
        outputs: list[Tensor] = []
        for scale, conv, dyna in zip(scales, self.convs, self.dynas, strict=True):
            if outputs:
                scale = ops.merge_pyramid(scale, [outputs[-1]], None)
            outputs.append(dyna(conv(scale)))
        return self.conv_sum(ops.merge_pyramid(x, outputs))
