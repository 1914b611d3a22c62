"""Video files through PyAV: frames as pictures with their times and colours, all else copied."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

# How containers are called, by the suffix of a file that can be written.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
READ_SUFFIXES = (
    *CONTAINERS,
    *(".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"),
)

# Codes of ISO/IEC 23091-2 as FFmpeg numbers them, and FFmpeg's own for the range.
RGB, BT709, UNSPECIFIED, SMPTE170M = 0, 1, 2, 6
LIMITED, FULL = 1, 2
HD = 720  # lines from which players take BT.709 where the file names no matrix
# swscale's flags: bicubic, chroma interpolated from and to every pixel, sums rounded, not cut off.
INTERPOLATION = 0x4 | 0x2000 | 0x4000 | 0x40000
# A file whose packets end this much before its header says is cut off, in seconds.
CUT_OFF = 1.0
WITH_LENGTH = {"mp4", "matroska"}  # containers whose header says how long they are


@dataclass(frozen=True)
class Codec:
    """How frames are encoded.

    Attributes:
        encoder: its name in FFmpeg.
        crf: the quality by default, where losses are hard to see; None for a lossless codec.
        worst: the largest crf.
        even: whether sides must be even where chroma has half of them.
        containers: the suffixes that hold it.
        options: the encoder's further options.
    """

    encoder: str
    crf: int | None
    worst: int
    even: bool
    containers: tuple[str, ...]
    options: dict[str, str]


_MP4_AND_MKV = (".mp4", ".m4v", ".mov", ".mkv")
CODECS = {
    "h264": Codec("libx264", 17, 51, True, _MP4_AND_MKV, {}),
    "hevc": Codec("libx265", 20, 51, True, _MP4_AND_MKV, {"x265-params": "log-level=error"}),
    "vp9": Codec("libvpx-vp9", 20, 63, False, (".webm", ".mkv", ".mp4"), {"b": "0", "row-mt": "1"}),
    "ffv1": Codec("ffv1", None, 0, False, (".mkv",), {"level": "3", "slicecrc": "1"}),
}


def default_codec(codec: str, target: Path) -> str:
    """`codec` where it can be written to the target, else one that the container is made for."""
    suffix = target.suffix.lower()
    if codec in CODECS and suffix in CODECS[codec].containers:
        return codec
    return "vp9" if suffix == ".webm" else "h264"


def pyav():
    """The module `av`; raises ImportError with what to install."""
    try:
        import av
    except ImportError as error:
        raise ImportError("video needs PyAV: pip install 'irnext[video]'") from error
    return av


# ---- reading -------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Some frames, and what is to be copied from between them.

    Attributes:
        frames: as decoded: they tell times and colours.
        pictures: (N, H, W, 3), RGB; 8 bits per channel in uint8, more in uint16.
        packets: of the streams that are copied.
    """

    frames: list[av.VideoFrame]
    pictures: np.ndarray | None
    packets: list[av.Packet]


