"""The paper's data sets (Table 14) as they lie on disk: folders, names, pairing rules, published counts.

This file is data: `discovery` finds and pairs by it. A pattern is a picture's path without its suffix, from
the data set's root, in which

- `{field}` stands for any text without "/", as short as possible, and means the same text in the target;
- `a|b`, between two "/", stands for either.

Letters match regardless of case, and a target may have another suffix than its input (SRRS: .tif and .jpg).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Form(NamedTuple):
    """Patterns of an input and of its target."""

    input: str
    target: str


@dataclass(frozen=True)
class Source:
    """Where pairs of one split lie. A split is the union of its sources.

    Args:
        forms: an input is paired by the first form that it matches and whose target exists.
        prefix: put before the names of the pairs, to tell the sources of a union apart.
        numbers: take only pictures whose `{number}` is among these.
        ordered: pair by sorted order, where names differ.
        lists: text files with lines "target input", paths from the root; the first that exists is taken.
        crop_target: crop larger ground truth at its centre to the input's size.
    """

    forms: tuple[Form, ...]
    prefix: str = ""
    numbers: range | None = None
    ordered: bool = False
    lists: tuple[str, ...] = ()
    crop_target: bool = False


Sources = tuple[Source, ...]


@dataclass(frozen=True)
class Layout:
    """One way in which a data set circulates; `published` are the numbers of pairs of this form."""

    name: str
    train: Sources = ()
    validation: Sources = ()
    test: Sources = ()
    published: Mapping[Split, int] = field(default_factory=dict)

    def sources(self, split: Split) -> Sources:
        return getattr(self, split)


@dataclass(frozen=True)
class Dataset:
    """A data set: `folders` are names that its root is known by, `stem` a regular expression of its inputs'
    names, `hint` is added to the message when it is not found."""

    key: str
    title: str
    folders: tuple[str, ...]
    layouts: tuple[Layout, ...]
    stem: str | None = None
    hint: str = ""


def _same(input: str, target: str, **options) -> Sources:
    """Pictures of the same name in two folders."""
    return (Source((Form(f"{input}/{{name}}", f"{target}/{{name}}"),), **options),)


def _within(folder: str, sources: Sources, prefix: str = "") -> Sources:
    """The same sources one folder further down."""
    return tuple(
        replace(
            source,
            forms=tuple(Form(f"{folder}/{form.input}", f"{folder}/{form.target}") for form in source.forms),
            prefix=prefix,
        )
        for source in sources
    )


# Motion blur


def _blur_sharp(folder: str) -> Sources:
    """The same name, or one that says "gt" where the input's says "blur" (IRNeXt's, ConvIR's loaders)."""
    input, target = f"{folder}/blur", f"{folder}/sharp"
    same = Form(f"{input}/{{name}}", f"{target}/{{name}}")
    return (Source((same, Form(f"{input}/{{before}}blur{{after}}", f"{target}/{{before}}gt{{after}}"))),)


def _scenes(split: str) -> Sources:
    return (Source((Form(f"{split}/{{scene}}/blur/{{frame}}", f"{split}/{{scene}}/sharp/{{frame}}"),)),)


_GOPRO = {"train": 2103, "test": 1111}
GOPRO = Dataset(
    "gopro",
    "GoPro",
    ("gopro", "gopro_large"),
    (
        Layout("official", train=_scenes("train"), test=_scenes("test"), published=_GOPRO),
        Layout(
            "MIMO",
            _blur_sharp("train"),
            _blur_sharp("valid"),
            _blur_sharp("test"),
            published=_GOPRO,
        ),
        Layout("IRNeXt", train=_blur_sharp("train"), test=_blur_sharp("valid"), published=_GOPRO),
        Layout(
            "Restormer",
            _same("train/GoPro/input", "train/GoPro/target"),
            _same("val/GoPro/input_crops", "val/GoPro/target_crops"),
            _same("test/GoPro/input", "test/GoPro/target"),
            published=_GOPRO,
        ),
        Layout(
            "Restormer crops",
            _same("train/GoPro/input_crops", "train/GoPro/target_crops"),
            _same("val/GoPro/input_crops", "val/GoPro/target_crops"),
            _same("test/GoPro/input", "test/GoPro/target"),
            published={"test": 1111},
        ),
        Layout(
            "MPRNet",
            train=_same("train/input", "train/target"),
            test=_same("test/input", "test/target"),
            published=_GOPRO,
        ),
        Layout(
            "NAFNet crops",
            train=_same("train/blur_crops", "train/sharp_crops"),
            test=_same("test/input", "test/target"),
            published={"test": 1111},
        ),
    ),
    stem=r"GOPR\d{4}_\d\d_\d\d.*|\d{6}",
    hint="use the pictures in blur, not those in blur_gamma",
)


