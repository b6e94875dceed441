"""Square views of a picture: the whole of it, and tiles that show it larger."""

from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from omnikit.media import MediaError, load_image
from omnikit.resizing import resize

if TYPE_CHECKING:
    from omnikit.component import Medium

WORTH = 1.1
"""How much larger a tiling must show the picture than any with fewer tiles."""


def tilings(width: int, height: int, size: int, max_tiles: int) -> dict[int, tuple[int, int]]:
    """Number of views -> (rows, columns), most views first; the last is {1: (1, 1)}, the whole picture alone.

    A tiling of r x c tiles shows the picture at a scale of min(c size / width, r size / height), and never usefully
    above 1. Of each number of tiles the tiling with the largest scale is taken, if its scale is `WORTH` times that of
    every smaller number of tiles: LLaVA-NeXT's choice (the largest effective resolution, then the fewest tiles) without
    the tiles that would show next to nothing more.
    """

    def scale(rows: int, columns: int) -> float:
        return min(columns * size / width, rows * size / height, 1.0)

    found: dict[int, tuple[int, int]] = {}
    seen = 0.0
    for tiles in range(1, max_tiles + 1):
        # of two equal scales the one with fewer rows, always
        best = max(((r, tiles // r) for r in range(1, tiles + 1) if tiles % r == 0), key=lambda tiling: scale(*tiling))
        if scale(*best) > WORTH * seen:
            seen = scale(*best)
            found[1 if tiles == 1 else 1 + tiles] = best
    return dict(reversed(found.items()))


def views(medium: "Medium", size: int, max_tiles: int, num_views: int) -> np.ndarray:
    """Uint8 (num_views, size, size, 3): the whole picture squeezed to a square, then the tiles row by row."""
    image = load_image(medium)
    height, width = image.shape[:2]
    found = tilings(width, height, size, max_tiles)
    if num_views not in found:
        possible = " or ".join(map(str, found))
        raise MediaError(f"{medium}: {width} x {height} pixels make {possible} views, not {num_views}")
    whole = resize(image, size, size)[None]
    if num_views == 1:
        return whole
    rows, columns = found[num_views]
    enlarged = resize(image, columns * size, rows * size)
    tiles = rearrange(enlarged, "(rows y) (columns x) rgb -> (rows columns) y x rgb", rows=rows, columns=columns)
    return np.concatenate([whole, tiles])
