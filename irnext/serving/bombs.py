"""Small files that would take much memory: Pillow is kept from them.

By its header it refuses what has too many pixels, but not what lies about the rest: in a TIFF, and in EXIF
data, a thousand tags may name the same megabytes, and a tile may be larger than its picture.
"""

from __future__ import annotations

import functools
import os
import struct
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1)) | {16: 8}  # bytes by type of value
BYTES = (1, 2, 6, 7)  # the types whose values stay bytes; of others each becomes a Python object
NUMBERS = 2**20  # of these
SHORT, LONG = 3, 4
WIDTH, TILE_WIDTH, TILE_LENGTH = 256, 322, 323


def guard_pillow(pixels: int) -> None:
    """Let Pillow, in all of this process, take no bombs, and no picture of more pixels than these."""
    Image.MAX_IMAGE_PIXELS = pixels / 2  # it takes up to twice that
    load = TiffImagePlugin.ImageFileDirectory_v2.load

    @functools.wraps(load)
    def load_bounded(directory: TiffImagePlugin.ImageFileDirectory_v2, file: BinaryIO) -> None:
        if check_tags(directory, file, pixels):
            load(directory, file)
        else:
            directory.reset()

    TiffImagePlugin.ImageFileDirectory_v2.load = load_bounded


def check_tags(directory: TiffImagePlugin.ImageFileDirectory_v2, file: BinaryIO, pixels: int) -> bool:
    """Whether tags, which start where the file stands, take no more than it; their values are not read.

    EXIF data that takes more is damaged, often, and left out. Raises ValueError for a TIFF that does, or
    states its tiles as none does, and DecompressionBombError for one with a tile of more pixels.
    """
    start = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(start)
    order = "<" if directory.prefix == b"II" else ">"
    counted, layout = ("Q", "HHQ8s") if directory._bigtiff else ("H", "HHL4s")
    head, entry = struct.Struct(order + counted), struct.Struct(order + layout)
    count = head.unpack(file.read(head.size).ljust(head.size, b"\0"))[0]
    table = file.read(min(count * entry.size, length))
    file.seek(start)

    size, numbers, tiles = 0, 0, []
    of_picture = False
    for tag, kind, values, content in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        of_picture |= tag == WIDTH
        if values * SIZES.get(kind, 0) <= length:  # else Pillow stops here, as at a damaged one
            size += values * SIZES.get(kind, 0)
            numbers += 0 if kind in BYTES else values
        if tag in (TILE_WIDTH, TILE_LENGTH):
            tiles.append((tag, kind, content))
    within = size <= length and numbers <= NUMBERS
    if of_picture:
        if not within:
            raise ValueError("its tags take more than the file")
        check_tiles(tiles, order, pixels)
    return within


def check_tiles(tiles: list[tuple[int, int, bytes]], order: str, pixels: int) -> None:
    """Raise for tags of tiles (number, type and content) that make for more pixels, or are not as usual."""
    sides = {TILE_WIDTH: 1, TILE_LENGTH: 1}
    for tag, kind, content in tiles:
        if kind not in (SHORT, LONG):
            raise ValueError(f"the side of a tile is of type {kind}: it must be {SHORT} or {LONG}")
        side = struct.unpack_from(order + ("H" if kind == SHORT else "L"), content)[0]
        sides[tag] = max(sides[tag], side)  # of two, Pillow takes the last and libtiff the first
    if sides[TILE_WIDTH] * sides[TILE_LENGTH] > pixels:
        raise Image.DecompressionBombError("a tile is too large")
