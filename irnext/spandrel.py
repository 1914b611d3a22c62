"""IRNeXt and ConvIR for spandrel, by which programs for pictures find out what a file of weights is.

import spandrel, irnext.spandrel

irnext.spandrel.install()
descriptor = spandrel.ModelLoader().load_from_file("dehazing.pth")
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from . import checkpoints
from .architecture import RestorationModel
from .model import IRNeXt
from .models.convir import ConvIR

try:
    from spandrel import (
        MAIN_REGISTRY,
        Architecture,
        ArchRegistry,
        ArchSupport,
        ImageModelDescriptor,
        ModelTiling,
        SizeRequirements,
        StateDict,
    )
except ModuleNotFoundError as error:
    if error.name != "spandrel":
        raise
    raise ModuleNotFoundError("spandrel is not installed: pip install 'irnext[spandrel]'") from None


class RestorationArchitecture(Architecture[RestorationModel]):
    """How spandrel knows one of our networks and makes it.

    Args:
        network: its class, by whose name spandrel calls it.
        untold: the setting that its weights do not show.
    """

    def __init__(self, network: type[RestorationModel], untold: str):
        super().__init__(id=network.__name__, detect=self._is_ours)
        self.network, self.untold = network, untold

    def _is_ours(self, state: StateDict) -> bool:
        """Whether the weights are of this network, or would be but for entries that are lacking or damaged.

        Weights with other entries are those of a relative: several share its skeleton and names.
        """
        try:
            state = checkpoints.state_dict(state)
            if checkpoints.recognise(state, {}).build is not self.network:
                return False
            found = checkpoints.find(state)
        except ValueError:
            return False
        return found.names.keys() <= found.model.state_dict().keys()

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[RestorationModel]:
        """The model of the weights; raises ValueError, saying what does not fit."""
        found = checkpoints.find(checkpoints.state_dict(state_dict))
        model = checkpoints.build(found)
        if found.architecture.assumed(model.settings):
            warnings.warn(
                f"{self.name} with {self.untold}={model.settings[self.untold]!r} is assumed, which neither "
                "weights nor spandrel tell: irnext.spandrel.load_from_file reads it in files of irnext.save, "
                "and takes it as an argument",
                stacklevel=5,  # the caller of ModelLoader.load_from_file
            )
        return self.describe(model)

    def describe(self, model: RestorationModel) -> ImageModelDescriptor[RestorationModel]:
        """`model` as spandrel's users call it, and what it takes."""
        untold = model.settings[self.untold]
        return ImageModelDescriptor(
            model,
            model.state_dict(),
            architecture=self,
            purpose="Restoration",
            tags=[
                f"{model.settings['blocks']}nb",
                f"{model.settings['width']}nf",
                untold if isinstance(untold, str) else "-".join(map(str, untold)),
            ],
            supports_half=torch.float16 in model.half_types,
            supports_bfloat16=torch.bfloat16 in model.half_types,
            scale=model.scale,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(minimum=model.minimum_size, multiple_of=model.size_multiple),
            tiling=ModelTiling.DISCOURAGED if model.tiling else ModelTiling.SUPPORTED,
            call_fn=_result,
        )


def _result(model: RestorationModel, image: Tensor) -> Tensor:
    """The restored picture among the outputs."""
    return model(image)[model.result_index]


ARCHITECTURES: Mapping[type[RestorationModel], RestorationArchitecture] = MappingProxyType(
    {
        IRNeXt: RestorationArchitecture(IRNeXt, untold="low_pass"),
        ConvIR: RestorationArchitecture(ConvIR, untold="dilations"),
    }
)
_SUPPORTS = tuple(map(ArchSupport.from_architecture, ARCHITECTURES.values()))


def install(registry: ArchRegistry = MAIN_REGISTRY) -> list[ArchSupport]:
    """Add IRNeXt and ConvIR to `registry`; those that are there stay, and go first.

    Returns what was added: nothing the second time. Raises spandrel.DuplicateArchitectureError where other
    architectures have their names.
    """
    return registry.add(*(ours for ours in _SUPPORTS if registry.get(ours.architecture.id) is not ours))


def load_from_file(
    path: str | os.PathLike, device: str | torch.device = "cpu", low_pass: str | None = None, **settings: Any
) -> ImageModelDescriptor[RestorationModel]:
    """What spandrel's `ModelLoader().load_from_file` gives, of any file that `irnext.load` reads.

    Unlike spandrel it reads the settings that `irnext.save` writes and takes others, it reads .pkl, and
    needs no `install`. Arguments and errors are those of `irnext.load`; a model of another architecture
    than IRNeXt and ConvIR raises ValueError.
    """
    model = checkpoints.load(path, low_pass, device, **settings)
    if type(model) not in ARCHITECTURES:
        known = " and ".join(network.__name__ for network in ARCHITECTURES)
        raise ValueError(
            f"{path}: the model is a {type(model).__name__}, and spandrel gets {known} from here"
        )
    return ARCHITECTURES[type(model)].describe(model)
