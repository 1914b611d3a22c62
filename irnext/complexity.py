"""What a network costs: parameters, multiply-accumulates, and FLOPs as the IRNeXt paper counts them.

One forward pass runs on fake tensors, which have shapes and no data, and a dispatch mode
adds up what each operator costs. Nothing is computed and nothing of the model is touched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .ops.dispatch import registered_operators


class Complexity(NamedTuple):
    """The cost of one forward pass, in plain numbers (not thousands or millions).

    Attributes:
        params: trainable and frozen parameters; buffers do not count.
        macs: multiply-accumulates of convolutions and matrix products.
        tap_macs: multiply-accumulates of dynamic filters, one per tap and pixel; not part of `macs`.
        paper_flops: the IRNeXt paper's count: a multiply-accumulate is one operation, a transposed
            convolution counts at its output's resolution, and one operation is added per output
            element of each bias and each activation, one per input element of an average pool (a
            plane's mean is one), and two per normalised element. Dynamic filters' taps,
            interpolation, sums and products of tensors are free.
    """

    params: int
    macs: int
    tap_macs: int
    paper_flops: int


class Cost(NamedTuple):
    """What one call of an operator adds to a `Complexity`."""

    macs: int = 0
    paper_flops: int = 0
    tap_macs: int = 0

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


# ---- one formula per kind of operator: (arguments in the schema's order, output) -> Cost ----------


def _convolution(arguments: tuple, output: Tensor) -> Cost:
    x, weight, bias = arguments[:3]
    transposed = arguments[6]
    # weight is (outputs, inputs / groups, *kernel), or (inputs, outputs / groups, *kernel) transposed.
    per_element = math.prod(weight.shape[1:])
    added = output.numel() if bias is not None else 0
    if not transposed:
        macs = output.numel() * per_element
        return Cost(macs, macs + added)
    groups = arguments[8]
    per_output = weight.shape[0] // groups * math.prod(weight.shape[2:])
    return Cost(x.numel() * per_element, output.numel() * per_output + added)


def _matrix_product(arguments: tuple, output: Tensor) -> Cost:
    macs = output.numel() * arguments[0].shape[-1]
    return Cost(macs, macs)


def _biased_matrix_product(arguments: tuple, output: Tensor) -> Cost:
    return _matrix_product(arguments[1:], output) + Cost(paper_flops=output.numel())


def _scaled_dot_product_attention(arguments: tuple, output: tuple) -> Cost:
    query, key, value = arguments[:3]
    macs = math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return Cost(macs, macs)


def _per_output_element(arguments: tuple, output: Tensor) -> Cost:
    return Cost(paper_flops=output.numel())


def _per_input_element(arguments: tuple, output: Tensor) -> Cost:
    return Cost(paper_flops=arguments[0].numel())


def _normalisation(arguments: tuple, output: Any) -> Cost:
    return Cost(paper_flops=2 * arguments[0].numel())


def _mean(arguments: tuple, output: Tensor) -> Cost:
    """A mean over exactly the plane is an average pool: adaptive pooling to one pixel becomes it."""
    x, dims = arguments[:2]
    plane = x.ndim == 4 and isinstance(dims, list) and sorted(dim % 4 for dim in dims) == [2, 3]
    return _per_input_element(arguments, output) if plane else Cost()


def _dynamic_conv2d(arguments: tuple, output: Tensor) -> Cost:
    return Cost(tap_macs=output.numel() * math.prod(arguments[1].shape[2:]))


def _pool_pyramid(arguments: tuple, output: list[Tensor]) -> Cost:
    return Cost(paper_flops=arguments[0].numel() * len(output))


def _merge_pyramid(arguments: tuple, output: Tensor) -> Cost:
    activation = arguments[2] if len(arguments) > 2 else "gelu"
    return Cost() if activation is None else _per_output_element(arguments, output)


def _conv2d_bias_act(arguments: tuple, output: Tensor) -> Cost:
    _, weight, bias, activation, _ = arguments
    macs = output.numel() * math.prod(weight.shape[1:])
    return Cost(macs, macs + output.numel() * ((bias is not None) + (activation is not None)))


def _free(arguments: tuple, output: Any) -> Cost:
    return Cost()


_FORMULAS: dict[Callable, tuple[str, ...]] = {
    _convolution: ("aten::convolution",),
    _matrix_product: ("aten::mm", "aten::bmm", "aten::mv"),
    _biased_matrix_product: ("aten::addmm", "aten::baddbmm"),
    _scaled_dot_product_attention: (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
    ),
    _per_output_element: (
        *(f"aten::{name}" for name in ("gelu", "relu", "leaky_relu", "_prelu_kernel", "elu", "silu", "mish")),
        *(f"aten::{name}" for name in ("tanh", "sigmoid", "_softmax", "softplus", "hardtanh", "glu")),
        *(f"aten::{name}" for name in ("hardswish", "hardsigmoid", "_log_softmax")),
    ),
    _per_input_element: (
        "aten::avg_pool2d",
        "aten::_adaptive_avg_pool2d",
        "irnext::spatial_mean",
    ),
    _normalisation: (
        "aten::native_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_no_training",
        "aten::_batch_norm_no_update",
        "aten::cudnn_batch_norm",
        "aten::miopen_batch_norm",
        "aten::native_layer_norm",
        "aten::native_group_norm",
    ),
    _mean: ("aten::mean",),
    _dynamic_conv2d: ("irnext::dynamic_conv2d",),
    _pool_pyramid: ("irnext::pool_pyramid",),
    _merge_pyramid: ("irnext::merge_pyramid",),
    _conv2d_bias_act: ("irnext::conv2d_bias_act",),
    _free: ("irnext::local_mean",),
}
FORMULAS: dict[str, Callable] = {name: formula for formula, names in _FORMULAS.items() for name in names}


class CostCounter(TorchDispatchMode):
    """Adds up, in `total`, the cost of every operator that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Cost()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removesuffix("_")  # gelu_ costs what gelu does
        formula = FORMULAS.get(name)
        if formula is not None:
            self.total += formula(_positional(func, args, kwargs or {}), output)
        elif not name.startswith(("aten::", "prim::", "prims::")):
            raise ValueError(f"no formula for the operator {name}: add one to irnext.complexity.FORMULAS")
        return output


def _positional(func: Any, args: tuple, kwargs: dict) -> tuple:
    """All arguments in the schema's order, defaults filled in."""
    rest = func._schema.arguments[len(args) :]
    return (*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest))


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor like this one without data, and on the CPU if it had none: autocast knows no meta device."""
    if not tensor.is_meta:
        return mode.from_tensor(tensor)
    with mode:
        return torch.empty_like(tensor, device="cpu")


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the model in eval mode with fake tensors; no data is copied."""
    memo = {}
    for module in model.modules():
        own = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        memo.update((id(tensor), _fake(tensor, mode)) for tensor in own if isinstance(tensor, Tensor))
    return copy.deepcopy(model, memo).eval()


def measure(model: nn.Module, size: tuple[int, int] = (256, 256)) -> Complexity:
    """The cost of one forward pass of `model` on a picture (1, 3, *size).

    Works for any module that takes such a tensor, on any device, in any floating type, and in
    training mode too (counted as in eval). The model is neither run nor changed. Every backend
    of `irnext.ops` counts alike.

    Args:
        model: the network.
        size: height and width of the picture, in pixels.

    Raises:
        ValueError: `size` is not two positive sizes; and whatever the model says about it.
        ValueError: the model calls a custom operator whose cost is not known.
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
        raise ValueError(f"size is {size}: it must be (height, width) in pixels, at least 1 each")
    # Tensors that a model keeps in lists or makes from arrays stay real.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _fake_copy(model, mode)
    like = next((p for p in fake.parameters() if p.is_floating_point()), torch.empty(0))
    counter = CostCounter()
    with torch.no_grad(), registered_operators(), mode, counter:
        fake(torch.empty(1, 3, *sides, dtype=like.dtype, device=like.device))
    params = sum(p.numel() for p in model.parameters())
    return Complexity(params, counter.total.macs, counter.total.tap_macs, counter.total.paper_flops)
