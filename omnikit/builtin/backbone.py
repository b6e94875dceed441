"""The `hf_causal_lm` backbone's module: a transformers causal LM, with attention that follows `segments`.

Letters: B rows of T positions, H width, A attention heads, D head width.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from omnikit.builtin.attention import Buckets, Runs, attend, buckets, kernel_for, runs
from omnikit.builtin.backbone_geometry import architecture, refusing
from omnikit.kernels import cast_once
from omnikit.lean import lean

ATTENTION = f"documents of {__name__}"
"""The name under which transformers' layers find `_attend`; that of a copy in an exported folder is another."""
BEYOND = ("attention_mask", "softcap", "s_aux", "position_bias", "indices", "block_indices")
"""What models may ask of their attention besides causality and a window."""
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Padding is what `segments` says it is, and no id: torch gives the embedding of a padding id no gradient, and folders
often name their stop token there. What begins and ends a text is in `chat`."""
BENDS_LOGITS = ("final_logit_softcapping", "lm_head_multiplier", "logit_scale", "logits_scaling", "output_multiplier")
"""Options by which transformers' models change logits after the head, where the loss here would not see it."""


def _attend(
    module: nn.Module,
    query: Float[Tensor, "B A T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    docs: Buckets | Runs | Literal["cached"] | None = None,
    **kwargs: Any,  # noqa: ANN401  (transformers passes what a model's layers know)
) -> tuple[Float[Tensor, "B T A D"], None]:
    """transformers' attention interface. In generation with a cache it is transformers' own sdpa."""
    if docs is None:  # lost on the way: one document would see another
        raise ValueError(
            f"backbone.config: {type(module).__name__} is not told where documents begin and end; take a model such as "
            "llama, mistral, phi3, qwen2, qwen3 or olmo2, whose layers hand on what they are told"
        )
    if isinstance(docs, str):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    return _packed(query, key, value, docs, {"attention_mask": attention_mask, **kwargs}, scaling, dropout), None


@torch.compiler.disable  # documents lie elsewhere in each pack, and a graph would be of one
def _packed(
    query: Float[Tensor, "B A T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    docs: Buckets | Runs,
    asked: dict[str, Any],
    scaling: float | None,
    dropout: float,
) -> Float[Tensor, "B T A D"]:
    _check_full(docs, asked)
    return attend(query, key, value, docs, scaling, dropout)


def _check_full(docs: Buckets | Runs, asked: dict[str, Any]) -> None:
    """Refuse what a layer asks of its attention beyond causality and is not done here."""
    refused = [name for name in BEYOND if asked.get(name) is not None]
    refused += ["is_causal"] if asked.get("is_causal") is False else []
    refused += ["sliding_window"] if (asked.get("sliding_window") or docs.longest) < docs.longest else []
    if refused:
        raise ValueError(
            f"backbone.config: its attention has {', '.join(refused)}, which packed training does not do for documents "
            f"of {docs.longest} positions; take another model, or for sliding_window a shorter batch.length"
        )


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """No mask where `docs` or causality alone says it all; sdpa's own for left-padded generation."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)


def _check_packs(whole: nn.Module) -> None:
    """Refuse a model in which one document of a packed row would see another: that would train, and be wrong."""
    config, base = whole.config, whole.base_model
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    own_attention = not whole._supports_attention_backend or whole._is_stateful or kinds
    if own_attention or not hasattr(base, "layers") or not hasattr(base, "embed_tokens"):
        raise ValueError(
            f"backbone.config: {config.model_type} is not a plain stack of attention layers behind transformers' "
            "attention interface; take one that is, such as llama, mistral, phi3, qwen2, qwen3 or olmo2"
        )
    bent = [key for key in BENDS_LOGITS if getattr(config, key, None) not in (None, 1, False)]
    if bent:
        raise ValueError(
            f"backbone.config: {config.model_type} has {', '.join(bent)}, which scales or caps logits after the head; "
            "that is not done here: take another model"
        )


class CausalLM(nn.Module):
    """A transformers causal LM under its own parameter names (`model.layers.0...`, `lm_head.weight`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hf_config = architecture({**config, **NO_IDS})
        known = {"model_type", *type(hf_config)().to_dict(), *hf_config.attribute_map}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(
                f"backbone.config: {config['model_type']} has no {', '.join(unknown)}; "
                f"see transformers' {type(hf_config).__name__}"
            )
        with refusing():
            whole = AutoModelForCausalLM.from_config(hf_config, attn_implementation=ATTENTION)
        _check_packs(whole)
        self.base_name: str = whole.base_model_prefix
        self.add_module(self.base_name, whole.base_model)
        lean(self.base)
        cast_once(self.base)
        self.lm_head = whole.get_output_embeddings()
        self.width: int = hf_config.hidden_size
        self.reach = steady_reach(hf_config)
        self.hf_config = hf_config

    @property
    def base(self) -> nn.Module:
        """The decoder without its head."""
        return self.get_submodule(self.base_name)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.base.layers

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T H"]:
        """Embeddings of token ids."""
        return self.base.get_input_embeddings()(ids)

    def hidden(
        self, embeds: Float[Tensor, "B T H"], segments: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """Final hidden states; equal positive segments see each other, causally."""
        docs = self._documents(embeds, segments)
        if docs.longest > self.reach:
            raise ValueError(
                "backbone.config: its rotary positions change, for all documents of a pack, with one of more positions "
                f"than {self.reach}, and here is one of {docs.longest}; take another model, or a shorter batch.length"
            )
        places = positions.masked_fill(segments == 0, 0)  # nor may padding be what reaches so far
        return self.base(inputs_embeds=embeds, position_ids=places, use_cache=False, docs=docs).last_hidden_state

    def _documents(self, embeds: Float[Tensor, "B T H"], segments: Int[Tensor, "B T"]) -> Buckets | Runs:
        device = embeds.device
        is_autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if is_autocast else embeds.dtype
        drops = self.base.training and bool(getattr(self.hf_config, "attention_dropout", 0.0))
        width = head_width(self.hf_config)
        # Latent attention has values of another width than queries, which varlen does not take.
        is_even = getattr(self.hf_config, "v_head_dim", width) == width
        kernel = kernel_for(device, dtype, width, drops) if is_even else "buckets"
        return runs(segments) if kernel == "varlen" else buckets(segments)

    def head(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Logits of chosen hidden states."""
        return self.lm_head(hidden)

    def extend(
        self,
        embeds: Float[Tensor, "B T H"],
        mask: Int[Tensor, "B S"],
        cache: DynamicCache | None,
    ) -> tuple[Float[Tensor, "B T H"], DynamicCache]:
        """Final hidden states of T further positions after a cache; `mask` is 0 on left padding, over all S so far."""
        # Where all that was is seen, or all up to oneself from the beginning, no mask need say so: that is faster. What
        # a layer's window leaves out is left out of its cache, but not of the first positions.
        window = getattr(self.hf_config, "sliding_window", None) or math.inf
        is_whole = cache is None and embeds.shape[1] <= window
        is_plain = (is_whole or embeds.shape[1] == 1) and bool(mask.all())
        cache = DynamicCache(config=self.hf_config) if cache is None else cache
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        out = self.base(
            inputs_embeds=embeds,
            attention_mask=None if is_plain else mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            docs="cached",
        )
        return out.last_hidden_state, cache

    def tied(self) -> Iterator[tuple[str, str]]:
        """(name, name of the tensor it shares) pairs."""
        if self.lm_head.weight is self.base.get_input_embeddings().weight:
            yield "lm_head.weight", f"{self.base_name}.embed_tokens.weight"


def steady_reach(config: PreTrainedConfig) -> float:
    """Positions up to which a document's rotary positions are its own.

    Those of type longrope and dynamic change with the largest position of a call: beyond this, with a neighbour's.
    """
    said = getattr(config, "rope_parameters", None) or {}
    each = [said] if "rope_type" in said else [one for one in said.values() if isinstance(one, dict)]
    bounds = {"longrope": "original_max_position_embeddings", "dynamic": "max_position_embeddings"}
    found = [
        rope.get(bounds[rope["rope_type"]]) or getattr(config, bounds[rope["rope_type"]])
        for rope in each
        if rope.get("rope_type") in bounds
    ]
    return min(found, default=math.inf)


def head_width(config: PreTrainedConfig) -> int:
    """D, the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@cache
def sizes_of(config: str) -> tuple[float, float, float]:
    """What a forward pass costs, of a configuration in JSON.

    (multiply-adds of the layers at one position, FLOPs of all attention for one pair of positions, multiply-adds of the
    head at one position.)
    """
    with torch.device("meta"):
        model = CausalLM(json.loads(config))
    found = model.hf_config
    experts = getattr(found, "num_experts", None) or getattr(found, "num_local_experts", None) or 1
    share = (getattr(found, "num_experts_per_tok", None) or 1) / experts
    layers = sum(
        parameter.numel() * (share if parameter.ndim == 3 else 1)
        for parameter in model.blocks.parameters()
        if parameter.ndim > 1
    )
    pair = 4.0 * len(model.blocks) * found.num_attention_heads * head_width(found)
    return layers, pair, model.lm_head.weight.numel()
