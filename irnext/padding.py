"""How pictures are continued to the sizes that networks take."""

from __future__ import annotations

import torch
from torch import Tensor


def next_multiple(size: int, multiple: int) -> int:
    """The least multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def reflect_to(x: Tensor, axis: int, size: int) -> Tensor:
    """Continue x along one axis to `size` by reflection without repeating the border, as often as needed."""
    length = x.shape[axis]
    period = max(1, 2 * (length - 1))
    place = torch.arange(size, device=x.device) % period
    return x.index_select(axis, torch.minimum(place, period - place))
