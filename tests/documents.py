"""What the documents hold: fenced blocks, commands in the text, links and headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PATHS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OTHERS = (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "NOTES.md")

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- not run: (.+) -->$")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


class Block(NamedTuple):
    """A fenced block: its first line in the document, counted from 1, and why it is not run, if so."""

    line: int
    language: str
    code: str
    reason: str | None


class Command(NamedTuple):
    """A line of a shell block: the variables set for it, and its words."""

    environment: dict[str, str]
    words: list[str]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document; on the line before one that is not run, `<!-- not run: REASON -->`.

    Raises ValueError for a fence that is not closed.
    """
    found: list[Block] = []
    lines = text.splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, language = number, fence[1]
            continue
        if fence[1]:
            raise ValueError(
                f"line {start + 1}: the block has no end before the next one, in line {number + 1}"
            )
        mark = _MARK.match(lines[start - 1]) if start else None
        code = "".join(f"{one}\n" for one in lines[start + 1 : number])
        found.append(Block(start + 2, language, code, mark and mark[1]))
        start = None
    if start is not None:
        raise ValueError(f"line {start + 1}: the block has no end")
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a shell block; of a "console" block, those after a `$`: the rest is what they print."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        words, environment = shlex.split(line, comments=True), {}
        while words and _ASSIGNMENT.fullmatch(words[0]):
            name, _, environment[name] = words.pop(0).partition("=")
        if words:
            found.append(Command(environment, words))
    return found


def prose(text: str) -> str:
    """A document without its fenced blocks."""
    kept, inside = [], False
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def spans(text: str) -> list[str]:
    """The `code` in the text of a document, each in one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(text))]


def links(text: str) -> list[str]:
    """The targets of links and pictures that are not on the web."""
    targets = [link or html for link, html in _LINK.findall(_SPAN.sub("", prose(text)))]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What the headings of a document are called in links, as GitHub and MkDocs make it."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
