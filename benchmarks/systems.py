"""The systems that are compared: IRNeXt as published and ours, and the networks it is compared with.

Weights are random, as no trained ones come with the package: times and memory do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import irnext
from irnext.restoration.inference import sizes

from . import networks
from .networks import PRECISIONS, Settings, make_model
from .published import PublishedIRNeXt

OURS, PUBLISHED, COMPILED = "irnext", "irnext-published", "irnext-published-compiled"
VARIANTS = {
    OURS: networks.OPTIMIZED,
    PUBLISHED: networks.PUBLISHED,
    COMPILED: networks.PUBLISHED_COMPILED,
}
OTHERS = (
    *("mprnet-deblurring", "restormer", "mimo-unet-plus", "mimo-unet"),
    *("grl-base", "grl-small", "grl-tiny"),
)
SYSTEMS = (PUBLISHED, COMPILED, OURS, *OTHERS)
TITLES = {
    PUBLISHED: "IRNeXt, published",
    COMPILED: "IRNeXt, compiled",
    OURS: "IRNeXt, ours",
    "mprnet-deblurring": "MPRNet",
    "restormer": "Restormer",
    "mimo-unet": "MIMO-UNet",
    "mimo-unet-plus": "MIMO-UNet+",
    "grl-tiny": "GRL-T",
    "grl-small": "GRL-S",
    "grl-base": "GRL-B",
}
GOPRO = Settings(blocks=14, width=32, low_pass="local")


@dataclass(frozen=True)
class System:
    """A network that is ready to run.

    Attributes:
        call: restored pictures (N, 3, H, W) of pictures in float32, of a size that it takes.
        kernels: does the same work without replaying a recorded graph, whose memory is held outside of calls.
        multiple, minimum: of the sides that it takes.
    """

    call: Callable[[Tensor], Tensor]
    kernels: Callable[[Tensor], Tensor]
    multiple: int
    minimum: int


def make_plain(name: str, settings: Settings = GOPRO) -> nn.Module:
    """The network of a system, in eval mode, with random weights that are the same in every call."""
    if name in VARIANTS:
        return make_model(irnext.IRNeXt if name == OURS else PublishedIRNeXt, settings)
    torch.manual_seed(0)
    return irnext.create_model(name).eval().requires_grad_(False)


def make_system(name: str, precision: str, on: torch.device, settings: Settings = GOPRO) -> System:
    """The system of that name, to be called within `networks.computing_in(precision, on)`.

    In half precision the weights are in float32 under autocast, but for those of ours and those compiled
    for a GPU, which are converted.
    """
    if name in VARIANTS:
        network = networks.make_network(VARIANTS[name], settings, precision, on)
        run = restored(network.call)
        kernels = run if network.kernels is network.call else restored(network.kernels)
        return System(run, kernels, *sizes(irnext.IRNeXt))
    model = make_plain(name).to(on)
    run = restored(networks.inference(model, PRECISIONS[precision]), model.result_index)
    return System(run, run, *sizes(model))


def restored(run: Callable[[Tensor], Tensor | list[Tensor]], index: int = -1) -> Callable[[Tensor], Tensor]:
    """`run` with the restored pictures alone, which are the output at `index` where there are several."""

    def call(x: Tensor) -> Tensor:
        outputs = run(x)
        return outputs if isinstance(outputs, Tensor) else outputs[index]

    return call
