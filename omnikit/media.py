"""Pictures, sound and films of unknown origin, decoded within limits.

Files come from strangers: they lie about their size, name other files to open, or unpack to gigabytes. So every
decoder here is told which formats it may use, sizes are checked in the header before anything is unpacked, and every
failure is a `MediaError` that names the medium, what is wrong and what would be right; no library's own exception
leaves this module. Libraries are imported when first used: importing this module costs neither Pillow nor FFmpeg.
"""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from omnikit.component import Medium

if TYPE_CHECKING:
    import numpy as np
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.stream import Stream
    from PIL.Image import Image
    from soundfile import SoundFile

__all__ = [
    "LIMITS",
    "MediaError",
    "MediaLimits",
    "VideoHeader",
    "audio_length",
    "expected_samples",
    "image_size",
    "is_image",
    "load_audio",
    "load_image",
    "open_video",
    "resize",
    "slack",
    "video_header",
    "window",
]


class MediaError(ValueError):
    """A medium that cannot be used: *medium: what is wrong; what would be right*."""


class MediaLimits(BaseModel):
    """What a single medium may cost. The defaults admit what people make and refuse what only an attack makes.

    Pictures are read whole, hence the low limit in bytes; sound and films are read as streams. Pixels are those of a
    picture or of a frame (50 million are 8660 x 5773; 8K video has 33). Sound counts in the part that a sample means,
    so any ten minutes of an hour can be asked for; 64 Mi samples are 256 MiB of float32, 11 minutes at 96 kHz.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_bytes: PositiveInt = 256 * 2**20
    stream_bytes: PositiveInt = 8 * 2**30
    pixels: PositiveInt = 50_000_000
    audio_seconds: PositiveFloat = 600.0
    audio_samples: PositiveInt = 64 * 2**20
    audio_channels: PositiveInt = 64
    video_seconds: PositiveFloat = 4 * 3600.0


LIMITS = MediaLimits()

_RATES = (1_000, 768_000)
_LOUDEST = 2.0**31  # floats on an integer scale are odd but usable; beyond, a log-mel would overflow
_BLOCK = 2**20

_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_ORIENTATION = 0x0112
# EXIF orientation -> Pillow's Transpose: 2 mirrored, 3 upside down, ..., 5 to 8 lie on their side
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}

# Demuxers that open nothing but the file they are given. Without this list FFmpeg takes a playlist or a concat script
# for a film whatever its name, and opens the files and addresses written in it (tests/unit/test_media.py).
_FILMS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,mpegvideo,h264,hevc,ivf"
_SOUNDS = f"{_FILMS},aac,mp3,wav,w64,flac,aiff,caf,amr,ac3,eac3,ape,wv,tta,au"


# ------------------------------------------------------------------------------------------------------------- opening


@contextmanager
def _refusing(medium: Medium, errors: tuple[type[Exception], ...], what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except MediaError:
        raise
    except errors as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MediaError(f"{medium}: {what} ({reason}); {remedy}") from error


def _source(medium: Medium, most_bytes: int) -> str | BytesIO:
    """The path or bytes, once known to be there and neither empty nor too large."""
    if isinstance(medium.source, bytes):
        size = len(medium.source)
    else:
        # ValueError: a NUL in the name
        with _refusing(medium, (OSError, ValueError), "cannot be opened", "give the path of a file that is there"):
            status = os.stat(medium.source)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{medium}: is no regular file; give the path of a media file")
        size = status.st_size
    if not size:
        raise MediaError(f"{medium}: is empty (0 bytes); replace the file")
    if size > most_bytes:
        raise MediaError(f"{medium}: has {size:,} bytes, more than the limit of {most_bytes:,}; make it smaller")
    return BytesIO(medium.source) if isinstance(medium.source, bytes) else os.path.abspath(medium.source)


def slack(seconds: float) -> float:
    """Seconds by which a header may be wrong: 1 s, or 2 % of a longer medium. Beyond that the medium is bad."""
    return max(1.0, 0.02 * seconds)


def window(medium: Medium, seconds: float) -> tuple[float, float]:
    """(start, end) in seconds of the part that is meant, of a medium that lasts `seconds`."""
    start = 0.0 if medium.start is None else medium.start
    end = seconds if medium.end is None else medium.end
    if not 0 <= start < end:  # also false for NaN
        raise MediaError(f"{medium}: has no part from {start} s to {end} s; give 0 <= start < end")
    if start >= seconds or end > seconds + slack(seconds):
        raise MediaError(f"{medium}: lasts {seconds:.3f} s only; give a start and an end within it")
    return start, min(end, seconds)


# ------------------------------------------------------------------------------------------------------------- pictures


def is_image(medium: Medium) -> bool:
    """Whether the first bytes are those of a picture (an animated GIF counts as a film)."""
    if isinstance(medium.source, bytes):
        head = medium.source[:16]
    else:
        _source(medium, LIMITS.stream_bytes)
        with _refusing(medium, (OSError,), "cannot be opened", "make it readable"), open(medium.source, "rb") as file:
            head = file.read(16)
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
    return (
        head.startswith(starts)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1"))
    )


def _pillow_errors() -> tuple[type[Exception], ...]:
    # Pillow has no base class of its own: these are what its parsers raise on broken files, found by flipping bytes
    # (tests/unit/test_media.py). A "bomb" warning arrives here where warnings are errors.
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    broken = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, ZeroDivisionError)
    return (*broken, struct.error, MemoryError, DecompressionBombError, DecompressionBombWarning)


def _open_image(medium: Medium, limits: MediaLimits) -> "tuple[Image, int]":
    """The picture, not yet decoded, and its EXIF orientation."""
    from PIL import Image

    source = _source(medium, limits.image_bytes)
    with _refusing(medium, _pillow_errors(), "is no picture that can be read", f"give one of {', '.join(_PICTURES)}"):
        image = Image.open(source, formats=_PICTURES)
        width, height = image.size
        # Pillow decodes a PNG to look for EXIF after the pixels: believe what stands before them only
        has_exif = image.format != "PNG" or "exif" in image.info
        orientation = image.getexif().get(_ORIENTATION, 1) if has_exif else 1
    if width * height > limits.pixels:
        image.close()
        raise MediaError(f"{medium}: has {width} x {height} pixels, over the limit of {limits.pixels:,}; scale it down")
    return image, orientation


def image_size(medium: Medium, limits: MediaLimits = LIMITS) -> tuple[int, int]:
    """(width, height) in pixels as the picture is meant to be seen, from its header alone."""
    image, orientation = _open_image(medium, limits)
    with image:
        width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def load_image(medium: Medium, limits: MediaLimits = LIMITS) -> "np.ndarray":
    """The picture as uint8 (height, width, 3): upright, transparency over white, the first frame of an animation."""
    import numpy as np
    from PIL import Image

    image, orientation = _open_image(medium, limits)
    with image, _refusing(medium, _pillow_errors(), "is a broken picture", "replace the file"):
        rgb = _to_rgb(medium, image)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(Image.Transpose(_UPRIGHT[orientation]))
        return np.asarray(rgb)


def _to_rgb(medium: Medium, image: "Image") -> "Image":
    import numpy as np
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise MediaError(f"{medium}: has {image.mode} pixels of unknown scale; save it with 8 or 16 bits a channel")
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def resize(image: "np.ndarray", width: int, height: int) -> "np.ndarray":
    """Uint8 (height, width, 3), bicubic with antialiasing, from uint8 (h, w, 3)."""
    import numpy as np
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


# ---------------------------------------------------------------------------------------------------------------- films


class VideoHeader(NamedTuple):
    """What a film's header says: frame size in pixels as stored (rotation is in the frames), length in seconds."""

    width: int
    height: int
    seconds: float


