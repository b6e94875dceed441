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
MARGIN = 13.0
"""Pixels between the edge and the first and last place of a moving figure's centre."""


def draw_frames(clip: Clip, look: str) -> Iterator[Image.Image]:
    """Yields the frames in RGB; `look` seeds what no question asks about.

    Every event shows in four evenly spaced frames: a figure crosses the whole picture at constant speed; one figure
    replaces another exactly at half time.
    """
    random = Random(look)
    empty = blank(random)
    tints = {figure: tint(figure, random) for figure in clip.figures}
    radius = random.uniform(9.5, 12.0)
    aside = random.uniform(-10.0, 10.0)
    rest = (SIDE / 2 + random.uniform(-8.0, 8.0), SIDE / 2 + random.uniform(-8.0, 8.0))
    for index in range(FRAMES):
        if isinstance(clip, Motion):
            figure, centre = clip.figure, _on_the_way(clip.way, index / (FRAMES - 1), aside)
        else:
            figure, centre = clip.figures[2 * index // FRAMES], rest
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
        stream.options = {"crf": "14", "preset": "veryfast"}
        for image in draw_frames(clip, look):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


def _on_the_way(way: str, share: float, aside: float) -> tuple[float, float]:
    """Returns the centre of a figure that has gone this share of its way."""
    forward = way in ("right", "down")
    along = MARGIN + (SIDE - 2 * MARGIN) * (share if forward else 1 - share)
    across = SIDE / 2 + aside
    return (along, across) if way in ("left", "right") else (across, along)
