"""Causal attention within the documents of packed rows, and never a T x T mask.

Letters: B rows of T positions, N documents, S places for each document of a bucket, A attention heads, K of them for
keys and values, D head width, L and M rows of any places.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from omnikit.kernels import ALIGN, plain_attention

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
PLAIN = 1024
"""Positions up to which a CPU computes a document's attention in bfloat16 by the formula. It is faster than flash
beyond, too, but keeps probabilities, which grow with the square of the length."""


class Buckets(NamedTuple):
    """Where the documents of flattened rows lie, in buckets of similar length, so that no T x T mask is needed."""

    members: tuple[Int[Tensor, "N S"], ...]
    """Flat positions of each document; places to the right of shorter ones point at the position after the last. S is
    the longest's length, rounded up."""
    order: Int[Tensor, " BT"]
    """For each flat position, its row in the buckets' outputs end to end; padding points at the row after the last."""
    longest: int
    """Positions of the longest document."""


class Runs(NamedTuple):
    """Where the documents of flattened rows begin and end; a stretch of padding is one too, which nothing reads."""

    bounds: Int[Tensor, " N+1"]
    """Flat positions at which each begins, and the end of the last (int32)."""
    widest: int
    """Positions of the longest, be it padding."""
    longest: int
    """Positions of the longest document."""


def kernel_for(device: torch.device, dtype: torch.dtype, head_width: int, drops: bool) -> Literal["varlen", "buckets"]:
    """The attention that this machine has for states of this kind.

    `varlen` is torch's flash attention over documents end to end: on an NVIDIA GPU from Ampere on, in half precision,
    for heads of a multiple of 8 and at most 192 channels (wider ones have no backward pass on every such GPU), without
    dropout. Elsewhere `buckets`: scaled-dot-product attention over documents of similar length. Unmeasured on a GPU.
    """
    fits = dtype in (torch.float16, torch.bfloat16) and head_width % 8 == 0 and head_width <= 192 and not drops
    return "varlen" if fits and device.type == "cuda" and _has_flash(device) else "buckets"


def _has_flash(device: torch.device) -> bool:
    is_built = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    return is_built and torch.cuda.get_device_capability(device) >= (8, 0)


def runs(segments: Int[Tensor, "B T"]) -> Runs:
    """Where equal runs of `segments` lie, end to end."""
    starts = _starts(segments)
    bounds = torch.cat([starts, starts.new_tensor([segments.numel()])])
    lengths = bounds.diff()
    widest, longest = torch.stack([lengths.max(), (lengths * (segments.flatten()[starts] > 0)).max()]).tolist()
    return Runs(bounds.int(), widest, longest)