@contextmanager
def _open_av(medium: Medium, formats: str, limits: MediaLimits) -> "Iterator[InputContainer]":
    import av

    source = _source(medium, limits.stream_bytes)
    options = {"format_whitelist": formats, "protocol_whitelist": "file"}
    # The prefix keeps a name such as "concat:a.mp4" a name. PyAV raises plain errors of Python beside FFmpeg's own.
    name = f"file:{source}" if isinstance(source, str) else source
    errors = (av.FFmpegError, OSError, ValueError, LookupError, OverflowError, MemoryError)
    with (
        _refusing(medium, errors, "cannot be decoded", "give a file that ffprobe can read, such as mp4, webm or m4a"),
        av.open(name, container_options=options, metadata_errors="replace") as container,
    ):
        yield container


@contextmanager
def open_video(medium: Medium, limits: MediaLimits = LIMITS) -> "Iterator[InputContainer]":
    """The film as a PyAV container that opens no other file; what fails within the block is a MediaError too."""
    with _open_av(medium, _FILMS, limits) as container:
        if not container.streams.video:
            raise MediaError(f"{medium}: has no picture track; give a film")
        # Workers decode one film each: threads would only fight over the cores
        container.streams.video[0].codec_context.thread_count = 1
        yield container


def video_header(medium: Medium, container: "InputContainer", limits: MediaLimits = LIMITS) -> VideoHeader:
    """Size and length of an open film, within the limits."""
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    seconds = _seconds(medium, container, stream, limits)
    if not 0 < width * height <= limits.pixels:
        raise MediaError(f"{medium}: has frames of {width} x {height} pixels, limit {limits.pixels:,}; scale it down")
    if seconds > limits.video_seconds:
        raise MediaError(f"{medium}: lasts {seconds:.0f} s, limit {limits.video_seconds:.0f} s; cut it into parts")
    return VideoHeader(width, height, seconds)


