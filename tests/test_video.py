"""Video: frames equal what `restore` makes of them, and everything else is as it was."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import randomise
from skimage import data
from torch import nn

import irnext
from irnext import checkpoints, cli
from irnext.restoration import restore
from irnext.video import restore_video, restore_videos

av = pytest.importorskip("av")
from irnext.containers import Reader, matrix  # noqa: E402

BT709, UNSPECIFIED, SMPTE170M = 1, 2, 6
LIMITED, FULL = 1, 2
MILLISECOND = Fraction(1, 1000)


def photographs(count: int, height: int, width: int) -> list[np.ndarray]:
    """A camera that moves over a photograph."""
    pixels = data.astronaut()
    return [
        np.ascontiguousarray(pixels[i : i + height, 150 + 2 * i : 150 + 2 * i + width]) for i in range(count)
    ]


def make_clip(
    path, *, size=(64, 96), count=6, codec="libx264", format="yuv420p", times=None, sound="aac", **settings
):
    """Write a clip: frames every 40 ms or at `times` (in ms), with a tone; settings are the encoder's."""
    settings.setdefault("options", {"crf": "8"} if codec == "libx264" else {})
    rotation = settings.pop("rotation", None)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=settings.pop("options"))
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], format
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        stream.codec_context.time_base = MILLISECOND
        if rotation:
            stream.set_display_rotation(rotation)
        container.metadata["title"] = "moving"
        if sound:
            tone = container.add_stream(sound, rate=48000, layout="mono")
            tone.metadata["language"] = "ita"
        for index, pixels in enumerate(photographs(count, *size)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = times[index] if times else 40 * index, MILLISECOND
            container.mux(stream.encode(frame))
        if sound:
            wave = 0.3 * np.sin(np.arange(48000 * count // 25) / 20, dtype=np.float32)[None]
            samples = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            samples.sample_rate, samples.pts = 48000, 0
            container.mux(tone.encode(samples))
            container.mux(tone.encode())
        container.mux(stream.encode())
    return path


def frames_of(path) -> list:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def pixels_of(path) -> np.ndarray:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames_of(path)])


def packets_of(path, kind: str) -> list[tuple]:
    with av.open(str(path)) as container:
        packets = container.demux(**{kind: 0})
        return [(bytes(p), p.pts * p.time_base, p.duration * p.time_base) for p in packets if p.size]


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(found.astype(float) - expected).mean())


@pytest.fixture(scope="module")
def model() -> irnext.IRNeXt:
    return randomise(irnext.IRNeXt(blocks=1, width=8)).eval()


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4")


# ---- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_without_loss_frames_are_those_of_restore(model, tmp_path, batch):
    source = make_clip(tmp_path / "a.mkv", size=(45, 71), codec="ffv1", format="bgr0", sound=None)
    assert restore_video(model, source, tmp_path / "b.mkv", batch=batch) == 6
    expected = np.stack([restore(model, pixels) for pixels in photographs(6, 45, 71)])
    assert (expected != photographs(6, 45, 71)).any()
    difference = np.abs(pixels_of(tmp_path / "b.mkv").astype(int) - expected)
    assert difference.max() <= (0 if batch == 1 else 1)  # a batch is summed in another order
    assert frames_of(tmp_path / "b.mkv")[0].format.name == "bgr0"


@pytest.mark.parametrize(
    "suffix, codec, least", [(".mp4", "h264", 33), (".mkv", "hevc", 33), (".webm", "vp9", 33)]
)
def test_with_loss_they_are_close(tmp_path, suffix, codec, least):
    class Brighter(nn.Module):
        def forward(self, x):
            return 0.8 * x + 0.2

    source = make_clip(tmp_path / "clip.mp4", sound=None)
    target = tmp_path / f"new{suffix}"
    assert restore_video(Brighter(), source, target, codec=codec) == 6
    expected = np.stack([restore(Brighter(), pixels) for pixels in pixels_of(source)])
    assert psnr(pixels_of(target), expected) > least > 10 + psnr(pixels_of(source), expected)
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec.canonical_name == codec


def test_quality_is_what_crf_says(clip, tmp_path):
    results = [tmp_path / f"{crf}.mp4" for crf in (5, 17, 40)]
    restore_video(nn.Identity(), clip, results[0], crf=5)
    restore_video(nn.Identity(), clip, results[1])
    restore_video(nn.Identity(), clip, results[2], crf=40)
    qualities = [psnr(pixels_of(result), pixels_of(clip)) for result in results]
    assert qualities[0] > qualities[1] + 3 > qualities[2] + 6


