"""Inference at the speed of its convolutions: `optimize` and the model it makes.

What a trained IRNeXt computes is fixed, so everything that follows from the weights alone is done
once: convolutions get their weights in the layout the library computes in, with activation and sum
applied as results leave it, and the batch normalisation of the attention is folded into its
projection. On GPUs the kernels of one input shape are recorded and launched as one graph.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels, ops
from .blocks import (
    CNNBlock,
    Conv,
    ConvS,
    LocalAttention,
    MultiScaleModule,
    ResidualBlock,
    is_untouched,
    local_window,
)
from .fastest import Choices, Fastest
from .memory import parse_size
from .model import IRNeXt
from .ops.convolution import WINOGRAD_TILE, winograd_serves, winograd_takes

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HALF = (torch.float16, torch.bfloat16)
GRAPHS = 4  # recorded graphs that are kept; each holds the memory of its shape
# Beyond this many pixels a GPU is busy with each kernel for longer than its launch takes.
LARGEST_GRAPH = 2**22


# ---- convolutions --------------------------------------------------------------------------------
#
# A part is called with a tensor in the plan's type and layout. `fresh` says that its result is a
# tensor of its own, which the next part may overwrite.


class AsIs:
    """A module that is not known here, run as it is; half precision is left to autocast."""

    fresh = False

    def __init__(self, module: nn.Module, dtype: torch.dtype, gelu: bool = False):
        self.module, self.dtype, self.gelu = module, dtype, gelu

    def __call__(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        y = self.run(x, residual)
        return (F.gelu(y) if self.gelu else y).to(self.dtype)

    def run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """What the module itself returns."""
        more = {} if residual is None else {"residual": residual}
        if self.dtype not in HALF:
            return self.module(x, **more)
        with torch.autocast(x.device.type, self.dtype):
            return self.module(x, **more)


class Convolution:
    """A convolution of PyTorch, its activation and sum written over its result."""

    fresh = True

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, plan: Plan, gelu: bool):
        self.gelu = gelu
        self.weight = conv.weight.detach().to(plan.dtype, memory_format=plan.layout)
        self.bias = None if conv.bias is None else conv.bias.detach().to(plan.dtype)
        self.same_size = type(conv) is Conv
        self.transposed = isinstance(conv, nn.ConvTranspose2d)
        if self.transposed:
            spread = (conv.output_padding, conv.groups, conv.dilation)
        else:
            spread = (conv.dilation, conv.groups)
        self.geometry = (conv.stride, conv.padding, *spread)

    def __call__(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        if self.same_size:
            return ops.conv2d_bias_act(x, self.weight, self.bias, "gelu" if self.gelu else None, residual)
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        y = convolve(x, self.weight, self.bias, *self.geometry)
        if self.gelu:
            y = torch.ops.aten.gelu_(y)
        return y if residual is None else y.add_(residual)


class OneDNNConvolution:
    """A convolution of oneDNN: weights in its own layout, bias, GELU and sum applied to sums in registers."""

    fresh = True

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, plan: Plan, gelu: bool):
        onednn = torch.ops.mkldnn
        self.gelu = gelu
        self.bias = None if conv.bias is None else conv.bias.detach().to(plan.dtype)
        weight = conv.weight.detach().to(plan.dtype)
        stride, padding, dilation = map(list, (conv.stride, conv.padding, conv.dilation))
        if isinstance(conv, nn.ConvTranspose2d):
            self.geometry = (padding, list(conv.output_padding), stride, dilation, conv.groups)
            self.weight = onednn._reorder_convolution_transpose_weight(weight, *self.geometry)
            self.convolve = onednn._convolution_transpose_pointwise.default
        else:
            self.geometry = (padding, stride, dilation, conv.groups)
            weight = weight.contiguous(memory_format=torch.channels_last)
            self.weight = onednn._reorder_convolution_weight(weight, *self.geometry)
            self.convolve = onednn._convolution_pointwise.default

    def __call__(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        if residual is None or self.gelu:
            # "none" is the GELU by the error function, not by tanh.
            epilogue = ("gelu", [], "none") if self.gelu else ("none", [], None)
            y = self.convolve(x, self.weight, self.bias, *self.geometry, *epilogue)
            return y if residual is None else y.add_(residual)
        epilogue = ("add", None, None, [], None)
        if overwrite:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                residual, x, self.weight, self.bias, *self.geometry, *epilogue
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self.weight, self.bias, *self.geometry, *epilogue
        )


class WinogradConvolution:
    """A 3 x 3 convolution by Winograd's algorithm: a quarter of the products, bias, GELU and sum fused in.

    Its weights and sums are float32 in every type.
    """

    fresh = True

    def __init__(self, conv: nn.Conv2d, plan: Plan, gelu: bool):
        self.activation = "gelu" if gelu else None
        self.outputs = conv.out_channels
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.packed = torch.ops.irnext.winograd_pack(conv.weight.detach(), WINOGRAD_TILE)

    @staticmethod
    def can_serve(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
        """Whether this is a convolution that keeps the size, of channels that fill vectors."""
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        fits = isinstance(conv, nn.Conv2d) and geometry == ((1, 1), (1, 1), (1, 1), 1)
        return fits and winograd_takes(*conv.weight.shape)

    def __call__(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        return torch.ops.irnext.winograd_conv2d(
            x, self.packed, self.outputs, WINOGRAD_TILE, self.bias, self.activation, residual
        )


class TritonConvolution:
    """A convolution by the Triton kernel: bias, exact GELU and sum applied to float32 sums in registers."""

    fresh = True

    def __init__(self, conv: nn.Conv2d, plan: Plan, gelu: bool):
        from .kernels.convolution import conv2d_bias_act, conv2d_bias_act_pair

        self.convolve, self.convolve_pair = conv2d_bias_act, conv2d_bias_act_pair
        self.activation = "gelu" if gelu else None
        self.weight = conv.weight.detach().to(plan.dtype, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(plan.dtype)

    @staticmethod
    def can_serve(conv: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype) -> bool:
        """Whether the kernel computes this convolution in this type."""
        if not isinstance(conv, nn.Conv2d) or dtype == torch.float64:
            return False
        keeps_size = conv.padding == tuple(size // 2 for size in conv.kernel_size)
        plain = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        return plain and keeps_size and set(conv.kernel_size) <= {1, 3}

    def __call__(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.convolve(x, self.weight, self.bias, self.activation, residual)[0]

    def of_pair(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of two tensors side by side along their channels, which are not copied there."""
        x, other = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, other))
        return self.convolve_pair(x, other, self.weight, self.bias, self.activation)[0]