def _seconds(medium: Medium, container: "InputContainer", stream: "Stream", limits: MediaLimits) -> float:
    """How long a track lasts: as its header says or, where that says nothing, by walking its packets."""
    guessed = container.format.name in ("aac", "mp3", "amr", "ac3", "eac3")  # from the bit rate, often far off
    if stream.duration and stream.time_base and not guessed:
        return float(stream.duration * stream.time_base)
    with suppress(ValueError):  # Matroska's length of this track
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and not guessed:
        return container.duration / 1e6
    with _open_av(medium, _SOUNDS, limits) as again:
        packets = [p for p in again.demux(again.streams[stream.index]) if p.pts is not None and p.time_base]
        ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in packets]
        starts = [float(p.pts * p.time_base) for p in packets]
    if not packets:
        raise MediaError(f"{medium}: holds nothing; replace the file")
    return max(ends) - min(starts)


# --------------------------------------------------------------------------------------------------------------- sound


class _Sound(NamedTuple):
    """An open sound: the samples that are meant are `count` from `first`, of a track at `rate` Hz."""

    rate: int
    first: int
    count: int
    read: "Callable[[int, int], np.ndarray]"


def audio_length(medium: Medium, limits: MediaLimits = LIMITS) -> tuple[int, int]:
    """(samples, rate in Hz) of a sound, or of a film's soundtrack, between start and end, as the header has it."""
    with _open_sound(medium, limits) as sound:
        return sound.count, sound.rate


