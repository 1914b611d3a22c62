"""The photographs of the demonstration: those inside scikit-image's wheel, which need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# The unseen one is in the public domain (CC0); no shipped weights were trained on it either.
UNSEEN = "chelsea.png"
TRAINING = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def path_of(name: str) -> Path:
    """A photograph's file in the installed scikit-image.

    Raises ModuleNotFoundError without scikit-image, FileNotFoundError where it lacks the photograph.
    """
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise ModuleNotFoundError(
            "the demonstration takes its photographs from scikit-image: pip install 'irnext[demo]'"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this scikit-image lacks its photographs; install its wheel from PyPI"
        )
    return path
