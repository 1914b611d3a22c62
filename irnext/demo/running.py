"""What the demonstration does, one after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from .. import images
from ..data.degradations import DEGRADATIONS, Haze
from ..data.synthetic import Augmentation, CleanPictures, SyntheticCrops, SyntheticPairs
from ..files import atomic_file, output_folder
from ..model import IRNeXt
from ..pretrained import list_pretrained, load_pretrained
from . import page, photographs, report, sheet
from .cases import Case, solve
from .fine_tuning import fine_tune
from .storm import Sandstorm
from .timing import Timing, time_local_attention

# About three quarters of a minute on two CPU cores.
STEPS, BATCH, CROP = 200, 4, 128
FINE_TUNING_RATE = 1e-3
# The colours stay in their order: else nothing would tell sand from what is orange in itself.
AUGMENTATION = Augmentation(channels=False, gamma=0.25)
# Without shipped weights for haze: a model like theirs, and its rate from random weights.
SETTINGS, RATE = {"blocks": 1, "width": 16}, 2e-3

# What is shown: as in training, but the haze is thick; thin haze is hard to see, and to judge.
SHOWN = {task: kind() for task, kind in DEGRADATIONS.items()}
SHOWN["haze"] = Haze(beta=(1.8, 1.8), airlight=(0.85, 0.85), depths=("ramp",))

PICTURE, PAGE = "demo.png", "demo.html"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured, and the files it wrote; times in seconds.

    Attributes:
        tasks: the unseen photograph in each synthetic degradation, restored by the shipped weights.
        missing: the tasks whose weights are not in the package.
        before: the unseen photograph in a sandstorm, restored by the shipped weights for haze; None
            where they are missing.
        after: the same after fine-tuning them, or after training from nothing where they are missing.
        parameters: of the model that was trained.
        steps: that its training took.
        training_time: of these.
        timing: of local attention.
        picture, page: the files.
    """

    tasks: tuple[Case, ...]
    missing: tuple[str, ...]
    before: Case | None
    after: Case
    parameters: int
    steps: int
    training_time: float
    timing: Timing
    picture: Path
    page: Path


def run(
    output: Path, seconds: float = 150, seed: int = 0, steps: int = STEPS, console: Console | None = None
) -> DemoResult:
    """Restore, fine-tune, compare, time, and write `demo.png` and `demo.html` into the folder `output`.

    The number of steps is fixed, so that a seed gives the same picture again on the same machine.
    `seconds` is only a limit: a machine that would need longer takes fewer steps, its learning rate
    falling with the time instead.

    Args:
        output: the folder; made where it is missing.
        seconds: limit of the training time.
        seed: of the degradations and crops; from 0 to 2**64 - 1.
        steps: training steps.
        console: where to print.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        FileNotFoundError: it comes without its photographs.
        OSError: the folder cannot be written to.
        ValueError: `seconds` or `steps` is not positive, or `seed` out of range.
        ArithmeticError: the loss is not finite.
    """
    if not seconds > 0 or steps < 1:
        raise ValueError(f"seconds is {seconds} and steps {steps}: both must be positive")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}: it must be from 0 to 2**64 - 1")
    unseen = CleanPictures([photographs.path_of(photographs.UNSEEN)])
    training = CleanPictures([photographs.path_of(name) for name in photographs.TRAINING])
    with output_folder(output):
        return _run(unseen, training, Path(output), seconds, seed, steps, console or Console())


def _run(
    unseen: CleanPictures,
    training: CleanPictures,
    output: Path,
    seconds: float,
    seed: int,
    steps: int,
    console: Console,
) -> DemoResult:
    available = list_pretrained()
    missing = tuple(task for task in DEGRADATIONS if task not in available)
    console.print(f"A photograph ({photographs.UNSEEN}) that no training has seen, restored. {report.MODELS}")
    if missing:
        console.print(report.missing(missing))
    tasks = tuple(restore_task(task, unseen, seed) for task in available)
    if tasks:
        console.print(report.for_console(report.quality(tasks)))

    known = "haze" in available
    model = load_pretrained("haze") if known else new_model(seed)
    stormy, clean = SyntheticPairs(unseen, Sandstorm(), seed).read(0)
    before = solve("sandstorm, haze weights", model, stormy, clean) if known else None
    console.print(report.intention(known, len(training)))
    crops = SyntheticCrops(training, Sandstorm(), CROP, seed, length=BATCH, augmentation=AUGMENTATION)
    started = time.perf_counter()
    steps_taken = fine_tune(model, crops, FINE_TUNING_RATE if known else RATE, steps, seconds, console)
    trained = time.perf_counter() - started
    name = "sandstorm, fine-tuned" if known else "sandstorm, trained from nothing"
    result = DemoResult(
        tasks=tasks,
        missing=missing,
        before=before,
        after=solve(name, model, stormy, clean),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=steps_taken,
        training_time=trained,
        timing=time_local_attention(),
        picture=output / PICTURE,
        page=output / PAGE,
    )
    cases = report.all_cases(result)
    tables, account = [report.quality(cases), report.speed(result.timing)], report.account(result)
    images.write(sheet.compose(report.panels(result, clean)), result.picture)
    with atomic_file(result.page) as file:
        file.write(page.render(report.comparisons(cases), clean, tables, account).encode())
    for table in (report.quality(report.storm_cases(result)), tables[1]):
        console.print(report.for_console(table))
    console.print("\n".join(account[1:]))  # the first was said at the beginning
    console.print(f"Look at {result.picture} and {result.page}", soft_wrap=True)
    return result


def restore_task(task: str, unseen: CleanPictures, seed: int) -> Case:
    """The first picture of `unseen` in a task's degradation, restored by the task's shipped weights."""
    degraded, clean = SyntheticPairs(unseen, SHOWN[task], seed).read(0)
    return solve(task.replace("-", " "), load_pretrained(task), degraded, clean)


def new_model(seed: int) -> IRNeXt:
    """A small model with random weights; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return IRNeXt(**SETTINGS)
