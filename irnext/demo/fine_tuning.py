"""A minute of training: a plain loop, within a time limit."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import default_collate

from ..data.synthetic import SyntheticCrops
from ..losses import DualDomainLoss
from ..training.schedule import learning_rate

FINAL_RATE, WARM_UP, LARGEST_GRADIENT = 1e-6, 0.05, 1.0


def fine_tune(
    model: nn.Module, crops: SyntheticCrops, rate: float, steps: int, seconds: float, console: Console
) -> int:
    """Train `model` in place and leave it in eval mode; returns the number of steps taken.

    Each step takes one epoch of `crops`, all in one batch. `seconds` is only a limit: a machine that
    would need longer takes fewer steps than `steps`, its learning rate falling with the time instead.

    Raises ArithmeticError where the loss is not finite.
    """
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), rate)
    loss_function = DualDomainLoss()
    columns = ("Fine-tuning", BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0, state="")
        started, step, share = time.perf_counter(), 0, 0.0
        while share < 1:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(int(share * steps), steps, int(WARM_UP * steps), rate, FINAL_RATE)
            degraded, clean = _batch(crops, step)
            loss = loss_function(model(degraded), clean)
            if not loss.isfinite():
                raise ArithmeticError(f"the loss is {loss.item()} at step {step + 1}: training failed")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimiser.step()
            step += 1
            share = max(step / steps, clock((time.perf_counter() - started) / seconds))
            progress.update(task, completed=min(share, 1), state=f"step {step}, loss {loss.item():.3f}")
    model.eval()
    return step


def clock(elapsed: float) -> float:
    """The share of the training that must be over after a share of the time limit.

    None in the first tenth, so that slow first steps do not disturb the fixed number of steps.
    """
    return (elapsed - 0.1) / 0.9


def _batch(crops: SyntheticCrops, epoch: int) -> tuple[Tensor, Tensor]:
    """The crops of an epoch, degraded and clean: (N, 3, h, w) each, in [0, 1]."""
    degraded, clean = default_collate([crops[epoch, index] for index in range(len(crops))])
    return degraded / 255, clean / 255
