"""Folders of pictures: listed once, looked up regardless of case, walked by patterns."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm")


class Listing(NamedTuple):
    """Of one folder: subfolders by their name in lower case; pictures by their stem in lower case."""

    folders: dict[str, str]
    pictures: dict[str, tuple[str, ...]]


class Tree:
    """The folders under `root`, each read from the disk at most once.

    Paths are relative to `root`, with "/"; "" is `root` itself. Hidden files are left out: archives made
    on a Mac have a "._name.png" beside every picture.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self._listings: dict[str, Listing] = {}
        self._folders: dict[str, str | None] = {}

    def listing(self, folder: str) -> Listing:
        """What a folder holds, sorted by name. Raises OSError if it cannot be read."""
        if folder not in self._listings:
            folders, pictures = {}, {}
            with os.scandir(self.root / folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    stem, suffix = os.path.splitext(entry.name)
                    if stem.startswith("."):
                        continue
                    if suffix.lower() in SUFFIXES and not entry.is_dir():
                        key = stem.lower()
                        pictures[key] = (*pictures.get(key, ()), entry.name)
                    elif entry.is_dir():
                        folders[entry.name.lower()] = entry.name
            self._listings[folder] = Listing(folders, pictures)
        return self._listings[folder]

    def folder(self, path: str) -> str | None:
        """The folder of this path as it is spelt on the disk, or None."""
        if path == "":
            return ""
        if path not in self._folders:
            parent, _, name = path.rpartition("/")
            at = self.folder(parent)
            found = None if at is None else self.listing(at).folders.get(name.lower())
            self._folders[path] = None if found is None else _join(at, found)
        return self._folders[path]

    def picture(self, path: str, suffix: str = "") -> str | None:
        """The picture of this path without suffix, or None: of several, that with the given suffix."""
        folder, _, stem = path.rpartition("/")
        at = self.folder(folder)
        names = () if at is None else self.listing(at).pictures.get(stem.lower(), ())
        if not names:
            return None
        same = [name for name in names if name.lower().endswith(suffix.lower())]
        return _join(at, (same or names)[0])

    def walk(self, pattern: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Pictures that match a pattern (see `specifications`) with its fields, sorted by folder and name."""
        *folders, last = map(_alternatives, pattern.split("/"))
        yield from self._walk("", folders, last, {})

    def _walk(
        self, at: str, folders: list, last: tuple, fields: dict
    ) -> Iterator[tuple[str, dict[str, str]]]:
        if not folders:
            for stem, names in self.listing(at).pictures.items():
                for name in names:
                    if (found := _match(last, name.rpartition(".")[0], stem)) is not None:
                        yield _join(at, name), fields | found
            return
        for key, name in self.listing(at).folders.items():
            if (found := _match(folders[0], name, key)) is not None:
                yield from self._walk(_join(at, name), folders[1:], last, fields | found)

    def targets(self, pattern: str) -> list[str]:
        """A pattern once for each choice of its alternatives whose leading plain folders exist."""
        choices = itertools.product(*(component.split("|") for component in pattern.split("/")))
        return [
            "/".join(choice)
            for choice in choices
            if self.folder("/".join(itertools.takewhile(lambda name: "{" not in name, choice[:-1])))
            is not None
        ]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


@functools.cache
def _alternatives(component: str) -> tuple[str | re.Pattern, ...]:
    """Each alternative of a component: a plain name in lower case, or an expression with its fields."""
    return tuple(
        re.compile(
            re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.*?)", re.escape(alternative)), re.IGNORECASE | re.DOTALL
        )
        if "{" in alternative
        else alternative.lower()
        for alternative in component.split("|")
    )


def _match(alternatives: tuple, name: str, lower: str) -> dict[str, str] | None:
    """The fields of the first alternative that `name` is, or None."""
    for alternative in alternatives:
        if isinstance(alternative, str):
            if alternative == lower:
                return {}
        elif found := alternative.fullmatch(name):
            return found.groupdict()
    return None
