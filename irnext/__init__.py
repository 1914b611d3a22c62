"""irnext: the fast, drop-in IRNeXt for image restoration."""

from . import ops
from .blocks import LocalAttention
from .losses import DualDomainLoss
from .model import IRNeXt
from .models import create_model, list_models
from .ops import backends, use_backend

__version__ = "0.1.0"

__all__ = [
    "DualDomainLoss",
    "IRNeXt",
    "LocalAttention",
    "backends",
    "create_model",
    "list_models",
    "ops",
    "use_backend",
]
