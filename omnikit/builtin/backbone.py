"""The `hf_causal_lm` backbone's module: a transformers causal LM, with attention that follows `segments`.

Letters: B rows of T positions, H width, N documents, S the longest document of a bucket, A attention heads, D head
width.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "omnikit_documents"
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


class Documents(NamedTuple):
    """Where the documents of flattened rows lie, in buckets of similar length, so that no T x T mask is needed."""

    buckets: tuple[Int[Tensor, "N S"], ...]
    """Flat positions of each document, its last position repeated on the right."""
    order: Int[Tensor, " BT"]
    """For each flat position, its row in the buckets' outputs end to end; padding points at the row after the last."""


def documents(segments: Int[Tensor, "B T"]) -> Documents:
    """Where equal positive runs of `segments` lie. Documents of like length (to a factor of two) share a bucket."""
    rows, length = segments.shape
    # A document never continues on the next row, so row boundaries are changes too.
    breaks = torch.ones_like(segments, dtype=torch.bool)
    breaks[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = breaks.flatten().nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([rows * length])])
    real = segments.flatten()[starts] > 0
    starts, lengths = starts[real], (ends - starts)[real]
    sizes = torch.ceil(torch.log2(lengths.double())).long()
    order = torch.full((rows * length,), -1, device=segments.device)
    buckets, used = [], 0
    for size in sizes.unique().tolist():
        first, count = starts[sizes == size], lengths[sizes == size]
        offsets = torch.arange(int(count.max()), device=segments.device)
        bucket = first[:, None] + torch.minimum(offsets[None, :], count[:, None] - 1)
        inside = offsets[None, :] < count[:, None]
        order[bucket[inside]] = used + torch.arange(bucket.numel(), device=segments.device).view_as(bucket)[inside]
        buckets.append(bucket)
        used += bucket.numel()
    order[order < 0] = used
    return Documents(tuple(buckets), order)


def _attend(
    module: nn.Module,
    query: Float[Tensor, "B A T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    docs: Documents | None = None,
    **kwargs: Any,  # noqa: ANN401  (transformers passes what a model's layers know)
) -> tuple[Float[Tensor, "B T A D"], None]:
    """transformers' attention interface. Without `docs` (generation with a cache) it is transformers' own sdpa."""
    if docs is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    _check_full(docs, kwargs)
    rows, heads, length, _ = query.shape
    # Rotary embeddings leave query and key in float32 under autocast.
    states = (query.to(value.dtype), key.to(value.dtype), value)
    flat = [one.transpose(1, 2).reshape(rows * length, -1, one.shape[-1]) for one in states]
    outputs = []
    for bucket in docs.buckets:
        # Right-padding is harmless under a causal mask: no real position sees it, and its own output is dropped.
        q, k, v = (one.index_select(0, bucket.flatten()).unflatten(0, bucket.shape).transpose(1, 2) for one in flat)
        with sdpa_kernel(_kernels(q, bucket.shape[1])):
            attended = scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != q.shape[1]
            )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    outputs.append(value.new_zeros(1, heads, value.shape[-1]))
    return torch.cat(outputs).index_select(0, docs.order).unflatten(0, (rows, length)), None


def _check_full(docs: Documents, asked: dict[str, Any]) -> None:
    """Refuse what a layer asks of its attention beyond causality and is not done here."""
    longest = max((bucket.shape[1] for bucket in docs.buckets), default=0)
    refused = [name for name in ("softcap", "s_aux") if asked.get(name) is not None]
    refused += ["sliding_window"] if (asked.get("sliding_window") or longest) < longest else []
    if refused:
        raise ValueError(
            f"backbone.config: its attention has {', '.join(refused)}, which packed training does not do for documents "
            f"of {longest} positions; take another model, or for sliding_window a shorter batch.length"
        )


def _kernels(query: Tensor, length: int) -> list[SDPBackend]:
    """On a CPU, short documents in bfloat16 go three times as fast through the plain formula (`docs/log.md`)."""
    short = query.device.type == "cpu" and query.dtype == torch.bfloat16 and length <= 256
    return [SDPBackend.MATH] if short else KERNELS


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """No mask where `docs` or causality alone says it all; sdpa's own for left-padded generation."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turns what transformers raises about a configuration, of many kinds and lines, into one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone.config: {reason[:300]}; see transformers' documentation of the model") from error


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


class CausalLM(nn.Module):
    """A transformers causal LM under its own parameter names (`model.layers.0...`, `lm_head.weight`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        with _refusing():
            hf_config = AutoConfig.for_model(**config)
        unknown = sorted(set(config) - set(type(hf_config)().to_dict()) - {"model_type"})
        if unknown:
            raise ValueError(
                f"backbone.config: {config['model_type']} has no {', '.join(unknown)}; "
                f"see transformers' {type(hf_config).__name__}"
            )
        with _refusing():
            whole = AutoModelForCausalLM.from_config(hf_config, attn_implementation=ATTENTION)
        _check_packs(whole)
        self.base_name: str = whole.base_model_prefix
        self.add_module(self.base_name, whole.base_model)
        self.lm_head = whole.get_output_embeddings()
        self.width: int = hf_config.hidden_size
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
        return self.base(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, docs=documents(segments)
        ).last_hidden_state

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
        cache = DynamicCache(config=self.hf_config) if cache is None else cache
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        out = self.base(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return out.last_hidden_state, cache

    def tied(self) -> Iterator[tuple[str, str]]:
        """(name, name of the tensor it shares) pairs."""
        if self.lm_head.weight is self.base.get_input_embeddings().weight:
            yield "lm_head.weight", f"{self.base_name}.embed_tokens.weight"
