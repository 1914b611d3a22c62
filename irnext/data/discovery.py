"""Finding data sets on disk: which layout lies under a path, and which pictures pair."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .specifications import CUSTOM, DATASETS, SPLITS, Dataset, Form, Layout, Source, Split
from .trees import Tree

_PROBED = 64  # pictures per form that tell whether a layout fits


class Pair(NamedTuple):
    """One degraded picture and its ground truth; `name` is unique within its split, with "/", no suffix."""

    name: str
    input: Path
    target: Path


class Match(NamedTuple):
    """An input, its target or None, and the pair's name; paths from the root."""

    input: str
    target: str | None
    name: str


@dataclass(frozen=True)
class Pairing:
    """The pairs of one split, and the pictures that have no counterpart, or are in a list only."""

    pairs: list[Pair]
    unpaired: list[Path]


@dataclass(frozen=True)
class Found:
    """A data set recognised in the folder `tree.root`."""

    dataset: Dataset
    layout: Layout
    tree: Tree

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits with at least one pair."""
        return tuple(split for split in SPLITS if _probe(self.tree, self.layout.sources(split)).pairs)

    def pairing(self, split: Split) -> Pairing:
        """All pairs of a split, sorted by source, folder and name."""
        return pair(self.tree, self.layout.sources(split))


def pair(tree: Tree, sources: Iterable[Source]) -> Pairing:
    """The pairs of a split. Raises ValueError where pictures that pair by order differ in number."""
    pairs, unpaired = [], []
    targets: dict[str, Path] = {}  # one object for each, however many inputs share it
    names: set[str] = set()
    for source in sources:
        used = set()
        for match in _matches(tree, source):
            if match.target is None:
                unpaired.append(tree.root / match.input)
                continue
            used.add(match.target)
            if (target := targets.get(match.target)) is None:
                target = targets[match.target] = tree.root / match.target
            name = match.name
            if name in names:  # two pictures that differ in their suffix
                name += os.path.splitext(match.input)[1]
            names.add(name)
            pairs.append(Pair(name, tree.root / match.input, target))
        unpaired += (tree.root / target for target in _unused(tree, source, used))
    return Pairing(pairs, unpaired)


def _matches(tree: Tree, source: Source, limit: int | None = None) -> Iterator[Match]:
    """Every input of a source, or the first `limit` of each form."""
    if source.ordered:
        yield from _ordered(tree, source, limit)
        return
    listed = _listed(tree, source)
    found, missing = set(), {}
    for form in source.forms:
        targets = tree.targets(form.target)
        if limit and not targets:  # no need to look at a large folder without ground truth
            continue
        inputs = (
            (path, fields)
            for path, fields in tree.walk(form.input)
            if _wanted(source, fields) and (listed is None or path.lower() in listed)
        )
        for path, fields in itertools.islice(inputs, limit):
            if path in found:
                continue
            name = _name(source, form, path)
            target = _target(tree, targets, path, fields)
            if target is None:
                missing.setdefault(path, Match(path, None, name))
            else:
                found.add(path)
                yield Match(path, target, name)
    if listed and limit is None:  # what a list names may be missing on the disk
        seen = {path.lower() for path in (*found, *missing)}
        missing |= {path: Match(path, None, path) for key, path in listed.items() if key not in seen}
    yield from (match for path, match in missing.items() if path not in found)


def _wanted(source: Source, fields: dict[str, str]) -> bool:
    if source.numbers is None:
        return True
    number = fields["number"]
    return number.isdecimal() and int(number) in source.numbers


def _target(tree: Tree, patterns: list[str], input: str, fields: dict[str, str]) -> str | None:
    suffix = os.path.splitext(input)[1]
    for pattern in patterns:
        if target := tree.picture(pattern.format_map(fields), suffix):
            return target
    return None


def _name(source: Source, form: Form, path: str) -> str:
    """The parts of a path that stand for fields, which tell the pairs of a source apart."""
    parts = zip(form.input.split("/"), os.path.splitext(path)[0].split("/"), strict=True)
    own = [part for pattern, part in parts if "{" in pattern]
    return "/".join([source.prefix, *own] if source.prefix else own)


def _ordered(tree: Tree, source: Source, limit: int | None) -> Iterator[Match]:
    (form,) = source.forms
    inputs = sorted((path for path, _ in tree.walk(form.input)), key=_natural)
    targets = sorted((path for path, _ in tree.walk(form.target)), key=_natural)
    if limit is None and inputs and len(inputs) != len(targets):
        raise ValueError(
            f"{tree.root}: {len(inputs)} pictures {form.input} and {len(targets)} pictures {form.target}: "
            "they pair by their order, so their numbers must be equal"
        )
    for input, target in itertools.islice(zip(inputs, targets, strict=False), limit):
        yield Match(input, target, _name(source, form, input))


def _natural(path: str) -> list:
    """A key that sorts 2 before 10, as published loaders of ordered pairs do."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]


