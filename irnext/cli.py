"""The command line: parses, calls, and turns expected errors into one line."""

from __future__ import annotations

import contextlib
import functools
import io
import json as json_format
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from . import (
    __version__,
    checkpoints,
    complexity,
    create_model,
    export_model,
    info,
    list_models,
    optimize,
    use_backend,
)
from .devices import check_device
from .restoration import restore_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LowPass = Annotated[Literal["global", "local", "exact"] | None, tyro.conf.arg(metavar="{global,local,exact}")]
Output = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: some pictures failed, the others are restored. 2: refused, with one line that says
    why. 130: interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"irnext {__version__}")
        return 0
    try:
        return parse(arguments)() or 0
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, ImportError) as error:
        complain(error)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


def parse(arguments: Sequence[str]) -> Callable[[], int | None]:
    """The command and its options as a function to call; --help prints and raises SystemExit.

    Raises ValueError for arguments that are no command, with what tyro has to say about them.
    """
    commands = {
        "demo": demo,
        "restore": restore,
        "convert": convert,
        "export": export,
        "info": information,
        "complexity": complexities,
    }
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.extras.subcommand_cli_from_dict(
                {name: postponed(command) for name, command in commands.items()},
                prog="irnext",
                description="The fast, drop-in IRNeXt for image restoration "
                "(irnext --version for the version).",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:  # the help was printed
            raise
        raise ValueError(gist(errors.getvalue())) from end


def postponed(command: Callable) -> Callable:
    """`command` with its signature and help, to be called later: only the parsing's output is caught."""

    @functools.wraps(command)
    def take(*args, **kwargs):
        return functools.partial(command, *args, **kwargs)

    return take


def gist(box: str) -> str:
    """The essential sentence of one of tyro's error boxes, and the command that shows the help.

    Such a box has a title, then sections between rules: first what is wrong, in its first
    paragraph, and last the command for the help.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).strip()
    title, *lines = (line.strip("│ ") for line in plain.splitlines())
    sections = [text.strip() for text in re.split(r"(?m)^[─╰╯-]{3,}$", "\n".join(lines)) if text.strip()]
    if not sections:  # no box
        return plain
    wrong = sections[0].split("\n\n")[0]
    if wrong.startswith("Expected"):
        wrong = f"{title.strip('╭╮─ ')}: {wrong}"
    names = [text for text in sections if text.startswith("Available subcommands")]
    helps = re.findall(r"irnext(?: [a-z]+)* --help", sections[-1])
    return "; ".join([wrong.rstrip("."), *names, *(f"see {command}" for command in helps)])


def complain(problem: Exception | str) -> None:
    """One line on the error output."""
    if isinstance(problem, OSError) and problem.strerror:
        problem = f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    print("irnext: error:", " ".join(str(problem).split()), file=sys.stderr)


def check_backend() -> None:
    """Raise for an IRNEXT_BACKEND that cannot be used: now, rather than at the first picture."""
    if backend := os.environ.get("IRNEXT_BACKEND"):
        use_backend(backend)


def demo(output: Output = Path("irnext-demo"), seconds: float = 150, seed: int = 0) -> None:
    """See a degraded photograph restored: trains a small model on other photographs first.

    Args:
        output: folder for the side-by-side picture and the page with the slider.
        seconds: limit of the training time.
        seed: of everything random.
    """
    from . import demo as demonstration  # loads scikit-image, which nothing else needs

    check_backend()
    demonstration.run(output, seconds, seed)


def restore(
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN...", help_behavior_hint="")
    ],
    /,
    output: Output,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    model: Name = None,
    low_pass: LowPass = None,
    device: Name = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    overlap: Annotated[int, tyro.conf.arg(metavar="M")] = 32,
    max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    compare: bool = False,
) -> int:
    """Restore pictures with trained weights.

    Without --tile and --max-memory the whole picture goes through the model at once, or on a CPU, where
    the free memory is too small for it, in bands. --max-memory bounds the memory with the same result.
    Tiles bound it further but are not exact: the model's means over the plane then see a tile instead
    of the picture.

    Results have their picture's kind, EXIF data, colour profile and resolution; 16 bits per channel
    stay for grey, while colour, and grey with alpha, of 16 bits come out with 8.

    Args:
        inputs: picture files, folders, or patterns in quotes.
        output: a folder, or a file name for a single picture.
        weights: a checkpoint: .safetensors, or .pkl or .pth of the published code.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's.
        low_pass: the model's low-pass filter: global as in the published dehazing code, local as in
            the published motion-deblurring code, whose checkpoints do not say so.
        device: where to compute, as PyTorch names it (cuda, cuda:1, mps); by default a GPU if there is one.
        dtype: what to compute in.
        tile: side of square tiles in pixels, a multiple of 32.
        overlap: pixels that neighbouring tiles share, at most half a tile.
        max_memory: what restoring may take beside the program and the weights, as in 8G or 500M.
        compare: also write NAME-compare.png (of a.jpg: a.jpg-compare.png): before on the left, after on
            the right.
    """
    check_backend()
    network = load_model(weights, model, low_pass)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    computed = DTYPES[dtype]
    if device == "cpu" and not os.environ.get("IRNEXT_BACKEND"):  # a backend asked for serves all it can
        network, computed = optimize(network, computed), None
        if max_memory is None and tile is None:
            max_memory = "auto"
    report = restore_files(
        network,
        inputs,
        output,
        tile=tile,
        overlap=overlap,
        max_memory=max_memory,
        dtype=computed,
        device=device,
        compare=compare,
    )
    for path in report.written:
        print(path)
    for reason in report.failed.values():
        complain(reason)
    return FAILED if report.failed else 0


def load_model(weights: Path | None, name: str | None, low_pass: str | None) -> torch.nn.Module:
    """The model of a checkpoint; `name` gives it the settings of a listed model."""
    settings = {}
    if name is not None:
        with torch.device("meta"):  # only its settings are wanted
            settings = dict(create_model(name).settings)
    if weights is None:
        made_of = f"a new {name} has random weights and" if name else "a model without weights"
        raise ValueError(f"{made_of} restores nothing: give --weights FILE")
    listed = settings.pop("low_pass", None)
    network = checkpoints.load(weights, low_pass or listed, **settings)
    if not (low_pass or listed):
        note_assumed_low_pass(weights, network)
    return network


def note_assumed_low_pass(weights: Path, network: torch.nn.Module) -> None:
    """One line on the error output where the checkpoint leaves open what its weights compute."""
    if checkpoints.low_pass_is_assumed(weights, network):
        print(
            f"irnext: note: {weights} does not say which low-pass filter it was trained with: global "
            "assumed, as for published dehazing; give --low-pass local for published motion deblurring",
            file=sys.stderr,
        )


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    layout: Annotated[
        Literal["irnext", "official"] | None, tyro.conf.arg(metavar="{irnext,official}")
    ] = None,
    low_pass: LowPass = None,
) -> None:
    """Write a checkpoint anew, as .safetensors or as .pkl or .pth for the published code.

    Args:
        source: a checkpoint of any accepted kind.
        target: the new file; its suffix says the kind.
        layout: names of the entries; by default irnext in .safetensors and official in .pkl and .pth.
        low_pass: to be recorded in .safetensors, as published checkpoints do not say it.
    """
    network = checkpoints.convert(source, target, layout, low_pass)
    if low_pass is None and target.suffix.lower() not in checkpoints.PICKLES:  # those record nothing
        note_assumed_low_pass(source, network)
    print(target)


def export(
    weights: Annotated[Path, tyro.conf.Positional],
    /,
    output: Output,
    format: Annotated[Literal["pt2", "aoti", "onnx"] | None, tyro.conf.arg(metavar="{pt2,aoti,onnx}")] = None,
    model: Name = None,
    low_pass: LowPass = None,
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        tyro.conf.arg(metavar="{float32,bfloat16,float16}"),
    ] = None,
    max_autotune: bool = False,
) -> None:
    """Write a trained model as a program for other runtimes.

    Args:
        weights: a checkpoint: .safetensors, or .pkl or .pth of the published code.
        output: the new file: .pt2, or .onnx.
        format: pt2 for torch.export.load, aoti compiled by AOTInductor for Python and C++, onnx; by default
            what the suffix says.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's.
        low_pass: the model's low-pass filter, as for irnext restore.
        device: what an aoti program is compiled for, as PyTorch names it.
        dtype: what an aoti program computes in; pictures are float32 all the same.
        max_autotune: let the compiler of an aoti program time its choices.
    """
    check_backend()
    check_device(device)
    network = load_model(weights, model, low_pass).to(device)
    print(export_model(network, output, format, dtype and DTYPES[dtype], max_autotune))


def information(json: bool = False) -> None:
    """Versions, processor, GPUs, backends with reasons, models.

    Args:
        json: for programs.
    """
    if json:
        print(json_format.dumps(info.collect(), indent=2))
    else:
        info.show()


def complexities(model: Name = None, size: tuple[int, int] = (256, 256)) -> None:
    """Parameters and operations of the models, for one picture.

    Args:
        model: one model; all of them by default.
        size: height and width of the picture in pixels, multiples of 32.
    """
    table = Table("model", "parameters", "MACs", "taps' MACs", "paper's FLOPs")
    table.title = f"for a picture of {size[0]}x{size[1]} pixels"
    for name in [model] if model else list_models():
        with torch.device("meta"):
            cost = complexity.measure(create_model(name), size=size)
        table.add_row(
            name,
            f"{cost.params / 1e6:.2f} M",
            *(f"{count / 1e9:.2f} G" for count in (cost.macs, cost.tap_macs, cost.paper_flops)),
        )
    Console().print(table)
