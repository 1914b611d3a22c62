"""Every kind of picture file comes back upright, of the same kind, whole or not at all."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageCms, TiffImagePlugin

from irnext import images

ORIENTATION = 0x0112


def photograph(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey() -> Image.Image:
    return Image.fromarray(photograph()[..., 0])


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(photograph()[..., 1]))
    return image


def round_trip(image: Image.Image) -> Image.Image:
    """What a model that changes nothing makes of the picture."""
    simple = images.simplify(image)
    return images.with_colour(simple, images.colour(simple))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_eight_bits_come_back_unchanged(mode):
    image = Image.fromarray(photograph()).convert(mode.removesuffix("A"))
    image = with_alpha(image) if mode.endswith("A") else image
    result = round_trip(image)
    assert result.mode == mode
    np.testing.assert_array_equal(np.asarray(result), np.asarray(image))


def test_colours_are_fractions_and_grey_is_three_equal_channels():
    values = images.colour(grey())
    assert values.dtype == np.float32 and values.shape == (12, 20, 3)
    np.testing.assert_array_equal(values, np.repeat(photograph()[..., :1] / np.float32(255), 3, 2))


def test_rounds_to_the_nearest_level():
    black = Image.new("RGB", (1, 1))
    assert images.with_colour(black, np.full((1, 1, 3), 99.6 / 255)).getpixel((0, 0)) == (100, 100, 100)


def test_grey_is_the_mean_of_the_channels():
    values = np.array([[[0.2, 0.4, 0.9]]], np.float32)
    assert images.with_colour(Image.new("L", (1, 1)), values).getpixel((0, 0)) == round(0.5 * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_survive_a_file(tmp_path, suffix):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    images.write(Image.fromarray(levels), tmp_path / f"in{suffix}")
    result = round_trip(images.read(tmp_path / f"in{suffix}"))
    images.write(result, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as written:
        np.testing.assert_array_equal(np.asarray(written), levels)


def test_floating_point_tiff_survives(tmp_path):
    values = np.linspace(0, 1, 240, dtype=np.float32).reshape(12, 20)
    images.write(round_trip(Image.fromarray(values)), tmp_path / "out.tif")
    np.testing.assert_allclose(np.asarray(images.read(tmp_path / "out.tif")), values, atol=1e-6)


@pytest.mark.parametrize("values", [np.float32([[0, 255]]), np.float32([[np.nan]]), np.int32([[-1, 70000]])])
def test_ranges_that_are_no_picture_are_refused(values):
    with pytest.raises(ValueError, match="spans"):
        images.simplify(Image.fromarray(values))


def test_palette_with_transparency_becomes_rgba(tmp_path):
    palette = Image.fromarray(photograph()).quantize(16)
    palette.info["transparency"] = 3
    palette.save(tmp_path / "p.png")
    image = images.read(tmp_path / "p.png")
    assert image.mode == "P"
    result = round_trip(image)
    assert result.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(result)[..., 3] == 0, np.asarray(palette) == 3)
    np.testing.assert_array_equal(np.asarray(result)[..., :3], np.asarray(palette.convert("RGB")))


def test_a_transparent_grey_value_becomes_alpha(tmp_path):
    grey().save(tmp_path / "g.png", transparency=int(photograph()[0, 0, 0]))
    result = round_trip(images.read(tmp_path / "g.png"))
    assert result.mode == "LA" and result.getpixel((0, 0))[1] == 0


def test_one_bit_becomes_grey():
    result = round_trip(grey().convert("1"))
    assert result.mode == "L" and set(np.unique(result)) == {0, 255}


def test_cmyk_becomes_rgb_without_its_profile():
    image = Image.fromarray(photograph()).convert("CMYK")
    image.info["icc_profile"] = b"not a profile"
    result = round_trip(image)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(image.convert("RGB")))
    assert "icc_profile" not in result.info


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_turns_upright_and_write_keeps_it(tmp_path, suffix, orientation):
    stored = Image.fromarray(np.repeat(np.repeat(photograph(4, 6), 8, 0), 8, 1))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "Maker"
    stored.save(tmp_path / f"in{suffix}", exif=exif, **images.FORMATS[suffix].options)
    turns = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}[orientation]  # Transpose numbers
    upright = stored
    for turn in turns:
        upright = upright.transpose(Image.Transpose(turn))

    image = images.read(tmp_path / f"in{suffix}")
    images.write(round_trip(image), tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as written:
        exif = written.getexif()
        assert exif.get(ORIENTATION, 1) == 1 and exif[0x010F].strip("\0") == "Maker"
        tolerance = 16 if suffix == ".jpg" else 0
        np.testing.assert_allclose(np.asarray(written, int), np.asarray(upright, int), atol=tolerance)


def test_tiff_layout_tags_of_the_source_are_not_inherited(tmp_path):
    one_bit = grey().convert("1")
    one_bit.save(tmp_path / "fax.tif", compression="group4")
    images.write(round_trip(images.read(tmp_path / "fax.tif")), tmp_path / "out.tif")
    np.testing.assert_array_equal(
        np.asarray(images.read(tmp_path / "out.tif")), np.asarray(one_bit.convert("L"))
    )


@pytest.mark.parametrize("source", [".jpg", ".tif"])
def test_a_cameras_directories_are_kept_in_tiff(tmp_path, source):
    """The compressing TIFF writer cannot write them; what other EXIF data there is stays compressed."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(34665).update({0x829A: 0.01, 0xA005: {1: "R98"}})
    exif.get_ifd(34853).update({1: "N", 2: (1.0, 2.0, 3.0)})
    options = {".jpg": {}, ".tif": {"compression": "raw"}}[source]
    Image.fromarray(photograph()).save(tmp_path / f"in{source}", exif=exif.tobytes(), **options)
    image = images.read(tmp_path / f"in{source}")
    image.info["compression"] = "tiff_lzw"  # of a source: not for the result
    images.write(image, tmp_path / "out.tif")
    images.write(images.read(tmp_path / "out.tif"), tmp_path / "again.tif")  # warnings are errors here
    for name in ("out.tif", "again.tif"):
        with Image.open(tmp_path / name) as written:
            found = written.getexif()
            assert found[0x010F] == "Maker" and dict(found.get_ifd(34665)) == {0x829A: 0.01}
            assert found.get_ifd(34853)[2] == (1.0, 2.0, 3.0)
            np.testing.assert_array_equal(np.asarray(written), np.asarray(image))


