"""Sound by soundfile and, where that has no decoder (AAC, WebM, films), by PyAV; within limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from omnikit.component import Medium
from omnikit.media.opening import (
    SOUNDS,
    MediaError,
    in_time,
    late,
    limits,
    open_av,
    refusing,
    seconds_of,
    slack,
    source_of,
    window,
)

if TYPE_CHECKING:
    import numpy as np
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from soundfile import SoundFile

RATES = (1_000, 768_000)
"""Samples a second that are believed. Headers say 1, or 2^31 - 1: resampled, that is nothing, or terabytes."""

LOUDEST = 2.0**31
"""Floats on an integer's scale are odd but usable; beyond these, the power of a spectrum overflows float32."""

BLOCK = 2**20
RUN_UP = 0.2
"""Seconds decoded before a start, since codecs overlap their frames."""
SLIP = 0.1
"""Seconds by which time stamps must leap before sound is taken to be missing: containers round them."""

Read = Callable[[int, int], "np.ndarray"]


class Sound(NamedTuple):
    """An open sound at `rate` Hz: `count` samples from `first` are meant; `read(first, count)` gives them, mono."""

    rate: int
    first: int
    count: int
    read: Read


def audio_length(medium: Medium) -> tuple[int, int]:
    """(samples, rate in Hz) of a sound or a film's soundtrack between start and end, as the header has it."""
    with _open(medium) as sound:
        return sound.count, sound.rate


def expected_samples(samples: int, rate: int, wanted_rate: int) -> int:
    """Samples that `load_audio` gives of a sound of `samples` at `rate` Hz, when asked for `wanted_rate` Hz."""
    return (samples * wanted_rate + rate // 2) // rate


def load_audio(medium: Medium, rate: int) -> "np.ndarray":
    """The sound as float32 (samples,) at `rate` Hz, mono: `expected_samples(*audio_length(medium), rate)` of them.

    Channels are averaged. Where the file holds less or more than its header says, by `slack` at most, silence is added
    or the end is cut; beyond that, and where a sample is no usable number, it is a MediaError.
    """
    with _open(medium) as sound:
        samples = sound.read(sound.first, sound.count)
    meant, found = sound.count / sound.rate, len(samples) / sound.rate
    if not found or meant - found > slack(meant):
        raise MediaError(f"{medium}: should hold {meant:.2f} s of sound but has {found:.2f} s; replace the file")
    if not max(samples.max(), -samples.min()) <= LOUDEST:  # also true for NaN
        raise MediaError(f"{medium}: holds samples that are NaN, infinite or above 2^31; encode it again")
    samples = _exactly(samples, sound.count)
    if rate == sound.rate:
        return samples
    import soxr

    return _exactly(soxr.resample(samples, sound.rate, rate), expected_samples(sound.count, sound.rate, rate))


def _exactly(samples: "np.ndarray", count: int) -> "np.ndarray":
    import numpy as np

    return samples[:count] if len(samples) >= count else np.pad(samples, (0, count - len(samples)))


@contextmanager
def _open(medium: Medium) -> Iterator[Sound]:
    import soundfile

    source = source_of(medium, limits().stream_bytes)
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.SoundFileError, TypeError):  # none of its formats; TypeError: of a .raw it wants to be told more
        file = None
    if file is not None:
        with file, refusing(medium, (soundfile.SoundFileError,), "cannot be decoded", "replace the file"):
            yield _sound(medium, file.samplerate, file.channels, file.frames, _reader_of_file(medium, file))
        return
    with open_av(medium, SOUNDS) as container:
        track = container.streams.audio[0] if container.streams.audio else None
        if track is None or track.codec_context is None:  # None: a codec that FFmpeg does not know
            raise MediaError(f"{medium}: has no sound track that can be decoded; give a sound, or a film that has one")
        total = round(seconds_of(medium, container, track) * track.rate)
        yield _sound(medium, track.rate, track.channels, total, _reader_of_track(medium, container, track))


def _sound(medium: Medium, rate: int, channels: int, total: int, read: Read) -> Sound:
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{medium}: claims {rate} samples a second; only {RATES[0]} to {RATES[1]} are believed")
    most = limits()
    if not 0 < channels <= most.audio_channels:
        raise MediaError(f"{medium}: has {channels} channels, over the limit of {most.audio_channels}; mix it down")
    if total <= 0:
        raise MediaError(f"{medium}: holds no sound; replace the file")
    start, end = window(medium, total / rate)
    first = round(start * rate)
    count = min(total, round(end * rate)) - first
    if count <= 0:
        raise MediaError(f"{medium}: is shorter than one sample; give a later end")
    if count > most.audio_seconds * rate or count > most.audio_samples:
        raise MediaError(
            f"{medium}: lasts {count / rate:.0f} s at {rate} Hz, over the limit of {most.audio_seconds:.0f} s or "
            f"{most.audio_samples:,} samples; give a part of it by start and end"
        )
    return Sound(rate, first, count, read)


def _reader_of_file(medium: Medium, file: "SoundFile") -> Read:
    def blocks(count: int) -> "Iterator[np.ndarray]":
        # In blocks, or many channels of a long sound would be in memory at once
        while count > 0 and len(block := file.read(min(count, BLOCK // file.channels), "float32", always_2d=True)):
            count -= len(block)
            yield block.mean(axis=1)

    def read(first: int, count: int) -> "np.ndarray":
        import numpy as np

        if first:
            file.seek(first)
        found = list(in_time(medium, blocks(count)))
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    return read


def _reader_of_track(medium: Medium, container: "InputContainer", track: "AudioStream") -> Read:
    def read(first: int, count: int) -> "np.ndarray":
        import numpy as np

        pieces, have = [], 0
        for position, piece in _decoded(medium, container, track, first):
            gap = min(position - first, count) - have
            own = piece[max(0, first + have - position) :][: count - have - max(0, gap)]
            pieces += [np.zeros(gap, np.float32), own] if gap > 0 else [own]
            have += max(0, gap) + len(own)
            if have == count:
                break
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    return read


def _decoded(
    medium: Medium, container: "InputContainer", track: "AudioStream", first: int
) -> "Iterator[tuple[int, np.ndarray]]":
    """(position in samples, mono samples) of each frame, from one that begins at `first` or earlier if there is one."""
    import av

    tick = float(track.time_base)
    origin = max(0, track.start_time or 0)  # below 0 is a codec's run-up, of which nothing is decoded
    shift = late(container, track)

    def place(frame: "AudioFrame") -> int | None:
        return None if frame.pts is None else round(((frame.pts - origin) * tick + shift) * track.rate)

    frames = in_time(medium, container.decode(track))
    early = first / track.rate - shift - RUN_UP
    if early > 0:
        container.seek(origin + int(early / tick), stream=track)
        found = next(frames, None)
        if found is None or (at := place(found)) is None or at > first:
            container.seek(origin, stream=track)  # some formats cannot find a place: then from the beginning
        else:
            frames = chain([found], frames)
    to_float = av.AudioResampler(format="fltp")
    position: int | None = None
    for frame in frames:
        at = place(frame)
        if position is None or (at is not None and abs(at - position) > SLIP * track.rate):
            position = at or 0
        for converted in to_float.resample(frame):
            samples = converted.to_ndarray().mean(axis=0)
            yield position, samples
            position += len(samples)
