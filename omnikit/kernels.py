"""What layers can do in less time and memory, with the same numbers: attention on a CPU, casts, frozen weights.

Letters: N sequences of S positions, A attention heads, K of them for keys and values, D head width.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "omnikit_plain"
"""The name under which transformers' layers find `plain_attention`."""
BLOCK = 256
"""Queries, at most, that causal attention takes at a time."""
ALIGN = 16
"""Keys by which blocks of scores, and buckets of documents, grow: what a CPU takes at once (`docs/log.md`)."""
SHARING = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
"""Names of linear layers that take the same input, which is all that their module does with it."""


def attention_for(device: torch.device) -> str:
    """transformers' name of the attention that an encoder should have on this device."""
    return ATTENTION if device.type == "cpu" else "sdpa"


def plain_attention(
    query: Float[Tensor, "N A S D"],
    key: Float[Tensor, "N K S D"],
    value: Float[Tensor, "N K S D"],
    scale: float,
    mask: Float[Tensor, "#N 1 S S"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "N A S D"]:
    """Attention by its formula, which a CPU computes in bfloat16 faster than SDPA does (`docs/log.md`).

    `mask` is added to the scaled scores; there is none where it `is_causal`.
    """
    assert mask is None or not is_causal
    output: Tensor = _Plain.apply(query, key, value, scale, mask, is_causal)
    return output


class _Plain(torch.autograd.Function):
    """Softmax of scaled products plus mask, times the values; all heads that share a key in one product.

    Of its tensors of scores it keeps the probabilities alone, in its inputs' type; autograd would keep four, SDPA's own
    in float32. Where it is causal, queries are taken in blocks, and of what a block cannot see little is computed.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: Float[Tensor, "N A S D"],
        key: Float[Tensor, "N K S D"],
        value: Float[Tensor, "N K S D"],
        scale: float,
        mask: Float[Tensor, "#N 1 S S"] | None,
        is_causal: bool,
    ) -> Float[Tensor, "N A S D"]:
        (num, heads, length, width), kinds = query.shape, key.shape[1]
        blocks, kept, outputs = _blocks(length, is_causal), [], []
        with torch.autocast(query.device.type, enabled=False):  # softmax would be taken, and kept, in float32
            q = torch.mul(query, scale, out=query.new_empty(query.shape)).view(num * kinds, -1, length, width)
            k, v = (one.reshape(num * kinds, length, -1) for one in (key, value))
            for begin, end, seen in blocks:
                own = q[:, :, begin:end].reshape(num * kinds, -1, width)
                scores = torch.bmm(own, k[:, :seen].transpose(1, 2)).view(num, heads, end - begin, seen)
                if is_causal:
                    scores[..., begin:] += q.new_full((end - begin, end - begin), -torch.inf).triu_(1)
                elif mask is not None:
                    scores += mask
                kept.append(torch.softmax(scores, -1).view(num * kinds, -1, seen))
                outputs.append(torch.bmm(kept[-1], v[:, :seen]).view(num, heads, end - begin, -1))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.blocks = scale, blocks
        return _joined(outputs)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "N A S D"]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, *kept = ctx.saved_tensors
        given = grad.reshape(*q.shape[:3], -1)
        to_queries, to_key, to_value = [], None, None
        with torch.autocast(grad.device.type, enabled=False):
            for (begin, end, seen), weights in zip(reversed(ctx.blocks), reversed(kept), strict=True):
                own, out = (one[:, :, begin:end].reshape(len(q), -1, one.shape[-1]) for one in (q, given))
                to_value = _added(to_value, torch.bmm(weights.transpose(1, 2), out))
                to_weights = torch.bmm(out, v[:, :seen].transpose(1, 2))
                to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                to_own = torch.bmm(to_scores, k[:, :seen]).mul_(ctx.scale)
                to_queries.append(to_own.view(*grad.shape[:2], end - begin, -1))
                to_key = _added(to_key, torch.bmm(to_scores.transpose(1, 2), own))
        shared = (one.to(q.dtype).unflatten(0, (len(grad), -1)) for one in (to_key, to_value))
        return _joined(to_queries[::-1]), *shared, None, None, None


def _joined(blocks: list[Float[Tensor, "N A _ D"]]) -> Float[Tensor, "N A S D"]:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """Gradients of keys or values, with those of one block more, which saw the first of them. The first saw all."""
    if total is None:
        return part
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    total[:, : part.shape[1]] += part
    return total


def aligned(length: int) -> int:
    """The length, rounded up to what a CPU takes at once."""
    return -(-length // ALIGN) * ALIGN


def block_of(length: int) -> int:
    """Queries, of so many, that causal attention takes at a time: blocks are alike."""
    return aligned(-(-length // max(-(-length // BLOCK), 1)))


def _blocks(length: int, is_causal: bool) -> list[tuple[int, int, int]]:
    """Where blocks of queries begin and end, and up to which key they see any."""
    size = block_of(length)
    if not is_causal or length <= size:
        return [(0, length, length)]
    return [(begin, end, end) for begin, end in pairwise([*range(0, length, size), length])]


def in_parts(rows: Tensor, most: int) -> Iterator[slice]:
    """Rows of about `most` numbers, which a CPU takes through several passes while they are in its cache; else all.

    A compiler makes one pass of them itself.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(None)
        return
    step = max(most // max(rows[:1].numel(), 1), 1)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


@torch.compiler.disable  # its backward pass has shapes of its own
def _for_layers(
    module: nn.Module,
    query: Float[Tensor, "N A S D"],
    key: Float[Tensor, "N K S D"],
    value: Float[Tensor, "N K S D"],
    attention_mask: Float[Tensor, "#N 1 S S"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401  (transformers passes what a model's layers know)
) -> tuple[Float[Tensor, "N S A D"], None]:
    """transformers' attention interface, for layers without dropout."""
    if dropout:
        raise ValueError(f"{type(module).__name__}: attention dropout {dropout} is not done here; build it with 0")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return plain_attention(query, key, value, scale, attention_mask).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _for_layers)


def cast_once(model: nn.Module) -> None:
    """Have layers that share an input share its cast to autocast's type, too: autocast casts, and keeps, one for each.

    Outputs are bitwise the same; the input's gradient is summed in autocast's type. Without autocast nothing happens.
    """
    for module in model.modules():
        linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
        if any(names <= linear for names in SHARING):
            module.register_forward_pre_hook(_cast, with_kwargs=True)


def _cast(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (_as_autocast(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _as_autocast(kwargs["hidden_states"])}


def _as_autocast(states: Tensor) -> Tensor:
    dtype = autocast_type(states)
    return states if dtype is None else states.to(dtype)


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the frozen weights of linear layers and convolutions in autocast's type, the only one they are used in.

    Outputs are bitwise the same, for half of the memory, and no step casts them. A weight that other modules use too,
    as a tied embedding, stays as it is. Of a sharded model before its first forward pass.
    """
    fits: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        is_cast = isinstance(module, (nn.Linear, _ConvNd))
        for parameter in module.parameters(recurse=False):
            fits[parameter] = fits.get(parameter, True) and is_cast and not parameter.requires_grad
    for parameter in [parameter for parameter, does in fits.items() if does]:
        held = parameter.to(dtype)
        if isinstance(parameter, DTensor):  # of which `data` would change the wrapper alone
            torch.utils.swap_tensors(parameter, nn.Parameter(held, requires_grad=False))
        else:
            parameter.data = held


def autocast_type(states: Tensor) -> torch.dtype | None:
    """What autocast makes of these states in a matrix product, where it is on."""
    device = states.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has none
    return torch.get_autocast_dtype(device) if casts else None
