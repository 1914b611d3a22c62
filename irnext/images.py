"""Reading and writing pictures with Pillow: upright, with their profile, and never half written.

What is kept, by kind of picture:

- grey, also 1-bit, stays grey of 8 bits; 16-bit grey keeps its 16 bits in PNG, TIFF, PGM and PNM;
- transparency of every kind (alpha channel, palette entry, transparent colour) comes back untouched
  as an alpha channel; palettes become RGB, since a restored picture has more colours than a palette;
- CMYK, YCbCr and HSV become RGB, CMYK by way of its colour profile where it has one;
- 32-bit floating-point grey in [0, 1] stays so in TIFF;
- colour, and grey with alpha, of 16 bits per channel is read, and so written, with 8: Pillow has no
  such modes;
- EXIF data and colour profile, and the resolution (dots per inch) in PNG, JPEG, TIFF and BMP.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from .files import atomic_file


class Format(NamedTuple):
    """How one file format is written, and the modes it holds without loss of bits or alpha."""

    name: str
    modes: tuple[str, ...]
    options: dict


_JPEG = Format("JPEG", ("L", "RGB"), {"quality": 95, "subsampling": 0})  # 0: 4:4:4
_TIFF = Format("TIFF", ("L", "LA", "RGB", "RGBA", "I;16", "F"), {"compression": "tiff_adobe_deflate"})
FORMATS = {
    ".png": Format("PNG", ("L", "LA", "RGB", "RGBA", "I;16"), {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": Format("WEBP", ("L", "LA", "RGB", "RGBA"), {"lossless": True, "exact": True}),
    ".bmp": Format("BMP", ("L", "RGB"), {}),
    ".ppm": Format("PPM", ("L", "RGB"), {}),
    ".pgm": Format("PPM", ("L", "I;16"), {}),
    ".pnm": Format("PPM", ("L", "RGB", "I;16"), {}),
}
READ_SUFFIXES = (*FORMATS, ".gif")

# In a TIFF these stand among the tags that describe its layout, which a new file must not inherit:
# description, make, model, software, date, artist, copyright, and the Exif and GPS directories.
_CAMERA_DIRECTORIES = {34665, 34853}
_CAMERA_TAGS = {270, 271, 272, 305, 306, 315, 33432, *_CAMERA_DIRECTORIES}

_WITH_RESOLUTION = ("PNG", "JPEG", "TIFF", "BMP")


def read(path: str | os.PathLike, formats: Sequence[str] | None = None) -> Image.Image:
    """The picture in a file, upright (its EXIF orientation applied and removed), fully decoded.

    Of Pillow's formats only `formats` are tried, by default all. `info` keeps "exif" (bytes),
    "icc_profile" and "dpi". Raises OSError for a file that cannot be opened
    and ValueError, naming the file, for one that is no picture, is cut off or corrupt, or holds
    several frames (the preview pictures that phones store behind a JPEG do not count).
    """
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large pictures, our trade, and on damaged EXIF data
        try:
            image = Image.open(file, formats=formats)
            # To count the frames may take long, and nothing needs their number.
            if not getattr(image, "is_animated", False) or image.format == "MPO":
                return _upright(image)
        except Image.UnidentifiedImageError:
            raise ValueError(f"{path}: not a picture in a format that can be read") from None
        except Exception as error:  # decoders of broken files raise anything
            raise ValueError(f"{path}: the picture cannot be decoded: {error}") from error
    raise ValueError(f"{path}: has several frames; extract them into pictures first")


def _upright(image: Image.Image) -> Image.Image:
    source = image.format
    image.load()
    upright = ImageOps.exif_transpose(image)
    exif = image.getexif()
    if source == "TIFF":
        for tag in set(exif) - _CAMERA_TAGS:
            del exif[tag]
    turned = exif.pop(0x0112, 1) >= 5  # the orientation is applied
    if turned and "dpi" in upright.info:
        upright.info["dpi"] = upright.info["dpi"][::-1]
    upright.info.pop("exif", None)
    if exif:
        upright.info["exif"] = exif.tobytes()
    return upright


def check_can_hold(path: str | os.PathLike, mode: str) -> None:
    """Raise ValueError unless the format of `path` (by its suffix) holds pictures of `mode`."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: cannot write {suffix or 'a name without suffix'}; use {_list(FORMATS)}")
    if mode not in FORMATS[suffix].modes:
        kind = {"I;16": "16-bit grey", "F": "floating-point", "LA": "transparent", "RGBA": "transparent"}
        others = [name for name, format in FORMATS.items() if mode in format.modes]
        raise ValueError(
            f"{path}: {suffix} cannot hold a {kind.get(mode, mode)} picture without loss; "
            f"write {_list(others)} instead"
        )


