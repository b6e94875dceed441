"""The readers of pictures: which views of what."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from omnikit_siglip import AnyresConfig, SquareConfig
from omnikit_siglip.reader import tilings
from PIL import Image, ImageFile, ImageOps
from transformers import SiglipImageProcessor

from omnikit.component import Item, Medium, Pixels
from omnikit.media import image_size, load_image

PIXELS = Pixels(size=32, patch=8)
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
READERS = [SquareConfig(), AnyresConfig()]


def picture(width: int, height: int, format: str = "PNG") -> Medium:
    """Noise, so that no two places look alike."""
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return saved(Image.fromarray(noise), format)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> Medium:
    file = io.BytesIO()
    image.save(file, format, **options)
    return Medium(file.getvalue())


def view_of(medium: Medium) -> np.ndarray:
    """The only view of a picture of 32 x 32, as uint8 (32, 32, 3)."""
    item = AnyresConfig().read(medium, PIXELS, (1, 4, 4))
    assert item.value.shape == (1, 3, 32, 32) and item.value.dtype == np.float32
    return np.rint((item.value[0].transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(50, 20), (20, 50), (10, 90), (20, 7), (1, 1)])
def test_square_equals_transformers_processor(size: tuple[int, int]) -> None:
    medium = picture(*size)
    (grid,) = SquareConfig().grids(medium, PIXELS)
    item = SquareConfig().read(medium, PIXELS, grid)
    assert grid == (1, 4, 4) and item.grid == grid and item.value.dtype == np.float32
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    expected = processor(Image.fromarray(load_image(medium)), return_tensors="np")["pixel_values"]
    # theirs scales and shifts by one product, which rounds otherwise
    np.testing.assert_allclose(item.value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "views"),
    [
        ((32, 32), [1]),
        ((20, 31), [1]),
        ((34, 33), [1]),  # barely larger: tiles would show next to nothing more
        ((64, 32), [3, 1]),
        ((32, 64), [3, 1]),
        ((64, 64), [5, 1]),
        ((96, 96), [10, 5, 1]),
        ((96, 64), [7, 5, 3, 1]),
        ((1000, 10), [10, 9, 8, 7, 6, 5, 4, 3, 1]),
    ],
)
def test_anyres_lists_the_tilings_that_show_more(size: tuple[int, int], views: list[int]) -> None:
    assert AnyresConfig(max_tiles=9).grids(picture(*size), PIXELS) == [(n, 4, 4) for n in views]


def test_max_tiles_is_a_limit() -> None:
    medium = picture(200, 150)
    for max_tiles in (1, 2, 4, 6, 12):
        reader = AnyresConfig(max_tiles=max_tiles)
        largest = reader.sizes(PIXELS)["largest image"]
        assert reader.grids(medium, PIXELS)[0] <= largest == ((1 + max_tiles if max_tiles > 1 else 1), 4, 4)
    assert AnyresConfig(max_tiles=12).grids(medium, PIXELS)[0] == (13, 4, 4)


def test_anyres_reads_every_grid_it_lists_and_tiles_are_the_picture_in_order() -> None:
    medium, reader = picture(96, 64), AnyresConfig(max_tiles=9)
    square = SquareConfig().read(medium, PIXELS, (1, 4, 4)).value
    pixels = (load_image(medium).astype(np.float32) / 255 - 0.5) / 0.5
    for grid in reader.grids(medium, PIXELS):
        item = reader.read(medium, PIXELS, grid)
        assert item.grid == grid and item.value.shape == (grid[0], 3, 32, 32)
        np.testing.assert_array_equal(item.value[:1], square)
    rows = [
        np.concatenate(list(row), axis=2)
        for row in reader.read(medium, PIXELS, (7, 4, 4)).value[1:].reshape(2, 3, 3, 32, 32)
    ]
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), pixels.transpose(2, 0, 1))  # 2 x 3 tiles fit exactly


def test_tilings_are_a_function_of_the_size_alone() -> None:
    assert tilings(96, 64, 32, 9) == {7: (2, 3), 5: (2, 2), 3: (1, 2), 1: (1, 1)}
    assert tilings(64, 96, 32, 9) == {7: (3, 2), 5: (2, 2), 3: (2, 1), 1: (1, 1)}


def test_a_grid_the_picture_does_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match="96 x 64 pixels make 7 or 5 or 3 or 1 views, not 4"):
        AnyresConfig().read(picture(96, 64), PIXELS, (4, 4, 4))


@pytest.mark.parametrize("reader", [SquareConfig(), AnyresConfig()])
def test_what_is_no_picture_is_a_value_error(reader: SquareConfig | AnyresConfig) -> None:
    with pytest.raises(ValueError, match=r"<5 bytes>: is no picture that can be read \(.*\); give one of JPEG"):
        reader.grids(Medium(b"words"), PIXELS)
    broken = picture(64, 64)._replace(source=picture(64, 64).source[:3000])
    assert image_size(broken) == (64, 64)  # the header is whole
    with pytest.raises(ValueError, match="is a broken picture"):
        reader.read(broken, PIXELS, (1, 4, 4))


# ------------------------------------------------------------------------------------------------ kinds of picture


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_all_eight_orientations_are_read_as_they_are_to_be_seen(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = saved(Image.fromarray(np.tile(NOISE, (1, 2, 1))[:, :60]), format, exif=exif)
    upright = saved(ImageOps.exif_transpose(Image.open(io.BytesIO(turned.source))))
    reader = AnyresConfig()
    grids = reader.grids(turned, PIXELS)
    assert grids == reader.grids(upright, PIXELS) == [(3, 4, 4), (1, 4, 4)]
    for grid in grids:
        np.testing.assert_array_equal(reader.read(turned, PIXELS, grid).value, reader.read(upright, PIXELS, grid).value)
    rows, columns = tilings(*image_size(turned), 32, 9)[3]
    assert (rows, columns) == ((2, 1) if orientation >= 5 else (1, 2))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_over_white(format: str) -> None:
    alpha = np.full((32, 32, 1), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    view = view_of(saved(Image.fromarray(np.concatenate([NOISE, alpha], axis=2)), format, **options))
    share = alpha / 255
    expected = NOISE * share + 255 * (1 - share)
    assert np.abs(view - expected).max() <= 1 and (view[:10] == 255).all() and (view[20:] == NOISE[20:]).all()


def test_a_palette_and_its_transparent_colour() -> None:
    palette = Image.fromarray(NOISE).quantize(8)
    index = np.asarray(palette)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(view_of(saved(palette)), expected)
    np.testing.assert_array_equal(
        view_of(saved(palette, transparency=3)), np.where(index[..., None] == 3, 255, expected)
    )


@pytest.mark.parametrize(("format", "options", "apart"), [("TIFF", {}, 0), ("JPEG", {"quality": 100}, 3)])
def test_cmyk_shows_its_colours(format: str, options: dict, apart: int) -> None:
    view = view_of(saved(Image.fromarray(NOISE).convert("CMYK"), format, **options))
    assert np.abs(view.astype(int) - NOISE).max() <= apart


@pytest.mark.parametrize("mode", ["1", "L", "LA", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    view = view_of(saved(image, "TIFF" if mode == "YCbCr" else "PNG"))
    np.testing.assert_array_equal(view, np.asarray(image.convert("RGB")))


def sixteen_bits(values: np.ndarray) -> Medium:
    """A PNG of uint16 (height, width) or (height, width, 3 or 4), which Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    colour = {2: 0, 3: {3: 2, 4: 6}.get(values.shape[-1])}[values.ndim]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return Medium(b"\x89PNG\r\n\x1a\n" + body)


