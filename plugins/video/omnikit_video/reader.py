"""Frames of a film at given times, as square views."""

from collections.abc import Iterator, Sequence
from math import ceil, floor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from einops import rearrange

from omnikit.media import (
    MediaError,
    decoded,
    image_size,
    is_image,
    late,
    limits,
    load_image,
    open_video,
    slack,
    source_of,
    video_header,
    window,
)
from omnikit.resizing import resize

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from decord import VideoReader

    from omnikit.component import Medium

WIDE = 1.5
"""Long side over short side from which a frame is cut in two."""

GRACE = 1e-3
"""Seconds by which a frame may come late: containers round their time stamps, Matroska's to whole milliseconds."""

SEEK_BLINDLY = 10.0
"""Seconds ahead from which a key frame is looked for even where the file's index does not tell of one."""

BY_DECORD = ("mov", "matroska"), ("h264", "vp8", "vp9"), ("yuv420p", "yuvj420p")
"""Containers, codecs and pixels that decord 0.6 may decode. Of HEVC and MPEG-TS it returns other frames than it is
asked for, of ten bits other colours, of turned films rows of the wrong length; AV1 it does not have."""


class Clip(NamedTuple):
    """What a reader's options make of a medium: so many frames, `views` of each, from `start` (s) at `fps`."""

    frames: int
    views: int
    start: float = 0.0
    fps: float = 1.0

    def times(self, frames: int) -> list[float]:
        """The times in s of so many of its frames, at even distances."""
        return [self.start + (2 * i + 1) * self.frames // (2 * frames) / self.fps for i in range(frames)]


def survey(medium: "Medium", size: int, fps: float, max_tiles: int) -> Clip:
    """What there is to see, from the header alone."""
    if is_image(medium):
        return Clip(1, _views_of(*image_size(medium), size, max_tiles))
    with open_video(medium) as container:
        return _survey_film(medium, container, size, fps, max_tiles)


def views(medium: "Medium", size: int, fps: float, max_tiles: int, num_views: int, decoder: str) -> np.ndarray:
    """Uint8 (num_views, size, size, 3): of each frame the whole, then its halves if it has any."""
    if is_image(medium):
        image = load_image(medium)
        clip = Clip(1, _views_of(image.shape[1], image.shape[0], size, max_tiles))
        _frames_in(medium, clip, num_views)
        return _cut(image, size, clip.views)
    with open_video(medium) as container:
        clip = _survey_film(medium, container, size, fps, max_tiles)
        shift = late(container, container.streams.video[0])
        times = [time - shift for time in clip.times(_frames_in(medium, clip, num_views))]
        pixels = np.empty((len(times), clip.views, size, size, 3), np.uint8)
        frames = _by_decord(medium, container, times) if decoder == "decord" else None
        for i, frame in enumerate(frames or _by_pyav(medium, container, times)):
            pixels[i] = _cut(frame, size, clip.views)
    return pixels.reshape(num_views, size, size, 3)


def _survey_film(medium: "Medium", container: "InputContainer", size: int, fps: float, max_tiles: int) -> Clip:
    width, height, seconds = video_header(medium, container)
    start, end = window(medium, seconds)
    frames = max(1, ceil((end - start) * fps - 1e-6))  # 1e-6: 3.0000000001 s are not four frames
    return Clip(frames, _views_of(width, height, size, max_tiles), start, fps)


def _frames_in(medium: "Medium", clip: Clip, num_views: int) -> int:
    frames, rest = divmod(num_views, clip.views)
    if rest or not 1 <= frames <= clip.frames:
        raise MediaError(
            f"{medium}: makes {clip.views} views of each of at most {clip.frames} frames, not {num_views}; "
            "has the file changed?"
        )
    return frames


def _views_of(width: int, height: int, size: int, max_tiles: int) -> int:
    long, short = max(width, height), min(width, height)
    return 3 if max_tiles > 1 and long > size and long >= WIDE * short else 1


def _cut(frame: np.ndarray, size: int, num_views: int) -> np.ndarray:
    whole = resize(frame, size, size)[None]
    if num_views == 1:
        return whole
    height, width = frame.shape[:2]
    if width >= height:
        halves = rearrange(resize(frame, 2 * size, size), "y (half x) rgb -> half y x rgb", half=2)
    else:
        halves = rearrange(resize(frame, size, 2 * size), "(half y) x rgb -> half y x rgb", half=2)
    return np.concatenate([whole, halves])


# ---------------------------------------------------------------------------------------------------------------- PyAV


def _by_pyav(medium: "Medium", container: "InputContainer", times: Sequence[float]) -> Iterator[np.ndarray]:
    """The frame shown at each of these rising times, from the first frame on; before that, the first one.

    The last one is shown again where the header promised a little more.
    """
    track = container.streams.video[0]
    tick, origin = float(track.time_base), track.start_time or 0
    coming = decoded(medium, container)
    shown: VideoFrame | None = None  # the last frame not later than the time asked for
    after: VideoFrame | None = None  # the first one later
    ended = False
    for time in times:
        target = origin + floor((time + GRACE) / tick)
        if not ended and _worth_seeking(track, origin if after is None else after.pts, target):
            coming, after = _seek(medium, container, track, target)
            shown, ended = None, after is None
        while not ended and (after is None or after.pts <= target):
            shown, after = after, next(coming, None)
            ended = after is None
        frame = shown or after
        if frame is None:
            raise MediaError(f"{medium}: holds no frame that can be decoded; replace the file")
        if ended:
            _check_end(medium, time, (frame.pts - origin + (frame.duration or 0)) * tick)
        turned = round(frame.rotation / 90) % 4
        yield np.rot90(frame.to_ndarray(format="rgb24", threads=1), turned)


def _worth_seeking(track: "VideoStream", position: int, target: int) -> bool:
    """Whether a key frame lies between: as the index says, or where that does not reach so far, by distance."""
    index = track.index_entries
    if len(index) and index[-1].timestamp >= target:
        key = index.search_timestamp(target)
        return key >= 0 and index[key].timestamp > position
    return (target - position) * float(track.time_base) > SEEK_BLINDLY


def _seek(
    medium: "Medium", container: "InputContainer", track: "VideoStream", target: int
) -> "tuple[Iterator[VideoFrame], VideoFrame | None]":
    """The frames from a key frame that is shown no later than the target; the first of them apart."""
    second = round(1 / float(track.time_base))
    # A second early, for the first key frame is decoded before it is shown
    earliest, back = (track.start_time or 0) - second, 0
    while True:
        container.seek(max(target - back, earliest), stream=track)
        coming = decoded(medium, container)
        first = next(coming, None)
        # Containers seek by decoding time, so what is found may be shown after the target: then from further back.
        if target - back <= earliest or (first is not None and first.pts <= target):
            return coming, first
        back = 2 * back or second


def _check_end(medium: "Medium", time: float, end: float) -> None:
    if time > end + slack(time):
        raise MediaError(f"{medium}: should have a frame at {time:.2f} s but ends at {end:.2f} s; replace the file")


# -------------------------------------------------------------------------------------------------------------- decord


def _by_decord(medium: "Medium", container: "InputContainer", times: Sequence[float]) -> Iterator[np.ndarray] | None:
    """The same frames by decord, or None where it cannot open the file or is known to give others."""
    track = container.streams.video[0]
    kind = container.format.name.split(",")[0], track.codec_context.name, track.codec_context.pix_fmt
    if not all(own in right for own, right in zip(kind, BY_DECORD, strict=True)) or _is_turned(medium):
        return None
    try:
        import decord
    except ImportError:  # no wheel for this machine
        return None
    try:
        film = decord.VideoReader(source_of(medium, limits().stream_bytes), num_threads=1)
        shown = film.get_frame_timestamp(range(len(film)))  # (frames, 2): from and to, in s after the first frame
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError):  # IndexError: it counts frames it has not
        return None
    return _decord_frames(medium, film, shown, times, (decord.DECORDError, RuntimeError))


def _is_turned(medium: "Medium") -> bool:
    with open_video(medium) as container:
        frame = next(decoded(medium, container), None)
    return frame is not None and frame.rotation != 0


def _decord_frames(
    medium: "Medium",
    film: "VideoReader",
    shown: np.ndarray,
    times: Sequence[float],
    errors: tuple[type[Exception], ...],
) -> Iterator[np.ndarray]:
    for time in times:
        index = int(np.searchsorted(shown[:, 0], np.float32(time + GRACE), side="right")) - 1
        _check_end(medium, time, float(shown[-1, 1]))
        try:
            yield film[max(index, 0)].asnumpy()
        except errors as error:
            reason = " ".join(str(error).split())[:200]
            raise MediaError(
                f"{medium}: cannot be decoded ({reason}); try decoder: pyav, or replace the file"
            ) from error
