"""Attention by the formula, as a CPU computes it in bfloat16, beside torch's."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from omnikit.builtin.attention import PLAIN, _is_plain, _Plain


@pytest.mark.parametrize("kinds", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_the_formula_and_its_gradients_are_torchs(kinds, length):
    torch.manual_seed(0)
    shapes = [(2, heads, length, 8) for heads in (9, kinds, kinds)]
    ours, theirs = ([torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes] for _ in range(2))
    for own, other in zip(ours, theirs, strict=True):
        other.data.copy_(own.data)
    weights = torch.randn(2, 9, length, 8, dtype=torch.float64)
    found = _Plain.apply(*ours, 0.3)
    expected = scaled_dot_product_attention(*theirs, is_causal=True, scale=0.3, enable_gqa=True)
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
    ours = _Plain.apply(*half, 0.25)
    theirs = scaled_dot_product_attention(*half, is_causal=True, enable_gqa=True)
    assert ours.dtype == torch.bfloat16
    assert (ours - truth).abs().max() < 1.5 * (theirs - truth).abs().max() < 0.1


def test_it_is_for_short_documents_in_bfloat16_without_dropout():
    short = torch.zeros(1, 1, PLAIN, 4, dtype=torch.bfloat16)
    assert _is_plain(short, 0.0)
    assert not _is_plain(short, 0.1) and not _is_plain(short.float(), 0.0)
    assert not _is_plain(torch.zeros(1, 1, PLAIN + 1, 4, dtype=torch.bfloat16), 0.0)
