"""Running a model on pictures: the sizes it takes, its device and type, and the memory it may use."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..bands import MemoryLimitError
from ..devices import check_device
from ..memory import available_memory, give_back_free_memory, parse_size
from ..model import IRNeXt
from ..optimization import OptimizedModel, optimize
from ..padding import next_multiple, reflect_to
from .processes import local_processes

# What IRNeXt needs; models of other architectures say their own.
SIZE_MULTIPLE, MINIMUM_SIZE = 32, 64
HALF = (torch.float16, torch.bfloat16)
AUTO = "auto"
SHARE_OF_FREE = 0.9  # of the free memory, with max_memory="auto"


def stated(model: nn.Module, name: str, otherwise: Any) -> Any:
    """What a model says of itself, or the one within what compiles, distributes or averages it."""
    while isinstance(model, nn.Module):
        if hasattr(model, name):
            return getattr(model, name)
        model = getattr(model, "module", None)
    return otherwise


def sizes(model: nn.Module) -> tuple[int, int]:
    """The multiple and the minimum of the sides that a model takes, in pixels."""
    return stated(model, "size_multiple", SIZE_MULTIPLE), stated(model, "minimum_size", MINIMUM_SIZE)


def scale_of(model: nn.Module) -> int:
    """How many times as many pixels the model's results have along a side."""
    return stated(model, "scale", 1)


def can_be_optimized(model: nn.Module) -> bool:
    """Whether `irnext.optimize` takes the model, and so its memory can be bounded exactly."""
    return type(model) in (IRNeXt, OptimizedModel)


def check_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Raise ValueError for a half precision that the model says it does not compute in."""
    half = stated(model, "half_types", HALF)
    if dtype in HALF and dtype not in half:
        can = ", ".join(str(each).removeprefix("torch.") for each in (torch.float32, *half))
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{type(model).__name__} does not compute in {name}: use {can}")


def check_memory(model: nn.Module, tile: int | None, max_memory: int | str | None) -> None:
    """Raise ValueError for a limit that is no size, or for a model that cannot be bounded."""
    if max_memory is None:
        return
    if max_memory != AUTO:
        parse_size(max_memory)
    if tile is not None:
        raise ValueError("tile and max_memory exclude each other: tiles need less memory but are not exact")
    if not can_be_optimized(model):
        raise ValueError(f"max_memory is for an IRNeXt, and the model is {type(model).__name__}: use tile")


def prepared(
    model: nn.Module,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    max_memory: int | str | None,
) -> tuple[nn.Module, torch.dtype | None]:
    """The model as it will run, and the type to ask it for: what would be done anew for each picture."""
    model = _moved(model, dtype, device)
    if max_memory is None and not isinstance(model, OptimizedModel):
        return model, dtype
    return _optimized(model, dtype), None


def _moved(model: nn.Module, dtype: torch.dtype | None, device: str | torch.device | None) -> nn.Module:
    """The model on `device`, able to compute in `dtype`: itself where it is, else a copy."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: it must be a floating-point type")
    if device is not None:
        check_device(device)
    held = first_weight(model)
    if held is None:
        return model
    device = held.device if device is None else torch.device(device)
    by_autocast = dtype in HALF and held.dtype == torch.float32
    dtype = held.dtype if dtype is None or by_autocast else dtype
    same_device = device.type == held.device.type and device.index in (None, held.device.index)
    if same_device and dtype == held.dtype:
        return model
    return copy.deepcopy(model).to(device, dtype)


def _optimized(model: nn.Module, dtype: torch.dtype | None) -> OptimizedModel:
    """The model optimized for `dtype`: itself where it is already."""
    if isinstance(model, OptimizedModel):
        computes_in = model.dtype or first_weight(model).dtype
        if dtype in (None, computes_in):
            return model
        return optimize(model, dtype, model.channels_last, model.graphs)
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    return optimize(model, dtype)


def _run_within(max_memory: int | str, model: OptimizedModel, x: Tensor, given: Tensor) -> list[Tensor]:
    """The model's results of x, made of `given`; both are here already and count, except with "auto"."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (x, given) if tensor.device == x.device}
    taken = sum(held.values())
    limit = share_of_free(x.device) if max_memory == AUTO else parse_size(max_memory) - taken
    try:
        return model(x) if limit is None else model(x, max_memory=max(limit, 1))
    except MemoryLimitError as error:
        if max_memory == AUTO:
            raise
        raise MemoryLimitError(error.shape, limit + taken, error.least + taken) from None


def share_of_free(device: torch.device) -> int | None:
    """Bytes that max_memory="auto" allows on a device, None where nothing tells."""
    free = available_memory(device)
    sharing = local_processes() if device.type == "cpu" else 1
    return None if free is None else int(SHARE_OF_FREE * free / sharing)


def first_weight(model: nn.Module) -> Tensor | None:
    """A tensor that tells where the model is and in what type, None for a model without weights."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def release(model: nn.Module) -> None:
    """Give back what a picture took on a CPU: where sizes differ, the C library would keep ever more."""
    weight = first_weight(model)
    if weight is not None and weight.device.type == "cpu":
        give_back_free_memory()


@contextmanager
def inference(
    model: nn.Module,
    dtype: torch.dtype | None,
    fallback: str | torch.device,
    max_memory: int | str | None,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model as a function from pictures to restored ones, in eval mode for as long as it lasts."""
    weight = first_weight(model)
    held, device = (weight.dtype, weight.device) if weight is not None else (dtype, torch.device(fallback))
    autocast = dtype in HALF and held == torch.float32
    index, scale = stated(model, "result_index", -1), scale_of(model)

    def run(x: Tensor) -> Tensor:
        try:
            given = x.to(device=device, dtype=held)
            outputs = model(given) if max_memory is None else _run_within(max_memory, model, given, x)
        except (MemoryError, RuntimeError) as error:
            if _is_out_of_memory(error):
                bound = "bound it by max_memory, or use" if can_be_optimized(model) else "use"
                raise MemoryError(
                    f"not enough memory on {device} for {x.shape[3]}x{x.shape[2]} pixels at once: "
                    f"{bound} tiles, or smaller ones"
                ) from error
            raise
        y = outputs[index] if isinstance(outputs, (list, tuple)) else outputs
        expected = (*x.shape[:2], scale * x.shape[2], scale * x.shape[3])
        if y.shape != expected:
            raise ValueError(
                f"the model makes {tuple(y.shape)} of {tuple(x.shape)}: it should be {tuple(expected)}"
            )
        if not y.isfinite().all():
            raise FloatingPointError(
                f"the model's output is not finite in {dtype or held}: try float32, or check the weights"
            )
        return y.to(x.device, x.dtype)

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, dtype if autocast else torch.bfloat16, enabled=autocast),
        ):
            yield run
    finally:
        for module in training:
            module.training = True


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate memory" in str(error) or "not enough memory" in str(error)  # the CPU's allocator


def continued_side(side: int, multiple: int, minimum: int) -> int:
    """The side of a picture, in pixels, that the model gets for one of `side`."""
    return next_multiple(max(side, minimum), multiple)


def continued(batch: Tensor, multiple: int, minimum: int) -> Tensor:
    """(N, 3, H, W) continued to a size that the model takes; itself where it has one."""
    for axis in (2, 3):
        size = continued_side(batch.shape[axis], multiple, minimum)
        if size > batch.shape[axis]:
            batch = reflect_to(batch, axis, size)
    return batch
