"""What every kind of medium shares: limits, errors, the parts that a sample means, and FFmpeg behind a fence."""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from omnikit.component import Medium, Member

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

T = TypeVar("T")


class MediaError(ValueError):
    """A medium that cannot be used: *medium: what is wrong; what would be right*."""


class MediaLimits(BaseModel):
    """What a single medium may cost. The defaults admit what people make and refuse what only an attack makes.

    Pictures are read whole, hence their own limit in bytes; sound and films are read as streams. `pixels` are those of
    a picture or a frame: 50 million are 8660 x 5773, and 8K video has 33. Sound counts in the part that a sample means,
    so ten minutes of a long recording can be asked for; 64 Mi samples are 256 MiB of float32, 11 minutes at 96 kHz.
    `read_seconds` are of the clock, for one look at a medium; `memory_bytes` is what reading may take beyond what the
    process has, enforced in workers on Linux.

    The upper bounds are those of what enforces them: Pillow refuses more pixels whatever it is told, and timers and
    resource limits overflow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_bytes: PositiveInt = 256 * 2**20
    stream_bytes: PositiveInt = 8 * 2**30
    pixels: int = Field(default=50_000_000, gt=0, le=178_956_970)
    audio_seconds: PositiveFloat = 600.0
    audio_samples: PositiveInt = 64 * 2**20
    audio_channels: PositiveInt = 64
    video_seconds: PositiveFloat = 4 * 3600.0
    read_seconds: float = Field(default=120.0, gt=0, le=7 * 86_400)
    memory_bytes: int = Field(default=4 * 2**30, gt=0, le=2**50)

    def lasting(self) -> dict[str, Any]:
        """What makes a medium unreadable on every machine and at any time, as plain data."""
        return self.model_dump(mode="json", exclude={"read_seconds", "memory_bytes"})


class _Allowance(NamedTuple):
    limits: MediaLimits
    until: float
    """The time, by `time.monotonic`, at which reading must be done."""


_DEFAULT = _Allowance(MediaLimits(), float("inf"))
_allowance: ContextVar[_Allowance] = ContextVar("allowance", default=_DEFAULT)


@contextmanager
def limited(to: MediaLimits) -> Iterator[None]:
    """Within the block, in this thread, one medium is read within these limits; the clock runs from here."""
    token = _allowance.set(_Allowance(to, time.monotonic() + to.read_seconds))
    try:
        yield
    finally:
        _allowance.reset(token)


def limits() -> MediaLimits:
    """The limits in force: those of the recipe where its media are read, the defaults elsewhere."""
    return _allowance.get().limits


def in_time(medium: Medium, parts: Iterable[T]) -> Iterator[T]:
    """The parts of a medium (packets, frames, blocks) for as long as its reading may last."""
    for part in parts:
        if time.monotonic() > _allowance.get().until:
            raise MediaError(too_slow(medium, limits()))
        yield part


def too_slow(medium: Medium, limits: MediaLimits) -> str:
    """What is said of a medium whose reading lasts too long."""
    return (
        f"{medium}: takes longer to read than the limit of {limits.read_seconds:g} s; "
        "replace the file, or raise limits.read_seconds"
    )


# Demuxers that open nothing but the file they are given. Without this list FFmpeg takes a playlist or a concat script
# for a film whatever its name, and opens the files and addresses written in it (tests/unit/test_media.py plants one).
FILMS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf"
SOUNDS = f"{FILMS},aac,ac3,eac3,aiff,amr,ape,au,caf,flac,mp3,tta,w64,wav,wv"
GUESSING = ("aac", "ac3", "amr", "eac3", "mp3", "mpegvideo", "h264", "hevc")
"""Formats without a header: their length is FFmpeg's guess from the bit rate, often far off."""


@contextmanager
def refusing(medium: Medium, errors: tuple[type[BaseException], ...], what: str, remedy: str) -> Iterator[None]:
    """Turns a library's exceptions into a MediaError with the library's reason in it."""
    try:
        yield
    except MediaError:
        raise
    except errors as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MediaError(f"{medium}: {what} ({reason}); {remedy}") from error


