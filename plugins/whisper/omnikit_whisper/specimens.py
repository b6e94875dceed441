"""Sounds for the conformance kit: those of every reader of sound, and the oddest that this one takes."""

from pathlib import Path

import numpy as np
import soundfile

from omnikit.component import Medium, Mel
from omnikit.testing import sounds


def specimens(folder: Path, input: Mel) -> list[Medium]:
    """The shortest that is read, six channels at 192 kHz, an odd number of frames, 8 bits; and `omnikit.testing`'s."""
    made = [
        ("shortest.wav", input.rate, 1, input.n_fft // 2 + 1, "PCM_16"),
        ("surround.wav", 192_000, 6, 48_000, "PCM_32"),
        ("odd.wav", 44_100, 2, 25_357, "PCM_24"),  # 57 frames of 10 ms
        ("bytes.wav", 8_000, 1, 2_500, "PCM_U8"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rate, channels, samples, subtype in made:
        noise = np.random.default_rng(samples).uniform(-0.5, 0.5, (samples, channels))
        soundfile.write(folder / name, noise, rate, subtype=subtype)
    return [*(Medium(str(folder / name)) for name, *_ in made), *sounds(folder)]
