"""Training: by a task's recipe, on one device or several, stopped and resumed exactly."""

from .config import TrainingConfig, list_tasks, recipe
from .state import ResumeError
from .trainer import TrainingResult, train

__all__ = ["ResumeError", "TrainingConfig", "TrainingResult", "list_tasks", "recipe", "train"]
