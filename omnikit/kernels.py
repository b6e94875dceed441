"""What transformers' layers can do in less time and memory, with the same numbers: attention on a CPU, and casts.

Letters: N sequences of S positions, A attention heads, K of them for keys and values, D head width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "omnikit_plain"
"""The name under which transformers' layers find `plain_attention`."""
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
) -> Float[Tensor, "N A S D"]:
    """Attention by its formula, which a CPU computes in bfloat16 several times as fast as SDPA up to 512 positions
    (`docs/log.md`). `mask` is added to the scaled scores.
    """
    output: Tensor = _Plain.apply(query, key, value, scale, mask)
    return output


class _Plain(torch.autograd.Function):
    """Softmax of scaled products plus mask, times the values; all heads that share a key in one product.

    Of its S x S tensors it keeps the probabilities alone, in its inputs' type; autograd would keep four, SDPA's own in
    float32.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: Float[Tensor, "N A S D"],
        key: Float[Tensor, "N K S D"],
        value: Float[Tensor, "N K S D"],
        scale: float,
        mask: Float[Tensor, "#N 1 S S"] | None,
    ) -> Float[Tensor, "N A S D"]:
        (num, heads, length, width), kinds = query.shape, key.shape[1]
        with torch.autocast(query.device.type, enabled=False):  # softmax would be taken, and kept, in float32
            q = (query * scale).reshape(num * kinds, -1, width)
            k, v = (one.reshape(num * kinds, length, width) for one in (key, value))
            scores = torch.bmm(q, k.transpose(1, 2)).view(num, heads, length, length)
            weights = torch.softmax(scores if mask is None else scores.add_(mask), -1)
            output = torch.bmm(weights.view(num * kinds, -1, length), v)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return output.view(num, heads, length, width)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "N A S D"]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, weights = ctx.saved_tensors
        (num, heads, length, width), joined = grad.shape, (len(q), -1, grad.shape[2])
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.reshape(q.shape)
            to_value = torch.bmm(weights.view(joined).transpose(1, 2), grad)
            to_weights = torch.bmm(grad, v.transpose(1, 2)).view_as(weights)
            to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype).view(joined)
            to_query = torch.bmm(to_scores, k) * ctx.scale
            to_key = torch.bmm(to_scores.transpose(1, 2), q)
        shared = (num, -1, length, width)
        return to_query.view(num, heads, length, width), to_key.view(shared), to_value.view(shared), None, None


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
    device = states.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has none
    return states.to(torch.get_autocast_dtype(device)) if casts else states
