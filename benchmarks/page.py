"""A document of tables, plots and paragraphs, as one self-contained HTML page or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

# Each colour for light and for dark pages. Plots are drawn in the light ones, which `figures.svg` replaces
# by the names, so no two of them may be the same.
COLOURS = {
    "ink": ("#1c1f24", "#e6e8eb"),
    "quiet": ("#5b6470", "#9aa4b1"),
    "line": ("#d9dce1", "#363c44"),
    "paper": ("#fcfcfb", "#15171a"),
    "panel": ("#f2f3f5", "#1d2024"),
    "accent": ("#0b62c4", "#7db7ff"),
    "good": ("#1a7343", "#63d297"),
    "warn": ("#9a5b00", "#f2b95c"),
    "grey": ("#9aa1ab", "#77808c"),
    "slate": ("#647a93", "#9fb3c8"),
    "sky": ("#7fb3e6", "#4f83b5"),
    "blue": ("#1f6fc9", "#79b4ff"),
    "orange": ("#d9822b", "#f0a35a"),
    "green": ("#3a9a6b", "#62c797"),
    "purple": ("#8b62b8", "#b592e0"),
    "red": ("#c14a4a", "#ee8383"),
    "gold": ("#c9a227", "#e6c65a"),
}


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells; the first cell of a row names it."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot as SVG in named colours (`figures.svg`), with what it shows in words."""

    name: str
    svg: str
    description: str


@dataclass(frozen=True)
class Facts:
    """Named facts, such as where figures come from; those called `code` are to be typed."""

    facts: dict[str, str]
    code: tuple[str, ...] = ()


Block = Text | Table | Plot | Facts


@dataclass(frozen=True)
class Section:
    """A titled part; `mark` is a word beside the title, and `good` what it means: yes, no or not known."""

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = ()
    mark: str = ""
    good: bool | None = None

    def plots(self) -> Iterator[Plot]:
        """All plots, those of inner sections included."""
        yield from (block for block in self.blocks if isinstance(block, Plot))
        for section in self.sections:
            yield from section.plots()


# ---- HTML ----------------------------------------------------------------------------------------


def colours_css() -> str:
    """The named colours as CSS, for light and for dark."""
    light, dark = (
        "".join(f"--{name}:{pair[index]};" for name, pair in COLOURS.items()) for index in range(2)
    )
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def html(document: Section) -> str:
    """The page: one file that needs no other. Everything but a plot's SVG is escaped."""
    names = _Names()
    body = _html_section(document, 1, names)
    return _PAGE.substitute(
        title=escape(document.title), colours=colours_css(), contents=_contents(names), body=body
    )


def _contents(names: _Names) -> str:
    """Links to the parts, and in each to its sections."""
    items: list[list[str]] = []
    for level, title, identity in names.given:
        link = f'<a href="#{identity}">{escape(title)}</a>'
        if level == 2:
            items.append([link])
        elif level == 3 and items:
            items[-1].append(link)
    return f"<nav><ul>{''.join(f'<li>{chr(10).join(links)}</li>' for links in items)}</ul></nav>"


class _Names:
    """The sections' names for links, each once."""

    def __init__(self) -> None:
        self.given: list[tuple[int, str, str]] = []

    def give(self, level: int, title: str) -> str:
        name = slug(title) or "section"
        taken = {identity for _, _, identity in self.given}
        number = 2
        identity = name
        while identity in taken:
            identity, number = f"{name}-{number}", number + 1
        self.given.append((level, title, identity))
        return identity


