"""How exact the networks of `benchmarks.networks` are: against float64, and on photographs."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irnext.metrics import psnr

from . import harness
from .networks import (
    OPTIMIZED,
    PLAIN,
    PRECISIONS,
    PUBLISHED,
    Settings,
    computing_in,
    make_model,
    make_network,
)
from .published import PublishedIRNeXt

SHAPE = (2, 3, 64, 96)
PHOTOGRAPHS = ("astronaut", "coffee")  # in scikit-image's wheel
SIDE = 256  # of the square from a photograph's middle
LIMIT = 1e-5  # of float32
UNITS = {name: torch.finfo(dtype).eps for name, dtype in PRECISIONS.items()} | {"tf32": 2.0**-10}


@dataclass(frozen=True)
class Accuracy:
    """The error of one network in one precision.

    Attributes:
        error: relative to float64, of the worst of the three pictures.
        allowed: the most it may be.
    """

    blocks: int
    precision: str
    variant: str
    error: float
    allowed: float

    @property
    def wrong(self) -> str | None:
        """Why the result is wrong; None if it is right."""
        return judge(self.error, self.allowed)


def judge(error: float, allowed: float) -> str | None:
    """Why a result with this error is wrong; None if it is right. What is not finite is off by infinity."""
    return None if error <= allowed else f"wrong result: off by {error:.1e}, allowed {allowed:.1e}"


def allowed_error(name: str, precision: str, published_error: float) -> float:
    """The most that a network may be off by.

    Ours: 1e-5 in float32, otherwise twice what the published network is off by in the same precision,
    under PyTorch's own autocast. PyTorch's own: half of the precision's digits.
    """
    if name not in (PLAIN, OPTIMIZED):
        return math.sqrt(UNITS[precision])
    return LIMIT if precision == "float32" else 2 * published_error


def measure(settings: Settings, precisions: Sequence[str], on: torch.device) -> list[Accuracy]:
    """The accuracy of every network that is not compiled, in every precision."""
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)).to(on)
    with torch.no_grad():
        expected = make_model(PublishedIRNeXt, settings).to(on, torch.float64)(x.double())
    found = []
    for precision in precisions:
        published_error = math.inf
        for name in (PUBLISHED, PLAIN, OPTIMIZED):
            with computing_in(precision, on):
                error = harness.relative_error(make_network(name, settings, precision, on).call(x), expected)
            if name == PUBLISHED:
                published_error = error
            allowed = allowed_error(name, precision, published_error)
            found.append(Accuracy(settings.blocks, precision, name, error, allowed))
    return found


# ---- photographs -----------------------------------------------------------------------------------


def photographs() -> dict[str, Tensor]:
    """Real pictures (1, 3, 256, 256) by name; none where scikit-image is not installed."""
    if importlib.util.find_spec("skimage") is None:
        return {}
    from skimage import data

    pictures = {}
    for name in PHOTOGRAPHS:
        values = torch.from_numpy(getattr(data, name)())
        top, left = ((side - SIDE) // 2 for side in values.shape[:2])
        square = values[top : top + SIDE, left : left + SIDE]
        pictures[name] = square.permute(2, 0, 1)[None].float() / 255
    return pictures


@dataclass(frozen=True)
class Fidelity:
    """How much of a restored photograph half precision keeps: PSNR in dB against float32's result."""

    blocks: int
    precision: str
    variant: str
    photograph: str
    decibels: float


def measure_photographs(settings: Settings, precisions: Sequence[str], on: torch.device) -> list[Fidelity]:
    """The fidelity of our networks on every photograph, in those of the precisions that are not float32."""
    found = []
    rounded = [precision for precision in precisions if precision != "float32"]
    for photograph, picture in photographs().items() if rounded else ():
        x = picture.to(on)
        with computing_in("float32", on):
            exact = make_network(PLAIN, settings, "float32", on).call(x)[-1].clamp(0, 1)
        for precision in rounded:
            for name in (PLAIN, OPTIMIZED):
                with computing_in(precision, on):
                    restored = make_network(name, settings, precision, on).call(x)[-1].float()
                # Equal pictures have no finite ratio, and the record takes finite numbers only.
                decibels = min(psnr(restored, exact), 200.0)
                found.append(Fidelity(settings.blocks, precision, name, photograph, decibels))
    return found


# ---- the tables ------------------------------------------------------------------------------------


def tables(found: Sequence[Accuracy], fidelities: Sequence[Fidelity]) -> list:
    """What was found, as tables for the console: a column for each precision and number of blocks."""

    def column(one: Accuracy | Fidelity) -> str:
        return f"{one.precision}, {one.blocks} blocks"

    errors: dict[str, dict[str, str]] = {}
    for one in found:
        row = errors.setdefault(one.variant, {"": one.variant})
        row[column(one)] = f"{one.error:.1e}{' wrong' if one.wrong else ''}"
    kept: dict[str, dict[str, str]] = {}
    for one in fidelities:
        name = f"{one.variant}: {one.photograph}"
        kept.setdefault(name, {"": name})[column(one)] = f"{one.decibels:.1f}"
    titles = {"Error against float64": errors, "PSNR against float32, dB": kept}
    return [harness.table_of(title, list(rows.values())) for title, rows in titles.items() if rows]


def as_records(found: Sequence[Accuracy | Fidelity]) -> list[dict]:
    """What the file of the results says of them; an infinite error is left out, and said in the words."""
    records = []
    for one in found:
        row = dataclasses.asdict(one)
        if isinstance(one, Accuracy):
            finite = {"error": harness.finite(one.error), "allowed": harness.finite(one.allowed)}
            row |= finite | {"wrong": one.wrong}
        records.append(row)
    return records
