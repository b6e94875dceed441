"""Films, opened within limits. Which frames to take of them is for readers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from omnikit.component import Medium
from omnikit.media.opening import FILMS, MediaError, in_time, limits, open_av, seconds_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame


class VideoHeader(NamedTuple):
    """What a film's header says: frame size in pixels as stored (only frames tell of a rotation), end in seconds."""

    width: int
    height: int
    seconds: float


@contextmanager
def open_video(medium: Medium) -> "Iterator[InputContainer]":
    """The film as a PyAV container that opens no other file; an FFmpeg error within the block is a MediaError."""
    with open_av(medium, FILMS) as container:
        codec = container.streams.video[0].codec_context if container.streams.video else None
        if codec is None:  # also for a track whose codec FFmpeg does not know
            raise MediaError(f"{medium}: has no picture track that can be decoded; give a film")
        codec.thread_count = 1  # workers decode one film each: more threads would only fight over the cores
        codec.options = {"max_pixels": str(limits().pixels)}  # a film may grow behind its header
        yield container


def decoded(medium: Medium, container: "InputContainer") -> "Iterator[VideoFrame]":
    """The film's frames from where it stands, those that know their time, within the limits."""
    return (frame for frame in in_time(medium, container.decode(video=0)) if frame.pts is not None)


def video_header(medium: Medium, container: "InputContainer") -> VideoHeader:
    """Size and length of an open film; outside the limits is a MediaError."""
    track = container.streams.video[0]
    width, height = track.codec_context.width, track.codec_context.height
    most = limits()
    if not 0 < width * height <= most.pixels:
        raise MediaError(
            f"{medium}: has frames of {width} x {height} pixels, over the limit of {most.pixels:,}; scale it down"
        )
    seconds = seconds_of(medium, container, track)
    if not 0 <= seconds <= most.video_seconds:
        raise MediaError(
            f"{medium}: lasts {seconds:.0f} s, over the limit of {most.video_seconds:.0f} s; cut the file into parts"
        )
    return VideoHeader(width, height, seconds)
