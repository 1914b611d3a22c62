"""What the commands share: options, exit codes, and how a problem is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from .. import use_backend

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LowPass = Annotated[Literal["global", "local", "exact"] | None, tyro.conf.arg(metavar="{global,local,exact}")]
Output = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def complain(problem: Exception | str) -> None:
    """One line on the error output."""
    if isinstance(problem, OSError) and problem.strerror:
        problem = f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    print("irnext: error:", " ".join(str(problem).split()), file=sys.stderr)


def check_backend() -> None:
    """Raise for an IRNEXT_BACKEND that cannot be used: now, rather than at the first picture."""
    if backend := os.environ.get("IRNEXT_BACKEND"):
        use_backend(backend)
