"""Synthetic pairs and crops, and the clean pictures they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from irnext.data.degradations import DEGRADATIONS, Defocus, Haze
from irnext.data.synthetic import (
    Augmentation,
    CleanPictures,
    DeadLeaves,
    Mixture,
    SyntheticCrops,
    SyntheticPairs,
)

AS_THEY_ARE = Augmentation(shrink=1, flips=False, turns=False, channels=False, gamma=0)


class Noise:
    """A source of `count` pictures of random pixels."""

    def __init__(self, count, height=50, width=60):
        self.pictures = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)

    def __len__(self):
        return len(self.pictures)

    def name(self, index):
        return f"noise-{index}"

    def read(self, index):
        return self.pictures[index].copy()


class Untouched:
    """A degradation that leaves pictures as they are."""

    def degrade(self, clean, rng):
        return clean


def windows(picture, size):
    return np.lib.stride_tricks.sliding_window_view(picture, size, (0, 1)).transpose(0, 1, 3, 4, 2)


def contains(picture, crop):
    """Whether `crop` (h, w, 3) is a window of `picture`."""
    return (windows(picture, crop.shape[:2]) == crop).all((2, 3, 4)).any()


def hwc(tensor):
    return tensor.permute(1, 2, 0).numpy()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "sub" / ".thumbs").mkdir(parents=True)
    colours = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "b.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([colours, colours[..., :1]])).save(tmp_path / "sub" / "c.PNG")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(tmp_path / "sub" / "d.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "sub" / ".thumbs" / "c.png").write_bytes(b"no picture")
    return tmp_path, colours


def test_a_folder_is_read_with_its_subfolders(folder):
    path, colours = folder
    pictures = CleanPictures(path)
    assert [pictures.name(i) for i in range(len(pictures))] == ["a.png", "b.png", "sub/c.PNG", "sub/d.png"]
    grey = np.repeat(colours[..., :1], 3, 2)
    for index, expected in enumerate((grey, colours, colours, grey)):
        assert pictures.read(index).dtype == np.uint8
        np.testing.assert_array_equal(pictures.read(index), expected)


def test_files_are_named_below_their_common_folder(folder):
    path, colours = folder
    pictures = CleanPictures([path / "sub" / "c.PNG", path / "b.png"])
    assert [pictures.name(i) for i in range(2)] == ["sub/c.PNG", "b.png"]
    assert CleanPictures([path / "b.png"]).name(0) == "b.png"
    np.testing.assert_array_equal(pictures.read(1), colours)


@pytest.mark.parametrize("memory", [0, 2000, 2**20])
def test_what_is_kept_in_memory_cannot_be_changed_from_outside(folder, memory):
    path, colours = folder
    pictures = CleanPictures(path, memory=memory)
    for _ in range(3):
        picture = pictures.read(1)
        np.testing.assert_array_equal(picture, colours)
        picture[:] = 0


def test_pictures_are_decoded_once_where_memory_allows(folder):
    path, colours = folder
    kept, forgetful = CleanPictures(path), CleanPictures(path, memory=0)
    for pictures in (kept, forgetful):
        pictures.read(1)
    (path / "b.png").unlink()
    np.testing.assert_array_equal(kept.read(1), colours)
    with pytest.raises(OSError):
        forgetful.read(1)


def test_missing_and_broken_pictures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CleanPictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no pictures"):
        CleanPictures(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lost\.png"):
        CleanPictures([tmp_path / "lost.png"])
    with pytest.raises(ValueError, match="at least one"):
        CleanPictures([])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match=r"broken\.png"):
        CleanPictures(tmp_path).read(0)
    with pytest.raises(IndexError):
        CleanPictures(tmp_path).read(1)


def test_dead_leaves_are_the_same_whenever_they_are_read():
    leaves, again = (DeadLeaves(3, (20, 30), seed=4, memory=memory) for memory in (0, 2**20))
    assert len(leaves) == 3 and leaves.name(2) == "leaves-00002"
    pictures = [leaves.read(index) for index in range(3)]
    for index in (2, 0, 1, 2):
        assert again.read(index).shape == (20, 30, 3) and again.read(index).dtype == np.uint8
        np.testing.assert_array_equal(again.read(index), pictures[index])
    assert (pictures[0] != pictures[1]).any() and (DeadLeaves(3, (20, 30)).read(0) != pictures[0]).any()
    for settings in ({"count": 0}, {"count": 1, "size": 0}, {"count": 1, "seed": -1}):
        with pytest.raises(ValueError, match="at least"):
            DeadLeaves(**settings)
    with pytest.raises(IndexError):
        leaves.read(3)


def test_a_mixture_joins_its_sources():
    first, second = Noise(3), Noise(5)
    both = Mixture({"first": first, "second": second})
    assert len(both) == 8 and len({both.name(i) for i in range(8)}) == 8
    assert both.name(2) == "first/noise-2" and both.name(3) == "second/noise-0"
    for index in range(8):
        expected = first.read(index) if index < 3 else second.read(index - 3)
        np.testing.assert_array_equal(both.read(index), expected)
    with pytest.raises(IndexError):
        both.read(8)


@pytest.mark.parametrize(("shares", "expected"), [(None, [1 / 6] * 6), ([3, 1], [3 / 8] * 2 + [1 / 16] * 4)])
def test_a_mixture_draws_by_its_shares(shares, expected):
    both, rng = Mixture({"first": Noise(2), "second": Noise(4)}, shares), np.random.default_rng(0)
    counts = np.bincount([both.draw(rng) for _ in range(6000)], minlength=6)
    np.testing.assert_allclose(counts / 6000, expected, atol=0.02)


def test_a_mixture_of_nothing_or_with_wrong_shares_is_refused():
    for sources, shares in (
        ({}, None),
        ({"a": Noise(1)}, [1, 2]),
        ({"a": Noise(1)}, [-1]),
        ({"a": Noise(1)}, [0]),
    ):
        with pytest.raises(ValueError, match=r"at least one|shares"):
            Mixture(sources, shares)


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_a_picture_is_always_degraded_in_the_same_way(task):
    noise, degradation = Noise(3), DEGRADATIONS[task]()
    pairs, again, other = (SyntheticPairs(noise, degradation, seed) for seed in (5, 5, 6))
    assert len(pairs) == 3 and pairs.name(1) == "noise-1"
    inputs = []
    for index in (2, 0, 1):
        given, target = pairs.read(index)
        assert given.shape == target.shape == (50, 60, 3) and given.dtype == target.dtype == np.uint8
        np.testing.assert_array_equal(target, noise.read(index))
        np.testing.assert_array_equal(given, again.read(index)[0])
        assert (given != other.read(index)[0]).any()
        inputs.append(given)
    # Not one degradation for all: in light of the same picture they differ.
    same = SyntheticPairs(Mixture({"a": Noise(1), "b": Noise(1)}), degradation, 5)
    assert (same.read(0)[0] != same.read(1)[0]).any()


def test_the_degraded_picture_is_rounded():
    class Darker:
        def degrade(self, clean, rng):
            return clean * np.float32(0.7)

    given, target = SyntheticPairs(Noise(1), Darker()).read(0)
    np.testing.assert_array_equal(given, np.rint(target.astype(np.float32) / 255 * np.float32(0.7) * 255))


@pytest.mark.parametrize("patch", [16, (10, 24), (50, 60)])
def test_a_crop_is_a_window_of_its_picture(patch):
    noise = Noise(4)
    crops = SyntheticCrops(noise, Untouched(), patch, augmentation=AS_THEY_ARE)
    size = (patch, patch) if isinstance(patch, int) else patch
    assert len(crops) == 4
    for epoch in range(3):
        for index in range(4):
            given, target = crops[epoch, index]
            assert given.shape == (3, *size) and given.dtype == torch.uint8 and given.is_contiguous()
            assert torch.equal(given, target)
            assert contains(noise.read(index), hwc(target))


def test_places_change_with_every_epoch_and_reach_the_corners():
    crops = SyntheticCrops(Noise(1, 12, 13), Untouched(), 10, augmentation=AS_THEY_ARE)
    picture = crops.clean.read(0)
    places = set()
    for epoch in range(200):
        found = (windows(picture, (10, 10)) == hwc(crops[epoch, 0][1])).all((2, 3, 4))
        places.add(tuple(np.argwhere(found)[0]))
    assert places == {(y, x) for y in range(3) for x in range(4)}


@pytest.mark.parametrize("height", [1, 5, 20])
def test_pictures_smaller_than_the_patch_are_reflected(height):
    noise = Noise(1, height, 7)
    target = SyntheticCrops(noise, Untouched(), (24, 7), augmentation=AS_THEY_ARE)[0, 0][1]
    expected = np.pad(noise.read(0), ((0, 24 - height), (0, 0), (0, 0)), "reflect")
    np.testing.assert_array_equal(hwc(target), expected)


@pytest.mark.parametrize(
    ("settings", "variants"),
    [
        ({"flips": True}, [lambda p: p, lambda p: p[:, ::-1]]),
        ({"turns": True}, [lambda p, k=k: np.rot90(p, k) for k in range(4)]),
        ({"channels": True}, [lambda p, o=o: p[..., o] for o in ([0, 1, 2], [2, 1, 0], [1, 0, 2])]),
    ],
)
def test_each_augmentation_does_its_part(settings, variants):
    plain = {"shrink": 1, "flips": False, "turns": False, "channels": False, "gamma": 0}
    noise = Noise(1, 20, 20)
    crops = SyntheticCrops(noise, Untouched(), (20, 20), augmentation=Augmentation(**{**plain, **settings}))
    seen = [hwc(crops[epoch, 0][1]) for epoch in range(60)]
    for variant in variants:
        assert any(np.array_equal(crop, variant(noise.read(0))) for crop in seen)
    turned = SyntheticCrops(noise, Untouched(), (9, 14), augmentation=Augmentation(**{**plain, **settings}))
    assert {tuple(turned[epoch, 0][1].shape) for epoch in range(20)} == {(3, 9, 14)}


def test_gamma_brightens_and_darkens_all_of_a_crop():
    crops = SyntheticCrops(
        Noise(1, 16, 16), Untouched(), 16, augmentation=Augmentation(1, False, False, False, gamma=0.5)
    )
    picture = crops.clean.read(0).astype(float)
    means = []
    for epoch in range(100):
        target = hwc(crops[epoch, 0][1]).astype(float)
        assert target[picture == 0].max(initial=0) == 0 and target[picture == 255].min(initial=255) == 255
        means.append(target.mean() / picture.mean())
    assert 0.75 < min(means) < 0.85 and 1.15 < max(means) < 1.3


def test_shrinking_reaches_the_whole_picture_and_never_more_than_asked():
    ramp = np.repeat(np.arange(0, 200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)

    class Ramp(Noise):
        def read(self, index):
            return ramp

    for shrink, largest in ((1, 1), (2, 2), (np.inf, 4)):
        only = Augmentation(shrink, False, False, False, gamma=0)
        crops = SyntheticCrops(Ramp(1), Untouched(), (25, 50), augmentation=only)
        spans = [np.ptp(hwc(crops[epoch, 0][1])[5].astype(int)) / 49 for epoch in range(200)]
        assert 0.95 <= min(spans) < 1 + 0.1 * largest and 0.9 * largest < max(spans) <= largest + 0.05


def test_an_epoch_of_given_length_draws_pictures_by_share():
    both = Mixture({"dark": Noise(1), "light": Noise(3)}, [1, 1])
    crops = SyntheticCrops(both, Untouched(), 8, length=200, augmentation=AS_THEY_ARE)
    assert len(crops) == 200
    dark = sum(contains(both.read(0), hwc(crops[0, index][1])) for index in range(200))
    assert 70 < dark < 130
    counts = np.zeros(4)
    plain = SyntheticCrops(Noise(4), Untouched(), (50, 60), length=200, augmentation=AS_THEY_ARE)
    for index in range(200):
        counts += [np.array_equal(plain.clean.read(k), hwc(plain[0, index][1])) for k in range(4)]
    assert counts.sum() == 200 and counts.min() > 25


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_workers_change_nothing(task):
    clean = Mixture({"noise": Noise(2), "leaves": DeadLeaves(2, 40)})
    crops = SyntheticCrops(clean, DEGRADATIONS[task](), 32, seed=9, length=6)
    keys = [[(0, 3), (0, 1)], [(1, 0), (0, 2)], [(4, 5), (1, 4)]]
    inline, forked = (list(DataLoader(crops, batch_sampler=keys, num_workers=workers)) for workers in (0, 2))
    for mine, theirs in zip(inline, forked, strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    assert not torch.equal(crops[0, 3][1], crops[1, 3][1])
    other = SyntheticCrops(clean, DEGRADATIONS[task](), 32, seed=10, length=6)
    assert not torch.equal(crops[0, 3][0], other[0, 3][0])


def test_the_crop_is_what_is_degraded():
    noise = Noise(1, 64, 64)
    crops = SyntheticCrops(noise, Haze(beta=(0, 0)), 32)
    for epoch in range(5):
        given, target = crops[epoch, 0]
        assert torch.equal(given, target)
    blurred, target = SyntheticCrops(noise, Defocus(noise=(0, 0)), 32, augmentation=AS_THEY_ARE)[0, 0]
    assert blurred.float().std() < target.float().std()


def test_keys_and_settings_out_of_range_are_refused():
    crops = SyntheticCrops(Noise(2), Untouched(), 8)
    for key in ((0, 2), (0, -1), (-1, 0)):
        with pytest.raises(IndexError, match="from 0"):
            crops[key]
    with pytest.raises(ValueError, match="patch"):
        SyntheticCrops(Noise(2), Untouched(), 0)
    with pytest.raises(ValueError, match="length"):
        SyntheticCrops(Noise(2), Untouched(), 8, length=0)
    with pytest.raises(ValueError, match="seed"):
        SyntheticPairs(Noise(2), Untouched(), seed=-1)
    with pytest.raises(ValueError, match="no clean pictures"):
        SyntheticCrops(Noise(0), Untouched(), 8)
    with pytest.raises(ValueError, match="shrink"):
        Augmentation(shrink=0.5)
    with pytest.raises(ValueError, match="gamma"):
        Augmentation(gamma=-1)