def slug(text: str) -> str:
    """A text as a file or link may be called."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _html_section(section: Section, level: int, names: _Names) -> str:
    identity = names.give(level, section.title)
    kind = {True: "good", False: "bad", None: "unknown"}[section.good]
    mark = f' <span class="mark {kind}">{escape(section.mark)}</span>' if section.mark else ""
    heading = f'<h{level} id="{identity}">{escape(section.title)}{mark}</h{level}>'
    inner = [_html_block(block) for block in section.blocks]
    inner += [_html_section(one, level + 1, names) for one in section.sections]
    return "\n".join(["<section>", heading, *inner, "</section>"])


def _html_block(block: Block) -> str:
    if isinstance(block, Text):
        kind = ' class="warning"' if block.warning else ""
        return f"<p{kind}>{escape(block.text)}</p>"
    if isinstance(block, Plot):
        return f'<figure role="img" aria-label="{escape(block.description)}">{block.svg}</figure>'
    if isinstance(block, Facts):
        rows = (
            f"<dt>{escape(name)}</dt><dd>{_code_tag(value) if name in block.code else escape(value)}</dd>"
            for name, value in block.facts.items()
        )
        return f"<dl>{''.join(rows)}</dl>"
    columns = zip(*block.rows, strict=True) if block.rows else [()] * len(block.headings)
    kinds = ["" if _is_numeric(column) else ' class="text"' for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(heading)}</th>'
        for kind, heading in zip(kinds, block.headings, strict=True)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds[1:], cells, strict=True))
        + "</tr>"
        for name, *cells in block.rows
    )
    caption = f"<caption>{escape(block.caption)}</caption>" if block.caption else ""
    table = f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column is of numbers, or of numbers with a sign or a unit."""
    return all(re.fullmatch(r"[±+~-]?[\d.,]+(e[+-]\d+)? ?%?|none|wrong|one call|", cell) for cell in cells)


def _code_tag(text: str) -> str:
    return f"<code>{escape(text)}</code>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$colours
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 3rem 0 .5rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); font-size: 1.35rem; }
h3 { margin: 2.25rem 0 .5rem; font-size: 1.1rem; }
a { color: var(--accent); }
nav ul { padding: 0; list-style: none; font-size: .9rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
nav a:first-child { font-weight: 600; }
p { max-width: 48rem; }
.warning { padding: .5rem .75rem; border-left: 4px solid var(--warn); background: var(--panel); }
.mark { padding: .1rem .5rem; border: 1px solid; border-radius: 1rem; font-size: .75rem; font-weight: 600;
  vertical-align: middle; white-space: nowrap; color: var(--quiet); }
.mark.good { color: var(--good); }
.mark.bad { color: var(--warn); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { padding: .3rem 0; text-align: left; font-weight: 600; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { padding-left: 0; text-align: left; }
th.text, td.text { text-align: left; }
thead th { vertical-align: bottom; white-space: normal; color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 400; }
tbody tr:hover { background: var(--panel); }
figure { margin: 1rem 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 34rem; max-width: 54rem; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .75rem 0;
  padding: .6rem .75rem; border-radius: 6px; background: var(--panel); font-size: .85rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
$contents
<main>
$body
</main>
</body>
</html>
""")


# ---- Markdown ------------------------------------------------------------------------------------


def markdown(document: Section, plots: str) -> str:
    """The same as Markdown, with the plots as files NAME.svg in the folder `plots` beside it."""
    return "\n\n".join(_markdown_section(document, 1, plots)) + "\n"


def _markdown_section(section: Section, level: int, plots: str) -> Iterator[str]:
    mark = f" ({markdown_text(section.mark)})" if section.mark else ""
    yield f"{'#' * level} {markdown_text(section.title)}{mark}"
    for block in section.blocks:
        yield _markdown_block(block, plots)
    for one in section.sections:
        yield from _markdown_section(one, level + 1, plots)


def _markdown_block(block: Block, plots: str) -> str:
    if isinstance(block, Text):
        text = markdown_text(block.text)
        return f"**{text}**" if block.warning else text
    if isinstance(block, Plot):
        return f"![{markdown_text(block.description)}]({plots}/{block.name}.svg)"
    if isinstance(block, Facts):
        return "\n".join(
            f"- {markdown_text(name)}: {_code(value) if name in block.code else markdown_text(value)}"
            for name, value in block.facts.items()
        )
    caption = f"{markdown_text(block.caption)}:\n\n" if block.caption else ""
    return caption + markdown_table(block)


def markdown_table(table: Table) -> str:
    """A table, without its caption."""
    rows = [f"| {' | '.join(map(markdown_text, row))} |" for row in (table.headings, *table.rows)]
    return "\n".join([rows[0], "|" + "---|" * len(table.headings), *rows[1:]])


def markdown_text(text: str) -> str:
    """A text on one line in which Markdown finds nothing to format."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A text as code, within more backticks than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
