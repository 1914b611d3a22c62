"""A self-contained web page: pictures to compare with a slider, and tables of numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from string import Template
from typing import NamedTuple

from PIL import Image


class Table(NamedTuple):
    """Headings, and rows of as many cells; the first cell of a row names it."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def render(
    degraded: Image.Image,
    restored: Image.Image,
    clean: Image.Image,
    tables: Sequence[Table],
    account: str,
) -> str:
    """The page as HTML: the pictures, of one size, lossless inside it; no other file is needed.

    The slider is a range input over the picture, so mouse, touch and keyboard all move it.
    """
    if not degraded.size == restored.size == clean.size:
        raise ValueError(f"the pictures differ in size: {degraded.size}, {restored.size}, {clean.size}")
    width, height = degraded.size
    return _PAGE.substitute(
        width=width,
        height=height,
        degraded=_data_uri(degraded),
        restored=_data_uri(restored),
        clean=_data_uri(clean),
        tables="\n".join(map(_table, tables)),
        account=escape(account),
    )


def _data_uri(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


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
<title>irnext: haze removed from an unseen photograph</title>
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
<h1>Haze removed from a photograph the model never saw</h1>
<fieldset>
<legend>Compare the hazy photograph with</legend>
<label><input type="radio" name="right" value="restored" checked> the restored one</label>
<label><input type="radio" name="right" value="clean"> the clean original</label>
</fieldset>
<div class="compare">
<img class="right" id="restored" alt="The photograph as restored by the model" src="$restored">
<img class="right" id="clean" alt="The clean original" src="$clean" hidden>
<img class="left" alt="The hazy photograph" src="$degraded">
<div class="bar"></div>
<span class="label before" aria-hidden="true">hazy</span>
<span class="label after" aria-hidden="true">restored</span>
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="Share of the hazy photograph shown">
</div>
<div class="scroll">
$tables
</div>
<p>$account</p>
</main>
<script>
const box = document.querySelector(".compare");
const slider = box.querySelector("input");
const move = () => {
  box.style.setProperty("--at", slider.value + "%");
  slider.setAttribute("aria-valuetext", Math.round(slider.value) + " % hazy");
};
slider.addEventListener("input", move);
const choose = (value) => {
  for (const picture of box.querySelectorAll(".right")) picture.hidden = picture.id !== value;
  box.querySelector(".after").textContent = value;
};
for (const radio of document.querySelectorAll("[name=right]")) {
  radio.addEventListener("change", () => choose(radio.value));
  if (radio.checked) choose(radio.value); // browsers restore form states on reload
}
move();
</script>
</body>
</html>
""")
