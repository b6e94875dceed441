"""Causal attention within the documents of packed rows, and never a T x T mask.

Letters: B rows of T positions, N documents, S places for each document of a bucket, A attention heads, K of them for
keys and values, D head width, L and M rows of any places, V places without a row.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from omnikit.kernels import aligned, block_of, plain_attention

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
PLAIN = 1024
"""Positions up to which a CPU computes a document's attention in bfloat16 by the formula. It is faster than flash
beyond, too, but keeps probabilities, which grow with the square of the length."""
IN_CACHE = 2**17
"""Scores of a head, about, that a CPU computes at once: those of all heads should stay in its cache."""


class Move(NamedTuple):
    """Where rows go."""

    source: Int[Tensor, " L"]
    """For each place the row that goes there."""
    void: Int[Tensor, " V"]
    """Places to which no row goes, and which hold zeros."""


@dataclass(eq=False)
class Buckets:
    """Where the documents of flattened rows lie, in buckets of similar length, so that no T x T mask is needed.

    No tuple: torch's compiler would look into it, and compile a block anew for each pack.
    """

    shapes: tuple[tuple[int, int], ...]
    """(N, S) of each. Documents lie at the left of their places; S is the longest's length, rounded up."""
    there: Move
    """From flat positions to the buckets' places, end to end."""
    back: Move
    longest: int
    """Positions of the longest document."""


@dataclass(eq=False)
class Runs:
    """Where the documents of flattened rows begin and end; a stretch of padding is one too, which nothing reads.

    No tuple, as `Buckets` is none.
    """

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
    """Where equal positive runs of `segments` lie. Those of like length (to a factor of two) share buckets."""
    starts = _starts(segments)
    ends = torch.cat([starts[1:], starts.new_tensor([segments.numel()])])
    real = segments.flatten()[starts] > 0
    starts, lengths = starts[real], (ends - starts)[real]
    lengths, order = lengths.sort(descending=True, stable=True)
    starts, sizes = starts[order], torch.ceil(torch.log2(lengths.double())).long()
    shapes, places = [], [starts.new_empty(0)]
    for alike in sizes.unique().flip(0).tolist():
        first, count = starts[sizes == alike], lengths[sizes == alike]
        while len(first):
            width = aligned(int(count[0]))
            number = max(IN_CACHE // (width * block_of(width)), 1) if segments.device.type == "cpu" else len(first)
            offsets = torch.arange(width, device=segments.device)
            bucket = first[:number, None] + offsets
            places.append(torch.where(offsets < count[:number, None], bucket, -1).flatten())
            shapes.append((len(bucket), width))
            first, count = first[number:], count[number:]
    there = torch.cat(places)
    filled = (there >= 0).nonzero().flatten()
    back = torch.full((segments.numel(),), -1, device=segments.device)
    back[there[filled]] = filled
    return Buckets(tuple(shapes), _move(there), _move(back), int(lengths[0]) if len(lengths) else 0)


def _move(rows: Int[Tensor, " L"]) -> Move:
    """The move of the row that is said for each place; -1 is none."""
    return Move(rows.clamp(min=0), (rows < 0).nonzero().flatten())


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
    # transformers' own rotary positions leave query and key in float32 under autocast.
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
    sizes = [number * width for number, width in docs.shapes]
    queries, keys, values = (_Moved.apply(one, docs.there, docs.back).split(sizes) for one in (query, key, value))
    outputs = []
    for shape, *states in zip(docs.shapes, queries, keys, values, strict=True):
        q, k, v = (one.unflatten(0, shape).transpose(1, 2) for one in states)
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
    return _Moved.apply(torch.cat(outputs), docs.back, docs.there)


class _Moved(torch.autograd.Function):
    """Rows in other places. Gradients go the way back: no row is needed twice, so there is nothing to sum."""

    @staticmethod
    def forward(ctx: Any, rows: Float[Tensor, "M A D"], there: Move, back: Move) -> Float[Tensor, "L A D"]:  # noqa: ANN401
        ctx.save_for_backward(*back)
        return _moved(rows, there)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "L A D"]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return _moved(grad, Move(*ctx.saved_tensors)), None, None


def _moved(rows: Float[Tensor, "M A D"], to: Move) -> Float[Tensor, "L A D"]:
    if not len(rows):
        return rows.new_zeros(len(to.source), *rows.shape[1:])
    return rows.index_select(0, to.source).index_fill_(0, to.void, 0)


def _is_plain(query: Float[Tensor, "N A S D"], dropout: float) -> bool:
    """On a CPU, documents in bfloat16 go several times as fast through the formula written out (`docs/log.md`)."""
    is_cpu_half = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return is_cpu_half and not dropout and query.shape[2] <= PLAIN
