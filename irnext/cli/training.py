"""`irnext train`, with the options of the published code, too."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ..training import TrainingConfig, list_tasks, recipe
from ..training import train as run
from .common import Name, check_backend

TERMINATED = 143  # what a shell gives for SIGTERM

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Optional = Annotated[int | None, tyro.conf.arg(metavar="N")]
Rate = Annotated[float | None, tyro.conf.arg(metavar="X")]
# What the published code calls our options.
PUBLISHED = {
    "--data-dir": "--data",
    "--batch-size": "--batch",
    "--num-epoch": "--epochs",
    "--num-worker": "--workers",
    "--print-freq": "--log-every",
    "--save-freq": "--save-every",
    "--valid-freq": "--validate-every",
}


def train(
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None,
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT")] = None,
    resume: bool = False,
    resume_from: File = None,
    recipes: bool = False,
    epochs: Optional = None,
    steps: Optional = None,
    batch: Optional = None,
    accumulate: Optional = None,
    patch: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="H W")] = None,
    learning_rate: Rate = None,
    final_learning_rate: Rate = None,
    warm_up: Optional = None,
    weight_decay: Rate = None,
    clip: Rate = None,
    frequency_weight: Rate = None,
    ema: Rate = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, tyro.conf.arg(metavar="{float32,bfloat16}")
    ] = None,
    compile: bool = False,
    channels_last: bool = False,
    deterministic: bool = False,
    device: Name = None,
    workers: Optional = None,
    seed: Optional = None,
    validate_every: Optional = None,
    validate_on: Optional = None,
    save_every: Optional = None,
    samples: Optional = None,
    log_every: Optional = None,
    tensorboard: bool = False,
    non_finite_limit: Optional = None,
    layout: Name = None,
    input_folder: Name = None,
    target_folder: Name = None,
    allow_truncated: bool = False,
    dead_leaves: Rate = None,
    model: Name = None,
    weights: File = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
) -> int | None:
    """Train a model by the recipe of a task; options replace what the recipe says.

    Several GPUs: torchrun --nproc-per-node 8 -m irnext train ... shares each batch out between them.
    SIGTERM and Ctrl-C save the state and end; --resume goes on exactly.

    Args:
        task: a data set of the paper, custom, or a synthetic degradation; --recipes lists them.
        data: the data set in any layout (irnext data check tells which); for haze, motion-blur, defocus,
            rain and snow a folder of clean pictures, or nothing for dead leaves.
        output: folder of the training; by default runs/TASK.
        resume: go on with the training in the output folder, or begin it.
        resume_from: go on from this state, or from a model.pkl of the published code.
        recipes: print the recipe of the task, or of all, with where each entry comes from, and end.
        epochs: length; steps counts in steps instead, and warm-up and intervals then, too.
        batch: crops of a step, over all processes and accumulated parts.
        accumulate: parts in which each process computes its share, to save memory.
        patch: height and width of the crops.
        learning_rate: of Adam, from which a cosine falls to final_learning_rate.
        warm_up: epochs (or steps) of its linear rise.
        clip: largest norm of the gradients.
        frequency_weight: of the spectra in the loss (Eq. 10).
        ema: decay of the weights' moving average, such as 0.999; 0 for none.
        dtype: bfloat16 trains by autocast.
        compile: through torch.compile.
        channels_last: in this memory format on CPUs, too.
        deterministic: only algorithms that give the same result again.
        device: where to train, as PyTorch names it; by default a GPU if there is one.
        workers: processes that load pictures.
        validate_every: epochs (or steps) between validations; 0 for none.
        validate_on: pictures of a validation; by default all.
        save_every: epochs (or steps) between weights that are kept; 0 for none.
        samples: validation pictures that are written out.
        log_every: steps between lines of log.jsonl.
        tensorboard: log for TensorBoard, too.
        non_finite_limit: steps in a row without a finite loss that end the training.
        layout: one of the layouts of the data set, where its folder has several.
        input_folder: for custom, the folder of the degraded pictures, in data.
        target_folder: for custom, the folder of the clean ones.
        allow_truncated: read what there is of cut-off pictures.
        dead_leaves: share of dead-leaves images in a synthetic task.
        model: another model than the recipe's (irnext info lists them).
        weights: a checkpoint to begin with.
        set: a setting of the model, such as blocks=8, again for each.
    """
    check_backend()
    if recipes:
        return show_recipes([task] if task else list_tasks())
    if task is None:
        raise ValueError(f"--task is missing: choose one of {', '.join(list_tasks())}")
    config = TrainingConfig.of(
        task,
        data,
        output or Path("runs") / task,
        epochs=epochs,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        patch=patch,
        learning_rate=learning_rate,
        final_learning_rate=final_learning_rate,
        warm_up=warm_up,
        weight_decay=weight_decay,
        clip=clip,
        frequency_weight=frequency_weight,
        ema=ema,
        dtype=dtype,
        compile=compile or None,
        channels_last=channels_last or None,
        deterministic=deterministic or None,
        device=device,
        workers=workers,
        seed=seed,
        validate_every=validate_every,
        validate_on=validate_on,
        save_every=save_every,
        samples=samples,
        log_every=log_every,
        tensorboard=tensorboard or None,
        non_finite_limit=non_finite_limit,
        layout=layout,
        input_folder=input_folder,
        target_folder=target_folder,
        allow_truncated=allow_truncated or None,
        dead_leaves=dead_leaves,
        model=model,
        weights=weights,
        settings=dict(map(setting, set)),
    )
    result = run(config, resume_from or resume)
    if result.interrupted:
        return TERMINATED
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
        print(result.weights)


def setting(text: str) -> tuple[str, object]:
    """A setting of the model from KEY=VALUE, the value in JSON or a plain word."""
    key, found, value = text.partition("=")
    if not found:
        raise ValueError(f"--set {text}: give KEY=VALUE, such as blocks=8")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def show_recipes(tasks: list[str]) -> None:
    """Print recipes with the source of every entry."""
    for task in tasks:
        table = Table("entry", "value", "from", title=task, title_justify="left")
        for name, (value, source) in recipe(task).items():
            table.add_row(name, str(value), source)
        Console().print(table)


def from_published(arguments: Sequence[str]) -> list[str]:
    """The options of `irnext train`, given with those of the published code.

    Its `--mode train` means nothing here, `--model_name` names the folder of the results as there, and
    its `--resume` has a file. Raises ValueError for `--mode test`.
    """
    taken: list[str] = []
    rest = [part for argument in arguments for part in _split(argument)]
    while rest:
        option = rest.pop(0)
        name = option.replace("_", "-") if option.startswith("--") else option
        following = rest[0] if rest and not rest[0].startswith("-") else None
        if name == "--mode" and following is not None:
            if rest.pop(0) != "train":
                raise ValueError("--mode test of the published code is: irnext evaluate")
        elif name == "--model-name" and following is not None:
            taken += ["--output", f"results/{rest.pop(0)}"]
        elif name == "--resume" and following is not None:
            path = rest.pop(0)
            taken += ["--resume-from", path] if path else []
        else:
            taken.append(PUBLISHED.get(name, option))
    return taken


def _split(argument: str) -> list[str]:
    """--option=value in two parts, as other arguments already are."""
    if argument.startswith("--") and "=" in argument:
        return list(argument.split("=", 1))
    return [argument]