def test_an_encoders_failure_names_the_file_and_leaves_nothing(tmp_path):
    image = Image.new("RGB", (70000, 1))  # a JPEG has at most 65535 pixels along a side
    with pytest.raises(ValueError, match=r"long\.jpg: the picture cannot be encoded: "):
        images.write(image, tmp_path / "long.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_resolution_is_kept(tmp_path, suffix):
    Image.fromarray(photograph()).save(tmp_path / f"in{suffix}", dpi=(300, 150))
    images.write(round_trip(images.read(tmp_path / f"in{suffix}")), tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as written:
        assert written.info["dpi"] == pytest.approx((300, 150), abs=0.02)


def test_resolution_turns_with_the_picture_and_nonsense_is_dropped(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(photograph()).save(tmp_path / "in.jpg", dpi=(300, 150), exif=exif)
    assert images.read(tmp_path / "in.jpg").info["dpi"] == (150, 300)
    for nonsense in ((float("nan"), 72), (0, 0), (1e9, 1e9), 72, (None, None)):
        image = Image.fromarray(photograph())
        image.info["dpi"] = nonsense
        images.write(image, tmp_path / "out.jpg")
        assert "dpi" not in images.read(tmp_path / "out.jpg").info


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_colour_profile_is_kept(tmp_path, suffix):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photograph()).save(tmp_path / f"in{suffix}", icc_profile=profile)
    images.write(round_trip(images.read(tmp_path / f"in{suffix}")), tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as written:
        assert written.info["icc_profile"] == profile


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    images.write(Image.fromarray(photograph()), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as written:
        assert [layer[1:3] for layer in written.layer] == [(1, 1)] * 3
        expected = io.BytesIO()
        Image.fromarray(photograph()).save(expected, "JPEG", quality=95)
        with Image.open(expected) as other:
            assert written.quantization == other.quantization


def broken(folder, kind):
    path = folder / f"{kind}.png"
    Image.fromarray(photograph(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello, this is not a picture",
            "truncated": whole[: len(whole) // 2],
            "corrupt": whole[:60] + bytes(40) + whole[100:],
        }[kind]
    )
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "corrupt"])
def test_broken_files_are_named(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=str(path)) as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_several_frames_are_refused_uncounted(name, tmp_path, monkeypatch):
    frames = [Image.fromarray(photograph() // (i + 1)) for i in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for plugin in (GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile):  # which take long for many
        monkeypatch.setattr(plugin, "n_frames", property(lambda _: pytest.fail("counted")))
    with pytest.raises(ValueError, match=rf"{name}: has several frames"):
        images.read(tmp_path / name)


def test_the_preview_behind_a_phones_jpeg_is_ignored(tmp_path):
    big, preview = Image.fromarray(photograph(48, 64)), Image.fromarray(photograph(12, 16))
    big.save(tmp_path / "a.mpo", save_all=True, append_images=[preview])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert images.read(tmp_path / "a.jpg").size == (64, 48)


@pytest.mark.parametrize(
    "mode, name", [("RGBA", "a.jpg"), ("I;16", "a.webp"), ("LA", "a.bmp"), ("RGB", "a.pgm")]
)
def test_formats_that_would_lose_something_are_refused(tmp_path, mode, name):
    with pytest.raises(ValueError, match=r"cannot hold .*\.png|cannot hold a RGB"):
        images.write(Image.new(mode, (4, 4)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_every_promised_mode_survives_its_format(tmp_path):
    for suffix, format in images.FORMATS.items():
        for mode in format.modes:
            image = Image.new(mode, (4, 4), 1 if mode == "F" else None)
            image = with_alpha_level(image) if mode.endswith("A") else image
            images.write(image, tmp_path / f"a{suffix}")
            back = images.simplify(images.read(tmp_path / f"a{suffix}"))
            wide = ("I;16", "F")
            assert (back.mode if mode in wide else None) == (mode if mode in wide else None), (suffix, mode)
            assert back.mode.endswith("A") == mode.endswith("A"), (suffix, mode)
            if mode.endswith("A"):
                assert back.getchannel("A").getextrema() == (77, 77)


def with_alpha_level(image: Image.Image) -> Image.Image:
    image.putalpha(77)
    return image


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    images.write(Image.new("L", (2, 2), 9), target)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        images.write(Image.new("L", (2, 2), 200), target)
    assert images.read(target).getpixel((0, 0)) == 9
    assert list(tmp_path.iterdir()) == [target]


def test_side_by_side_puts_before_on_the_left():
    pair = images.side_by_side(Image.new("LA", (3, 2), (10, 0)), Image.new("LA", (3, 2), (200, 0)))
    assert pair.mode == "RGB" and pair.size == (6, 2)
    assert pair.getpixel((2, 0)) == (10,) * 3 and pair.getpixel((3, 0)) == (200,) * 3
