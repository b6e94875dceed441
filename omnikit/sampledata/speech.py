"""Words as sound: espeak-ng through ctypes, to 16 kHz mono FLAC."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
EDGE = 0.05
"""Seconds of silence left before and after the words."""
PEAK = 0.6

# Variants with breath (f2, f3, f5) are left out: with them espeak-ng 1.52 gives other samples each time, even as the first
# call of a process.
TRAIN_VOICES = ("en-us+m1", "en+m3", "en-us+adam", "en+f1", "en-us+f4", "en+Annie")
NEW_VOICES = ("en+m7", "en-us+aunty")

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_WORDS_A_MINUTE = 1
_PITCH = 3
_ON_SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Utterance(NamedTuple):
    """What is said and how: espeak's voice name, words a minute, and pitch from 0 to 99 (50 is the voice's own)."""

    text: str
    voice: str
    rate: int
    pitch: int


def find_espeak() -> ModuleType:
    """Returns the package that carries the espeak-ng library and its data, or says how to install it."""
    try:
        import espeakng_loader
    except ImportError:
        raise ValueError(
            "omnikit data sample: speech: espeak-ng is not installed; pip install 'omnikit[speech]' brings it"
        ) from None
    return espeakng_loader


def synthesise(utterance: Utterance) -> tuple[np.ndarray, int]:
    """Returns 16-bit samples and their rate, the same ones for equal utterances whatever was said before."""
    chunks: list[np.ndarray] = []

    @_ON_SAMPLES
    def keep(samples: "ctypes._Pointer[ctypes.c_short]", number: int, _events: int) -> int:
        if number > 0:
            chunks.append(np.ctypeslib.as_array(samples, (number,)).copy())
        return 0

    loader = find_espeak()
    with _fresh_library(loader.get_library_path()) as espeak:
        data = loader.get_data_path().encode()
        own_rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, data, _DO_NOT_EXIT)
        if own_rate <= 0:
            raise ValueError(f"{loader.get_data_path()}: espeak-ng cannot start; reinstall espeakng-loader")
        espeak.espeak_SetSynthCallback(keep)
        if espeak.espeak_SetVoiceByName(utterance.voice.encode()):
            raise ValueError(f"{loader.get_data_path()}: no voice {utterance.voice!r}; reinstall espeakng-loader")
        espeak.espeak_SetParameter(_WORDS_A_MINUTE, utterance.rate, 0)
        espeak.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        text = utterance.text.encode()
        size, nowhere = ctypes.c_size_t(len(text) + 1), ctypes.c_void_p()
        failed = espeak.espeak_Synth(text, size, 0, 0, 0, _UTF8, nowhere, nowhere)
        espeak.espeak_Terminate()
    assert not failed and chunks, f"espeak_Synth: error {failed} at {utterance}"
    return np.concatenate(chunks), own_rate


def write_speech(utterance: Utterance, path: Path) -> None:
    """Writes the utterance, loudness made even and silence at both ends cut."""
    samples, own_rate = synthesise(utterance)
    wave = soxr.resample(samples.astype(np.float32), own_rate, SAMPLE_RATE)
    wave *= PEAK / np.abs(wave).max()
    soundfile.write(path, _trim(wave), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _trim(wave: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(wave) > 0.02 * PEAK)
    edge = int(EDGE * SAMPLE_RATE)
    return wave[max(0, loud[0] - edge) : loud[-1] + 1 + edge]


@contextmanager
def _fresh_library(path: str) -> Iterator[ctypes.CDLL]:
    """Yields the library as if never used.

    espeak-ng keeps phases and flutter in static variables that neither espeak_Initialize nor espeak_Terminate
    resets: the same call after another one differs by up to half the scale, and in length. Loading it anew for every
    utterance costs 3 ms, synthesis included.
    """
    library = ctypes.CDLL(path)
    try:
        yield library
    finally:
        import _ctypes

        close = _ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose
        close(library._handle)
