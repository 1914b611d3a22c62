"""`irnext evaluate`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .. import IRNeXt, checkpoints, list_models
from ..data import Pairs, open_pairs
from ..data.specifications import CUSTOM, DATASETS, TEST_SETS
from ..data.subsets import read_subset
from ..data.synthetic import DEGRADATIONS, CleanPictures, SyntheticPairs
from ..devices import default_device
from ..evaluation import PER_PICTURE, WINDOWS, Window, evaluate
from ..files import output_folder
from ..metrics import require
from ..pretrained import path_of
from ..reports import markdown, write_csv, write_json
from .common import DTYPES, FAILED, LowPass, Name, check_backend, complain
from .models import load_model, settings_of, to_compute_on

_MOTION, _DEHAZING, _DERAINING = ("irnext-rgb", "gopro-matlab"), ("irnext-rgb",), ("derain-y",)
# The protocols of the paper's tables.
PROTOCOLS = {
    "gopro": _MOTION,
    "rsblur": ("rsblur",),
    "dpdd": ("dpdd",),
    **dict.fromkeys(("its", "ots", "sots-indoor", "sots-outdoor", "dense-haze", "nh-haze"), _DEHAZING),
    **dict.fromkeys(("csd", "srrs", "snow100k"), _DEHAZING),
    **dict.fromkeys(("rain13k", "rain14000", "rain800", "rain100l", "rain100h", "test100"), _DERAINING),
}
GENERAL = ("irnext-rgb", "ssim-rgb")  # custom and synthetic pairs


def evaluate_task(
    task: Annotated[str, tyro.conf.arg(metavar="NAME")],
    data: Annotated[Path, tyro.conf.arg(metavar="PATH")],
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    model: Name = None,
    low_pass: LowPass = None,
    protocol: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = (),
    window: Annotated[str, tyro.conf.arg(metavar="{per-picture,first,train,HxW}")] = PER_PICTURE,
    before: bool = False,
    subset: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE...")] = (),
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    save: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    layout: Name = None,
    input_folder: Name = None,
    target_folder: Name = None,
    seed: int = 0,
    allow_truncated: bool = False,
    device: Name = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    overlap: Annotated[int, tyro.conf.arg(metavar="M")] = 32,
    max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    scorers: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
) -> int:
    """Score trained weights on a test set by the protocol of the paper's table.

    Prints a Markdown table beside the paper's numbers, for every test set of the task that is found.
    Each number has its protocol: metrics of one name differ between protocols by up to 1.3 dB.

    Args:
        task: gopro, rsblur, dpdd, its, ots, dense-haze, nh-haze, rain13k, csd, srrs, snow100k, or
            custom for any folders of pairs; haze, motion-blur, defocus, rain or snow degrade clean pictures.
        data: the data set's folder; for haze and the other synthetic tasks, a folder of clean pictures.
        weights: a checkpoint: .safetensors, or .pkl or .pth of the published code; for synthetic tasks by
            default the weights that come with irnext.
        model: take the settings of this model (irnext info lists them) rather than the checkpoint's.
        low_pass: the model's low-pass filter, as for irnext restore; by default the checkpoint's, or that of
            the task's published code.
        protocol: one or more of irnext-rgb, ssim-rgb, gopro-matlab, derain-y, dpdd, lpips-alex, rsblur,
            realblur, basicsr, basicsr-y; by default the task's own.
        window: with --low-pass local, the window of local means: each picture's own; that of the
            first picture, as published code has it; that of training's crops of 256; or of a HxW picture.
        before: also score the degraded pictures; always so for synthetic tasks.
        subset: means over pictures listed in a file, as in indoor=indoor_labels.npy.
        limit: only the first pictures of each set.
        csv: write a line per picture.
        json: write everything.
        save: write the restored pictures; they are scored, too, as irnext-rgb-saved.
        layout: one of the layouts of the data set, where its folder has several.
        input_folder: for custom, the folder of the degraded pictures, in data.
        target_folder: for custom, the folder of the clean ones.
        seed: of synthetic degradations.
        allow_truncated: read what there is of cut-off pictures, as published code does for OTS.
        device: where to compute, as PyTorch names it (cuda, cuda:1, mps); by default a GPU if there is one.
        dtype: what to compute in.
        tile: side of square tiles in pixels, a multiple of 32; not the published protocol.
        overlap: pixels that neighbouring tiles share, at most half a tile.
        max_memory: what restoring may take beside the program and the weights, as in 8G or 500M.
        scorers: threads that score while the next picture is restored; more for rsblur.
    """
    check_backend()
    synthetic = task in DEGRADATIONS
    protocols = protocol or PROTOCOLS.get(task, GENERAL)
    require(protocols)
    subsets = dict(map(_named_file, subset))
    chosen_window = _parse_window(window)
    if save and save.resolve().is_relative_to(data.resolve()):
        raise ValueError(f"--save {save}: lies inside the data {data}, whose pictures it could replace")
    folders = {"layout": layout, "input_folder": input_folder, "target_folder": target_folder}
    opening = folders | {"allow_truncated": allow_truncated}
    test_sets = dict(_test_sets(task, data, seed, opening))
    for name, pairs in test_sets.items():
        _note_unpaired(name, pairs, data)
    if weights is None:
        weights = path_of(task)
    network = load_model(weights, model, low_pass or _published_low_pass(task, weights, model))
    device = device or default_device()
    network, computed, max_memory = to_compute_on(device, network, DTYPES[dtype], tile, max_memory)
    found = []
    with ExitStack() as stack:
        for path in filter(None, (csv, json)):  # before the work, not after it
            stack.enter_context(output_folder(path.parent))
        for name, pairs in test_sets.items():
            names = [pairs.name(index) for index in range(len(pairs))]
            found.append(
                evaluate(
                    network,
                    pairs,
                    protocols,
                    test_set=name,
                    weights=weights,
                    window=chosen_window,
                    before=before or synthetic,
                    limit=limit,
                    subsets={key: read_subset(path, names) for key, path in subsets.items()},
                    save=save / name if save and len(test_sets) > 1 else save,
                    device=device,
                    dtype=computed,
                    tile=tile,
                    overlap=overlap,
                    max_memory=max_memory,
                    scorers=scorers,
                )
            )
        if csv:
            write_csv(found, csv)
        if json:
            write_json(found, json)
    print("\n\n".join(map(markdown, found)))
    reasons = [reason for evaluation in found for reason in evaluation.failed.values()]
    for reason in reasons:
        complain(reason)
    return FAILED if reasons else 0


def _published_low_pass(task: str, weights: Path, model: str | None) -> str | None:
    """The low-pass filter of the task's published code, where neither the weights nor `model` say one."""
    listed = f"irnext-{task}"
    if model is not None or listed not in list_models():
        return None
    network = checkpoints.load(weights)
    if type(network) is not IRNeXt or checkpoints.assumption(weights, network) is None:
        return None
    return settings_of(listed)["low_pass"]