def _listed(split: str) -> Sources:
    name = f"RSBlur_real_{split}.txt"
    folders = ("datalist/RSBlur/", "RSBlur/datalist/RSBlur/", "RSBlur/datalist/", "RSBlur/", "")
    form = Form("RSBlur/{scene}/{shot}/real_blur/real_blur", "RSBlur/{scene}/{shot}/gt/gt_sharp")
    return (Source((form,), lists=tuple(folder + name for folder in folders)),)


_RSBLUR = {"train": 8878, "test": 3360}
RSBLUR = Dataset(
    "rsblur",
    "RSBlur",
    ("rsblur",),
    (
        Layout("official", _listed("train"), _listed("val"), _listed("test"), published=_RSBLUR),
        Layout("SFNet", train=_blur_sharp("train"), test=_blur_sharp("valid"), published=_RSBLUR),
        Layout("flattened", _blur_sharp("train"), _blur_sharp("val"), _blur_sharp("test"), published=_RSBLUR),
    ),
    stem=r"real_blur|\d{4}_\d{6}.*",
    hint="the official folders need the lists datalist/RSBlur/RSBlur_real_{train,val,test}.txt beside or in "
    "them, from github.com/rimchang/RSBlur",
)


# Defocus


def _views(split: str, view: str) -> Sources:
    return _same(f"{split}_{view}/source", f"{split}_{view}/target", ordered=True)


def _restormer_views(split: str, view: str, crops: str) -> Sources:
    folder = f"{split}/DPDD"
    return _same(f"{folder}/input{view}{crops}", f"{folder}/target{crops}", ordered=True)


_DPDD = {"train": 350, "validation": 74, "test": 76}
_VIEWS = {"C": "", "L": ", left view", "R": ", right view"}
DPDD = Dataset(
    "dpdd",
    "DPDD",
    ("dpdd", "dd_dp_dataset_png", "dd_dp_dataset_canon"),
    (
        *(
            Layout(
                f"official{which}",
                _views("train", view.lower()),
                _views("val", view.lower()),
                _views("test", view.lower()),
                published=_DPDD,
            )
            for view, which in _VIEWS.items()
        ),
        *(
            Layout(
                f"Restormer{which}",
                _restormer_views("train", view, ""),
                _restormer_views("val", view, ""),
                _restormer_views("test", view, ""),
                published=_DPDD,
            )
            for view, which in _VIEWS.items()
        ),
        *(
            Layout(
                f"Restormer crops{which}",
                _restormer_views("train", view, "_crops"),
                _restormer_views("val", view, "_crops"),
                _restormer_views("test", view, ""),
                published={"test": 76},
            )
            for view, which in _VIEWS.items()
        ),
    ),
)


# Haze


def _hazy(folder: str, target: str, **options) -> Sources:
    """Several hazy pictures of one clear picture, whose name they have up to the first "_"."""
    form = Form(f"{folder}hazy/{{clear}}_{{rest}}", f"{folder}{target}/{{clear}}")
    return (Source((form,), **options),)


def _sots(place: str) -> Sources:
    """The official ground truth has 10 pixels more on each side than the hazy pictures."""
    return _hazy(f"SOTS/{place}/", "gt", crop_target=True)


