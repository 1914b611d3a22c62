"""Every model by name, with the settings of the task it was published for."""

from __future__ import annotations

from ..architecture import Architecture, RestorationModel, check_settings
from ..model import IRNeXt
from . import convir, grl, irnext, mimo_unet, mprnet, restormer

# Of IRNeXt blocks per task from the paper (section 4.1); the local low-pass filter from published
# motion-deblurring code, the global one from published dehazing code.
_MODELS: dict[str, tuple[type[RestorationModel], dict]] = {
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
    **{name: (convir.ConvIR, settings) for name, settings in convir.PRESETS.items()},
    "mprnet-deblurring": (mprnet.MPRNet, {}),
    "mprnet-deraining": (
        mprnet.MPRNet,
        {"n_feat": 40, "scale_unetfeats": 20, "scale_orsnetfeats": 16},
    ),
    "mprnet-denoising": (
        mprnet.MPRNet,
        {"n_feat": 80, "scale_unetfeats": 48, "scale_orsnetfeats": 32},
    ),
    **{name: (grl.GRL, settings) for name, settings in grl.PRESETS.items()},
    "restormer": (restormer.Restormer, {}),
    "mimo-unet": (mimo_unet.MIMOUNet, {}),
    "mimo-unet-plus": (mimo_unet.MIMOUNet, {"num_res": 20}),
}

ARCHITECTURES: tuple[Architecture, ...] = tuple(
    module.ARCHITECTURE for module in (irnext, convir, mprnet, grl, restormer, mimo_unet)
)


def list_models() -> list[str]:
    """The names `create_model` knows."""
    return list(_MODELS)


def _entry(name: str) -> tuple[type[RestorationModel], dict]:
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(_MODELS)}")
    return _MODELS[name]


def create_model(name: str, **settings) -> RestorationModel:
    """A freshly initialised model by name; `settings` override those of the name.

    Raises ValueError for an unknown name, listing the known ones, and for settings that the model does not
    have, or of another type or value than it takes.
    """
    architecture, defaults = _entry(name)
    check_settings(settings, architecture, name)
    return architecture(**{**defaults, **settings})


def supports(name: str) -> dict[str, str | int | bool | list[str]]:
    """What a model takes: multiple and minimum of the sides in pixels, types, and how it may be divided.

    "tiles" says how results in tiles differ; "bands" whether `max_memory` bounds the memory exactly, and
    `irnext.optimize` and `irnext.export_model` take the model. Raises as `create_model` does.
    """
    architecture, defaults = _entry(name)
    return {
        "size multiple": architecture.size_multiple,
        "minimum size": architecture.least_side(**defaults),
        "half precision": [str(dtype).removeprefix("torch.") for dtype in architecture.half_types],
        "tiles": architecture.tiling,
        "bands": architecture is IRNeXt,
    }
