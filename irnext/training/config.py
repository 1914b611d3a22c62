"""What a training is made of, and the recipe of every task."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..data.degradations import DEGRADATIONS

RECIPES = resources.files("irnext") / "recipes"
DTYPES = ("float32", "bfloat16")
# The data sets that are trained on by another one's recipe: parts of Rain13K.
TRAINED_AS = dict.fromkeys(("rain14000", "rain1800", "rain800", "rain12"), "rain13k")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a training depends on; `TrainingConfig.of` starts from a task's recipe.

    Attributes:
        task: name of a recipe: a data set of the paper, "custom", or a synthetic degradation.
        data: the data set, or for a synthetic degradation a folder of clean pictures; None for dead
            leaves alone.
        output: folder of the training: checkpoints, log and samples.
        model: a name of `irnext.list_models()`; `settings` override its settings. All are trained by the
            same loss, summed over their outputs.
        weights: a checkpoint to begin with instead of random weights.
        epochs, steps: the length, one of the two; the learning rate follows the same unit, and so do
            `warm_up`, `validate_every` and `save_every`.
        batch: crops of an optimiser's step, over all processes and accumulated parts.
        accumulate: parts in which a process computes its share of the batch, to save memory. Batch
            normalisation sees the parts one by one.
        patch: height and width of the crops, multiples of 32 and at least 64.
        learning_rate, final_learning_rate: of Adam, before and after the cosine.
        warm_up: units of a linear rise to `learning_rate`.
        weight_decay: of Adam.
        clip: largest norm of the gradient, None for any.
        frequency_weight: of the loss (Eq. 10).
        ema: decay of the weights' moving average, which is then validated and shipped; 0 is without.
        dtype: "float32", or "bfloat16" for autocast.
        compile: train through torch.compile.
        channels_last: memory format; None for channels_last on GPUs only.
        deterministic: only algorithms that give the same gradients in every run.
        device: where to compute; None for a GPU if there is one.
        workers: processes that load pictures; None for what suits the machine.
        seed: of the weights, the crops and their order.
        validate_every, save_every: units between validations, and between kept weights; 0 for never.
        validate_on: pictures of a validation, spread over the test set; None for all.
        samples: validation pictures that are written out, before, after and as they should be.
        log_every: steps between lines of the log.
        tensorboard: log there, too.
        non_finite_limit: steps in a row without a finite loss that end the training.
        layout, input_folder, target_folder, allow_truncated: as for `irnext.data.open_pairs`.
        dead_leaves: share of dead-leaves images among the crops of a synthetic task.
    """

    task: str
    data: Path | None
    output: Path
    model: str
    epochs: int | None = None
    steps: int | None = None
    batch: int = 4
    accumulate: int = 1
    patch: tuple[int, int] = (256, 256)
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-6
    warm_up: int = 3
    weight_decay: float = 0.0
    clip: float | None = None
    frequency_weight: float = 0.1
    ema: float = 0.0
    dtype: str = "float32"
    compile: bool = False
    channels_last: bool | None = None
    deterministic: bool = False
    device: str | None = None
    workers: int | None = None
    seed: int = 0
    validate_every: int = 10
    save_every: int = 10
    validate_on: int | None = None
    samples: int = 2
    log_every: int = 100
    tensorboard: bool = False
    non_finite_limit: int = 10
    layout: str | None = None
    input_folder: str | None = None
    target_folder: str | None = None
    allow_truncated: bool = False
    dead_leaves: float = 0.25
    weights: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task: str, data: str | os.PathLike | None, output: str | os.PathLike, **overrides
    ) -> TrainingConfig:
        """The recipe of a task, on the given data; overrides of None leave the recipe's value.

        An override of `steps` replaces `epochs`, and the other way round; `settings` are added to those
        of the recipe, which are left out where `model` is another than the recipe's.
        """
        values = {name: value for name, (value, _) in recipe(task).items()}
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if overrides.get("steps") and overrides.get("epochs"):
            raise ValueError("give epochs or steps, not both: a training has one length")
        for unit, other in (("steps", "epochs"), ("epochs", "steps")):
            if unit in overrides and values.pop(other, None):
                # Counted in the other unit, the recipe's intervals would mean something else.
                length = overrides[unit]
                values |= {"warm_up": length // 30, "validate_every": max(1, length // 5), "save_every": 0}
        settings = values.pop("settings", {})
        if overrides.get("model", values["model"]) != values["model"]:
            settings = {}
        settings = settings | overrides.pop("settings", {})
        values |= {"task": task, "data": data and Path(data), "output": Path(output), "settings": settings}
        values |= overrides
        values["patch"] = tuple(values.get("patch", cls.patch))
        length = values.get("steps") or values.get("epochs")
        if "warm_up" not in overrides and length and values["warm_up"] >= length:
            values["warm_up"] = length // 4  # a short trial
        return cls(**values)

    def __post_init__(self) -> None:
        if self.task not in list_tasks():
            raise ValueError(f"unknown task {self.task!r}: choose one of {', '.join(list_tasks())}")
        if self.data is None and self.task not in DEGRADATIONS:
            raise ValueError(f"no data given: task {self.task} needs the folder of its data set")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"epochs is {self.epochs} and steps {self.steps}: give one of the two")
        for name in ("batch", "accumulate", "log_every", "non_finite_limit", self.unit):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        counts = ("warm_up", "validate_every", "save_every", "samples", "seed")
        for name in (*counts, "weight_decay", "frequency_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is {self.workers}: it must not be negative, or None")
        if self.validate_on is not None and self.validate_on < 1:
            raise ValueError(
                f"validate_on is {self.validate_on}: it must be at least 1, or None for all (for no "
                "validation, validate_every is 0)"
            )
        if self.warm_up >= self.length > 1:
            raise ValueError(f"warm_up is {self.warm_up}: it must be less than the {self.length} {self.unit}")
        if len(self.patch) != 2 or any(side < 64 or side % 32 for side in self.patch):
            raise ValueError(f"patch is {self.patch}: height and width must be multiples of 32, at least 64")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"learning_rate is {self.learning_rate:g} and final_learning_rate "
                f"{self.final_learning_rate:g}: both must be positive and the final one not larger"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}: the decay must be from 0 (without) to below 1")
        if not 0 <= self.dead_leaves <= 1:
            raise ValueError(f"dead_leaves is {self.dead_leaves}: the share must be from 0 to 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}: it must be positive, or None")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch is {self.batch}: it must be a multiple of accumulate={self.accumulate}")

    @property
    def unit(self) -> str:
        """What the length is counted in: "epochs" or "steps"."""
        return "epochs" if self.steps is None else "steps"

    @property
    def length(self) -> int:
        """The number of units."""
        return self.epochs if self.steps is None else self.steps

    def as_json(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }


def list_tasks() -> list[str]:
    """The tasks that have a recipe, and the data sets that are trained on by one of them."""
    own = (entry.name for entry in RECIPES.iterdir())
    return sorted((*(name.removesuffix(".toml") for name in own if name.endswith(".toml")), *TRAINED_AS))


def recipe(task: str) -> dict[str, tuple[Any, str]]:
    """What a task's recipe sets: for each field of `TrainingConfig` its value, and where that comes from.

    The sources are the paper, published code, or our guess, as each says. Raises ValueError for an
    unknown task.
    """
    if task not in list_tasks():
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(list_tasks())}")
    entries = tomllib.loads((RECIPES / f"{TRAINED_AS.get(task, task)}.toml").read_text("utf-8"))
    return {name: (value, source) for name, (value, source) in entries.items()}
