"""Items as pictures: what a reader gave, turned back into something that a person can see.

Pictures are made from the item's own values, never from the file: a fault of the reader must be visible. Sound to
listen to is the exception: no spectrum can be played, so it is read again, the same seconds of the same file.
"""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omnikit.component import Grid, Item, Medium, Mel, Pixels, ReaderConfig
from omnikit.media import load_audio
from omnikit.sample import Branch

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = 256, 96
"""Pixels of the longest side of a view, as long as there is room for pictures and when there is none."""
MANY = 16
"""Views from which on each is shown small."""
LEVELS = 16
CELLS = 3600
"""Pixels of a spectrum's picture: enough to see words."""
SECONDS = 30.0
LARGEST = 200_000
"""Seconds and bytes of the longest sound that can be listened to."""
BETWEEN = 0.01
"""What a picture may exceed 0 to 1 by: rounding, and no more."""

_RAMP = ((8, 8, 28), (52, 16, 100), (130, 38, 129), (212, 66, 103), (252, 150, 98), (252, 247, 184))


class Room:
    """The bytes that a page has left for pictures and for sounds."""

    def __init__(self, pictures: int = 3_000_000, sounds: int = 150_000) -> None:
        self.pictures, self.sounds = pictures, sounds
        self.played = self.silent = 0
        """Sounds that can be listened to, and those that cannot."""


class SoundAlone(ReaderConfig):
    """Reads the sound that a spectrum is made of, where and within the limits that the spectrum was read."""

    type: ClassVar[str] = "sound_alone"
    makes = Mel

    def read(self, medium: Medium, input: Mel, grid: Grid) -> Item:
        """The samples as float32 (samples,)."""
        return Item(load_audio(medium, input.rate), grid)


