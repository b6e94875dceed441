"""The siglip encoder against transformers and open_clip, on the same random weights, in float32.

Both compute what they were asked in another order of sums (fused against separate projections, sdpa against the plain
formula), hence a tolerance: 1e-5, of features of size 1.
"""

import functools
import json
from pathlib import Path

import open_clip
import open_clip.timm_model
import pytest
import timm
import torch
from omnikit_siglip import SiglipConfig
from omnikit_siglip.weights import _from_timm, _hub_id
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import nn
from transformers import SiglipConfig as HFConfig
from transformers import SiglipModel, SiglipVisionConfig, SiglipVisionModel

from omnikit.component import Item

TOLERANCE = 1e-5
TINY = SiglipConfig(width=24, layers=3, heads=3, mlp_width=40, image_size=30, patch_size=7)
ONE_LAYER = SiglipConfig(preset="so400m-patch14-384").model_copy(update={"layers": 1})
SIZES = {"B": "base", "L": "large", "SO400M": "so400m", "gopt": "giant-opt"}
OPEN_CLIP_NAMES = [name for name in open_clip.list_models() if name.startswith("ViT-") and "SigLIP" in name]
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def shaken(model):
    """The model as it starts plus noise: norms of one and biases of zero would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vision_config(encoder: SiglipConfig, **options: object) -> dict:
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.mlp_width,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        **options,
    }


def pixels_for(encoder: SiglipConfig, views: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(views, 3, encoder.image_size, encoder.image_size, generator=generator)


def loaded(encoder: SiglipConfig, folder: Path) -> nn.Module:
    encoder = encoder.model_copy(update={"weights": str(folder)})
    module = encoder.build()
    module.load_state_dict(dict(encoder.pretrained()), strict=True)
    return module.eval()


@torch.no_grad()
def features(module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return module([Item(pixels, (len(pixels), 0, 0))]).unflatten(0, (len(pixels), -1))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return (one.float() - other.float()).abs().max().item()


# -------------------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("encoder", [TINY, ONE_LAYER], ids=["tiny", "a layer of so400m at 384"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "vision tower"])
@torch.no_grad()
def test_features_equal_transformers(encoder, whole, tmp_path, record_property):
    if whole:
        model = shaken(SiglipModel(HFConfig(text_config=TEXT, vision_config=vision_config(encoder))))
        theirs = model.vision_model
    else:
        model = theirs = shaken(SiglipVisionModel(SiglipVisionConfig(**vision_config(encoder))))
    model.save_pretrained(tmp_path)
    pixels = pixels_for(encoder)
    expected = theirs(pixel_values=pixels).last_hidden_state
    found = difference(features(loaded(encoder, tmp_path), pixels), expected)
    record_property("max_abs_difference", found)
    assert expected.abs().max() > 1 and found <= TOLERANCE


@pytest.mark.parametrize("layer", [-1, -2, -3])
@torch.no_grad()
def test_an_earlier_layer_equals_transformers_hidden_states(layer, tmp_path):
    theirs = shaken(SiglipVisionModel(SiglipVisionConfig(**vision_config(TINY))))
    theirs.save_pretrained(tmp_path)
    pixels = pixels_for(TINY)
    expected = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states
    encoder = TINY.model_copy(update={"layer": layer})
    assert len(expected) == 1 + TINY.layers
    assert difference(features(loaded(encoder, tmp_path), pixels), expected[layer]) <= TOLERANCE
    assert difference(expected[layer], expected[layer - 1]) > 100 * TOLERANCE


@pytest.mark.parametrize("encoder", [TINY, ONE_LAYER], ids=["tiny", "a layer of so400m at 384"])
@torch.no_grad()
def test_bfloat16_is_reported(encoder, tmp_path, record_property):
    theirs = shaken(SiglipVisionModel(SiglipVisionConfig(**vision_config(encoder))))
    theirs.save_pretrained(tmp_path)
    pixels, ours = pixels_for(encoder), loaded(encoder, tmp_path)
    exact = theirs(pixel_values=pixels).last_hidden_state
    half = features(ours.bfloat16(), pixels.bfloat16())
    half_of_theirs = theirs.bfloat16()(pixel_values=pixels.bfloat16()).last_hidden_state
    for name, found in {
        "ours in bfloat16 from float32": difference(half, exact),
        "transformers in bfloat16 from float32": difference(half_of_theirs, exact),
        "ours from transformers, both in bfloat16": difference(half, half_of_theirs),
    }.items():
        record_property(name, found)
        print(f"{encoder.width} wide: {name}: {found:.2e}")
        assert found < 0.5  # of features of size 4: that nothing is broken, no more


# ----------------------------------------------------------------------------------------------------------- open_clip


def open_clip_model(name: str, monkeypatch: pytest.MonkeyPatch, **smaller: int) -> tuple[CustomTextCLIP, dict]:
    """open_clip's model of that name and its configuration, with a small text tower and a vision tower as asked."""
    config = open_clip.get_model_config(name)
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1, "pool_type": "last"}
    config = {key: value for key, value in config.items() if key != "custom_text"} | {"text_cfg": text}
    create = functools.partial(timm.create_model, **smaller)
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", create)
    return shaken(CustomTextCLIP(**config)), config


