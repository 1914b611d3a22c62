"""Pictures of any kind and size through any model, whole and in tiles, in memory and in files."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

import irnext
from irnext import bands, images
from irnext.optimization import OptimizedModel
from irnext.restoration import files, inference, restore, restore_files


@pytest.fixture(scope="module")
def model() -> irnext.IRNeXt:
    torch.manual_seed(0)
    model = irnext.IRNeXt(blocks=1, width=8)
    for name, parameter in model.named_parameters():
        if "gain" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


class Local(nn.Module):
    """Convolutions only: a pixel's result depends on 3 pixels around. Outputs a list, as IRNeXt does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))

    def forward(self, x):
        return [x[:, :, ::2, ::2], 0.5 * x + self.layers(x)]


class Recorder(nn.Module):
    """Gives back what it gets and remembers it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return x


def photograph(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[40 : 40 + height, 160 : 160 + width])


@pytest.mark.parametrize("size", [(64, 64), (65, 100), (5, 7), (1, 1), (1, 90), (130, 2)])
def test_any_size_is_continued_by_reflection(size):
    recorder, picture = Recorder(), photograph(*size)
    restored = restore(recorder, picture)
    np.testing.assert_array_equal(restored, picture)
    height, width = (max(64, -(-side // 32) * 32) for side in size)
    expected = np.pad(picture, ((0, height - size[0]), (0, width - size[1]), (0, 0)), "reflect")
    seen = recorder.seen[0][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(seen, expected / np.float32(255), rtol=1e-6)


def test_follows_the_models_own_sizes():
    recorder = Recorder()
    recorder.size_multiple, recorder.minimum_size = 8, 8
    restore(recorder, photograph(17, 5))
    assert recorder.seen[0].shape == (1, 3, 24, 8)


def test_equals_the_model_on_the_whole_picture(model):
    x = torch.from_numpy(photograph(64, 96)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model(x)[-1].clamp(0, 1)
    assert not torch.allclose(expected, x, atol=1e-3)  # the model does something
    torch.testing.assert_close(restore(model, x), expected, rtol=0, atol=0)


def test_every_kind_of_picture_gives_its_own_kind_and_the_same_result(model):
    picture = photograph(70, 50)
    fractions = picture / np.float64(255)
    exact = restore(copy.deepcopy(model).double(), fractions)
    assert exact.dtype == np.float64 and exact.min() >= 0 and exact.max() <= 1
    for dtype, tolerance in ((np.float64, 1e-5), (np.float32, 1e-5), (np.float16, 2e-3)):
        result = restore(model, fractions.astype(dtype))
        assert result.dtype == dtype
        np.testing.assert_allclose(result, exact, atol=tolerance)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.from_numpy(fractions).permute(2, 0, 1).to(dtype)
        result = restore(model, tensor)
        assert result.dtype == dtype and result.shape == (3, 70, 50)
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
        np.testing.assert_allclose(result.permute(1, 2, 0).double().numpy(), exact, atol=tolerance)
    levels = np.rint(exact * 255).astype(int)
    bytes_ = restore(model, picture)
    assert bytes_.dtype == np.uint8 and abs(bytes_.astype(int) - levels).max() <= 1
    image = restore(model, Image.fromarray(picture))
    np.testing.assert_array_equal(np.asarray(image), bytes_)


def test_a_batch_is_restored_picture_by_picture_alike(model):
    pictures = torch.rand(2, 3, 40, 64)
    batch = restore(model, pictures)
    torch.testing.assert_close(batch[1], restore(model, pictures[1]), rtol=0, atol=1e-6)


def test_views_and_read_only_arrays_are_taken(model):
    picture = photograph(64, 64)
    flipped = picture[::-1, :, ::-1]
    flipped.flags.writeable = False
    np.testing.assert_array_equal(restore(model, flipped), restore(model, flipped.copy()))


def test_grey_sees_three_equal_channels_and_stays_grey(model):
    recorder, image = Recorder(), Image.fromarray(photograph(64, 64)[..., 0])
    restore(recorder, image)
    assert torch.equal(recorder.seen[0][:, 0], recorder.seen[0][:, 2])
    assert restore(model, image).mode == "L"


def test_alpha_is_untouched(model):
    image = Image.fromarray(photograph(40, 40))
    image.putalpha(Image.fromarray(photograph(40, 40)[..., 1]))
    result = restore(model, image)
    np.testing.assert_array_equal(np.asarray(result)[..., 3], np.asarray(image)[..., 3])
    assert (np.asarray(result)[..., :3] != np.asarray(image)[..., :3]).any()


def test_the_model_is_left_as_it_was(model):
    model = copy.deepcopy(model).train()
    model.encoder[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    for dtype in (None, torch.bfloat16, torch.float64):
        result = restore(model, torch.rand(3, 64, 64), dtype=dtype)
        assert not result.requires_grad
    assert [module.training for module in model.modules()] == flags
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype


def test_training_flags_return_after_a_failure():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    broken = Broken()
    with pytest.raises(RuntimeError, match="no"):
        restore(broken, torch.rand(3, 8, 8))
    assert broken.training


def test_runs_in_eval_mode(model):
    trained = copy.deepcopy(model).train()
    x = torch.rand(3, 64, 64)
    assert torch.equal(restore(trained, x), restore(model, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_computes_in_that_type(model, dtype):
    x = torch.rand(3, 64, 64)
    single, other = restore(model, x), restore(model, x, dtype=dtype)
    assert other.dtype == torch.float32
    assert not torch.equal(single, other)
    torch.testing.assert_close(single, other, rtol=0, atol=1e-5 if dtype == torch.float64 else 2e-2)


def test_a_model_in_half_precision_is_taken_as_it_is(model):
    x = torch.rand(3, 64, 64)
    half = copy.deepcopy(model).bfloat16()
    torch.testing.assert_close(restore(half, x), restore(model, x), rtol=0, atol=5e-2)
    torch.testing.assert_close(
        restore(half, x, dtype=torch.float32), restore(half.float(), x), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "picture, message",
    [
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (np.full((8, 8, 3), np.inf), "NaN or infinite"),
        (np.full((8, 8, 3), 255.0), "divide by 255"),
        (np.full((8, 8, 3), -1.0), r"down to -1: .*must be in \[0, 1\]"),
        (torch.rand(2, 3, 8, 8) - 1.3, r"bring \[-1, 1\] there"),
        (np.zeros((8, 8), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "uint8"),
        (np.zeros((0, 8, 3), np.uint8), "8x0 pixels"),
        (torch.zeros(1, 8, 8), r"\(3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "floating-point"),
        ("photo.png", "str"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        restore(nn.Identity(), picture)


def test_output_that_is_not_finite_is_an_error():
    class Overflow(nn.Module):
        def forward(self, x):
            return x / 0

    with pytest.raises(FloatingPointError, match="not finite"):
        restore(Overflow(), photograph(8, 8))


def test_memory_that_runs_out_advises_tiles():
    class Huge(nn.Module):
        def forward(self, x):
            return x.new_empty(1 << 60)

    with pytest.raises(MemoryError, match=r"64x64 pixels.*tiles"):
        restore(Huge(), photograph(8, 8))


def test_unusable_device_is_one_clear_error(model):
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        restore(model, photograph(8, 8), device="cuda:99")


# ---- tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (200, 130), (97, 300), (20, 333)])
@pytest.mark.parametrize("tile, overlap", [(64, 32), (96, 48), (96, 20), (128, 33)])
def test_tiles_of_a_local_model_equal_the_whole(size, tile, overlap):
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    model = Local()
    whole = restore(model, picture)
    torch.testing.assert_close(restore(model, picture, tile=tile, overlap=overlap), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 1, 2, 5, 31])
def test_any_overlap_counts_every_pixel_once(overlap):
    picture = torch.rand(3, 150, 220)
    restored = restore(nn.Identity(), picture, tile=64, overlap=overlap)
    torch.testing.assert_close(restored, picture, rtol=0, atol=1e-6)


def test_tiles_have_the_size_asked_and_start_at_multiples():
    recorder = Recorder()
    places = torch.arange(160 * 224).reshape(1, 160, 224).expand(3, -1, -1).double() / (160 * 224)
    restore(recorder, places, tile=64, overlap=20)
    for tile in recorder.seen:
        assert tile.shape == (1, 3, 64, 64)
        first = round(float(tile[0, 0, 0, 0]) * 160 * 224)
        assert first // 224 % 32 == 0 and first % 224 % 32 == 0


def test_no_seam_where_tiles_disagree():
    """Each tile gets its own brightness: the result must go from one to the next in small steps."""

    class Disagreeing(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return torch.full_like(x, self.calls % 2)

    result = restore(Disagreeing(), torch.zeros(3, 64, 512), tile=128, overlap=32)
    steps = result[0].diff(dim=1).abs()
    assert result.min() == 0 and result.max() == 1
    assert steps.max() <= 1 / 16  # the inner half of the overlap and no more


def test_a_tiles_border_does_not_count():
    """A model that spoils the outermost pixels of what it gets: only the picture's own may show it."""

    class Spoiling(nn.Module):
        def forward(self, x):
            y = torch.ones_like(x)
            y[:, :, 4:-4, 4:-4] = x[:, :, 4:-4, 4:-4]
            return y

    result = restore(Spoiling(), torch.zeros(3, 256, 256), tile=96, overlap=32)
    assert result[:, 4:-4, 4:-4].max() == 0
    assert result[:, :4].min() == 1 and result[:, :, -4:].min() == 1


