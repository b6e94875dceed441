"""Where the siglip encoder's weights may come from, and what is refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omnikit_siglip import SiglipConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

TINY = SiglipConfig(width=24, layers=2, heads=3, mlp_width=40, image_size=30, patch_size=7)
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"image_size": 30, "patch_size": 7}
TO_TIMM = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def tower() -> SiglipVisionModel:
    """transformers' tower with every tensor drawn at random."""
    model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def in_open_clips_names(model: SiglipVisionModel) -> Iterator[tuple[str, Tensor]]:
    """As open_clip keeps it: timm's names, q, k and v in one, an axis before positions, and the rest of it."""
    tensors = model.state_dict()
    trunk = "visual.trunk."
    for kind in ("weight", "bias"):
        yield f"{trunk}patch_embed.proj.{kind}", tensors[f"embeddings.patch_embedding.{kind}"]
        yield f"{trunk}norm.{kind}", tensors[f"post_layernorm.{kind}"]
        for index in range(2):
            layer, block = f"encoder.layers.{index}", f"{trunk}blocks.{index}"
            for ours, theirs in TO_TIMM.items():
                yield f"{block}.{theirs}.{kind}", tensors[f"{layer}.{ours}.{kind}"]
            fused = torch.cat([tensors[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            yield f"{block}.attn.qkv.{kind}", fused
    yield f"{trunk}pos_embed", tensors["embeddings.position_embedding.weight"][None]
    yield f"{trunk}attn_pool.latent", torch.zeros(1, 1, 24)
    yield f"{trunk}attn_pool.norm.weight", torch.zeros(24)
    yield "text.token_embedding.weight", torch.zeros(5, 24)
    yield "logit_scale", torch.zeros(())
    yield "logit_bias", torch.zeros(())


def with_weights(weights: object) -> SiglipConfig:
    return TINY.model_copy(update={"weights": str(weights)})


def tensors_of(folder: object) -> dict[str, Tensor]:
    return dict(with_weights(folder).pretrained())


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "epoch_3.safetensors"])
def test_open_clips_tensors_become_transformers(tmp_path: Path, file: str) -> None:
    model = tower()
    save_file(dict(in_open_clips_names(model)), tmp_path / file)
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"timm_model_name": "vit_x_siglip_30"}}})
    found = tensors_of(tmp_path)
    expected = {f"tower.{k}": t for k, t in model.state_dict().items() if not k.startswith("head.")}
    assert set(found) == set(expected) == set(TINY.build().state_dict())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_earlier_layer_leaves_out_open_clips_later_ones(tmp_path: Path) -> None:
    save_file(dict(in_open_clips_names(tower())), tmp_path / "open_clip_model.safetensors")
    encoder = with_weights(tmp_path).model_copy(update={"layer": -2})
    assert set(dict(encoder.pretrained())) == set(encoder.build().state_dict())