def save_open_clip(model: nn.Module, config: dict, folder: Path) -> None:
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


@pytest.mark.parametrize(
    ("name", "preset", "gelu", "smaller"),
    [
        ("ViT-B-16-SigLIP", "base-patch16-224", "erf", {"embed_dim": 48, "num_heads": 3, "depth": 3}),
        ("ViT-B-32-SigLIP2-256", "base-patch32-256", "tanh", {"embed_dim": 48, "num_heads": 3, "depth": 3}),
        ("ViT-SO400M-14-SigLIP-384", "so400m-patch14-384", "erf", {"depth": 1}),
        ("ViT-SO400M-16-SigLIP2-384", "so400m-patch16-384", "tanh", {"depth": 1}),
    ],
)
@torch.no_grad()
def test_features_equal_open_clip(name, preset, gelu, smaller, tmp_path, monkeypatch, record_property):
    theirs, config = open_clip_model(name, monkeypatch, **smaller)
    save_open_clip(theirs, config, tmp_path)
    sizes = {"layers": smaller["depth"], "gelu": gelu}
    if "embed_dim" in smaller:
        sizes |= {"width": 48, "heads": 3, "mlp_width": 4 * 48}
    encoder = SiglipConfig(preset=preset).model_copy(update=sizes)
    pixels = pixels_for(encoder)
    expected = theirs.visual.trunk.forward_features(pixels)
    found = difference(features(loaded(encoder, tmp_path), pixels), expected)
    record_property("max_abs_difference", found)
    assert expected.abs().max() > 1 and found <= TOLERANCE

    other = encoder.model_copy(update={"gelu": "erf" if gelu == "tanh" else "tanh"})
    of_gelu = difference(features(loaded(other, tmp_path), pixels), expected)
    record_property("max_abs_difference_of_the_other_gelu", of_gelu)
    print(f"{name}: {found:.1e}; the other gelu: {of_gelu:.1e}")
    assert of_gelu > 2 * TOLERANCE  # else the option would be for nothing


