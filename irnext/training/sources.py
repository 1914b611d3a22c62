"""The crops that a task trains on and the pictures that it is validated on."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from ..data import Pairs, TrainingCrops, open_pairs
from ..data.specifications import TEST_SETS, Split
from ..data.synthetic import (
    DEGRADATIONS,
    CleanPictures,
    DeadLeaves,
    Mixture,
    Pictures,
    SyntheticCrops,
    SyntheticPairs,
)
from .config import TrainingConfig

# An epoch of synthetic crops, which could go on for ever, and the size and number of dead leaves.
SYNTHETIC_EPOCH = 1000
LEAVES, LEAVES_SIDE, VALIDATION_LEAVES = 64, 384, 4
HELD_OUT = 10  # every tenth clean picture is for validation, where the folder does not say
VALIDATION_SEED = 1  # beside the training's own: its pictures are degraded alike in every training


def open_sources(config: TrainingConfig) -> tuple[Dataset, Pairs | None]:
    """The training crops, indexed by (epoch, index), and the validation pairs, None where there are none.

    Raises as `irnext.data.open_pairs` and `irnext.data.synthetic.CleanPictures` do.
    """
    if config.task in DEGRADATIONS:
        return _synthetic(config)
    pairs = _open(config, config.task, "train")
    return TrainingCrops(pairs, config.patch, config.seed), _validation(config)


def _open(config: TrainingConfig, dataset: str, split: Split) -> Pairs:
    return open_pairs(
        dataset,
        config.data,
        split,
        layout=config.layout,
        input_folder=config.input_folder,
        target_folder=config.target_folder,
        allow_truncated=config.allow_truncated,
    )


def _validation(config: TrainingConfig) -> Pairs | None:
    """The validation split, or where there is none the test split, as in published training."""
    if not config.validate_every or config.input_folder is not None:  # two folders are trained on whole
        return None
    for dataset in (config.task, *TEST_SETS.get(config.task, ())):
        try:
            return _open(config, dataset, "validation")
        except FileNotFoundError:
            continue
    return None


def _synthetic(config: TrainingConfig) -> tuple[Dataset, Pairs]:
    degradation = DEGRADATIONS[config.task]()
    leaves = DeadLeaves(LEAVES, LEAVES_SIDE, config.seed)
    if config.data is None:
        clean: Pictures = leaves
        unseen: Pictures = DeadLeaves(VALIDATION_LEAVES, LEAVES_SIDE, config.seed + 1)
    else:
        clean, unseen = _clean_pictures(config.data)
        if config.dead_leaves:
            shares = (1 - config.dead_leaves, config.dead_leaves)
            clean = Mixture({"photographs": clean, "dead leaves": leaves}, shares)
    crops = SyntheticCrops(
        clean, degradation, config.patch, config.seed, length=max(SYNTHETIC_EPOCH, config.batch)
    )
    return crops, SyntheticPairs(unseen, degradation, VALIDATION_SEED)


def _clean_pictures(folder: Path) -> tuple[Pictures, Pictures]:
    """Clean pictures to train on, and to validate on: DATA/train and DATA/validation, or a tenth of DATA."""
    if (folder / "train").is_dir() and (folder / "validation").is_dir():
        return CleanPictures(folder / "train"), CleanPictures(folder / "validation")
    files = CleanPictures(folder).files
    if len(files) < 2:
        raise ValueError(
            f"{folder}: holds {len(files)} picture: at least 2 are needed, one of them for validation"
        )
    held_out = files[HELD_OUT - 1 :: HELD_OUT] or files[-1:]
    return CleanPictures([file for file in files if file not in held_out]), CleanPictures(held_out)
