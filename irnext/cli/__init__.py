"""The command line: parses, calls, and turns expected errors into one line."""

from __future__ import annotations

import contextlib
import functools
import io
import json as json_format
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from .. import __version__, info
from .benchmark import named_benchmark, show_benchmarks
from .common import INTERRUPTED, REFUSED, Output, check_backend, complain
from .data import check, decode_cache
from .evaluation import evaluate_task
from .models import complexities, convert, export
from .restoring import restore
from .serving import serve
from .training import from_published, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: some pictures failed, the others are restored. 2: refused, with one line that says
    why. 130: interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
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
    if (measurement := named_benchmark(arguments)) is not None:
        return measurement
    commands = {
        "demo": demo,
        "restore": restore,
        "serve": serve,
        "train": train,
        "evaluate": evaluate_task,
        "data": {"check": check, "decode-cache": decode_cache},
        "convert": convert,
        "export": export,
        "info": information,
        "complexity": complexities,
        "benchmark": show_benchmarks,
    }
    if arguments[:1] == ["train"]:
        arguments = ["train", *from_published(arguments[1:])]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return application(commands).cli(
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


def application(commands: dict[str, Callable | dict]) -> tyro.extras.SubcommandApp:
    """The commands by their names, of which groups have commands of their own."""
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(application(command) if isinstance(command, dict) else postponed(command), name=name)
    return app


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
    helps = re.findall(r"irnext(?: [a-z][a-z-]*)* --help", sections[-1])
    return "; ".join([wrong.rstrip("."), *names, *(f"see {command}" for command in helps)])


def demo(output: Output = Path("irnext-demo"), seconds: float = 150, seed: int = 0) -> None:
    """See a photograph restored from five degradations, and the weights for haze learn a sixth.

    Args:
        output: folder for the side-by-side picture and the page with the slider.
        seconds: limit of the training time.
        seed: of everything random.
    """
    from .. import demo as demonstration  # loads scikit-image, which nothing else needs

    check_backend()
    demonstration.run(output, seconds, seed)


def information(json: bool = False) -> None:
    """Versions, processor, GPUs, backends with reasons, models.

    Args:
        json: for programs.
    """
    if json:
        print(json_format.dumps(info.collect(), indent=2))
    else:
        info.show()
