"""What transformers' `config.json` says of an architecture, and nothing of how it was saved or is run."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from omnikit.weights import json_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NOT_GEOMETRY = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "pretraining_tp", "use_cache"}
)
"""Keys that change nothing of what a model with given weights computes."""
SAID_TWICE = frozenset({"max_window_layers", "use_sliding_window"})
"""Keys out of which transformers makes others, `sliding_window` and `layer_types`; alone they mean nothing."""

HIDDEN, HEADS, HEAD, LAYERS = 64, 4, 16, 2
"""Sizes of a tiny model: width, attention heads, width of a head, layers."""


def config_json(weights: str) -> dict[str, Any] | None:
    """What the config.json of a folder or hub id holds, or None where there is none."""
    found = json_in(weights, "config.json")
    if not found:
        return None
    if not isinstance(found.get("model_type"), str):
        raise ValueError(f"weights: {weights}: config.json names no model_type; give a folder that transformers wrote")
    if found.get("quantization_config"):
        raise ValueError(f"weights: {weights} is quantised, which does not train; give the model that it was made of")
    return found


def geometry(weights: str) -> dict[str, Any]:
    """The `config` of a folder's or hub id's model: every size and option of its architecture, defaults included."""
    said = config_json(weights)
    if said is None:
        raise ValueError(f"weights: {weights} has no config.json; state config, or name a preset")
    found = _options(said)
    layer_types = found.pop("layer_types", None)
    if layer_types is not None and _options(found).get("layer_types") != layer_types:
        found["layer_types"] = layer_types
    return found


def differences(config: Mapping[str, Any], weights: str) -> list[str]:
    """Where a config is not that of the folder or hub id (`key value (there value)`); none without a config.json."""
    said = config_json(weights)
    if said is None:
        return []
    if said["model_type"] != config["model_type"]:
        return [f"model_type {config['model_type']} (there {said['model_type']})"]
    ours, theirs = _flat(_options(config)), _flat(_options(said))
    # Dropout is the recipe's to choose.
    keys = [key for key in {**theirs, **ours} if key not in SAID_TWICE and not key.endswith(("dropout", "pdrop"))]
    return [
        f"{key} {ours.get(key)} (there {theirs.get(key)})" for key in keys if not _equal(ours.get(key), theirs.get(key))
    ]


def architecture(config: Mapping[str, Any]) -> "PreTrainedConfig":
    """transformers' configuration; what it refuses is one line."""
    from transformers import AutoConfig

    with refusing():
        return AutoConfig.for_model(**config)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns what transformers raises about a configuration, of many kinds and lines, into one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone.config: {reason[:300]}; see transformers' documentation of the model") from error


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same architecture and options at tiny sizes, without the vocabulary's.

    Grouped heads stay grouped; of layers of several kinds one each stays.
    """
    grouped = (config.get("num_key_value_heads") or HEADS) < (config.get("num_attention_heads") or HEADS)
    kinds = list(dict.fromkeys(config.get("layer_types") or ()))
    layers = max(LAYERS, len(kinds))
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2 if grouped else HEADS,
    }
    optional = {
        "head_dim": HEAD,
        "moe_intermediate_size": HIDDEN,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": [*kinds, *kinds[-1:] * (layers - len(kinds))],
        "rope_parameters": _shrunk_rope(config),
    }
    sizes |= {key: value for key, value in optional.items() if config.get(key)}
    return {key: value for key, value in config.items() if key != "vocab_size"} | sizes


def _shrunk_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # Some kinds of rotary positions list a factor for each pair of a head's channels.
    rope = dict(config.get("rope_parameters") or {})
    pairs = int(HEAD * rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) // 2
    return {key: value[:pairs] if isinstance(value, list) else value for key, value in rope.items()}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a configuration, less what every model has and what is not of the architecture."""
    from transformers import PreTrainedConfig

    whole = architecture(config)
    known = set(type(whole)().to_dict()) - set(PreTrainedConfig().to_dict()) - NOT_GEOMETRY
    return {"model_type": whole.model_type} | {key: value for key, value in whole.to_dict().items() if key in known}


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _equal(one: object, other: object) -> bool:
    # A number may have been through float32: 9.999999747378752e-06 is 1e-05.
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