def expected_samples(samples: int, rate: int, wanted_rate: int) -> int:
    """Samples that `load_audio` gives for a sound of `samples` at `rate` Hz when asked for `wanted_rate` Hz."""
    return (samples * wanted_rate + rate // 2) // rate


def load_audio(medium: Medium, rate: int, limits: MediaLimits = LIMITS) -> "np.ndarray":
    """The sound as float32 (samples,), mono, at `rate` Hz: `expected_samples(*audio_length(medium), rate)` of them.

    Channels are averaged. Where the file holds less or more than its header says, by at most `slack`, the end is
    filled with zeros or cut.
    """
    import numpy as np

    with _open_sound(medium, limits) as sound:
        samples = sound.read(sound.first, sound.count)
    if not len(samples):
        raise MediaError(f"{medium}: holds no sound; replace the file")
    if abs(len(samples) - sound.count) > slack(sound.count / sound.rate) * sound.rate:
        raise MediaError(
            f"{medium}: should hold {sound.count / sound.rate:.2f} s of sound but has {len(samples) / sound.rate:.2f} s; "
            "replace or re-encode the file"
        )
    if not max(samples.max(), -samples.min()) <= _LOUDEST:  # also true for NaN
        raise MediaError(f"{medium}: holds samples that are NaN, infinite or above 2^31; re-encode the file")
    samples = _exactly(samples, sound.count)
    if rate == sound.rate:
        return samples
    import soxr

    return _exactly(soxr.resample(samples, sound.rate, rate), expected_samples(sound.count, sound.rate, rate))


def _exactly(samples: "np.ndarray", count: int) -> "np.ndarray":
    import numpy as np

    return samples[:count] if len(samples) >= count else np.pad(samples, (0, count - len(samples)))


@contextmanager
def _open_sound(medium: Medium, limits: MediaLimits) -> Iterator[_Sound]:
    import soundfile

    source = _source(medium, limits.stream_bytes)
    try:
        file = soundfile.SoundFile(source)
    except soundfile.SoundFileError:  # not one of its formats: AAC, WebM and films are for FFmpeg
        with _open_av(medium, _SOUNDS, limits) as container:
            if not container.streams.audio:
                raise MediaError(f"{medium}: has no sound track; give a sound, or a film that has one") from None
            track = container.streams.audio[0]
            total = round(_seconds(medium, container, track, limits) * track.rate)
            yield _part(medium, limits, track.rate, track.channels, total, _reader_of(container, track))
        return
    with file, _refusing(medium, (soundfile.SoundFileError,), "cannot be decoded", "replace the file"):
        yield _part(medium, limits, file.samplerate, file.channels, file.frames, _reader_of_file(file))


def _part(
    medium: Medium,
    limits: MediaLimits,
    rate: int,
    channels: int,
    total: int,
    read: "Callable[[int, int], np.ndarray]",
) -> _Sound:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise MediaError(f"{medium}: claims {rate} samples a second; {_RATES[0]} to {_RATES[1]} are believed")
    if not 0 < channels <= limits.audio_channels:
        raise MediaError(f"{medium}: claims {channels} channels, limit {limits.audio_channels}; mix it down")
    if total <= 0:
        raise MediaError(f"{medium}: holds no sound; replace the file")
    start, end = window(medium, total / rate)
    first, last = round(start * rate), min(total, round(end * rate))
    if last <= first:
        raise MediaError(f"{medium}: is shorter than one sample; give a later end")
    if (last - first) / rate > limits.audio_seconds or last - first > limits.audio_samples:
        raise MediaError(
            f"{medium}: lasts {(last - first) / rate:.0f} s at {rate} Hz, over the limit of {limits.audio_seconds:.0f} s "
            f"or {limits.audio_samples:,} samples; give a part of it by start and end"
        )
    return _Sound(rate, first, last - first, read)


def _reader_of_file(file: "SoundFile") -> "Callable[[int, int], np.ndarray]":
    def read(first: int, count: int) -> "np.ndarray":
        import numpy as np

        if first:
            file.seek(first)
        if file.channels == 1:
            return file.read(count, dtype="float32")
        # In blocks, so that many channels are never in memory at once
        blocks, left = [], count
        while left > 0:
            block = file.read(min(left, _BLOCK), dtype="float32", always_2d=True)
            blocks.append(block.mean(axis=1))
            left -= len(block)
            if not len(block):
                break
        return np.concatenate(blocks)

    return read


def _reader_of(container: "InputContainer", track: "AudioStream") -> "Callable[[int, int], np.ndarray]":
    def read(first: int, count: int) -> "np.ndarray":
        import av
        import numpy as np

        offset, rate = track.start_time or 0, track.rate
        if first:  # a little earlier: codecs need a run-up before a frame is right
            container.seek(max(0, offset + int((first / rate - 0.2) / track.time_base)), stream=track)
        to_float = av.AudioResampler(format="fltp")
        pieces, have = [], 0
        for decoded in container.decode(track):
            for frame in to_float.resample(decoded):
                piece = frame.to_ndarray().mean(axis=0)
                if not pieces and frame.pts is not None:
                    early = first - round((decoded.pts - offset) * float(track.time_base) * rate)
                    piece = piece[max(0, early) :]
                pieces.append(piece)
                have += len(piece)
            if have >= count:
                break
        return np.concatenate(pieces)[:count] if pieces else np.zeros(0, np.float32)

    return read
