"""irnext: the fast, drop-in IRNeXt for image restoration."""

from . import complexity, ops
from .acceleration import accelerate, restore_original
from .blocks import LocalAttention
from .checkpoints import CheckpointError, convert, load, save
from .evaluation import evaluate
from .export import export_model
from .losses import DualDomainLoss
from .model import IRNeXt
from .models import create_model, list_models
from .ops import backends, use_backend
from .optimization import optimize
from .pretrained import list_pretrained, load_pretrained
from .restoration import restore
from .training import TrainingConfig, train
from .version import __version__

__all__ = [
    "CheckpointError",
    "DualDomainLoss",
    "IRNeXt",
    "LocalAttention",
    "TrainingConfig",
    "__version__",
    "accelerate",
    "backends",
    "complexity",
    "convert",
    "create_model",
    "evaluate",
    "export_model",
    "list_models",
    "list_pretrained",
    "load",
    "load_pretrained",
    "ops",
    "optimize",
    "restore",
    "restore_original",
    "save",
    "train",
    "use_backend",
]
