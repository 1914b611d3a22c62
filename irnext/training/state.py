"""The state of a training: everything that going on from it exactly needs, in one file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import atomic_file

FORMAT = 1


class ResumeError(ValueError):
    """A file that no training can go on from, or not this one; the message says why."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, atomically: where this fails, the file that was there stays."""
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_state(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `save_state` wrote, or the model.pkl of the published code, tensors and numbers only.

    The latter holds "model", "optimizer" and "epoch" alone. Raises FileNotFoundError, and ResumeError for a
    file that is neither.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file to go on from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ResumeError(
            f"{path}: cannot be read as the state of a training: {_first_line(error)}"
        ) from None
    if not isinstance(state, dict) or "model" not in state or "optimizer" not in state:
        raise ResumeError(
            f"{path}: holds no state of a training (model and optimizer); weights alone are for --weights"
        )
    if state.get("format", FORMAT) != FORMAT:
        raise ResumeError(f"{path}: written in format {state['format']}, this version reads {FORMAT}")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_weights(model: nn.Module, weights: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Strictly, in the published names or ours; ResumeError where they are another model's."""
    own = model.state_dict()
    try:
        incompatible = [
            name for name, value in weights.items() if name in own and own[name].shape != value.shape
        ]
        if incompatible:
            raise ResumeError(f"{path}: is of another model: {incompatible[0]} has another shape")
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n")[1:2]).strip() or _first_line(error)
        raise ResumeError(f"{path}: is of another model: {detail[:200]}") from None


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states of PyTorch's generators that a training uses."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Put PyTorch's generators into the states that `generator_states` took."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
