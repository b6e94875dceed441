"""Sound to log-mel frames by openai-whisper's own functions.

Importing them costs 0.1 s and 60 MB beyond torch, so this file is imported when the first sound is read.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, log_mel_spectrogram

from omnikit.media import load_audio

if TYPE_CHECKING:
    from omnikit.component import Grid, Medium, Mel


SILENCE = -1.5
"""Of silence, in every band: log10 of openai-whisper's floor of 1e-10, then (x + 4) / 4."""


def read(medium: "Medium", input: "Mel", grid: "Grid") -> Float[np.ndarray, "bins frames"]:
    """The log-mel of a medium that makes this grid. What cannot be read, or makes another grid, is a ValueError."""
    sound = load_audio(medium, input.rate)
    features = input.features(len(sound) // input.hop)
    if features != grid[0]:
        raise ValueError(f"{medium}: makes {features} features, not the {grid[0]} asked for; has the file changed?")
    return log_mel(sound, input)


def log_mel(sound: Float[np.ndarray, " samples"], input: "Mel") -> Float[np.ndarray, "bins frames"]:
    """Log-mel of the whole hops of a sound; each window is made, and scaled to its loudest band, by itself."""
    if (input.rate, input.n_fft, input.hop) != (SAMPLE_RATE, N_FFT, HOP_LENGTH):
        raise ValueError(
            f"reader waveform: the encoder wants rate {input.rate}, n_fft {input.n_fft}, hop {input.hop}; "
            f"openai-whisper makes {SAMPLE_RATE}, {N_FFT}, {HOP_LENGTH} only"
        )
    window = input.window_frames * input.hop
    starts = range(0, len(sound) // input.hop * input.hop, window)  # a rest shorter than a hop makes no frame
    return np.concatenate([_window(sound[start : start + window], input) for start in starts], axis=1)


@torch.no_grad()
def _window(sound: Float[np.ndarray, " samples"], input: "Mel") -> Float[np.ndarray, "bins frames"]:
    if not input.padded:
        # A last window can be shorter than the transform's mirrored edge: silence makes up what is missing.
        silence = max(0, input.n_fft // 2 + 1 - len(sound))
        return log_mel_spectrogram(F.pad(torch.from_numpy(sound), (0, silence)), input.bins).numpy()
    # Of the silence that fills the window only as much is transformed as frames of sound reach into; the rest is one
    # number in every band: the floor, or 2 (which is 8 in log10) below the loudest.
    missing = input.window_frames * input.hop - len(sound)
    mel = log_mel_spectrogram(F.pad(torch.from_numpy(sound), (0, min(missing, input.n_fft))), input.bins)
    floor = max(SILENCE, float(mel.max()) - 2.0)
    return F.pad(mel, (0, input.window_frames - mel.shape[1]), value=floor).numpy()
