"""Whisper (arXiv 2212.04356): the reader `waveform`, sound to log-mel frames, and the encoder `whisper`."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from omnikit.component import (
    Component,
    EncoderConfig,
    Grid,
    Item,
    Medium,
    Mel,
    ReaderConfig,
    hookimpl,
)

if TYPE_CHECKING:
    import torch

    from omnikit_whisper.module import WhisperEncoder

SILENCE = -1.5
"""Log-mel of silence in every band: log10 of the floor 1e-10, then (x + 4) / 4."""


class WaveformConfig(ReaderConfig):
    """Sound, or the soundtrack of a video, to log-mel frames, exactly as openai-whisper makes them."""

    type: ClassVar[str] = "waveform"
    makes = Mel

    def sizes(self, input: Mel) -> dict[str, Grid]:
        """The grid of one full window."""
        return {f"{input.window:g} s": (input.features(input.window_frames), 1, 1)}

    def grids(self, medium: Medium, input: Mel) -> list[Grid]:
        """The one grid of this sound, (features, 1, 1). Less than half a transform of sound is a ValueError."""
        from omnikit.media import audio_length, expected_samples

        length, rate = audio_length(medium)
        samples = expected_samples(length, rate, input.rate)
        least = input.n_fft // 2 + 1  # the transform mirrors n_fft / 2 samples at either end
        if samples < least:
            raise ValueError(
                f"{medium}: {1000 * length / rate:.1f} ms of sound are too short; "
                f"at least {1000 * least / input.rate:.1f} ms are needed"
            )
        return [(input.features(samples // input.hop), 1, 1)]

    def read(self, medium: Medium, input: Mel, grid: Grid) -> Item:
        """Log-mel, float32 (bins, frames); with `input.padded` the frames fill whole windows."""
        from omnikit_whisper.reader import read

        return Item(read(medium, input, grid), grid)

    def specimens(self, folder: Path, input: Mel) -> list[Medium]:
        """Sounds of odd lengths, rates and channels; one is longer than a window."""
        from omnikit_whisper.specimens import specimens

        return specimens(folder, input)


class WhisperConfig(EncoderConfig):
    """Whisper's encoder: 50 features a second, each window of `window` seconds by itself.

    `padding` says what a window that the sound does not fill is filled up with. `full`: silence, as Whisper was
    trained, at the cost of a whole window. `ragged`: nothing; only real frames are computed, which is many times
    cheaper for short sounds, and unlike what the weights were trained on, the more so the shorter the sound: on speech,
    features of tiny.en have a mean cosine of 0.85 with those of full windows at 1 s, 0.95 at 3 s, 0.99 from 10 s on
    (benchmarks/whisper_padding.py). Features kept are those of real sound, equally many, either way.

    `weights` is a transformers folder or hub id, the path of an openai-whisper checkpoint (a .pt file), or a name of
    openai-whisper's own table, as openai:tiny.en.
    """

    type: ClassVar[str] = "whisper"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
    )

    preset: str | None = None
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt
    mel_bins: Literal[80, 128]
    window: float = Field(30.0, ge=0.1)
    padding: Literal["full", "ragged"] = "full"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "WhisperConfig":
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads, which is {self.heads}")
        return self

    @property
    def input(self) -> Mel:
        """16 kHz sound in `mel_bins` bands."""
        return Mel(bins=self.mel_bins, window=self.window, padded=self.padding == "full")

    def example(self) -> Item:
        """What the reader makes of half a second of silence."""
        import numpy as np

        input = self.input
        frames = min(50, input.window_frames)
        shape = input.bins, input.window_frames if input.padded else frames
        return Item(np.full(shape, SILENCE, np.float32), (input.features(frames), 1, 1))

    def tiny(self) -> "WhisperConfig":
        """One layer of width 32 at most, randomly initialised; bins, window and padding stay."""
        sizes = {"width": min(32, self.width), "layers": 1, "heads": 2, "mlp_width": min(64, self.mlp_width)}
        return self.model_copy(update={**sizes, "preset": None, "weights": None})

    def cost(self, grid: Grid) -> float:
        """FLOPs of one item's forward pass: each window is computed whole, except where one ragged window is all."""
        window = self.input.features(self.input.window_frames)
        windows = -(-grid[0] // window)
        ragged = self.padding == "ragged"
        length = grid[0] if ragged and windows == 1 else window
        embedded = grid[0] if ragged else windows * window
        convolutions = 3 * (2 * self.mel_bins * self.width + self.width**2)  # the first makes two frames a feature
        linear = 4 * self.width**2 + 2 * self.width * self.mlp_width
        attention = 2 * length * self.width
        return 2.0 * (embedded * convolutions + windows * length * self.layers * (linear + attention))

    def build(self) -> "WhisperEncoder":
        """The module with random weights, drawn as openai-whisper draws them (torch's own defaults)."""
        from omnikit_whisper.module import WhisperEncoder

        return WhisperEncoder(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            mlp_width=self.mlp_width,
            mel_bins=self.mel_bins,
            window_frames=self.input.window_frames,
        )

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """The encoder's tensors; weights of other sizes, or of windows shorter than `window`, are a ValueError."""
        from omnikit_whisper.weights import encoder_tensors

        assert self.weights is not None
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads", "mlp_width", "mel_bins")}
        places = self.input.features(self.input.window_frames)
        for name, tensor in encoder_tensors(self.weights, sizes):
            if name == "positions":
                if len(tensor) < places:
                    raise ValueError(
                        f"weights: {self.weights} has positions for {len(tensor)} features, and window {self.window:g} "
                        f"needs {places}; take a window of {len(tensor) / 50:g}"
                    )
                tensor = tensor[:places]
            yield name, tensor


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """What this package adds to omnikit."""
    return [WaveformConfig, WhisperConfig]
