"""Training by several processes: `torchrun`'s environment, and batch normalisation over all of them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .devices import check_device, default_device

CPU = torch.device("cpu")
TIMEOUT = datetime.timedelta(minutes=30)  # longer than one process validates after the others have


# ---- processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0 to world_size - 1.
        world_size: how many there are.
        local_rank: its number on this machine.
        device: where it computes.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Whether it is the one that prints and writes files."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(
    device: str | torch.device | None = None, timeout: datetime.timedelta = TIMEOUT
) -> Iterator[Process]:
    """A context in which the processes that `torchrun` started work together.

    Without `torchrun`, or where it starts one process only, that process is alone and no group is made.
    A group that the caller made is used and left as it is. GPUs communicate by NCCL, all else by gloo.

    Args:
        device: where to compute: "cpu", or "cuda" for the GPU of each process's local rank; None for
            GPUs where there are any. A numbered GPU is for a single process.
        timeout: how long a process waits for the others before it raises.

    Raises:
        ValueError: a variable of `torchrun`'s is missing or no number, or the device cannot be used.
    """
    if dist.is_available() and dist.is_initialized():
        local_rank = _number("LOCAL_RANK", dist.get_rank())
        place = _device(device, local_rank, dist.get_world_size())
        with _current(place):
            yield Process(dist.get_rank(), dist.get_world_size(), local_rank, place)
        return
    world_size = _number("WORLD_SIZE", 1)
    if world_size == 1:
        place = _device(device, 0, 1)
        with _current(place):
            yield Process(device=place)
        return
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is {world_size} but {', '.join(missing)} not set: start the processes with torchrun"
        )
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")
    process = Process(rank, world_size, local_rank, _device(device, local_rank, world_size))
    on_gpu = process.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(process.device)
    backend, bound = ("nccl", process.device) if on_gpu else ("gloo", None)
    dist.init_process_group(backend, timeout=timeout, device_id=bound)
    try:
        yield process
    except BaseException:
        # Without gloo's connections the others fail at once. NCCL would first wait for them: there it
        # is torchrun that ends them, once this process has ended.
        if not on_gpu:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _number(name: str, default: int | None = None) -> int:
    """An environment variable as a number that is not negative."""
    text = os.environ.get(name, default)
    if not str(text).isdecimal():
        raise ValueError(f"the environment variable {name} is {text!r}: it must be a number of at least 0")
    return int(text)


def _device(wanted: str | torch.device | None, local_rank: int, world_size: int) -> torch.device:
    """The device of one process."""
    if wanted is None:
        wanted = default_device()
    check_device(wanted)
    device = torch.device(wanted)
    if device.type != "cuda":
        return device
    if world_size == 1:
        return torch.device("cuda", device.index or 0)
    if device.index is not None:
        raise ValueError(f"device is {str(device)!r}: several processes need one GPU each, so give 'cuda'")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs here, none for local rank {local_rank}: start no "
            "more processes than GPUs (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", local_rank)


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which a GPU is the one that is taken where no number is given, as collectives do."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


# ---- agreement -----------------------------------------------------------------------------------


def is_distributed() -> bool:
    """Whether this process works together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_rank(flag: bool) -> bool:
    """Whether the flag is true in any process: the same answer in all, which must all ask.

    What one process decides by itself, such as to skip a step, would leave the others waiting.
    """
    return bool(_reduced(float(flag), dist.ReduceOp.MAX)) if is_distributed() else bool(flag)


def all_mean(value: float) -> float:
    """The mean of a number over the processes, in float64: the same in all, which must all ask."""
    if not is_distributed():
        return float(value)
    return _reduced(float(value), dist.ReduceOp.SUM) / dist.get_world_size()


