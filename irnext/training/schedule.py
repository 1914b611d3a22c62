"""The learning rate over a training."""

from __future__ import annotations

import math


def learning_rate(unit: int, length: int, warm_up: int, first: float, last: float) -> float:
    """The rate in one unit (epoch or step) of a training, counted from 0.

    As published: in the `warm_up` first units it rises linearly and is `first` in the last of them;
    the next one has `first` again, from where a cosine falls that would be at `last` one unit after the end
    (the published schedulers: GradualWarmupScheduler before CosineAnnealingLR).
    """
    if unit < warm_up:
        return first * (unit + 1) / warm_up
    share = (unit - warm_up) / max(1, length - warm_up)
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, share))) / 2