def test_ten_bits_stay_ten(tmp_path):
    levels = np.arange(48 * 64 * 3, dtype=np.uint16).reshape(48, 64, 3) % 1024
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gbrp10le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, "gbrp10le")))
        container.mux(stream.encode())
    restore_video(nn.Identity(), source, target)
    (frame,) = frames_of(target)
    assert frame.format.name == "gbrp10le"
    np.testing.assert_array_equal(frame.to_ndarray(), levels)
    restore_video(nn.Identity(), source, target, codec="hevc")
    assert frames_of(target)[0].format.name == "gbrp10le"
    restore_video(nn.Identity(), source, target, codec="h264")
    assert frames_of(target)[0].format.name == "yuv420p10le"


@pytest.mark.parametrize("value", [FULL, LIMITED])
@pytest.mark.parametrize("colorspace, red, blue", [(BT709, 0.2126, 0.0722), (SMPTE170M, 0.299, 0.114)])
def test_colours_are_those_of_the_standards(tmp_path, value, colorspace, red, blue):
    """ITU-R BT.601 and BT.709, from the planes of the file to what the model sees, and back."""
    planes = np.stack([np.full((64, 96), level, np.uint8) for level in (120, 110, 140)])
    frame = av.VideoFrame.from_ndarray(planes, "yuv444p")
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, value
        frame.colorspace, frame.color_range = colorspace, value
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    luma, u, v = (120 - 16) / 219, (110 - 128) / 224, (140 - 128) / 224
    if value == FULL:
        luma, u, v = 120 / 255, (110 - 128) / 255, (140 - 128) / 255
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    expected = r, (luma - red * r - blue * b) / (1 - red - blue), b

    class Recorder(nn.Module):
        def forward(self, x):
            self.seen = x[0, :, 10, 10]
            return x

    recorder = Recorder()
    restore_video(recorder, source, target)
    np.testing.assert_allclose(recorder.seen, expected, atol=1 / 255)
    (frame,) = frames_of(target)
    assert (frame.colorspace, frame.color_range) == (colorspace, value)
    assert np.abs(frame.to_ndarray().astype(int) - planes).max() <= 1


def test_a_file_that_names_no_matrix_has_that_of_its_size():
    for height, expected in ((576, SMPTE170M), (720, BT709), (2160, BT709)):
        frame = av.VideoFrame(64, height, "yuv420p")
        frame.colorspace = UNSPECIFIED
        assert matrix(frame) == expected
    frame.colorspace = SMPTE170M
    assert matrix(frame) == SMPTE170M


@pytest.mark.parametrize(
    "size, codec, format, made, full",
    [
        ((63, 95), "ffv1", "yuv420p", "yuv444p", False),
        ((63, 95), "ffv1", "bgr0", "yuv444p", False),
        ((64, 96), "ffv1", "gray", "yuv420p", False),
        ((64, 96), "ffv1", "yuv422p", "yuv422p", False),
        ((64, 96), "mjpeg", "yuvj420p", "yuv420p", True),
    ],
)
def test_formats_that_h264_has_not(tmp_path, size, codec, format, made, full):
    source = make_clip(tmp_path / "a.mkv", size=size, codec=codec, format=format, sound=None, options={})
    restore_video(nn.Identity(), source, tmp_path / "b.mp4", codec="h264")
    frame = frames_of(tmp_path / "b.mp4")[0]
    assert frame.format.name.replace("yuvj", "yuv") == made
    assert (frame.color_range == FULL) == full
    if not format.startswith("yuv"):  # made here, so that it can be said
        assert frame.colorspace == SMPTE170M
    assert psnr(pixels_of(tmp_path / "b.mp4"), pixels_of(source)) > 34


# ---- everything else -----------------------------------------------------------------------------


def test_sound_times_colours_and_rotation_are_kept(tmp_path):
    times = [0, 40, 80, 160, 200, 300]
    colours = {"colorspace": 9, "color_range": LIMITED, "color_primaries": 9, "color_trc": 14}
    source = make_clip(tmp_path / "a.mp4", times=times, rotation=90, **colours)
    target = tmp_path / "b.mp4"
    restore_video(nn.Identity(), source, target)
    assert packets_of(target, "audio") == packets_of(source, "audio")
    old, new = frames_of(source), frames_of(target)
    assert [frame.time for frame in new] == [frame.time for frame in old]
    assert [round(1000 * frame.time) for frame in new] == times
    assert new[0].rotation == old[0].rotation == 90
    for name, value in colours.items():
        assert getattr(new[0], name) == value, name
    with av.open(str(target)) as container:
        assert container.metadata["title"] == "moving"
        assert container.streams.audio[0].metadata["language"] == "ita"


