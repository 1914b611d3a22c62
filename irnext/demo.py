"""The demonstration: a small IRNeXt learns to remove haze and restores a photograph it never saw.

It needs no network, weights or data set. The photographs are those inside scikit-image's wheel; all
but one are for training. Each step puts fresh random haze into random crops of them. The one kept
back gets haze from a depth ramp, is restored as a whole, and shown hazy, restored and clean.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as ConsoleTable
from torch import Tensor

from . import images, page
from .blocks import LocalAttention
from .data.degradations import Haze
from .files import atomic_file, output_folder
from .losses import DualDomainLoss
from .metrics import psnr, ssim
from .model import IRNeXt
from .restoration import restore

# The colour photographs that need no download; the unseen one is in the public domain (CC0).
UNSEEN = "chelsea.png"
TRAINING = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")

# About a minute on two CPU cores.
STEPS, BATCH, CROP = 300, 4, 128
SETTINGS = {"blocks": 1, "width": 16}
LEARNING_RATE, WARM_UP, LARGEST_GRADIENT = 2e-3, 0.05, 1.0
LARGEST_LOG_GAMMA = 0.5

# Training sees ramps, twice as often upright as tilted; the unseen photograph stands in one haze.
TRAINING_HAZE = Haze(depths=("ramp", "ramp", "tilted"))
UNSEEN_HAZE = Haze(beta=(1.8, 1.8), airlight=(0.85, 0.85), depths=("ramp",))

PICTURE, PAGE = "demo.png", "demo.html"


@dataclass(frozen=True)
class Timing:
    """Local attention on this machine, published formulation against ours, in seconds.

    `forward` and `step` (forward and backward) are pairs (published, ours), each the median of
    interleaved runs on `shape`, as called, memory allocation included; `difference` is the largest
    between the two outputs, relative to the largest output.
    """

    shape: tuple[int, int, int, int]
    forward: tuple[float, float]
    step: tuple[float, float]
    difference: float


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured, and the files it wrote.

    PSNR in dB and SSIM of the unseen photograph, hazy and restored (protocols of
    `irnext.metrics`); times in seconds.
    """

    psnr_before: float
    psnr_after: float
    ssim_before: float
    ssim_after: float
    parameters: int
    steps: int
    training_time: float
    restoring_time: float
    timing: Timing
    picture: Path
    page: Path


def run(
    output: Path, seconds: float = 150, seed: int = 0, steps: int = STEPS, console: Console | None = None
) -> DemoResult:
    """Train, restore, compare, time, and write `demo.png` and `demo.html` into the folder `output`.

    The number of steps is fixed, so that a seed gives the same picture again on the same machine.
    `seconds` is only a limit: a machine that would need longer takes fewer steps, its learning rate
    falling with the time instead.

    Args:
        output: the folder; made where it is missing.
        seconds: limit of the training time.
        seed: of the weights, crops and haze; from 0 to 2**64 - 1.
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
    unseen, *training = (_photograph(name) for name in (UNSEEN, *TRAINING))
    with output_folder(output):
        return _run(unseen, training, Path(output), seconds, seed, steps, console or Console())


def _run(
    unseen: Image.Image,
    training: list[Image.Image],
    output: Path,
    seconds: float,
    seed: int,
    steps: int,
    console: Console,
) -> DemoResult:
    console.print(
        f"Removing haze from a photograph ({UNSEEN}) that the model has not seen; "
        f"it learns from {len(training)} others."
    )
    started = time.perf_counter()
    model, steps_taken = train(training, steps, seconds, seed, console)
    trained = time.perf_counter()
    clean = _unit(unseen)
    hazy = UNSEEN_HAZE.degrade(clean, np.random.default_rng(seed))
    restored = restore(model, hazy)
    finished = time.perf_counter()

    shown = [_eight_bit(picture) for picture in (hazy, restored, clean)]
    before, after, target = (_batch([picture]) for picture in (hazy, restored, clean))
    result = DemoResult(
        psnr_before=psnr(before, target),
        psnr_after=psnr(after, target),
        ssim_before=ssim(before, target),
        ssim_after=ssim(after, target),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=steps_taken,
        training_time=trained - started,
        restoring_time=finished - trained,
        timing=time_local_attention(),
        picture=output / PICTURE,
        page=output / PAGE,
    )
    tables, account = _tables(result), _account(result)
    images.write(side_by_side(shown, _captions(result)), result.picture)
    with atomic_file(result.page) as file:
        file.write(page.render(*shown, tables=tables, account=account).encode())
    for table in tables:
        console.print(_for_console(table))
    console.print(account)
    console.print(f"Look at {result.picture} and {result.page}", soft_wrap=True)
    return result


def train(
    photographs: list[Image.Image], steps: int, seconds: float, seed: int, console: Console
) -> tuple[IRNeXt, int]:
    """A small IRNeXt trained on hazy crops of `photographs`, and the number of steps it took."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it was
        torch.manual_seed(seed)
        model = IRNeXt(**SETTINGS).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    loss_function = DualDomainLoss()
    columns = ("Training", BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0, state="")
        started, step, share = time.perf_counter(), 0, 0.0
        while share < 1:
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * _schedule(share)
            hazy, clean = _training_batch(rng, photographs)
            loss = loss_function(model(hazy), clean)
            if not loss.isfinite():
                raise ArithmeticError(f"the loss is {loss.item()} at step {step + 1}: training failed")
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimiser.step()
            step += 1
            share = max(step / steps, _clock((time.perf_counter() - started) / seconds))
            progress.update(task, completed=min(share, 1), state=f"step {step}, loss {loss.item():.3f}")
    return model.eval(), step