def test_sixteen_bits_a_channel() -> None:
    deep = np.random.default_rng(1).integers(0, 2**16, (32, 32, 3), dtype=np.uint16)
    eight = (deep >> 8).astype(np.uint8)
    np.testing.assert_array_equal(view_of(sixteen_bits(deep)), eight)
    grey = np.repeat(eight[..., :1], 3, axis=2)
    np.testing.assert_array_equal(view_of(sixteen_bits(deep[..., 0])), grey)
    np.testing.assert_array_equal(view_of(saved(Image.fromarray(deep[..., 0]), "TIFF")), grey)
    opaque = np.concatenate([deep, np.full((32, 32, 1), 65535, np.uint16)], axis=2)
    np.testing.assert_array_equal(view_of(sixteen_bits(opaque)), eight)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(format: str) -> None:
    first = Image.fromarray(NOISE).quantize(16).convert("RGB")
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [Image.fromarray(255 - np.asarray(first)), Image.new("RGB", (32, 32))]
    medium = saved(first, format, save_all=True, append_images=frames, **options)
    assert getattr(Image.open(io.BytesIO(medium.source)), "n_frames", 1) == 3
    np.testing.assert_array_equal(view_of(medium), np.asarray(first))


@pytest.mark.parametrize(
    ("size", "views"), [((1, 1), 1), ((1, 40), 3), ((2, 3000), 10), ((4000, 1), 10), ((1, 4000), 10), ((3, 5), 1)]
)
@pytest.mark.parametrize("reader", READERS)
def test_tiny_and_extreme_pictures_are_read(
    size: tuple[int, int], views: int, reader: SquareConfig | AnyresConfig
) -> None:
    medium = picture(*size)
    grids = reader.grids(medium, PIXELS)
    assert grids[0] == ((views, 4, 4) if reader == AnyresConfig() else (1, 4, 4)) and grids[-1] == (1, 4, 4)
    for grid in grids:
        item = reader.read(medium, PIXELS, grid)
        assert item.grid == grid and item.value.shape == (grid[0], 3, 32, 32) and np.isfinite(item.value).all()


