"""Training a model: the loop, its validation, and how it stops and goes on."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import checkpoints
from ..distributed import (
    Process,
    all_mean,
    any_rank,
    broadcast_object,
    data_parallel,
    first_object,
    process_group,
)
from ..files import output_folder
from ..losses import DualDomainLoss
from ..memory import give_back_free_memory
from ..models import create_model
from ..restoration.inference import scale_of, sizes
from .config import TrainingConfig
from .loading import load_batches
from .records import Records
from .schedule import learning_rate
from .sources import open_sources
from .state import (
    ResumeError,
    generator_states,
    load_state,
    load_weights,
    restore_generators,
    save_state,
)
from .validation import spread, validate

STATE, BEST, LAST = "state.pt", "best.safetensors", "last.safetensors"
SAVE_SECONDS = 600.0  # the state is written at least so often, and after every epoch and validation
TRIM_STEPS = 100  # between those after which free memory goes back to the system
# What a state must agree on with the training that goes on from it: they decide what a step is.
FIXED = ("task", "model", "settings", "batch", "accumulate", "patch", "seed", "ema", "dtype")


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        steps: optimiser's steps taken, those before a resume included.
        loss: mean loss of the last steps, since the last line of the log; NaN if there were none.
        psnr, best_psnr: of the last and the best validation, in dB (protocol `irnext-rgb`); None without.
        skipped: steps that were skipped since the loss or a gradient was not finite.
        interrupted: whether a signal ended it before its time.
        weights: the trained weights, best by validation, or the last where there was none.
    """

    steps: int
    loss: float
    psnr: float | None
    best_psnr: float | None
    skipped: int
    interrupted: bool
    weights: Path


def train(
    config: TrainingConfig, resume: bool | str | os.PathLike = False, console: Console | None = None
) -> TrainingResult:
    """Train as `config` says, and write into its output folder.

    - state.pt: everything, to go on exactly; replaced atomically, after every epoch and validation, every
      ten minutes, and at SIGTERM or Ctrl-C, which end the training after the step at hand.
    - last.safetensors and best.safetensors (by the validation's PSNR), and epoch-N or step-N.safetensors
      as `config.save_every` says: weights for `irnext.load`; with `config.ema` their moving average.
    - log.jsonl, samples/, and tensorboard/ where asked for.

    Under `torchrun` the processes share each batch; the result is that of one process but for rounding.
    The same configuration gives the same weights on the same machine, bit for bit on CPUs, whether the
    training was interrupted or not.

    Args:
        config: see `TrainingConfig`.
        resume: go on from state.pt of the output folder, or begin where there is none; or go on from a file:
            a state, or the model.pkl of the published code, with its optimiser.
        console: where to tell the progress; the error output by default.

    Raises:
        ValueError: a configuration that cannot be, data that do not fit, a state of another training.
        FileExistsError: the folder holds a training and `resume` was not asked for.
        ArithmeticError: the loss was not finite for `config.non_finite_limit` steps in a row.
        OSError: data or output that cannot be read or written.
    """
    console = console or Console(stderr=True)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(process_group(config.device))
        if config.batch % (process.world_size * config.accumulate):
            raise ValueError(
                f"batch is {config.batch}: it must be a multiple of {process.world_size} processes x "
                f"{config.accumulate} accumulated parts"
            )
        if process.is_main:
            stack.enter_context(output_folder(config.output))
        state = _agreed(process, functools.partial(_state_to_resume, config, resume))
        stack.enter_context(_algorithms(config.deterministic))
        stack.enter_context(_seeded(config.seed, process.device))
        trainer = Trainer(config, process, state, console)
        return trainer.run()


def _agreed(process: Process, look: Callable[[], Any]) -> Any:
    """What the main process finds, or the error that it meets, in every process.

    Only its machine may have the files.
    """
    found, error = None, None
    if process.is_main:
        try:
            found = look()
        except (OSError, ValueError) as caught:
            error = caught
    found, error = broadcast_object((found, error))
    if error is not None:
        raise error
    return found


def _state_to_resume(config: TrainingConfig, resume: bool | str | os.PathLike) -> dict[str, Any] | None:
    """The state to go on from and its path, None to begin."""
    own = config.output / STATE
    asked = own if resume is True else Path(resume) if resume else None
    if own.exists() and not (asked and asked.exists() and asked.samefile(own)):
        raise FileExistsError(
            f"{config.output}: holds a training already: resume it, or name another output folder"
        )
    if asked is None or (resume is True and not own.exists()):
        return None
    state = load_state(asked) | {"path": asked}
    if not (config.output / BEST).exists():
        state["best"] = None  # those weights are in another folder: the best from here on are kept
    return state