def test_what_is_missing_strange_or_of_another_shape_reaches_the_core_under_its_name(tmp_path: Path) -> None:
    tensors = dict(in_open_clips_names(tower()))
    del tensors["visual.trunk.blocks.1.mlp.fc1.bias"]
    tensors["visual.trunk.blocks.0.attn.q_norm.weight"] = torch.zeros(8)
    tensors["visual.trunk.cls_token"] = torch.zeros(1, 1, 24)
    tensors["visual.trunk.pos_embed"] = torch.zeros(1, 25, 24)
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    found, built = tensors_of(tmp_path), TINY.build().state_dict()
    assert set(built) - set(found) == {"tower.encoder.layers.1.mlp.fc1.bias"}
    assert set(found) - set(built) == {"tower.encoder.layers.0.attn.q_norm.weight", "tower.cls_token"}
    wrong = {name for name in set(found) & set(built) if found[name].shape != built[name].shape}
    assert wrong == {"tower.embeddings.position_embedding.weight"}


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip"}, "is a model of type clip; give one of type siglip"),
        ({"model_type": "qwen2"}, "is a model of type qwen2; give one of type siglip"),
        ({"model_type": "siglip2"}, r"is a NaFlex model \(siglip2\).*give SigLIP 2 of a fixed resolution"),
        ({"model_type": "siglip2_vision_model"}, "is a NaFlex model"),
        ({"model_type": "siglip_vision_model"}, "has heads 12, the recipe has 3; take the preset.*or set heads: 12"),
        ({"model_type": "siglip", "vision_config": {"num_attention_heads": 2}}, "has heads 2, the recipe has 3"),
        (
            {"model_type": "siglip", "vision_config": {"num_attention_heads": 3, "hidden_act": "gelu"}},
            "has gelu erf, the recipe has tanh; .*set gelu: erf",
        ),
        (
            {"model_type": "siglip", "vision_config": {"num_attention_heads": 3, "layer_norm_eps": 1e-5}},
            "has layer_norm_eps 1e-05, the recipe has 1e-06",
        ),
    ],
)
def test_folders_of_other_models_are_refused_by_their_config(tmp_path: Path, config: dict, message: str) -> None:
    save_file(tower().state_dict(), tmp_path / "model.safetensors")
    write(tmp_path, "config.json", config)
    with pytest.raises(ValueError, match=message) as caught:
        tensors_of(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": 12, "width": 768}, "has the tower of open_clip itself; give an open_clip model such as"),
        ({"timm_model_name": "convnext_base"}, "has the tower convnext_base"),
        ({"timm_model_name": "naflexvit_base_patch16_siglip"}, "has the tower naflexvit_base_patch16_siglip"),
    ],
)
def test_open_clips_other_towers_are_refused(tmp_path: Path, vision: dict, message: str) -> None:
    save_file(dict(in_open_clips_names(tower())), tmp_path / "open_clip_model.safetensors")
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": vision}})
    with pytest.raises(ValueError, match=message):
        tensors_of(tmp_path)


def test_a_folder_without_a_vision_tower_says_what_it_holds(tmp_path: Path) -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "model.safetensors")
    message = r"holds no vision tower of SigLIP but 4 other tensors, such as .*\.weight, .*; give google/siglip-base"
    with pytest.raises(ValueError, match=message):
        tensors_of(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '{"model_cfg": 3}', '{"model_cfg": {"vision_cfg": []}}'])
@pytest.mark.parametrize("name", ["config.json", "open_clip_config.json"])
def test_a_strange_config_is_an_error_or_says_nothing(tmp_path: Path, name: str, content: str) -> None:
    save_file(dict(in_open_clips_names(tower())), tmp_path / "open_clip_model.safetensors")
    (tmp_path / name).write_text(content)
    if content in ("{", "[1]"):
        with pytest.raises(ValueError, match=f"{name} is (broken JSON|no JSON object)"):
            tensors_of(tmp_path)
    else:
        assert set(tensors_of(tmp_path)) == set(TINY.build().state_dict())


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "epoch_32.pt", "model.pth"])
def test_pickles_are_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    torch.save(dict(in_open_clips_names(tower())), tmp_path / name)
    with pytest.raises(ValueError, match=r"is a pickle, .* not loaded; write it anew by safetensors\.torch\.save_file"):
        tensors_of(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds no \.safetensors file; .*no pickle is loaded"):
        tensors_of(tmp_path)


def test_a_file_is_refused_for_its_folder(tmp_path: Path) -> None:
    save_file(dict(in_open_clips_names(tower())), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="is a file; give the folder that it is in"):
        tensors_of(tmp_path / "open_clip_model.safetensors")


def test_a_name_of_open_clip_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    message = r"needs the package open_clip_torch, .*pip install 'omnikit-siglip\[open_clip\]', or give the hub id"
    with pytest.raises(ValueError, match=message):
        tensors_of("open_clip:ViT-B-16-SigLIP/webli")


def test_without_weights_there_is_nothing_to_read() -> None:
    with pytest.raises(ValueError, match="siglip: no weights to read; give a folder or a hub id"):
        list(TINY.pretrained())
