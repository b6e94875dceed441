"""The encoder's tensors out of a transformers folder, or out of an openai-whisper checkpoint, under one set of names.

Both kinds say their sizes beside the tensors. They are compared first: a wrong number of heads fits every shape, and
would only make the features wrong.
"""

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnikit.component import json_in, tensors_in

Tensors = Iterator[tuple[str, Tensor]]

OPENAI = "openai:"
"""Begins a name of openai-whisper's own table of models, such as openai:tiny.en."""

HEADS_OF_WHISPER = frozenset({"decoder", "proj_out", "projector", "classifier", "layer_weights"})
"""What transformers' Whisper models hold besides the encoder. Anything else is passed on, for the core to refuse."""

DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError)
"""What torch.load raises of broken and of refused files."""

OF_CONFIG = {
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "mlp_width": "encoder_ffn_dim",
    "mel_bins": "num_mel_bins",
}
OF_DIMS = {"width": "n_audio_state", "layers": "n_audio_layer", "heads": "n_audio_head", "mel_bins": "n_mels"}
"""Our names of sizes, and theirs in transformers' config.json and in the dims of openai-whisper (mlp: 4 widths)."""

LAYER = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
"""openai-whisper's names within a layer, and ours, which are transformers'."""


def encoder_tensors(weights: str, sizes: Mapping[str, int]) -> Tensors:
    """(name as in the module, tensor) pairs of `weights`.

    `sizes` are the Config's; weights of others, of another architecture or that cannot be read are a ValueError.
    """
    if weights.startswith(OPENAI):
        return _of_openai(weights, downloaded(weights.removeprefix(OPENAI)), sizes)
    if weights.endswith(".pt") or (Path(weights).is_file() and not weights.endswith(".safetensors")):
        return _of_openai(weights, Path(weights), sizes)
    return _of_transformers(weights, sizes)


def _of_transformers(weights: str, sizes: Mapping[str, int]) -> Tensors:
    if said := json_in(weights, "config.json"):
        if said.get("model_type") != "whisper":
            raise ValueError(
                f"weights: {weights} is a model of type {said.get('model_type')}; give one of type whisper"
            )
        _check_sizes(weights, {ours: said[theirs] for ours, theirs in OF_CONFIG.items() if theirs in said}, sizes)
    for name, tensor in tensors_in(weights):
        part, _, rest = name.removeprefix("model.").partition(".")
        if part == "encoder":
            yield ("positions", tensor) if rest == "embed_positions.weight" else (rest, tensor)
        elif part not in HEADS_OF_WHISPER:
            yield name, tensor


def _of_openai(weights: str, path: Path, sizes: Mapping[str, int]) -> Tensors:
    """As openai-whisper saves them: {"dims": sizes of the model, "model_state_dict": tensors by name}."""
    if not path.is_file():
        raise ValueError(f"weights: {weights} is no file here; give the path of an openai-whisper checkpoint")
    try:
        # Only tensors and plain containers are made of it: a pickle that asks for more is refused, and runs nothing.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGED as error:  # torch's own message tells how to load it all the same
        raise ValueError(
            f"weights: {weights} is refused ({type(error).__name__}): it is damaged, or no zip file of plain "
            "tensors as openai-whisper's checkpoints are (a pickle that could run code is never loaded); get it again"
        ) from error
    dims, tensors = (found.get("dims"), found.get("model_state_dict")) if isinstance(found, dict) else (None, None)
    if not isinstance(dims, dict) or not isinstance(tensors, dict):
        raise ValueError(f"weights: {weights} lacks dims or model_state_dict, which openai-whisper's checkpoints hold")
    _check_sizes(weights, {ours: dims.get(theirs) for ours, theirs in OF_DIMS.items()}, sizes)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"weights: {weights} holds {name!r}, which is no tensor; get the checkpoint again")
        part, _, rest = name.partition(".")
        if part == "encoder":
            yield _renamed(rest), tensor
        elif part != "decoder":
            yield name, tensor


def _renamed(name: str) -> str:
    """Our name of a tensor of openai-whisper's encoder. One that it does not have stays as it is."""
    if name == "positional_embedding":
        return "positions"
    module, _, last = name.rpartition(".")
    if module == "ln_post":
        return f"layer_norm.{last}"
    parts = module.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[2] in LAYER:
        return f"layers.{parts[1]}.{LAYER[parts[2]]}.{last}"
    return name


def _check_sizes(weights: str, found: Mapping[str, Any], wanted: Mapping[str, int]) -> None:
    wrong = [name for name, value in found.items() if value != wanted[name]]
    if wrong:
        theirs, ours = (", ".join(f"{name} {of[name]}" for name in wrong) for of in (found, wanted))
        raise ValueError(
            f"weights: {weights} has {theirs}, the recipe has {ours}; take the preset that belongs to the weights"
        )


def downloaded(name: str) -> Path:
    """The checkpoint of one of openai-whisper's own models: where that package keeps it, fetched once, hash checked."""
    import whisper

    if name not in whisper.available_models():
        raise ValueError(
            f"weights: openai-whisper has no model {name}; models: {', '.join(whisper.available_models())}"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "whisper")
    try:
        # Not public, but `load_model`, which is, builds and fills the whole model first.
        return Path(whisper._download(whisper._MODELS[name], str(cache), in_memory=False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"weights: {OPENAI}{name} cannot be had ({error}); give the path of the .pt file, or connect to the network"
        ) from error