def test_subtitles_and_chapters_are_kept(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    (tmp_path / "a.srt").write_text("1\n00:00:00,040 --> 00:00:00,120\nciao\n\n")
    chapter = {"id": 1, "start": 0, "end": 100, "time_base": MILLISECOND, "metadata": {"title": "one"}}
    with (
        av.open(str(clip)) as pictures,
        av.open(str(tmp_path / "a.srt")) as texts,
        av.open(str(tmp_path / "a.mkv"), "w") as both,
    ):
        streams = [*pictures.streams, *texts.streams]
        copies = {stream: both.add_stream_from_template(stream) for stream in streams}
        both.set_chapters([chapter])
        for container in (texts, pictures):
            for packet in container.demux():
                if packet.size:
                    packet.stream = copies[packet.stream]
                    both.mux(packet)
    restore_video(nn.Identity(), tmp_path / "a.mkv", tmp_path / "b.mkv")
    for kind in ("subtitles", "audio"):
        assert packets_of(tmp_path / "b.mkv", kind) == packets_of(tmp_path / "a.mkv", kind) != []
    with av.open(str(tmp_path / "b.mkv")) as container:
        (found,) = container.chapters()
        assert found["metadata"]["title"] == "one"
    with pytest.raises(ValueError, match=r"c\.mp4: \.mp4 cannot hold the subtitle of .*subrip.*name a \.mkv"):
        restore_video(nn.Identity(), tmp_path / "a.mkv", tmp_path / "c.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "a.srt", "b.mkv", "clip.mp4"]


# ---- what cannot be ------------------------------------------------------------------------------


def damaged(clip, index: int, content) -> bytes:
    """The clip's bytes, with one frame's replaced."""
    whole = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][index]
        whole[packet.pos : packet.pos + packet.size] = content(packet.size)
    return bytes(whole)


def test_a_corrupt_frame_is_named_by_its_time(clip, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(damaged(clip, 3, bytes))
    (tmp_path / "new.mp4").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"bad\.mp4: the frame at 0\.\d\d0 s (is corrupt|cannot be decoded)"):
        restore_video(nn.Identity(), tmp_path / "bad.mp4", tmp_path / "new.mp4")
    assert (tmp_path / "new.mp4").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4", "clip.mp4", "new.mp4"]


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    whole = make_clip(tmp_path / "a.mkv", count=75, size=(64, 64)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"cut\.mkv: is cut off: it ends at .* its header says 3\.0"):
        restore_video(nn.Identity(), tmp_path / "cut.mkv", tmp_path / "b.mkv")
    assert not (tmp_path / "b.mkv").exists()


def test_what_is_no_restorable_video_is_refused(tmp_path):
    target = tmp_path / "out" / "new.mp4"
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: not a video that can be read"):
        restore_video(nn.Identity(), tmp_path / "text.mp4", target)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        samples.sample_rate = 48000
        container.mux([*stream.encode(samples), *stream.encode()])
    with pytest.raises(ValueError, match=r"sound\.mp4: the video has no pictures"):
        restore_video(nn.Identity(), tmp_path / "sound.mp4", target)
    make_clip(tmp_path / "clear.mkv", codec="ffv1", format="bgra", options={})
    with pytest.raises(ValueError, match=r"clear\.mkv: the frame at 0\.000 s has transparency"):
        restore_video(nn.Identity(), tmp_path / "clear.mkv", target)
    make_clip(tmp_path / "fields.mkv", sound=None, options={"flags": "+ildct", "x264-params": "tff=1"})
    with pytest.raises(ValueError, match=r"fields\.mkv: the frame at .* is interlaced"):
        restore_video(nn.Identity(), tmp_path / "fields.mkv", target)
    assert not target.parent.exists()


@pytest.mark.parametrize(
    "target, options, error, message",
    [
        ("clip.mp4", {}, ValueError, "overwrite an input"),
        ("new.avi", {}, ValueError, r"cannot write \.avi; use \.mp4, .*\.webm"),
        ("new", {}, ValueError, "cannot write a name without suffix"),
        ("new.mp4", {"codec": "mpeg4"}, ValueError, "codec is 'mpeg4': it must be one of h264, hevc, vp9"),
        ("new.webm", {"codec": "h264"}, ValueError, r"no h264 there; name a \.mp4 or"),
        ("new.mp4", {"crf": 52}, ValueError, "crf is 52: for h264 it must be from 0 to 51"),
        ("new.mkv", {"crf": 5, "codec": "ffv1"}, ValueError, "lossless"),
        ("new.mp4", {"batch": 0}, ValueError, "batch is 0"),
        ("new.mp4", {"tile": 100}, ValueError, "96 and 128"),
        ("new.mp4", {"max_memory": "1G"}, ValueError, "max_memory is for an IRNeXt"),
        ("clip.mp4/new.mp4", {}, OSError, "a file, not a folder"),
    ],
)
def test_bad_calls_are_refused(clip, tmp_path, target, options, error, message):
    before = clip.read_bytes()
    with pytest.raises(error, match=message):
        restore_video(nn.Identity(), clip, tmp_path / target, **options)
    assert clip.read_bytes() == before and list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, FloatingPointError])
