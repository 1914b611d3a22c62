"""A self-contained web page: pictures to compare with a slider, and tables of numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from string import Template
from typing import NamedTuple

import numpy as np
from PIL import Image


class Table(NamedTuple):
    """Headings, and rows of as many cells; the first cell of a row names it."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Comparison(NamedTuple):
    """A degraded picture and the restored one, (H, W, 3) uint8, with a name and a line about them."""

    name: str
    degraded: np.ndarray
    restored: np.ndarray
    note: str


def render(
    comparisons: Sequence[Comparison], clean: np.ndarray, tables: Sequence[Table], account: Sequence[str]
) -> str:
    """The page as HTML: the pictures, of one size, lossless inside it; no other file is needed.

    The slider is a range input over the picture, so mouse, touch and keyboard all move it; radio
    buttons choose the comparison, and what the degraded picture is compared with.

    Args:
        comparisons: one or more.
        clean: the picture as it should be, (H, W, 3) uint8.
        tables, account: what stands below, the account in paragraphs.
    """
    pictures = [clean, *(picture for c in comparisons for picture in (c.degraded, c.restored))]
    if any(picture.shape != clean.shape for picture in pictures):
        raise ValueError(f"the pictures differ in size: {sorted({picture.shape for picture in pictures})}")
    height, width, _ = clean.shape
    return _PAGE.substitute(
        width=width,
        height=height,
        choices="\n".join(_choice(index, c) for index, c in enumerate(comparisons)),
        pictures="\n".join(
            [
                *(_pictures(index, c) for index, c in enumerate(comparisons)),
                _picture("right", "clean", "The original photograph", clean, hidden=True),
            ]
        ),
        note=escape(comparisons[0].note),
        tables="\n".join(map(_table, tables)),
        account="\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in account),
    )


def _choice(index: int, comparison: Comparison) -> str:
    """The radio button of a comparison."""
    checked = "" if index else " checked"
    return (
        f'<label><input type="radio" name="case" value="{index}" data-name="{escape(comparison.name)}" '
        f'data-note="{escape(comparison.note)}"{checked}> {escape(comparison.name)}</label>'
    )


def _pictures(index: int, comparison: Comparison) -> str:
    """Both pictures of a comparison; those of the first are shown before any choice."""
    name, hidden = comparison.name, index > 0
    restored = _picture("right", f"restored-{index}", f"Restored: {name}", comparison.restored, hidden)
    degraded = _picture("left", f"degraded-{index}", f"Degraded: {name}", comparison.degraded, hidden)
    return f"{restored}\n{degraded}"


def _picture(side: str, identity: str, description: str, picture: np.ndarray, hidden: bool) -> str:
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "WEBP", lossless=True)  # a third smaller than PNG
    data = base64.b64encode(encoded.getvalue()).decode()
    return (
        f'<img class="{side}" id="{identity}" alt="{escape(description)}"{" hidden" if hidden else ""} '
        f'src="data:image/webp;base64,{data}">'
    )


def _table(table: Table) -> str:
    headings = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in table.rows
    )
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>irnext: an unseen photograph restored</title>
<style>
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #fbfbfa; --line: #d5d8dc; --accent: #0b62c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #16181b; --line: #3a3f46; --accent: #7db7ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 52rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { margin: 0 0 .75rem; font-size: clamp(1.3rem, 4vw, 1.8rem); line-height: 1.25; }
fieldset { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 .75rem; padding: 0; border: 0; }
legend { float: left; margin-right: 1.25rem; }
.compare { --at: 50%; position: relative; aspect-ratio: $width / $height; overflow: hidden;
  border-radius: 8px; }
.compare:focus-within { outline: 3px solid var(--accent); outline-offset: 3px; }
.compare img { position: absolute; inset: 0; width: 100%; height: 100%; }
.compare .left { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.compare .bar { position: absolute; top: 0; bottom: 0; left: var(--at); width: 3px; margin-left: -1.5px;
  background: #fff; box-shadow: 0 0 4px #000a; pointer-events: none; }
.compare .bar::after { content: "\\2039\\2002\\203a"; position: absolute; top: 50%; left: 50%; width: 2.6rem;
  height: 2.6rem; border-radius: 50%; background: #fff; color: #1c1f24; font: 600 1.3rem/2.35rem sans-serif;
  text-align: center; white-space: nowrap; transform: translate(-50%, -50%); box-shadow: 0 0 6px #0008; }
/* The thumb is as wide as the handle, and the track longer by one thumb, so that they stay together. */
.compare input { position: absolute; top: 0; left: -1.3rem; width: calc(100% + 2.6rem); height: 100%;
  margin: 0; opacity: 0; appearance: none; cursor: ew-resize; touch-action: pan-y; }
.compare input::-webkit-slider-thumb { appearance: none; width: 2.6rem; height: 100vh; }
.compare input::-moz-range-thumb { width: 2.6rem; height: 100vh; border: 0; }
.label { position: absolute; top: .6rem; padding: .1rem .6rem; border-radius: 4px; background: #000a;
  color: #fff; font-size: .9rem; pointer-events: none; }
.label.before { left: .6rem; }
.label.after { right: .6rem; }
.note { margin: .5rem 0 0; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { width: 100%; margin-top: 1.5rem; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; }
tbody th { font-weight: 400; }
td:last-child { font-weight: 600; }
</style>
</head>
<body>
<main>
<h1>A photograph that the models never saw, restored</h1>
<fieldset>
<legend>Degraded by</legend>
$choices
</fieldset>
<fieldset>
<legend>Compare with</legend>
<label><input type="radio" name="right" value="restored" checked> the restored one</label>
<label><input type="radio" name="right" value="clean"> the original</label>
</fieldset>
<div class="compare">
$pictures
<div class="bar"></div>
<span class="label before" aria-hidden="true">degraded</span>
<span class="label after" aria-hidden="true">restored</span>
<input type="range" min="0" max="100" step="0.5" value="50"
  aria-label="Share of the degraded photograph shown">
</div>
<p class="note" aria-live="polite">$note</p>
<div class="scroll">
$tables
</div>
$account
</main>
<script>
const box = document.querySelector(".compare");
const slider = box.querySelector("input");
const move = () => {
  box.style.setProperty("--at", slider.value + "%");
  slider.setAttribute("aria-valuetext", Math.round(slider.value) + " % degraded");
};
slider.addEventListener("input", move);
const chosen = (name) => document.querySelector("[name=" + name + "]:checked");
const show = () => {
  const shown = chosen("case"), right = chosen("right").value;
  const visible = ["degraded-" + shown.value, right === "clean" ? right : right + "-" + shown.value];
  for (const picture of box.querySelectorAll("img")) picture.hidden = !visible.includes(picture.id);
  box.querySelector(".before").textContent = shown.dataset.name;
  box.querySelector(".after").textContent = right === "clean" ? "original" : right;
  const note = document.querySelector(".note");
  if (note.textContent !== shown.dataset.note) note.textContent = shown.dataset.note;
};
for (const radio of document.querySelectorAll("[type=radio]")) radio.addEventListener("change", show);
show(); // browsers restore form states on reload
move();
</script>
</body>
</html>
""")
