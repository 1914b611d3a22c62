"""Data sets on disk: found, paired rightly and split rightly, in every layout; and what is wrong is said."""

from __future__ import annotations

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.utils.data import DataLoader
from trees import PAIRS, SIZE, SPLITS, TREES, key_of, make_tree, png16, write_picture

from irnext import cli, data
from irnext.data import TrainingCrops, decoding, open_pairs
from irnext.data.discovery import find, recognise
from irnext.data.specifications import DATASETS

TABLE14 = json.loads(
    """{"dpdd": [350, 76], "its": [13990, 500], "ots": [313950, 500], "dense-haze": [50, 5],
    "nh-haze": [50, 5], "rain14000": [11200, 2800], "rain1800": [1800, 0], "rain800": [700, 100],
    "rain100h": [0, 100], "rain100l": [0, 100], "rain12": [12, 0], "csd": [8000, 2000],
    "snow100k": [50000, 50000], "gopro": [2103, 1111], "rsblur": [8878, 3360]}"""
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Every miniature tree, each in a folder of its own: (data set, layout) to root."""
    folder = tmp_path_factory.mktemp("trees")
    return {case: make_tree(folder / "-".join(case), *case) for case in TREES}


def check(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(["data", "check", *map(str, arguments)])
    output, errors = capsys.readouterr()
    return code, output, errors


@pytest.mark.parametrize("case", TREES, ids=" ".join)
def test_is_recognised_and_paired(case, trees, capsys):
    dataset, layout = case
    root = trees[case]
    assert [[(found.dataset.key, found.layout.name) for found in one] for one in recognise(root)] == [[case]]
    for position, split in enumerate(SPLITS):
        if split not in TREES[case].splits:
            continue
        pairs = open_pairs(dataset, root, split)
        assert (len(pairs), pairs.layout, pairs.split, pairs.unpaired) == (PAIRS, layout, split, [])
        names = [pairs.name(index) for index in range(PAIRS)]
        assert len(set(names)) == PAIRS and not any(name.endswith((".png", ".jpg", ".tif")) for name in names)
        keys = []
        for index in range(PAIRS):
            input, target = pairs.read(index)
            assert input.shape == target.shape == (*SIZE, 3) and input.dtype == target.dtype == np.uint8
            assert key_of(input) == key_of(target) and (input != target).any()
            keys.append(key_of(target))
        of_split = {1, 2} if TREES[case].shared else {1, 2, 3, 4}
        assert set(keys) == {position * PAIRS + key for key in of_split}
    code, output, errors = check(capsys, root)
    assert code == 0 and errors == "" and f", {layout} layout, " in output and ", 80x96, 0 unpaired" in output
    assert output.startswith(DATASETS[dataset].title) and output.count("\n") == 1


@pytest.mark.parametrize("case", TREES, ids=" ".join)
def test_is_found_from_above_and_from_inside(case, trees):
    dataset, _ = case
    root = trees[case]
    split = next(iter(TREES[case].splits))
    inside = root / TREES[case].splits[split][0].split("/")[0]
    for path in (root.parent, inside if inside.is_dir() else root):
        assert set(find(DATASETS[dataset], path).splits) == set(TREES[case].splits)
        pairs = open_pairs(dataset, path, split)
        assert len(pairs) == PAIRS and key_of(pairs.read(0)[0]) == key_of(pairs.read(0)[1])


def test_every_set_of_table_14_has_a_tree_and_its_published_counts():
    assert set(TABLE14) | {"srrs"} <= {dataset for dataset, _ in TREES}
    for key, (train, test) in TABLE14.items():
        counts = [dict(layout.published) for layout in DATASETS[key].layouts]
        expected = {split: count for split, count in (("train", train), ("test", test)) if count}
        assert expected in [
            {split: count for split, count in published.items() if split != "validation"}
            for published in counts
        ], key


def test_validation_falls_back_to_the_test_pictures(trees):
    gopro = trees["gopro", "MIMO"]
    assert open_pairs("gopro", gopro, "validation").pairs == open_pairs("gopro", gopro, "test").pairs
    rsblur = trees["rsblur", "official"]
    assert open_pairs("rsblur", rsblur, "validation").pairs != open_pairs("rsblur", rsblur, "test").pairs


def test_mimo_validates_on_valid_where_there_is_a_test_folder_too(tmp_path):
    root = make_tree(tmp_path, "gopro", "MIMO")
    shutil.copytree(root / "test", root / "valid")
    assert {open_pairs("gopro", root, split).pairs[0].input.parts[-3] for split in SPLITS} == {
        "train",
        "valid",
        "test",
    }
    assert open_pairs("gopro", root, "test").layout == "MIMO"


def test_a_layout_can_be_asked_for(tmp_path):
    root = make_tree(tmp_path, "dpdd", "official")
    make_tree(tmp_path, "dpdd", "official, left view")
    assert open_pairs("dpdd", root, "test").pairs[0].input.parts[-3] == "test_c"
    left = open_pairs("dpdd", root, "test", layout="official, left view")
    assert left.pairs[0].input.parts[-3] == "test_l"
    with pytest.raises(
        ValueError, match="no layout 'right' of DPDD here; found: official, official, left view"
    ):
        open_pairs("dpdd", root, "test", layout="right")
    with pytest.raises(FileNotFoundError, match="no GoPro here; this looks like DPDD"):
        open_pairs("gopro", root, "test", layout="MIMO")


def test_rsblur_takes_what_its_lists_name(tmp_path):
    root = make_tree(tmp_path, "rsblur", "official")
    path = root / "datalist/RSBlur/RSBlur_real_test.txt"
    path.write_text(path.read_text().splitlines()[2])
    assert [pair.name for pair in open_pairs("rsblur", root, "test").pairs] == ["0002/000011"]
    path.write_text(f"{path.read_text()}\n{path.read_text().replace('000011', '000099')}")
    pairs = open_pairs("rsblur", root, "test")
    assert len(pairs) == 1
    assert pairs.unpaired == [root / "RSBlur/0002/000099/real_blur/real_blur.png"]  # listed, but not there
    shutil.rmtree(root / "datalist")
    with pytest.raises(FileNotFoundError, match=r"RSBlur_real_\{train,val,test\}\.txt"):
        open_pairs("rsblur", root, "train")


def test_the_union_of_rain_sets_has_all_their_pairs(tmp_path):
    root = make_tree(tmp_path, "rain13k", "union of four sets")
    for number, (folder, input, target) in enumerate(
        [("RainTrainH", "rain-{}.png", "norain-{}.png"), ("Rain12", "input/{}.png", "target/{}.png")], 20
    ):
        write_picture(root / folder / input.format(1), number, noise=1)
        write_picture(root / folder / target.format(1), number)
    pairs = open_pairs("rain13k", root, "train")
    assert len(pairs) == PAIRS + 2 and {"Rain1800/rain-1", "Rain12/1"} <= {pair.name for pair in pairs.pairs}
    assert all(key_of(input) == key_of(target) for input, target in map(pairs.read, range(len(pairs))))


# What pictures are read as


def test_16_bits_are_read_by_their_high_byte(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    (tmp_path / "by-hand.png").write_bytes(png16(values))
    assert cv2.imwrite(str(tmp_path / "by-opencv.png"), values[..., ::-1])
    (tmp_path / "grey.png").write_bytes(png16(values[..., :1]))
    np.testing.assert_array_equal(data.read_picture(tmp_path / "by-hand.png"), values >> 8)
    np.testing.assert_array_equal(data.read_picture(tmp_path / "by-opencv.png"), values >> 8)
    np.testing.assert_array_equal(data.read_picture(tmp_path / "grey.png"), values[..., [0, 0, 0]] >> 8)


def test_kinds_of_pictures(tmp_path):
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (5, 8, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(rgba[..., 0]).save(tmp_path / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[..., :3]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(rgba[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(data.read_picture(tmp_path / "alpha.png"), rgba[..., :3])
    np.testing.assert_array_equal(data.read_picture(tmp_path / "grey.png"), rgba[..., [0, 0, 0]])
    np.testing.assert_array_equal(data.read_picture(tmp_path / "turned.png"), rgba[..., :3])
    with pytest.raises(ValueError, match=r"float\.tif: a grey picture of 32 bits"):
        data.read_picture(tmp_path / "float.tif")


def test_broken_pictures_are_named(tmp_path):
    root = make_tree(tmp_path, "ots", "IRNeXt")
    pairs = open_pairs("ots", root, "train")
    cut, text = pairs.pairs[0].input, pairs.pairs[2].target
    cut.write_bytes(cut.read_bytes()[:2000])
    text.write_text("no picture")
    with pytest.raises(ValueError, match=rf"{cut.name}: the picture cannot be decoded: .*truncated"):
        pairs.read(0)
    with pytest.raises(ValueError, match=f"{text.name}: not a picture"):
        pairs.read(2)
    allowed = open_pairs("ots", root, "train", allow_truncated=True)
    assert key_of(allowed.read(0)[0]) == key_of(allowed.read(0)[1])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # Pillow's switch is back where it was
    with pytest.raises(ValueError, match="truncated"):
        pairs.read(0)


def test_sizes_must_agree(tmp_path):
    root = make_tree(tmp_path, "gopro", "MIMO")
    pairs = open_pairs("gopro", root, "train")
    write_picture(pairs.pairs[1].target, 1, (80, 90))
    with pytest.raises(ValueError, match=r"000002.png has 96x80 pixels and its ground truth .* has 90x80"):
        pairs.read(1)


def test_the_larger_ground_truth_of_sots_is_cropped_at_its_centre(trees):
    pairs = open_pairs("sots-indoor", trees["sots-indoor", "official"], "test")
    target = np.asarray(Image.open(pairs.pairs[0].target))
    assert target.shape == (100, 116, 3)
    np.testing.assert_array_equal(pairs.read(0)[1], target[10:90, 10:106])


# Custom folders


@pytest.mark.parametrize(("inputs", "targets"), [("hazy", "GT"), ("LQ", "hq"), ("rain", "norain")])
def test_any_folder_pair_is_a_custom_set(inputs, targets, tmp_path, capsys):
    for index in range(3):
        write_picture(tmp_path / inputs / f"a{index}.png", index, noise=1)
        write_picture(tmp_path / targets / f"a{index}.jpg", index)
    for split in ("train", "test"):
        pairs = open_pairs("custom", tmp_path, split)
        assert [pair.name for pair in pairs.pairs] == ["a0", "a1", "a2"]
        assert all(key_of(input) == key_of(target) for input, target in map(pairs.read, range(3)))
    with pytest.raises(FileNotFoundError, match="with train and test pairs, but no validation pairs"):
        open_pairs("custom", tmp_path, "validation")
    assert check(capsys, tmp_path) == (
        0,
        "custom pairs, folder pair layout, 3 train and 3 test pairs, 80x96, 0 unpaired\n",
        "",
    )


def test_custom_splits_and_explicit_folders(tmp_path):
    for position, split in enumerate(("training", "val", "test")):
        write_picture(tmp_path / split / "blurry" / "x_1.png", position, noise=1)
        write_picture(tmp_path / split / "sharp" / "x.png", position)
    for position, split in enumerate(SPLITS):
        pairs = open_pairs("custom", tmp_path, split)
        assert len(pairs) == 1 and key_of(pairs.read(0)[0]) == position == key_of(pairs.read(0)[1])
    pairs = open_pairs(
        "custom", tmp_path, "train", input_folder="val/blurry", target_folder=tmp_path / "val" / "sharp"
    )
    assert key_of(pairs.read(0)[1]) == 1 and pairs.name(0) == "x_1"
    with pytest.raises(ValueError, match="give both or none"):
        open_pairs("custom", tmp_path, "train", input_folder="val/blurry")
    with pytest.raises(ValueError, match="for the task custom, not for gopro"):
        open_pairs("gopro", tmp_path, "train", input_folder="a", target_folder="b")
    with pytest.raises(FileNotFoundError, match=r"no picture in .* has one of its name"):
        open_pairs("custom", tmp_path, "train", input_folder="val/blurry", target_folder="val")


def test_of_two_targets_the_one_with_the_same_suffix_is_taken(tmp_path):
    for key, name in enumerate(("1.jpg", "1.png")):
        write_picture(tmp_path / "hazy" / name, key, noise=1)
        write_picture(tmp_path / "gt" / name, key)
    pairs = open_pairs("custom", tmp_path, "train")
    assert [pair.name for pair in pairs.pairs] == ["1", "1.png"]
    assert [tuple(map(key_of, pairs.read(index))) for index in range(2)] == [(0, 0), (1, 1)]


def test_two_possible_input_folders_are_refused(tmp_path):
    for folder in ("hazy", "blur", "gt"):
        write_picture(tmp_path / folder / "1.png", 1)
    with pytest.raises(ValueError, match=r"blur and hazy could be meant alike"):
        open_pairs("custom", tmp_path, "train")


# What is wrong is said


def test_unpaired_pictures_are_listed(tmp_path, capsys):
    root = make_tree(tmp_path, "its", "IRNeXt")
    lost = root / "train/gt/1.png"
    lost.unlink()
    write_picture(root / "test/gt/1499.png", 0)
    pairs = open_pairs("its", root, "train")
    assert len(pairs) == 2 and [path.name for path in pairs.unpaired] == [
        "1_1_0.90179.png",
        "1_2_0.90179.png",
    ]
    assert [path.name for path in open_pairs("its", root, "test").unpaired] == ["1499.png"]
    code, output, _ = check(capsys, root)
    assert code == 0 and "2 of 13,990 train and 4 of 500 test pairs, 80x96, 3 unpaired\n" in output
    assert output.count("  unpaired: ") == 3


def test_ordered_pictures_must_be_equal_in_number(tmp_path, capsys):
    root = make_tree(tmp_path, "dpdd", "official")
    next((root / "train_c/target").iterdir()).unlink()
    with pytest.raises(
        ValueError, match=r"4 pictures train_c/source/{name} and 3 pictures train_c/target/{name}"
    ):
        open_pairs("dpdd", root, "train")
    code, output, errors = check(capsys, root)
    assert code == 2 and "4 of 74 validation and 4 of 76 test pairs" in output and "they pair by" in errors


def test_nothing_there(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        open_pairs("gopro", tmp_path / "none", "train")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="this is a file"):
        open_pairs("gopro", file, "train")
    empty = tmp_path / "a" / "b" / "c"
    empty.mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"no GoPro here; looked for train/\{scene\}/blur/\{frame\} with"
    ):
        open_pairs("gopro", empty, "train")
    code, output, errors = check(capsys, empty)
    assert code == 2 and output == "" and "two folders are needed" in errors and errors.count("\n") == 1
    (empty / "train.lmdb").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train\.lmdb is one of NAFNet's databases"):
        open_pairs("gopro", empty, "train")


def test_missing_ground_truth_folder(tmp_path):
    root = make_tree(tmp_path, "gopro", "MIMO")
    shutil.rmtree(root / "train/sharp")
    with pytest.raises(
        FileNotFoundError, match="GoPro, MIMO layout, with test pairs, but no train pairs: looked"
    ):
        open_pairs("gopro", root, "train")
    shutil.rmtree(root / "test/sharp")
    with pytest.raises(
        FileNotFoundError, match=r"blur/GOPR.*png is there, its ground truth train/sharp/GOPR.* not"
    ):
        open_pairs("gopro", root, "train")


def test_the_wrong_task(trees, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no GoPro here; this looks like RESIDE ITS: use the task its"
    ):
        open_pairs("gopro", trees["its", "IRNeXt"], "train")
    with pytest.raises(ValueError, match="this is RSBlur, not GoPro; its task is rsblur"):
        open_pairs("gopro", trees["rsblur", "SFNet"], "train")
    with pytest.raises(ValueError, match="unknown data set 'gorpo': use gopro, rsblur"):
        open_pairs("gorpo", tmp_path, "train")
    with pytest.raises(ValueError, match="unknown split 'valid': use train, validation, test"):
        open_pairs("gopro", tmp_path, "valid")


def test_two_data_sets_in_one_folder(tmp_path, capsys):
    first = make_tree(tmp_path, "gopro", "MIMO")
    make_tree(tmp_path, "csd", "official")
    code, output, _ = check(capsys, tmp_path)
    assert code == 0 and sorted(line.split(",")[0] for line in output.splitlines()) == ["CSD", "GoPro"]
    shutil.copytree(first, tmp_path / "GoPro_Large")
    with pytest.raises(ValueError, match=r"GOPRO and .*GoPro_Large could both be GoPro: give one of them"):
        open_pairs("gopro", tmp_path, "train")


def test_folders_that_do_not_say_what_they_are(tmp_path, capsys):
    """{train,test}/{input,target} with plain numbers: several sets look so, and both are told."""
    root = make_tree(tmp_path, "rain800", "input and target").rename(tmp_path / "data")
    code, output, errors = check(capsys, root)
    assert code == 2 and output == "" and "could be" in errors and "--task" in errors, (output, errors)
    assert check(capsys, root, "--task", "rain800")[0] == 0


def test_hidden_files_and_other_files_are_left_alone(tmp_path):
    root = make_tree(tmp_path, "gopro", "MIMO")
    for name in ("._GOPR0372_07_01_000001.png", "Thumbs.db", "notes.txt"):
        (root / "train/blur" / name).write_bytes(b"x")
    pairs = open_pairs("gopro", root, "train")
    assert (len(pairs), pairs.unpaired) == (PAIRS, [])


def test_check_deep_reads_every_picture(tmp_path, capsys):
    root = make_tree(tmp_path, "csd", "official", pairs=40, size=(16, 18))
    broken = root / "Train/Snow/2.tif"
    broken.write_bytes(broken.read_bytes()[:300])
    write_picture(root / "Test/Gt/7.tif", 7, (16, 17))
    assert check(capsys, root)[0] == 0  # the sample of headers shows neither
    code, _, errors = check(capsys, root, "--deep")
    assert code == 2 and errors.count("\n") == 2
    assert "Train/Snow/2.tif" in errors and "Test/Gt/7.tif has 17x16" in errors


# Training crops


def test_crops_depend_on_seed_epoch_and_index_alone(trees):
    pairs = open_pairs("gopro", trees["gopro", "MIMO"], "train")
    crops = TrainingCrops(pairs, (32, 48), seed=3)
    assert len(crops) == PAIRS
    keys = [(epoch, index) for epoch in range(3) for index in range(PAIRS)]
    direct = [crops[key] for key in keys]
    assert all(part.shape == (3, 32, 48) and part.dtype == torch.uint8 for pair in direct for part in pair)
    loader = DataLoader(crops, sampler=keys[::-1], batch_size=None, num_workers=2)
    for (input, target), (same_input, same_target) in zip(list(loader)[::-1], direct, strict=True):
        assert torch.equal(input, same_input) and torch.equal(target, same_target)
    assert not torch.equal(direct[0][0], direct[PAIRS][0])  # another epoch
    assert not torch.equal(direct[0][0], TrainingCrops(pairs, (32, 48), seed=4)[0, 0][0])
    again = pickle.loads(pickle.dumps(crops))
    assert torch.equal(again[2, 1][0], crops[2, 1][0])


class Numbered:
    """One pair whose pixels tell their place; the target is the input with the channels turned round."""

    def __init__(self, height: int, width: int) -> None:
        rows, columns = np.mgrid[0:height, 0:width]
        self.picture = np.stack([rows, columns, rows + columns], 2).astype(np.uint8)

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "picture"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.picture, self.picture[..., ::-1]


def test_crops_are_aligned_reach_everywhere_and_are_mirrored_half_the_time():
    crops = TrainingCrops(Numbered(20, 24), 17, seed=0)
    places, mirrored = set(), 0
    for epoch in range(400):
        input, target = crops[epoch, 0]
        assert torch.equal(input, target.flip(0))
        rows, columns = input[0].int(), input[1].int()
        step = int(columns[0, 1] - columns[0, 0])
        assert abs(step) == 1 and (rows.diff(dim=0) == 1).all() and (columns.diff(dim=1) == step).all()
        mirrored += step == -1
        places.add((int(rows.min()), int(columns.min())))
    assert places == {(top, left) for top in range(4) for left in range(8)}
    assert 160 < mirrored < 240
    unflipped = TrainingCrops(Numbered(20, 24), 17, seed=0, flip=False)
    assert all(int(unflipped[epoch, 0][0][1].diff(dim=1).min()) == 1 for epoch in range(20))


@pytest.mark.parametrize(("height", "width"), [(5, 40), (40, 5), (7, 3), (1, 1)])
def test_small_pictures_are_padded_by_reflection(height, width):
    pairs = Numbered(height, width)
    input, target = TrainingCrops(pairs, 12, seed=0, flip=False)[0, 0]
    assert input.shape == target.shape == (3, 12, 12)
    rows, columns = input[0].numpy(), input[1].numpy()
    period = max(2 * (height - 1), 1)
    expected = [min(row % period, period - row % period) if height > 1 else 0 for row in range(12)]
    if height < 12:
        np.testing.assert_array_equal(rows[:, 0], expected)
    period = max(2 * (width - 1), 1)
    if width < 12:
        expected = [
            min(column % period, period - column % period) if width > 1 else 0 for column in range(12)
        ]
        np.testing.assert_array_equal(columns[0], expected)


def test_a_patch_needs_pixels():
    with pytest.raises(ValueError, match="a patch of 0x8 pixels"):
        TrainingCrops(Numbered(8, 8), (0, 8), seed=0)


# Decoded copies


def test_decode_cache_copies_a_data_set_with_png_for_jpeg(tmp_path, capsys):
    root = make_tree(tmp_path, "ots", "IRNeXt")
    copy = tmp_path / "copy" / "reside-outdoor"
    assert cli.main(["data", "decode-cache", str(root), str(copy)]) == 0
    assert "12 files, decoded by libjpeg" in capsys.readouterr().out
    for split in ("train", "test"):
        before, after = open_pairs("ots", root, split), open_pairs("ots", copy, split)
        assert [pair.name for pair in before.pairs] == [pair.name for pair in after.pairs]
        for index in range(len(before)):
            for one, other in zip(before.read(index), after.read(index), strict=True):
                np.testing.assert_array_equal(one, other)
    assert not [path for path in copy.rglob("*.*") if path.suffix != ".png"]


def test_decode_cache_resumes_and_names_broken_files(tmp_path, capsys):
    root = make_tree(tmp_path, "ots", "IRNeXt")
    copy = tmp_path / "copy"
    broken = root / "train/hazy/0001_0.8_0.01.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:2000])
    assert cli.main(["data", "decode-cache", str(root), str(copy)]) == 1
    assert broken.name in capsys.readouterr().err and not (copy / "train/hazy/0001_0.8_0.01.png").exists()
    kept = copy / "train/gt/0001.png"
    before = kept.stat().st_mtime_ns
    broken.write_bytes(whole)
    assert cli.main(["data", "decode-cache", str(root), str(copy)]) == 0
    assert kept.stat().st_mtime_ns == before and (copy / "train/hazy/0001_0.8_0.01.png").exists()


def test_decode_cache_refuses(tmp_path):
    write_picture(tmp_path / "a/1.png", 1)
    with pytest.raises(ValueError, match="no JPEG files here"):
        decoding.plan(tmp_path / "a", tmp_path / "b")
    write_picture(tmp_path / "a/1.jpg", 1)
    with pytest.raises(ValueError, match=r"1\.png and .*1\.jpg would both become"):
        decoding.plan(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="neither inside nor around it"):
        decoding.plan(tmp_path / "a", tmp_path / "a/b")