def figure(item: Item, medium: Medium, branch: Branch, room: Room) -> tuple[str, list[str], list[str]]:
    """(HTML of the item, words for its caption, what is wrong with it). Never fails, whatever the item holds."""
    value = np.asarray(item.value)
    words = [_statement(value)]
    if not value.size or value.dtype.kind not in "biuf":
        return "", words, ["holds no numbers"]
    faults = []
    broken = int((~np.isfinite(value)).sum())
    if broken:
        faults.append(f"{broken:,} of {value.size:,} values are no finite numbers")
    value = np.nan_to_num(value.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if isinstance(branch.input, Pixels):
        inner, more = _views(value, item.grid, medium, branch, branch.input, room)
    elif isinstance(branch.input, Mel):
        inner, more = _spectrum(value, medium, branch, branch.input, item.grid, room)
    else:
        inner, more = "", []
    return inner, words, faults + more


def _statement(value: np.ndarray) -> str:
    shape = " x ".join(map(str, value.shape)) or "a number"
    if not value.size or value.dtype.kind not in "biuf":
        return f"{shape} of {value.dtype}"
    finite = value[np.isfinite(value)]
    between = f", values {_plain(finite.min())} to {_plain(finite.max())}" if finite.size else ""
    return f"{shape} {value.dtype}{between}"


def _plain(number: Any) -> str:  # noqa: ANN401  (a number of any numpy type)
    return f"{float(number):.3g}".replace("-", "\N{MINUS SIGN}")


# ------------------------------------------------------------------------------------------------------------ pictures


def _views(
    value: np.ndarray, grid: Grid, medium: Medium, branch: Branch, input: Pixels, room: Room
) -> tuple[str, list[str]]:
    from PIL import Image

    wanted = grid[0], 3, input.size, input.size
    if value.shape != wanted:
        return "", [f"should be {' x '.join(map(str, wanted))}, as the encoder eats it"]
    shades = value * np.array(input.std, np.float32)[:, None, None] + np.array(input.mean, np.float32)[:, None, None]
    faults = []
    beyond = float(((shades < -BETWEEN) | (shades > 1 + BETWEEN)).mean())
    if beyond:
        ends = f"{_plain(shades.min())} to {_plain(shades.max())}"
        faults.append(
            f"{beyond:.1%} of the pixels lie outside 0 to 1 ({ends}): the reader does not normalise by the encoder's "
            "mean and std"
        )
    pixels = (shades.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    shown = []
    for name, one in zip(names_of(medium, branch, len(pixels)), pixels, strict=True):
        most = SIZES[len(pixels) > MANY or room.pictures <= 0]
        factor = ceil(input.size / most)
        picture = Image.fromarray(one)
        data = _png(picture.reduce(factor) if factor > 1 else picture)
        room.pictures -= len(data)
        side = "small" if len(pixels) > MANY else "sharp" if input.size <= 96 else "large"
        label = f'<span class="name">{escape(name)}</span>'
        shown.append(f'<span class="view {side}"><img src="{data}" alt="{escape(name)}">{label}</span>')
    return f'<div class="views">{"".join(shown)}</div>', faults


def names_of(medium: Medium, branch: Branch, num_views: int) -> list[str]:
    """What each view is. A reader that lists the sizes of a `frame` or a `tile` is taken to make such."""
    reader, input = branch.reader, branch.input
    sizes = reader.sizes(input)
    if "frame" in sizes:
        try:
            each = branch.reading.grids(reader, medium, input)[-1][0]  # the smallest: one frame
        except ValueError:
            each = 1
        parts = ["", *(f", part {part}" for part in range(1, each))]
        return [f"frame {view // each + 1}{parts[view % each]}" for view in range(num_views)]
    if "tile" in sizes or num_views == 1:
        return ["whole picture", *(f"tile {tile}" for tile in range(1, num_views))]
    return [f"view {view}" for view in range(1, num_views + 1)]


def _png(picture: "Image") -> str:
    file = BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# --------------------------------------------------------------------------------------------------------------- sound


def _spectrum(
    value: np.ndarray, medium: Medium, branch: Branch, input: Mel, grid: Grid, room: Room
) -> tuple[str, list[str]]:
    from PIL import Image

    if value.ndim != 2 or value.shape[0] != input.bins or not value.shape[1]:
        return "", [f"should be {input.bins} x frames, as the encoder eats it"]
    bins, frames = value.shape
    factor = max(1, round((bins * frames / CELLS) ** 0.5))
    down = min(factor, max(1, bins // 20))
    across = ceil(factor * factor / down)
    height, width = bins // down, ceil(frames / across)
    padded = np.pad(value[: height * down], ((0, 0), (0, width * across - frames)), mode="edge")
    pooled = padded.reshape(height, down, width, across).mean((1, 3))[::-1]  # low tones at the bottom
    low, high = float(value.min()), float(value.max())
    scaled = (pooled - low) / (high - low) if high > low else np.zeros_like(pooled)
    picture = Image.fromarray((scaled * (LEVELS - 1)).round().astype(np.uint8), "P")
    picture.putpalette(_palette())
    data = _png(picture)
    room.pictures -= len(data)
    whole, real = (count * input.hop / input.rate for count in (frames, min(frames, grid[0] * input.stride)))
    of = f", of which {real:.1f} s are sound" if whole - real > 0.1 else ""
    label = f'<span class="name">log-mel, low tones below; {whole:.1f} s{of}</span>'
    player = _player(medium, branch, input, grid, real, room)
    return f'<div class="sound"><img class="mel" src="{data}" alt="log-mel spectrum">{label}{player}</div>', []


def _palette() -> Sequence[int]:
    at = np.linspace(0, len(_RAMP) - 1, LEVELS)
    columns = [np.interp(at, range(len(_RAMP)), [colour[channel] for colour in _RAMP]) for channel in range(3)]
    return [round(float(value)) for colour in zip(*columns, strict=True) for value in colour]


def _player(medium: Medium, branch: Branch, input: Mel, grid: Grid, seconds: float, room: Room) -> str:
    """The sound itself while there is room, without loss."""
    data = _flac(medium, branch, input, grid) if seconds <= SECONDS and room.sounds > 0 else ""
    if not 0 < len(data) <= min(LARGEST, room.sounds):
        room.silent += 1
        return ""
    room.played += 1
    room.sounds -= len(data)
    return f'<audio controls preload="metadata" src="data:audio/flac;base64,{data}"></audio>'


def _flac(medium: Medium, branch: Branch, input: Mel, grid: Grid) -> str:
    import soundfile

    try:
        sound = branch.reading.read(SoundAlone(), medium, input, grid).value
    except ValueError:  # no sound by the core's own decoders: a reader may read what they cannot
        return ""
    file = BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1), input.rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()