class Reader:
    """A video file as groups of frames and packets."""

    def __init__(self, av, container: InputContainer, source: Path):
        self.av, self.container, self.source = av, container, source
        cover = av.stream.Disposition.attached_pic
        pictures = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not pictures:
            raise ValueError(f"{source}: the video has no pictures")
        self.stream: VideoStream = max(pictures, key=lambda stream: stream.width * stream.height)
        self.copied = [stream for stream in container.streams if stream.type in ("audio", "subtitle")]
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self._size: tuple[int, int] | None = None
        self._last: int | None = None  # frame's time

    @property
    def codec(self) -> str:
        """What the frames are encoded with."""
        return self.stream.codec.canonical_name

    @property
    def length(self) -> int | None:
        """Frames as far as the file says it."""
        if self.stream.frames:
            return self.stream.frames
        return round(self.container.duration / 10**6 * self.rate) if self.container.duration else None

    def groups(self, batch: int) -> Iterator[Group]:
        """All frames, `batch` at a time, with the packets on the way; the last group may have none."""
        frames, packets, end = [], [], 0.0
        for packet in self._packets():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not self.stream:
                if packet.size:  # the last one of each stream is empty
                    packets.append(packet)
                continue
            for frame in self._decoded(packet, end):
                frames.append(frame)
                if len(frames) == batch:
                    yield Group(frames, self._pictures(frames), packets)
                    frames, packets = [], []
        self._check_end(end)
        if frames or packets:
            yield Group(frames, self._pictures(frames) if frames else None, packets)

    def _packets(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux([self.stream, *self.copied])
        except self.av.FFmpegError as error:
            raise ValueError(f"{self.source}: cannot be read on: {error.strerror}") from error

    def _decoded(self, packet: av.Packet, time: float) -> Iterator[av.VideoFrame]:
        try:
            for frame in packet.decode():
                self._check(frame)
                yield frame
        except self.av.FFmpegError as error:
            time = float(packet.pts * packet.time_base) if packet.pts is not None else time
            raise ValueError(f"{self.source}: the frame at {time:.3f} s cannot be decoded") from error

    def _check(self, frame: av.VideoFrame) -> None:
        """Raise for a frame that cannot be restored, and give a time to one that has none."""
        if frame.pts is None:
            step = round(1 / (self.rate * self.stream.time_base))
            frame.pts = 0 if self._last is None else self._last + max(step, 1)
        if self._last is not None:
            frame.pts = max(frame.pts, self._last + 1)  # encoders want times that rise
        self._last = frame.pts
        frame.time_base = self.stream.time_base
        at = f"{self.source}: the frame at {frame.time:.3f} s"
        if frame.is_corrupt:
            raise ValueError(f"{at} is corrupt")
        if frame.interlaced_frame:
            raise ValueError(f"{at} is interlaced: deinterlace the video first")
        if any(component.is_alpha for component in frame.format.components):
            raise ValueError(f"{at} has transparency ({frame.format.name}): that is not supported")
        self._size = self._size or (frame.width, frame.height)
        if (frame.width, frame.height) != self._size:
            raise ValueError(
                f"{at} has {frame.width}x{frame.height} pixels, those before {self._size[0]}x{self._size[1]}"
            )

    def _pictures(self, frames: list[av.VideoFrame]) -> np.ndarray:
        deep = any(component.bits > 8 for component in frames[0].format.components)
        return np.stack(
            [
                frame.reformat(
                    format="rgb48le" if deep else "rgb24",
                    src_colorspace=matrix(frame),
                    dst_color_range=FULL,
                    interpolation=INTERPOLATION,
                ).to_ndarray()
                for frame in frames
            ]
        )

    def _check_end(self, end: float) -> None:
        """Raise where the file ends before its header says."""
        if self.container.duration is None or WITH_LENGTH.isdisjoint(self.container.format.name.split(",")):
            return
        start = (self.container.start_time or 0) / 10**6
        length = self.container.duration / 10**6
        if end - start < length - CUT_OFF:
            raise ValueError(
                f"{self.source}: is cut off: it ends at {end - start:.3f} s, its header says {length:.3f} s"
            )


@contextmanager
def opened(av, source: Path) -> Iterator[Reader]:
    try:
        container = av.open(os.fspath(source))
    except av.FFmpegError as error:
        if isinstance(error, (PermissionError, IsADirectoryError)):
            raise
        raise ValueError(f"{source}: not a video that can be read: {error.strerror}") from error
    with container:
        yield Reader(av, container, source)


def matrix(frame: av.VideoFrame) -> int:
    """The matrix between RGB and YUV for a frame: where it names none, what players then take."""
    if frame.colorspace not in (RGB, UNSPECIFIED):
        return frame.colorspace
    return BT709 if frame.height >= HD else SMPTE170M


def is_full(frame: av.VideoFrame) -> bool:
    """Whether the frame's values use their whole range: as they say, and all but YUV."""
    by_name = frame.format.name.startswith("yuvj")  # yuvj420p and such
    return frame.color_range == FULL or by_name or not _is_yuv(frame.format)


def _is_yuv(format: av.VideoFormat) -> bool:
    return not format.is_rgb and len(format.components) > 1


# ---- writing -------------------------------------------------------------------------------------


class Writer:
    """The new file: an encoder for the frames, and the streams that are copied."""

    def __init__(
        self, av, file: BinaryIO, target: Path, reader: Reader, first: Group, codec: Codec, crf: int | None
    ):
        self.av, self.target, self._frames = av, target, 0
        self.container: OutputContainer = av.open(file, "w", format=CONTAINERS[target.suffix.lower()])
        self.stream = self._add_pictures(reader, first.frames[0], codec, crf)
        self.copies = {stream: self._add_copy(stream, reader.source) for stream in reader.copied}
        self.container.metadata.update(_own(reader.container.metadata))
        self.container.set_chapters(reader.container.chapters())

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Finish the file where all went well; otherwise it is not wanted."""
        if kind is None:
            with self._errors():
                self._encode(None)
        with self._errors(kind is None):
            self.container.close()

    def write(self, group: Group, pictures: np.ndarray | None) -> None:
        """Encode restored pictures in place of the group's frames, and copy its packets."""
        with self._errors():
            for packet in group.packets:
                packet.stream = self.copies[packet.stream]
                self.container.mux(packet)
            for frame, picture in zip(group.frames, () if pictures is None else pictures, strict=True):
                self._frames += 1
                self._encode(self._frame(frame, picture))

    def _encode(self, frame: av.VideoFrame | None) -> None:
        """Put a frame into the file, or, at the end, those that the encoder still holds."""
        for packet in self.stream.encode(frame):
            if self._frames <= 2:  # fewer than x265 needs to know their times of decoding, which are these
                packet.dts = packet.pts
            self.container.mux(packet)

    def _add_pictures(
        self, reader: Reader, frame: av.VideoFrame, codec: Codec, crf: int | None
    ) -> VideoStream:
        quality = {} if codec.crf is None else {"crf": str(codec.crf if crf is None else crf)}
        stream = self.container.add_stream(
            codec.encoder, rate=reader.rate, options={**codec.options, **quality}
        )
        old, new = reader.stream, stream.codec_context
        new.width, new.height = frame.width, frame.height
        # Grey is left to the lossless codec: what decoders of the others make of it is yuv420p.
        formats = [format.name for format in new.codec.video_formats]
        grey = [name for name in formats if name.startswith("gray") and codec.crf is not None]
        new.pix_fmt = pixel_format(frame, [name for name in formats if name not in grey], codec.even)
        new.time_base = stream.time_base = old.time_base
        if old.sample_aspect_ratio:
            new.sample_aspect_ratio = old.sample_aspect_ratio
        self.matrix, self.range = matrix(frame), FULL if is_full(frame) else LIMITED
        new.colorspace, new.color_range = frame.colorspace, frame.color_range
        if _is_yuv(self.av.VideoFormat(new.pix_fmt)) and not _is_yuv(frame.format):
            self.range = new.color_range = LIMITED  # what players expect
            new.colorspace = self.matrix
        new.color_primaries, new.color_trc = frame.color_primaries, frame.color_trc
        if codec.encoder == "libx265" and self.container.format.name != "matroska":
            new.codec_tag = "hvc1"  # the one of two that Apple's players take
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                stream.set_display_matrix(struct.unpack("9i", bytes(data)))
        stream.metadata.update(_own(old.metadata))
        stream.disposition = old.disposition
        return stream

    def _add_copy(self, stream: av.stream.Stream, source: Path) -> av.stream.Stream:
        name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
        try:
            copy = self.container.add_stream_from_template(stream)
        except (ValueError, self.av.FFmpegError):
            suffix = self.target.suffix.lower()
            kinds = {".mkv": None, source.suffix.lower(): None}
            others = " or ".join(kind for kind in kinds if kind != suffix)
            raise ValueError(
                f"{self.target}: {suffix} cannot hold the {stream.type} of {source} ({name}); name a {others}"
            ) from None
        copy.metadata.update(_own(stream.metadata))
        copy.disposition = stream.disposition
        return copy

    def _frame(self, frame: av.VideoFrame, picture: np.ndarray) -> av.VideoFrame:
        """A picture as the encoder takes it, at a frame's time."""
        rgb = self.av.VideoFrame.from_ndarray(picture, "rgb24" if picture.dtype == np.uint8 else "rgb48le")
        new = rgb.reformat(
            format=self.stream.codec_context.pix_fmt,
            dst_colorspace=self.matrix,
            dst_color_range=self.range,
            interpolation=INTERPOLATION,
        )
        context = self.stream.codec_context
        new.colorspace, new.color_range = context.colorspace, context.color_range
        new.color_primaries, new.color_trc = context.color_primaries, context.color_trc
        new.pts, new.time_base, new.duration = frame.pts, frame.time_base, frame.duration
        return new

    @contextmanager
    def _errors(self, wanted: bool = True) -> Iterator[None]:
        """FFmpeg's errors as one that names the target; none at all where the file is not wanted."""
        try:
            yield
        except self.av.FFmpegError as error:
            if wanted:
                raise ValueError(f"{self.target}: cannot be encoded: {error.strerror}") from error


def pixel_format(frame: av.VideoFrame, supported: list[str], even: bool) -> str:
    """What the encoder is given: the frame's own format where it can be, else 4:2:0 of as many bits.

    Where a side is odd and must be `even` for that, it is 4:4:4.
    """
    name = frame.format.name.replace("yuvj", "yuv")
    size = frame.width, frame.height
    subsampled = any((part.width, part.height) != size for part in frame.format.components)
    odd = even and (frame.width % 2 or frame.height % 2)
    if name in supported and not (subsampled and odd):
        return name
    deep = any(component.bits > 8 for component in frame.format.components)
    wanted = f"yuv{'444' if odd else '420'}p{'10le' if deep else ''}"
    return wanted if wanted in supported else wanted.removesuffix("10le")


def _own(metadata: dict[str, str]) -> dict[str, str]:
    """Without what the container itself writes."""
    written = {"major_brand", "minor_version", "compatible_brands", "encoder", "DURATION"}
    return {key: value for key, value in metadata.items() if key not in written}
