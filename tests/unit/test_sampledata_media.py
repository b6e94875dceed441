"""The media of the sample data: what they show and say, to whom only has their pixels and samples."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnikit.sampledata import NEW_VOICES, SPOKEN_WORDS, TRAIN_VOICES
from omnikit.sampledata.clips import draw_frames
from omnikit.sampledata.pictures import PAINT, draw_picture
from omnikit.sampledata.scenes import Figure, Motion, Order, Picture, Placed
from omnikit.sampledata.speech import PEAK, SAMPLE_RATE, Utterance, synthesise, write_speech
from omnikit.sampledata.words import COLOURS, SHAPES


def nearest_paint(shade: np.ndarray) -> str:
    """Returns the name of the colour closest to these levels."""
    return min(PAINT, key=lambda name: float(np.abs(shade - PAINT[name]).sum()))


@pytest.mark.parametrize("look", ["0", "1", "2"])
def test_a_picture_shows_each_figure_in_its_quarter_colour_and_size(look: str) -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            areas = {}
            for size in ("small", "large"):
                picture = Picture((Placed(Figure(colour, shape), size, "bottom", "left"),))
                pixels = np.asarray(draw_picture(picture, look), dtype=float)
                painted = np.abs(pixels - pixels[0, -1]).max(-1) > 40
                areas[size] = painted[32:, :32].sum()
                assert painted.sum() == areas[size] > 30
                shade = np.median(pixels[painted], 0)
                assert nearest_paint(shade) == colour
            assert areas["large"] > 2.2 * areas["small"]


def test_shapes_differ_beyond_their_shading() -> None:
    masks = []
    for shape in SHAPES:
        picture = Picture((Placed(Figure("black", shape), "small", "top", "left"),))
        masks.append(np.asarray(draw_picture(picture, "0").convert("L"))[:32, :32] < 128)
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask != other).sum() > 12


@pytest.mark.parametrize(("way", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
@pytest.mark.parametrize("offset", [0, 2])
def test_four_evenly_spaced_frames_show_the_way(way: str, axis: int, sign: int, offset: int) -> None:
    frames = list(draw_frames(Motion(Figure("black", "star"), way), "0"))[offset::4]
    centres = [np.argwhere(np.asarray(frame.convert("L")) < 128).mean(0) for frame in frames]
    steps = sign * np.diff(centres, axis=0)[:, axis]
    assert (steps > 6).all() and steps.sum() > 25
    assert np.abs(np.diff(centres, axis=0)[:, 1 - axis]).max() < 1


def test_one_figure_replaces_the_other_at_half_time() -> None:
    frames = list(draw_frames(Order(Figure("red", "circle"), Figure("black", "cross")), "0"))
    red = [(np.asarray(frame)[..., 0].astype(int) - np.asarray(frame)[..., 1] > 120).sum() > 50 for frame in frames]
    assert red == [True] * 8 + [False] * 8


def test_more_words_take_longer_and_both_ends_are_quiet_for_50_ms(tmp_path: Path) -> None:
    lengths = []
    for number in range(1, 7):
        write_speech(Utterance(" ".join(SPOKEN_WORDS[:number]), TRAIN_VOICES[0], 160, 50), tmp_path / "a.flac")
        samples, _ = soundfile.read(tmp_path / "a.flac")
        loud = np.flatnonzero(np.abs(samples) > 0.02 * PEAK)
        assert loud[0] == pytest.approx(0.05 * SAMPLE_RATE, abs=160)
        assert len(samples) - loud[-1] == pytest.approx(0.05 * SAMPLE_RATE, abs=160)
        lengths.append(len(samples))
    assert lengths == sorted(lengths) and 1.7 < lengths[-1] / SAMPLE_RATE < 3.0


def test_voices_sound_different() -> None:
    spectra = []
    for voice in TRAIN_VOICES + NEW_VOICES:
        samples, _ = synthesise(Utterance("blue square four large", voice, 160, 50))
        frames = np.lib.stride_tricks.sliding_window_view(samples.astype(float), 1024)[::512]
        power = (np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2).mean(0)
        bands = np.log([band.sum() for band in np.split(power[4:404], 40)])
        spectra.append(bands - bands.mean())
    for index, one in enumerate(spectra):
        for other in spectra[:index]:
            assert np.sqrt(np.mean((one - other) ** 2)) > 0.4


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    for voice in TRAIN_VOICES + NEW_VOICES:
        wanted = Utterance("red circle left blue", voice, 160, 50)
        first, _ = synthesise(wanted)
        synthesise(Utterance("four", TRAIN_VOICES[0], 150, 60))
        assert np.array_equal(first, synthesise(wanted)[0]), voice
