"""Video: the reader `frames` and the projector `video_conv` of Baichuan-Omni's video branch (arXiv 2410.08565)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from omnikit.component import (
    Component,
    Grid,
    Item,
    Medium,
    Pixels,
    ProjectorConfig,
    ReaderConfig,
    hookimpl,
    to_pixels,
)

if TYPE_CHECKING:
    from omnikit_video.module import VideoConv


class FramesConfig(ReaderConfig):
    """Frames of a film, `fps` of them a second, at most `max_frames`; a still picture is a film of one frame.

    Frame i is the one shown i / fps seconds after the start, for every i that lies before the end. Of more than
    `max_frames`, that many are taken at even distances. Seconds count from where the film begins, picture or sound:
    `waveform` gives the sound of the same seconds when a sample names the same part of the same film as its audio.

    A frame is squeezed to one square view; with `max_tiles` 2, a frame larger than a view and at least 1.5 times as
    long as wide makes three: the whole, and its two halves (182 to 546 tokens a frame).

    `decoder` pyav opens no file but the one it is given, and finds the right frame in every film. decord (where it can
    open the file; PyAV does the rest) is for comparison with models that were trained on its frames: they are the same,
    and no faster, except that it damages frames of H.264 films with open groups of pictures.
    """

    type: ClassVar[str] = "frames"
    makes = Pixels
    fps: float = Field(1.0, gt=0, le=240)
    max_frames: PositiveInt = 48
    max_tiles: Literal[1, 2] = 2
    decoder: Literal["pyav", "decord"] = "pyav"

    def sizes(self, input: Pixels) -> dict[str, Grid]:
        """The grids of a frame, and of the longest film of the widest frames."""
        side, views = input.side, 1 if self.max_tiles == 1 else 3
        largest = {"frame": (1, side, side), "wide frame": (views, side, side)}
        return {**largest, "longest video": (self.max_frames * views, side, side)}

    def grids(self, medium: Medium, input: Pixels) -> list[Grid]:
        """(views of all frames, side, side), first of all frames, then of a quarter less each time, down to one."""
        from omnikit_video.reader import survey

        clip = survey(medium, input.size, self.fps, self.max_tiles)
        frames = min(clip.frames, self.max_frames)
        counts = [frames]
        while counts[-1] > 1:
            counts.append(max(1, counts[-1] * 3 // 4))
        return [(count * clip.views, input.side, input.side) for count in counts]

    def read(self, medium: Medium, input: Pixels, grid: Grid) -> Item:
        """The views of all frames as float32 (views, 3, size, size): of each frame the whole first, then its halves."""
        from omnikit_video.reader import views

        pixels = views(medium, input.size, self.fps, self.max_tiles, num_views=grid[0], decoder=self.decoder)
        return Item(to_pixels(pixels, input), grid)

    def specimens(self, folder: Path, input: Pixels) -> list[Medium]:
        """Films of odd kinds, lengths and shapes, and a still picture."""
        from omnikit_video.specimens import specimens

        return specimens(folder, input)


class VideoConvConfig(ProjectorConfig):
    """A 2 x 2 convolution of stride 2, then pool_mlp's MLP and row ends (section 1.3).

    The convolution starts as the mean, so that after `init` from a `pool_mlp` both compute the same function; from one
    with `pool: conv` it takes the convolution as well.
    """

    type: ClassVar[str] = "video_conv"
    newline: bool = True

    def shrink(self, grid: Grid) -> Grid:
        """(t, h, w) becomes (t, h // 2, w // 2 + 1), without `newline` (t, h // 2, w // 2).

        A grid narrower or lower than 2 is a ValueError.
        """
        t, h, w = grid
        if h < 2 or w < 2:
            raise ValueError(f"video_conv: grid {grid} holds no 2 x 2 features; give larger views, or take mlp")
        return t, h // 2, w // 2 + self.newline

    def cost(self, grid: Grid, d_in: int, d_out: int) -> float:
        """FLOPs of one item's forward pass: the convolution and the MLP."""
        t, h, w = grid
        return 2.0 * t * (h // 2) * (w // 2) * (4 * d_in**2 + d_in * d_out + d_out**2)

    def build(self, d_in: int, d_out: int) -> "VideoConv":
        """The module from feature width `d_in` to backbone width `d_out`."""
        from omnikit_video.module import VideoConv

        return VideoConv(d_in, d_out, self.newline)


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """What this package adds to omnikit."""
    return [FramesConfig, VideoConvConfig]
