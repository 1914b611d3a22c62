"""Which published operator a module is: read off its class name and members, then proved by running it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .relatives import (
    COLUMN,
    PLANE,
    ROW,
    Accelerated,
    Filter,
    GatedFilter,
    ModulatedFilter,
    PlainFilter,
    PoolPyramid,
    accelerated_class,
)

ACTIVATIONS = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Softmax: "softmax"}
USUAL_ACTIVATION = {ModulatedFilter: "tanh", GatedFilter: "softmax", PlainFilter: "sigmoid"}
GAINS = ("lamb_l", "lamb_h", "inside_all")
MOST_ERROR = 1e-9  # relative, in float64
SAMPLES = 3  # of a trial: batch statistics of two would hide the rest of the computation


class Unlike(Exception):
    """A module is not the published operator; the message says why."""


def recognise(module: nn.Module) -> type[Accelerated] | None:
    """The class to give to the module; None for a module that is not called like a published operator.

    Raises `Unlike`, with the reason, for one that is called like one and is not.
    """
    read = _reader(type(module))
    if read is None:
        return None
    if "forward" in vars(module):
        raise Unlike("it has a forward of its own, put in place of its class's")
    reasons = []
    for mixin, form in read(module):
        cls = accelerated_class(mixin, type(module), form)
        reason = why_different(module, cls)
        if reason is None:
            return cls
        reasons.append(reason)
    raise Unlike(reasons[0])


# ---- from its members ----------------------------------------------------------------------------

Candidates = Iterator[tuple[type[Accelerated], Any]]


def _reader(cls: type[nn.Module]) -> Callable[[nn.Module], Candidates] | None:
    """What reads modules that are called as this class or an ancestor of it is."""
    for ancestor in cls.__mro__:
        name = ancestor.__name__.replace("_", "").lower()
        for published, read in READERS.items():
            if published in name:
                return read
    return None


def read_filter(module: nn.Module) -> Candidates:
    """What a `dynamic_filter` may be."""
    return _read(module, square=True)


def read_strip(module: nn.Module) -> Candidates:
    """What a `spatial_strip_att` may be."""
    return _read(module, square=False)


def _read(module: nn.Module, square: bool) -> Candidates:
    children = module._modules
    conv = children.get("conv")
    if not isinstance(conv, nn.Conv2d):
        raise Unlike("it has no convolution named conv")
    if conv.kernel_size != (1, 1):
        rows, columns = conv.kernel_size
        raise Unlike(f"its conv is {rows}x{columns}, not 1x1: its filters differ from pixel to pixel")
    mixin = _mixin(module, conv.in_channels)
    activations = [ACTIVATIONS[type(child)] for child in children.values() if type(child) in ACTIVATIONS]
    activation = activations[0] if activations else USUAL_ACTIVATION[mixin]
    for size in _sizes(module, conv, square, usual_groups=1 if mixin is PlainFilter else 8):
        taps = math.prod(size)
        groups = max(1, conv.out_channels // max(1, taps))
        if taps < 1 or taps % 2 == 0 or conv.out_channels % taps or conv.in_channels % groups:
            raise Unlike(
                f"its conv makes {conv.out_channels} numbers of {conv.in_channels} channels: no filters of "
                f"{size[0]}x{size[1]} for equal groups"
            )
        yield mixin, Filter(size, _dilation(module, size), activation, "bn" in children, _mean(module, size))


def _mixin(module: nn.Module, channels: int) -> type[PlainFilter]:
    """How the response is combined with x."""
    if isinstance(gate := module._modules.get("modulate"), nn.Module):
        if missing := [name for name in ("fc", "fcs", "out") if name not in gate._modules]:
            raise Unlike(f"its modulate has no {', '.join(missing)}")
        return GatedFilter
    gains = {name: getattr(module, name, None) for name in GAINS}
    if all(gain is None for gain in gains.values()):
        return PlainFilter
    for name, gain in gains.items():
        if not isinstance(gain, Tensor):
            raise Unlike(f"it has no {name}")
        if gain.numel() != channels:
            raise Unlike(f"its {name} holds {gain.numel()} numbers for {channels} channels")
    return ModulatedFilter


def _sizes(module: nn.Module, conv: nn.Conv2d, square: bool, usual_groups: int) -> list[tuple[int, int]]:
    """Rows and columns that the filter may have."""
    attributes = vars(module)
    size = next((attributes[name] for name in ("kernel", "kernel_size", "k") if name in attributes), None)
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return [tuple(size)]
    if not isinstance(size, int):
        groups = attributes.get("group")
        taps = conv.out_channels // (groups if isinstance(groups, int) and groups > 0 else usual_groups)
        size = math.isqrt(taps) if square else taps
    return [(size, size)] if square else [(1, size), (size, 1)]


def _dilation(module: nn.Module, size: tuple[int, int]) -> int:
    """The distance between taps; without a member that says it, from the padding."""
    dilation = vars(module).get("dilation")
    if isinstance(dilation, int):
        return dilation
    padding = getattr(module._modules.get("pad"), "padding", None)
    return max(1, max(padding) // max(1, max(size) // 2)) if isinstance(padding, tuple) else 1


def _mean(module: nn.Module, kernel: tuple[int, int]) -> tuple[int, ...]:
    """What the low-pass term is the mean over; without a member that says it, as published."""
    gap = module._modules.get("gap")
    if isinstance(gap, nn.AdaptiveAvgPool2d):
        means = {1: PLANE, (1, 1): PLANE, (None, 1): ROW, (1, None): COLUMN}
        size = gap.output_size if isinstance(gap.output_size, int) else tuple(gap.output_size)
        if size not in means:
            raise Unlike(f"its gap makes planes of {size}")
        return means[size]
    return PLANE if kernel[0] == kernel[1] else ROW if kernel[0] == 1 else COLUMN


def read_pyramid(module: nn.Module) -> Candidates:
    """What a `DeepPoolLayer` is: its rates."""
    lists = [module._modules.get(name) for name in ("pools", "convs", "dynas")]
    if (
        not all(isinstance(children, nn.ModuleList) for children in lists)
        or "conv_sum" not in module._modules
    ):
        raise Unlike("it has not all of pools, convs, dynas and conv_sum")
    pools, convs, dynas = lists
    if not len(pools) == len(convs) == len(dynas) > 0:
        raise Unlike(f"it has {len(pools)} pools, {len(convs)} convs and {len(dynas)} dynas")
    if not all(
        isinstance(pool, nn.AvgPool2d) and isinstance(pool.kernel_size, int) and not pool.ceil_mode
        for pool in pools
    ):
        raise Unlike("its pools are not average pools of whole squares")
    yield PoolPyramid, tuple(pool.kernel_size for pool in pools)


READERS = {"dynamicfilter": read_filter, "spatialstripatt": read_strip, "deeppoollayer": read_pyramid}


# ---- by running it -------------------------------------------------------------------------------


def why_different(module: nn.Module, cls: type[Accelerated]) -> str | None:
    """Why the module computes something else than the class would with its members; None if it does not.

    Copies in float64 on the CPU with random weights are run in eval and in training mode, and their
    results, gradients and running statistics compared. The module itself is not run.
    """
    try:
        with (
            ops.use_backend("reference"),
            ops.full_precision("cpu"),
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
        ):
            original = _bare_copy(module)
            return _compare(original, cls)
    except Unlike as unlike:
        return str(unlike)
    except Exception as error:  # of the module's own code, which may be anything
        lines = str(error).strip().splitlines() or [""]
        return f"it could not be tried out: {type(error).__name__}: {lines[0]}"


def _compare(original: nn.Module, cls: type[Accelerated]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
        for buffer in original.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    channels, height, width = _trial_shape(original, cls.form)
    x = torch.rand(SAMPLES, channels, height, width, generator=generator, dtype=torch.float64)
    x = x + torch.rand(SAMPLES, channels, 1, 1, generator=generator, dtype=torch.float64)
    for training in (False, True):
        ours = copy.deepcopy(original)
        ours.__class__ = cls
        _check_left_out(ours)
        expected, found = _results(original.train(training), x), _results(ours.train(training), x)
        for name, a in expected.items():
            if (error := _error(found[name], a)) > MOST_ERROR:
                return f"it computes something else than the published operator ({name}: off by {error:.0e})"
    return None


def _check_left_out(ours: Accelerated) -> None:
    """Raise `Unlike` for a part with code of its own that would not run any more.

    A local mean, whose window covers the trial's small plane, looks like the mean of the plane there. Only
    `modulate` has such code as published.
    """
    names = {part: name for name, part in ours.named_modules()}
    for part in ours.left_out():
        for inner in part.modules() if isinstance(part, nn.Sequential) else (part,):
            own = "forward" in vars(inner) or not type(inner).__module__.startswith("torch.nn.")
            if own and names[inner] != "modulate":
                raise Unlike(
                    f"its {names[inner]} is of no class of PyTorch, {type(inner).__name__}, and may compute "
                    "something else on larger planes"
                )


def _error(found: Tensor | None, expected: Tensor | None) -> float:
    """The largest difference, over the largest number where that is above one."""
    if found is None or expected is None:
        return 0 if found is expected else math.inf
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def _results(module: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """The result, the gradients of x and of all parameters, and the buffers."""
    x = x.clone().requires_grad_()
    y = module(x)
    if not isinstance(y, Tensor):
        raise Unlike(f"it returns a {type(y).__name__}, not a tensor")
    direction = torch.linspace(0, 9, y.numel(), dtype=y.dtype).cos().view_as(y)
    wanted = {"x": x} | {name: parameter.requires_grad_() for name, parameter in module.named_parameters()}
    gradients = torch.autograd.grad(y, list(wanted.values()), direction, allow_unused=True)
    results = {"result": y.detach()}
    results |= {f"gradient of {name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
    return results | {name: buffer.double() for name, buffer in module.named_buffers()}


def _bare_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, without hooks and without other processes.

    A pyramid's attentions, which are tried by themselves, pass x on, and norms synchronise nothing.
    """
    memo: dict[int, Any] = {}  # what deepcopy takes instead
    for part in module.modules():
        memo |= {id(hooks): type(hooks)() for name, hooks in vars(part).items() if name.endswith("hooks")}
        if isinstance(part, nn.SyncBatchNorm):
            memo[id(part.process_group)] = part.process_group  # which cannot be copied
    memo |= {id(attention): nn.Identity() for attention in module._modules.get("dynas", ())}
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            part.__class__ = nn.BatchNorm2d
    if any(tensor.is_meta for tensor in (*twin.parameters(), *twin.buffers())):
        twin = twin.to_empty(device="cpu")
    return twin.to("cpu", torch.float64)


def _trial_shape(module: nn.Module, form: Filter | tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, rows and columns of a small x, not square, that the operator takes."""
    if not isinstance(form, Filter):
        return module.convs[0].in_channels, 2 * max(form), 3 * max(form)
    rows, columns = (form.dilation * (side // 2) for side in form.kernel_size)
    return module.conv.in_channels, rows + 5, columns + 6