def _packaged_reside(train: int, test: int = 500) -> tuple[Layout, ...]:
    counts = {"train": train, "test": test}
    test_set = _hazy("test/", "gt", crop_target=True)
    return (
        Layout("IRNeXt", train=_hazy("train/", "gt"), test=test_set, published=counts),
        Layout(
            "DehazeFormer",
            train=_same("train/hazy", "train/gt"),
            test=_same("test/hazy", "test/gt"),
            published=counts,
        ),
        Layout(
            "DEA-Net",
            train=_hazy("train/", "clear"),
            test=_hazy("test/", "clear", crop_target=True),
            published=counts,
        ),
    )


ITS = Dataset(
    "its",
    "RESIDE ITS",
    ("reside-indoor", "reside-in", "its"),
    (
        *_packaged_reside(13990),
        Layout(
            "official",
            train=_hazy("ITS|ITS_v2/", "clear"),
            test=_sots("indoor"),
            published={"train": 13990, "test": 500},
        ),
        Layout("official ITS", train=_hazy("", "clear"), published={"train": 13990}),
    ),
    stem=r"\d+_\d+(_[\d.]+)?",
)

OTS = Dataset(
    "ots",
    "RESIDE OTS",
    ("reside-outdoor", "reside-out", "ots"),
    (
        *_packaged_reside(313950),
        Layout(
            "official",
            train=(
                Source((Form("OTS|OTS_BETA/hazy/{part}/{clear}_{rest}", "OTS|OTS_BETA/clear/{clear}"),)),
                *_hazy("OTS|OTS_BETA/", "clear"),
            ),
            test=_sots("outdoor"),
            published={"train": 313950, "test": 500},
        ),
        Layout(
            "official OTS",
            train=(Source((Form("hazy/{part}/{clear}_{rest}", "clear/{clear}"),)), *_hazy("", "clear")),
            published={"train": 313950},
        ),
    ),
    stem=r"\d{4}_[01](\.\d+)?_0\.\d+",
    hint="published code reads cut-off files of this set: allow_truncated=True does so here",
)


def _sots_alone(key: str, title: str, place: str, package: tuple[str, ...], stem: str) -> Dataset:
    test = {"test": 500}
    return Dataset(
        key,
        title,
        (*package, "sots", place),
        (
            Layout("official", test=_sots(place), published=test),
            *(replace(layout, train=(), published=test) for layout in _packaged_reside(0)),
            Layout("one folder", test=_hazy("", "gt", crop_target=True), published=test),
        ),
        stem=stem,
    )


SOTS_INDOOR = _sots_alone(
    "sots-indoor", "SOTS indoor", "indoor", ("reside-indoor", "reside-in", "its"), ITS.stem
)
SOTS_OUTDOOR = _sots_alone(
    "sots-outdoor", "SOTS outdoor", "outdoor", ("reside-outdoor", "reside-out", "ots"), OTS.stem
)


def _numbered(input: str, target: str, numbers: range | None = None) -> Sources:
    """51_hazy and 51_GT, or the same name."""
    same = Form(f"{input}{{number}}", f"{target}{{number}}")
    suffixed = Form(f"{input}{{number}}_hazy", f"{target}{{number}}_gt")
    forms = (suffixed,) if input == target else (suffixed, same)
    return (Source(forms, numbers=numbers),)


def _ntire_haze(key: str, title: str, folders: tuple[str, ...]) -> Dataset:
    counts = {"train": 50, "test": 5}
    train, test = range(1, 51), range(51, 56)
    return Dataset(
        key,
        title,
        folders,
        (
            Layout(
                "IRNeXt",
                train=_numbered("train/hazy/", "train/gt/"),
                test=_numbered("test/hazy/", "test/gt/"),
                published=counts,
            ),
            Layout(
                "official",
                train=_numbered("hazy/", "gt/", train),
                test=_numbered("hazy/", "gt/", test),
                published=counts,
            ),
            Layout(
                "one folder", train=_numbered("", "", train), test=_numbered("", "", test), published=counts
            ),
        ),
        stem=r"\d+_hazy",
    )


DENSE_HAZE = _ntire_haze("dense-haze", "Dense-Haze", ("dense-haze", "dense_haze", "dense_haze_ntire19"))
NH_HAZE = _ntire_haze("nh-haze", "NH-HAZE", ("nh-haze", "nh_haze", "nhhaze"))


