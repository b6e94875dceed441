"""Films for the conformance kit: those of every reader of films, and the oddest that this one takes."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from omnikit.component import Medium, Pixels
from omnikit.testing import films, pictures


def specimens(folder: Path, input: Pixels) -> list[Medium]:
    """Frames that are cut in two, lying and standing, one of them turned; uneven times; and `omnikit.testing`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    long, short = 2 * input.size + 32, input.size + 16
    lying = _film(folder / "lying.mp4", long, short, range(0, 3000, 500))
    turned = _film(folder / "turned.mp4", long, short, range(0, 1500, 500), rotation=90)
    uneven = _film(folder / "uneven.mkv", 48, 32, [300, 305, 1100, 1101, 3400, 3900])
    return [lying, turned, uneven, pictures(folder)[1], *films(folder)]


def _film(path: Path, width: int, height: int, milliseconds: "range | list[int]", rotation: int = 0) -> Medium:
    """A slope of grey that grows brighter with every frame."""
    width, height = width // 2 * 2, height // 2 * 2  # which codecs want
    slope = np.broadcast_to(np.linspace(0, 99, width, dtype=np.uint8)[:, None], (height, width, 3))
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("mpeg4", rate=25, options={"flags": "+bitexact"})
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        track.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            track.set_display_rotation(rotation)
        for index, at in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(slope + np.uint8(20 * index), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return Medium(str(path))
