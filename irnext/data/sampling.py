"""Which pictures a training batch is made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index), all that a crop's randomness may depend on


class EpochSampler(Sampler[list[Key]]):
    """The batches of one process, as lists of (epoch, index), epoch after epoch.

    Every epoch is a permutation of the indices that follows from `seed` and the epoch alone, cut into
    batches; what is left over is dropped. A batch is shared out between the processes in slices of its
    order, so that it is the same whatever their number, and sampling can begin anywhere: an interrupted
    training goes on with the batches it would have had. For a `DataLoader`'s `batch_sampler`.

    Args:
        length: number of pictures.
        batch: pictures of a batch, all processes' together; a multiple of `world_size`.
        seed: of the order, at least 0.
        rank: this process, from 0 to world_size - 1.
        world_size: number of processes.
        epoch, start: where to begin: the epoch, and the batch within it.
        epochs: where to end: the number of epochs counted from epoch 0; None to go on for ever.

    Raises:
        ValueError: an argument out of range, or fewer pictures than a batch.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        start: int = 0,
        epochs: int | None = None,
    ):
        if batch < 1 or world_size < 1 or batch % world_size:
            raise ValueError(
                f"batch is {batch} and world_size {world_size}: both must be positive and the batch a "
                "multiple of the number of processes"
            )
        if length < batch:
            raise ValueError(f"there are {length} pictures: a batch needs at least {batch}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}: it must be from 0 to {world_size - 1}")
        if seed < 0:
            raise ValueError(f"seed is {seed}: it must be at least 0")
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start, self.epochs = epoch, start, epochs
        if epoch < 0 or not 0 <= start <= self.batches_per_epoch:
            raise ValueError(
                f"epoch is {epoch} and start {start}: the epoch must be at least 0 and start from 0 to "
                f"{self.batches_per_epoch}, the batches of an epoch"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the same for every process."""
        return self.length // self.batch

    def order(self, epoch: int) -> np.ndarray:
        """The permutation (length,) of an epoch."""
        # The spawn key keeps its generator apart from those that crops seed by (seed, epoch, index).
        sequence = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
        return np.random.default_rng(sequence).permutation(self.length)

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch // self.world_size
        epoch, start = self.epoch, self.start
        while self.epochs is None or epoch < self.epochs:
            order = self.order(epoch)
            for number in range(start, self.batches_per_epoch):
                first = number * self.batch + self.rank * share
                yield [(epoch, int(index)) for index in order[first : first + share]]
            epoch, start = epoch + 1, 0

    def __len__(self) -> int:
        """Batches from the beginning to the end; TypeError where there is no end."""
        if self.epochs is None:
            raise TypeError("a sampler without a number of epochs has no length")
        if self.epoch >= self.epochs:
            return 0
        return (self.epochs - self.epoch) * self.batches_per_epoch - self.start