@contextlib.contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """A context with or without PyTorch's deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS raises
    torch.use_deterministic_algorithms(before or deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context with PyTorch's generators seeded, and the caller's as they were after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Trainer:
    """One training: its model, optimiser, data and place in them. See `train`."""

    def __init__(
        self, config: TrainingConfig, process: Process, state: Mapping[str, Any] | None, console: Console
    ):
        self.config, self.process, self.console = config, process, console
        self.crops, self.pairs = open_sources(config)
        self.model = _initial_model(config).to(process.device)
        if (scale := scale_of(self.model)) != 1:
            raise ValueError(
                f"{config.model} enlarges {scale} times, and the pictures of a training pair have one size: "
                "choose a model that keeps the size"
            )
        multiple, least = sizes(self.model)
        if any(side < least or side % multiple for side in config.patch):
            raise ValueError(
                f"patch is {config.patch}: {config.model} with these settings takes multiples of {multiple}, "
                f"at least {least}"
            )
        on_gpu = process.device.type == "cuda"
        channels_last = on_gpu if config.channels_last is None else config.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.optimiser = torch.optim.Adam(
            self.model.parameters(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=process.device.type in ("cpu", "cuda"),
        )
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        )
        self.loss = DualDomainLoss(config.frequency_weight)
        self.step, self.concluded = 0, 0  # steps taken, and those whose validation and such are done
        self.best, self.psnr = None, None
        self.skipped, self.skipped_in_a_row, self.logged_loss = 0, 0, math.nan
        self.sums, self.counted = [0.0, 0.0, 0.0], 0  # of the loss, its two terms and steps, for the log
        self.steps_per_epoch = len(self.crops) // config.batch
        if not self.steps_per_epoch:
            raise ValueError(
                f"there are {len(self.crops)} training pictures: a batch needs {config.batch}; give a "
                "smaller batch"
            )
        if config.batch == config.accumulate and any(
            isinstance(module, nn.BatchNorm2d) for module in self.model.modules()
        ):
            raise ValueError(
                f"batch is {config.batch}, in {config.accumulate} parts: batch normalisation needs at least "
                "two crops at a time"
            )
        if state is not None:
            self._restore(state)
        self.wrapped = data_parallel(self.model, process)  # for several processes
        self.trained = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.asked = False  # by a signal to this process; they stop together, after the same step
        self.stop = False

    # ---- the state -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that going on exactly needs."""
        return {
            "config": self.config.as_json(),
            "pictures": len(self.crops),
            "step": self.step,
            "concluded": self.concluded,
            "model": self.model.state_dict(),
            "optimizer": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "psnr": self.psnr,
            "skipped": (self.skipped, self.skipped_in_a_row),
            "sums": (self.sums, self.counted),
            "generators": generator_states(self.process.device),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        path = state["path"]
        ours = "config" in state
        if ours:
            self._check(state)
        load_weights(self.model, state["model"], path)
        try:
            self.optimiser.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise ResumeError(f"{path}: its optimiser is not this model's: {error}") from None
        for group in self.optimiser.param_groups:
            group["weight_decay"] = self.config.weight_decay
        if not ours:  # the published code keeps the epoch, and computes the rest anew
            if self.config.unit != "epochs" or "epoch" not in state:
                raise ResumeError(f"{path}: says its epoch at most: go on from it in epochs, not steps")
            self.step = self.concluded = int(state["epoch"]) * self.steps_per_epoch
            return
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.concluded = state["step"], state["concluded"]
        self.best, self.psnr = state["best"], state["psnr"]
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.sums, self.counted = list(state["sums"][0]), state["sums"][1]
        restore_generators(state["generators"], self.process.device)

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise ResumeError unless the state's training is this one; tell what else differs."""
        then, now = state["config"], self.config.as_json()
        then, now = ({**c, "patch": list(c["patch"])} for c in (then, now))
        differ = [name for name in now if name in then and then[name] != now[name]]
        wrong = [f"{name} {then[name]!r} there, {now[name]!r} here" for name in differ if name in FIXED]
        if state["pictures"] != len(self.crops):
            wrong.append(f"{state['pictures']} training pictures there, {len(self.crops)} here")
        if wrong:
            raise ResumeError(f"{state['path']}: is of another training: {'; '.join(wrong)}")
        for name in differ:
            if name not in ("output", "data", "workers", "device", "weights"):
                self._tell(f"resumed with {name} {now[name]} instead of {then[name]}")

    def _save(self) -> None:
        self.saved = time.perf_counter()
        if not self.process.is_main:
            return
        save_state(self.config.output / STATE, self.state())
        checkpoints.save(self._shipped(), self.config.output / LAST)

    def _shipped(self) -> nn.Module:
        """The model whose weights are validated and shipped."""
        return self.model if self.average is None else self.average.module

    # ---- the loop ------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """The steps of the whole training."""
        return self.config.length * (self.steps_per_epoch if self.config.unit == "epochs" else 1)

    def _unit(self, step: int) -> int:
        """The epoch or step that a step belongs to, from 0."""
        return step // self.steps_per_epoch if self.config.unit == "epochs" else step

    def run(self) -> TrainingResult:
        """Train to the end, or until a signal."""
        config = self.config
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            if self.process.is_main:
                self.records = stack.enter_context(Records(config.output, self.step, config.tensorboard))
                self._introduce()
            progress = stack.enter_context(self._progress())
            task = progress.add_task("", total=self.steps, completed=self.step, state="")
            self.batches = load_batches(config, self.process, self.crops, self.step)
            stack.callback(setattr, self, "batches", None)  # ends the workers, whatever else is kept
            self.model.train()
            self.saved = self.logged = time.perf_counter()
            self.timed_from = self.step
            while self.concluded < self.steps:
                concludes = self.concluded < self.step
                batch = None if concludes or self.asked else next(self.batches)
                problem = batch if isinstance(batch, Exception) else None
                self.stop = any_rank(self.asked or problem is not None)
                if self.stop:
                    self._save()  # the steps so far are good
                    if problem := first_object(problem):
                        raise problem
                    break
                if concludes:
                    self._conclude()
                else:
                    self._step(batch)
                    progress.update(task, completed=self.step, state=self._progress_text())
            if not (config.output / LAST).exists():  # there was nothing left to do
                self._save()
        if self.stop and self.process.is_main:
            self._tell(f"interrupted after step {self.step} of {self.steps}; resume to go on from there")
        return self._result()

    def _step(self, batch: list[Tensor]) -> None:
        """One step of the optimiser, or none where the loss or a gradient is not finite."""
        config = self.config
        rate = learning_rate(
            self._unit(self.step),
            config.length,
            config.warm_up,
            config.learning_rate,
            config.final_learning_rate,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        losses = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        *losses, norm = torch.stack((*losses, norm)).tolist()  # on a GPU the one time a step waits for it
        if any_rank(not all(map(math.isfinite, (*losses, norm)))):
            for buffer, value in zip(buffers, before, strict=True):  # as if the step had not been
                buffer.copy_(value)
            self._skip(losses[0], norm)
        else:
            self.optimiser.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.skipped_in_a_row = 0
            self.sums = [total + value for total, value in zip(self.sums, losses, strict=True)]
            self.counted += 1
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    def _backward(self, batch: list[Tensor]) -> list[Tensor]:
        """Gradients of the batch's mean loss; the loss and its two terms, this process's."""
        config, device = self.config, self.process.device
        parts = config.accumulate
        totals = [torch.zeros((), device=device) for _ in range(3)]
        inputs, targets = (pictures.chunk(parts) for pictures in batch)
        for number, (degraded, clean) in enumerate(zip(inputs, targets, strict=True)):
            # Gradients are exchanged once, with the last part.
            waits = isinstance(self.wrapped, nn.parallel.DistributedDataParallel) and number < parts - 1
            with self.wrapped.no_sync() if waits else contextlib.nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                    outputs = self.trained(self._unit_range(degraded))
                if isinstance(outputs, Tensor):
                    outputs = [outputs]
                spatial, frequency = self.loss.parts(outputs, self._unit_range(clean))
                loss = (spatial + config.frequency_weight * frequency) / parts
                loss.backward()
            for total, value in zip(totals, (loss, spatial / parts, frequency / parts), strict=True):
                total += value.detach()
        return totals

    def _unit_range(self, pictures: Tensor) -> Tensor:
        """uint8 pictures as floats from 0 to 1 on the device, in the model's memory format."""
        moved = pictures.to(self.process.device, non_blocking=True).float().div_(255)
        return moved.contiguous(memory_format=self.memory_format)

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        text = f"the loss is {loss:g}, the gradients' norm {norm:g} at step {self.step + 1}"
        self._tell(f"{text}: skipped ({self.skipped} in all)")
        if self.process.is_main:
            self.records.write("skipped", self.step + 1, skipped=self.skipped)
        if self.skipped_in_a_row >= self.config.non_finite_limit:
            raise ArithmeticError(
                f"{text}: {self.skipped_in_a_row} steps in a row without a finite loss, the training is "
                "stopped; the state before is kept. Try a lower learning rate, float32, or check the data"
            )

    # ---- validation ----------------------------------------------------------------------------

    def _conclude(self) -> None:
        """What follows a step: the log, at the end of a unit validation and weights to keep, and the state.

        Where a signal ends the validation, or it is killed, a resumed training begins with it.
        """
        config, done = self.config, self.step == self.steps
        if self.step % config.log_every == 0 or done:
            self._log()
        if self.step % TRIM_STEPS == 0:
            give_back_free_memory()
        ended = config.unit == "steps" or self.step % self.steps_per_epoch == 0
        unit = self._unit(self.step)
        every = config.validate_every
        validates = ended and self.pairs is not None and every and (unit % every == 0 or done)
        if validates:
            self._save()
            if not self._validate():
                return
        if ended and config.save_every and unit % config.save_every == 0 and self.process.is_main:
            name = f"{config.unit.removesuffix('s')}-{unit:05d}.safetensors"
            checkpoints.save(self._shipped(), config.output / name)
        self.concluded = self.step
        waited = time.perf_counter() - self.saved > SAVE_SECONDS
        if validates or done or waited or (ended and config.unit == "epochs"):
            self._save()

    def _validate(self) -> bool:
        """Validate, and keep the weights if they are the best so far; False where a signal ended it."""
        config, started = self.config, time.perf_counter()
        chosen = spread(len(self.pairs), config.validate_on)

        def sample(name: str, *pictures: np.ndarray) -> None:
            self.records.sample(self.step, name, *pictures)

        found = validate(
            self._shipped(), self.pairs, chosen, self.process, config.samples, sample, lambda: self.asked
        )
        if found is None:
            return False
        self.psnr = found
        is_best = self.best is None or self.psnr > self.best
        self.best = self.psnr if is_best else self.best
        if not self.process.is_main:
            return True
        if is_best:
            checkpoints.save(self._shipped(), config.output / BEST)
        self.records.write(
            "validation",
            self.step,
            psnr=self.psnr,
            best=self.best,
            pictures=len(chosen),
            protocol="irnext-rgb",
            seconds=round(time.perf_counter() - started, 2),
        )
        note = ", the best so far" if is_best else ""
        self._tell(f"step {self.step}: {self.psnr:.2f} dB on {len(chosen)} validation pictures{note}")
        self.logged += time.perf_counter() - started  # the time does not count as training's
        return True

    # ---- what people see -----------------------------------------------------------------------

    def _introduce(self) -> None:
        config = self.config
        count = sum(parameter.numel() for parameter in self.model.parameters())
        validated = "none" if self.pairs is None else f"{len(spread(len(self.pairs), config.validate_on))}"
        settings = "".join(f", {name} {value}" for name, value in config.settings.items())
        where = f"{self.process.world_size} x {self.process.device.type}"
        self._tell(
            f"{config.task}: {len(self.crops):,} training and {validated} validation pictures; "
            f"{config.model}{settings}, {count / 1e6:.2f} M parameters, {config.dtype}, "
            f"on {where}"
        )
        unpaired = getattr(getattr(self.crops, "pairs", None), "unpaired", [])
        if unpaired:
            self._tell(
                f"pictures without a counterpart are left out: {len(unpaired)}, such as {unpaired[0]}; "
                "irnext data check lists them"
            )
        if self.pairs is None and config.validate_every:
            self._tell("no validation or test pictures were found: there will be no best.safetensors")
        self.records.write("begin", self.step, config=config.as_json(), parameters=count)

    def _tell(self, text: str) -> None:
        if self.process.is_main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.fields[state]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console, disable=not self.process.is_main)

    def _progress_text(self) -> str:
        loss = f"loss {self.sums[0] / self.counted:.4f}" if self.counted else ""
        return f"epoch {(self.step - 1) // self.steps_per_epoch + 1} {loss}"

    def _log(self) -> None:
        """A line of the log about the steps since the last."""
        seconds = time.perf_counter() - self.logged
        loss, spatial, frequency = (all_mean(total) / max(1, self.counted) for total in self.sums)
        if self.process.is_main and self.counted:
            self.records.write(
                "train",
                self.step,
                epoch=(self.step - 1) // self.steps_per_epoch + 1,
                loss=loss,
                spatial=spatial,
                frequency=frequency,
                learning_rate=self.optimiser.param_groups[0]["lr"],
                crops_per_second=round((self.step - self.timed_from) * self.config.batch / seconds, 2),
                skipped=self.skipped,
            )
        self.logged_loss = loss if self.counted else math.nan
        self.sums, self.counted = [0.0, 0.0, 0.0], 0
        self.logged, self.timed_from = time.perf_counter(), self.step

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A context in which SIGTERM and the first Ctrl-C ask for an end after the step at hand."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, before[signal.SIGINT])  # a second Ctrl-C does not wait

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _result(self) -> TrainingResult:
        weights = self.config.output / (LAST if self.best is None else BEST)
        return TrainingResult(
            self.step,
            self.logged_loss,
            self.psnr,
            self.best,
            self.skipped,
            self.stop,
            weights,
        )


def _initial_model(config: TrainingConfig) -> nn.Module:
    """A model with random weights by the seed, or with those of a checkpoint."""
    model = create_model(config.model, **config.settings)
    if config.weights is not None:
        model.load_state_dict(checkpoints.load(config.weights, **model.settings).state_dict())
    return model
