"""The reader `waveform` against openai-whisper and transformers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omnikit_whisper import WaveformConfig, WhisperConfig
from transformers import WhisperFeatureExtractor
from whisper.audio import log_mel_spectrogram, pad_or_trim

from omnikit.component import Medium, Mel, count

torch.set_num_threads(1)
READER = WaveformConfig()
Recorder = Callable[[int], tuple[Medium, np.ndarray]]


@pytest.fixture
def record(tmp_path: Path) -> Recorder:
    """Writes a float WAV of so many samples at 16 kHz: a chirp in noise."""

    def write(samples: int) -> tuple[Medium, np.ndarray]:
        time = np.arange(samples) / 16000
        noise = np.random.default_rng(samples).standard_normal(samples)
        sound = (0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.01 * noise).astype(np.float32)
        path = tmp_path / f"{samples}.wav"
        soundfile.write(path, sound, 16000, subtype="FLOAT")
        return Medium(str(path)), sound

    return write


def read(medium: Medium, input: Mel) -> np.ndarray:
    (grid,) = READER.grids(medium, input)
    item = READER.read(medium, input, grid)
    assert item.grid == grid
    return item.value


@pytest.mark.parametrize("bins", [80, 128])
def test_padded_equals_both_libraries(record: Recorder, bins: int) -> None:
    medium, sound = record(51_234)
    mel = read(medium, Mel(bins=bins))
    assert mel.shape == (bins, 3000)
    assert mel.dtype == np.float32
    np.testing.assert_array_equal(mel, log_mel_spectrogram(pad_or_trim(sound), bins).numpy())
    extractor = WhisperFeatureExtractor(feature_size=bins)
    theirs = extractor(sound, sampling_rate=16000, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(mel, theirs, rtol=0, atol=1e-4)  # filters of another library, in float32


@pytest.mark.parametrize("bins", [80, 128])
def test_ragged_computes_real_frames_only(record: Recorder, bins: int) -> None:
    medium, sound = record(32_100)
    mel = read(medium, Mel(bins=bins, padded=False))
    assert mel.shape == (bins, 200)
    np.testing.assert_array_equal(mel, log_mel_spectrogram(sound, bins).numpy())


@pytest.mark.parametrize("padded", [True, False])
def test_each_window_is_made_by_itself(record: Recorder, padded: bool) -> None:
    medium, sound = record(40_000)
    sound[16_000:32_000] *= 100  # its maximum must not reach the other windows
    soundfile.write(medium.source, sound, 16000, subtype="FLOAT")
    mel = read(medium, Mel(window=1.0, padded=padded))
    rest = pad_or_trim(sound[32_000:], 16_000) if padded else sound[32_000:]
    windows = sound[:16_000], sound[16_000:32_000], rest
    np.testing.assert_array_equal(mel, np.concatenate([log_mel_spectrogram(w).numpy() for w in windows], axis=1))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("samples", [201, 320, 479, 480, 16_000, 16_100, 16_160, 16_400, 25_759, 25_760])
def test_frames_are_what_the_grid_needs(record: Recorder, samples: int, padded: bool) -> None:
    medium, _ = record(samples)
    input = Mel(window=1.0, padded=padded)
    frames = read(medium, input).shape[1]
    assert frames == (-(-(samples // 160) // 100) * 100 if padded else samples // 160)
    full, rest = divmod(samples // 160, 100)  # transformers: (L - 1) // 2 + 1 features of a window of L frames
    assert count(READER.grids(medium, input)[0]) == 50 * full + ((rest - 1) // 2 + 1 if rest else 0)


def test_a_last_window_shorter_than_the_transform_is_filled(record: Recorder) -> None:
    medium, sound = record(16_170)
    mel = read(medium, Mel(window=1.0, padded=False))
    np.testing.assert_array_equal(mel[:, 100:], log_mel_spectrogram(pad_or_trim(sound[16_000:], 201)).numpy())


def test_a_part_is_read_like_a_file_of_its_own(record: Recorder) -> None:
    medium, sound = record(48_000)
    mel = read(medium._replace(start=1.0, end=2.5), Mel(padded=False))
    np.testing.assert_array_equal(mel, log_mel_spectrogram(sound[16_000:40_000]).numpy())


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 192_000])
def test_other_rates_and_channels_are_converted(tmp_path: Path, rate: int, channels: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)

    path = tmp_path / "sound.wav"
    soundfile.write(path, np.stack([tone(rate), *[np.zeros(rate, np.float32)] * (channels - 1)], axis=1), rate)
    mel = read(Medium(str(path)), Mel(padded=False))
    expected = log_mel_spectrogram(tone(16_000) / channels).numpy()
    loud = expected > expected.max() - 1  # four decades: what lies below is the rounding of 16 bits
    assert mel.shape == (80, 100)
    assert loud.sum() > 300
    np.testing.assert_allclose(mel[loud], expected[loud], atol=0.05 if rate == 8_000 else 0.02)


def test_specimens_are_read_and_odd(tmp_path: Path) -> None:
    input = Mel(window=1.0, padded=False)
    media = READER.specimens(tmp_path, input)
    found = [READER.grids(medium, input)[0][0] for medium in media]
    for medium in media:
        assert read(medium, input).shape[0] == 80
    assert found[0] == 1, "the shortest that is read"
    assert 29 in found, "an odd number of frames"
    assert max(found) > input.features(input.window_frames), "more than a window"
    infos = [soundfile.info(medium.source) for medium in media]
    assert {info.channels for info in infos} == {1, 2, 6}
    assert {info.samplerate for info in infos} == {8_000, 16_000, 44_100, 48_000, 192_000}
    assert any(medium.start is not None for medium in media)
    again = tmp_path / "again"
    again.mkdir()
    for first, second in zip(media, READER.specimens(again, input), strict=True):
        np.testing.assert_array_equal(soundfile.read(first.source)[0], soundfile.read(second.source)[0])


@pytest.mark.parametrize("padding", ["full", "ragged"])
def test_the_example_is_silence_as_the_reader_makes_it(tmp_path: Path, padding: str) -> None:
    config = WhisperConfig(preset="tiny.en", padding=padding)
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(8000, np.float32), 16000)
    example = config.example()
    assert READER.grids(Medium(str(path)), config.input) == [example.grid] == [(25, 1, 1)]
    mel = read(Medium(str(path)), config.input)
    assert example.value.dtype == mel.dtype
    np.testing.assert_array_equal(example.value, mel)


def test_too_short_a_sound_is_refused(record: Recorder) -> None:
    with pytest.raises(ValueError, match=r"200.wav: 12.5 ms of sound are too short; at least 12.6 ms"):
        READER.grids(record(200)[0], Mel())


def test_a_grid_that_the_file_does_not_make_is_refused(record: Recorder) -> None:
    with pytest.raises(ValueError, match=r"makes 50 features, not the 51"):
        READER.read(record(16_000)[0], Mel(), (51, 1, 1))


def test_another_transform_than_whispers_is_refused(record: Recorder) -> None:
    with pytest.raises(ValueError, match="hop 320"):
        READER.read(record(16_000)[0], Mel(hop=320), (25, 1, 1))


def test_a_window_is_listed_by_its_length() -> None:
    assert READER.sizes(Mel()) == {"30 s": (1500, 1, 1)}
    assert READER.sizes(Mel(window=2.5)) == {"2.5 s": (125, 1, 1)}
