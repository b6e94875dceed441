"""Pictures scaled: as torchvision does, close to Pillow, whatever their shape."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as torchvisions

from omnikit import resizing
from omnikit.resizing import resize

SIZES = [
    ((30, 20), (7, 9)),
    ((30, 20), (77, 61)),
    ((30, 20), (16, 33)),
    ((1, 1), (32, 32)),
    ((4000, 1), (288, 32)),
    ((640, 480), (384, 384)),
    ((301, 97), (300, 96)),
    ((50, 50), (2, 1)),
]
WIDER_AND_LOWER = [((20, 30), (33, 16)), ((1, 4000), (32, 288)), ((3, 500), (384, 32))]


def hard(width: int, height: int) -> np.ndarray:
    """Black and white noise in every colour: nothing shows a wrong kernel or order as plainly."""
    return np.random.default_rng(width * height).choice(np.array([0, 255], np.uint8), (height, width, 3))


def by_pillow(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(("size", "wanted"), SIZES + WIDER_AND_LOWER)
def test_it_is_torchvisions_bicubic_with_antialiasing(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = hard(*size)
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    expected = torchvisions(planes, [wanted[1], wanted[0]], InterpolationMode.BICUBIC, antialias=True)
    np.testing.assert_array_equal(resize(image, *wanted), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_it_is_two_steps_of_255_from_pillows_at_most(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = hard(*size)
    assert apart(resize(image, *wanted), by_pillow(image, *wanted)) <= 2


@pytest.mark.parametrize(("size", "wanted"), WIDER_AND_LOWER)
def test_strips_too_long_for_rows_first_have_their_columns_scaled_first(
    size: tuple[int, int], wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, (width, height) = hard(*size), wanted
    columns_first = by_pillow(by_pillow(image, size[0], height), width, height)
    monkeypatch.setattr(resizing, "ROOM", size[1] * width - 1)
    assert apart(resize(image, width, height), columns_first) <= 2
    monkeypatch.setattr(resizing, "ROOM", size[1] * width)
    assert apart(resize(image, width, height), by_pillow(by_pillow(image, width, size[1]), width, height)) <= 2


def test_a_picture_of_one_colour_keeps_it() -> None:
    for colour in (0, 1, 127, 255):
        for size, wanted in SIZES + WIDER_AND_LOWER:
            image = np.full((size[1], size[0], 3), colour, np.uint8)
            assert (resize(image, *wanted) == colour).all(), f"{colour}, {size} to {wanted}"


def test_a_picture_of_the_right_size_is_not_copied() -> None:
    image = hard(30, 20)
    assert resize(image, 30, 20) is image


def test_turned_mirrored_cut_and_read_only_pictures_are_scaled_in_silence() -> None:
    image = hard(40, 30)
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seen in (image, np.rot90(image), image[::-1, ::-1], image[3:20, 5:30], image.swapaxes(0, 1)):
            np.testing.assert_array_equal(resize(seen, 16, 16), resize(seen.copy(), 16, 16))


def test_no_memory_for_it_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="allocate"):
        resize(hard(1, 1), 2**23, 2**23)  # 211 TB, more than any process can address
