"""Sharing work among the processes of one `torchrun`, without collectives.

The first process decides what each of them does, and hears from each at its end. Both go through the
key-value store by which torchrun's processes find each other, so that nothing but this store is
needed: no process group, and no process waits for another one's picture.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Sequence
from typing import Any

TIMEOUT = datetime.timedelta(minutes=10)  # for the others to start
PAUSE = 0.05  # seconds between two looks at the store


def local_processes() -> int:
    """How many processes torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class Processes:
    """The processes that share one piece of work: those of `torchrun`, or this one alone.

    Attributes:
        rank: this process's number, from 0 to count - 1.
        count: how many there are.
        local_rank: this process's number on its machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, store: Any = None):
        self.rank, self.count, self.local_rank, self._store = rank, count, local_rank, store

    @classmethod
    def of_torchrun(cls) -> Processes:
        """Those that torchrun started; this process alone without it, or where it started one.

        Raises RuntimeError where the others do not answer.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        from torch import distributed

        store, rank, count = next(distributed.rendezvous("env://", timeout=TIMEOUT))
        return cls(rank, count, int(os.environ["LOCAL_RANK"]), store)

    @property
    def gpu(self) -> str:
        """The GPU of this process as PyTorch names it."""
        return f"cuda:{self.local_rank}" if self.count > 1 else "cuda"

    def scatter(self, shares: Sequence[Any] | None) -> Any:
        """This process's share; process 0 gives them all, the others None. Shares are JSON values."""
        if self.count == 1:
            return shares[0]
        if self.rank == 0:
            for rank, share in enumerate(shares):
                self._store.set(f"irnext/share/{rank}", json.dumps(share))
        return self._wait(f"irnext/share/{self.rank}")

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes, JSON values, for process 0 once all have given theirs; else None."""
        if self.count == 1:
            return [value]
        self._store.set(f"irnext/value/{self.rank}", json.dumps(value))
        if self.rank:
            return None
        return [self._wait(f"irnext/value/{rank}") for rank in range(self.count)]

    def _wait(self, key: str) -> Any:
        while not self._store.check([key]):  # looking, as a waiting store would not hear an interrupt
            time.sleep(PAUSE)
        return json.loads(self._store.get(key))


def balanced(weights: Sequence[float], count: int) -> list[list[int]]:
    """Indices of `weights` in `count` shares of nearly equal sums, each in order.

    The heaviest goes first, each to the lightest share so far: the heaviest share is at most 4/3 of
    the best possible (Graham, 1969).
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for index in sorted(range(len(weights)), key=lambda index: -weights[index]):
        lightest = min(range(count), key=lambda share: (sums[share], len(shares[share])))
        shares[lightest].append(index)
        sums[lightest] += weights[index]
    return [sorted(share) for share in shares]
