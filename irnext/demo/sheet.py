"""One sheet with pictures in rows, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, STRIP, TEXT = 6, 30, 17  # pixels: around a panel, its caption's height, the letters'
INK, PAPER = (30, 30, 30), (255, 255, 255)
FEWEST = 4  # panels that a row is laid out for: one alone would fill the sheet


class Panel(NamedTuple):
    """A picture, (H, W, 3) uint8, and the line below it."""

    picture: np.ndarray
    caption: str


def compose(rows: Sequence[Sequence[Panel]], width: int = 1240) -> Image.Image:
    """The panels in rows, each row as wide as the sheet; a row's pictures have one size."""
    strips = [_row(row, width) for row in rows if row]
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips) + MARGIN), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _row(panels: Sequence[Panel], width: int) -> Image.Image:
    """One row: a margin, the pictures, their captions."""
    pitch = (width - MARGIN) / max(len(panels), FEWEST)
    wide = round(pitch) - MARGIN
    high = round(wide * panels[0].picture.shape[0] / panels[0].picture.shape[1])
    strip = Image.new("RGB", (width, MARGIN + high + STRIP), PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(TEXT)
    for index, panel in enumerate(panels):
        left = MARGIN + round(index * pitch)
        shown = Image.fromarray(panel.picture).resize((wide, high), Image.Resampling.LANCZOS)
        strip.paste(shown, (left, MARGIN))
        middle = left + wide / 2, MARGIN + high + STRIP / 2
        draw.text(middle, panel.caption, fill=INK, font=font, anchor="mm")
    return strip