def write(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture with what is kept beside its pixels, atomically; the suffix says the format.

    JPEG with quality 95 and full colour resolution (4:4:4), WebP and TIFF without loss; TIFF is
    compressed unless the EXIF data has directories of its own. Raises ValueError for a suffix that
    cannot be written, a picture that it cannot hold or that cannot be encoded, and OSError.
    """
    check_can_hold(path, image.mode)
    format = FORMATS[Path(path).suffix.lower()]
    kept = {key: image.info[key] for key in ("exif", "icc_profile") if image.info.get(key)}
    if format.name in _WITH_RESOLUTION and (resolution := _resolution(image)):
        kept["dpi"] = resolution
    options = format.options
    if format.name == "TIFF" and "exif" in kept:
        kept["exif"], has_directories = _exif_for_tiff(kept["exif"])
        if has_directories:  # which Pillow's compressing writer cannot write
            options = {"compression": "raw"}
    encoded = io.BytesIO()
    try:
        image.save(encoded, format.name, **options, **kept)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise anything
        raise ValueError(f"{path}: the picture cannot be encoded: {error}") from error
    with atomic_file(path) as file:
        file.write(encoded.getbuffer())


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch along x and y; None where they are not given or make no sense."""
    try:
        x, y = map(float, image.info.get("dpi", ()))
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (x, y) if all(math.isfinite(dots) and 1 <= dots <= 65535 for dots in (x, y)) else None


def _exif_for_tiff(exif: bytes) -> tuple[bytes, bool]:
    """EXIF data as a TIFF can hold it, and whether it has directories of its own.

    One inside these, of interoperability, is left out: Pillow would write where it stood in the
    source, and readers would find something else there.
    """
    tags = Image.Exif()
    tags.load(exif)
    if _CAMERA_DIRECTORIES.isdisjoint(tags):
        return exif, False
    tags.get_ifd(34665).pop(0xA005, None)
    return tags.tobytes(), True


def simplify(image: Image.Image) -> Image.Image:
    """The same picture in a mode that is restored as it is: L, LA, RGB, RGBA, I;16 or F.

    Raises ValueError for a picture without pixels, floating-point or 32-bit pictures beyond their
    range ([0, 1] and 0 to 65535), and modes that Pillow cannot turn into RGB.
    """
    if 0 in image.size:
        raise ValueError(f"the picture has {image.width}x{image.height} pixels: at least 1x1 is needed")
    if image.mode[0] in "IF":
        return _check_wide_grey(image)
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError:
        raise ValueError(
            f"pictures of mode {image.mode} are not supported: convert it to RGB first"
        ) from None


def _check_wide_grey(image: Image.Image) -> Image.Image:
    if "transparency" in image.info:
        raise ValueError("16-bit grey with a transparent value is not supported: give it an alpha channel")
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise ValueError(f"the floating-point picture spans {low:g} to {high:g}: it must be in [0, 1]")
        return image
    if low < 0 or high > 65535:
        raise ValueError(f"the picture spans {low} to {high}: at most 16 bits, 0 to 65535, are supported")
    result = Image.fromarray(values.astype(np.uint16))
    result.info = dict(image.info)
    return result


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            result = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):  # a broken profile is as good as none
            profile = None
    if not profile:
        result = image.convert("RGB")
    result.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    return result


def colour(image: Image.Image) -> np.ndarray:
    """The colours of a simplified picture: (H, W, 3) float32 in [0, 1], grey as three equal channels."""
    if image.mode == "F":
        values = np.asarray(image, np.float32)
    elif image.mode == "I;16":
        values = np.asarray(image).astype(np.float32) / 65535
    else:
        values = np.asarray(image.convert(image.mode.removesuffix("A"))).astype(np.float32) / 255
    return np.repeat(values[..., None], 3, 2) if values.ndim == 2 else values


def with_colour(image: Image.Image, values: np.ndarray) -> Image.Image:
    """A simplified picture with other colours, (H, W, 3) in [0, 1]: same mode, alpha and metadata.

    Grey is the mean of the three channels. Where there are more pixels of colour, alpha is enlarged.
    """
    if image.mode not in ("RGB", "RGBA"):
        values = values.mean(2, dtype=np.float32)
    if image.mode == "F":
        result = Image.fromarray(values)
    elif image.mode == "I;16":
        result = Image.fromarray(np.rint(values * 65535).astype(np.uint16))
    else:
        result = Image.fromarray(np.rint(values * 255).astype(np.uint8))
        if image.mode.endswith("A"):
            result.putalpha(enlarged(image.getchannel("A"), result.size))
    result.info = {key: value for key, value in image.info.items() if key in ("exif", "icc_profile", "dpi")}
    return result


def enlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture in another size, (width, height), by bicubic interpolation; itself where it has that."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two simplified pictures next to each other, the first in the size of the second: RGB, without alpha."""
    pictures = [Image.fromarray(np.rint(colour(image) * 255).astype(np.uint8)) for image in (before, after)]
    pictures[0] = enlarged(pictures[0], after.size)
    result = Image.fromarray(np.concatenate(pictures, 1))
    if before.mode in ("RGB", "RGBA") and "icc_profile" in before.info:
        result.info["icc_profile"] = before.info["icc_profile"]
    return result


def _list(names) -> str:
    return ", ".join(names)
