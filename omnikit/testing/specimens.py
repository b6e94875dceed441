"""Good media of odd kinds, for the specimens of readers. Deterministic; each set is written in well under a second.

No torch here: a reader's `specimens` is asked by processes that have none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from omnikit.component import Medium

if TYPE_CHECKING:
    import numpy as np


def pictures(folder: Path) -> list[Medium]:
    """Square, wide, tall, grey, palette, transparent, 1 x 1, turned by EXIF, larger than most views, 16 bits, CMYK."""
    from PIL import Image

    def drawn(width: int, height: int) -> "Image.Image":
        return Image.fromarray(_pattern(width, height))

    clear = drawn(50, 40)
    clear.putalpha(Image.linear_gradient("L").resize((50, 40)))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    deep = Image.fromarray(_pattern(24, 24)[:, :, 0].astype("uint16") * 257)
    made: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("square.png", drawn(64, 64), {}),
        ("wide.jpg", drawn(301, 40), {"quality": 90}),
        ("tall.png", drawn(33, 210), {}),
        ("one_pixel.png", drawn(1, 1), {}),
        ("grey.png", drawn(48, 32).convert("L"), {}),
        ("palette.gif", drawn(40, 40).convert("P", palette=Image.Palette.ADAPTIVE), {}),
        ("clear.png", clear, {}),
        ("turned.jpg", drawn(90, 30), {"exif": turned, "quality": 90}),
        ("large.webp", drawn(1000, 700), {"quality": 50, "method": 0}),
        ("deep.png", deep, {}),
        ("print.jpg", drawn(60, 45).convert("CMYK"), {}),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, options in made:
        image.save(folder / name, **options)
    return [Medium(str(folder / name)) for name, _, _ in made]


def films(folder: Path) -> list[Medium]:
    """Short, one frame, portrait, wide with a soundtrack, a slow and longer one, and a part of that."""
    folder.mkdir(parents=True, exist_ok=True)
    short = _film(folder / "short.mp4", 64, 48, frames=12, rate=6)
    one = _film(folder / "one_frame.mp4", 48, 48, frames=1, rate=1)
    portrait = _film(folder / "portrait.mkv", 36, 96, frames=9, rate=3)
    loud = _film(folder / "loud.mp4", 128, 48, frames=10, rate=5, sound=True)
    long = _film(folder / "long.avi", 32, 32, frames=24, rate=2)
    return [short, one, portrait, loud, long, Medium(long.source, 2.5, 7.0)]


def sounds(folder: Path) -> list[Medium]:
    """8, 16, 44.1 and 48 kHz, one and two channels, 16 to 32 bits, short and long, and a part of the longest."""
    import soundfile

    made = [
        ("telephone.wav", 8_000, 1, 1.3, "PCM_16"),
        ("speech.flac", 16_000, 1, 2.171, "PCM_16"),
        ("stereo.wav", 44_100, 2, 0.87, "PCM_24"),
        ("deep.wav", 48_000, 2, 0.5, "PCM_32"),
        ("short.wav", 16_000, 1, 0.06, "PCM_16"),
        ("long.flac", 8_000, 1, 31.4, "PCM_16"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rate, channels, seconds, subtype in made:
        soundfile.write(folder / name, _tones(rate, channels, seconds), rate, subtype=subtype)
    media = [Medium(str(folder / name)) for name, *_ in made]
    return [*media, Medium(media[-1].source, 3.25, 4.75)]


def _pattern(width: int, height: int, shift: int = 0) -> "np.ndarray":
    """Uint8 (height, width, 3): slopes of colour and a checkerboard, so that no two places look alike."""
    import numpy as np

    y, x = np.mgrid[:height, :width]
    board = 60 * (((x + shift) // 8 + y // 8) % 2)
    slopes = [195 * x // max(1, width - 1), 195 * y // max(1, height - 1), (7 * shift + 3 * x + 5 * y) % 196]
    return np.stack([(slope + board).astype(np.uint8) for slope in slopes], axis=-1)


def _tones(rate: int, channels: int, seconds: float) -> "np.ndarray":
    """Float32 (samples, channels): two tones that rise, another pair in each channel, in a little noise."""
    import numpy as np

    time = np.arange(round(seconds * rate))[:, None] / rate
    pitch = 220.0 * (1 + np.arange(channels))
    wave = 0.3 * np.sin(2 * np.pi * (pitch + 40 * time) * time) + 0.1 * np.sin(2 * np.pi * 3.1 * pitch * time)
    noise = np.random.default_rng(rate).standard_normal(wave.shape)
    return (wave + 0.01 * noise).astype(np.float32)


def _film(path: Path, width: int, height: int, *, frames: int, rate: int, sound: bool = False) -> Medium:
    import av

    # bitexact: no stamps of time or version, so that the file is the same every time
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("mpeg4", rate=rate, options={"flags": "+bitexact"})
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        voice = container.add_stream("aac", rate=16_000, options={"flags": "+bitexact"}) if sound else None
        if voice is not None:
            voice.layout = "mono"
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(_pattern(width, height, shift=2 * number), format="rgb24")
            container.mux(track.encode(picture))
        container.mux(track.encode(None))
        if voice is not None:
            samples = _tones(16_000, 1, frames / rate).T.copy()
            piece = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            piece.sample_rate = 16_000
            container.mux(voice.encode(piece))
            container.mux(voice.encode(None))
    return Medium(str(path))
