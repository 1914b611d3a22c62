"""One training step of IRNeXt against the published formulation: `python -m benchmarks.training_step --help`.

A step is the forward pass, the dual-domain loss, the backward pass and Adam. Results are checked
before anything is timed: on two crops against float64 and, of a compiled network, on all of them
against the published one. On GPUs all networks run in channels_last.

What is checked: the pictures, the loss, and the gradients of every weight for fixed gradients of
the pictures. The gradient of an L1 loss jumps where a difference is zero, so that of the loss itself
differs between any two correct programs; the tests compare it in float64.

Peak memory is given twice. "Above state" is exact: the most bytes that tensors take at once in a
step beyond the weights and the optimiser's state, which are there when it begins; gradients, which it
makes anew, count. "Resident", on the CPU, is what the system counts of all that is the step's,
weights and optimiser included, in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from irnext import DualDomainLoss, IRNeXt, use_backend

from . import device, harness
from .harness import Timing, Variant
from .published import PublishedIRNeXt, PublishedLoss

PUBLISHED, COMPILED = "published, eager", "published, compiled"
OURS, REFERENCE, DETERMINISTIC = "irnext (auto)", "irnext (reference)", "irnext, deterministic"
CHECKED = 2  # crops that are compared with float64


@dataclass(frozen=True)
class Kind:
    """A way to train.

    Attributes:
        network, loss: of the variant; the published ones call no operator of ours.
        backend: of ours.
        compiled: by torch.compile.
        deterministic: by algorithms that give the same gradients in every run.
    """

    network: type[nn.Module]
    loss: type[nn.Module]
    backend: str
    compiled: bool = False
    deterministic: bool = False


KINDS = {
    PUBLISHED: Kind(PublishedIRNeXt, PublishedLoss, "reference"),
    OURS: Kind(IRNeXt, DualDomainLoss, "auto"),
    REFERENCE: Kind(IRNeXt, DualDomainLoss, "reference"),
    DETERMINISTIC: Kind(IRNeXt, DualDomainLoss, "auto", deterministic=True),
    COMPILED: Kind(PublishedIRNeXt, PublishedLoss, "reference", compiled=True),
}


@dataclass(frozen=True)
class Options:
    """Time one training step and its peak memory against the published formulation."""

    blocks: int = 4
    """residual blocks per CNNBlock"""
    width: int = 32
    """channels at full resolution"""
    low_pass: Literal["global", "local"] = "global"
    """form of the attention"""
    size: int = 256
    """side of the square crops in pixels, a multiple of 32, at least 64"""
    batch: int = 2
    """crops per step, at least 2: batch normalisation needs them"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains float32 weights under autocast; TF32 is off in float32"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to run"""
    reference: bool = True
    """also time irnext's network without its kernels"""
    compiled: bool = False
    """also time the compiled published network (minutes of compilation)"""
    deterministic: bool = False
    """also time irnext's network with deterministic algorithms, which cost something on CUDA"""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default"""
    rounds: int = 10
    """steps timed per variant"""
    memory: bool = True
    """also measure resident memory (CPU, Linux)"""
    json: bool = False
    """write the figures to a file under --results, again after every measurement"""
    results: Path = harness.RESULTS
    """folder of the results"""
    name: str = "training_step"
    """name of the file"""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 2 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"rounds is {self.rounds}, batch {self.batch}, threads {self.threads}: "
                "rounds and threads must be at least 1 and batch at least 2"
            )
        if self.size < 64 or self.size % 32:
            raise ValueError(f"size is {self.size}: it must be a multiple of 32, at least 64")
        device.check(self.device)

    def kinds(self) -> list[str]:
        """The eager variants to time, the published one first."""
        asked = {REFERENCE: self.reference, DETERMINISTIC: self.deterministic, COMPILED: False}
        return [kind for kind in KINDS if asked.get(kind, True)]


@contextlib.contextmanager
def deterministic_algorithms() -> Any:
    """A context in which PyTorch uses only algorithms that give the same result in every run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Trainer:
    """One variant's network, loss, optimiser and batch."""

    def __init__(self, options: Options, name: str, dtype: torch.dtype = torch.float32):
        kind = KINDS[name]
        torch.manual_seed(0)
        model = kind.network(options.blocks, options.width, low_pass=options.low_pass)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("_gain"):  # they start at zero, where the attention has no gradients
                nn.init.uniform_(parameter, -0.5, 0.5)
        shape = (options.batch, 3, options.size, options.size)
        pictures = [torch.rand(shape), torch.rand(shape)]
        on_gpu = options.device == "cuda"
        place = {"device": options.device, "dtype": dtype}
        if on_gpu:
            place["memory_format"] = torch.channels_last
        self.model = model.to(**place)
        self.degraded, self.clean = (picture.to(**place) for picture in pictures)
        self.network = torch.compile(self.model, dynamic=False) if kind.compiled else self.model
        self.loss, self.kind = kind.loss(), kind
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4, fused=on_gpu)
        self.autocast = options.dtype == "bfloat16" and dtype == torch.float32

    @contextlib.contextmanager
    def settings(self) -> Any:
        """The backend, and whether algorithms are deterministic."""
        with use_backend(self.kind.backend), contextlib.ExitStack() as stack:
            if self.kind.deterministic:
                stack.enter_context(deterministic_algorithms())
            yield

    def forward(self) -> tuple[list[Tensor], Tensor]:
        """The restored pictures and the loss."""
        with torch.autocast(self.degraded.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.network(self.degraded)
            return outputs, self.loss(outputs, self.clean)

    def step(self) -> Tensor:
        """One training step; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.settings():
            _, loss = self.forward()
            loss.backward()
        self.optimizer.step()
        return loss.detach()

    def result(self) -> list[Tensor]:
        """The pictures, the loss, and all weights' gradients as one vector."""
        weights = list(self.model.parameters())
        with self.settings():
            outputs, loss = self.forward()
            directions = [
                torch.linspace(-1, 1, y.numel(), device=y.device).sin().reshape(y.shape).to(y.dtype)
                for y in outputs
            ]
            gradients = torch.autograd.grad(outputs, weights, directions)
        return [*(y.detach() for y in outputs), loss.detach(), torch.cat([g.flatten() for g in gradients])]

    def checked_result(self) -> list[Tensor]:
        """The same, raising `harness.CannotTime` where PyTorch cannot do what this variant is about."""
        try:
            return self.result()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            refused = self.kind.deterministic and "deterministic" in str(error)
            if not (self.kind.compiled or refused):
                raise
            raise harness.CannotTime(harness.first_line(error)) from error

    def state_bytes(self) -> dict[str, int]:
        """What is kept from one step to the next: weights with buffers, gradients, optimiser state."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return {
            "weight_bytes": _size(weights),
            "gradient_bytes": _size(p.grad for p in self.model.parameters() if p.grad is not None),
            "optimizer_bytes": _size(value for value in states if isinstance(value, Tensor)),
        }


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def build_step(options: Options, name: str) -> Callable[[], Any]:
    """A training step to be run in a process of its own."""
    return Trainer(options, name).step


# ---- a comparison ----------------------------------------------------------------------------------


@dataclass
class Found:
    """What was found of one variant; sizes in bytes, none where its result is wrong."""

    timing: Timing
    sizes: dict[str, int | None] = dataclasses.field(default_factory=dict)


def check(names: Sequence[str], options: Options) -> dict[str, Timing]:
    """Whether eager variants are right on two crops, against float64."""
    few = dataclasses.replace(options, batch=CHECKED)
    expected = Trainer(few, PUBLISHED, torch.float64).result()
    variants = {
        name: Variant(int, functools.partial(_result, few, name), name == PUBLISHED) for name in names
    }
    return harness.check(variants, expected, getattr(torch, options.dtype))


def _result(options: Options, name: str) -> list[Tensor]:
    return Trainer(options, name).checked_result()


def compare(
    names: Sequence[str], found: dict[str, Timing], options: Options
) -> tuple[dict[str, Found], dict[str, Trainer]]:
    """Time, in turns, the variants that `found` calls right, and measure their memory."""
    on_gpu = options.device == "cuda"
    trainers = {name: Trainer(options, name) for name in names}
    if COMPILED in trainers:
        compiled = Variant(trainers[COMPILED].step, trainers[COMPILED].checked_result, baseline=True)
        expected = [tensor.double() for tensor in trainers[PUBLISHED].result()]
        found = found | harness.check({COMPILED: compiled}, expected, getattr(torch, options.dtype))
    found = {name: found[name] for name in names}
    variants = {name: Variant(trainer.step) for name, trainer in trainers.items()}
    timings = harness.time_right(variants, found, options.rounds, warm_timer(on_gpu))
    return {name: Found(timing) for name, timing in timings.items()}, trainers


def warm_timer(on_gpu: bool) -> harness.Timer:
    """A timer of single steps, after two to warm up: the first makes the optimiser's state.

    A loss that is not finite has no time.
    """

    def ready(step: Callable[[], Tensor]) -> Callable[[], float]:
        if not all(step().isfinite() for _ in range(2)):
            raise harness.CannotTime("the loss is not finite")
        return (device.call_timer if on_gpu else harness.call_timer)(step)

    return ready


def measure_memory(trainer: Trainer, on_gpu: bool) -> dict[str, int]:
    """The state of a variant that has been trained, and the peak above it."""
    peak = device.allocated_peak if on_gpu else harness.allocated_peak
    state = trainer.state_bytes()
    trainer.optimizer.zero_grad(set_to_none=True)  # as a step begins
    return {"peak_above_state_bytes": peak(trainer.step, warm=False)} | state


def measure_resident(options: Options, name: str) -> dict[str, int | None]:
    """The peak that the system counts, on the CPU."""
    wanted = options.memory and options.device == "cpu"
    return {"peak_bytes": harness.peak_memory(build_step, options, name) if wanted else None}


# ---- what is shown and kept ------------------------------------------------------------------------


def rows(found: dict[str, Found]) -> list[dict[str, Any]]:
    """What the file of the results says of a comparison."""
    published = found[PUBLISHED].sizes
    records = []
    for name, one in found.items():
        shares = {}
        for key in ("peak_bytes", "peak_above_state_bytes"):
            size, base = one.sizes.get(key), published.get(key)
            shares[f"{key.removesuffix('_bytes')}_of_published"] = size / base if size and base else None
        records.append({"variant": name} | dataclasses.asdict(one.timing) | one.sizes | shares)
    return records


def show(console: Console, options: Options, found: dict[str, Found]) -> None:
    """Print the table of a comparison."""
    cells = []
    for row, one in zip(rows(found), found.values(), strict=True):
        milliseconds, spread = harness.time_cells(one.timing)
        cells.append(
            {
                "": row["variant"],
                "ms": milliseconds,
                "spread": spread,
                "vs published": harness.ratio_cell(one.timing, PUBLISHED),
                "vs compiled": harness.ratio_cell(one.timing, COMPILED),
                "above state MiB": harness.mebibytes(row.get("peak_above_state_bytes")),
                "x published's": harness.number(row["peak_above_state_of_published"], ".2f"),
                "weights MiB": harness.mebibytes(row.get("weight_bytes")),
                "gradients MiB": harness.mebibytes(row.get("gradient_bytes")),
                "optimiser MiB": harness.mebibytes(row.get("optimizer_bytes")),
                "resident MiB": harness.mebibytes(row.get("peak_bytes")),
                "x published's ": harness.number(row["peak_of_published"], ".2f"),
                "error": harness.number(one.timing.error, ".0e"),
            }
        )
    shape = f"{options.batch} x {options.size} x {options.size}"
    title = f"Training step, IRNeXt({options.blocks}), {shape}, {options.dtype}"
    table = harness.table_of(title, cells)
    console.print(table)
    for name, one in found.items():
        if why := one.timing.wrong or one.timing.failure:
            console.print(f"{name}: {why}", soft_wrap=True)


def run_comparisons(options: Options, here: dict[str, Any], console: Console) -> list[dict[str, Any]]:
    """Compare the eager variants, then the compiled one with them, and return all rows."""
    on_gpu = options.device == "cuda"
    comparisons = {"eager": options.kinds()}
    if options.compiled:
        comparisons["compiled"] = [PUBLISHED, COMPILED, OURS]
    checked = check(options.kinds(), options)
    results: list[dict[str, Any]] = []
    for comparison, names in comparisons.items():
        found, trainers = compare(names, checked, options)
        begun = len(results)

        def write(comparison=comparison, found=found, begun=begun) -> None:
            results[begun:] = [{"comparison": comparison} | row for row in rows(found)]
            if options.json:
                given = dataclasses.asdict(options)
                harness.write_results(options.name, here, given, results, options.results)

        write()
        for name, one in found.items():
            if one.timing.milliseconds is not None:
                one.sizes = measure_memory(trainers.pop(name), on_gpu)
        del trainers
        if comparison == "eager":
            for name, one in found.items():
                if one.timing.milliseconds is not None:
                    one.sizes |= measure_resident(options, name)
        write()
        show(console, options, found)
    return results


def run(options: Options) -> int:
    """Run the benchmark; 1 if any variant computes something wrong."""
    if options.deterministic:  # cuBLAS reads it when it starts, and is refused without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    console = harness.make_console()
    with device.measuring(options.device, options.threads, console) as here:
        results = run_comparisons(options, here, console)
    return int(any(row["wrong"] for row in results))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for which alone tyro is needed."""
    import tyro

    return run(tyro.cli(Options, args=arguments, prog="python -m benchmarks.training_step"))


if __name__ == "__main__":
    sys.exit(main())
