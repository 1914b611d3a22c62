"""Large pictures in tiles: where they lie, and how their results fade into one another."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..padding import next_multiple
from .inference import sizes


def check_tiles(model: nn.Module, tile: int | None, overlap: int) -> None:
    if tile is None:
        return
    multiple, minimum = sizes(model)
    smallest = next_multiple(minimum, multiple)
    if tile < smallest or tile % multiple:
        lower = max(smallest, tile // multiple * multiple)
        upper = max(smallest, lower + multiple) if tile > lower else lower
        near = f"{lower}" if lower == upper else f"{lower} and {upper}"
        raise ValueError(
            f"tile is {tile}: it must be a multiple of {multiple} and at least {smallest}; nearest: {near}"
        )
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap is {overlap}: it must be from 0 to half the tile, {tile // 2}")


def run_tiles(
    run: Callable[[Tensor], Tensor], batch: Tensor, tile: int, overlap: int, multiple: int, scale: int = 1
) -> Tensor:
    """Run the model tile by tile and blend the results, which are `scale` times as high and wide."""
    result = batch.new_zeros(*batch.shape[:2], scale * batch.shape[2], scale * batch.shape[3])
    rows = _tiles_along(batch.shape[2], tile, overlap, multiple)
    columns = _tiles_along(batch.shape[3], tile, overlap, multiple)
    for (row, row_weight), (column, column_weight) in itertools.product(rows, columns):
        weight = (row_weight[:, None] * column_weight).to(batch)
        weight = weight.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        place = tuple(slice(scale * span.start, scale * span.stop) for span in (row, column))
        result[:, :, *place] += weight * run(batch[:, :, row, column])
    return result


def _tiles_along(size: int, tile: int, overlap: int, multiple: int) -> list[tuple[slice, Tensor]]:
    """Where tiles lie along one axis and how their pixels count; at every pixel the weights sum to 1.

    Tiles start at multiples of `multiple`, so that the model's down-sampling keeps the same pixels;
    neighbours then share at least `overlap`. At an edge inside the picture a weight is 0 over a
    quarter of the overlap, then rises in a straight line.
    """
    stride = (tile - overlap) // multiple * multiple
    tile = min(tile, size)
    starts = [*range(0, size - tile, stride), size - tile]
    margin = overlap // 4
    rise = ((torch.arange(tile) - margin + 1) / (overlap - 2 * margin + 1)).clamp(0, 1).double()
    total = torch.zeros(size, dtype=torch.float64)
    weights = []
    for start in starts:
        weight = torch.ones_like(rise)
        if start > 0:
            weight = weight * rise
        if start + tile < size:
            weight = weight * rise.flip(0)
        total[start : start + tile] += weight
        weights.append(weight)
    spans = [slice(start, start + tile) for start in starts]
    return [(span, weight / total[span]) for span, weight in zip(spans, weights, strict=True)]