def _reduced(value: float, operation: dist.ReduceOp) -> float:
    on_gpu = dist.get_backend() == dist.Backend.NCCL
    number = torch.tensor(value, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
    dist.all_reduce(number, operation)
    return number.item()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """What `value` is in process `source`, in every process; it must pickle."""
    if not is_distributed():
        return value
    objects = [value]
    dist.broadcast_object_list(objects, source)
    return objects[0]


def first_object(value: Any) -> Any:
    """The first `value` in the order of ranks that is not None: the same in all, which must all ask.

    It must pickle.
    """
    if not is_distributed():
        return value
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return next((value for value in values if value is not None), None)


# ---- models --------------------------------------------------------------------------------------


def data_parallel(model: nn.Module, process: Process) -> nn.Module:
    """The model, on the process's device, as processes train it together on shares of a batch.

    Gradients of a mean over a process's share become those of the mean over the batch, and batch
    normalisation takes its statistics over the batch: a step equals that of one process. In a world of
    one it is the model itself; otherwise its `.module` is.
    """
    if process.world_size == 1:
        return model
    synchronise_batch_norm(model)
    devices = [process.device] if process.device.type == "cuda" else None
    # Every parameter of these models has a gradient in every step: DDP need not look for others.
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Turn the model's `BatchNorm2d` into `SynchronisedBatchNorm2d`, in place; returns the model.

    Parameters, buffers and their names stay the very same.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
    return model


@contextlib.contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """A context in which the model is as before `synchronise_batch_norm`, which one process may use alone.

    In eval mode that changes no value; what knows `BatchNorm2d` only, such as bands, then takes the model.
    """
    norms = [module for module in model.modules() if type(module) is SynchronisedBatchNorm2d]
    for norm in norms:
        norm.__class__ = nn.BatchNorm2d
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = SynchronisedBatchNorm2d


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose statistics in training are those of all processes' batches together.

    It gives what `BatchNorm2d` gives for the whole batch in one process, running statistics included,
    where torch's own `SyncBatchNorm` refuses CPU tensors. Shares may differ in size, and one sample per
    process is enough, though its variance alone is zero. Statistics are in float32 or wider. One
    collective forward and one backward, each of about 2 C numbers: all processes must call it alike. In
    eval mode, and alone, it is `BatchNorm2d`. No double backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and is_distributed()):
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, squares, count = _Standardise.apply(x, self.eps)
        if self.running_mean is not None:
            self._update(mean, squares / (count - 1).clamp(min=1))
        if self.weight is not None:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards the batch's (C), its variance unbiased."""
        self.num_batches_tracked.add_(1)
        # As in BatchNorm2d, no momentum means the average over all batches.
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Standardise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) with the statistics of all processes' x (N, C, H, W).

    Returns it in float32 or wider, with the mean (C), the sum of squared deviations (C) and the count.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.dtype = x.dtype
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, squares, count = _gathered_moments(x)
        inverse = (squares / count + eps).rsqrt()
        y = (x - mean[:, None, None]) * inverse[:, None, None]
        ctx.save_for_backward(y, inverse, count)
        ctx.mark_non_differentiable(mean, squares, count)
        return y, mean, squares, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        y, inverse, count = ctx.saved_tensors
        sums = torch.stack((_plane_sums(gradient), _plane_sums(gradient * y)))
        dist.all_reduce(sums)
        mean, slope = (sums / count)[..., None, None]
        return ((gradient - mean - y * slope) * inverse[:, None, None]).to(ctx.dtype), None


def _plane_sums(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3))


def _gathered_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C), sum of squared deviations (C) and count of all processes' x (N, C, H, W).

    Every process's own moments are merged (Chan et al. 1979), in the order of ranks: sums of squares
    would cancel, and ranks would disagree.
    """
    count = x.new_full((), x.numel() // x.shape[1])  # written by a GPU itself, which is not waited for
    mean = _plane_sums(x) / count.clamp(min=1)
    squares = _plane_sums((x - mean[:, None, None]).square())
    own = torch.cat((mean, squares, count[None]))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, squares, counts = torch.stack(parts).split((x.shape[1], x.shape[1], 1), 1)
    count = counts.sum().clamp(min=1)
    mean = (counts * means).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0), count
