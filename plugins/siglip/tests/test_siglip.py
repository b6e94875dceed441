"""The siglip encoder against transformers' own, and the picture readers."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omnikit_siglip import AnyresConfig, SiglipConfig, SquareConfig, omnikit_components
from omnikit_siglip.reader import tilings
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig as HFConfig
from transformers import SiglipImageProcessor, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from omnikit.component import Item, Medium, Pixels, count
from omnikit.media import image_size, load_image

torch.set_num_threads(1)
TINY = SiglipConfig(width=24, layers=2, heads=3, mlp_width=40, image_size=30, patch_size=7, layer_norm_eps=1e-3)
HF_TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 30,
    "patch_size": 7,
    "layer_norm_eps": 1e-3,
}
PIXELS = Pixels(size=32, patch=8)


def picture(width: int, height: int, format: str = "PNG") -> Medium:
    """Noise, so that no two places look alike."""
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format)
    return Medium(file.getvalue())


def items_of(*num_views: int) -> list[Item]:
    side = TINY.input.side
    generator = torch.Generator().manual_seed(0)
    return [Item(torch.randn(n, 3, 30, 30, generator=generator), (n, side, side)) for n in num_views]


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Every tensor drawn anew: untouched norms and biases (ones and zeros) would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def loaded(folder: Path) -> torch.nn.Module:
    encoder = TINY.model_copy(update={"weights": str(folder)})
    module = encoder.build()
    tensors = dict(encoder.pretrained())
    assert set(tensors) == set(module.state_dict())  # the core reports what is missing; nothing may be left over
    module.load_state_dict(tensors)
    return module.eval()


# ------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("head", [True, False])
def test_equals_transformers_from_a_vision_folder(tmp_path: Path, head: bool) -> None:
    theirs = scrambled(SiglipVisionModel(SiglipVisionConfig(**HF_TINY, vision_use_head=head)))
    theirs.save_pretrained(tmp_path)
    items = items_of(2, 1, 3)
    expected = theirs(pixel_values=torch.cat([item.value for item in items])).last_hidden_state
    features = loaded(tmp_path)(items)
    assert features.shape == (sum(count(item.grid) for item in items), TINY.width)
    torch.testing.assert_close(features, expected.flatten(0, 1), rtol=0, atol=1e-5)  # both float32 and sdpa


def test_equals_transformers_from_the_folder_of_a_whole_model(tmp_path: Path) -> None:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    theirs = scrambled(SiglipModel(HFConfig(text_config=text, vision_config=HF_TINY)))
    theirs.save_pretrained(tmp_path)
    (item,) = items_of(2)
    expected = theirs.vision_model(pixel_values=item.value).last_hidden_state
    torch.testing.assert_close(loaded(tmp_path)([item]), expected.flatten(0, 1), rtol=0, atol=1e-5)


def test_reads_folders_of_older_transformers(tmp_path: Path) -> None:
    theirs = scrambled(SiglipVisionModel(SiglipVisionConfig(**HF_TINY)))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    old["vision_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(old, tmp_path / "model.safetensors")
    (item,) = items_of(1)
    expected = theirs(pixel_values=item.value).last_hidden_state[0]
    torch.testing.assert_close(loaded(tmp_path)([item]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "parameters", "side"), [("so400m-patch14-384", 412_987_248, 27), ("base-patch16-224", 85_797_120, 14)]
)
def test_presets_have_the_published_sizes(preset: str, parameters: int, side: int) -> None:
    encoder = SiglipConfig(preset=preset)
    with torch.device("meta"):
        module = encoder.build()
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert encoder.input.side == side and encoder.example().grid == (1, side, side)
    assert len(module.blocks) == encoder.layers and module.width == encoder.width


def test_views_and_items_never_influence_each_other() -> None:
    module, items = scrambled(TINY.build()), items_of(2, 1)
    together = module(items).split([count(item.grid) for item in items])
    for item, features in zip(items, together, strict=True):
        torch.testing.assert_close(module([item]), features, rtol=0, atol=1e-5)
    first_view = Item(items[0].value[:1], (1, *items[0].grid[1:]))
    torch.testing.assert_close(module([first_view]), together[0][: len(together[0]) // 2], rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    module = TINY.build().train()
    module(items_of(2)).square().sum().backward()
    # the bias of keys shifts all of a row's scores alike, which softmax does not see
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("k_proj.bias") for name in without), without


def test_example_is_a_valid_item() -> None:
    item = TINY.example()
    assert item.value.dtype == np.float32 and item.value.shape == (1, 3, 30, 30)
    assert TINY.build()([Item(torch.from_numpy(item.value), item.grid)]).shape == (count(item.grid), 24)


def test_wrong_sizes_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="width 24 is not divisible by 5 heads"):
        SiglipConfig(width=24, layers=1, heads=5, mlp_width=8, image_size=30, patch_size=7)
    with pytest.raises(ValueError, match="image_size 6 is below patch_size 7"):
        SiglipConfig(width=24, layers=1, heads=3, mlp_width=8, image_size=6, patch_size=7)


# ------------------------------------------------------------------------------------------------------------- readers


def test_square_equals_transformers_processor() -> None:
    medium = picture(50, 20)
    (grid,) = SquareConfig().grids(medium, PIXELS)
    item = SquareConfig().read(medium, PIXELS, grid)
    assert grid == (1, 4, 4) and item.grid == grid and item.value.dtype == np.float32
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    expected = processor(Image.fromarray(load_image(medium)), return_tensors="np")["pixel_values"]
    # theirs resizes by torchvision: one step of 255 apart here and there, in a range of 2
    np.testing.assert_allclose(item.value, expected, rtol=0, atol=1.01 * 2 / 255)


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


def test_the_hook_lists_encoder_and_readers() -> None:
    assert [component.type for component in omnikit_components()] == ["siglip", "square", "anyres"]


def test_the_package_imports_no_heavy_library() -> None:
    code = "import sys, omnikit_siglip; print(sorted({'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
