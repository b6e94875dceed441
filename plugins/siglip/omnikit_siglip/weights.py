"""The vision tower's tensors out of transformers' and open_clip's files, under transformers' names."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnikit.component import PICKLES, fetched, json_in, tensors_in

if TYPE_CHECKING:
    from torch import Tensor

OPEN_CLIP = "open_clip:"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_config.json")
TRUNK = "visual.trunk."
IN_A_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Names of timm's vision transformer, in which open_clip keeps SigLIP, and transformers'."""
GELUS = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
"""transformers' names of activations, and ours."""


def vision_tensors(weights: str, heads: int, layer_norm_eps: float, gelu: str) -> "Iterator[tuple[str, Tensor]]":
    """(name in transformers' SiglipVisionModel, tensor) pairs of the vision tower, without its pooling head.

    `weights` is a folder or hub id[@revision], in transformers' format (the whole model or its vision tower) or in
    open_clip's, or `open_clip:<model>/<tag>[@revision]`. Tensors that SigLIP has not keep their names, for the caller
    to refuse. A folder of another architecture, one without any vision tower of SigLIP, and one that says other heads,
    epsilon or activation than these are a ValueError: no tensor's shape would tell.
    """
    if weights.endswith(PICKLES) and not Path(weights).is_dir():
        raise ValueError(
            f"weights: {weights} is a pickle, which could run code and is not loaded; write it anew by "
            "safetensors.torch.save_file(model.state_dict(), 'open_clip_model.safetensors') and give that folder"
        )
    where = weights
    if weights.startswith(OPEN_CLIP):
        where = str(fetched(_hub_id(weights), OPEN_CLIP_FILES))
    _check_configs(weights, where, heads, layer_norm_eps, gelu)
    found, others = False, []
    for name, tensor in tensors_in(where):
        own = name.removeprefix("vision_model.")
        if name.startswith(TRUNK):
            found = True
            yield from _from_timm(name.removeprefix(TRUNK), tensor)
        elif own.startswith(("embeddings.", "encoder.", "post_layernorm.")):
            found = True
            # position_ids: a buffer that older versions of transformers wrote, always 0, 1, 2, ...
            if not own.endswith("position_ids"):
                yield own, tensor
        else:
            others.append(name)
    if not found:
        raise ValueError(
            f"weights: {weights} holds no vision tower of SigLIP but {len(others)} other tensors, such as "
            f"{', '.join(others[:3])}; give google/siglip-base-patch16-224, timm/ViT-B-16-SigLIP or their like"
        )


def _from_timm(name: str, tensor: "Tensor") -> "Iterator[tuple[str, Tensor]]":
    if name.startswith("attn_pool."):
        return
    part, _, kind = name.rpartition(".")
    if name == "pos_embed":
        yield "embeddings.position_embedding.weight", tensor.flatten(0, -2)
    elif part == "patch_embed.proj":
        yield f"embeddings.patch_embedding.{kind}", tensor
    elif part == "norm":
        yield f"post_layernorm.{kind}", tensor
    elif name.startswith("blocks."):
        _, index, part = part.split(".", 2)
        layer = f"encoder.layers.{index}"
        if part == "attn.qkv":
            for which, third in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{layer}.self_attn.{which}_proj.{kind}", third
        else:
            yield f"{layer}.{IN_A_LAYER.get(part, part)}.{kind}", tensor
    else:
        yield name, tensor


def _hub_id(weights: str) -> str:
    """The hub id[@revision] of an open_clip model's pretrained tag, by open_clip's own table."""
    try:
        from open_clip import get_pretrained_cfg, list_pretrained
    except ImportError as error:
        raise ValueError(
            f"weights: {weights} needs the package open_clip_torch, for its table of names; "
            "pip install 'omnikit-siglip[open_clip]', or give the hub id, such as timm/ViT-B-16-SigLIP"
        ) from error
    name, at, revision = weights.removeprefix(OPEN_CLIP).partition("@")
    model, _, tag = name.partition("/")
    repository = get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")[0]
    if not repository:
        known = [f"{model}/{tag}" for model, tag in list_pretrained() if "siglip" in model.lower()]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"weights: open_clip has no {name or 'model without a name'}; did you mean {OPEN_CLIP}{near}?")
    return f"{repository}{at}{revision}"


def _check_configs(weights: str, where: str, heads: int, layer_norm_eps: float, gelu: str) -> None:
    config = json_in(where, "config.json")
    model_type = config.get("model_type")
    if model_type in ("siglip2", "siglip2_vision_model"):
        raise ValueError(
            f"weights: {weights} is a NaFlex model (siglip2), whose views have any shape; give SigLIP 2 of a fixed "
            "resolution, such as google/siglip2-so400m-patch16-384"
        )
    if model_type not in (None, "siglip", "siglip_vision_model"):
        raise ValueError(f"weights: {weights} is a model of type {model_type}; give one of type siglip")
    if model_type:
        vision = _within(config, "vision_config") if model_type == "siglip" else config
        # What stands at its default is not written down.
        activation = vision.get("hidden_act", "gelu_pytorch_tanh")
        theirs = {
            "heads": vision.get("num_attention_heads", 12),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "gelu": GELUS.get(activation, activation),
        }
        for name, ours in {"heads": heads, "layer_norm_eps": layer_norm_eps, "gelu": gelu}.items():
            if theirs[name] != ours:
                raise ValueError(
                    f"weights: {weights} has {name} {theirs[name]}, the recipe has {ours}; take the preset that "
                    f"belongs to the weights, or set {name}: {theirs[name]}"
                )
    vision = _within(json_in(where, "open_clip_config.json"), "model_cfg", "vision_cfg")
    tower = vision.get("timm_model_name")
    if vision and ("siglip" not in str(tower) or "naflex" in str(tower)):
        raise ValueError(
            f"weights: {weights} has the tower {tower or 'of open_clip itself'}; "
            "give an open_clip model such as ViT-B-16-SigLIP"
        )


def _within(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping below these keys, one below the other; empty where there is none."""
    found: object = config
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
