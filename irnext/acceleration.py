"""Other people's models at our speed: `accelerate` swaps the operators inside them for `irnext.ops`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from .recognition import Unlike, recognise
from .relatives import Accelerated


@dataclass(frozen=True)
class Operator:
    """A module that is, or is called like, a published operator.

    Attributes:
        path: its name within the model; empty for the model itself.
        kind: the name of its class, as it was before.
        reason: why it was left as it is; empty where it was swapped.
    """

    path: str
    kind: str
    reason: str = ""

    def __str__(self) -> str:
        place = f"{self.path or 'the module itself'} ({self.kind})"
        return f"{place}: {self.reason}" if self.reason else place


@dataclass(frozen=True)
class Report:
    """What `accelerate` did; `print` shows it.

    Attributes:
        swapped: operators that irnext computes now.
        left: operators that were left as they were, each with the reason.
    """

    swapped: tuple[Operator, ...]
    left: tuple[Operator, ...]

    def __str__(self) -> str:
        if not self.swapped and not self.left:
            return "nothing to accelerate: there is no dynamic_filter, spatial_strip_att or DeepPoolLayer"
        kinds = Counter(operator.kind for operator in self.swapped)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        total = len(self.swapped) + len(self.left)
        summary = f"accelerated {len(self.swapped)} of {total} operators" + (f": {counts}" if counts else "")
        return "\n".join([summary, *(f"left {operator}" for operator in self.left)])


def accelerate(module: nn.Module) -> Report:
    """Let irnext compute the published operators inside a model, in place.

    Recognised by class name and members are `dynamic_filter` as in IRNeXt and ConvIR (lamb_l, lamb_h,
    inside_all; any dilation) and as in SFNet and FSNet (`modulate`), `spatial_strip_att` as in ConvIR and
    as in SANet and DSANet, and `DeepPoolLayer`. Each is then tried out: a copy of it in float64 on random
    input must give the results, the gradients and the running statistics of the published operator, in
    eval and in training mode. What does not is left as it is, and named in the report.

    A swapped operator gets a subclass of its own class. Its parameters, buffers, hooks and names stay the
    same objects, so optimisers, state dicts, `isinstance` and wrappers such as DDP go on as before; copies
    and pickles of it are accelerated, too. To call `accelerate` again changes nothing.

    Results are x's type and layout: under autocast to half precision the published operators return
    float32 instead. The few numbers a plane of which the filter is made stay in float32.

    Args:
        module: a model, or one operator.

    Raises:
        TypeError: not an nn.Module.
    """
    _check(module)
    swapped, left = [], []
    for path, operator in list(module.named_modules()):
        if isinstance(operator, Accelerated):
            left.append(Operator(path, operator.original.__name__, "it is accelerated already"))
            continue
        kind = type(operator).__name__
        try:
            cls = recognise(operator)
        except Unlike as unlike:
            left.append(Operator(path, kind, str(unlike)))
            continue
        if cls is not None:
            operator.__class__ = cls
            swapped.append(Operator(path, kind))
    return Report(tuple(swapped), tuple(left))


def restore_original(module: nn.Module) -> int:
    """Undo `accelerate`, in place; the number of operators that were given their own class back.

    Raises TypeError for what is not an nn.Module, and RuntimeError, before anything is changed, where an
    operator's class was changed once more since, as `fully_shard` and parametrizations do.
    """
    _check(module)
    operators = [operator for operator in module.modules() if isinstance(operator, Accelerated)]
    for operator in operators:
        if "original" not in vars(type(operator)):
            raise RuntimeError(
                f"a {operator.original.__name__} became a {type(operator).__name__} after it was "
                "accelerated: undo that first"
            )
    for operator in operators:
        operator.__class__ = operator.original
    return len(operators)


def _check(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
