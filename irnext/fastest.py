"""One of several implementations of the same function, chosen by measurement for every shape."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Choices = dict[tuple, tuple[str, dict[str, float]]]

RUNS = 5  # timed, of which the fastest counts


def cuda_milliseconds(run: Callable[[], Any]) -> float:
    """The shortest of a few runs on the current CUDA stream, after one that compiles and chooses."""
    run()
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)


class Fastest:
    """Calls the candidate that was the fastest when a shape was first seen.

    Args:
        candidates: functions of the same arguments and results, by name. The first is what PyTorch
            itself offers: it is called where nothing can be measured, while a CUDA graph is recorded.
            One that fails when measured is left out, with a warning; if all do, the first's error is raised.
        milliseconds: the time of a function without arguments.
        label: what else the times depend on.
        chosen: the table to read and extend, which those of one label may share.

    Attributes:
        chosen: by label, shape of the first argument, its type, and the shapes of the other tensors:
            the name of the candidate and the milliseconds of each.
    """

    def __init__(
        self,
        candidates: dict[str, Callable[..., Tensor]],
        milliseconds: Callable[[Callable[[], Any]], float] = cuda_milliseconds,
        label: Hashable = None,
        chosen: Choices | None = None,
    ):
        self.candidates, self.milliseconds, self.label = candidates, milliseconds, label
        self.chosen: Choices = {} if chosen is None else chosen
        self.lock = threading.Lock()

    def __call__(self, x: Tensor, *arguments: Any) -> Tensor:
        if len(self.candidates) == 1:
            return next(iter(self.candidates.values()))(x, *arguments)
        others = (tuple(a.shape) if isinstance(a, Tensor) else a for a in arguments)
        key = (self.label, tuple(x.shape), x.dtype, *others)
        if key not in self.chosen:
            if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return next(iter(self.candidates.values()))(x, *arguments)
            with self.lock:
                if key not in self.chosen:
                    self.chosen[key] = self._measure(x, *arguments)
        return self.candidates[self.chosen[key][0]](x, *arguments)

    def _measure(self, x: Tensor, *arguments: Any) -> tuple[str, dict[str, float]]:
        times, errors = {}, []
        for name, candidate in self.candidates.items():
            try:
                times[name] = self.milliseconds(lambda candidate=candidate: candidate(x, *arguments))
            except Exception as error:  # compilers have errors of their own
                errors.append(error)
                warnings.warn(f"{name} cannot serve {tuple(x.shape)}: {error}", stacklevel=4)
        if not times:
            raise errors[0]
        return min(times, key=times.get), times
