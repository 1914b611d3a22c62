"""Every model by name, with the settings of the task it was published for."""

from __future__ import annotations

from torch import nn

from ..architecture import Architecture
from ..model import IRNeXt
from . import irnext

# Blocks per task from the paper (section 4.1); the local low-pass filter from published
# motion-deblurring code, the global one from published dehazing code.
_MODELS: dict[str, tuple[type[nn.Module], dict]] = {
    "irnext-gopro": (IRNeXt, {"blocks": 14, "low_pass": "local"}),
    "irnext-rsblur": (IRNeXt, {"blocks": 16, "low_pass": "local"}),
    "irnext-dpdd": (IRNeXt, {"blocks": 16}),
    "irnext-its": (IRNeXt, {"blocks": 4}),
    "irnext-ots": (IRNeXt, {"blocks": 4}),
    "irnext-dense-haze": (IRNeXt, {"blocks": 4}),
    "irnext-nh-haze": (IRNeXt, {"blocks": 4}),
    "irnext-rain13k": (IRNeXt, {"blocks": 16}),
    "irnext-csd": (IRNeXt, {"blocks": 4}),
    "irnext-srrs": (IRNeXt, {"blocks": 4}),
    "irnext-snow100k": (IRNeXt, {"blocks": 4}),
}

ARCHITECTURES: tuple[Architecture, ...] = (irnext.ARCHITECTURE,)


def list_models() -> list[str]:
    """The names `create_model` knows."""
    return list(_MODELS)


def create_model(name: str, **settings) -> nn.Module:
    """A freshly initialised model by name; `settings` override those of the name.

    Raises ValueError for an unknown name, listing the known ones.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(_MODELS)}")
    architecture, defaults = _MODELS[name]
    return architecture(**{**defaults, **settings})
