"""Clips in pixels: 2 s of 64x64 at 8 frames a second, H.264 in MP4."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import av
from PIL import Image

from .pictures import FINE, SIDE, blank, paint_figure, tint
from .scenes import Clip, Motion

RATE = 8
FRAMES = 16
QUARTERS = (SIDE / 4, 3 * SIDE / 4)
"""Where figures are: at the centres of a picture's quarters, or moving between two of them."""


def draw_frames(clip: Clip, look: str) -> Iterator[Image.Image]:
    """Yields the frames in RGB; `look` seeds what no question asks about.

    Every event shows in four evenly spaced frames: a figure crosses the whole picture at constant speed; one figure
    replaces another exactly at half time.
    """
    random = Random(look)
    empty = blank(random)
    tints = {figure: tint(figure, random) for figure in clip.figures}
    radius = random.uniform(9.5, 12.5)
    place = (random.choice(QUARTERS) + random.uniform(-2.0, 2.0), random.choice(QUARTERS) + random.uniform(-2.0, 2.0))
    for index in range(FRAMES):
        if isinstance(clip, Motion):
            figure, centre = clip.figure, _on_the_way(clip.way, index / (FRAMES - 1), place)
        else:
            figure, centre = clip.figures[2 * index // FRAMES], place
        frame = empty.copy()
        paint_figure(frame, figure, centre, radius, tints[figure])
        yield frame.reduce(FINE)


def write_clip(clip: Clip, look: str, path: Path) -> None:
    """Encodes the clip; one thread and no stamps, so that equal clips are equal files."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        # Looking ahead, x264 does not write the same bytes every time, not even with one thread.
        stream.options = {"crf": "14", "preset": "veryfast", "tune": "zerolatency"}
        for image in draw_frames(clip, look):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


def _on_the_way(way: str, share: float, place: tuple[float, float]) -> tuple[float, float]:
    """Returns the centre of a figure that has gone this share of its way through `place`."""
    forward = way in ("right", "down")
    first, last = QUARTERS
    along = first + (last - first) * (share if forward else 1 - share)
    return (along, place[1]) if way in ("left", "right") else (place[0], along)
