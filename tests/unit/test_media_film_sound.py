"""A film's own sound: cut to the same seconds as its pictures, in any container, whichever track comes late."""

from fractions import Fraction

import av
import numpy as np
import pytest
from omnikit_video import FramesConfig
from omnikit_whisper import WaveformConfig

from omnikit.component import Medium, Mel, Pixels
from omnikit.media import MediaError, audio_length, load_audio

FPS, RATE = 25, 48000
EVENTS = (0.4, 2.0, 5.2)
"""Seconds at which one white frame is shown, and a beep begins that lasts as long."""
PIXELS = Pixels(size=16, patch=8, mean=(0, 0, 0), std=(1, 1, 1))
KINDS = {
    "a.mp4": ("libx264", "aac"),
    "a.mov": ("mpeg4", "aac"),
    "a.mkv": ("libx264", "flac"),
    "a.webm": ("libvpx-vp9", "libopus"),
    "a.ts": ("mpeg2video", "ac3"),
    "a.avi": ("mpeg4", "mp3"),
}


def film(path, codecs, seconds=7.0, picture_late=0.0, sound_late=0.0, hole=None) -> Medium:
    """Black but for the events; either track may begin late, and sound may be missing from one second to another."""
    with av.open(str(path), "w") as container:
        track = container.add_stream(codecs[0], rate=FPS)
        track.width = track.height = 32
        track.pix_fmt = "yuv420p"
        track.codec_context.gop_size = 10
        heard = container.add_stream(codecs[1], rate=RATE, layout="mono")
        time = np.arange(int(seconds * RATE)) / RATE
        beeps = sum(((time >= at) & (time < at + 1 / FPS)) for at in EVENTS)
        wave = (0.6 * beeps * np.sin(2 * np.pi * 2000 * time)).astype(np.float32)
        for index in range(round(picture_late * FPS), int(seconds * FPS)):
            white = any(abs(index / FPS - at) < 0.5 / FPS for at in EVENTS)
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255 * white, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(track.encode(frame))
        for start in range(round(sound_late * RATE), len(wave), 1024):
            if hole is None or not hole[0] <= start / RATE < hole[1]:
                piece = wave[None, start : start + 1024]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
                container.mux(heard.encode(frame))
        container.mux(track.encode())
        container.mux(heard.encode())
    return Medium(str(path))


def flashes(medium, decoder="pyav"):
    """When white frames are seen, in seconds from the part's start."""
    reader = FramesConfig(fps=FPS, max_frames=1000, max_tiles=1, decoder=decoder)
    views = reader.read(medium, PIXELS, reader.grids(medium, PIXELS)[0]).value
    return [index / FPS for index in np.flatnonzero(views.mean(axis=(1, 2, 3)) > 0.5)]


def beeps(medium):
    """When beeps begin, in seconds from the part's start."""
    loud = abs(load_audio(medium, 16000)) > 0.15
    starts = np.flatnonzero(loud) / 16000
    return [float(at) for at, before in zip(starts, [-9, *starts[:-1]], strict=True) if at - before > 0.1]


def check(medium, expected, decoder="pyav"):
    seen, heard = flashes(medium, decoder), beeps(medium)
    assert len(seen) == len(heard) == len(expected), (seen, heard)
    for flash, beep, at in zip(seen, heard, expected, strict=True):
        assert abs(flash - at) <= 1.01 / FPS and abs(beep - at) <= 0.03, (flash, beep, at)
        assert abs(flash - beep) <= 1.5 / FPS


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("part", [(None, None), (1.0, 3.0), (4.48, None), (0.2, 5.48)])
def test_a_beep_is_heard_when_its_flash_is_seen(tmp_path, name, part):
    medium = film(tmp_path / name, KINDS[name])._replace(start=part[0], end=part[1])
    start, end = part[0] or 0, part[1] or 7
    check(medium, [at - start for at in EVENTS if start <= at < end])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts"])
@pytest.mark.parametrize("late", [{"sound_late": 1.6}, {"picture_late": 1.6}], ids=["sound", "picture"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_track_that_begins_late_stays_with_the_other(tmp_path, name, late, decoder):
    medium = film(tmp_path / name, KINDS[name], **late)
    after = [at for at in EVENTS if at > 1.6]
    seen, heard = flashes(medium, decoder), beeps(medium)
    if "sound_late" in late:
        np.testing.assert_allclose(seen, EVENTS, atol=0.05)
        np.testing.assert_allclose(heard, after, atol=0.05)
    else:
        np.testing.assert_allclose(seen, after, atol=0.05)
        np.testing.assert_allclose(heard, EVENTS, atol=0.05)
    check(medium._replace(start=1.8, end=6.0), [at - 1.8 for at in after], decoder)
    assert abs(audio_length(medium)[0] / RATE - 7) < 0.15, "it lasts to the end, the silence before it counted"


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_sound_that_is_missing_in_between_is_silence(tmp_path, name):
    medium = film(tmp_path / name, KINDS[name], hole=(2.5, 4.5))
    check(medium, EVENTS)
    check(medium._replace(start=3.0), [5.2 - 3.0])


def test_what_has_no_sound_or_no_picture_is_named(tmp_path):
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        track = container.add_stream("mpeg4", rate=FPS)
        track.width = track.height = 32
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    with pytest.raises(MediaError, match=r"silent.mp4\[0:0.1\]: has no sound track that can be decoded; give a sound"):
        WaveformConfig().grids(Medium(str(silent), 0, 0.1), Mel())


def test_the_log_mel_of_a_part_is_that_of_its_sound(tmp_path):
    medium = film(tmp_path / "a.mp4", KINDS["a.mp4"])._replace(start=1.0, end=3.0)
    reader, input = WaveformConfig(), Mel(padded=False)
    (grid,) = reader.grids(medium, input)
    value = reader.read(medium, input, grid).value
    assert grid == (100, 1, 1) and value.shape == (80, 200)
    assert abs(int(value.max(axis=0).argmax()) - 102) <= 5, "the beep at 2.0 s, one second after the start"
