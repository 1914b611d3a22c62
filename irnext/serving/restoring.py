"""From a file that somebody uploaded to the restored one, and pictures of both for the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .. import images
from ..memory import give_back_free_memory
from .storage import Storage

Restore = Callable[[Image.Image], Image.Image]
TRIAL = (64, 64)  # pixels
SHOWN = 2048  # pixels of the longest side of what the page shows
# What is written can be read, and GIF: no format whose reader starts other programs, as EPS does.
READ = sorted({format.name for format in images.FORMATS.values()} | {"GIF"})


@dataclass(frozen=True)
class Result:
    """The restored picture and both for the page, as files; the size (width, height); the time in ms."""

    picture: Path
    before: Path
    after: Path
    size: tuple[int, int]
    milliseconds: float


class Restorer:
    """Restores files one at a time, by models that are loaded once each, when they are first asked for.

    How large a picture may be, `PIL.Image.MAX_IMAGE_PIXELS` says: Pillow takes less than twice that, by
    the file's header, before it decodes anything.
    """

    def __init__(self, models: Mapping[str, Callable[[], Restore]], storage: Storage):
        """Take the models by what they are called: functions that load one and return what restores by it."""
        self.models, self.storage = models, storage
        self._loaded: dict[str, Restore] = {}

    def load(self, name: str) -> Restore:
        """What restores by a model; ValueError for a name that is none."""
        if name not in self.models:
            raise ValueError(f"there is no model {name!r}: choose one of {', '.join(self.models)}")
        if name not in self._loaded:
            self._loaded[name] = self.models[name]()
        return self._loaded[name]

    def try_out(self, names: Sequence[str]) -> None:
        """Load models and restore a small picture by each, so that it shows now where something is wrong."""
        for name in names:
            self.load(name)(Image.new("RGB", TRIAL))

    def __call__(self, source: Path, model: str) -> Result:
        """Restore the picture in a file, as `irnext restore` does, into a PNG; 32-bit grey into a TIFF.

        Raises ValueError, which speaks of the file without its folder, for what is no picture or too
        large, and for an unknown model; else what `irnext.restore` raises.
        """
        restore = self.load(model)
        try:
            before = images.simplify(read(source))
            started = time.perf_counter()
            after = restore(before)
            taken = time.perf_counter() - started
            return self._write(source.stem, before, after, 1000 * taken)
        finally:
            give_back_free_memory()

    def _write(self, stem: str, before: Image.Image, after: Image.Image, milliseconds: float) -> Result:
        folder = self.storage.new_folder()
        picture = folder / f"{stem}-restored{'.tif' if after.mode == 'F' else '.png'}"
        images.write(after, picture)
        shown = []
        for name, image in (("before", before), ("after", after)):
            shown.append(folder / f"{name}.png")
            images.write(for_page(image, after.size), shown[-1])
        self.storage.make_room()
        return Result(picture, *shown, after.size, milliseconds)


def read(path: Path) -> Image.Image:
    """`irnext.images.read` for the few formats of `READ`, with errors that name no folder."""
    try:
        return images.read(path, READ)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is no longer here: upload it again") from None
    except ValueError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
            raise ValueError(f"{path.name}: the picture is too large: at most {most:g} megapixels") from None
        raise ValueError(str(error).replace(str(path), path.name)) from None


def for_page(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """What the page shows of a simplified picture: 8-bit, no alpha; no larger than `size`, nor than fits."""
    values = np.rint(images.colour(image) * 255).astype(np.uint8)
    shown = images.enlarged(Image.fromarray(values), size)
    shown.thumbnail((SHOWN, SHOWN))
    if image.mode in ("RGB", "RGBA") and "icc_profile" in image.info:
        shown.info["icc_profile"] = image.info["icc_profile"]
    return shown
