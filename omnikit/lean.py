"""Layers of transformers' language models that keep less for the backward pass, in fewer passes over memory.

Letters: B rows of T positions, A attention heads, D head width, H width, I width of an MLP.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from omnikit.kernels import autocast_type, in_parts

IN_CACHE = 2**17
"""Numbers that a CPU takes from a layer's first pass over them to its last, so that they stay in its cache."""
WINDOWS: dict[type[nn.Module], Callable[[Any], int | None]] = {
    LlamaAttention: lambda _: None,
    MistralAttention: lambda theirs: getattr(theirs.config, "sliding_window", None),
    Qwen2Attention: lambda theirs: theirs.sliding_window,
}
"""Layers whose forward pass is `RotaryAttention`'s, and where each has its window. Derived classes are others."""


def lean(model: nn.Module) -> None:
    """Exchange layers of a transformers model for ones with the same parameters that keep less for the backward pass.

    Root-mean-square norms, gated MLPs with SiLU, as llama has them, and the attention of llama, mistral and qwen2. In
    float32 their numbers are the same; in 16 bits norms that architectures round elsewhere (olmo2), or do not round
    before rotary positions (qwen3's of queries and keys), differ in last bits, and so do rotated states where the whole
    model, and not autocast, is in 16 bits.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _is_rms_norm(child):
                setattr(module, name, RMSNorm(child.weight, child.variance_epsilon))
            elif _is_gated(child):
                setattr(module, name, GatedMLP(child.gate_proj, child.up_proj, child.down_proj))
            elif _is_rotary(child):
                setattr(module, name, RotaryAttention(child, WINDOWS[type(child)](child)))


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


def _is_rotary(module: nn.Module) -> bool:
    children = dict(module.named_children())
    own = [name for name, _ in module.named_parameters(recurse=False)]
    linear = all(isinstance(child, nn.Linear) for child in children.values())
    return (
        type(module) in WINDOWS and linear and not own and children.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}
    )


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32, given in autocast's type where there is one, else in x's."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden_states: Float[Tensor, "*N H"]) -> Float[Tensor, "*N H"]:
        """The norm over the last dimension."""
        dtype = autocast_type(hidden_states) or hidden_states.dtype
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
        rows = states.reshape(-1, states.shape[-1])
        normed = torch.empty_like(rows, dtype=dtype)
        scale = torch.empty(len(rows), 1, device=rows.device)
        for part in in_parts(rows, IN_CACHE):
            wide = rows[part].float()
            scale[part] = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
            own = wide * scale[part]
            if states.dtype == dtype and dtype != torch.float32:
                own = own.to(dtype)
            normed[part] = weight * own
        ctx.save_for_backward(states, weight, scale)
        return normed.view(states.shape)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*N H"]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        states, weight, scale = ctx.saved_tensors
        rows, given = (one.reshape(-1, states.shape[-1]) for one in (states, grad))
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        to_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for part in in_parts(rows, IN_CACHE):
            wide, own, factor = rows[part].float(), given[part].float(), scale[part]
            if to_weight is not None:
                to_weight += (wide * factor).mul_(own).sum(0)
            if to_rows is not None:
                own = own * weight
                # With s = scale, the gradient is s g - x s^3 <g, x> / H.
                inner = torch.linalg.vecdot(own, wide).unsqueeze(-1)
                to_rows[part] = own.mul_(factor).addcmul_(wide, factor.pow(3).mul_(inner), value=-1 / rows.shape[-1])
        to_states = None if to_rows is None else to_rows.view(states.shape)
        return to_states, None if to_weight is None else to_weight.to(weight.dtype), None, None


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


class RotaryAttention(nn.Module):
    """Causal attention with rotary positions, through transformers' interface, and on its cache where one is given."""

    def __init__(self, theirs: nn.Module, window: int | None) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            getattr(theirs, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        # What attention functions of transformers read of their module.
        self.config, self.layer_idx, self.is_causal = theirs.config, theirs.layer_idx, theirs.is_causal
        self.head_dim, self.num_key_value_groups = theirs.head_dim, theirs.num_key_value_groups
        self.scaling, self.attention_dropout, self.window = theirs.scaling, theirs.attention_dropout, window

    def forward(
        self,
        hidden_states: Float[Tensor, "B T H"],
        position_embeddings: tuple[Float[Tensor, "#B T D"], Float[Tensor, "#B T D"]],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,  # noqa: ANN401  (what the model's call was given, for the attention function)
    ) -> tuple[Float[Tensor, "B T H"], Tensor | None]:
        """The layer's output, and its attention's weights where the function gives them."""
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, self.head_dim)) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (_Rotated.apply(one, *position_embeddings) for one in (query, key))
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attended, weights = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.window,
            **kwargs,
        )
        return self.o_proj(attended.flatten(2)), weights


class _Rotated(torch.autograd.Function):
    """x cos + turned(x) sin in float32, given in x's type (RoPE, arXiv 2104.09864, section 3.4.2).

    turned(a, b) is (-b, a), of halves of a head. Under autocast transformers' own gives float32, which attention casts:
    the numbers are the same.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        states: Float[Tensor, "B T A D"],
        cos: Float[Tensor, "#B T D"],
        sin: Float[Tensor, "#B T D"],
    ) -> Float[Tensor, "B T A D"]:
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "B T A D"]) -> tuple[Tensor, None, None]:  # noqa: ANN401
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None  # the way back of a rotation; both halves of sin are alike


def _rotated(
    states: Float[Tensor, "B T A D"], cos: Float[Tensor, "#B T D"], sin: Float[Tensor, "#B T D"]
) -> Float[Tensor, "B T A D"]:
    half, wider = states.shape[-1] // 2, torch.promote_types(states.dtype, torch.float32)
    rows = states.flatten(0, 1)
    cos, sin = (one.expand(len(states), -1, -1).flatten(0, 1).unsqueeze(1) for one in (cos, sin))
    rotated = torch.empty_like(rows)
    for part in in_parts(rows, IN_CACHE):
        wide = rows[part].to(wider)
        own = wide * cos[part]
        own[..., :half] -= wide[..., half:] * sin[part, :, :half]
        own[..., half:] += wide[..., :half] * sin[part, :, half:]
        rotated[part] = own
    return rotated.view(states.shape)