@torch.no_grad()
def test_both_sources_give_the_same_module(tmp_path, monkeypatch):
    theirs, config = open_clip_model("ViT-B-16-SigLIP", monkeypatch, embed_dim=48, num_heads=3, depth=3)
    (tmp_path / "open_clip").mkdir()
    save_open_clip(theirs, config, tmp_path / "open_clip")
    sizes = {"width": 48, "heads": 3, "mlp_width": 4 * 48, "layers": 3}
    encoder = SiglipConfig(preset="base-patch16-224").model_copy(update=sizes)
    from_open_clip = loaded(encoder, tmp_path / "open_clip")
    model = SiglipVisionModel(SiglipVisionConfig(**vision_config(encoder)))
    assert not model.load_state_dict(from_open_clip.tower.state_dict(), strict=False).unexpected_keys
    model.save_pretrained(tmp_path / "transformers")
    from_transformers = loaded(encoder, tmp_path / "transformers")
    pixels = pixels_for(encoder)
    assert torch.equal(features(from_open_clip, pixels), features(from_transformers, pixels))


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_presets_agree_with_open_clips_own_table(name):
    vision = open_clip.get_model_config(name)["vision_cfg"]
    _, size, patch, *_ = name.split("-")
    encoder = SiglipConfig(preset=f"{SIZES[size]}-patch{patch}-{vision['image_size']}")
    with torch.device("meta"):
        ours = encoder.build().tower.state_dict()
        theirs = timm.create_model(vision["timm_model_name"], num_classes=0, global_pool="map")
    mapped = dict(pair for key, tensor in theirs.state_dict().items() for pair in _from_timm(key, tensor))
    assert {key: tensor.shape for key, tensor in mapped.items()} == {key: t.shape for key, t in ours.items()}
    assert theirs.default_cfg["input_size"] == (3, encoder.image_size, encoder.image_size)
    assert (theirs.default_cfg["mean"], theirs.default_cfg["std"]) == (encoder.mean, encoder.std)
    block = theirs.blocks[0]
    assert (block.attn.num_heads, block.norm1.eps) == (encoder.heads, encoder.layer_norm_eps)


def test_every_preset_is_in_open_clips_table_and_no_size_is_left_out():
    assert len(OPEN_CLIP_NAMES) >= 26
    images = {name: open_clip.get_model_config(name)["vision_cfg"]["image_size"] for name in OPEN_CLIP_NAMES}
    theirs = {f"{SIZES[name.split('-')[1]]}-patch{name.split('-')[2]}-{size}" for name, size in images.items()}
    # open_clip calls it ViT-SO400M-14-SigLIP2-378; google publishes the same weights for 384
    assert theirs == set(SiglipConfig.presets)


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_every_name_of_open_clip_leads_to_its_hub_repository(name):
    expected = "timm/ViT-SO400M-14-SigLIP-384" if name == "ViT-SO400M-14-SigLIP-378" else f"timm/{name}"
    assert _hub_id(f"open_clip:{name}/webli@main") == f"{expected}@main"


def test_by_a_name_only_safetensors_and_the_configuration_are_downloaded(tmp_path, monkeypatch):
    theirs, config = open_clip_model("ViT-B-16-SigLIP", monkeypatch, embed_dim=48, num_heads=3, depth=3)
    save_open_clip(theirs, config, tmp_path)
    asked: list[tuple[str, str, list[str]]] = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    sizes = {"width": 48, "heads": 3, "mlp_width": 4 * 48, "layers": 3}
    encoder = SiglipConfig(preset="base-patch16-224", weights="open_clip:ViT-B-16-SigLIP/webli@abc")
    encoder = encoder.model_copy(update=sizes)
    tensors = dict(encoder.pretrained())
    assert set(tensors) == set(encoder.build().state_dict())
    files = ["open_clip_model.safetensors", "open_clip_config.json"]
    assert asked == [("timm/ViT-B-16-SigLIP", "abc", files)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-16-SigLIP/openai", "open_clip has no ViT-B-16-SigLIP/openai; did you mean open_clip:ViT-B-16-SigLIP/"),
        ("ViT-B-16-SigLip/webli", "did you mean open_clip:ViT-B-16-SigLIP/webli"),
        ("", "open_clip has no model without a name; did you mean"),
    ],
)
def test_names_that_open_clip_has_not_say_what_is_near(name, message):
    with pytest.raises(ValueError, match=message):
        list(TINY.model_copy(update={"weights": f"open_clip:{name}"}).pretrained())