class FastestConvolution(Fastest):
    """A convolution of PyTorch or of Triton, whichever is measured to be faster on a shape.

    Attributes:
        of_pair: the same of two tensors side by side along their channels.
    """

    fresh = True

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, plan: Plan, gelu: bool):
        library = Convolution(conv, plan, gelu)
        candidates: dict[str, Callable[..., Tensor]] = {"PyTorch": library}
        of_pair: dict[str, Callable[..., Tensor]] = {"PyTorch": lambda *pair: library(torch.cat(pair, 1))}
        if TritonConvolution.can_serve(conv, plan.dtype):
            candidates["Triton"] = TritonConvolution(conv, plan, gelu)
            of_pair["Triton"] = candidates["Triton"].of_pair
        label = (tuple(conv.weight.shape), conv.bias is not None, gelu)
        super().__init__(candidates, label=label, chosen=plan.choices)
        self.of_pair = Fastest(of_pair, label=("pair", *label), chosen=plan.choices)

    def __call__(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        return super().__call__(x, residual)


def convolve_joined(part: Callable[[Tensor], Tensor], both: list[Tensor]) -> Tensor:
    """What the part makes of two tensors side by side along channels, which are taken from the list.

    A concatenation that takes the only references to them frees them before the convolution.
    """
    if hasattr(part, "of_pair"):
        return part.of_pair(*both)
    joined = torch.cat(both, 1)
    both.clear()
    return part(joined)


@functools.cache
def onednn_serves(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolutions are in this PyTorch, serve this type and compute what is meant."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 6, 6, generator=generator).to(dtype)
    residual = torch.randn(1, 16, 6, 6, generator=generator).to(dtype)
    for make in (nn.Conv2d, nn.ConvTranspose2d):
        conv = make(16, 16, 3, padding=1, device="meta").to_empty(device="cpu").to(dtype)
        for parameter in conv.parameters():
            nn.init.uniform_(parameter.data, -0.1, 0.1, generator=generator)
        plan = Plan(dtype, torch.channels_last)
        try:
            with torch.no_grad():
                expected = F.gelu(conv.double()(x.double()))
                conv.to(dtype)
                found = [(OneDNNConvolution(conv, plan, gelu=True)(x), expected)]
                if make is nn.Conv2d:
                    total = conv.double()(x.double()) + residual.double()
                    part = OneDNNConvolution(conv.to(dtype), plan, gelu=False)
                    found.append((part(x, residual), total))
                    found.append((part(x, residual.clone(), overwrite=True), total))
        except (AttributeError, RuntimeError):
            return False
        allowed = 8 * torch.finfo(dtype).eps
        if any((y - exact).abs().max() > allowed * exact.abs().max() for y, exact in found):
            return False
    return True


# ---- the parts of the network ---------------------------------------------------------------------


class Chain:
    """Modules one after another."""

    def __init__(self, modules: nn.Sequential, plan: Plan):
        self.parts = [plan.part(module) for module in modules]
        self.fresh = bool(self.parts) and self.parts[-1].fresh

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Attention:
    """A local attention with its batch normalisation folded into the projection: one operator."""

    fresh = True

    def __init__(self, attention: LocalAttention):
        self.attention = attention
        norm, wide = attention.norm, torch.promote_types(attention.norm.weight.dtype, torch.float32)
        scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
        weight = attention.project.weight.detach().double().flatten(1) * scale[:, None]
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        if attention.low_pass is None:  # L + z is the modulated form with l = 1 and s = h = 0
            zeros = torch.zeros(attention.channels, device=weight.device)
            gains = (zeros + 1, zeros, zeros)
        else:
            gains = (attention.low_gain, attention.inner_gain, attention.high_gain)
        one, zero = torch.ones_like(shift), torch.zeros_like(shift)
        parameters = (weight, one, shift, zero, one, *(gain.detach() for gain in gains))
        self.parameters = [parameter.to(wide) for parameter in parameters]

    @staticmethod
    def can_serve(attention: nn.Module) -> bool:
        """Whether this is an attention whose parts are those of `LocalAttention`, with fixed statistics."""
        return (
            is_untouched(attention, LocalAttention)
            and attention.low_pass in ("global", "local", None)
            and attention.dilation == 1
            and is_untouched(attention.project, nn.Conv2d)
            and attention.project.bias is None
            and is_untouched(attention.norm, nn.BatchNorm2d)
            and attention.norm.affine
            and attention.norm.running_mean is not None
        )

    def __call__(self, z: Tensor) -> Tensor:
        attention = self.attention
        window = None
        if attention.low_pass == "local":
            window = attention.window or local_window(*z.shape[2:])
        size = (attention.kernel_size, attention.kernel_size)
        parameters = self.parameters
        if z.dtype == torch.float64:
            parameters = [parameter.double() for parameter in parameters]
        return ops.local_attention(z, *parameters, size, False, 0.0, attention.activation, window)[0]


class MultiScale:
    """A multi-scale module (MSM)."""

    def __init__(self, msm: MultiScaleModule, plan: Plan):
        self.rates = msm.pool_rates
        self.pools = None if msm.pooling == "average" else [plan.part(pool) for pool in msm.pools]
        self.convs = [plan.part(conv) for conv in msm.convs]
        self.attentions = [plan.part(attention) for attention in msm.attentions]
        self.merge = plan.part(msm.merge)
        self.fresh = self.merge.fresh

    def __call__(self, x: Tensor) -> Tensor:
        scales = ops.pool_pyramid(x, self.rates) if self.pools is None else [pool(x) for pool in self.pools]
        outputs: list[Tensor] = []
        for scale, conv, attention in zip(scales, self.convs, self.attentions, strict=True):
            if outputs:
                scale = ops.merge_pyramid(scale, [outputs[-1]], None)
            outputs.append(attention(conv(scale)))
        return self.merge(ops.merge_pyramid(x, outputs))


class Residual:
    """A residual block; its sum is written over its input where `overwrite` allows it."""

    def __init__(self, block: ResidualBlock, plan: Plan):
        self.conv1, self.conv2 = plan.part(block.conv1), plan.part(block.conv2)
        self.msm = None if block.msm is None else plan.part(block.msm)
        self.between_is_fresh = (self.conv1 if self.msm is None else self.msm).fresh
        self.fresh = self.conv2.fresh

    def __call__(self, x: Tensor, overwrite: bool = False) -> Tensor:
        y = self.conv1(x)
        if self.msm is not None:
            y = self.msm(y)
        return self.conv2(y, residual=x, overwrite=overwrite and self.between_is_fresh)


class Stage:
    """A CNNBlock."""

    def __init__(self, stage: CNNBlock, plan: Plan):
        self.blocks = [plan.part(block) for block in stage.layers]
        self.fresh = self.blocks[-1].fresh

    def __call__(self, x: Tensor, overwrite: bool = False) -> Tensor:
        for block in self.blocks:
            x = block(x, overwrite=overwrite)
            overwrite = block.fresh
        return x


class InstanceNorm:
    """An instance normalisation in any layout, its statistics summed in float32 or wider."""

    fresh = True

    def __init__(self, norm: nn.InstanceNorm2d):
        wide = torch.promote_types(norm.weight.dtype, torch.float32)
        self.weight, self.bias = norm.weight.detach().to(wide), norm.bias.detach().to(wide)
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        mean = ops.spatial_mean(x)
        deviation = x.to(mean.dtype) - mean[..., None, None]
        variance = ops.spatial_mean(deviation.square_())
        scale = (variance + self.eps).rsqrt() * self.weight
        return ops.dynamic_conv2d(x, scale[..., None, None], self.bias - mean * scale)


class ShallowFeatures:
    """A ConvS."""

    def __init__(self, features: ConvS, plan: Plan):
        self.convs, self.norm = plan.part(features.convs), plan.part(features.norm)
        self.fresh = self.norm.fresh

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(self.convs(x))


class Plan:
    """How the modules of one model become parts: the type and layout to compute in, and the library."""

    def __init__(
        self,
        dtype: torch.dtype,
        layout: torch.memory_format,
        convolution: Callable[..., Any] = Convolution,
        winograd: bool = False,
    ):
        self.dtype, self.layout, self.winograd = dtype, layout, winograd
        self.convolution = convolution
        self.choices: Choices = {}  # of convolutions that are measured

    def part(self, module: nn.Module, gelu: bool = False) -> Any:
        """A callable that computes what the module does, and GELU of it if asked to."""
        for cls in (Conv, nn.Conv2d, nn.ConvTranspose2d):
            # Padding by name is PyTorch's own, and other borders than zeros need a pass of their own.
            plain = is_untouched(module, cls) and module.padding_mode == "zeros"
            if plain and not isinstance(module.padding, str):
                gelu = gelu or getattr(module, "activation", None) == "gelu"
                by_winograd = self.winograd and WinogradConvolution.can_serve(module)
                return (WinogradConvolution if by_winograd else self.convolution)(module, self, gelu)
        if Attention.can_serve(module):
            return Attention(module)
        if is_untouched(module, nn.InstanceNorm2d) and module.affine and not module.track_running_stats:
            return InstanceNorm(module)
        for cls, part in COMPOUNDS.items():
            if is_untouched(module, cls):
                return part(module, self)
        return AsIs(module, self.dtype, gelu)


COMPOUNDS: dict[type[nn.Module], Callable] = {
    nn.Sequential: Chain,
    MultiScaleModule: MultiScale,
    ResidualBlock: Residual,
    CNNBlock: Stage,
    ConvS: ShallowFeatures,
}


class Network:
    """The whole network, from a picture to its three restorations."""

    def __init__(self, model: IRNeXt, plan: Plan):
        self.dtype, self.layout, self.choices = plan.dtype, plan.layout, plan.choices
        self.encoder = [plan.part(stage) for stage in model.encoder]
        self.decoder = [plan.part(stage) for stage in model.decoder]
        self.stem = plan.part(model.stem)
        self.downs = [plan.part(conv, gelu=True) for conv in model.downs]
        self.ups = [plan.part(conv, gelu=True) for conv in model.ups]
        self.skips = [plan.part(conv) for conv in model.skips]
        self.heads = [plan.part(conv) for conv in (*model.side_heads, model.head)]
        self.features = [plan.part(part) for part in (model.features_half, model.features_quarter)]
        self.fuses = [plan.part(conv) for conv in (model.fuse_half, model.fuse_quarter)]

    def __call__(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[2:]
        if not x.shape[0]:
            return [x.new_empty(0, 3, height // scale, width // scale) for scale in (4, 2, 1)]
        full = x.to(self.dtype, memory_format=self.layout)
        half, quarter = (x[:, :, ::scale, ::scale] for scale in (2, 4))

        skip1 = self.encoder[0](self.stem(full), overwrite=self.stem.fresh)
        skip2 = self._encode(1, skip1, half)
        z = self._encode(2, skip2, quarter)
        z = self.decoder[0](z, overwrite=self.encoder[2].fresh)
        restored_quarter = self._restored(0, z, quarter, x)
        both = [self.ups[0](z), skip2]
        del z, skip2
        z = self._decode(1, both)
        restored_half = self._restored(1, z, half, x)
        both = [self.ups[1](z), skip1]
        del z, skip1
        z = self._decode(2, both)
        return [restored_quarter, restored_half, self._restored(2, z, x, x)]

    def _encode(self, level: int, skip: Tensor, picture: Tensor) -> Tensor:
        """The encoder's stage `level`, from the one above and the smaller picture."""
        fuse = self.fuses[level - 1]
        picture = picture.to(self.dtype).contiguous(memory_format=self.layout)
        features = self.features[level - 1](picture)
        z = convolve_joined(fuse, [self.downs[level - 1](skip), features])
        return self.encoder[level](z, overwrite=fuse.fresh)

    def _decode(self, level: int, both: list[Tensor]) -> Tensor:
        """The decoder's stage `level`, from the one below and the skip, which are taken from the list."""
        skip = self.skips[level - 1]
        return self.decoder[level](convolve_joined(skip, both), overwrite=skip.fresh)

    def _restored(self, level: int, z: Tensor, picture: Tensor, x: Tensor) -> Tensor:
        """The picture plus what the head makes of z: in x's type, and contiguous if x is."""
        head = self.heads[level]
        y = head.run(z, picture) if isinstance(head, AsIs) else picture + head(z)
        y = y.to(x.dtype)
        return y.contiguous() if x.is_contiguous() else y


# ---- graphs --------------------------------------------------------------------------------------

Replay = Callable[[Tensor], list[Tensor]]


class GraphCache:
    """Runs a function of one tensor by recordings of it, one per shape, type and layout of its argument.

    Args:
        function: what to record.
        record: makes a recording, from the function and an example; called with other tensors of the
            example's shape, type and layout, the recording returns the function's results.
        capacity: recordings kept; the one unused for longest goes first.
        largest: pixels (N * H * W) beyond which the function is called itself.
    """

    def __init__(
        self,
        function: Replay,
        record: Callable[[Replay, Tensor], Replay],
        capacity: int = GRAPHS,
        largest: int = LARGEST_GRAPH,
    ):
        self.function, self.record, self.capacity, self.largest = function, record, capacity, largest
        self.recordings: dict[tuple, Replay] = {}
        self.lock = threading.Lock()  # a recording has one place for its input and its results

    def __call__(self, x: Tensor) -> list[Tensor]:
        if not 0 < x.numel() // x.shape[1] <= self.largest:
            return self.function(x)
        key = (x.shape, x.stride(), x.dtype)
        with self.lock:
            replay = self.recordings.pop(key, None)
            if replay is None:
                replay = self.record(self.function, x)
            self.recordings[key] = replay
            # Only now, as recording has waited for all work of the graph that goes.
            if len(self.recordings) > self.capacity:
                self.recordings.pop(next(iter(self.recordings)))
            return replay(x)


def record_cuda_graph(function: Replay, x: Tensor) -> Replay:
    """A recording of the function's kernels as a CUDA graph."""
    with torch.cuda.device(x.device):
        place = x.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose and load their kernels before the recording
            for _ in range(2):
                function(place)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = function(place)
        done = torch.cuda.Event()
        done.record()

    def replay(x: Tensor) -> list[Tensor]:
        with torch.cuda.device(x.device):
            torch.cuda.current_stream().wait_event(done)  # callers may use streams of their own
            place.copy_(x)
            graph.replay()
            found = [result.clone() for result in results]
            done.record()
        return found

    return replay


# ---- the model -----------------------------------------------------------------------------------


def held_for(model: IRNeXt, dtype: torch.dtype) -> IRNeXt:
    """The model with weights to compute in `dtype` from: itself where they are of it or float32."""
    if model.stem.weight.dtype in (dtype, torch.float32) and dtype != torch.float64:
        return model
    return copy.deepcopy(model).to(dtype)


class OptimizedModel(nn.Module):
    """An IRNeXt for inference only, made by `optimize`.

    It holds a plain copy of the model in `plain`, with its weights in their own precision; parameters,
    state dict and moves between devices are the copy's. What is computed is prepared from it at the
    first call, and again after `load_state_dict`, `to` and their like. Pickling and copying take the
    plain model and the options. Other programs' tracing (torch.compile, torch.export, fake tensors)
    sees the plain model.
    """

    def __init__(
        self,
        plain: IRNeXt,
        dtype: torch.dtype | None,
        channels_last: bool,
        graphs: bool,
        max_memory: int | None = None,
    ):
        super().__init__()
        super().train(False)
        self.plain = plain
        self.dtype, self.channels_last, self.graphs = dtype, channels_last, graphs
        self.max_memory = max_memory
        self._forget()

    def _forget(self) -> None:
        self._prepared: Callable[[Tensor], list[Tensor]] | None = None
        self._preparing = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_prepared", "_preparing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def restore_plain(self) -> IRNeXt:
        """A copy of the plain model, in eval mode, which can be trained on."""
        return copy.deepcopy(self.plain)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the network."""
        return self.plain.settings

    @property
    def size_multiple(self) -> int:
        """What H and W must be multiples of."""
        return self.plain.size_multiple

    @property
    def minimum_size(self) -> int:
        """What H and W must at least be."""
        return self.plain.minimum_size

    def fix_local_window(self, height: int | None, width: int | None = None) -> None:
        """See `IRNeXt.fix_local_window`."""
        self.plain.fix_local_window(height, width)
        self._forget()

    def official_state_dict(self) -> dict[str, Tensor]:
        """See `IRNeXt.official_state_dict`."""
        return self.plain.official_state_dict()

    def state_dict(self, *arguments, **options) -> dict[str, Any]:
        """The plain model's."""
        return self.plain.state_dict(*arguments, **options)

    def load_state_dict(self, *arguments, **options):
        """Load the plain model's weights, in either layout, and use them from the next call on."""
        self._forget()
        return self.plain.load_state_dict(*arguments, **options)

    def _apply(self, function, recurse: bool = True) -> OptimizedModel:
        self._forget()
        return super()._apply(function, recurse)

    def train(self, mode: bool = True) -> OptimizedModel:
        """Only eval mode: raises RuntimeError for any other."""
        if mode:
            raise RuntimeError("an optimized model is for inference only: train its restore_plain()")
        return super().train(False)

    def forward(self, x: Tensor, max_memory: int | str | None = None) -> list[Tensor]:
        """As the plain model: [quarter, half, full], in x's type, without gradients.

        Args:
            x: (N, 3, H, W).
            max_memory: as for `optimize`, for this call; None for the model's own.

        Raises:
            ValueError: a shape that the plain model does not take, another device than its own, or
                too low a limit.
            TypeError: x is not floating point.
        """
        self.plain._check_input(x)
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        weight = self.plain.stem.weight
        if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
            return self._traced(x, weight.dtype)
        if x.device != weight.device:
            raise ValueError(f"x is on {x.device} but the model is on {weight.device}; move them together")
        limit = self.max_memory if max_memory is None else parse_size(max_memory)
        # Events and graphs are of the current device.
        there = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
        with torch.no_grad(), ops.full_precision(x.device.type), there:
            prepared = self._prepare()
            if limit is None:
                return prepared(x)
            from .bands import compute_within  # which is made of the parts above

            network = prepared.function if isinstance(prepared, GraphCache) else prepared
            return compute_within(limit, self.plain, network, x)

    def _traced(self, x: Tensor, held: torch.dtype) -> list[Tensor]:
        dtype = self.dtype or held
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype in HALF and dtype != held):
            return [y.to(x.dtype) for y in self.plain(x.to(held))]

    def _prepare(self) -> Callable[[Tensor], list[Tensor]]:
        prepared = self._prepared
        if prepared is None:
            with self._preparing:
                if self._prepared is None:
                    self._prepared = self._build()
                prepared = self._prepared
        if isinstance(prepared, GraphCache) and torch.cuda.is_current_stream_capturing():
            return prepared.function  # into the caller's own graph
        return prepared

    def choices(self) -> Choices:
        """Which implementation of each convolution was chosen by measurement: on GPUs, after the first call.

        By (weight shape, has bias, has GELU), x's shape and type, and the residual's shape: its name and
        the milliseconds of every one.
        """
        prepared = self._prepared
        network = prepared.function if isinstance(prepared, GraphCache) else prepared
        return dict(getattr(network, "choices", {}))

    def _build(self) -> Callable[[Tensor], list[Tensor]]:
        weight = self.plain.stem.weight
        dtype = self.dtype or weight.dtype
        model = held_for(self.plain, dtype)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        on_cpu = weight.device.type == "cpu"
        onednn = on_cpu and torch.backends.mkldnn.enabled and onednn_serves(dtype)
        winograd = on_cpu and self.channels_last and winograd_serves(dtype)
        triton = weight.device.type == "cuda" and self.channels_last and kernels.unavailable() is None
        convolution = OneDNNConvolution if onednn else FastestConvolution if triton else Convolution
        network = Network(model, Plan(dtype, layout, convolution, winograd))
        if self.graphs and weight.device.type == "cuda":
            return GraphCache(network, record_cuda_graph)
        return network

    def extra_repr(self) -> str:
        options = f"dtype={self.dtype}, channels_last={self.channels_last}, graphs={self.graphs}"
        return options if self.max_memory is None else f"{options}, max_memory={self.max_memory}"


def optimize(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    graphs: bool = True,
    max_memory: int | str | None = None,
) -> OptimizedModel:
    """A model for inference that computes what `model` does, faster.

    The weights are copied: `model` is neither changed nor kept, and changing it later changes nothing.
    Convolutions take their weights packed, with bias, exact GELU and sums fused in where the library
    can, and the batch normalisation of the attentions is folded. On CPUs that is oneDNN, in float32 and
    bfloat16, and for 3 x 3 convolutions in channels_last this package's own, by Winograd's algorithm,
    which computes in float32 for every type but float64. Modules that were replaced or hooked
    run as they are. One optimized model may be called from several threads.

    Args:
        model: an `IRNeXt` with any settings, in eval mode, on the CPU or a GPU; or an optimized one, of
            which a new one with these options is made.
        dtype: the type to compute in, None for the weights' own. Pictures of any floating type are
            taken, and come back in theirs.
        channels_last: compute in channels_last, the faster layout.
        graphs: on GPUs, record the kernels of an input shape at its first call and replay them as one
            CUDA graph. The last 4 shapes are kept, each with its memory.
        max_memory: bytes, or a text such as "8G", that a call may allocate, its results included. Inputs
            that take more are computed in horizontal bands with the statistics of the whole picture:
            the same results within rounding (see `irnext.bands`). None for no limit.

    Raises:
        TypeError: not an IRNeXt, or an unknown dtype.
        ValueError: a model in training mode or without data, hooks on the model itself, or no memory size.
    """
    if isinstance(model, OptimizedModel):
        model = model.plain
    if type(model) is not IRNeXt:
        given = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(f"optimize takes an irnext.IRNeXt, not {given}")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}: choose one of {', '.join(map(str, DTYPES))}, or None")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() before optimize(model)")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has no data (it is on the meta device): load its weights first")
    if not is_untouched(model, IRNeXt):
        raise ValueError("the model has hooks of its own: put them on the optimized model instead")
    limit = None if max_memory is None else parse_size(max_memory)
    return OptimizedModel(copy.deepcopy(model), dtype, channels_last, graphs, limit)
