"""Leaner layers are transformers' own in numbers, keep less, and are put where they belong."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.seed_oss.configuration_seed_oss import SeedOssConfig
from transformers.models.seed_oss.modeling_seed_oss import SeedOssMLP

from omnikit import lean as module
from omnikit.lean import GatedMLP, RMSNorm, RotaryAttention, lean

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


ATTENTIONS = {"llama": (LlamaAttention, LlamaConfig), "mistral": (MistralAttention, MistralConfig)}
ATTENTIONS |= {"qwen2": (Qwen2Attention, Qwen2Config)}


def rotary(name):
    """(theirs, ours, positions of 2 rows of 7)"""
    kind, config = ATTENTIONS[name]
    config = config(**SIZES, num_key_value_heads=1, attn_implementation="sdpa")
    torch.manual_seed(0)
    theirs = nn.ModuleList([kind(config, 0)])
    lean(ours := copy.deepcopy(theirs))
    assert type(ours[0]) is RotaryAttention and ours.state_dict().keys() == theirs.state_dict().keys()
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [3, 4, 5, 6, 7, 8, 9]])
    return theirs[0], ours[0], LlamaRotaryEmbedding(config)(torch.zeros(1), places)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("in_cache", [1, 36, 10_000])
def test_rotary_attention_is_transformers_own(monkeypatch, name, casts, in_cache):
    monkeypatch.setattr(module, "IN_CACHE", in_cache)
    theirs, ours, places = rotary(name)
    outcomes = []
    for layer, cast in ((theirs, casts), (ours, casts), (copy.deepcopy(theirs), False)):
        states = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            output, _ = layer(hidden_states=states, position_embeddings=places, attention_mask=None)
        (output.float() * torch.linspace(-1, 1, 24)).sum().backward()
        outcomes.append((output, [states.grad, *(one.grad for one in layer.parameters())]))
    (expected, plain), (found, own), (_, exact) = outcomes
    assert torch.equal(found, expected) and found.any(), "the numbers are the same"
    for gradient, other, truth in zip(own, plain, exact, strict=True):
        # A key's bias moves all scores of a query alike, but for its rotation: small numbers of large ones.
        most = max(truth.abs().max(), 1e-2)
        error, theirs_error = ((one - truth).abs().max() / most for one in (gradient, other))
        assert gradient.any() and error <= max(2.5 * theirs_error, 2**-8 if casts else 1e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_rotary_attention_goes_on_from_a_cache(name):
    theirs, ours, (cos, sin) = rotary(name)
    states, outputs = torch.randn(2, 7, 24), []
    for layer in (theirs, ours):
        cache, found = DynamicCache(config=layer.config), []
        for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
            given = {"position_embeddings": (cos[:, part], sin[:, part]), "past_key_values": cache}
            found.append(layer(hidden_states=states[:, part], attention_mask=None, **given)[0])
        assert cache.get_seq_length() == 6
        outputs.append(torch.cat(found, 1))
    assert torch.equal(*outputs)


def test_attention_of_other_kinds_is_left_alone():
    class Other(LlamaAttention):
        """One that may do more in its forward pass."""

    more = LlamaAttention(LlamaConfig(**SIZES), 0)
    more.q_norm = nn.LayerNorm(12)
    layers = nn.ModuleList([Other(LlamaConfig(**SIZES), 0), more])
    lean(layers)
    assert [type(layer) for layer in layers] == [Other, LlamaAttention]


def test_each_has_its_own_window():
    windows = {}
    for name, (kind, config) in ATTENTIONS.items():
        more = {"sliding_window": 5} | ({"use_sliding_window": True, "max_window_layers": 0} if name == "qwen2" else {})
        layer = nn.ModuleList([kind(config(**SIZES, **more), 0)])
        lean(layer)
        windows[name] = layer[0].window
    assert windows == {"llama": None, "mistral": 5, "qwen2": 5}


@pytest.mark.parametrize("in_cache", [1, 24 * 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_parts_is_the_same(monkeypatch, in_cache, dtype):
    norm, outcomes = RMSNorm(nn.Parameter(torch.rand(24)), 1e-5), []
    states, weights = torch.randn(4, 5, 24).to(dtype), torch.randn(4, 5, 24)
    for size in (10_000, in_cache):
        monkeypatch.setattr(module, "IN_CACHE", size)
        given = states.clone().requires_grad_()
        norm.weight.grad = None
        output = norm(given)
        (output.float() * weights).sum().backward()
        outcomes.append((output, given.grad, norm.weight.grad))
    (expected, there, whole), (found, here, parts) = outcomes
    assert torch.equal(found, expected) and torch.equal(here, there) and here.any()
    assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6) and whole.any()