def _listed(tree: Tree, source: Source) -> dict[str, str] | None:
    """The inputs in a source's list, by their paths in lower case; None if it needs no list."""
    if not source.lists:
        return None
    for name in source.lists:
        folder, _, file = name.rpartition("/")
        at = tree.folder(folder)
        if at is not None and (path := tree.root / at / file).is_file():
            lines = map(str.split, path.read_text().splitlines())
            return {fields[1].lower(): fields[1] for fields in lines if len(fields) == 2}
    return {}


def _unused(tree: Tree, source: Source, used: set[str]) -> Iterator[str]:
    """Ground truth that no input uses, by the forms that paired something."""
    if source.ordered or source.lists or not used:
        return
    seen = set(used)
    for form in source.forms:
        rest = [path for path, fields in tree.walk(form.target) if _wanted(source, fields)]
        if not used.isdisjoint(rest):
            yield from (path for path in rest if path not in seen)
            seen.update(rest)


class _Probe(NamedTuple):
    """How many of the first inputs of each form have a target, how many have not, and each source's first."""

    pairs: int
    unpaired: int
    firsts: tuple[str, ...]


def _probe(tree: Tree, sources: Iterable[Source]) -> _Probe:
    matches = [list(_matches(tree, source, _PROBED)) for source in sources]
    paired = [[match.input for match in of_source if match.target is not None] for of_source in matches]
    pairs = sum(map(len, paired))
    firsts = tuple(inputs[0] for inputs in paired if inputs)
    return _Probe(pairs, sum(map(len, matches)) - pairs, firsts)


def layouts(dataset: Dataset, tree: Tree, within: Path | None = None) -> list[Found]:
    """The layouts of a data set that the folder `tree.root` has, best first.

    Best is which has a test and a training split, then which leaves fewer pictures unpaired. With `within`,
    a layout counts only if a pair of it lies under that folder.
    """
    ranked = []
    for position, layout in enumerate(dataset.layouts):
        probes = {split: _probe(tree, layout.sources(split)) for split in SPLITS}
        firsts = [tree.root / first for probe in probes.values() for first in probe.firsts]
        if not firsts or (within and not any(first.is_relative_to(within) for first in firsts)):
            continue
        has = {split: probe.pairs > 0 for split, probe in probes.items()}
        unpaired = sum(probe.unpaired for probe in probes.values()) / sum(
            probe.pairs + probe.unpaired for probe in probes.values()
        )
        rank = (-has["test"] - has["train"], unpaired, not has["test"], -has["validation"], position)
        ranked.append((rank, Found(dataset, layout, tree)))
    return [found for _, found in sorted(ranked, key=lambda entry: entry[0])]


def find(dataset: Dataset, path: str | os.PathLike, layout: str | None = None) -> Found:
    """The data set at `path`: its root, a folder up to two levels inside it, or the folder that holds it.

    `layout` asks for one by its name. Raises FileNotFoundError where there is no folder, or no pair in any
    of the layouts, ValueError where two folders could be meant, or another data set is there.
    """
    path = existing_folder(path)
    found = _find(dataset, path, functools.cache(Tree))
    if not found:
        raise FileNotFoundError(explain_absence(dataset, path))
    if layout is not None:
        names = [candidate.layout.name for candidate in found]
        if layout not in names:
            raise ValueError(
                f"{path}: no layout {layout!r} of {dataset.title} here; found: {', '.join(names)}"
            )
        return found[names.index(layout)]
    best = found[0]
    _refuse_other(best)
    return best


def _find(dataset: Dataset, path: Path, tree: Callable[[Path], Tree]) -> list[Found]:
    """The layouts of a data set in one folder, best first: in the path, above it, or else inside it.

    `tree` makes the tree of a folder, and makes it once where several data sets are looked for.
    """
    here = [layouts(dataset, tree(path))]
    for root in [] if dataset is CUSTOM else path.parents[:2]:
        with contextlib.suppress(PermissionError):
            here.append(layouts(dataset, tree(root), path))
    if found := max(here, key=_completeness):
        return found
    inside = []
    for folder in _subfolders(path):
        with contextlib.suppress(PermissionError):
            if _known(dataset, folder) and (found := layouts(dataset, tree(folder))):
                inside.append(found)
    by_name = [found for found in inside if found[0].tree.root.name.lower() in dataset.folders]
    inside = by_name or inside
    if len(inside) > 1:
        roots = " and ".join(str(found[0].tree.root) for found in inside)
        raise ValueError(f"{path}: {roots} could both be {dataset.title}: give one of them")
    return inside[0] if inside else []


def _completeness(found: list[Found]) -> int:
    """How many of the training and the test split a folder has."""
    return len({"train", "test"}.intersection(found[0].splits)) + 1 if found else 0


def _known(dataset: Dataset, folder: Path) -> bool:
    """Whether a folder's name is one of the data set's, or at least no other's."""
    name = folder.name.lower()
    return name in dataset.folders or not any(name in other.folders for other in DATASETS.values())


