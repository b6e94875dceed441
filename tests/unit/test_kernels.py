"""Attention by the formula, as a CPU computes it in bfloat16, beside torch's; one cast for what shares an input; norms
and gates that keep less."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from transformers.models.seed_oss.configuration_seed_oss import SeedOssConfig
from transformers.models.seed_oss.modeling_seed_oss import SeedOssMLP

from omnikit.builtin.attention import PLAIN, _is_plain
from omnikit.kernels import GatedMLP, RMSNorm, attention_for, cast_once, hold_frozen, lean, plain_attention


def causal(length, dtype):
    return torch.full((1, 1, length, length), -torch.inf, dtype=dtype).triu(1)


@pytest.mark.parametrize("kinds", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("is_causal", [True, False])
def test_the_formula_and_its_gradients_are_torchs(kinds, length, is_causal):
    torch.manual_seed(0)
    shapes = [(2, heads, length, 8) for heads in (9, kinds, kinds)]
    ours, theirs = ([torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes] for _ in range(2))
    for own, other in zip(ours, theirs, strict=True):
        other.data.copy_(own.data)
    weights = torch.randn(2, 9, length, 8, dtype=torch.float64)
    found = plain_attention(*ours, 0.3, causal(length, torch.float64) if is_causal else None)
    expected = scaled_dot_product_attention(*theirs, is_causal=is_causal, scale=0.3, enable_gqa=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        assert own.grad.any() or length == 1
        assert torch.allclose(own.grad, other.grad, rtol=0, atol=1e-12)


def test_in_bfloat16_it_is_as_near_to_the_truth_as_torchs_own():
    torch.manual_seed(1)
    exact = [torch.randn(3, heads, 64, 16) for heads in (8, 2, 2)]
    truth = scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    half = [one.bfloat16() for one in exact]
    ours = plain_attention(*half, 0.25, causal(64, torch.bfloat16))
    theirs = scaled_dot_product_attention(*half, is_causal=True, enable_gqa=True)
    assert ours.dtype == torch.bfloat16
    assert (ours - truth).abs().max() < 1.5 * (theirs - truth).abs().max() < 0.1


def test_it_is_for_short_documents_in_bfloat16_without_dropout():
    short = torch.zeros(1, 1, PLAIN, 4, dtype=torch.bfloat16)
    assert _is_plain(short, 0.0)
    assert not _is_plain(short, 0.1) and not _is_plain(short.float(), 0.0)
    assert not _is_plain(torch.zeros(1, 1, PLAIN + 1, 4, dtype=torch.bfloat16), 0.0)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16), nn.Linear(8, 16)
        self.seen = []

    def forward(self, hidden_states):
        self.seen.append(hidden_states.dtype)
        return self.gate_proj(hidden_states).sigmoid() * self.up_proj(hidden_states)


@pytest.mark.parametrize("named", [False, True])
def test_layers_that_share_an_input_share_its_cast(named):
    torch.manual_seed(0)
    model = nn.Sequential(Gated())
    states = torch.randn(5, 8)

    def call():
        given = states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = model[0](hidden_states=given) if named else model[0](given)
        output.float().square().sum().backward()
        return output, given.grad

    before, gradient = call()
    cast_once(model)
    after, shared = call()
    assert model[0].seen == [torch.float32, torch.bfloat16]
    assert torch.equal(before, after)
    assert shared.dtype == torch.float32 and shared.any()
    assert (shared - gradient).abs().max() <= 2**-7 * gradient.abs().max()
    model[0](states)
    assert model[0].seen[-1] == torch.float32, "without autocast nothing happens"


def test_a_module_that_does_more_with_its_input_is_left_alone():
    class Routed(Gated):
        def __init__(self):
            super().__init__()
            del self.up_proj
            self.router = nn.Linear(8, 16)

        def forward(self, hidden_states):
            self.seen.append(hidden_states.dtype)
            return self.gate_proj(hidden_states)

    cast_once(model := nn.Sequential(Routed()))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(5, 8))
    assert model[0].seen == [torch.float32]


def tower(frozen):
    """A convolution, a norm and three layers, of which the last shares its weight with an embedding."""
    torch.manual_seed(0)
    layers = {"embed": nn.Embedding(6, 8), "conv": nn.Conv1d(8, 8, 3, padding=1), "norm": nn.LayerNorm(8)}
    layers |= {"one": nn.Linear(8, 8), "two": nn.Linear(8, 8), "head": nn.Linear(8, 6, bias=False)}
    model = nn.ModuleDict(layers)
    model.head.weight = model.embed.weight
    for name in frozen:
        model[name].requires_grad_(False)
    return model


def through(model):
    """The tower's logits under autocast, and the gradients of what trains."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.embed(torch.arange(6))
        states = states + model.norm(model.conv(states.T).T)
        logits = model.head(model.two(model.one(states)).relu() + states)
    logits.float().square().sum().backward()
    return logits, {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("frozen", [("conv", "norm", "one"), ("embed", "conv", "norm", "two"), ()])
def test_frozen_weights_in_autocasts_type_change_no_bit(frozen):
    logits, gradients = through(tower(frozen))
    hold_frozen(model := tower(frozen), torch.bfloat16)
    held = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert held == {f"{name}.{kind}" for name in {"conv", "one", "two"} & {*frozen} for kind in ("weight", "bias")}
    assert model.head.weight is model.embed.weight and model.embed.weight.dtype == torch.float32
    found, again = through(model)
    assert torch.equal(found, logits) and found.dtype == logits.dtype
    assert gradients.keys() == again.keys() and gradients
    for name, gradient in gradients.items():
        assert torch.equal(again[name], gradient) and gradient.any(), name


def test_encoders_layers_find_it_on_a_cpu():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layer = ALL_ATTENTION_FUNCTIONS[attention_for(torch.device("cpu"))]
    states = [torch.randn(2, 3, 7, 4) for _ in range(3)]
    output, _ = layer(nn.Module(), *states, None, scaling=0.5)
    expected = scaled_dot_product_attention(*states, scale=0.5).transpose(1, 2)
    assert torch.allclose(output, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"attention dropout 0\.1 is not done here"):
        layer(nn.Module(), *states, None, scaling=0.5, dropout=0.1)
    assert attention_for(torch.device("cuda")) == "sdpa"


SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}


