"""What encoders eat, as data: pictures as pixels, sound as a log-mel spectrogram. No torch."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np


class Input(BaseModel):
    """What an encoder eats and how that maps to features. A plugin for a new modality defines its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pixels(Input):
    """Square RGB views of `size` pixels, normalised by mean and std, cut into `patch` x `patch` patches.

    Item values are float32 arrays (views, 3, size, size); grids are (views, side, side).
    """

    size: int
    patch: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def side(self) -> int:
        """Patches along one side of a view; a rest smaller than a patch is not seen (384 / 14 gives 27)."""
        return self.size // self.patch


class Mel(Input):
    """Log-mel frames of mono sound at `rate` Hz: `bins` bands every `hop` samples, in windows of at most `window` s.

    Item values are float32 arrays (bins, frames); grids are (features, 1, 1) and count real sound only. The encoder
    makes one feature of `stride` frames: a window of L frames gives floor((L - 1) / stride) + 1. `padded` says that the
    waveform is filled with silence to whole windows before the mel, as Whisper was trained.
    """

    rate: int = 16000
    bins: int = 80
    n_fft: int = 400
    hop: int = 160
    stride: int = 2
    window: float = 30.0
    padded: bool = True

    @property
    def window_frames(self) -> int:
        """Frames of a full window."""
        return int(self.window * self.rate) // self.hop

    def features(self, frames: int) -> int:
        """Features that the encoder makes of `frames` frames, each window counted by itself."""
        full, rest = divmod(frames, self.window_frames)
        per_window = (self.window_frames - 1) // self.stride + 1
        return full * per_window + ((rest - 1) // self.stride + 1 if rest else 0)


def to_pixels(views: "np.ndarray", input: Pixels) -> "np.ndarray":
    """Float32 (views, 3, size, size) from uint8 (views, size, size, 3), normalised as `input` says."""
    import numpy as np

    mean, std = (np.array(colours, np.float32)[:, None, None] for colours in (input.mean, input.std))
    pixels = np.empty((len(views), 3, input.size, input.size), np.float32)
    # Planes first, then in place, and view by view: with colours as the last axis numpy takes five times as long, and
    # one view stays in the processor's cache.
    for planes, view in zip(pixels, views, strict=True):
        planes[...] = view.transpose(2, 0, 1)
        planes /= np.float32(255)
        planes -= mean
        planes /= std
    return pixels