def _refuse_other(found: Found) -> None:
    """Raise ValueError for a folder that has the name, and a layout, of another data set."""
    root = found.tree.root.resolve()
    if found.dataset is CUSTOM or _known(found.dataset, root):
        return
    others = [other for other in DATASETS.values() if root.name.lower() in other.folders]
    for other in others:
        if layouts(other, found.tree):
            raise ValueError(
                f"{root}: this is {other.title}, not {found.dataset.title}; its task is {other.key} "
                f"(for {found.dataset.title} in such a folder, rename it, or use the task custom)"
            )


def existing_folder(path: str | os.PathLike) -> Path:
    """The path, if it is a folder. Raises FileNotFoundError or NotADirectoryError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such folder")
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: this is a file: the folder of a data set is needed")
    return Path(os.path.abspath(path))


def _subfolders(path: Path) -> list[Path]:
    return [path / name for name in Tree(path).listing("").folders.values()]


def recognise(path: str | os.PathLike) -> list[list[Found]]:
    """The data sets in a folder, each as the list of what it could be: one, where something tells them apart.

    What tells is, in this order, the folder's name, the names of the pictures, the published numbers of
    pairs, and how many of the splits are there. Custom pairs are found where nothing else is.
    """
    path = existing_folder(path)
    tree = functools.cache(Tree)
    candidates = []
    for dataset in DATASETS.values():
        with contextlib.suppress(ValueError):  # several such folders inside: each can be checked by itself
            candidates += map(_Candidate, _find(dataset, path, tree)[:1])
    groups: dict[frozenset[Path], list[Found]] = {}
    for one in candidates:
        if not any(other.outdoes(one) for other in candidates if other is not one):
            groups.setdefault(one.pictures, []).append(one.found)
    return list(groups.values()) or [[found] for found in _find(CUSTOM, path, tree)[:1]]


class _Candidate:
    """A data set with its sources' first pictures, and what speaks for it."""

    def __init__(self, found: Found) -> None:
        self.found = found
        tree, self._layout = found.tree, found.layout
        probes = [_probe(tree, found.layout.sources(split)) for split in SPLITS]
        self.pictures = frozenset(tree.root / first for probe in probes for first in probe.firsts)
        stem = found.dataset.stem
        named = tree.root.resolve().name.lower() in found.dataset.folders
        fits = stem is not None and all(re.fullmatch(stem, path.stem, re.I) for path in self.pictures)
        self.names = (named, fits)
        self._splits = sum(probe.pairs > 0 for probe in probes)

    @functools.cached_property
    def numbers(self) -> tuple[int, int, float]:
        """Splits that have the published number of pairs, all splits, and their share of the layout's."""
        counts = sum(_is_published(self.found, split) for split in self._layout.published)
        return counts, self._splits, self._splits / sum(bool(self._layout.sources(split)) for split in SPLITS)

    def outdoes(self, other: _Candidate) -> bool:
        """Whether this explains the same pictures and more, or the same with stronger evidence."""
        if self.pictures > other.pictures or other.pictures > self.pictures:
            return self.pictures > other.pictures
        if not self.pictures & other.pictures:
            return False
        if self.names != other.names:
            return self.names > other.names
        return self.numbers > other.numbers  # counted last, as it takes a while in the largest sets


def _is_published(found: Found, split: Split) -> bool:
    try:
        return len(found.pairing(split).pairs) == found.layout.published[split]
    except ValueError:  # pictures that should pair by order do not
        return False


def explain_absence(dataset: Dataset, path: Path) -> str:
    """Why a data set is not found at `path`: what was looked for, and what is there instead."""
    reasons = [f"{path}: no {dataset.title} here"]
    if databases := [folder.name for folder in _subfolders(path) if folder.suffix.lower() == ".lmdb"]:
        reasons.append(f"{databases[0]} is one of NAFNet's databases: use the pictures it was made from")
    if half := _without_counterpart(dataset, path):
        reasons.append(half)
    elif others := [] if dataset is CUSTOM else list(itertools.chain(*recognise(path))):
        titles = " or ".join(found.dataset.title for found in others)
        keys = " or ".join(found.dataset.key for found in others)
        reasons.append(f"this looks like {titles}: use the task {keys}")
    elif dataset is not CUSTOM:
        looked = dict.fromkeys(
            f"{source.forms[0].input} with {source.forms[0].target}"
            for layout in dataset.layouts
            for split in SPLITS
            for source in layout.sources(split)
        )
        reasons.append("looked for " + ", ".join(looked))
    if dataset.hint:
        reasons.append(dataset.hint)
    return "; ".join(reasons)


def _without_counterpart(dataset: Dataset, path: Path) -> str | None:
    """A sentence on an input whose ground truth is missing, or the other way round, if there is one."""
    tree = Tree(path)
    sources = (source for layout in dataset.layouts for split in SPLITS for source in layout.sources(split))
    for form in (source.forms[0] for source in sources if not source.lists):
        for input, fields in tree.walk(form.input):
            return f"{input} is there, its ground truth {form.target.format_map(fields)} is not"
        for target, _ in tree.walk(form.target):
            return f"the ground truth {target} is there, its input {form.input} is not"
    return None