def theirs_and_ours(kind, dtype):
    torch.manual_seed(0)
    layer = LlamaRMSNorm(24, 1e-5) if kind == "norm" else LlamaMLP(LlamaConfig(**SIZES))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.3)
    theirs, ours = nn.Sequential(layer).to(dtype), nn.Sequential(copy.deepcopy(layer)).to(dtype)
    lean(ours)
    assert type(ours[0]) is (RMSNorm if kind == "norm" else GatedMLP)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return theirs, ours


@pytest.mark.parametrize("kind", ["norm", "mlp"])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(("dtype", "casts"), [(torch.float32, 0), (torch.float32, 1), (torch.bfloat16, 0)])
def test_norms_and_gates_are_transformers_own(kind, trains, dtype, casts):
    theirs, ours = theirs_and_ours(kind, dtype)
    outcomes = []
    for layer in (theirs, ours, copy.deepcopy(theirs).float()):
        layer.requires_grad_(trains)
        states = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
        states = states.to(next(layer.parameters()).dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(casts) and len(outcomes) < 2):
            output = layer(states)
        (output.float() * torch.linspace(-1, 1, 24)).sum().backward()
        gradients = [states.grad, *(parameter.grad for parameter in layer.parameters() if trains)]
        outcomes.append((output, [gradient.float() for gradient in gradients]))
    (expected, plain), (found, own), (_, exact) = outcomes
    assert torch.equal(found, expected.to(found.dtype)), "the numbers are the same"
    assert found.dtype == (torch.bfloat16 if casts else dtype)
    for gradient, other, truth in zip(own, plain, exact, strict=True):
        least = 1e-6 if found.dtype == torch.float32 else 2**-8
        error, theirs_error = ((one - truth).abs().max() / truth.abs().max() for one in (gradient, other))
        assert truth.any() and error <= max(1.5 * theirs_error, least)


@pytest.mark.parametrize(("kind", "most"), [("norm", 1.2), ("mlp", 2.2)])
def test_what_they_keep_is_their_input(kind, most):
    """In tensors of the size that goes through: transformers' own keep three of the gate's, two of the norm's."""
    kept = []
    for layer in theirs_and_ours(kind, torch.float32):
        layer.requires_grad_(kind == "norm")
        states = torch.randn(64, 24, requires_grad=True)
        sizes = {}
        own = {parameter.data_ptr() for parameter in layer.parameters()}

        def keep(tensor, sizes=sizes, own=own):
            if tensor.data_ptr() not in own:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = layer(states)
        assert output.requires_grad
        kept.append(sum(sizes.values()) / (64 * (24 if kind == "norm" else 40)))
    theirs, ours = kept
    assert ours <= most < theirs


def test_norms_and_gates_of_other_kinds_are_left_alone():
    config = LlamaConfig(**SIZES, hidden_act="gelu", attn_implementation="eager")
    layer = LlamaDecoderLayer(config, 0)
    layer.input_layernorm = GemmaRMSNorm(24)
    lean(layer)
    assert type(layer.mlp) is LlamaMLP and type(layer.input_layernorm) is GemmaRMSNorm
    assert type(layer.post_attention_layernorm) is RMSNorm


def test_a_gated_mlp_that_drops_some_of_what_it_gives_is_left_alone():
    kinds = []
    for share in (0.1, 0.0):
        block = nn.Sequential(SeedOssMLP(SeedOssConfig(**SIZES, num_hidden_layers=1, residual_dropout=share)))
        lean(block)
        kinds.append(type(block[0]))
    assert kinds == [SeedOssMLP, GatedMLP]