def _clock(elapsed: float) -> float:
    """The share of the training that must be over after a share of the time limit.

    None in the first tenth, so that slow first steps do not disturb the fixed number of steps.
    """
    return (elapsed - 0.1) / 0.9


def _schedule(share: float) -> float:
    """The learning rate, of its peak, after a share of the training: a linear rise, then a cosine."""
    rise = min(1.0, (share + 1 / STEPS) / WARM_UP)
    return rise * (0.5 + 0.5 * math.cos(math.pi * min(share, 1)))


def _training_batch(rng: np.random.Generator, photographs: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Hazy and clean crops, (BATCH, 3, CROP, CROP) each."""
    clean = [_crop(rng, photographs[rng.integers(len(photographs))]) for _ in range(BATCH)]
    return _batch([TRAINING_HAZE.degrade(crop, rng) for crop in clean]), _batch(clean)


def _crop(rng: np.random.Generator, photograph: Image.Image) -> np.ndarray:
    """A random square of a photograph, any size from CROP up, shrunk to CROP: (CROP, CROP, 3) float32.

    Mirrored and turned at random, darkened or brightened, its colour channels in any order: a few
    photographs must stand for many, and the model must not expect a dark sky.
    """
    side = int(rng.integers(CROP, min(photograph.size) + 1))
    left, top = (int(rng.integers(size - side + 1)) for size in photograph.size)
    box = (left, top, left + side, top + side)
    crop = _unit(photograph.resize((CROP, CROP), Image.Resampling.BILINEAR, box))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gamma = np.float32(np.exp(rng.uniform(-LARGEST_LOG_GAMMA, LARGEST_LOG_GAMMA)))
    return np.rot90(crop, rng.integers(4))[..., rng.permutation(3)] ** gamma


def _photograph(name: str) -> Image.Image:
    """A photograph from the installed scikit-image, RGB."""
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise ModuleNotFoundError(
            "the demonstration takes its photographs from scikit-image: pip install 'irnext[demo]'"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this scikit-image lacks its photographs; install its wheel from PyPI"
        )
    return images.read(path).convert("RGB")


def _unit(picture: Image.Image) -> np.ndarray:
    """An 8-bit RGB picture as (H, W, 3) float32 in [0, 1]."""
    return np.asarray(picture, dtype=np.float32) / 255


def _eight_bit(picture: np.ndarray) -> Image.Image:
    """A float picture (H, W, 3) in [0, 1], rounded to 8 bits."""
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def _batch(pictures: list[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) as one (N, 3, H, W)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def time_local_attention(shape: tuple[int, int, int, int] = (1, 32, 128, 128), runs: int = 15) -> Timing:
    """Time `LocalAttention` against its published formulation, after checking that they agree.

    Raises ArithmeticError where the outputs differ by more than rounding: such times mean nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LocalAttention(shape[1])
    for gain in (module.low_gain, module.high_gain, module.inner_gain):
        # They start at zero, where the module is the identity and a comparison shows nothing.
        torch.nn.init.normal_(gain, generator=generator)
    module.eval()
    z = torch.randn(shape, generator=generator).requires_grad_()
    with torch.no_grad():
        ours, published = module(z), published_local_attention(module, z)
    difference = ((ours - published).abs().max() / published.abs().max()).item()
    if not difference < 1e-5:
        raise ArithmeticError(f"local attention differs from its published formulation by {difference:.1e}")

    with torch.no_grad():
        forward = _medians((lambda: published_local_attention(module, z), lambda: module(z)), runs)
    step = _medians(
        (lambda: published_local_attention(module, z).sum().backward(), lambda: module(z).sum().backward()),
        runs,
    )
    return Timing(shape, forward, step, difference)


def published_local_attention(module: LocalAttention, z: Tensor) -> Tensor:
    """`module(z)` as the published code forms it: every pixel's neighbours unfolded, then summed."""
    n, c, h, w = z.shape
    margin = module.kernel_size // 2
    mean = z.mean((2, 3), keepdim=True)
    weights = module.norm(module.project(mean)).reshape(n, module.groups, 1, -1, 1).tanh()
    neighbours = F.unfold(F.pad(z, (margin,) * 4, "reflect"), module.kernel_size)
    neighbours = neighbours.reshape(n, module.groups, c // module.groups, -1, h * w)
    low = (weights * neighbours).sum(3).reshape(n, c, h, w)
    low = low * (module.inner_gain + 1) - module.inner_gain * mean
    return low * module.low_gain[:, None, None] + z * (module.high_gain[:, None, None] + 1)


def _medians(functions: Sequence[Callable[[], object]], runs: int) -> tuple[float, float]:
    """The median time of each function in seconds, run in turn so that a disturbance hits all."""
    times = [[] for _ in functions]
    for run_index in range(runs + 2):  # the first two warm up
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if run_index >= 2:
                taken.append(time.perf_counter() - started)
    return tuple(float(np.median(taken)) for taken in times)


def side_by_side(pictures: list[Image.Image], captions: list[str], panel: int = 340) -> Image.Image:
    """Pictures of one size in a row, `panel` pixels wide each, their captions below."""
    width, height = pictures[0].size
    size = (panel, round(height * panel / width))
    font = ImageFont.load_default(panel / 25)
    margin = panel // 50
    strip = panel // 12
    sheet = Image.new(
        "RGB", ((panel + margin) * len(pictures) + margin, size[1] + margin + strip), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = margin + index * (panel + margin)
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, margin))
        middle = (left + panel / 2, margin + size[1] + strip / 2)
        draw.text(middle, caption, fill=(30, 30, 30), font=font, anchor="mm")
    return sheet


def _captions(result: DemoResult) -> list[str]:
    """One line below each picture."""
    return [
        f"hazy: {result.psnr_before:.2f} dB, SSIM {result.ssim_before:.3f}",
        f"restored: {result.psnr_after:.2f} dB, SSIM {result.ssim_after:.3f}",
        "clean (not seen in training)",
    ]


def _tables(result: DemoResult) -> list[page.Table]:
    """Every number with its protocol or shape."""
    timing = result.timing
    quality = page.Table(
        ("Unseen photograph", "hazy", "restored", "gain"),
        [
            (
                "PSNR (irnext-rgb)",
                f"{result.psnr_before:.2f} dB",
                f"{result.psnr_after:.2f} dB",
                f"{result.psnr_after - result.psnr_before:+.2f} dB",
            ),
            (
                "SSIM (ssim-rgb)",
                f"{result.ssim_before:.4f}",
                f"{result.ssim_after:.4f}",
                f"{result.ssim_after - result.ssim_before:+.4f}",
            ),
        ],
    )
    speed = page.Table(
        (f"Local attention, {'x'.join(map(str, timing.shape))}", "published", "irnext", "speed-up"),
        [
            (name, f"{published * 1e3:.2f} ms", f"{ours * 1e3:.2f} ms", f"{published / ours:.1f}x")
            for name, (published, ours) in (
                ("forward", timing.forward),
                ("forward and backward", timing.step),
            )
        ],
    )
    return [quality, speed]


def _account(result: DemoResult) -> str:
    """What was done, in two sentences."""
    return (
        f"A model of {result.parameters:,} parameters was trained for {result.steps} steps in "
        f"{result.training_time:.0f} s on {len(TRAINING)} other photographs, and restored this one in "
        f"{result.restoring_time:.1f} s ({torch.get_num_threads()} CPU threads). Local attention was timed "
        f"as called, memory allocation included, against the published unfold formulation in float32; "
        f"their outputs differ by at most {result.timing.difference:.0e} of the largest value."
    )


def _for_console(table: page.Table) -> ConsoleTable:
    printed = ConsoleTable()
    for heading in table.headings:
        printed.add_column(heading, justify="left" if heading == table.headings[0] else "right")
    for row in table.rows:
        printed.add_row(*row)
    return printed
