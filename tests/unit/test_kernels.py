"""Attention by the formula, as a CPU computes it in bfloat16, beside torch's; one cast for what shares an input."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from omnikit import kernels
from omnikit.builtin.attention import PLAIN, _is_plain
from omnikit.kernels import attention_for, cast_once, hold_frozen, plain_attention


def causal(length, dtype):
    return torch.full((1, 1, length, length), -torch.inf, dtype=dtype).triu(1)


@pytest.mark.parametrize("kinds", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 2, 37, 48])
@pytest.mark.parametrize("masked", ["", "by a mask", "causal", "in blocks"])
def test_the_formula_and_its_gradients_are_torchs(monkeypatch, kinds, length, masked):
    monkeypatch.setattr(kernels, "BLOCK", 16 if masked == "in blocks" else 64)
    torch.manual_seed(0)
    shapes = [(2, heads, length, width) for heads, width in ((9, 8), (kinds, 8), (kinds, 6))]
    ours, theirs = ([torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes] for _ in range(2))
    for own, other in zip(ours, theirs, strict=True):
        other.data.copy_(own.data)
    weights = torch.randn(2, 9, length, 6, dtype=torch.float64)
    is_causal = masked in ("causal", "in blocks")
    mask = causal(length, torch.float64) if masked == "by a mask" else None
    found = plain_attention(*ours, 0.3, mask, is_causal)
    expected = scaled_dot_product_attention(*theirs, is_causal=masked != "", scale=0.3, enable_gqa=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        assert own.grad.any() or length == 1
        assert torch.allclose(own.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "ends"), [(0, [0]), (5, [5]), (64, [64]), (65, [48, 65]), (130, [48, 96, 130])])
def test_blocks_are_alike_and_see_what_came_before(monkeypatch, length, ends):
    monkeypatch.setattr(kernels, "BLOCK", 64)
    assert kernels._blocks(length, True) == [
        (begin, end, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert kernels._blocks(length, False) == [(0, length, length)]


def test_of_what_blocks_do_not_see_nothing_is_kept():
    states, sizes = torch.randn(1, 2, 1024, 8).bfloat16().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
        plain_attention(states, states, states, 1.0, is_causal=True)
    assert sum(size for size in sizes if size > states.numel()) == 2 * 1024**2 * 10 // 16


def test_in_bfloat16_it_is_as_near_to_the_truth_as_torchs_own():
    torch.manual_seed(1)
    exact = [torch.randn(3, heads, 64, 16) for heads in (8, 2, 2)]
    truth = scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    half = [one.bfloat16() for one in exact]
    ours = plain_attention(*half, 0.25, is_causal=True)
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
