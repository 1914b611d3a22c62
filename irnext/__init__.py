"""irnext: the fast, drop-in IRNeXt for image restoration."""

from . import complexity, ops
from .blocks import LocalAttention
from .checkpoints import CheckpointError, convert, load, save
from .export import export_model
from .losses import DualDomainLoss
from .model import IRNeXt
from .models import create_model, list_models
from .ops import backends, use_backend
from .optimization import optimize
from .restoration import restore
from .version import __version__

__all__ = [
    "CheckpointError",
    "DualDomainLoss",
    "IRNeXt",
    "LocalAttention",
    "__version__",
    "backends",
    "complexity",
    "convert",
    "create_model",
    "export_model",
    "list_models",
    "load",
    "ops",
    "optimize",
    "restore",
    "save",
    "use_backend",
]