# Rain


def _jorder(folder: str) -> tuple[Sources, Sources]:
    """Rain100H and its like: rain-001 beside norain-001, or the rainy ones in a folder of their own."""
    return (
        (Source((Form(f"{folder}/rain-{{number}}", f"{folder}/norain-{{number}}"),)),),
        (Source((Form(f"{folder}/rainy/rain-{{number}}", f"{folder}/norain-{{number}}"),)),),
    )


def _rain_test_set(name: str, count: int = 100) -> Dataset:
    flat, rainy = _jorder(name)
    counts = {"test": count}
    return Dataset(
        name.lower(),
        name,
        (name.lower(), "rain13k"),
        (
            Layout("Restormer", test=_same(f"test/{name}/input", f"test/{name}/target"), published=counts),
            Layout("one set", test=_same(f"{name}/input", f"{name}/target"), published=counts),
            Layout("official", test=flat, published=counts),
            Layout("PReNet", test=rainy, published=counts),
        ),
    )


RAIN100L, RAIN100H, TEST100 = map(_rain_test_set, ("Rain100L", "Rain100H", "Test100"))


def _ddn(split: str) -> Sources:
    """Rain14000: fourteen rainy pictures, 1_1 to 1_14, of the clean 1."""
    return (Source((Form(f"{split}/rainy_image/{{clear}}_{{number}}", f"{split}/ground_truth/{{clear}}"),)),)


def _rain_no_rain(split: str) -> Sources:
    return (Source((Form(f"{split}/rain/rain-{{number}}", f"{split}/norain/norain-{{number}}"),)),)


def _one_folder() -> Sources:
    return (Source((Form("rain-{number}", "norain-{number}"),)),)


_TRAIN, _TEST = "train|training", "test|testing"
_DDN_COUNTS, _RAIN800_COUNTS = {"train": 11200, "test": 2800}, {"train": 700, "test": 100}
RAIN14000 = Dataset(
    "rain14000",
    "Rain14000",
    ("rain14000", "rain1400", "rain12600", "ddn"),
    (
        Layout("official", train=_ddn(_TRAIN), test=_ddn(_TEST), published=_DDN_COUNTS),
        Layout(
            "input and target",
            train=_same("train/input", "train/target"),
            test=_same("test/input", "test/target"),
            published=_DDN_COUNTS,
        ),
    ),
    stem=r"\d+_\d+",
)
RAIN1800 = Dataset(
    "rain1800",
    "Rain1800",
    ("rain1800", "raintrainh"),
    (
        Layout("official", train=_one_folder(), published={"train": 1800}),
        Layout("input and target", train=_same("input", "target"), published={"train": 1800}),
    ),
    stem=r"rain-\d+",
)
RAIN800 = Dataset(
    "rain800",
    "Rain800",
    ("rain800",),
    (
        Layout(
            "rain and norain",
            train=_rain_no_rain("train"),
            test=_rain_no_rain("test"),
            published=_RAIN800_COUNTS,
        ),
        Layout(
            "input and target",
            train=_same("train/input", "train/target"),
            test=_same("test/input", "test/target"),
            published=_RAIN800_COUNTS,
        ),
    ),
)
RAIN12 = Dataset(
    "rain12",
    "Rain12",
    ("rain12", "li_cvpr16_rain"),
    (
        Layout("input and target", train=_same("input", "target"), published={"train": 12}),
        Layout("one folder", train=_one_folder(), published={"train": 12}),
    ),
)


_PARTS = tuple(  # the four sets that Rain13K is the union of, each in a folder of its name
    source
    for part in (RAIN14000, RAIN1800, RAIN800, RAIN12)
    for layout in part.layouts
    for source in _within("|".join(part.folders), layout.train, part.title)
)
_RAIN_TESTS = tuple(
    source
    for name in ("Rain100L", "Rain100H", "Test100")
    for source in _same(f"test/{name}/input", f"test/{name}/target", prefix=name)
)
_RAIN13K = {"train": 13712, "test": 300}
RAIN13K = Dataset(
    "rain13k",
    "Rain13K",
    ("rain13k",),
    (
        Layout(
            "Restormer",
            train=_same("train/Rain13K/input", "train/Rain13K/target"),
            test=_RAIN_TESTS,
            published=_RAIN13K,
        ),
        Layout("MPRNet", train=_same("train/input", "train/target"), test=_RAIN_TESTS, published=_RAIN13K),
        Layout("union of four sets", train=_PARTS, test=_RAIN_TESTS, published=_RAIN13K),
    ),
)