def _test_sets(task: str, data: Path, seed: int, opening: dict[str, Any]) -> Iterator[tuple[str, Pairs]]:
    """Every test set of a task that is found, by name; raises what opening raises where there is none."""
    if task in DEGRADATIONS:
        yield task, SyntheticPairs(CleanPictures(data), DEGRADATIONS[task](), seed)
        return
    if task not in DATASETS and task != CUSTOM.key:
        raise ValueError(
            f"unknown task {task!r}: choose one of {', '.join((*DATASETS, CUSTOM.key, *DEGRADATIONS))}"
        )
    missing: FileNotFoundError | None = None
    found = 0
    for name in TEST_SETS.get(task, (task,)):
        try:
            yield name, open_pairs(name, data, "test", **opening)
            found += 1
        except FileNotFoundError as error:
            missing = error
    if not found:
        raise missing


def _note_unpaired(name: str, pairs: Pairs, data: Path) -> None:
    """One line on the error output where pictures of a test set are left out."""
    if unpaired := getattr(pairs, "unpaired", ()):
        print(
            f"irnext: note: {name}: pictures without a counterpart are left out: {len(unpaired)}, such as "
            f"{unpaired[0]} (see irnext data check {data})",
            file=sys.stderr,
        )


def _parse_window(text: str) -> Window:
    """A mode, or the height and width of "HxW"."""
    if text in WINDOWS:
        return text
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        return int(match[1]), int(match[2])
    raise ValueError(f"window is {text!r}: choose {', '.join(WINDOWS)}, or a picture's size such as 720x1280")


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise ValueError(f"subset is {text!r}: give NAME=FILE, as in indoor=indoor_labels.npy")
    return name, Path(path)