def buckets(segments: Int[Tensor, "B T"]) -> Buckets:
    """Where equal positive runs of `segments` lie. Documents of like length (to a factor of two) share a bucket."""
    starts = _starts(segments)
    ends = torch.cat([starts[1:], starts.new_tensor([segments.numel()])])
    real = segments.flatten()[starts] > 0
    starts, lengths = starts[real], (ends - starts)[real]
    sizes = torch.ceil(torch.log2(lengths.double())).long()
    order = torch.full((segments.numel(),), -1, device=segments.device)
    members, used, longest = [], 0, 0
    for size in sizes.unique().tolist():
        first, count = starts[sizes == size], lengths[sizes == size]
        longest = int(count.max())
        offsets = torch.arange(-(-longest // ALIGN) * ALIGN, device=segments.device)
        inside = offsets[None, :] < count[:, None]
        bucket = torch.where(inside, first[:, None] + offsets[None, :], segments.numel())
        order[bucket[inside]] = used + torch.arange(bucket.numel(), device=segments.device).view_as(bucket)[inside]
        members.append(bucket)
        used += bucket.numel()
    order[order < 0] = used
    return Buckets(tuple(members), order, longest)


def _starts(segments: Int[Tensor, "B T"]) -> Int[Tensor, " N"]:
    """Flat positions at which a run begins."""
    # A document never continues on the next row, so row boundaries are changes too.
    breaks = torch.ones_like(segments, dtype=torch.bool)
    breaks[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return breaks.flatten().nonzero().flatten()


def attend(
    query: Float[Tensor, "B A T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    docs: Buckets | Runs,
    scale: float | None,
    dropout: float,
) -> Float[Tensor, "B T A D"]:
    """Each document's own causal attention."""
    rows, _, length, _ = query.shape
    # Rotary embeddings leave query and key in float32 under autocast.
    states = (query.to(value.dtype), key.to(value.dtype), value)
    flat = [one.transpose(1, 2).reshape(rows * length, -1, one.shape[-1]) for one in states]
    attended = _by_runs(*flat, docs, scale) if isinstance(docs, Runs) else _by_buckets(*flat, docs, scale, dropout)
    return attended.unflatten(0, (rows, length))


def _by_runs(
    query: Float[Tensor, "BT A D"],
    key: Float[Tensor, "BT K D"],
    value: Float[Tensor, "BT K D"],
    docs: Runs,
    scale: float | None,
) -> Float[Tensor, "BT A D"]:
    bounds, widest = docs.bounds, docs.widest
    is_grouped = key.shape[1] != query.shape[1]
    return varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        widest,
        widest,
        scale=scale,
        window_size=(-1, 0),  # all before, nothing after: causal
        enable_gqa=is_grouped,
    )


def _by_buckets(
    query: Float[Tensor, "BT A D"],
    key: Float[Tensor, "BT K D"],
    value: Float[Tensor, "BT K D"],
    docs: Buckets,
    scale: float | None,
    dropout: float,
) -> Float[Tensor, "BT A D"]:
    # Right-padding is harmless under a causal mask: no real position sees it, and its own output is dropped.
    places = torch.cat([query.new_empty(0, dtype=torch.long), *(bucket.flatten() for bucket in docs.members)])
    sizes = [bucket.numel() for bucket in docs.members]
    queries, keys, values = (_Moved.apply(one, places, docs.order).split(sizes) for one in (query, key, value))
    outputs = []
    for bucket, *states in zip(docs.members, queries, keys, values, strict=True):
        q, k, v = (one.unflatten(0, bucket.shape).transpose(1, 2) for one in states)
        if _is_plain(q, dropout):
            attended = plain_attention(q, k, v, scale or q.shape[-1] ** -0.5, is_causal=True)
        else:
            with sdpa_kernel(BACKENDS):
                attended = scaled_dot_product_attention(
                    q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
                )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    if not outputs:  # all is padding: gradients are zero, but there, or ranks would not agree on whose there are
        nothing = value.new_zeros(0, query.shape[1], value.shape[-1])
        outputs.append(nothing + (query[:0].sum() + key[:0].sum() + value[:0].sum()))
    return _Moved.apply(torch.cat(outputs), docs.order, places)


class _Moved(torch.autograd.Function):
    """Rows in other places: row i of the output is row `there[i]`, or zeros where that is the row after the last.

    `back` is the way back, by which gradients go: no row is needed twice, so there is nothing to sum.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        rows: Float[Tensor, "M A D"],
        there: Int[Tensor, " L"],
        back: Int[Tensor, " M"],
    ) -> Float[Tensor, "L A D"]:
        ctx.save_for_backward(back)
        return _moved(rows, there)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "L A D"]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (back,) = ctx.saved_tensors
        return _moved(grad, back), None, None


def _moved(rows: Float[Tensor, "M A D"], there: Int[Tensor, " L"]) -> Float[Tensor, "L A D"]:
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, there)


def _is_plain(query: Float[Tensor, "N A S D"], dropout: float) -> bool:
    """On a CPU, documents in bfloat16 go several times as fast through the formula written out (`docs/log.md`)."""
    is_cpu_half = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return is_cpu_half and not dropout and query.shape[2] <= PLAIN