def source_of(medium: Medium, most_bytes: int) -> str | BytesIO:
    """The path or the bytes, once known to be there, a file, and neither empty nor too large.

    Of a member of a shard just its own bytes are read, and only if they are few enough. Decoders open what comes back,
    never `medium.source`.
    """
    if isinstance(medium.source, bytes):
        size = len(medium.source)
    else:
        # ValueError: a NUL in the name
        with refusing(medium, (OSError, ValueError), "cannot be opened", "give the path of a file that is there"):
            status = os.stat(medium.source)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{medium}: is no regular file; give the path of a media file")
        size = status.st_size
    if medium.member is not None:
        _, offset, length = medium.member
        if min(offset, length) < 0 or offset + length > size:
            raise MediaError(
                f"{medium}: should be bytes {offset:,} to {offset + length:,} of a file of {size:,}; "
                "the shard was cut or changed, replace it"
            )
        size = length
    if not size:
        raise MediaError(f"{medium}: is empty (0 bytes); replace the file")
    if size > most_bytes:
        raise MediaError(f"{medium}: has {size:,} bytes, over the limit of {most_bytes:,}; make it smaller")
    if medium.member is not None:
        return BytesIO(_bytes_of(medium, medium.member))
    return BytesIO(medium.source) if isinstance(medium.source, bytes) else medium.source


def _bytes_of(medium: Medium, member: Member) -> bytes:
    if isinstance(medium.source, bytes):
        return medium.source[member.offset : member.offset + member.length]
    with refusing(medium, (OSError,), "cannot be read", "make it readable"), open(medium.source, "rb") as file:
        file.seek(member.offset)
        found = file.read(member.length)
    if len(found) != member.length:
        raise MediaError(f"{medium}: ends after {len(found):,} of {member.length:,} bytes; the shard was cut")
    return found


def slack(seconds: float) -> float:
    """Seconds by which a header may be wrong: 1 s, or 2 % of a longer medium. Beyond that the medium is bad."""
    return max(1.0, 0.02 * seconds)


def window(medium: Medium, seconds: float) -> tuple[float, float]:
    """(start, end) in seconds of the part that is meant, of a medium that lasts `seconds`."""
    start = 0.0 if medium.start is None else medium.start
    end = seconds if medium.end is None else medium.end
    if start >= seconds or end > seconds + slack(seconds):
        raise MediaError(f"{medium}: lasts {seconds:.3f} s; give a start and an end within it")
    if not 0 <= start < end:  # also true for NaN
        raise MediaError(f"{medium}: has no part from {start} s to {end} s; give 0 <= start < end")
    return start, min(end, seconds)


@contextmanager
def open_av(medium: Medium, formats: str) -> "Iterator[InputContainer]":
    """The medium as a PyAV container that opens no other file; an FFmpeg error within the block is a MediaError."""
    import av

    source = source_of(medium, limits().stream_bytes)
    # The prefix keeps a name such as "concat:a.mp4" a name; bytes need no protocol, so they are left none that exists.
    name = f"file:{os.path.abspath(source)}" if isinstance(source, str) else source
    options = {"format_whitelist": formats, "protocol_whitelist": "file" if isinstance(source, str) else "none"}
    remedy = "give a file that ffprobe can read, such as mp4, webm or m4a"
    with (
        refusing(medium, (av.FFmpegError, OSError, MemoryError), "cannot be decoded", remedy),
        av.open(name, container_options=options, metadata_errors="replace") as container,
    ):
        yield container


def late(container: "InputContainer", track: "Stream") -> float:
    """Seconds after the beginning of the whole, picture and sound, at which a track begins.

    The parts that samples mean count from the beginning of the whole, so that sound and picture stay together.
    """
    beginning = max(0.0, (container.start_time or 0) / 1e6)  # below 0 is a codec's run-up
    seconds = float((track.start_time or 0) * track.time_base) - beginning if track.time_base else 0.0
    return seconds if seconds > 1e-4 else 0.0  # the beginning is rounded


def seconds_of(medium: Medium, container: "InputContainer", track: "Stream") -> float:
    """When a track ends, from the beginning of the whole: by its header or, where that is silent, by its packets."""
    guessed = container.format.name in GUESSING
    if track.duration and track.time_base and not guessed:
        return float(track.duration * track.time_base) + late(container, track)
    # Matroska's times of the end count from 0, not from the start
    in_matroska = container.format.name.startswith("matroska")
    start = float((track.start_time or 0) * track.time_base) - late(container, track) if in_matroska else 0.0
    with suppress(ValueError):  # Matroska's end of this track
        hours, minutes, seconds = track.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start
    if container.duration and not guessed:
        return container.duration / 1e6 - start
    return _walked_seconds(medium, track.index) + late(container, track)


def _walked_seconds(medium: Medium, index: int) -> float:
    first, last = float("inf"), float("-inf")
    with open_av(medium, SOUNDS) as container:
        for packet in in_time(medium, container.demux(container.streams[index])):
            if packet.pts is not None and packet.time_base:
                first = min(first, float(packet.pts * packet.time_base))
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if not first <= last:
        raise MediaError(f"{medium}: holds nothing that can be decoded; replace the file")
    return last - first
