"""The batches of a training: loaded by worker processes, which tell what they could not read."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..data.sampling import EpochSampler
from ..distributed import Process
from .config import TrainingConfig

GRACE_SECONDS = 60  # for which workers outlive SIGTERM


def load_batches(
    config: TrainingConfig, process: Process, crops: Dataset, step: int
) -> Iterator[list[Tensor] | Exception]:
    """This process's shares of the batches from a step on, without end: degraded and clean crops, uint8.

    In place of a batch with a picture that cannot be read comes the exception that says which.
    """
    epoch, start = divmod(step, len(crops) // config.batch)
    sampler = EpochSampler(
        len(crops), config.batch, config.seed, process.rank, process.world_size, epoch, start
    )
    workers = worker_count(config, process)
    return iter(
        DataLoader(
            _Telling(crops),
            batch_sampler=sampler,
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=process.device.type == "cuda",
            worker_init_fn=_outlive_signals,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # else each start would draw from the global one
        )
    )


def worker_count(config: TrainingConfig, process: Process) -> int:
    """Processes that load pictures: those asked for, or up to 8 of this process's share of the cores.

    Where the CPU computes, it takes longer for a crop than loading does, so that one core in four is enough.
    """
    if config.workers is not None:
        return config.workers
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = allowed // here
    return min(8, share // 4) if process.device.type == "cpu" else max(1, min(8, share - 1))


class _Telling(Dataset):
    """Crops, or the exception met in making one: from a worker it would come wrapped into its traceback."""

    def __init__(self, crops: Dataset):
        self.crops = crops

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | Exception:
        try:
            return self.crops[key]
        except (ValueError, OSError) as error:
            return error


def _collate(items: list[tuple[Tensor, Tensor] | Exception]) -> list[Tensor] | Exception:
    return next((item for item in items if isinstance(item, Exception)), None) or default_collate(items)


def _outlive_signals(worker: int) -> None:
    """Signals to the whole group of processes are the main process's to answer, which needs the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
