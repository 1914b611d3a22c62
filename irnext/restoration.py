"""Restoring pictures of any size, in memory (`restore`) and in files (`restore_files`)."""

from __future__ import annotations

import copy
import glob
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from . import images
from .bands import MemoryLimitError, whole_memory
from .devices import check_device
from .files import output_folder
from .memory import available_memory, format_size, parse_size
from .model import IRNeXt
from .optimization import OptimizedModel, optimize

# What IRNeXt needs; models of other architectures say their own.
SIZE_MULTIPLE, MINIMUM_SIZE = 32, 64
# Resizing and filtering leave values a little outside [0, 1]: beyond these the range is another.
LOWEST, HIGHEST = -0.25, 2.0
HALF = (torch.float16, torch.bfloat16)
AUTO = "auto"
SHARE_OF_FREE = 0.9  # of the free memory, with max_memory="auto"


def restore(
    model: nn.Module,
    image: Image.Image | np.ndarray | Tensor,
    *,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Image.Image | np.ndarray | Tensor:
    """Restore a picture of any size from 1x1 pixels.

    The picture is continued by reflection to the right and below, to a multiple of
    `model.size_multiple` (32) and at least `model.minimum_size` (64) pixels; the result is cropped
    and clamped to [0, 1]. The continuation is part of the result, as in the published evaluation:
    the plane means see it. The model runs in eval mode and is left as it was.

    Without `tile` and `max_memory` the whole picture goes through the model at once. `max_memory`
    bounds the memory of an IRNeXt exactly: layers are computed in bands where the picture is large,
    with the statistics of the whole picture. Tiles bound the memory of any model, and further, but are
    not exact: the plane means and the InstanceNorm of IRNeXt then see one tile instead of the
    picture. They are exact for a model whose output depends on at most overlap / 4 pixels around.

    Args:
        model: any module from (N, 3, H, W) to the same, or to a list whose last item that is.
        image: a PIL image (see `irnext.images` for its modes; the EXIF orientation is not applied);
            an array (H, W, 3) of uint8, or floating-point in [0, 1]; or a floating-point tensor
            (3, H, W) or (N, 3, H, W) in [0, 1]. Values a little outside are taken as they are;
            an empty batch comes back as it is.
        tile: side of square tiles in pixels, a multiple of 32; None for the whole picture.
        overlap: pixels shared by neighbouring tiles, at most tile / 2. The outer quarter of it is
            not used, where the tile's edge disturbs the model; over the inner half one tile fades
            into the other.
        max_memory: bytes, or a text such as "8G" or "500M", that restoring may take beside the model
            and the picture given; "auto" for nine tenths of what is free, where that is known. The
            model is an IRNeXt, optimized or not; the latter is optimized for this call.
        dtype: what to compute in; None for the model's own type. float16 and bfloat16 run a
            float32 model by autocast, any other change runs a copy of the model.
        device: where to compute; None for where the model is. A copy of the model goes elsewhere.

    Returns:
        The restored picture: same kind, size, type and device as `image`.

    Raises:
        ValueError: a picture of another shape, type or range, NaN or infinite values, tiles that
            do not fit the rule, a device that cannot be used; a `max_memory` that is no size, is
            lower than this picture needs, or is for a model that cannot be bounded.
        FloatingPointError: the model's output is not finite, as in float16 beyond its range.
        MemoryError: the picture, or the tile, is too large for the device.
    """
    _check_tiles(model, tile, overlap)
    _check_memory(model, tile, max_memory)
    options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype, "device": device}
    if isinstance(image, Image.Image):
        simple = images.simplify(image)
        return images.with_colour(simple, restore(model, images.colour(simple), **options))
    if isinstance(image, np.ndarray):
        batch = _batch_of_array(image)
    elif isinstance(image, Tensor):
        batch = _batch_of_tensor(image)
    else:
        raise ValueError(f"the picture is a {type(image).__name__}: give a PIL image, an array or a tensor")
    _check_values(batch)
    if not len(batch):
        return image
    height, width = batch.shape[2:]
    fallback = device or batch.device
    batch = _continued(batch, *_sizes(model))
    if isinstance(image, Tensor) and batch.data_ptr() == image.data_ptr():
        batch = batch.clone()  # models may write over what they get
    model = _moved(model, dtype, device)
    if max_memory is not None or isinstance(model, OptimizedModel):
        model, dtype = _optimized(model, dtype), None
    with _inference(model, dtype, fallback, max_memory) as run:
        restored = run(batch) if tile is None else _run_tiles(run, batch, tile, overlap, _sizes(model)[0])
    result = restored[:, :, :height, :width].clamp(0, 1)
    if isinstance(image, Tensor):
        return result.reshape(image.shape).to(image.dtype)
    values = result[0].permute(1, 2, 0).numpy()
    if image.dtype == np.uint8:
        values = np.rint(values * 255)
    return np.ascontiguousarray(values, dtype=image.dtype)


