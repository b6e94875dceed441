"""Pictures scaled by torch, as torchvision does it, and by that transformers' image processors.

Pillow takes several times as long. This is a module of its own, imported by plugins' readers alone: what reads,
checks and lists recipes, `omnikit.media` included, imports no torch.
"""

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional as F

ROOM = 2**26
"""Pixels that a picture may have between the two passes: 200 MB."""


def resize(image: UInt8[np.ndarray, "h w 3"], width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture at this size in pixels, bicubic with antialiasing; one that has it already is not copied.

    Rows are scaled first, then columns, and after each colours are rounded and cut to 0..255. Pillow gives the same but
    for steps of rounding (at most 2 of 255) where it goes in that order, which it does unless a picture becomes wider
    and lower. No memory for it is a MemoryError.
    """
    if image.shape[:2] == (height, width):
        return image
    # A batch of one with colours last in memory is scaled without a copy. By DLPack, for the arrays of Pillow's
    # pictures are read-only, at which `from_numpy` warns.
    pixels = torch.from_dlpack(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    h, w = image.shape[:2]
    try:
        if h * width > ROOM:  # a strip that becomes wide: of 1 x 50,000,000 pixels the scaled rows would have 57 GB
            pixels = F.interpolate(pixels, (height, w), mode="bicubic", antialias=True)
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    except RuntimeError as error:
        if "allocate memory" in str(error):  # torch has no class for it
            raise MemoryError(str(error)) from error
        raise
    return pixels[0].permute(1, 2, 0).numpy()