# Snow


def _snowy(split: str) -> Sources:
    return _same(f"{split}/Snow", f"{split}/Gt")


_SUBSETS = Layout(  # the 2,500 and 2,000 pictures that IRNeXt and its relatives train and test on
    "IRNeXt", train=_snowy("train2500"), test=_snowy("test2000"), published={"train": 2500, "test": 2000}
)
CSD = Dataset(
    "csd",
    "CSD",
    ("csd",),
    (
        _SUBSETS,
        Layout(
            "official", train=_snowy("Train"), test=_snowy("Test"), published={"train": 8000, "test": 2000}
        ),
    ),
)
SRRS = Dataset("srrs", "SRRS", ("srrs",), (_SUBSETS,))


def _snow100k_test(folder: str) -> Sources:
    folder = f"{folder}test/Snow100K-{{subset}}"
    return _same(f"{folder}/synthetic", f"{folder}/gt")


_SNOW100K = {"train": 50000, "test": 50000}
SNOW100K = Dataset(
    "snow100k",
    "Snow100K",
    ("snow100k",),
    (
        _SUBSETS,
        Layout(
            "official",
            train=_same("all/synthetic", "all/gt"),
            test=_snow100k_test("media/jdway/GameSSD/overlapping/"),
            published=_SNOW100K,
        ),
        Layout(
            "official, moved",
            train=_same("train|all/synthetic", "train|all/gt"),
            test=_snow100k_test(""),
            published=_SNOW100K,
        ),
    ),
)


# Any other folders

INPUT_FOLDERS = "input|inputs|hazy|blur|blurry|rain|rainy|snow|synthetic|source|degraded|lq|in"
TARGET_FOLDERS = "target|targets|gt|sharp|clear|clean|norain|groundtruth|ground_truth|hq|reference"
_SPLIT_FOLDERS = {
    "train": "train|training",
    "validation": "val|valid|validation",
    "test": "test|testing",
}


def _any_pairs(folder: str = "") -> Sources:
    """The same name, or the target's up to the input's first "_"."""
    input, target = f"{folder}{INPUT_FOLDERS}", f"{folder}{TARGET_FOLDERS}"
    same = Form(f"{input}/{{name}}", f"{target}/{{name}}")
    return (Source((same, Form(f"{input}/{{clear}}_{{rest}}", f"{target}/{{clear}}"))),)


CUSTOM = Dataset(
    "custom",
    "custom pairs",
    (),
    (
        Layout("split folders", **{split: _any_pairs(f"{name}/") for split, name in _SPLIT_FOLDERS.items()}),
        Layout("folder pair", train=_any_pairs(), test=_any_pairs()),
    ),
    hint="two folders are needed, of degraded pictures (input, hazy, blur, rain, snow, lq, ...) and of "
    "their ground truth (target, gt, clear, sharp, clean, hq, ...) by the same names, or such two in each of "
    "train, val and test",
)

DATASETS: dict[str, Dataset] = {
    dataset.key: dataset
    for dataset in (
        GOPRO,
        RSBLUR,
        DPDD,
        ITS,
        OTS,
        SOTS_INDOOR,
        SOTS_OUTDOOR,
        DENSE_HAZE,
        NH_HAZE,
        RAIN13K,
        RAIN14000,
        RAIN1800,
        RAIN800,
        RAIN12,
        RAIN100L,
        RAIN100H,
        TEST100,
        CSD,
        SRRS,
        SNOW100K,
    )
}

# The test sets of tasks that are trained on another set, by their keys.
TEST_SETS = {
    "its": ("sots-indoor",),
    "ots": ("sots-outdoor",),
    "rain13k": ("rain100l", "rain100h", "test100"),
}