def test_nothing_half_written_is_left(clip, tmp_path, problem):
    class Failing(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 4:
                raise problem("in the middle")
            return x

    with pytest.raises(problem):
        restore_video(Failing(), clip, tmp_path / "out" / "new.mp4")
    assert list(tmp_path.iterdir()) == [clip]


def test_a_full_disk_is_told(clip, tmp_path, monkeypatch):
    def fail(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*new\.mp4"):
        restore_video(nn.Identity(), clip, tmp_path / "new.mp4")
    assert list(tmp_path.iterdir()) == [clip]


def test_a_limit_of_memory_reaches_the_model(model, clip, tmp_path):
    with pytest.raises(ValueError, match="need at least"):
        restore_video(model, clip, tmp_path / "new.mp4", max_memory="1K")
    assert restore_video(model, clip, tmp_path / "new.mp4", max_memory="auto", dtype=torch.bfloat16) == 6


# ---- several, and the command --------------------------------------------------------------------


def test_several_videos_go_to_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    make_clip(tmp_path / "in" / "a.mp4")
    make_clip(tmp_path / "in" / "b.avi", codec="mpeg4", sound=None, options={"b": "2M"})
    (tmp_path / "in" / "c.mp4").write_text("no video")
    pattern = str(tmp_path / "in" / "*")
    report = restore_videos(nn.Identity(), [pattern, tmp_path / "in" / "a.mp4"], tmp_path / "out")
    assert [path.name for path in report.written] == ["a.mp4", "b.mkv"]
    assert list(report.failed) == [tmp_path / "in" / "c.mp4"]
    again = restore_videos(nn.Identity(), [pattern], tmp_path / "out", resume=True)
    assert [path.name for path in again.skipped] == ["a.mp4", "b.mkv"] and len(again.failed) == 1
    with pytest.raises(ValueError, match="names one video, but there are 3 inputs"):
        restore_videos(nn.Identity(), [pattern], tmp_path / "new.mp4")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such file"):
        restore_videos(nn.Identity(), [tmp_path / "none.mp4"], tmp_path / "new.mp4")


def test_the_command(model, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(model, "w.safetensors")
    options = ["--weights", "w.safetensors", "--device", "cpu"]
    assert (
        cli.main(["restore", "clip.mp4", "-o", "new.mkv", *options, "--codec", "ffv1", "--batch", "2"]) == 0
    )
    assert capsys.readouterr().out == "new.mkv\n"
    assert packets_of("new.mkv", "audio")[1:] != [] and len(frames_of("new.mkv")) == 6
    assert cli.main(["restore", "clip.mp4", "-o", "new.mkv", *options, "--resume"]) == 0
    assert "1 skipped" in capsys.readouterr().err
    assert cli.main(["restore", "clip.mp4", "a.png", "-o", "out", *options]) == 2
    assert "videos and pictures" in capsys.readouterr().err
    assert cli.main(["restore", "clip.mp4", "-o", "out", *options, "--compare"]) == 2
    assert "--compare: for pictures only" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "av", None)
    assert cli.main(["restore", "clip.mp4", "-o", "new.mp4", *options]) == 2
    assert "pip install 'irnext[video]'" in capsys.readouterr().err


def test_frames_without_times_follow_the_rate(tmp_path):
    with av.open(str(make_clip(tmp_path / "a.mp4", sound=None))) as container:
        reader = Reader(av, container, tmp_path / "a.mp4")
        frames = list(container.decode(video=0))
        for frame in frames:
            frame.pts = None
            reader._check(frame)
    assert [round(1000 * frame.time) for frame in frames] == [0, 40, 80, 120, 160, 200]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clips_shorter_than_an_encoders_delay(tmp_path, count):
    source = make_clip(tmp_path / "a.mp4", count=count, sound=None)
    for codec in ("h264", "hevc"):
        assert restore_video(nn.Identity(), source, tmp_path / "b.mp4", codec=codec) == count
        times = [round(1000 * frame.time) for frame in frames_of(tmp_path / "b.mp4")]
        assert times == [0, 40, 80][:count]
