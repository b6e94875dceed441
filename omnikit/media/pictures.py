"""Pictures by Pillow, within limits."""

import struct
from typing import TYPE_CHECKING

from omnikit.component import Medium
from omnikit.media.opening import MediaError, limits, refusing, source_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", *(b"P%d" % n for n in range(1, 7)))
BRANDS = (b"avif", b"avis", b"mif1", b"heic", b"heix")
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
STRIP = 2**20
"""Pixels that are converted at a time."""


def is_image(medium: Medium) -> bool:
    """Whether the first bytes are a picture's. A GIF counts as a film, which it may be."""
    source = source_of(medium, limits().stream_bytes)
    if isinstance(source, str):
        with refusing(medium, (OSError,), "cannot be opened", "make it readable"), open(source, "rb") as file:
            head = file.read(12)
    else:
        head = source.read(12)
    in_riff = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return head.startswith(MAGIC) or in_riff or (head[4:8] == b"ftyp" and head[8:] in BRANDS)


def image_size(medium: Medium) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, from its header alone."""
    image, orientation = _open(medium)
    with image:
        width, height = image.size
    return (height, width) if orientation in SIDEWAYS else (width, height)


def load_image(medium: Medium) -> "np.ndarray":
    """The picture as uint8 (height, width, 3): upright, transparency over white, an animation's first frame.

    Sixteen bits are cut to eight. Pixels without a scale (32-bit integers above 65535, floats) are a MediaError.
    """
    import numpy as np

    image, orientation = _open(medium)
    with image, refusing(medium, _pillow_errors(), "is a broken picture", "replace the file"):
        image.load()
        if image.mode == "RGB" and orientation == 1 and not image.has_transparency_data:
            return np.asarray(image)
        width, height = image.size
        sideways = orientation in SIDEWAYS
        upright = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
        stored = _as_stored(upright, orientation)
        # In strips: of a large picture each further whole copy would be a few hundred megabytes.
        rows = max(1, STRIP // width)
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            stored[top:bottom] = np.asarray(_to_rgb(medium, image.crop((0, top, width, bottom))))
        return upright


def _open(medium: Medium) -> "tuple[Image, int]":
    """The picture, not decoded yet, and its EXIF orientation (1 to 8)."""
    from PIL import Image

    source = source_of(medium, limits().image_bytes)
    remedy = f"give one of {', '.join(FORMATS)}"
    with refusing(medium, _pillow_errors(), "is no picture that can be read", remedy):
        image = Image.open(source, formats=FORMATS)
        width, height = image.size
        # Pillow turns a TIFF by itself, and would decode a whole PNG to look for EXIF that stands after the pixels.
        ignored = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
        orientation = 1 if ignored else image.getexif().get(ORIENTATION, 1)
    most = limits().pixels
    if width * height > most:
        image.close()
        raise MediaError(f"{medium}: has {width} x {height} pixels, over the limit of {most:,}; scale it down")
    return image, orientation


def _as_stored(upright: "np.ndarray", orientation: int) -> "np.ndarray":
    """A view of upright pixels (height, width, 3) in the order in which a file of this EXIF orientation has them."""
    import numpy as np

    match orientation:
        case 2:
            return upright[:, ::-1]
        case 3:
            return upright[::-1, ::-1]
        case 4:
            return upright[::-1]
        case 5:
            return upright.swapaxes(0, 1)
        case 6:
            return np.rot90(upright)
        case 7:
            return upright[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(upright, -1)
    return upright


def _to_rgb(medium: Medium, image: "Image") -> "Image":
    import numpy as np
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        deep = np.asarray(image)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise MediaError(f"{medium}: has {image.mode} pixels of unknown scale; save it with 8 or 16 bits a channel")
        # The one grey that a PNG may name as transparent lies on white, as every transparency does.
        shown = np.where(deep == image.info.get("transparency", -1), 255, deep >> 8)
        return Image.fromarray(shown.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _pillow_errors() -> tuple[type[BaseException], ...]:
    # Pillow has no base class of its own: these are what its parsers raise on broken files, found by flipping bytes.
    # A Warning is an exception where people turn warnings into errors.
    from PIL.Image import DecompressionBombError

    broken = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError)
    return (*broken, struct.error, MemoryError, Warning, DecompressionBombError)