def test_tiles_change_little_where_the_statistics_are_alike(model):
    torch.manual_seed(1)
    picture = torch.rand(3, 192, 192)
    whole, tiled = restore(model, picture), restore(model, picture, tile=128, overlap=64)
    assert 0 < (whole - tiled).abs().mean() < 0.1 * (whole - picture).abs().mean()


@pytest.mark.parametrize(
    "tile, overlap, message",
    [
        (100, 32, "multiple of 32 and at least 64; nearest: 96 and 128"),
        (32, 0, "nearest: 64"),
        (0, 0, "nearest: 64"),
        (-96, 0, "nearest: 64"),
        (64, 33, "from 0 to half the tile, 32"),
        (64, -1, "from 0"),
    ],
)
def test_tiles_that_cannot_be_are_refused(model, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        restore(model, photograph(8, 8), tile=tile, overlap=overlap)


# ---- bounded memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_memory": "8X"}, "memory size '8X'"),
        ({"max_memory": "1G", "tile": 64}, "exclude each other"),
        ({"max_memory": "1K"}, "8x9 pixels|64x64 pixels need at least"),
    ],
)
def test_limits_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        restore(model, photograph(8, 9), **options)


def test_only_an_irnext_can_be_bounded():
    with pytest.raises(ValueError, match="the model is Recorder: use tile"):
        restore(Recorder(), photograph(8, 8), max_memory="1G")


