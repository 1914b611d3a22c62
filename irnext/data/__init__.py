"""Pictures to train and evaluate on: data sets on disk, and degradations of clean pictures."""

from .crops import Pairs, TrainingCrops
from .pairs import PairedFolder, open_pairs, read_picture

__all__ = ["PairedFolder", "Pairs", "TrainingCrops", "open_pairs", "read_picture"]