def test_a_long_picture_is_cut_along_its_length_only() -> None:
    assert set(tilings(4000, 1, 32, 9).values()) == {(1, n) for n in range(1, 10)}
    assert set(tilings(2, 3000, 32, 9).values()) == {(n, 1) for n in range(1, 10)}


def test_tiles_never_exceed_their_limit_and_the_whole_picture_comes_on_top() -> None:
    for width in range(1, 400, 13):
        for height in range(1, 400, 17):
            for max_tiles in (1, 2, 5, 9, 12):
                for views, (rows, columns) in tilings(width, height, 32, max_tiles).items():
                    assert rows * columns <= max_tiles and views == (rows * columns + 1 if rows * columns > 1 else 1)


# ------------------------------------------------------------------------------------------------ headers, specimens


@pytest.mark.parametrize("reader", READERS)
def test_specimens_are_read_in_every_grid_that_they_promise(
    tmp_path: Path, reader: SquareConfig | AnyresConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = reader.specimens(tmp_path, PIXELS)
    shapes = {image_size(medium) for medium in media}
    assert len(media) >= 8 and (1, 1) in shapes and any(w > 3 * h for w, h in shapes)
    promised: list[list] = []
    with monkeypatch.context() as patched:
        patched.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("grids decodes"))
        patched.setattr(Image.Image, "load", lambda self: pytest.fail("grids decodes"))
        promised += [reader.grids(medium, PIXELS) for medium in media]
    for medium, grids in zip(media, promised, strict=True):
        assert grids == sorted(grids, reverse=True)
        for grid in grids:
            once, again = (reader.read(medium, PIXELS, grid) for _ in range(2))
            assert isinstance(once, Item) and once.grid == grid and once.value.shape == (grid[0], 3, 32, 32)
            assert once.value.tobytes() == again.value.tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
def test_grids_of_a_file_without_its_pixels(format: str) -> None:
    medium = picture(96, 64, format)
    cut = Medium(medium.source[: 1000 if format in ("JPEG", "GIF") else 60])
    for reader in READERS:
        assert reader.grids(cut, PIXELS) == reader.grids(medium, PIXELS)
        with pytest.raises(ValueError, match=r"broken picture|no picture"):
            reader.read(cut, PIXELS, (1, 4, 4))
