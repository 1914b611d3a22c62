"""`irnext convert`, `export` and `complexity`, and how commands load a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from .. import IRNeXt, checkpoints, complexity, create_model, export_model, list_models, optimize
from ..devices import check_device
from ..pretrained import load_pretrained
from ..restoration.inference import AUTO, can_be_optimized, check_dtype
from .common import DTYPES, LowPass, Name, Output, check_backend


def load_model(
    weights: Path | None, name: str | None, low_pass: str | None, task: str | None = None
) -> nn.Module:
    """The model of a checkpoint, where `name` gives it the settings of a listed model, or of a task."""
    if task is not None:
        if weights or name or low_pass:
            raise ValueError("--task takes the weights that come with irnext: give it alone, or --weights")
        return load_pretrained(task)
    settings = settings_of(name, low_pass)
    if weights is None:
        made_of = f"a new {name} has random weights and" if name else "a model without weights"
        raise ValueError(f"{made_of} restores nothing: give --weights FILE or --task NAME")
    network = checkpoints.load(weights, **settings)
    if not (name or low_pass):
        note_assumption(weights, network)
    return network


def settings_of(name: str | None, low_pass: str | None = None) -> dict[str, Any]:
    """All settings of a listed model, none without a name, and with a low-pass filter in place of its own."""
    asked = {} if low_pass is None else {"low_pass": low_pass}
    if name is None:
        return asked
    with torch.device("meta"):  # only its settings are wanted
        return create_model(name).settings | asked


def to_compute_on(
    device: str, network: nn.Module, dtype: torch.dtype, tile: int | None, max_memory: str | None
) -> tuple[nn.Module, torch.dtype | None, str | None]:
    """The network, the type to ask it for, and the limit of memory, as are best on a device.

    On a CPU an IRNeXt is optimized, and computes in bands where memory is short. A backend that was asked
    for serves all it can instead. Raises ValueError for a type that the network does not compute in.
    """
    check_dtype(network, dtype)
    if device != "cpu" or os.environ.get("IRNEXT_BACKEND") or not can_be_optimized(network):
        return network, dtype, max_memory
    if max_memory is None and tile is None:
        max_memory = AUTO
    return optimize(network, dtype), None, max_memory


def note_assumption(weights: Path, network: nn.Module) -> None:
    """One line on the error output where the checkpoint leaves open what its weights compute."""
    if assumed := checkpoints.assumption(weights, network):
        print(f"irnext: note: {weights} does not say {assumed}", file=sys.stderr)


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    layout: Annotated[
        Literal["irnext", "official"] | None, tyro.conf.arg(metavar="{irnext,official}")
    ] = None,
    model: Name = None,
    low_pass: LowPass = None,
) -> None:
    """Write a checkpoint anew, as .safetensors or as .pkl or .pth for the published code.

    Args:
        source: a checkpoint of any accepted kind.
        target: the new file; its suffix says the kind.
        layout: names of the entries; by default irnext in .safetensors and official in .pkl and .pth.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's; they are
            recorded in .safetensors, as published checkpoints do not say all.
        low_pass: the model's low-pass filter, to be recorded likewise.
    """
    network = checkpoints.convert(source, target, layout, **settings_of(model, low_pass))
    if not (model or low_pass) and target.suffix.lower() not in checkpoints.PICKLES:  # those record nothing
        note_assumption(source, network)
    print(target)


def export(
    weights: Annotated[Path, tyro.conf.Positional],
    /,
    output: Output,
    format: Annotated[Literal["pt2", "aoti", "onnx"] | None, tyro.conf.arg(metavar="{pt2,aoti,onnx}")] = None,
    model: Name = None,
    low_pass: LowPass = None,
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        tyro.conf.arg(metavar="{float32,bfloat16,float16}"),
    ] = None,
    max_autotune: bool = False,
) -> None:
    """Write a trained model as a program for other runtimes.

    Args:
        weights: a checkpoint: .safetensors, or .pkl or .pth of the published code.
        output: the new file: .pt2, or .onnx.
        format: pt2 for torch.export.load, aoti compiled by AOTInductor for Python and C++, onnx; by default
            what the suffix says.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's.
        low_pass: the model's low-pass filter, as for irnext restore.
        device: what an aoti program is compiled for, as PyTorch names it.
        dtype: what an aoti program computes in; pictures are float32 all the same.
        max_autotune: let the compiler of an aoti program time its choices.
    """
    check_backend()
    check_device(device)
    network = load_model(weights, model, low_pass).to(device)
    if type(network) is not IRNeXt:
        raise ValueError(f"{weights}: only an IRNeXt can be exported, and this is a {type(network).__name__}")
    print(export_model(network, output, format, dtype and DTYPES[dtype], max_autotune))


def complexities(model: Name = None, size: tuple[int, int] = (256, 256)) -> None:
    """Parameters and operations of the models, for one picture.

    Args:
        model: one model; all of them by default.
        size: height and width of the picture in pixels, multiples of 32.
    """
    table = Table("model", "parameters", "MACs", "taps' MACs", "paper's FLOPs")
    table.title = f"for a picture of {size[0]}x{size[1]} pixels"
    for name in [model] if model else list_models():
        with torch.device("meta"):
            cost = complexity.measure(create_model(name), size=size)
        table.add_row(
            name,
            f"{cost.params / 1e6:.2f} M",
            *(f"{count / 1e9:.2f} G" for count in (cost.macs, cost.tap_macs, cost.paper_flops)),
        )
    Console().print(table)
