"""The networks that `benchmarks.model` compares: one set of weights, run in every way there is.

Weights are random, and so are the attention's gains, which start at zero, where the attention is the
identity: no trained weights come with the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irnext import IRNeXt
from irnext.optimization import optimize

from . import device
from .published import PublishedIRNeXt

PUBLISHED, PUBLISHED_COMPILED = "published, eager", "published, compiled"
PLAIN, PLAIN_COMPILED, OPTIMIZED = "irnext", "irnext, compiled", "irnext, optimized"
COMPILED = (PUBLISHED_COMPILED, PLAIN_COMPILED)
# What a network computes in; in "float32" TF32 is off, whatever PyTorch's default is.
PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Call = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Settings:
    """What makes a network."""

    blocks: int
    width: int
    low_pass: str


@dataclass(frozen=True)
class Network:
    """One way to run the network on pictures.

    Attributes:
        call: takes pictures in float32.
        kernels: does the same work without replaying a recorded graph, which no profiler looks into
            and whose memory is held outside of calls.
    """

    call: Call
    kernels: Call


def make_model(network: type[nn.Module], settings: Settings) -> nn.Module:
    """A network in eval mode; all networks get the same weights."""
    torch.manual_seed(0)
    model = network(settings.blocks, settings.width, low_pass=settings.low_pass)
    for name, parameter in model.named_parameters():
        if name.endswith("_gain"):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model.eval().requires_grad_(False)


def computing_in(precision: str, on: torch.device) -> contextlib.AbstractContextManager:
    """A context in which float32 on a GPU is what the precision says."""
    return device.tf32(precision == "tf32") if on.type == "cuda" else contextlib.nullcontext()


def inference(model: Callable, dtype: torch.dtype) -> Call:
    """The model as users run it: float32 weights, in half precision under autocast."""

    def call(x: Tensor) -> list[Tensor]:
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return model(x)

    return call


def _compiled(model: nn.Module, dtype: torch.dtype, on: torch.device) -> Call:
    """The model as torch.compile makes the most of it: its weights frozen, on GPUs by max-autotune.

    On the CPU it keeps to autocast, which is no slower there; on GPUs it is converted, in channels_last.
    """
    options: dict = {"freezing": True}
    if on.type == "cpu":
        return inference(torch.compile(model, options=options, dynamic=False), dtype)
    options |= torch._inductor.list_mode_options("max-autotune")
    layout = torch.channels_last
    compiled = torch.compile(model.to(dtype, memory_format=layout), options=options, dynamic=False)
    return inference(lambda x: compiled(x.to(dtype, memory_format=layout)), torch.float32)


def make_network(name: str, settings: Settings, precision: str, on: torch.device) -> Network:
    """The network of that name, ready to be called within `computing_in(precision, on)`."""
    dtype = PRECISIONS[precision]
    published = name in (PUBLISHED, PUBLISHED_COMPILED)
    model = make_model(PublishedIRNeXt if published else IRNeXt, settings).to(on)
    if name in COMPILED:
        call = _compiled(model, dtype, on)
    elif name == OPTIMIZED:
        call = inference(optimize(model, dtype=dtype), torch.float32)
        if on.type == "cuda":
            return Network(call, inference(optimize(model, dtype=dtype, graphs=False), torch.float32))
    else:
        call = inference(model, dtype)
    return Network(call, call)
