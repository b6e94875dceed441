"""Words as sound: espeak-ng through ctypes, to 16 kHz mono FLAC."""

import _ctypes
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
EDGE = 0.05
"""Seconds of silence before and after the words."""
PEAK = 0.6
Samples = NDArray[Any]

# Variants with breath (f2, f3, f5) are left out: with them espeak-ng 1.52 gives other samples each time, even in the
# first call of a process.
TRAIN_VOICES = ("en-us+m1", "en+m3", "en-us+adam", "en+f1", "en-us+f4", "en+Annie")
NEW_VOICES = ("en+m7", "en+linda")

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


def synthesise(utterance: Utterance) -> tuple[Samples, int]:
    """Returns 16-bit samples and their rate, the same ones for equal utterances whatever was said before."""
    chunks: list[Samples] = []

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
            problem = f"{loader.get_data_path()}: espeak-ng cannot read its data; reinstall espeakng-loader"
            raise ValueError(f"{problem}, under a path of less than 150 letters")
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
    """Writes the utterance, its loudness and the silence at both ends made even."""
    samples, own_rate = synthesise(utterance)
    wave = soxr.resample(samples.astype(np.float32), own_rate, SAMPLE_RATE)
    wave *= PEAK / np.abs(wave).max()
    soundfile.write(path, _with_even_edges(wave), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _with_even_edges(wave: Samples) -> Samples:
    """Returns the wave with EDGE of quiet at both ends: espeak leaves from none to 53 ms."""
    edge = int(EDGE * SAMPLE_RATE)
    padded = np.pad(wave, edge)
    loud = np.flatnonzero(np.abs(padded) > 0.02 * PEAK)
    return padded[loud[0] - edge : loud[-1] + 1 + edge]


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
        if sys.platform == "win32":
            _ctypes.FreeLibrary(library._handle)
        else:
            _ctypes.dlclose(library._handle)
