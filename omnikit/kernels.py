"""What layers can do in less time and memory, with the same numbers: attention on a CPU, casts, frozen weights.

Letters: N sequences of S positions, A attention heads, K of them for keys and values, D head width.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd
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
    dtype = _autocast_type(states)
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


def _autocast_type(states: Tensor) -> torch.dtype | None:
    device = states.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has none
    return torch.get_autocast_dtype(device) if casts else None


# ------------------------------------------------------------------------------------------------------ norm and gate


def lean(model: nn.Module) -> None:
    """Exchange layers of a transformers model for ones with the same parameters that keep less for the backward pass.

    Root-mean-square norms, and gated MLPs with SiLU, as llama has them. In float32 their numbers are the same; in 16
    bits norms that architectures round elsewhere (olmo2), or do not round before rotary positions (qwen3's of queries
    and keys), differ in last bits.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _is_rms_norm(child):
                setattr(module, name, RMSNorm(child.weight, child.variance_epsilon))
            elif _is_gated(child):
                setattr(module, name, GatedMLP(child.gate_proj, child.up_proj, child.down_proj))


def _is_rms_norm(module: nn.Module) -> bool:
    own = [name for name, _ in module.named_parameters()]
    return type(module).__name__.endswith("RMSNorm") and own == ["weight"] and hasattr(module, "variance_epsilon")


def _is_gated(module: nn.Module) -> bool:
    children = dict(module.named_children())
    is_silu = type(children.pop("act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    linear = all(isinstance(child, nn.Linear) for child in children.values())
    if any("dropout" in name and share for name, share in vars(module).items()):  # seed_oss: its forward drops some
        return False
    return is_silu and linear and children.keys() == {"gate_proj", "up_proj", "down_proj"}


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32, given in autocast's type where there is one, else in x's."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden_states: Float[Tensor, "*N H"]) -> Float[Tensor, "*N H"]:
        """The norm over the last dimension."""
        dtype = _autocast_type(hidden_states) or hidden_states.dtype
        normed: Tensor = _RMSNorm.apply(hidden_states, self.weight, self.eps, dtype)
        return normed


class _RMSNorm(torch.autograd.Function):
    """Of its size it keeps the input alone, which the residual stream keeps anyway; autograd would keep three."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        states: Float[Tensor, "*N H"],
        weight: Float[Tensor, " H"],
        eps: float,
        dtype: torch.dtype,
    ) -> Float[Tensor, "*N H"]:
        wide = states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(states, weight, scale)
        normed = wide * scale
        if states.dtype == dtype and dtype != torch.float32:
            normed = normed.to(dtype)
        return (weight * normed).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*N H"]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        states, weight, scale = ctx.saved_tensors
        wide, to_weight = states.float(), None
        if ctx.needs_input_grad[1]:
            to_weight = (wide * scale).mul_(grad).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None, None
        given = grad * weight if weight.dtype == torch.float32 else grad.float() * weight
        # With s = scale, the gradient is s g - x s^3 <g, x> / H.
        inner = torch.linalg.vecdot(given, wide).unsqueeze(-1)
        to_states = given.mul_(scale).addcmul_(wide, scale.pow(3).mul_(inner), value=-1 / states.shape[-1])
        return to_states.to(states.dtype), to_weight, None, None


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, hidden_states: Float[Tensor, "*N H"]) -> Float[Tensor, "*N H"]:
        """The MLP at every position."""
        gated: Tensor = _Gated.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states))
        return self.down_proj(gated)


class _Gated(torch.autograd.Function):
    """silu(gate) * up, of which the inputs alone are kept: autograd would keep the activation too."""

    @staticmethod
    def forward(ctx: Any, gate: Float[Tensor, "*N I"], up: Float[Tensor, "*N I"]) -> Float[Tensor, "*N I"]:  # noqa: ANN401
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*N I"]) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return to_gate, nn.functional.silu(gate).mul_(grad)
