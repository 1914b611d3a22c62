"""The photographs of the demonstration: those inside scikit-image's wheel, which need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# The unseen one is in the public domain (CC0); no shipped weights were trained on it either.
UNSEEN = "chelsea.png"
TRAINING = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def path_of(name: str) -> Path:
    """A photograph's file in the installed scikit-image; raises as `find` does."""
    return find("skimage", "data", name, "demo")


def find(package: str, folder: str, name: str, extra: str) -> Path:
    """A photograph's file in a folder of an installed package, which comes with irnext[extra].

    Raises ModuleNotFoundError without the package, FileNotFoundError where it lacks the photograph.
    """
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"the photographs come with {package}: pip install 'irnext[{extra}]'")
    path = Path(found.submodule_search_locations[0]) / folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this {package} lacks its photographs; install its wheel from PyPI")
    return path