def _batch_of_array(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (1, 3, H, W), uint8 divided by 255."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the array has shape {image.shape}: it must be (H, W, 3)")
    if image.dtype == np.uint8:
        values = np.divide(image, 255, dtype=np.float32)
    elif image.dtype.kind == "f" and image.itemsize <= 8:
        values = image.astype(np.float64 if image.itemsize == 8 else np.float32)
    else:
        raise ValueError(f"the array is {image.dtype}: it must be uint8, or floating-point in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


def _batch_of_tensor(image: Tensor) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"the tensor has shape {tuple(image.shape)}: it must be (3, H, W) or (N, 3, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"the tensor is {image.dtype}: it must be floating-point in [0, 1]")
    batch = image.detach().reshape(-1, *image.shape[-3:]) if image.ndim == 3 else image.detach()
    return batch.float() if batch.dtype in HALF else batch


def _check_values(batch: Tensor) -> None:
    if 0 in batch.shape[2:]:
        raise ValueError(f"the picture has {batch.shape[3]}x{batch.shape[2]} pixels: at least 1x1 is needed")
    if not batch.isfinite().all():
        raise ValueError("the picture holds NaN or infinite values: it must be in [0, 1]")
    if not batch.numel():
        return
    if batch.min() < LOWEST:
        raise ValueError(
            f"the picture holds values down to {batch.min():g}: floating-point pictures must be in [0, 1]; "
            "bring [-1, 1] there by (x + 1) / 2"
        )
    if batch.max() > HIGHEST:
        raise ValueError(
            f"the picture holds values up to {batch.max():g}: floating-point pictures must be in [0, 1]; "
            "divide by 255, or give an array of uint8"
        )


def _sizes(model: nn.Module) -> tuple[int, int]:
    """The multiple and the minimum of the sides that a model takes, in pixels."""
    return getattr(model, "size_multiple", SIZE_MULTIPLE), getattr(model, "minimum_size", MINIMUM_SIZE)


def _check_tiles(model: nn.Module, tile: int | None, overlap: int) -> None:
    if tile is None:
        return
    multiple, minimum = _sizes(model)
    smallest = _next_multiple(minimum, multiple)
    if tile < smallest or tile % multiple:
        lower = max(smallest, tile // multiple * multiple)
        upper = max(smallest, lower + multiple) if tile > lower else lower
        near = f"{lower}" if lower == upper else f"{lower} and {upper}"
        raise ValueError(
            f"tile is {tile}: it must be a multiple of {multiple} and at least {smallest}; nearest: {near}"
        )
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap is {overlap}: it must be from 0 to half the tile, {tile // 2}")


def _check_memory(model: nn.Module, tile: int | None, max_memory: int | str | None) -> None:
    if max_memory is None:
        return
    if max_memory != AUTO:
        parse_size(max_memory)
    if tile is not None:
        raise ValueError("tile and max_memory exclude each other: tiles need less memory but are not exact")
    if type(model) not in (IRNeXt, OptimizedModel):
        raise ValueError(f"max_memory is for an IRNeXt, and the model is {type(model).__name__}: use tile")


def _next_multiple(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _moved(model: nn.Module, dtype: torch.dtype | None, device: str | torch.device | None) -> nn.Module:
    """The model on `device`, able to compute in `dtype`: itself where it is, else a copy."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: it must be a floating-point type")
    if device is not None:
        check_device(device)
    held = _first_weight(model)
    if held is None:
        return model
    device = held.device if device is None else torch.device(device)
    by_autocast = dtype in HALF and held.dtype == torch.float32
    dtype = held.dtype if dtype is None or by_autocast else dtype
    same_device = device.type == held.device.type and device.index in (None, held.device.index)
    if same_device and dtype == held.dtype:
        return model
    return copy.deepcopy(model).to(device, dtype)


def _optimized(model: nn.Module, dtype: torch.dtype | None) -> OptimizedModel:
    """The model optimized for `dtype`: itself where it is already."""
    if isinstance(model, OptimizedModel):
        computes_in = model.dtype or _first_weight(model).dtype
        if dtype in (None, computes_in):
            return model
        return optimize(model, dtype, model.channels_last, model.graphs)
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    return optimize(model, dtype)


def _run_within(max_memory: int | str, model: OptimizedModel, x: Tensor, given: Tensor) -> list[Tensor]:
    """The model's results of x, made of `given`; both are here already and count, except with "auto"."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (x, given) if tensor.device == x.device}
    taken = sum(held.values())
    limit = _share_of_free(x.device) if max_memory == AUTO else parse_size(max_memory) - taken
    try:
        return model(x) if limit is None else model(x, max_memory=max(limit, 1))
    except MemoryLimitError as error:
        if max_memory == AUTO:
            raise
        raise MemoryLimitError(error.shape, limit + taken, error.least + taken) from None


def _share_of_free(device: torch.device) -> int | None:
    free = available_memory(device)
    return None if free is None else int(SHARE_OF_FREE * free)


def _first_weight(model: nn.Module) -> Tensor | None:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


@contextmanager
def _inference(
    model: nn.Module,
    dtype: torch.dtype | None,
    fallback: str | torch.device,
    max_memory: int | str | None,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model as a function from pictures to restored ones, in eval mode for as long as it lasts."""
    weight = _first_weight(model)
    held, device = (weight.dtype, weight.device) if weight is not None else (dtype, torch.device(fallback))
    autocast = dtype in HALF and held == torch.float32

    def run(x: Tensor) -> Tensor:
        try:
            moved = x.to(device=device, dtype=held)
            outputs = model(moved) if max_memory is None else _run_within(max_memory, model, moved, x)
        except (MemoryError, RuntimeError) as error:
            if _is_out_of_memory(error):
                raise MemoryError(
                    f"not enough memory on {device} for {x.shape[3]}x{x.shape[2]} pixels at once: "
                    "bound it by max_memory, or use tiles, or smaller ones"
                ) from error
            raise
        y = outputs[-1] if isinstance(outputs, (list, tuple)) else outputs
        if y.shape != x.shape:
            raise ValueError(f"the model makes {tuple(y.shape)} of {tuple(x.shape)}: the shape must stay")
        if not y.isfinite().all():
            raise FloatingPointError(
                f"the model's output is not finite in {dtype or held}: try float32, or check the weights"
            )
        return y.to(x.device, x.dtype)

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, dtype if autocast else torch.bfloat16, enabled=autocast),
        ):
            yield run
    finally:
        for module in training:
            module.training = True


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate memory" in str(error) or "not enough memory" in str(error)  # the CPU's allocator


def _continued(batch: Tensor, multiple: int, minimum: int) -> Tensor:
    """(N, 3, H, W) continued to a size that the model takes; itself where it has one."""
    for axis in (2, 3):
        size = _next_multiple(max(batch.shape[axis], minimum), multiple)
        if size > batch.shape[axis]:
            batch = _reflect_to(batch, axis, size)
    return batch


def _reflect_to(x: Tensor, axis: int, size: int) -> Tensor:
    """Continue x along one axis to `size` by reflection without repeating the border, as often as needed."""
    length = x.shape[axis]
    period = max(1, 2 * (length - 1))
    place = torch.arange(size, device=x.device) % period
    return x.index_select(axis, torch.minimum(place, period - place))


def _run_tiles(
    run: Callable[[Tensor], Tensor], batch: Tensor, tile: int, overlap: int, multiple: int
) -> Tensor:
    """Run the model tile by tile and blend the results."""
    result = torch.zeros_like(batch)
    rows = _tiles_along(batch.shape[2], tile, overlap, multiple)
    columns = _tiles_along(batch.shape[3], tile, overlap, multiple)
    for (row, row_weight), (column, column_weight) in itertools.product(rows, columns):
        weight = (row_weight[:, None] * column_weight).to(batch)
        result[:, :, row, column] += weight * run(batch[:, :, row, column])
    return result


def _tiles_along(size: int, tile: int, overlap: int, multiple: int) -> list[tuple[slice, Tensor]]:
    """Where tiles lie along one axis and how their pixels count; at every pixel the weights sum to 1.

    Tiles start at multiples of `multiple`, so that the model's down-sampling keeps the same pixels;
    neighbours then share at least `overlap`. At an edge inside the picture a weight is 0 over a
    quarter of the overlap, then rises in a straight line.
    """
    stride = (tile - overlap) // multiple * multiple
    tile = min(tile, size)
    starts = [*range(0, size - tile, stride), size - tile]
    margin = overlap // 4
    rise = ((torch.arange(tile) - margin + 1) / (overlap - 2 * margin + 1)).clamp(0, 1).double()
    total = torch.zeros(size, dtype=torch.float64)
    weights = []
    for start in starts:
        weight = torch.ones_like(rise)
        if start > 0:
            weight = weight * rise
        if start + tile < size:
            weight = weight * rise.flip(0)
        total[start : start + tile] += weight
        weights.append(weight)
    spans = [slice(start, start + tile) for start in starts]
    return [(span, weight / total[span]) for span, weight in zip(spans, weights, strict=True)]


@dataclass
class Report:
    """What `restore_files` did: the files written, and per failed input one line that says why."""

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def restore_files(
    model: nn.Module,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    compare: bool = False,
) -> Report:
    """Restore picture files, with a progress bar on the terminal's error output.

    Args:
        model, tile, overlap, max_memory, dtype, device: as in `restore`; a picture for which "auto" means
            bands is noted on the terminal's error output.
        inputs: files, folders (their pictures by suffix, not those of sub-folders) and patterns such
            as "shots/*.jpg" or "shots/**/*.png"; a file named twice is restored once.
        output: a folder, made if missing, where each result keeps its input's name (formats that
            are not written, such as GIF, become PNG); or, for exactly one picture, a file name with
            the suffix of the format wanted.
        compare: also write NAME-compare.png beside each result, before on the left, after right.
            NAME is the result's whole name: a.jpg-compare.png, as a.png may stand beside a.jpg.

    Returns:
        What was written, and what failed: one unreadable picture does not stop the others. An
        existing result is replaced, whole or not at all.

    Raises:
        OSError: an input that is missing, an output that cannot be written.
        ValueError: no pictures, results that would take each other's name or overwrite an input,
            or any option that `restore` refuses.
        All before the model runs.
    """
    sources = find_pictures(inputs)
    targets = _targets(sources, Path(output))
    _check_collisions(sources, targets, compare)
    _check_tiles(model, tile, overlap)
    _check_memory(model, tile, max_memory)
    model = _moved(model, dtype, device)
    if max_memory is not None or isinstance(model, OptimizedModel):
        model, dtype = _optimized(model, dtype), None
    options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype}
    report = Report()
    with output_folder(targets[0].parent), _progress() as progress:
        task = progress.add_task("restoring", total=len(sources))
        for source, target in zip(sources, targets, strict=True):
            progress.update(task, description=source.name)
            try:
                before = _read_for(source, target)
                if max_memory == AUTO and (note := _note_of_bands(model, *before.size)):
                    progress.console.print(
                        f"{source.name}: {note}", markup=False, highlight=False, soft_wrap=True
                    )
                after = restore(model, before, **options)
                images.write(after, target)
                report.written.append(target)
                if compare:
                    images.write(images.side_by_side(before, after), compare_path(target))
                    report.written.append(compare_path(target))
            except (ValueError, OSError, FloatingPointError, MemoryError) as error:
                report.failed[source] = _reason(error, source)
            progress.advance(task)
    return report


def _note_of_bands(model: OptimizedModel, width: int, height: int) -> str | None:
    """What is to be said where the free memory does not allow the whole picture at once."""
    weight = _first_weight(model)
    limit = _share_of_free(weight.device)
    picture = _continued(torch.empty(1, 3, height, width, device="meta"), *_sizes(model))
    whole = whole_memory(model.settings["width"], model.dtype or weight.dtype, picture)
    if limit is None or whole <= limit:
        return None
    return (
        f"at once it would take {format_size(whole)} of memory and {format_size(limit)} may be used: "
        "computed in bands, with the same result within rounding"
    )


def find_pictures(inputs: Sequence[str | os.PathLike]) -> list[Path]:
    """The picture files that files, folders and patterns stand for, in order, each once."""
    found: dict[Path, Path] = {}
    for given in map(os.fspath, inputs):
        for path in _expand(given):
            found.setdefault(path.resolve(), path)
    if not found:
        raise ValueError("no pictures given")
    return list(found.values())


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        candidates = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    elif path.exists():
        return [path]
    elif glob.has_magic(given):
        candidates = sorted(map(Path, glob.glob(given, recursive=True)))
    else:
        raise FileNotFoundError(f"{given}: no such file or folder")
    pictures = [p for p in candidates if p.suffix.lower() in images.READ_SUFFIXES and p.is_file()]
    if not pictures:
        where = "no pictures in this folder" if path.is_dir() else "no pictures match"
        raise ValueError(f"{given}: {where} (looked for {', '.join(images.READ_SUFFIXES)})")
    return pictures


def _targets(sources: list[Path], output: Path) -> list[Path]:
    """Where each result goes."""
    is_picture_name = output.suffix.lower() in {*Image.registered_extensions(), *images.FORMATS}
    if output.is_dir() or not is_picture_name:
        if output.exists() and not output.is_dir():
            raise ValueError(
                f"{output}: this is a file, not a folder; the output is a folder or a picture's name"
            )
        return [output / _result_name(source) for source in sources]
    if len(sources) > 1:
        raise ValueError(f"{output}: names one picture, but there are {len(sources)} inputs; name a folder")
    images.check_can_hold(output, "L")  # every format holds grey: this checks the suffix
    return [output]


def _result_name(source: Path) -> str:
    return source.name if source.suffix.lower() in images.FORMATS else f"{source.stem}.png"


def compare_path(target: Path) -> Path:
    """Where the side-by-side picture of a result goes."""
    return target.with_name(f"{target.name}-compare.png")


def _check_collisions(sources: list[Path], targets: list[Path], compare: bool) -> None:
    """Raise ValueError where two results share a name or a result would overwrite an input."""
    originals = {source.resolve() for source in sources}
    makers: dict[Path, Path] = {}
    for source, target in zip(sources, targets, strict=True):
        for result in (target, compare_path(target)) if compare else (target,):
            if result.resolve() in originals:
                raise ValueError(f"{result}: the result would overwrite an input; name another output")
            key = Path(os.path.normcase(result))
            if key in makers:
                raise ValueError(f"{makers[key]} and {source} would both be written to {result}")
            makers[key] = source


def _read_for(source: Path, target: Path) -> Image.Image:
    """The picture, simplified; refused where the target's format could not hold its result."""
    before = images.read(source)
    try:
        before = images.simplify(before)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    images.check_can_hold(target, before.mode)
    return before


def _reason(error: Exception, source: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or source}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if str(source) in text else f"{source}: {text}"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
