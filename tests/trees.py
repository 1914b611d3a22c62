"""Miniature data sets: the layouts that circulate, with real file names and tiny pictures.

The corner of each picture tells which ground truth it belongs to (its key), so a wrong pair or split shows.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SPLITS = ("train", "validation", "test")
PAIRS = 4
SIZE = (80, 96)  # height, width
_CORNER, _STEP = 16, 8  # pixels, grey levels between keys: JPEG keeps them apart


class Tree(NamedTuple):
    """A layout: per split the paths of input and ground truth, and of files that must be left alone.

    Fields: {i} and {v} count the pairs of a split from 1, {n} goes on from split to split, {s} and {c} name
    two scenes or clear pictures; {d} and {e} give ordered names that differ.
    """

    root: str
    splits: dict[str, tuple[str, str]]
    others: tuple[str, ...] = ()
    shared: bool = False  # two inputs of one ground truth
    border: int = 0  # pixels that the ground truth has more on each side, in the test split
    bits: int = 8
    lists: str | None = None


def _splits(input: str, target: str, **names: str) -> dict[str, tuple[str, str]]:
    """The same paths with another folder "SPLIT" for each split."""
    return {
        split: (input.replace("SPLIT", name), target.replace("SPLIT", name)) for split, name in names.items()
    }


_TWO = {"train": "train", "test": "test"}
_ITS_NAME, _OTS_NAME = "{c}_{v}_0.90179.png", "000{c}_0.8_0.0{v}.jpg"
_SOTS_INDOOR = ("SOTS/indoor/hazy/14{c:02}_{v}.png", "SOTS/indoor/gt/14{c:02}.png")
_SOTS_OUTDOOR = ("SOTS/outdoor/hazy/000{c}_0.8_0.{v}.jpg", "SOTS/outdoor/gt/000{c}.png")


def _rain_test(name: str) -> tuple[str, str]:
    return f"test/{name}/input/{{i}}.png", f"test/{name}/target/{{i}}.png"


def _views(view: str) -> Tree:
    return Tree(
        "dd_dp_dataset_png",
        _splits(
            f"SPLIT_{view}/source/1P0A{{d:04}}.png",
            f"SPLIT_{view}/target/1P0A{{e:04}}.png",
            train="train",
            validation="val",
            test="test",
        ),
        bits=16,
    )


TREES: dict[tuple[str, str], Tree] = {
    ("gopro", "official"): Tree(
        "GOPRO_Large",
        _splits("SPLIT/GOPR0372_07_0{s}/blur/{i:06}.png", "SPLIT/GOPR0372_07_0{s}/sharp/{i:06}.png", **_TWO),
        others=("train/GOPR0372_07_00/blur_gamma/{i:06}.png",),
    ),
    ("gopro", "MIMO"): Tree(
        "GOPRO",
        _splits("SPLIT/blur/GOPR0372_07_0{s}_{i:06}.png", "SPLIT/sharp/GOPR0372_07_0{s}_{i:06}.png", **_TWO),
    ),
    ("gopro", "IRNeXt"): Tree(
        "GOPRO",
        _splits(
            "SPLIT/blur/GOPR0372_07_0{s}_{i:06}_blur.png",
            "SPLIT/sharp/GOPR0372_07_0{s}_{i:06}_gt.png",
            train="train",
            test="valid",
        ),
    ),
    ("gopro", "MPRNet"): Tree(
        "GoPro",
        _splits("SPLIT/input/GOPR0372_07_0{s}-{i}.png", "SPLIT/target/GOPR0372_07_0{s}-{i}.png", **_TWO),
    ),
    ("gopro", "Restormer"): Tree(
        "Datasets",
        _splits(
            "SPLIT/GoPro/input/GOPR0372_07_00-{i}.png", "SPLIT/GoPro/target/GOPR0372_07_00-{i}.png", **_TWO
        ),
    ),
    ("gopro", "Restormer crops"): Tree(
        "Datasets",
        {
            "train": (
                "train/GoPro/input_crops/GOPR0372_07_00-{i}-1.png",
                "train/GoPro/target_crops/GOPR0372_07_00-{i}-1.png",
            ),
            "test": ("test/GoPro/input/GOPR0372_07_00-{i}.png", "test/GoPro/target/GOPR0372_07_00-{i}.png"),
        },
    ),
    ("gopro", "NAFNet crops"): Tree(
        "GoPro",
        {
            "train": (
                "train/blur_crops/GOPR0372_07_00-{i}_s001.png",
                "train/sharp_crops/GOPR0372_07_00-{i}_s001.png",
            ),
            "test": ("test/input/GOPR0372_07_00-{i}.png", "test/target/GOPR0372_07_00-{i}.png"),
        },
    ),
    ("rsblur", "official"): Tree(
        "data",
        {
            split: ("RSBlur/000{s}/{n:06}/real_blur/real_blur.png", "RSBlur/000{s}/{n:06}/gt/gt_sharp.png")
            for split in SPLITS
        },
        others=("RSBlur/0001/{n:06}/avg65_img/avg_blur.png",),
        lists="datalist/RSBlur/RSBlur_real_{split}.txt",
    ),
    ("rsblur", "SFNet"): Tree(
        "RSBlur",
        _splits("SPLIT/blur/000{s}_{i:06}.tif", "SPLIT/sharp/000{s}_{i:06}.tif", train="train", test="valid"),
    ),
    ("dpdd", "official"): _views("c"),
    ("dpdd", "official, left view"): _views("l"),
    ("dpdd", "Restormer crops"): Tree(
        "Datasets",
        {
            "train": ("train/DPDD/inputC_crops/{d}-1.png", "train/DPDD/target_crops/{e}-1.png"),
            "validation": ("val/DPDD/inputC_crops/{d}-1.png", "val/DPDD/target_crops/{e}-1.png"),
            "test": ("test/DPDD/inputC/1P0A{d:04}.png", "test/DPDD/target/1P0A{e:04}.png"),
        },
        others=("test/DPDD/inputL/1P0A{d:04}.png", "test/DPDD/inputR/1P0A{d:04}.png"),
        bits=16,
    ),
    ("its", "IRNeXt"): Tree(
        "reside-indoor", _splits(f"SPLIT/hazy/{_ITS_NAME}", "SPLIT/gt/{c}.png", **_TWO), shared=True
    ),
    ("its", "official"): Tree(
        "RESIDE",
        {"train": (f"ITS/hazy/{_ITS_NAME}", "ITS/clear/{c}.png"), "test": _SOTS_INDOOR},
        others=("ITS/trans/{c}_{v}.png",),
        shared=True,
        border=10,
    ),
    ("its", "DehazeFormer"): Tree(
        "RESIDE-IN", _splits(f"SPLIT/hazy/{_ITS_NAME}", f"SPLIT/GT/{_ITS_NAME}", **_TWO)
    ),
    ("its", "DEA-Net"): Tree(
        "ITS", _splits(f"SPLIT/hazy/{_ITS_NAME}", "SPLIT/clear/{c}.png", **_TWO), shared=True
    ),
    ("ots", "IRNeXt"): Tree(
        "reside-outdoor",
        {
            "train": (f"train/hazy/{_OTS_NAME}", "train/gt/000{c}.jpg"),
            "test": (f"test/hazy/{_OTS_NAME}", "test/gt/000{c}.png"),
        },
        shared=True,
    ),
    ("ots", "official"): Tree(
        "RESIDE",
        {"train": (f"OTS/hazy/part{{s}}/{_OTS_NAME}", "OTS/clear/000{c}.jpg"), "test": _SOTS_OUTDOOR},
        shared=True,
        border=10,
    ),
    ("sots-indoor", "official"): Tree("RESIDE", {"test": _SOTS_INDOOR}, shared=True, border=10),
    ("sots-indoor", "IRNeXt"): Tree(
        "reside-indoor", {"test": ("test/hazy/14{c:02}_{v}.png", "test/gt/14{c:02}.png")}, shared=True
    ),
    ("sots-outdoor", "official"): Tree("RESIDE", {"test": _SOTS_OUTDOOR}, shared=True, border=10),
    ("sots-outdoor", "one folder"): Tree(
        "outdoor", {"test": ("hazy/000{c}_0.8_0.{v}.jpg", "gt/000{c}.png")}, shared=True, border=10
    ),
    ("dense-haze", "official"): Tree(
        "Dense_Haze_NTIRE19",
        {
            "train": ("hazy/{i:02}_hazy.png", "GT/{i:02}_GT.png"),
            "test": ("hazy/5{i}_hazy.png", "GT/5{i}_GT.png"),
        },
    ),
    ("dense-haze", "IRNeXt"): Tree(
        "Dense-Haze",
        {
            "train": ("train/hazy/{i:02}_hazy.png", "train/gt/{i:02}_GT.png"),
            "test": ("test/hazy/5{i}_hazy.png", "test/gt/5{i}_GT.png"),
        },
    ),
    ("nh-haze", "one folder"): Tree(
        "NH-HAZE", {"train": ("{i:02}_hazy.png", "{i:02}_GT.png"), "test": ("5{i}_hazy.png", "5{i}_GT.png")}
    ),
    ("nh-haze", "IRNeXt"): Tree(
        "NH-HAZE",
        {
            "train": ("train/hazy/{i:02}.png", "train/gt/{i:02}.png"),
            "test": ("test/hazy/5{i}.png", "test/gt/5{i}.png"),
        },
    ),
    ("rain13k", "Restormer"): Tree(
        "Datasets",
        {
            "train": ("train/Rain13K/input/{i}.jpg", "train/Rain13K/target/{i}.jpg"),
            "test": _rain_test("Rain100L"),
        },
    ),
    ("rain13k", "MPRNet"): Tree(
        "Rain13K", {"train": ("train/input/{i}.jpg", "train/target/{i}.jpg"), "test": _rain_test("Rain100H")}
    ),
    ("rain13k", "union of four sets"): Tree(
        "rain",
        {
            "train": (
                "Rain14000/training/rainy_image/{c}_{v}.jpg",
                "Rain14000/training/ground_truth/{c}.jpg",
            ),
            "test": _rain_test("Test100"),
        },
        shared=True,
    ),
    ("rain14000", "official"): Tree(
        "Rain14000",
        _splits(
            "SPLIT/rainy_image/{c}_{v}.jpg",
            "SPLIT/ground_truth/{c}.jpg",
            train="training",
            test="testing",
        ),
        shared=True,
    ),
    ("rain14000", "input and target"): Tree(
        "Rain1400", _splits("SPLIT/input/{i}.jpg", "SPLIT/target/{i}.jpg", **_TWO)
    ),
    ("rain1800", "official"): Tree("RainTrainH", {"train": ("rain-{i}.png", "norain-{i}.png")}),
    ("rain1800", "input and target"): Tree("Rain1800", {"train": ("input/{i}.png", "target/{i}.png")}),
    ("rain800", "rain and norain"): Tree(
        "Rain800", _splits("SPLIT/rain/rain-{i:03}.png", "SPLIT/norain/norain-{i:03}.png", **_TWO)
    ),
    ("rain800", "input and target"): Tree(
        "Rain800", _splits("SPLIT/input/{i}.jpg", "SPLIT/target/{i}.jpg", **_TWO)
    ),
    ("rain12", "input and target"): Tree("Rain12", {"train": ("input/{i:03}.png", "target/{i:03}.png")}),
    ("rain12", "one folder"): Tree("rain12", {"train": ("rain-{i:03}.png", "norain-{i:03}.png")}),
    **{
        (name.lower(), layout): Tree(root, {"test": (input, target)})
        for name in ("Rain100L", "Rain100H", "Test100")
        for layout, root, input, target in (
            ("Restormer", "Datasets", *_rain_test(name)),
            ("official", "rain", f"{name}/rain-{{i:03}}.png", f"{name}/norain-{{i:03}}.png"),
            ("PReNet", "rain", f"{name}/rainy/rain-{{i:03}}.png", f"{name}/norain-{{i:03}}.png"),
        )
    },
    **{
        (name.lower(), "IRNeXt"): Tree(
            name,
            _splits(f"SPLIT/Snow/{file}", f"SPLIT/Gt/{target}", train="train2500", test="test2000"),
            others=(f"train2500/Mask/{file}",),
        )
        for name, file, target in (
            ("CSD", "{i}.tif", "{i}.tif"),
            ("SRRS", "{i}.tif", "{i}.jpg"),
            ("Snow100K", "beautiful_smile_0000{i}.jpg", "beautiful_smile_0000{i}.jpg"),
        )
    },
    ("csd", "official"): Tree(
        "CSD",
        _splits("SPLIT/Snow/{i}.tif", "SPLIT/Gt/{i}.tif", train="Train", test="Test"),
        others=("Train/Mask/{i}.tif",),
    ),
    ("snow100k", "official"): Tree(
        "Snow100K",
        {
            "train": ("all/synthetic/city_0{i}.jpg", "all/gt/city_0{i}.jpg"),
            "test": tuple(
                f"media/jdway/GameSSD/overlapping/test/Snow100K-M/{kind}/city_0{{i}}.jpg"
                for kind in ("synthetic", "gt")
            ),
        },
        others=("all/mask/city_0{i}.jpg",),
    ),
}


def make_tree(folder: str | Path, dataset: str, layout: str, pairs: int = PAIRS, size=SIZE) -> Path:
    """Make a miniature of a data set in `folder`; returns its root, which is what --data takes.

    Each split has `pairs` (an even number, at most 8) pictures of `size` (height, width).
    """
    tree = TREES[dataset, layout]
    root = Path(folder) / tree.root
    for position, split in enumerate(SPLITS):
        if split not in tree.splits:
            continue
        lines = []
        for i in range(1, pairs + 1):
            fields = _fields(i, position * pairs + i)
            input, target = (path.format_map(fields) for path in tree.splits[split])
            key = position * pairs + (fields["c"] if tree.shared else i)
            border = tree.border if split == "test" else 0
            write_picture(root / input, key, size, noise=i, bits=tree.bits)
            write_picture(root / target, key, size, bits=tree.bits, border=border)
            for other in tree.others:
                write_picture(root / other.format_map(fields), 0, size)
            lines.append(f"{target} {input}\n")
        if tree.lists:
            path = root / tree.lists.format(split=split.replace("validation", "val"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines))
    return root


def _fields(i: int, n: int) -> dict[str, int]:
    half = (i + 1) // 2
    return {"i": i, "n": n, "s": half, "c": half, "v": i, "d": 3 * i + 6, "e": 3 * i + 7}


def write_picture(path: Path, key: int, size=SIZE, noise: int = 0, bits: int = 8, border: int = 0) -> None:
    """A smooth picture with `key` in its corner, of which `noise` makes a degraded one."""
    height, width = size
    rng = np.random.default_rng([key, noise])
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (5 + key) + channel) + np.cos(columns / 7 - channel) for channel in range(3)]
    values = 128 + 40 * np.stack(waves, 2) + (rng.normal(0, 8, (height, width, 3)) if noise else 0)
    values = np.clip(values, 0, 255).astype(np.uint8)
    values[:_CORNER, :_CORNER] = min(key * _STEP + _STEP // 2, 255)
    values = np.pad(values, ((border, border), (border, border), (0, 0)), "edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    if bits == 16:
        path.write_bytes(png16(values.astype(np.uint16) << 8 | 0xFF))
        return
    encoded = io.BytesIO()
    kind = {".jpg": "JPEG", ".tif": "TIFF", ".png": "PNG"}[path.suffix]
    Image.fromarray(values).save(encoded, kind, **({"quality": 95} if kind == "JPEG" else {}))
    path.write_bytes(encoded.getvalue())


def key_of(picture: np.ndarray) -> int:
    """The key in the corner of a (H, W, 3) uint8 picture."""
    return int(picture[:_CORNER, :_CORNER].mean()) // _STEP


def png16(values: np.ndarray) -> bytes:
    """A PNG file of 16 bits per channel, which Pillow cannot write: values (H, W, 1 or 3) uint16."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