def test_what_restoring_holds_itself_counts(model, monkeypatch):
    """The picture continued and, in another type, once more; the picture given does not."""
    given = []
    forward = OptimizedModel.forward

    def record(self, x, max_memory=None):
        given.append(max_memory)
        return forward(self, x)

    monkeypatch.setattr(OptimizedModel, "forward", record)
    size = 3 * 64 * 96 * 4
    restore(model, photograph(40, 70), max_memory=10**9)
    restore(copy.deepcopy(model).bfloat16(), photograph(40, 70), max_memory=10**9)
    assert given == [10**9 - size, 10**9 - size - size // 2]


def test_a_bounded_model_computes_in_the_type_asked_for(model):
    x = torch.rand(3, 64, 64)
    for made in (model, irnext.optimize(model)):
        for dtype in (None, torch.bfloat16, torch.float64):
            expected = irnext.optimize(model, dtype)(x[None])[-1][0].clamp(0, 1)
            assert torch.equal(restore(made, x, max_memory="1G", dtype=dtype), expected)


def test_a_callers_tensor_is_not_what_the_model_gets():
    class Spoiling(nn.Module):
        def forward(self, x):
            return x.zero_()

    x = torch.rand(1, 3, 64, 64)
    before = x.clone()
    restore(Spoiling(), x)
    assert torch.equal(x, before)


def test_auto_takes_bands_where_the_free_memory_is_too_small(model, folder, tmp_path, monkeypatch, capsys):
    optimized = irnext.optimize(model)
    restore_files(optimized, [folder / "b.png"], tmp_path / "a.png", max_memory="auto")
    assert "computed in bands" not in capsys.readouterr().err
    with pytest.raises(ValueError) as caught:
        optimized(torch.rand(1, 3, 64, 64), max_memory=1)
    free = int(caught.value.least / 0.9) + 2
    monkeypatch.setattr(inference, "available_memory", lambda device: free)
    monkeypatch.setattr(files, "whole_memory", lambda *_: 2 * free)
    report = restore_files(optimized, [folder / "b.png"], tmp_path / "b.png", max_memory="auto")
    assert not report.failed
    assert "b.png: at once it would take" in capsys.readouterr().err
    a, b = (np.asarray(images.read(tmp_path / name), int) for name in ("a.png", "b.png"))
    assert abs(a - b).max() <= 1
    monkeypatch.setattr(inference, "available_memory", lambda device: 1000)
    monkeypatch.setattr(bands, "whole_memory", lambda *_: 2 * free)
    report = restore_files(optimized, [folder / "b.png"], tmp_path / "c.png", max_memory="auto")
    assert "64x64 pixels need at least" in report.failed[folder / "b.png"]


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Pictures of several kinds, and what is none."""
    shots = tmp_path / "shots"
    shots.mkdir()
    Image.fromarray(photograph(40, 50)).save(shots / "b.png")
    Image.fromarray(photograph(30, 20)).save(shots / "a.JPG", "JPEG")
    Image.fromarray(photograph(30, 20)).quantize(8).save(shots / "c.gif")
    (shots / "notes.txt").write_text("no picture")
    (shots / ".hidden.png").write_text("no picture either")
    (shots / "inner").mkdir()
    Image.fromarray(photograph(8, 8)).save(shots / "inner" / "d.png")
    return shots


class Forbidden(nn.Module):
    """A model that must not be run."""

    def forward(self, x):
        raise AssertionError("the model ran")


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_folder_goes_to_a_folder(model, folder, tmp_path):
    report = restore_files(model, [folder], tmp_path / "new" / "out")
    assert names(tmp_path / "new" / "out") == ["a.JPG", "b.png", "c.png"]
    assert [path.name for path in report.written] == ["a.JPG", "b.png", "c.png"] and not report.failed
    expected = restore(model, photograph(40, 50))
    np.testing.assert_array_equal(np.asarray(images.read(tmp_path / "new/out/b.png")), expected)


def test_files_and_patterns_are_each_taken_once(model, folder, tmp_path):
    report = restore_files(
        model, [folder / "b.png", f"{folder}/**/*.png", folder / "b.png"], tmp_path / "out"
    )
    assert [path.name for path in report.written] == ["b.png", "d.png"]


def test_one_file_to_a_file_name_with_another_format(model, folder, tmp_path):
    restore_files(model, [folder / "a.JPG"], tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as written:
        assert written.format == "TIFF" and written.size == (20, 30)


def test_compare_shows_before_and_after(model, folder, tmp_path):
    report = restore_files(model, [folder / "b.png"], tmp_path / "x.png", compare=True)
    assert [path.name for path in report.written] == ["x.png", "x.png-compare.png"]
    pair = np.asarray(images.read(tmp_path / "x.png-compare.png"))
    np.testing.assert_array_equal(pair[:, :50], photograph(40, 50))
    np.testing.assert_array_equal(pair[:, 50:], np.asarray(images.read(tmp_path / "x.png")))


def test_tiles_and_type_reach_the_model(folder, tmp_path):
    recorder = Recorder()
    Image.fromarray(photograph(64, 200)).save(tmp_path / "wide.png")
    restore_files(recorder, [tmp_path / "wide.png"], tmp_path / "x.png", tile=96, dtype=torch.float64)
    assert {tuple(x.shape) for x in recorder.seen} == {(1, 3, 64, 96)}
    assert recorder.seen[0].dtype == torch.float64


def test_a_corrupt_picture_does_not_stop_the_others(model, folder, tmp_path):
    bad = folder / "aa.png"
    bad.write_bytes((folder / "b.png").read_bytes()[:200])
    report = restore_files(model, [folder], tmp_path / "out")
    assert [path.name for path in report.written] == ["a.JPG", "b.png", "c.png"]
    assert list(report.failed) == [bad] and str(bad) in report.failed[bad]
    assert names(tmp_path / "out") == ["a.JPG", "b.png", "c.png"]


def test_what_the_format_cannot_hold_fails_before_the_model_runs(folder, tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    report = restore_files(Forbidden(), [tmp_path / "clear.png"], tmp_path / "x.jpg")
    assert "cannot hold a transparent picture" in report.failed[tmp_path / "clear.png"]
    assert not (tmp_path / "x.jpg").exists()


def test_inputs_are_never_overwritten(folder):
    before = (folder / "b.png").read_bytes()
    for output in (folder, folder / "b.png", folder / "inner" / ".." / "b.png"):
        with pytest.raises(ValueError, match="overwrite an input"):
            restore_files(Forbidden(), [folder / "b.png"], output)
    (folder / "b-compare.png").write_bytes(before)
    with pytest.raises(ValueError, match="overwrite an input"):
        restore_files(Forbidden(), [folder / "b-compare.png", folder / "b.png"], folder / "b.png" / "..")
    assert (folder / "b.png").read_bytes() == before


def test_two_results_of_one_name_are_refused(folder, tmp_path):
    Image.fromarray(photograph(8, 8)).save(folder / "inner" / "b.png")
    with pytest.raises(ValueError, match=r"both be written to .*b\.png"):
        restore_files(Forbidden(), [folder / "b.png", folder / "inner" / "b.png"], tmp_path / "out")
    Image.fromarray(photograph(8, 8)).save(folder / "c.png")  # beside c.gif, which becomes c.png
    with pytest.raises(ValueError, match=r"both be written to .*c\.png"):
        restore_files(Forbidden(), [folder], tmp_path / "out")
    Image.fromarray(photograph(8, 8)).save(folder / "b.png-compare.png")
    with pytest.raises(ValueError, match=r"both be written to .*b\.png-compare\.png"):
        restore_files(
            Forbidden(), [folder / "b.png", folder / "b.png-compare.png"], tmp_path / "out", compare=True
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "inputs, output, error, message",
    [
        (["missing.png"], "out", FileNotFoundError, "missing.png: no such file"),
        (["empty"], "out", ValueError, "empty: no pictures in this folder"),
        (["*.webp"], "out", ValueError, "no pictures match"),
        ([], "out", ValueError, "no pictures given"),
        (["shots"], "out.png", ValueError, "names one picture, but there are 3 inputs"),
        (["shots/b.png"], "out.gif", ValueError, "cannot write .gif"),
        (["shots/b.png"], "shots/notes.txt", ValueError, "notes.txt: this is a file, not a folder"),
        (["shots/b.png"], "shots/notes.txt/out.png", OSError, "a file, not a folder: 'shots/notes.txt'"),
        (["shots/b.png"], "shots/notes.txt/out", OSError, "a file, not a folder: 'shots/notes.txt'"),
    ],
)
def test_bad_calls_are_refused_before_the_model_runs(
    folder, tmp_path, monkeypatch, inputs, output, error, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        restore_files(Forbidden(), inputs, output)
    assert names(tmp_path) == ["empty", "shots"]


def test_a_folder_without_permission_is_refused_before_the_model_runs(folder, tmp_path, monkeypatch):
    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.touch", deny)
    with pytest.raises(PermissionError) as caught:
        restore_files(Forbidden(), [folder], tmp_path / "new" / "out")
    assert caught.value.filename == str(tmp_path / "new" / "out")  # not the file it was tried with
    assert not (tmp_path / "new").exists()


def test_pictures_of_one_stem_are_compared_apart(model, folder, tmp_path):
    Image.fromarray(photograph(8, 8)).save(folder / "b.jpg")
    restore_files(model, [folder / "b.png", folder / "b.jpg"], tmp_path / "out", compare=True)
    assert names(tmp_path / "out") == ["b.jpg", "b.jpg-compare.png", "b.png", "b.png-compare.png"]


def test_a_picture_that_cannot_be_encoded_does_not_stop_the_others(model, folder, tmp_path, monkeypatch):
    save = Image.Image.save

    def fail(image, file, kind, **options):
        if kind == "JPEG":
            raise RuntimeError("encoder error -2")
        save(image, file, kind, **options)

    monkeypatch.setattr(Image.Image, "save", fail)
    report = restore_files(model, [folder], tmp_path / "out")
    assert names(tmp_path / "out") == ["b.png", "c.png"]
    assert "out/a.JPG: the picture cannot be encoded: encoder error -2" in report.failed[folder / "a.JPG"]


def test_no_empty_folder_is_left_where_every_picture_failed(folder, tmp_path):
    (folder / "b.png").write_text("no picture")
    assert restore_files(Forbidden(), [folder / "b.png"], tmp_path / "new" / "out").failed
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    assert restore_files(Forbidden(), [folder / "b.png"], tmp_path / "mine").failed
    assert (tmp_path / "mine").is_dir()  # only what was made here goes


def test_an_empty_batch_comes_back_as_it_is(model):
    batch = torch.empty(0, 3, 40, 50, dtype=torch.float16)
    assert restore(Forbidden(), batch) is batch
    assert restore(model, batch, tile=64, dtype=torch.bfloat16) is batch


def test_a_little_outside_the_range_is_taken():
    picture = torch.tensor([-0.2, 1.3]).expand(3, 4, 2)
    assert restore(nn.Identity(), picture).unique().tolist() == [0, 1]


def test_a_picture_with_exif_orientation_is_restored_upright(model, folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph(40, 50)).save(tmp_path / "turned.png", exif=exif)
    restore_files(model, [tmp_path / "turned.png"], tmp_path / "x.png")
    upright = np.ascontiguousarray(np.rot90(photograph(40, 50), -1))
    np.testing.assert_array_equal(np.asarray(images.read(tmp_path / "x.png")), restore(model, upright))
